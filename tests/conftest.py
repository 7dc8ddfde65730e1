"""Fixtures for every test that needs a server. The tools themselves stand in `tests.wire`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import wire

Spawn = Callable[..., wire.Process]


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
    env = wire.engine_env() | {"STT_ALLOWED_ORIGINS": "https://app.example"}
    with wire.spawned(tmp_path_factory.mktemp("plain"), env) as server:
        yield server.url
        server.assert_no_traceback()


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same with two API keys, `sesame` and `open`."""
    env = wire.engine_env() | {"STT_API_KEYS": "sesame,open"}
    with wire.spawned(tmp_path_factory.mktemp("keyed"), env) as server:
        yield server.url
        server.assert_no_traceback()
