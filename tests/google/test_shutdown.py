"""Ctrl-C while fifty sessions stream through the blocking driver: it is over within seconds, and nobody is cut off."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time

import pytest

from backends.scripted import marker_audio
from bridge.emulator.server import emulating
from tests.conftest import Spawn
from tests.google.harness import google_env
from tests.wire import Wire, markers

SESSIONS = 50
FRAME = 3_200
"""Bytes of 100 ms."""
SECONDS = 5.0

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for another process")


async def speak(wire: Wire, over: asyncio.Event) -> None:
    """Send speech in real time until it is over."""
    began, sent = time.monotonic(), 0
    audio = marker_audio(60)
    with contextlib.suppress(OSError):
        while not over.is_set() and sent < len(audio):
            await wire.audio(audio[sent : sent + FRAME])
            sent += FRAME
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, began + sent / 32_000 - time.monotonic())):
                    await over.wait()


@pytest.mark.parametrize("engine", ["google-threads", "google"])
async def test_ctrl_c(spawn: Spawn, engine: str) -> None:
    async with emulating() as emulator, contextlib.AsyncExitStack() as stack:
        server = spawn(google_env(emulator.address) | {"STT_BACKEND": engine, "STT_THREADS": "64"})
        wires = [await stack.enter_async_context(Wire.stream(server.url, start={})) for _ in range(SESSIONS)]
        over = asyncio.Event()
        speaking = [asyncio.create_task(speak(wire, over)) for wire in wires]
        for wire in wires:
            await wire.until("final", 2)
        assert emulator.stats.open == SESSIONS
        began = time.monotonic()
        server.signal(signal.SIGINT)
        outcomes = await asyncio.gather(*(wire.finish() for wire in wires))
        assert await server.exited() == 0
        took = time.monotonic() - began
        over.set()
        await asyncio.gather(*speaking)
        await emulator.stats.until(lambda stats: stats.open == 0)
    print(f"{engine}: ended within {took:.2f} s")  # noqa: T201
    assert took < SECONDS
    for outcome in outcomes:
        whole = outcome.words[:-1]  # the last one may have been going on
        assert len(whole) >= 1
        assert whole == markers(len(whole))
        assert outcome.words[-1].removesuffix("~") == f"w{len(whole)}"
        last = outcome.messages[-1]
        assert (last["type"], last["code"]) == ("closed", "shutting_down")
        assert last["finalized"] == last["received"]
        assert (outcome.close, outcome.reason) == (1001, "shutting_down")
    server.assert_no_traceback()


async def test_ctrl_c_while_google_hangs(spawn: Spawn) -> None:
    """The sessions are given their time to finish, and not more: what Google does not answer is not waited for."""
    patience = 0.5
    async with emulating() as emulator, contextlib.AsyncExitStack() as stack:
        settings = {"STT_BACKEND": "google-threads", "STT_THREADS": "64", "STT_SHUTDOWN_SECONDS": str(patience)}
        server = spawn(google_env(emulator.address) | settings)
        wires = [await stack.enter_async_context(Wire.stream(server.url, start={})) for _ in range(SESSIONS)]
        for wire in wires:
            await wire.audio(marker_audio(3))
        for wire in wires:
            await wire.until("final", 2)
        emulator.freeze()
        began = time.monotonic()
        server.signal(signal.SIGINT)
        outcomes = await asyncio.gather(*(wire.finish() for wire in wires))
        assert await server.exited() == 0
        took = time.monotonic() - began
        emulator.thaw()
        await emulator.stats.until(lambda stats: stats.open == 0)
    print(f"hanging: ended within {took:.2f} s")  # noqa: T201
    assert took < patience + 4
    for outcome in outcomes:
        assert outcome.words == markers(len(outcome.words))
        assert outcome.ended
    server.assert_no_traceback()
