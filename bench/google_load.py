"""Real-time audio for many streams of one process, and when each frame was answered: what all contenders share.

The emulator's echo answers each message with the bytes that it has received, so each answer tells which frames it
covers. A frame's latency runs from handing it in to the moment at which the first answer that covers it comes out.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.load.plan import FRAME_BYTES, FRAME_SECONDS
from bench.percentiles import percentiles
from bench.process import resident_mb, threads_of

WARM_UP: Final = 2.0
"""Seconds at the start that are left out: connections, streams and caches are made."""
LAST_ANSWERS: Final = 10.0
"""Seconds that are waited for answers after the last frame."""
_TICK: Final = 0.001
"""uvloop's timers know whole milliseconds; frames that are due within one are handed in together."""

Hand = Callable[[bytes], None]
"""Hands a frame to one stream; must not wait."""
Heard = Callable[[int, int], None]
"""Called on the event loop with the number of a stream and the bytes of audio that an answer covers."""


@dataclass
class Run:
    """What one run saw after the warm-up; latencies in milliseconds, memory in MB."""

    contender: str
    sessions: int
    seconds: float
    frames: int = 0
    lost_frames: int = 0
    cpu_percent: float = 0.0
    cpu_us_per_frame: float = 0.0
    latency_ms: dict[str, float] = field(default_factory=dict)
    lag_ms: dict[str, float] = field(default_factory=dict)
    rss_mb: float = 0.0
    threads: int = 0
    machine_busy_percent: float = 0.0
    load_average: float = 0.0


@dataclass(frozen=True, slots=True)
class _Clocks:
    """Seconds: by the wall, of this process's CPU, of all CPUs together while busy and in sum."""

    wall: float
    cpu: float
    busy: float
    total: float

    @classmethod
    def read(cls) -> _Clocks:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        fields = [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        idle = fields[3] + fields[4]
        return cls(time.perf_counter(), usage.ru_utime + usage.ru_stime, float(sum(fields) - idle), float(sum(fields)))


class Load:
    """Plays `sessions` streams for the warm-up and `seconds` more, their frames spread evenly over time."""

    def __init__(self, contender: str, sessions: int, seconds: float) -> None:
        self.run = Run(contender, sessions, seconds)
        self._sessions = sessions
        self._warm = round(WARM_UP / FRAME_SECONDS)
        self._per_session = self._warm + round(seconds / FRAME_SECONDS)
        self._audio = random.Random(1).randbytes(64 * FRAME_BYTES)  # loud, so that it may be speech
        self._sent: list[list[float]] = [[] for _ in range(sessions)]
        self._answered = [0] * sessions
        self._missing = sessions * self._per_session
        self._next = 0
        self._latencies: list[float] = []
        self._lags: list[float] = []
        self._began = 0.0
        self._first: _Clocks | None = None
        self._played = asyncio.Event()
        self._complete = asyncio.Event()

    async def play(self, hands: list[Hand]) -> None:
        """Hand in every frame at its time, then wait for the last answers; fills in the report."""
        self._hands = hands
        self._loop = asyncio.get_running_loop()
        self._began = time.perf_counter()
        self._tick()
        await self._played.wait()
        self._measure()
        try:
            async with asyncio.timeout(LAST_ANSWERS):
                await self._complete.wait()
        except TimeoutError:
            self.run.lost_frames = self._missing
        self.run.latency_ms = percentiles(self._latencies)
        self.run.lag_ms = percentiles(self._lags)

    def heard(self, session: int, received: int) -> None:
        """An answer of a stream that covers so many bytes."""
        now = time.perf_counter()
        covered, first = received // FRAME_BYTES, self._answered[session]
        sent = self._sent[session]
        for index in range(first, covered):
            if index >= self._warm:
                self._latencies.append(now - sent[index])
        if covered > first:
            self._answered[session] = covered
            self._missing -= covered - first
            if not self._missing:
                self._complete.set()

    def _tick(self) -> None:
        """Hand in what is due. The frames of all streams are one evenly spaced sequence, stream after stream."""
        step = FRAME_SECONDS / self._sessions
        while (due := self._began + self._next * step) <= (now := time.perf_counter()):
            index, session = divmod(self._next, self._sessions)
            if index == self._per_session:
                self._played.set()
                return
            if index >= self._warm:
                if self._first is None:
                    self._first = _Clocks.read()
                self._lags.append(now - due)
            at = index % 64 * FRAME_BYTES
            self._sent[session].append(time.perf_counter())
            self._hands[session](self._audio[at : at + FRAME_BYTES])
            self._next += 1
        self._loop.call_later(max(_TICK, due - now), self._tick)

    def _measure(self) -> None:
        first, last, run = self._first, _Clocks.read(), self.run
        assert first is not None  # noqa: S101 - set with the first frame after the warm-up
        run.frames = len(self._lags)
        run.cpu_percent = round(100 * (last.cpu - first.cpu) / (last.wall - first.wall), 2)
        run.cpu_us_per_frame = round(1e6 * (last.cpu - first.cpu) / run.frames, 1)
        run.machine_busy_percent = round(100 * (last.busy - first.busy) / max(1.0, last.total - first.total), 1)
        run.rss_mb = round(resident_mb(os.getpid()), 1)
        run.threads = threads_of(os.getpid())
        run.load_average = os.getloadavg()[0]
