"""More than a part of the line can take: the others slow down, memory stays bounded, and what can be told is told.

The bound of one session, in bytes of this process: `queue_seconds + replay_seconds` of PCM16 at the engine's rate (the
replay buffer), one message of the largest size twice over (joined, and waiting), a slice of the socket's input (256 KiB
on uvloop), the outbox's events and the write buffer. `SLACK` stands for all but the first, and for the allocator.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from backends.scripted import marker_audio
from bridge.errors import ERRORS
from bridge.settings import Settings
from tests.conftest import Spawn
from tests.wire import BINARY, Process, Wire, engine_env, eventually, frame, get, http_get, markers, metric, serve

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads memory and descriptors from /proc")

DEFAULTS: Final = Settings.load(env={}, env_file=None)
REPLAY: Final = round((DEFAULTS.queue_seconds + DEFAULTS.replay_seconds) * 32_000)
SLACK: Final = 8 * 2**20
BOUND: Final = REPLAY + SLACK
KERNEL: Final = 8 * 2**20
"""What both ends' socket buffers may grow to on Linux (`net.ipv4.tcp_rmem`, `tcp_wmem`)."""
CHANNELS: Final = 8
"""Eight equal channels are the same speech eight times as large: enough of it to fill every socket buffer."""
WORDS: Final = 80
"""48 seconds of speech: 1.5 MB for the engine, 12.3 MB on the wire."""


def wide(pcm: bytes) -> bytes:
    """The same audio in eight channels."""
    return b"".join(pcm[at : at + 2] * CHANNELS for at in range(0, len(pcm), 2))


class Peak:
    """The most memory that a server's process had while the context lasted, above what it had before."""

    def __init__(self, server: Process) -> None:
        self._server = server
        self._before = self._most = server.rss()

    @property
    def growth(self) -> int:
        self._most = max(self._most, self._server.rss())
        return self._most - self._before


@contextlib.asynccontextmanager
async def watched(server: Process) -> AsyncIterator[Peak]:
    """Warm the server up with a very short session, then watch its memory."""
    async with Wire.stream(server.url, start={}) as wire:
        await wire.audio(bytes(3_200))
        await wire.say({"type": "stop"})
        await wire.finish()
    peak = Peak(server)

    async def look() -> None:
        while True:
            assert peak.growth >= 0
            await asyncio.sleep(0.02)

    looking = asyncio.create_task(look())
    try:
        yield peak
    finally:
        looking.cancel()


def bounded(peak: Peak, what: str) -> None:
    print(f"{what}: memory grew by {peak.growth / 2**20:.1f} MiB, bound {BOUND / 2**20:.1f} MiB")  # noqa: T201
    assert peak.growth <= BOUND


# A receiver that stops reading


@pytest.mark.parametrize(("kind", "size"), [("final", 8_000), ("partial", 16_000)])
async def test_a_receiver_that_stops_reading(spawn: Spawn, tmp_path: Path, kind: str, size: int) -> None:
    """Results of megabytes for two sessions, one of which does not read: it is dropped in time, and only it."""
    count = 1_000
    results = [
        {"at": 0.01 * i, "text": f"{i} " + "x" * size, "final": kind == "final", "start": 0, "end": 0.01 * i}
        for i in range(1, count + 1)
    ]
    env = engine_env(tmp_path, mode="script", script={"results": results})
    server = spawn(env | {"STT_SEND_SECONDS": "3", "STT_RESUME_SECONDS": "0"})
    sound = frame(BINARY, bytes(320))  # a hundredth of a second: one result
    async with (
        watched(server) as peak,
        Wire.stream(server.url, start={}, rcvbuf=4_096) as deaf,
        Wire.stream(server.url, start={}) as other,
    ):
        reading = asyncio.create_task(other.finish(40))
        began = time.monotonic()
        gone = asyncio.create_task(deaf.dropped(20))
        for _ in range(count):
            with contextlib.suppress(OSError):
                await deaf.send(sound)
            await other.send(sound)
            await asyncio.sleep(0.001)
        await gone
        took = time.monotonic() - began
        await other.say({"type": "stop"})
        outcome = await reading
        await eventually(lambda: metric(http_get(f"{server.url}/metrics").body, "stt_sessions_open") == 0)
        body = (await get(f"{server.url}/metrics")).body
    assert took < 10
    bounded(peak, f"a deaf receiver of {kind}s, dropped after {took:.1f} s")
    assert metric(body, "stt_refused_total", code="slow_receiver") == 1
    assert metric(body, "stt_sessions_total", code="slow_receiver") == 1
    assert (outcome.close, outcome.messages[-1]["code"]) == (1000, "stopped")
    if kind == "final":
        assert [int(m["text"].split()[0]) for m in outcome.of("final")] == list(range(1, count + 1))
    server.assert_no_traceback()


