"""Rates: what is counted, in memory and in a real Redis, how long one has to wait, and what becomes of it all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.security import rates
from bridge.security.rates import Counts, MemoryCounts, SharedCounts, parse_rates
from tests.redis import RedisServer, redis_server


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("600/minute", [(600, 60)]),
        ("5 per 2 minutes", [(5, 120)]),
        ("20/second;600/minute", [(20, 1), (600, 60)]),
        ("1/day", [(1, 86_400)]),
    ],
)
def test_rates(text: str, read: list[tuple[int, int]]) -> None:
    assert [(rate.amount, rate.seconds) for rate in parse_rates(text)] == read


@pytest.mark.parametrize("text", ["", "600", "x", "-1/minute", "0/minute", "600/fortnight", "600/minute;;"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="should "):
        parse_rates(text)


# In memory


def test_a_rate_allows_so_many_and_says_how_long_to_wait() -> None:
    clock = Clock()
    counts, rate = MemoryCounts(clock=clock), parse_rates("3/minute")
    assert [counts.hit("a", rate)[0].remaining for _ in range(3)] == [2, 1, 0]
    (refused,) = counts.hit("a", rate)
    assert refused.refused
    assert refused.remaining == 0
    assert not counts.hit("b", rate)[0].refused  # another's
    clock.now += refused.reset - 0.01
    assert counts.hit("a", rate)[0].refused
    clock.now += 0.01
    assert not counts.hit("a", rate)[0].refused
    assert counts.hit("a", rate)[0].refused  # only one has become free


def test_who_took_the_last_is_told_when_there_is_more() -> None:
    clock = Clock()
    counts, rate = MemoryCounts(clock=clock), parse_rates("3/minute")
    last = [counts.hit("a", rate)[0] for _ in range(3)][-1]
    clock.now += last.reset
    assert not counts.hit("a", rate)[0].refused


@pytest.mark.parametrize("text", ["1/second", "3/minute", "7/5 seconds", "100/minute"])
def test_who_waits_as_told_is_let_in(text: str) -> None:
    """And in no window come more than twice as many, which a window that slides by weight can promise."""
    clock, chance = Clock(), random.Random(1)
    counts, (rate,) = MemoryCounts(clock=clock), parse_rates(text)
    taken: list[float] = []
    for _ in range(2_000):
        (window,) = counts.hit("a", [rate])
        if window.refused:
            assert 0 < window.reset <= 2 * rate.seconds
            clock.now += window.reset
            (window,) = counts.hit("a", [rate])
            assert not window.refused
        taken.append(clock.now)
        clock.now += chance.expovariate(2 * rate.amount / rate.seconds)
    for start in taken[::50]:
        assert sum(start <= at < start + rate.seconds for at in taken) <= 2 * rate.amount
    mean = len(taken) / (taken[-1] - taken[0])
    assert mean <= 1.05 * rate.amount / rate.seconds + 0.05


def test_of_several_rates_each_holds_and_a_refusal_counts_in_none() -> None:
    clock = Clock()
    counts, both = MemoryCounts(clock=clock), parse_rates("2/second; 5/minute")
    slow = both[1]
    assert [any(window.refused for window in counts.hit("a", both)) for _ in range(4)] == [False, False, True, True]
    assert counts.look("a", slow).remaining == 3
    clock.now += 2.5
    assert [any(window.refused for window in counts.hit("a", both)) for _ in range(2)] == [False, False]
    clock.now += 2.5
    assert [any(window.refused for window in counts.hit("a", both)) for _ in range(2)] == [False, True]


def test_memory_is_bounded() -> None:
    counts, rate = MemoryCounts(callers=100), parse_rates("1/minute")
    counts.hit("known", rate)
    for number in range(99):
        counts.hit(f"stranger-{number}", rate)
    assert counts.hit("known", rate)[0].refused
    for number in range(1_000):
        counts.hit(f"stranger-{number}", rate)
    assert len(counts) == 100


def test_who_is_only_looked_at_takes_no_memory_and_pushes_nobody_out() -> None:
    counts, rate = MemoryCounts(callers=100), parse_rates("1/minute")
    counts.hit("guesses", rate)
    for number in range(1_000):
        assert not counts.look(f"good-{number}", rate[0]).refused
    assert len(counts) == 1
    assert counts.look("guesses", rate[0]).refused


def test_a_hit_is_cheap_however_many_callers_there_are() -> None:
    counts, rate = MemoryCounts(), parse_rates("600/minute")
    for number in range(20_000):
        counts.hit(f"caller-{number}", rate)
    began = time.perf_counter()
    for number in range(2_000):
        counts.hit(f"caller-{number}", rate)
    assert (time.perf_counter() - began) / 2_000 < 0.001  # the library's own: 4 ms


# In Redis


@contextlib.asynccontextmanager
async def shared(server: RedisServer) -> AsyncIterator[SharedCounts]:
    counts = SharedCounts(server.url)
    try:
        yield counts
    finally:
        await counts.close()


async def test_two_servers_count_together(tmp_path: Path) -> None:
    rate = parse_rates("4/minute")
    with redis_server(tmp_path) as server:
        async with shared(server) as one, shared(server) as two:
            hits = [await counts.hit("a", rate) for counts in (one, two, one, two)]
            assert [windows[0].remaining for windows in hits] == [3, 2, 1, 0]
            (refused,) = await one.hit("a", rate)
            assert refused.refused
            assert 0 < refused.reset <= 61
            assert not (await two.hit("b", rate))[0].refused


async def test_who_waits_as_told_is_let_in_by_redis(tmp_path: Path) -> None:
    (rate,) = parse_rates("5/second")
    with redis_server(tmp_path) as server:
        async with shared(server) as counts, asyncio.timeout(10):
            refusals = 0
            while refusals < 5:
                (window,) = await counts.hit("a", [rate])
                if window.refused:
                    refusals += 1
                    await asyncio.sleep(window.reset)
                    assert not (await counts.hit("a", [rate]))[0].refused


async def test_while_redis_is_away_this_server_counts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rates, "AWAY_SECONDS", 0.2)
    caplog.set_level(logging.INFO, "bridge.security.rates")
    rate = parse_rates("4/minute")
    with redis_server(tmp_path) as server:
        counts = Counts(SharedCounts(server.url))
        other = Counts(SharedCounts(server.url))
        try:
            assert (await counts.hit("a", rate))[0].remaining == 3
            assert (await other.hit("a", rate))[0].remaining == 2
            server.pause()  # it hangs, which is worse than to be gone
            began = time.monotonic()
            assert [(await counts.hit("a", rate))[0].remaining for _ in range(3)] == [2, 1, 0]
            assert (await counts.hit("a", rate))[0].refused
            assert time.monotonic() - began < 2 * rates.ANSWER_SECONDS + 0.5  # one waits, the others do not
            server.go_on()
            await asyncio.sleep(0.25)
            back = (await counts.hit("a", rate))[0]
            assert not back.refused  # what was counted alone is not in Redis
            assert back.remaining <= 1
        finally:
            await counts.close()
            await other.close()
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        "the shared counts are away",
        "the shared counts are back",
    ]


async def test_redis_that_is_not_there_at_all() -> None:
    counts = Counts(SharedCounts("redis://127.0.0.1:1"))
    try:
        (rate,) = parse_rates("2/minute")
        hits = [(await counts.hit("a", [rate]))[0] for _ in range(3)]
        assert [window.refused for window in hits] == [False, False, True]
    finally:
        await counts.close()
