"""Fixtures for every test that needs a server. The tools themselves stand in `tests.wire`."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import wire

# The same examples everywhere, so that nobody's change fails on a case it has not touched. New cases are looked for by
# `pytest --hypothesis-profile explore`.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=5_000)
hypothesis.settings.load_profile("same")

# Servers in the tests' own process keep their event log here, not in the user's folder.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="stt-bridge-tests-")

Spawn = Callable[..., wire.Process]


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no `.env` of the developer's is read: the folder is an empty one."""
    for name in list(os.environ):
        if name.startswith("STT_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Starts servers in processes of their own, on the scripted engine; see `wire.spawned`. Killed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda env=None, *args, **options: stack.enter_context(
            wire.spawned(tmp_path, env or {}, *args, **options)
        )


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server in marker mode that many tests share, one web origin allowed."""
    yield from shared(tmp_path_factory.mktemp("plain"), STT_ALLOWED_ORIGINS="https://app.example")


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same with two API keys, `sesame` and `open`."""
    yield from shared(tmp_path_factory.mktemp("keyed"), STT_API_KEYS="sesame,open")


def shared(folder: Path, **variables: str) -> Iterator[str]:
    """The life of a server that many tests share: it must meet nothing that surprises it."""
    with wire.spawned(folder, wire.engine_env() | variables) as server:
        yield server.url
        server.assert_no_traceback()
