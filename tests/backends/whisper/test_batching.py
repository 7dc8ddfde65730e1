"""Batching: whose turn it is, alone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from backends.whisper.batching import RESCUE_SHARE, STARVING_SECONDS, Batcher
from backends.whisper.fairness import Share
from backends.whisper.jobs import Job, Lane
from backends.whisper.window import Kind

FINAL, PARTIAL = Kind.FINAL, Kind.PARTIAL
NO_FUTURE = cast("asyncio.Future[Any]", None)


def lane(used: float = 0.0) -> Lane:
    return Lane(Share(used, 0.0))


def job(kind: Kind = FINAL, asked: float = 0.0, *, key: Hashable = None, of: Lane | None = None) -> Job:
    return Job(of or lane(), cast("Any", SimpleNamespace(kind=kind, seconds=1.0)), key, asked, NO_FUTURE)


def batcher(*jobs: Job, most: int = 1, wait: float = 0.0) -> Batcher:
    ready = Batcher(most, wait)
    for each in jobs:
        ready.add(each)
    return ready


def taken(ready: Batcher, now: float = 0.0, lanes: int = 99) -> list[Job]:
    """Everything, a batch after the other, as if each took no time."""
    jobs: list[Job] = []
    while batch := ready.take(now, lanes):
        jobs += batch.jobs
        ready.ended(batch, 0.0, now)
    return jobs


def test_who_has_used_less_comes_first_but_not_for_ever() -> None:
    light, heavy = lane(0.1), lane(3.0)
    early, late = job(of=heavy, asked=0.0), job(of=light, asked=1.0)
    assert taken(batcher(early, late)) == [late, early]
    # A little more than the others is nothing that counts against age.
    much_later = job(of=light, asked=20.0)
    assert taken(batcher(early, much_later)) == [early, much_later]
    alike = lane(0.11)
    assert taken(batcher(job(of=light, asked=0.5), first := job(of=alike, asked=0.0)))[0] is first


def test_no_share_makes_a_partial_of_a_final() -> None:
    final, partial = job(of=lane(10.0)), job(PARTIAL, of=lane(0.0))
    assert taken(batcher(partial, final)) == [final, partial]


def test_nothing_is_ready() -> None:
    ready = batcher()
    assert ready.take(0.0, 1) is None
    assert ready.due() == math.inf
    assert not len(ready)


def test_due_and_full() -> None:
    ready = batcher(job(asked=1.0), job(asked=1.01), most=3, wait=0.05)
    assert ready.take(1.02, 5) is None
    assert ready.due() == pytest.approx(1.05)
    batch = ready.take(1.05, 5)
    assert batch is not None
    assert len(batch.jobs) == 2
    ready = batcher(*(job(asked=1.0) for _ in range(3)), most=3, wait=0.05)
    assert ready.take(1.0, 5) is not None


def test_a_lane_at_work_keeps_its_partials_and_nothing_hurries_for_them() -> None:
    mine = lane()
    ready = batcher(job(of=mine), most=1)
    batch = ready.take(0.0, 1)
    assert batch is not None
    ready.add(waiting := job(PARTIAL, of=mine))
    assert ready.take(10.0, 1) is None
    assert ready.due() == math.inf
    ready.ended(batch, 1.0, 10.0)
    assert taken(ready, 10.0) == [waiting]


def test_a_starving_partial_goes_first_for_once() -> None:
    ready = batcher(*(job(PARTIAL, 0.0) for _ in range(3)), *(job(FINAL, 1.0) for _ in range(9)))
    before = ready.take(STARVING_SECONDS - 0.01, 99)
    assert before is not None
    assert (before.kind, before.rescue) == (FINAL, False)
    rescue = ready.take(STARVING_SECONDS, 99)
    assert rescue is not None
    assert (rescue.kind, rescue.rescue) == (PARTIAL, True)
    # None other beside it, and none soon after it.
    assert [b.kind for _ in range(3) if (b := ready.take(100.0, 99))] == [FINAL] * 3
    ready.ended(before, 1.0, 100.0)
    assert [b.kind for _ in range(2) if (b := ready.take(100.0, 99))] == [FINAL] * 2
    ready.ended(rescue, 1.0, 100.0)
    pause = 1.0 * (1 / RESCUE_SHARE - 1)
    assert [b.kind for _ in range(1) if (b := ready.take(100.0 + pause - 0.01, 99))] == [FINAL]
    assert [b.kind for _ in range(1) if (b := ready.take(100.0 + pause, 99))] == [PARTIAL]


def test_one_that_failed_in_company_is_alone_and_takes_nobody() -> None:
    suspect, others = job(asked=0.0), [job(asked=1.0) for _ in range(3)]
    suspect.most = 1
    ready = batcher(suspect, *others, most=4)
    assert [len(b.jobs) for _ in range(2) if (b := ready.take(5.0, 99))] == [1, 3]
    suspect, others = job(asked=1.0), [job(asked=0.0) for _ in range(3)]
    suspect.most = 1
    ready = batcher(suspect, *others, most=4)
    assert [len(b.jobs) for _ in range(2) if (b := ready.take(5.0, 99))] == [3, 1]


def test_limits_of_members_hold_for_all() -> None:
    jobs = [job(asked=float(n)) for n in range(5)]
    jobs[1].most = 2
    ready = batcher(*jobs, most=4)
    assert [len(b.jobs) for _ in range(2) if (b := ready.take(9.0, 99))] == [2, 3]


def test_halving_and_doubling() -> None:
    def limit(now: float) -> int:
        for _ in range(99):
            ready.add(job())
        batch = ready.take(now, 999)
        assert batch is not None
        return len(batch.jobs)

    ready = batcher(most=12)
    assert limit(0.0) == 12
    assert ready.halve(12, 0.0) == 6
    assert ready.halve(4, 10.0) == 2
    assert ready.halve(6, 20.0) == 2  # a batch that began before
    assert ready.halve(1, 20.0) == 1
    assert [limit(now) for now in (20.0, 79.9, 80.0, 139.0, 140.0, 199.0, 200.0, 260.0)] == [1, 1, 2, 2, 4, 4, 8, 12]
