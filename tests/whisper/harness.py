"""The whole road: a client of the bridge, a WebSocket, the real server, the engine `whisper` with the tiny model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bridge.protocols.native import FinalMessage, PartialMessage, StartMessage
from tests import wire
from tests.backends.whisper.harness import Promises
from tests.google.harness import Heard, talking
from tests.models import fixture
from tests.speech import SECOND

FRAME: Final = 3_200
"""Bytes of 100 ms."""
ADMIN: Final = {"Authorization": "Bearer queen"}

ENV: Final = {
    "STT_WHISPER_MODEL": str(fixture.MODEL),
    "STT_WHISPER_FINAL_SECONDS": "30",  # tests send more at once than a machine carries in real time
    "STT_ADMIN_KEYS": "queen",
}


@contextlib.contextmanager
def server(folder: Path, **variables: str) -> Iterator[wire.Process]:
    """A server in a process of its own, which must meet nothing that surprises it."""
    with wire.spawned(folder, ENV | {"STT_BACKEND": "whisper"} | variables) as process:
        yield process
        process.assert_no_traceback()


async def spoken(
    url: str,
    audio: bytes,
    *,
    size: int = FRAME,
    speed: float = 0,
    flushes: tuple[float, ...] = (),
    limit: float = 60,
    reopened: bool = False,
    **start: Any,
) -> Heard:
    """One whole session; what was promised in it is checked. `flushes`: seconds of the audio. `reopened`: the
    engine's stream is opened again in it, by which what is committed and not yet final may be heard otherwise."""
    loop = asyncio.get_running_loop()
    marks = [2 * round(at * SECOND / 2) for at in flushes]
    async with talking(url, StartMessage(**start), seconds=limit) as talk:
        began = loop.time()
        at = 0
        while at < len(audio):
            end = min(at + size, len(audio), *marks[:1])
            await talk.client.send(audio[at:end])
            if marks and end == marks[0]:
                marks.pop(0)
                await talk.client.flush()
            at = end
            if speed:
                await asyncio.sleep(max(0.0, began + at / SECOND / speed - loop.time()))
    check(talk.heard, reopened=reopened)
    return talk.heard


def finals(heard: Heard) -> list[FinalMessage]:
    """Those of a session."""
    return [message for message in heard.messages if isinstance(message, FinalMessage)]


def partials(heard: Heard) -> list[PartialMessage]:
    """Those of a session."""
    return [message for message in heard.messages if isinstance(message, PartialMessage)]


def check(heard: Heard, *, reopened: bool = False) -> None:
    """Nothing that was called committed was taken back, no time went back, and all of the audio was finalized."""
    promises = Promises()
    for message in heard.messages:
        if reopened:
            promises.committed = ""
        if isinstance(message, FinalMessage):
            promises.take(message.text, final=True, committed=None, start=message.start, end=message.end)
            at = message.start
            for word in message.words:
                assert at - 0.002 <= word.start <= word.end <= message.end + 0.002
                at = word.end
        elif isinstance(message, PartialMessage):
            promises.take(
                message.text, final=False, committed=message.committed or 0, start=message.start, end=message.end
            )
    assert reopened or promises.committed == ""
    if heard.closed.code == "stopped":
        assert heard.closed.finalized == heard.closed.received