# A sender that is too fast


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "ratio"), [("paced", 10), ("paced", 100), ("paced-threads", 100)])
async def test_a_sender_faster_than_the_backend(spawn: Spawn, backend: str, ratio: int) -> None:
    """It is slowed by TCP; nothing is refused, and no ping that waits in line kills it."""
    speed = 16.0
    prefix = f"STT_{backend.upper().replace('-', '_')}"
    env = {f"{prefix}_MODE": "markers", f"{prefix}_SPEED": str(speed), "STT_BACKEND": backend}
    server = spawn(env | {"STT_PING_SECONDS": "0.2", "STT_PING_TIMEOUT_SECONDS": "0.2"}, module="tests.paced")
    audio = wide(marker_audio(WORDS))
    second = 32_000 * CHANNELS
    ahead = 0.0
    async with (
        watched(server) as peak,
        Wire.stream(server.url, start={"channels": CHANNELS, "partials": False}, sndbuf=65_536) as wire,
    ):
        reading = asyncio.create_task(wire.finish(40))
        began = time.monotonic()
        for at in range(0, len(audio), second // 10):
            early = at / second / (speed * ratio) - (time.monotonic() - began)
            if early > 0:
                await asyncio.sleep(early)
            await wire.audio(audio[at : at + second // 10], second // 10)
            acked = max((m["received"] for m in wire.outcome.of("ack")), default=0)
            ahead = max(ahead, at - acked * 2 * CHANNELS)
        sent = time.monotonic() - began
        await wire.say({"type": "stop"})
        outcome = await reading
        took = time.monotonic() - began
    whole = len(audio) / second
    bounded(peak, f"{backend}: {whole:.0f} s of audio offered in {whole / speed / ratio:.2f} s, taken in {sent:.1f} s")
    assert outcome.words == markers(WORDS)
    assert outcome.codes == []
    assert outcome.close == 1000
    assert outcome.messages[-1]["received"] == outcome.messages[-1]["finalized"] == len(audio) // 2 // CHANNELS
    assert took >= 0.9 * whole / speed  # the backend had to do it all
    # Blocked in `send`: what could not be sent at once is what no buffer on the way holds.
    held = DEFAULTS.queue_seconds + KERNEL / second
    assert sent >= 0.5 * (whole - held) / speed
    assert ahead <= DEFAULTS.queue_seconds * second + KERNEL + 1.5 * second * speed  # acks come once a second
    server.assert_no_traceback()


# A backend that stalls


def stalls(count: int) -> dict[str, Any]:
    return {"faults": [{"at": 0.5, "kind": "stall"}] * count}


BACKENDS: Final = ["scripted", "scripted-threads"]


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_stalled_backend_is_opened_again(tmp_path: Path, backend: str) -> None:
    env = engine_env(tmp_path, backend=backend, script=stalls(2))
    async with serve(env, backend=backend, stall_seconds=0.3) as url, Wire.stream(url, start={}) as wire:
        await wire.audio(marker_audio(10))
        await wire.say({"type": "stop"})
        outcome = await wire.finish()
        body = (await get(f"{url}/metrics")).body
    assert outcome.words == markers(10)
    assert outcome.codes == []
    assert outcome.close == 1000
    assert metric(body, "stt_backend_errors_total", code="stalled") == 2


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_backend_that_stalls_for_good(tmp_path: Path, backend: str) -> None:
    env = engine_env(tmp_path, backend=backend, script=stalls(9))
    async with serve(env, backend=backend, stall_seconds=0.2, reopen_seconds=0.1) as url:
        async with Wire.stream(url, start={}) as wire:
            await wire.audio(marker_audio(10))
            outcome = await wire.finish()
        assert outcome.codes == ["backend_stalled"]
        assert outcome.messages[-1]["code"] == "backend_stalled"
        assert outcome.close == ERRORS["backend_stalled"].close
        # Its place, and its thread, are free again.
        await eventually(lambda: http_get(f"{url}/readyz").json["sessions"] == 0)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_memory_while_the_backend_stalls(spawn: Spawn, tmp_path: Path, backend: str) -> None:
    env = engine_env(tmp_path, backend=backend, script={"faults": [{"at": 0.5, "kind": "stall"}]})
    server = spawn(env | {"STT_BACKEND": backend, "STT_STALL_SECONDS": "1.5", "STT_IDLE_SECONDS": "1"})
    audio = wide(marker_audio(WORDS))
    async with (
        watched(server) as peak,
        Wire.stream(server.url, start={"channels": CHANNELS, "partials": False}, sndbuf=65_536) as wire,
    ):
        began = time.monotonic()
        reading = asyncio.create_task(wire.finish(40))
        await wire.audio(audio, 51_200)
        sent = time.monotonic() - began
        await wire.say({"type": "stop"})
        outcome = await reading
    bounded(peak, f"{backend} stalled for 1.5 s, {len(audio) / 1e6:.0f} MB taken in {sent:.1f} s")
    assert sent >= 1.4  # it waited for the stall to end
    assert outcome.words == markers(WORDS)
    assert outcome.codes == []
    assert outcome.close == 1000
    server.assert_no_traceback()
