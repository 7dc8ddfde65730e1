"""Is the promise for finals kept? Measured, not guessed: how long requests wait, how busy the workers are.

Two answers come of it. Under pressure partials are asked for more rarely (`stretch`), and when that is not enough, new
sessions are refused (`refusal`). Only live streams should be reported here: whoever sends a file as fast as it goes
waits for its own audio. All times in seconds, by the clock of whoever calls.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import Final

from backends.whisper.window import Kind

WINDOW_SECONDS: Final = 20.0
"""How long a final is remembered."""
LATE_SHARE: Final = 0.05
"""The promise is about the 95th percentile."""
FEWEST_LATE: Final = 3
"""Late ones that it takes at least: one slow decode among a few is an accident."""
QUEUED: Final = 0.1
"""Share of the promise that a late final must have waited. One that was late without it shows a slow machine, which
fewer sessions would not make faster."""

STEP_SECONDS: Final = 0.5
FRESH_SECONDS: Final = 5.0
"""How long a wait counts for the stretch, at most until the next raise: a raise must be able to show its effect."""
MOST_STRETCH: Final = 8.0
RAISE: Final = 1.25
RELAX_SECONDS: Final = 20.0
"""What is stretched beyond 1 falls to 1/e in this time."""
LONG_WAIT: Final = {Kind.FINAL: 0.25, Kind.PARTIAL: 0.5}
"""Shares of the promise. Partials give way while finals still have most of their time."""

BUSY_SECONDS: Final = 5.0
BUSY_SHARE: Final = 0.95


class Pressure:
    """What `workers` workers have done and let wait lately, held against the promise of `final_seconds`."""

    def __init__(self, final_seconds: float, workers: int) -> None:
        self._promise = final_seconds
        self._workers = workers
        self._waits: deque[tuple[float, bool]] = deque()  # when, whether long
        self._finals: deque[tuple[float, bool]] = deque()  # when, whether late
        self._stretch = 1.0
        self._stepped = -math.inf
        self._raised = -math.inf
        self._runs = itertools.count()
        self._running: dict[int, float] = {}
        self._ran: deque[tuple[float, float]] = deque()

    def waited(self, kind: Kind, seconds: float, now: float) -> None:
        """A request was taken up after so long, or replaced while it still waited."""
        self._waits.append((now, seconds > LONG_WAIT[kind] * self._promise))
        self.stretch(now)  # whether anybody asks or not

    def answered(self, seconds: float, waited: float, now: float) -> None:
        """A final took so long from request to answer; `waited` of it nobody worked on it."""
        self._finals.append((now, self.late(seconds, waited)))
        _forget(self._finals, now - WINDOW_SECONDS)

    def late(self, seconds: float, waited: float) -> bool:
        """Whether the promise was broken for want of room."""
        return seconds > self._promise and waited > QUEUED * self._promise

    def begin(self, now: float) -> int:
        """A worker is busy from now on; hand what this returns to `end`."""
        run = next(self._runs)
        self._running[run] = now
        return run

    def end(self, run: int, now: float) -> None:
        """It no longer is."""
        self._ran.append((self._running.pop(run), now))
        while self._ran[0][1] < now - BUSY_SECONDS:
            self._ran.popleft()

    def busy(self, now: float) -> float:
        """Share of the workers' time in which they worked lately, 0 to 1."""
        since = now - BUSY_SECONDS
        worked = sum(end - max(begin, since) for begin, end in self._ran if end > since)
        worked += sum(now - max(begin, since) for begin in self._running.values())
        return worked / (BUSY_SECONDS * self._workers)

    def stretch(self, now: float) -> float:
        """Factor on the time between two partials of a stream, 1 to `MOST_STRETCH`."""
        if now - self._stepped >= STEP_SECONDS:
            relaxed = now - max(self._stepped, self._raised + FRESH_SECONDS)
            self._stepped = now
            _forget(self._waits, now - FRESH_SECONDS)
            if _often(self._waits):
                self._stretch = min(MOST_STRETCH, self._stretch * RAISE)
                self._raised = now
                self._waits.clear()
            elif relaxed > 0:
                self._stretch = 1 + (self._stretch - 1) * math.exp(-relaxed / RELAX_SECONDS)
        return self._stretch

    def refusal(self, now: float, overdue: int = 0) -> str | None:
        """Why one more session would break the promise; None: it would not.

        `overdue` finals wait at this moment, and are late already.
        """
        _forget(self._finals, now - WINDOW_SECONDS)
        if _often(self._finals, overdue):
            late = sum(late for _, late in self._finals) + overdue
            return (
                f"{late} of the last {len(self._finals) + overdue} finals took longer than {self._promise:g} s, "
                "because others were decoded first"
            )
        if self.stretch(now) >= MOST_STRETCH and self.busy(now) > BUSY_SHARE:
            return (
                f"the engine is always busy, although partials come {MOST_STRETCH:g} times more rarely than asked for"
            )
        return None


def _forget(samples: deque[tuple[float, bool]], since: float) -> None:
    while samples and samples[0][0] < since:
        samples.popleft()


def _often(samples: deque[tuple[float, bool]], more: int = 0) -> bool:
    """Whether enough of these, and of `more` bad ones, are bad."""
    bad = sum(bad for _, bad in samples) + more
    return bad >= FEWEST_LATE and bad > LATE_SHARE * (len(samples) + more)
