"""`bench.endless` in short: streams at their limit and at random aborts, and nothing lost; afterwards nothing left."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from bench.endless import KINDS, Spoken, session
from bridge.emulator.faults import Faults, Plan
from bridge.emulator.limits import Limits
from bridge.emulator.server import EmulatorConfig, emulating
from tests.google.harness import server
from tests.wire import eventually

SECONDS: Final = 100.0
"""Of audio in each session."""
SPEED: Final = 32.0
LIMIT: Final = 12.0
"""Seconds of audio that a stream may last."""
LIBRARIES: Final = ("_poll_wrapper", "channel_spin", "asyncio_", "MainThread")
"""What threads are called that gRPC keeps for the process and asyncio for its loop. The tasks of gRPC's server, which
belong to the emulator, are named after `AioServer`."""


@pytest.mark.parametrize(
    ("engine", "api", "seed"), [("google", "v1", 1), ("google", "v2", 2), ("google-threads", "v1", 3)]
)
async def test_endless_speech(engine: str, api: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.session.channel.BACKOFF_BASE", 0.01)  # time is short here, and aborts many
    talks = [Spoken(kind, SECONDS) for kind in KINDS]
    config = EmulatorConfig(
        limits=Limits(stream_seconds=LIMIT, audio_timeout=1_000, requests_per_minute=100_000),
        plan=Plan(usual=Faults(lag=0.5), abort_every=20, seed=seed),
    )
    settings = {"STREAM_SECONDS": str(LIMIT), "ANSWER_SECONDS": "30", "REQUESTS_PER_MINUTE": "100000"}
    async with emulating(config) as emulator:
        tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
        async with server(emulator.address, engine, api, env=settings) as url:
            address = f"ws{url.removeprefix('http')}/v1/stream"
            async with asyncio.timeout(40):
                ends = await asyncio.gather(*(session(address, talk, SPEED) for talk in talks))
            await emulator.stats.until(lambda stats: stats.open == 0)
        await eventually(lambda: not connections(emulator.port))
        await eventually(lambda: not new_threads(threads))
        # grpc's own, that see a call to its end, take as long as the call.
        loop = asyncio.get_running_loop()
        await eventually(lambda: not new_tasks(loop, tasks))
    statuses = Counter(stream.status for stream in emulator.stats.ended)
    for talk, end in zip(talks, ends, strict=True):
        assert talk.first_difference() is None
        assert not any(talk.faults().values()), talk.faults()
        assert (end.code, end.finalized) == ("stopped", end.received)
    assert statuses["UNAVAILABLE"] >= 10
    assert emulator.stats.opened - statuses["UNAVAILABLE"] - len(talks) >= 20, statuses
    assert max(stream.audio_seconds for stream in emulator.stats.ended) <= LIMIT


def new_threads(before: set[threading.Thread]) -> list[str]:
    """Threads that are neither as old as the test nor a library's own."""
    return [
        thread.name
        for thread in threading.enumerate()
        if thread not in before and not any(name in thread.name for name in LIBRARIES)
    ]


def new_tasks(loop: asyncio.AbstractEventLoop, before: set[asyncio.Task[Any]]) -> list[str]:
    """Tasks that are neither as old as the test nor the emulator's."""
    return [repr(task) for task in asyncio.all_tasks(loop) - before if "AioServer" not in repr(task)]


def connections(port: int) -> int:
    """TCP connections of this machine to the port, where the system tells."""
    if sys.platform != "linux":
        return 0
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    established = "01"
    return sum(
        fields[2].endswith(f":{port:04X}") and fields[3] == established for fields in (line.split() for line in lines)
    )
