"""One contender under one load: what it cost its processes while all sessions were open, and what the sessions saw."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Final

from bench.load.fleet import play
from bench.load.plan import Plan
from bench.load.results import Seen, together
from bench.process import cpu_seconds, resident_mb, threads_of
from bench.targets.contenders import Contender, Server

RAMP_RATE: Final = 250
"""Sessions opened in a second."""
LATE_MS: Final = 20.0
"""A generator whose frames are later than this (p99) does not play what was asked for."""
FULL_PERCENT: Final = 97.0
"""Of a core for each process: a server that takes so much may be behind, and a frame cost it more than was seen."""
WARM_UP: Final = 2
"""Sessions before the load: what a server loads with its first one is no cost of a session."""

Milliseconds = dict[str, float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A report of a generator, and what the server's processes had used by then: seconds of CPU, MB, threads."""

    seen: Seen
    at: float
    cpu: float
    rss_mb: float
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run showed; None or empty where it could not be measured. Latencies in milliseconds.

    `latency_ms`: from sending audio to the first partial that covers it; `final_ms`: to a final that ends there. These,
    CPU and `lag_ms` are of the stretch in which all sessions were open; memory and threads are the most that was seen,
    less what the process had before.
    """

    contender: str
    sessions: int
    processes: int = 1
    stretch_seconds: float = 0.0
    frames: int = 0
    cpu_us_per_frame: float | None = None
    cpu_percent: float | None = None
    latency_ms: Milliseconds = field(default_factory=dict)
    final_ms: Milliseconds = field(default_factory=dict)
    lag_ms: Milliseconds = field(default_factory=dict)
    opening_ms: Milliseconds = field(default_factory=dict)
    memory_kb_per_session: float | None = None
    threads_per_session: float | None = None
    completed: int = 0
    refused: int = 0
    dropped: int = 0
    lost_frames: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    collapsed: tuple[str, ...] = ()
    """Why nothing is to be compared with it; empty if it carried its load."""

    @property
    def late(self) -> bool:
        """Whether the generator was."""
        return self.lag_ms.get("p99", 0.0) > LATE_MS

    @property
    def full(self) -> bool:
        """Whether its processes had nothing left."""
        return (self.cpu_percent or 0.0) >= FULL_PERCENT * self.processes


def measure(
    contender: Contender,
    *,
    sessions: int,
    seconds: float,
    generators: int = 1,
    processes: int = 1,
) -> Run:
    """Start it, warm it up, have so many sessions open together for so many seconds, stop it.

    Raises:
        PeerUnavailableError: it cannot be installed.
        RuntimeError, TimeoutError, SystemExit: it, or a generator, did not start.
    """
    ramp = sessions / RAMP_RATE
    with contender.started(processes) as server:
        plan = Plan(url=server.url, dialect=contender.dialect, sessions=WARM_UP, seconds=1.0, ramp=0)
        asyncio.run(play(plan))
        before = _mark(server, Seen())
        marks: list[Mark] = []
        # A second more: the stretch begins and ends with a report.
        plan = Plan(
            url=server.url,
            dialect=contender.dialect,
            sessions=sessions,
            seconds=ramp + seconds + 1,
            ramp=ramp,
        )
        whole = asyncio.run(play(plan, generators, lambda seen: marks.append(_mark(server, seen))))
    return summary(contender.name, sessions, before, marks, whole, generators=generators, processes=processes)


def _mark(server: Server, seen: Seen) -> Mark:
    return Mark(
        seen,
        time.monotonic(),
        sum(cpu_seconds(pid) for pid in server.pids),
        sum(resident_mb(pid) for pid in server.pids),
        sum(threads_of(pid) for pid in server.pids),
    )


def stretch(marks: list[Mark], sessions: int, generators: int) -> list[Mark]:
    """From the first report at which all sessions were open to the last: whole turns of all generators."""
    full = [
        i
        for i in range(generators - 1, len(marks))
        if sum(m.seen.open for m in marks[i - generators + 1 : i + 1]) == sessions
    ]
    if not full:
        return []
    first, last = full[0], full[-1]
    if full != list(range(first, last + 1)):
        return []  # some ended in between
    return marks[first : last + 1 - (last - first) % generators]


def summary(
    name: str, sessions: int, before: Mark, marks: list[Mark], whole: Seen, *, generators: int = 1, processes: int = 1
) -> Run:
    """What the marks of a run come to."""
    steady = stretch(marks, sessions, generators)
    seen = together(mark.seen for mark in steady[1:])
    wall = steady[-1].at - steady[0].at if seen.frames else 0.0
    cpu = steady[-1].cpu - steady[0].cpu if seen.frames else 0.0
    return Run(
        contender=name,
        sessions=sessions,
        processes=processes,
        stretch_seconds=round(wall, 2),
        frames=seen.frames,
        cpu_us_per_frame=round(1e6 * cpu / seen.frames, 2) if seen.frames else None,
        cpu_percent=round(100 * cpu / wall, 1) if wall else None,
        latency_ms=seen.partial.milliseconds(),
        final_ms=seen.final.milliseconds(),
        lag_ms=seen.lag.milliseconds() or whole.lag.milliseconds(),
        opening_ms=whole.opening.milliseconds(),
        memory_kb_per_session=round(1024 * (max(m.rss_mb for m in marks) - before.rss_mb) / sessions, 1),
        threads_per_session=round((max(m.threads for m in marks) - before.threads) / sessions, 3),
        completed=whole.completed,
        refused=whole.refused,
        dropped=whole.dropped,
        lost_frames=whole.lost_frames,
        failures=whole.failures,
        collapsed=tuple(_faults(whole, sessions, steady=bool(wall))),
    )


def _faults(whole: Seen, sessions: int, *, steady: bool) -> list[str]:
    counts = {"refused": whole.refused, "dropped": whole.dropped, "frames lost": whole.lost_frames}
    faults = [f"{count} {what}" for what, count in counts.items() if count]
    return faults if steady else [*faults, f"never all {sessions} sessions open for long"]
