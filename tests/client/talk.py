"""What the tests of the resuming client say, and what they look for."""

from __future__ import annotations

import asyncio
import contextlib
import random

from bridge.client import (
    Client,
    ConnectionLost,
    Interrupted,
    Reconnect,
    Resumed,
    connect,
)
from bridge.protocols import native
from bridge.protocols.native import StartMessage
from tests.client.fake import WORD, FakeServer

QUICK = Reconnect(base_seconds=0.001, most_seconds=0.01)
START = StartMessage(encoding="pcm_s16le", sample_rate=8_000)
LASTING = (native.SpeechStartedMessage, native.FinalMessage, native.ClosedMessage)


def noise(words: int) -> bytes:
    """Audio in which every stretch is told from every other."""
    return random.Random(words).randbytes(words * WORD)


async def talk(
    server: FakeServer,
    audio: bytes,
    *,
    chunk: int = WORD,
    start: StartMessage = START,
    reconnect: Reconnect = QUICK,
    flushes: tuple[int, ...] = (),
    pace: float = 0,
) -> tuple[list[native.ServerMessage], list[Interrupted | Resumed]]:
    """Say it all; what the caller saw."""
    told: list[Interrupted | Resumed] = []

    async def speak(client: Client) -> None:
        for at in range(0, len(audio), chunk):
            await client.send(audio[at : at + chunk])
            if at + chunk in flushes:
                await client.flush()
            await asyncio.sleep(pace)
        await client.stop()

    before = asyncio.all_tasks()
    async with connect(server.url, start, reconnect=reconnect, on_reconnect=told.append) as client:
        speaking = asyncio.create_task(speak(client))
        try:
            async with asyncio.timeout(20):
                seen = [message async for message in client]
        finally:
            speaking.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionLost):
                await speaking
    assert {task for task in asyncio.all_tasks() - before if task.get_name().startswith("client")} == set()
    return seen, told


def assert_whole(server: FakeServer, audio: bytes, seen: list[native.ServerMessage]) -> None:
    assert bytes(server.audio) == audio
    lasting = [message for message in seen if isinstance(message, LASTING)]
    assert [message.seq for message in lasting] == list(range(1, len(server.events) + 1))
    words = [message.text for message in seen if isinstance(message, native.FinalMessage)]
    assert words == [f"w{i}" for i in range(len(audio) // WORD)]
