"""What Redis adds: workers that are told of jobs, and a store that goes away and comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bridge.jobs import worker as worker_module
from bridge.jobs.models import Progress, State
from bridge.jobs.store import Rules, StoreUnavailableError
from bridge.uploads.blobs import BlobStore
from bridge.uploads.urls import open_blobs
from tests.jobs.samples import BACKEND, name, spoken, terms
from tests.jobs.workers import FakeBatch, ended, handed_in, worker, working
from tests.redis import RedisServer, redis_server

pytest.importorskip("redis", reason="the package redis is not installed (stt-bridge[cluster])")
pytest.importorskip("taskiq_redis", reason="the package taskiq-redis is not installed (stt-bridge[cluster])")

from redis.asyncio import Redis

from bridge.jobs.delivery import GROUP
from bridge.jobs.redis_scripts import PREFIX
from bridge.jobs.redis_store import RedisJobStore

LIMIT = 5.0
STREAM = f"{PREFIX}s:{BACKEND}"


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[BlobStore]:
    blobs = open_blobs(str(tmp_path / "files"))
    await blobs.open()
    yield blobs
    await blobs.close()


@contextlib.asynccontextmanager
async def opened(server: RedisServer, rules: Rules | None = None) -> AsyncIterator[RedisJobStore]:
    store = RedisJobStore(server.url, rules or Rules(lease_seconds=0.5))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def test_a_worker_elsewhere_is_told_at_once(
    jobs_redis: RedisServer, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "LOOK_SECONDS", 1_000.0)
    async with opened(jobs_redis) as store, opened(jobs_redis) as elsewhere:
        batch = FakeBatch()
        async with working(worker(elsewhere, blobs, batch)):
            await asyncio.sleep(0.2)  # until it waits
            for number in range(5):
                job = await handed_in(store, blobs, f"text {number}")
                assert (await ended(store, job)).state is State.SUCCEEDED
        assert batch.opened == 5


async def test_what_is_no_message_keeps_nobody_from_hearing(
    jobs_redis: RedisServer, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "LOOK_SECONDS", 1_000.0)
    monkeypatch.setattr("bridge.jobs.delivery.AGAIN_SECONDS", 0.05)
    async with opened(jobs_redis) as store, opened(jobs_redis) as elsewhere, Redis.from_url(jobs_redis.url) as redis:
        async with working(worker(elsewhere, blobs, FakeBatch())):
            await asyncio.sleep(0.2)
            await redis.xadd(STREAM, {"what": "ever"})
            await asyncio.sleep(0.2)
            assert (await ended(store, await handed_in(store, blobs))).state is State.SUCCEEDED
        await redis.delete(STREAM)
    assert "is none" in caplog.text


async def test_who_is_busy_lets_others_hear(
    jobs_redis: RedisServer, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "LOOK_SECONDS", 1_000.0)
    async with opened(jobs_redis) as store, opened(jobs_redis) as one, opened(jobs_redis) as two:
        batches = [FakeBatch(), FakeBatch()]
        for batch in batches:
            batch.gate.clear()
        async with working(*(worker(s, blobs, b, slots=1) for s, b in zip((one, two), batches, strict=True))):
            await asyncio.sleep(0.2)
            jobs = [await handed_in(store, blobs) for _ in range(4)]
            async with asyncio.timeout(LIMIT):
                while [batch.open_now for batch in batches] != [1, 1]:
                    await asyncio.sleep(0.01)
            for batch in batches:
                batch.gate.set()
            for job in jobs:
                assert (await ended(store, job)).state is State.SUCCEEDED


async def test_jobs_of_which_nobody_was_told_are_found(
    jobs_redis: RedisServer, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is gone, with the messages in it, and the group of the workers."""
    monkeypatch.setattr(worker_module, "LOOK_SECONDS", 0.2)
    async with (
        opened(jobs_redis) as store,
        Redis.from_url(jobs_redis.url) as redis,
        working(worker(store, blobs, FakeBatch())),
    ):
        await ended(store, await handed_in(store, blobs))
        await redis.delete(STREAM)
        job = await handed_in(store, blobs)
        await redis.delete(STREAM)
        assert (await ended(store, job)).state is State.SUCCEEDED


async def test_a_worker_that_ends_leaves_no_consumer(jobs_redis: RedisServer, blobs: BlobStore) -> None:
    async with Redis.from_url(jobs_redis.url) as redis:
        async with opened(jobs_redis) as store, working(worker(store, blobs, FakeBatch())):
            await ended(store, await handed_in(store, blobs))
            assert len(await redis.xinfo_consumers(STREAM, GROUP)) >= 1
            before = len(await redis.xinfo_consumers(STREAM, GROUP))
        assert len(await redis.xinfo_consumers(STREAM, GROUP)) == before - 1


async def test_redis_goes_away_and_comes_back(own_redis: RedisServer, blobs: BlobStore) -> None:
    """What was handed in is done; meanwhile nobody is told that a job was taken."""
    async with opened(own_redis) as store:
        batch = FakeBatch()
        batch.gate.clear()
        async with working(worker(store, blobs, batch)):
            job = await handed_in(store, blobs, "kept")
            async with asyncio.timeout(LIMIT):
                while not batch.open_now:
                    await asyncio.sleep(0.01)
            own_redis.kill()
            with pytest.raises(StoreUnavailableError):
                await store.submit(name(), terms())
            batch.gate.set()
            await asyncio.sleep(0.3)
            own_redis.start()
            assert (await ended(store, job)).state is State.SUCCEEDED
            assert (await ended(store, await handed_in(store, blobs))).state is State.SUCCEEDED


async def test_watchers_hear_again_after_redis_was_away(own_redis: RedisServer) -> None:
    async with opened(own_redis) as store:
        job = await store.submit(name(), terms())
        own_redis.kill()
        own_redis.start()
        with store.changes.watch(job.id) as bell:
            assert await bell.changed(LIMIT), "something may have been missed"
            await store.cancel(job.id)
            assert await bell.changed(LIMIT)


async def test_nothing_is_left_of_what_is_forgotten(jobs_redis: RedisServer) -> None:
    async with Redis.from_url(jobs_redis.url) as redis, opened(jobs_redis) as store:
        await redis.flushall()
        for _ in range(3):
            await store.submit(name(), terms(webhook="https://a.example"))
            job = await store.claim(BACKEND)
            assert job is not None
            await store.finish(job, spoken("secret words"), Progress())
            await store.delete(job.id)
        left = {key async for key in redis.scan_iter("*")}
        assert left == {f"{PREFIX}c".encode(), STREAM.encode()}
