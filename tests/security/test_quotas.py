"""Quotas: sessions at once and minutes a day, of one server and of several."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.errors import BridgeError
from bridge.security import quotas as module
from bridge.security import rates
from bridge.security.quotas import DAY, Quotas
from bridge.security.rates import Counts, SharedCounts
from tests.redis import redis_server


class Clock:
    def __init__(self) -> None:
        self.now = 20_000.0 * DAY + 3_600

    def __call__(self) -> float:
        return self.now


async def refused(quotas: Quotas, subject: str) -> float | None:
    """What is said of when to come again; None: a session was let in."""
    try:
        async with quotas.session(subject):
            return None
    except BridgeError as exc:
        return exc.retry_after if exc.code == "quota_exceeded" else None


async def use(quotas: Quotas, subject: str, seconds: float) -> None:
    async with quotas.session(subject, checked=False) as spend:
        spend(seconds)


async def test_sessions_at_once_are_those_of_one_subject() -> None:
    quotas = Quotas(sessions=2)
    async with quotas.session("anna"), quotas.session("anna"):
        assert await refused(quotas, "anna") is not None
        assert await refused(quotas, "ben") is None
        async with quotas.session("anna", checked=False):  # one that goes on here is not turned away, but counts
            assert await refused(quotas, "anna") is not None
    assert await refused(quotas, "anna") is None


async def test_a_session_that_fails_or_is_cancelled_gives_its_place_back() -> None:
    quotas = Quotas(sessions=1)
    with pytest.raises(RuntimeError):
        async with quotas.session("anna"):
            raise RuntimeError
    entered = asyncio.Event()

    async def hold() -> None:
        async with quotas.session("anna"):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await entered.wait()
    assert await refused(quotas, "anna") is not None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await refused(quotas, "anna") is None


async def test_minutes_are_those_of_a_day() -> None:
    clock = Clock()
    quotas = Quotas(audio_minutes=1, clock=clock)
    async with quotas.session("anna") as spend:
        spend(59.5)
        assert await refused(quotas, "anna") is None
        spend(1)  # who is in stays in, and what it says counts
        assert await refused(quotas, "anna") == DAY - 3_600
        spend(1_000)
    assert await refused(quotas, "ben") is None
    with pytest.raises(BridgeError, match="the 1 minutes"):
        await quotas.check("anna")
    clock.now += DAY - 3_600
    assert await refused(quotas, "anna") is None


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CALLERS", 10)
    quotas = Quotas(audio_minutes=1)
    for number in range(100):
        await use(quotas, f"user-{number}", 90)
    assert await refused(quotas, "user-99") is not None
    assert len(quotas._used) == 10


@contextlib.asynccontextmanager
async def server(url: str, minutes: float, clock: Clock) -> AsyncIterator[Quotas]:
    counts = Counts(SharedCounts(url))
    quotas = Quotas(audio_minutes=minutes, counts=counts, clock=clock)
    try:
        yield quotas
    finally:
        await quotas.close()
        await counts.close()


async def test_servers_share_their_minutes_and_a_restart_forgets_none(tmp_path: Path) -> None:
    clock = Clock()
    with redis_server(tmp_path) as redis:
        async with server(redis.url, 1, clock) as one, server(redis.url, 1, clock) as two:
            await use(one, "anna", 40)
            assert await refused(one, "anna") is None
            await use(two, "anna", 15)
            assert await refused(two, "anna") is None  # 55: what is asked for is also told
            await use(two, "anna", 10)
            assert await refused(two, "anna") is not None
            assert await refused(one, "anna") is not None  # which gave it 40 itself
            assert await refused(one, "ben") is None
        async with server(redis.url, 1, clock) as three:
            assert await refused(three, "anna") is not None
            clock.now += DAY
            assert await refused(three, "anna") is None


async def test_what_is_left_is_written_at_the_end(tmp_path: Path) -> None:
    clock = Clock()
    with redis_server(tmp_path) as redis:
        async with server(redis.url, 1, clock) as one:
            await use(one, "anna", 61)
        async with server(redis.url, 1, clock) as two:
            assert await refused(two, "anna") is not None


async def test_while_redis_is_away_nothing_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "AWAY_SECONDS", 0.05)
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.05)
    clock = Clock()
    with redis_server(tmp_path) as redis:
        async with server(redis.url, 1, clock) as one, server(redis.url, 1, clock) as two:
            await use(one, "anna", 30)
            assert await refused(one, "anna") is None
            redis.stop(signal.SIGKILL)
            await use(one, "anna", 20)
            assert await refused(one, "anna") is None
            await use(one, "anna", 20)
            assert await refused(one, "anna") is not None  # it knows what it was sent itself
            redis.start()
            async with asyncio.timeout(10):
                while await refused(two, "anna") is None:
                    await asyncio.sleep(0.05)
