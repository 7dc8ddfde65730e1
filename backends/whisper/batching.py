"""Which of the requests that are ready are decoded next, together, and when.

1. Finals go before partials. A partial that has waited two seconds behind them goes first now and then, so that text
   still moves; that takes at most a fifth of a worker's time.
2. Then, who came first; time that a stream has used lately counts against it (`fairness.py`).
3. A stream's partial waits while anything else of that stream is being decoded: one stream cannot fill every worker.

The first one's key decides whom a batch takes along. A batch begins once it is full, or nobody is left who could join
it, or the oldest request has waited long enough. No I/O, no clock: times in seconds, by the clock of whoever calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from backends.whisper.jobs import Job
from backends.whisper.window import Kind

STARVING_SECONDS: Final = 2.0
"""How long a partial waits behind other streams' finals before it goes first for once."""
RESCUE_SHARE: Final = 0.2
"""Most of a worker's time that goes to such partials."""
HALVED_SECONDS: Final = 60.0
"""How long batches stay half as large after one did not fit into memory. Then they double, so often again."""
TICK: Final = 0.001
"""Seconds: uvloop's clock and timers know no less, and a timer may come that much early."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Jobs to be decoded together; the first is the one it is made for. `rescue`: a partial that went before finals."""

    jobs: tuple[Job, ...]
    rescue: bool = False

    @property
    def kind(self) -> Kind:
        """That of the first."""
        return self.jobs[0].kind


class Batcher:
    """What is ready. Batches hold at most `most` jobs, and wait at most `wait_seconds` for them."""

    def __init__(self, most: int, wait_seconds: float) -> None:
        self._planned = most
        self._wait = wait_seconds
        self._ready: dict[Job, None] = {}
        self._most = most
        self._double_at = 0.0  # while `_most` is less than planned
        self._rescue_at = 0.0

    def __len__(self) -> int:
        return len(self._ready)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._ready)

    def add(self, job: Job) -> None:
        """This one is ready."""
        self._ready[job] = None

    def discard(self, job: Job) -> None:
        """This one no longer is."""
        self._ready.pop(job, None)

    def due(self) -> float:
        """When the oldest that may be taken has waited long enough; infinite if there is none."""
        return min((job.since for job in self._free()), default=math.inf) + self._wait

    def take(self, now: float, lanes: int) -> Batch | None:
        """The next batch, for a worker that is free; None while there is none, or it pays to wait for more.

        `lanes` are open in all: when one window of each is in the batch, there is nobody to wait for.
        """
        turns = sorted(self._free(), key=lambda job: job.turn(now))
        if not turns:
            return None
        starving = self._starving(turns, now)
        leader = starving or turns[0]
        jobs, most = self._together(leader, turns, now)
        everybody = len({job.lane for job in jobs}) >= lanes
        if len(jobs) < most and not everybody and now < self.due() - TICK:
            return None
        for job in jobs:
            del self._ready[job]
            job.lane.running += 1
        if starving:
            self._rescue_at = math.inf  # until it has ended
        return Batch(tuple(jobs), rescue=starving is not None)

    def ended(self, batch: Batch, seconds: float, now: float) -> None:
        """A batch that was taken has ended, after so long."""
        for job in batch.jobs:
            job.lane.running -= 1
        if batch.rescue:
            self._rescue_at = now + max(STARVING_SECONDS, seconds * (1 / RESCUE_SHARE - 1))

    def halve(self, size: int, now: float) -> int:
        """A batch of this size did not fit into memory; how many go together at most from now on."""
        self._most = max(1, min(self._limit(now), size // 2))
        self._double_at = now + HALVED_SECONDS
        return self._most

    def _together(self, leader: Job, turns: list[Job], now: float) -> tuple[list[Job], int]:
        """The leader and who goes along, and how many could."""
        jobs, most = [leader], _at_most(leader, self._limit(now))
        for job in turns:
            if len(jobs) >= most:
                break
            if job is not leader and job.key == leader.key and (limit := _at_most(job, most)) > len(jobs):
                jobs.append(job)
                most = limit
        return jobs, most

    def _free(self) -> list[Job]:
        """Those that may be taken now."""
        return [job for job in self._ready if job.kind is Kind.FINAL or not job.lane.running]

    def _starving(self, turns: list[Job], now: float) -> Job | None:
        """A partial that has waited too long behind finals, if it may go before one."""
        if turns[0].kind is not Kind.FINAL or now < self._rescue_at:
            return None
        return next((job for job in turns if job.kind is Kind.PARTIAL and now - job.since >= STARVING_SECONDS), None)

    def _limit(self, now: float) -> int:
        """The largest batch just now."""
        while self._most < self._planned and now >= self._double_at:
            self._most = min(self._planned, 2 * self._most)
            self._double_at += HALVED_SECONDS
        return self._most


def _at_most(job: Job, most: int) -> int:
    return most if job.most is None else min(most, job.most)
