"""Event logs of every kind, several nodes on each."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bridge.session.eventlog.base import EventLog
from bridge.session.eventlog.urls import open_log
from tests.redis import RedisServer, redis_server
from tests.session.eventlog.samples import RETENTION, Open


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One that many tests share: they use sessions of their own, and do it no harm."""
    with redis_server(tmp_path_factory.mktemp("shared-redis")) as server:
        yield server


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """One that the test may break."""
    with redis_server(tmp_path / "redis") as server:
        yield server


@pytest.fixture(params=["sqlite", "memory", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "sqlite":
            return f"sqlite:{tmp_path / 'log.db'}"
        case "memory":
            return "sqlite::memory:"
        case _:
            server: RedisServer = request.getfixturevalue("shared_redis")
            return server.url


@pytest.fixture
async def open_logs() -> AsyncIterator[Open]:
    """Opens logs, closes them after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def opened(url: str, node: str = "here", retention_seconds: float = RETENTION) -> EventLog:
            log = open_log(url, node, retention_seconds)
            assert log is not None
            await log.open()
            stack.push_async_callback(log.close)
            return log

        yield opened


@pytest.fixture
async def log(url: str, open_logs: Open) -> EventLog:
    return await open_logs(url)


@pytest.fixture
async def other(url: str, open_logs: Open) -> EventLog:
    """Another node's log of the same sessions."""
    if url == "sqlite::memory:":
        pytest.skip("a database in memory is one server's own")
    return await open_logs(url, "there")
