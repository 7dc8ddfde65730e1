"""A file of a request through the engines: what all routes share that answer with its transcript."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, TypeVar

from fastapi import Request

from bridge.api.bodies import Bodies, Spooled
from bridge.api.door import Caller
from bridge.api.presence import present
from bridge.api.sse import OPEN, Event
from bridge.audio.formats import AudioFormat
from bridge.protocols.events import Start
from bridge.session.batch import Batch, Run
from bridge.transcript import Segment

PATIENCE: Final = 30.0
"""Seconds that a request waits for a free place: a file is soon done, and its bytes are here."""
WRITERS: Final = 2
SHORT: Final = 500
"""Segments that are written out at once, in some milliseconds; longer transcripts are work for a thread."""
REFUSALS: Final = (
    "bad_request",
    "unknown_backend",
    "unsupported_language",
    "unsupported_audio",
    "undecodable_audio",
    "bad_audio",
    "audio_too_long",
    "too_large",
    "body_timeout",
    "quota_exceeded",
    "not_ready",
    "store_unavailable",
    "backend_rejected",
    "backend_failed",
    "backend_misconfigured",
    "backend_stalled",
)
"""Why a file may not be heard, besides what any route may answer."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a file is to be heard. `raw`: its format, if nothing in the file tells. `backend`: None for the best."""

    start: Start
    raw: AudioFormat | None = None
    backend: str | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """What a file came to. `seconds`: of its audio, all of it. `language`: BCP 47, as far as anybody knows."""

    segments: Sequence[Segment]
    seconds: float
    language: str
    backend: str


class Hearing:
    """One server's. `protocol` names the route's sessions in metrics."""

    def __init__(self, bodies: Bodies, batch: Batch) -> None:
        self.bodies = bodies
        self._batch = batch
        self._writers = asyncio.Semaphore(WRITERS)

    def _open(self, audio: Spooled, wanted: Wanted, caller: Caller, protocol: str) -> AbstractAsyncContextManager[Run]:
        return self._batch.open(
            audio.content,
            audio.name,
            wanted.start,
            protocol,
            raw=wanted.raw,
            backend=wanted.backend,
            patience=PATIENCE,
            account=caller.account,
        )

    async def whole(self, request: Request, audio: Spooled, wanted: Wanted, caller: Caller, protocol: str) -> Heard:
        """All that is said in the file. Ends at once when the client has hung up.

        Raises:
            BridgeError: as `Batch.whole`.
        """
        async with present(request):
            said = await self._batch.whole(
                audio.content,
                audio.name,
                wanted.start,
                protocol,
                raw=wanted.raw,
                backend=wanted.backend,
                patience=PATIENCE,
                account=caller.account,
            )
        language = next((final.language for final in said.finals if final.language), said.language)
        segments = [Segment(f.text, f.start, f.end, f.words, f.confidence) for f in said.finals]
        return Heard(segments, said.seconds, language, said.backend)

    async def events(
        self,
        request: Request,
        source: AbstractAsyncContextManager[Spooled],
        wanted: Wanted,
        caller: Caller,
        protocol: str,
        narrator: Narrator,
    ) -> AsyncGenerator[Event]:
        """The same as it becomes known, for an `EventStream`, which sees to it that the client is there."""
        collected = Collected()
        async with contextlib.AsyncExitStack() as stack:
            audio = await stack.enter_async_context(source)
            async with present(request):
                run = await stack.enter_async_context(self._open(audio, wanted, caller, protocol))
            yield OPEN
            async for final in run.finals():
                segment = Segment.of(final)
                collected.add(segment, final.language)
                for event in narrator.final(segment):
                    yield event
            for event in narrator.done(collected.heard(run)):
                yield event

    async def written(self, heard: Heard, write: Callable[[], T]) -> T:
        """What `write` makes of it, which must not take the event loop's time if it is long."""
        if len(heard.segments) <= SHORT:
            return write()
        async with self._writers:
            return await asyncio.to_thread(write)


class Narrator(ABC):
    """Tells a transcript as it goes on. Raising `BridgeError` ends it."""

    @abstractmethod
    def final(self, segment: Segment) -> Sequence[Event]:
        """The events of one more final."""

    @abstractmethod
    def done(self, heard: Heard) -> Sequence[Event]:
        """Those of the end."""


class Collected:
    """Finals so far, and the language that they say it was."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._language: str | None = None

    def add(self, segment: Segment, language: str | None) -> None:
        """One more."""
        self._segments.append(segment)
        self._language = self._language or language

    def heard(self, run: Run) -> Heard:
        """All of them; the file has been read to its end."""
        return Heard(self._segments, run.seconds, self._language or run.language, run.backend)
