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
