"""Both stores, opened and closed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from bridge.jobs.sqlite_store import SqliteJobStore
from bridge.jobs.store import JobStore, Rules
from tests.redis import RedisServer, redis_server

DEFAULT: Final = Rules()
Open = Callable[..., Awaitable[JobStore]]


@pytest.fixture(scope="session")
def jobs_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("jobs-redis")) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the store; more than once: the same one from several processes' point of view."""
    async with contextlib.AsyncExitStack() as stack:
        url = None
        if request.param == "redis":
            from redis.asyncio import Redis

            url = request.getfixturevalue("jobs_redis").url
            async with Redis.from_url(url) as client:
                await client.flushall()

        async def opened(rules: Rules = DEFAULT) -> JobStore:
            store: JobStore
            if url is None:
                store = SqliteJobStore(tmp_path / "jobs.db", rules)
            else:
                from bridge.jobs.redis_store import RedisJobStore

                store = RedisJobStore(url, rules)
            await store.open()
            stack.push_async_callback(store.close)
            return store

        yield opened
