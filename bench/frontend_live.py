"""Live streams against a server that has one core: does it carry as many as its cost per stream promises?

The server runs on the scripted engine, which has a partial for every half second of audio; the lag of a partial is the
time from sending the message that completes its half second. `speech_started` is measured from sending the message
that holds the onset: it takes the detector a few frames to be sure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from bench.frontend_streams import Stream, streams
from bench.percentiles import percentiles
from bench.process import cpu_seconds, started

LIVE: Final = {"PCM16 16 kHz": 150, "μ-law 8 kHz": 150, "Opus 48 kHz, 20 ms": 100}
"""Formats, and how many streams of each a core is to carry."""
FEW: Final = 5
"""Streams of an idle server, whose lag is what the format itself and the network take."""
RAMP_SECONDS: Final = 5.0
SETTLE_SECONDS: Final = 8.0
"""After the ramp, before anything counts."""


@dataclass
class Seen:
    """What the clients of one run saw; seconds."""

    completed: int = 0
    failures: list[str] = field(default_factory=list)
    missing: float = 0.0
    """Audio that was sent and not received."""
    partials: list[float] = field(default_factory=list)
    onsets: list[float] = field(default_factory=list)
    pacing: list[float] = field(default_factory=list)
    """How late the clients themselves were."""


class Client:
    """One session, in real time."""

    def __init__(self, url: str, stream: Stream, counted: float, seen: Seen) -> None:
        self._url = url
        self._stream = stream
        self._counted = counted  # from when on, by the performance counter
        self._seen = seen
        self._sent: list[float] = []
        self._ready = asyncio.Event()

    async def run(self) -> None:
        """From the connection to `closed`."""
        try:
            async with connect(self._url, compression=None, ping_interval=None, max_queue=None) as socket:
                audio = self._stream.audio
                start = {
                    "type": "start",
                    "encoding": audio.encoding.value,
                    "sample_rate": audio.sample_rate,
                    "channels": audio.channels,
                    "vad": True,
                    "words": False,
                }
                await socket.send(json.dumps(start))
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._read(socket))
                    group.create_task(self._send(socket))
        except (OSError, WebSocketException) as exc:
            self._seen.failures.append(type(exc).__name__)
        except BaseExceptionGroup as group_error:
            self._seen.failures.append(type(group_error.exceptions[0]).__name__)

    async def _send(self, socket: ClientConnection) -> None:
        await self._ready.wait()
        loop = asyncio.get_running_loop()
        due = loop.time()
        for message in self._stream.messages:
            await asyncio.sleep(due - loop.time())
            now = time.perf_counter()
            if now >= self._counted:
                self._seen.pacing.append(loop.time() - due)
            self._sent.append(now)
            await socket.send(message)
            due += self._stream.milliseconds / 1e3
        await socket.send('{"type":"stop"}')

    async def _read(self, socket: ClientConnection) -> None:
        async for text in socket:
            message = json.loads(text)
            match message["type"]:
                case "ready":
                    self._ready.set()
                case "partial":
                    self._note(self._seen.partials, message["end"])
                case "speech_started":
                    self._note(self._seen.onsets, message["start"])
                case "closed":
                    self._closed(message)

    def _note(self, lags: list[float], position: float) -> None:
        """Something covers the audio up to so many seconds."""
        now = time.perf_counter()
        index = max(0, round(1e6 * position - 1) // (1_000 * self._stream.milliseconds))
        if index < len(self._sent) < len(self._stream.messages) and now >= self._counted:
            lags.append(now - self._sent[index])

    def _closed(self, message: dict[str, Any]) -> None:
        if message["code"] == "stopped":
            self._seen.completed += 1
        else:
            self._seen.failures.append(message["code"])
        sent = len(self._sent) * self._stream.milliseconds / 1e3
        self._seen.missing += max(0.0, sent - message["received"] / self._stream.audio.sample_rate)


async def play(url: str, coded: Sequence[Stream], count: int, pid: int) -> tuple[Seen, float]:
    """What so many clients see, and the server's share of its core meanwhile."""
    seen = Seen()
    began = time.perf_counter()
    counted = began + RAMP_SECONDS + SETTLE_SECONDS
    seconds = len(coded[0].messages) * coded[0].milliseconds / 1e3
    async with asyncio.timeout(RAMP_SECONDS + seconds + 60), asyncio.TaskGroup() as group:
        share = group.create_task(busy(pid, counted, began + seconds))
        for n in range(count):
            await asyncio.sleep(began + RAMP_SECONDS * n / count - time.perf_counter())
            group.create_task(Client(url, coded[n % len(coded)], counted, seen).run())
    return seen, share.result()


async def busy(pid: int, first: float, last: float) -> float:
    """The share of a core that a process takes from one moment to another."""
    await asyncio.sleep(first - time.perf_counter())
    cpu, began = cpu_seconds(pid), time.perf_counter()
    await asyncio.sleep(last - time.perf_counter())
    return (cpu_seconds(pid) - cpu) / (time.perf_counter() - began)


def pin(pid: int, cores: set[int]) -> None:
    """Keep all threads of a process to these cores, and those that they will start."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(task.name), cores)


def live(names: Sequence[str], counts: Sequence[int] | None, seconds: float, detector: str) -> int:
    """Print what servers carried; 1 if a session was refused or dropped, or audio was lost."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("the server needs a core for itself, and the clients another")
    pin(os.getpid(), set(cores[1:]))
    faults = 0
    print(f"{'':22}sessions  core   partial p50/p95/p99/max ms    onset p50/p95 ms   clients late p99   load")
    for name in names:
        coded = streams(name, RAMP_SECONDS + SETTLE_SECONDS + seconds)
        for count in counts or (FEW, LIVE[name]):
            settings = {"STT_VAD": detector, "STT_MAX_SESSIONS": str(count)}
            serve = ["serve", "--backend", "scripted", "--port", "0", "--log-level", "warning"]
            with started(serve, "stream", settings) as (pid, url):
                pin(pid, {cores[0]})
                seen, share = uvloop.run(play(url, coded, count, pid))
            partial, onset, late = (percentiles(x) for x in (seen.partials, seen.onsets, seen.pacing))
            lags = " / ".join(f"{value:.1f}" for value in partial.values())
            onsets = f"{onset['p50']:.0f} / {onset['p95']:.0f}" if onset else "-"
            print(
                f"{name:22}{count:8} {share:5.0%}   {lags:28} {onsets:>16} {late['p99']:15.1f} "
                f"{os.getloadavg()[0]:8.1f}",
                flush=True,
            )
            faults += count - seen.completed + (seen.missing > 0)
            if seen.failures or seen.missing:
                print(f"  {seen.completed} of {count} completed, {seen.failures}, {seen.missing:.2f} s missing")
    return 1 if faults else 0
