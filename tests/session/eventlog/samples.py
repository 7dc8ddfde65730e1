"""Sessions and events to write."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

from backends.base import Word
from bridge.audio.formats import AudioFormat, Encoding
from bridge.protocols import events
from bridge.protocols.events import LastingEvent, Start
from bridge.session.eventlog.base import Entry, EventLog, Outcome, Progress, SessionRecord

RETENTION: Final = 3_600.0
LIMIT: Final = 10.0

Open = Callable[..., Awaitable[EventLog]]

START: Final = Start(
    AudioFormat(Encoding.PCM_S16LE, 48_000, 2),
    "de-DE",
    phrases=("Straße", 'a "quote"'),
    separate=True,
    endpointing={"silence_seconds": 0.5},
    session_id="a-session",
    resume=True,
)


def name() -> str:
    return f"s-{secrets.token_hex(10)}"


def record(session_id: str, **changes: Any) -> SessionRecord:
    fields: dict[str, Any] = {
        "session_id": session_id,
        "token_digest": b"\x00\xff" * 16,
        "start": START,
        "language": "de-DE",
        "backend": "scripted",
        "protocol": "native",
        "owner": "here",
        "created": 1_700_000_000.25,
        "progress": Progress((0.0, 0.0)),
    }
    return SessionRecord(**fields | changes)


def final(seq: int, text: str = "grüß Gott\n\u2028") -> events.Final:
    words = (Word("grüß", 0.25, 0.5, 0.75), Word("Gott", 0.5, 1.0))
    return events.Final(seq, text, float(seq), seq + 1.0, words, 0.5, "de-DE", 1)


def closed(seq: int) -> events.Closed:
    return events.Closed(seq, "stopped", 480, 320, 0.01)


def finals(first: int, last: int) -> tuple[LastingEvent, ...]:
    return tuple(final(seq) for seq in range(first, last + 1))


def entry(session_id: str, *lasting: LastingEvent, epoch: int = 1, **changes: Any) -> Entry:
    fields: dict[str, Any] = {"progress": Progress((1.0, 2.5), 480, 44, raw=True), "backend": "scripted"}
    return Entry(session_id, epoch, lasting, **fields | changes)


async def write(log: EventLog, session_id: str, *lasting: LastingEvent, epoch: int = 1) -> Outcome:
    """One entry."""
    (outcome,) = await log.write([entry(session_id, *lasting, epoch=epoch)])
    return outcome


async def eventually(check: Callable[[], Awaitable[Any]]) -> None:
    """Until it holds."""
    async with asyncio.timeout(LIMIT):
        while not await check():
            await asyncio.sleep(0.02)
