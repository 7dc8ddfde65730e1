"""One loaded engine for all the tests of a module that change nothing in it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from backends.whisper.backend import WhisperBackend
from tests.backends.whisper.harness import loaded


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend() -> AsyncIterator[WhisperBackend]:
    async with loaded() as backend:
        yield backend
