"""What a running bridge holds: memory, threads, file descriptors, tasks."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.counted import Counter
from bench.process import cpu_seconds, fds_of, resident_mb, threads_of
from bench.targets.contenders import bridge


@dataclass(frozen=True, slots=True)
class Footprint:
    """At one moment; `cpu_seconds` since the start."""

    rss_mb: float
    threads: int
    fds: int
    tasks: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Watched:
    """A bridge that can be looked at."""

    pid: int
    url: str
    counter: Counter

    def look(self) -> Footprint:
        """What it holds now; it takes the server's answer to one question."""
        tasks = self.counter.ask(self.pid)
        return Footprint(
            round(resident_mb(self.pid), 1), threads_of(self.pid), fds_of(self.pid), tasks, cpu_seconds(self.pid)
        )


@contextlib.contextmanager
def watched(backend: str = "scripted") -> Iterator[Watched]:
    """The bridge on this backend, in a process of its own; stopped at the end."""
    with tempfile.TemporaryDirectory() as folder:
        counter = Counter(Path(folder))
        try:
            with bridge(backend, "bench.counted", str(counter.path)).started() as server:
                yield Watched(server.pids[0], server.url, counter)
        finally:
            counter.close()
