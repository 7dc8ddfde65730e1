"""Whole files through a session of their own, as fast as the backend takes them, in bounded memory.

    file → MediaDecoder → Run (feeds one session) → finals

A file has no clock: nobody waits for its audio, so neither silence nor a long backlog ends its session.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bridge.audio.formats import AudioFormat
from bridge.audio.media import File, MediaDecoder
from bridge.errors import BridgeError
from bridge.protocols import events
from bridge.protocols.events import Start
from bridge.session.account import NOBODY, Account
from bridge.session.hub import Finals
from bridge.session.limits import SessionLimits
from bridge.session.manager import SessionManager
from bridge.session.places import Place, Terms
from bridge.session.session import Session

MOST_WAITING: Final = 64
"""Finals that may wait for whoever takes them, before the file is read on."""
OUTBOX_EVENTS: Final = 4_096
"""That overflow an outbox: many more than the audio in the queue says."""
SHORT_SECONDS: Final = 15.0
"""Of a file that is held whole, half a megabyte: most of what people dictate is shorter, see `Batch.whole`."""
_WEEK: Final = 7 * 86_400.0

Progress = Callable[[float, float | None], None]
"""Told the seconds of audio that were taken in, and of how many (None: unknown)."""


class Run:
    """One file on its way through a session. `chunks` is its audio, in the session's format; `total` its seconds."""

    def __init__(
        self,
        session: Session,
        audio: AudioFormat,
        chunks: AsyncIterator[bytes],
        *,
        total: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.total = total
        self._session = session
        self._chunks = chunks
        self._progress = progress
        self._bytes = 0
        self._per_second = audio.frame_bytes * audio.sample_rate
        self._outbox = Finals(OUTBOX_EVENTS)
        session.deliver_to(self._outbox)
        self._taken = asyncio.Event()
        self._running = asyncio.create_task(session.run(), name=f"session-{session.id}")
        self._feeding = asyncio.create_task(self._feed(), name=f"feed-{session.id}")

    @property
    def backend(self) -> str:
        """Whose finals they are now."""
        return self._session.backend

    @property
    def language(self) -> str:
        """What the backend was asked for; a final may know better."""
        return self._session.language

    @property
    def seconds(self) -> float:
        """Audio that was taken in."""
        return self._bytes / self._per_second

    async def finals(self) -> AsyncGenerator[events.Final]:
        """What was said, as it becomes final, to the end of the audio. To be used once.

        Raises:
            BridgeError: the session did not get to the end. Or whatever `chunks` raised: then the finals of what came
                before it have been given.
        """
        failure: BridgeError | None = None
        while batch := await self._outbox.get():
            self._taken.set()
            for event in batch:
                match event:
                    case events.Final():
                        yield event
                    case events.Error(fatal=True):
                        failure = BridgeError(event.code, event.message)
                    case _:
                        pass
        if self._outbox.overflowed:
            raise BridgeError("slow_receiver")
        if failure is not None:
            raise failure
        if self._session.end_code != "stopped":
            raise BridgeError(self._session.end_code or "internal")
        await self._feeding

    async def close(self) -> None:
        """End it, wherever it is."""
        if not self._running.done():
            self._session.cut("client_gone")
        tasks = {self._running, self._feeding}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # what went wrong, `finals` has told whoever asked

    async def _feed(self) -> None:
        session = self._session
        try:
            async for chunk in self._chunks:
                if session.stopping:
                    break
                if not session.feed(chunk):
                    await session.room()
                else:
                    await asyncio.sleep(0)  # a source that is always ready must not keep the loop
                while self._outbox.waiting > MOST_WAITING:
                    self._taken.clear()
                    await self._taken.wait()
                self._bytes += len(chunk)
                if self._progress is not None:
                    self._progress(self.seconds, self.total)
        finally:
            session.stop()


@dataclass(frozen=True, slots=True)
class Said:
    """What a file came to. `seconds`: of its audio. `language`: what the backend was asked for."""

    finals: Sequence[events.Final]
    seconds: float
    language: str
    backend: str


class Batch:
    """Transcribes files, on behalf of one server or worker."""

    def __init__(self, manager: SessionManager, media: MediaDecoder) -> None:
        self._manager = manager
        self._media = media
        self._limits = without_clock(manager.limits)

    @contextlib.asynccontextmanager
    async def open(
        self,
        file: File,
        name: str,
        start: Start,
        protocol: str,
        *,
        raw: AudioFormat | None = None,
        backend: str | None = None,
        patience: float = 0.0,
        account: Account = NOBODY,
        checked: bool = True,
        progress: Progress | None = None,
    ) -> AsyncIterator[Run]:
        """A file that is being transcribed, for as long as the context lasts.

        Of `start`, the audio's format is the file's own. `raw`: it is raw audio in this format. `backend`: which one is
        wanted (None: the best that is well). `patience`: seconds to wait for a free place. `checked`: see
        `SessionManager.session`. May be cancelled, and left at any time: then the session has ended, too.

        Raises:
            BridgeError: as `SessionManager.place` and `MediaDecoder.read`.
        """
        terms = Terms(batch=True, backend=backend, patience=patience)
        async with (
            self._manager.place(start.language, account=account, checked=checked, terms=terms) as place,
            self._media.read(file, name, raw=raw) as media,
        ):
            start = _of_file(start, media.format)
            with self._manager.seated(place, start, protocol, limits=self._limits, watched=False) as session:
                run = Run(session, media.format, media.chunks(), total=media.duration, progress=progress)
                try:
                    yield run
                finally:
                    await run.close()

    async def whole(
        self,
        file: File,
        name: str,
        start: Start,
        protocol: str,
        *,
        raw: AudioFormat | None = None,
        backend: str | None = None,
        patience: float = 0.0,
        account: Account = NOBODY,
    ) -> Said:
        """All that is said in a file, at the end; else as `open`. May be cancelled.

        A short one costs much less than there: it is held, and nothing is handed from task to task.

        Raises:
            BridgeError: as `open` and `Run.finals`.
        """
        terms = Terms(batch=True, backend=backend, patience=patience)
        at_once = self._media.at_once(file, name, SHORT_SECONDS, raw=raw)
        async with self._manager.place(start.language, account=account, terms=terms) as place:
            if at_once is not None and self._manager.hears_whole(place, start):
                return await self._short(place, start, protocol, *at_once)
            async with self._media.read(file, name, raw=raw) as media:
                most = round(SHORT_SECONDS * media.format.frame_bytes * media.format.sample_rate)
                chunks = media.chunks()
                held = await _held(chunks, most)
                if sum(map(len, held)) <= most and self._manager.hears_whole(place, start):
                    return await self._short(place, start, protocol, media.format, b"".join(held))
                start = _of_file(start, media.format)
                with self._manager.seated(place, start, protocol, limits=self._limits, watched=False) as session:
                    run = Run(session, media.format, _joined(held, chunks), total=media.duration)
                    try:
                        finals = [final async for final in run.finals()]
                        return Said(finals, run.seconds, run.language, run.backend)
                    finally:
                        await run.close()

    async def _short(
        self, place: Place, start: Start, protocol: str, audio: AudioFormat, samples: bytes | memoryview
    ) -> Said:
        if start.partials:
            start = dataclasses.replace(start, partials=False)
        backend, finals = await self._manager.whole(place, start, protocol, self._limits, audio, samples)
        return Said(finals, len(samples) / audio.frame_bytes / audio.sample_rate, place.language, backend)


def _of_file(start: Start, audio: AudioFormat) -> Start:
    """The same for a file of this format: nobody hears of anything before it is final."""
    return dataclasses.replace(start, audio=audio, partials=False, separate=False)


async def _held(chunks: AsyncIterator[bytes], most: int) -> list[bytes]:
    """The first chunks: all of them, or more than so many bytes."""
    held: list[bytes] = []
    size = 0
    async for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size > most:
            break
    return held


async def _joined(first: list[bytes], rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    for chunk in first:
        yield chunk
    first.clear()
    async for chunk in rest:
        yield chunk


def without_clock(limits: SessionLimits) -> SessionLimits:
    """Limits for audio from a file: nobody is waiting, so it may take as long as it takes."""
    return dataclasses.replace(limits, session_seconds=_WEEK, idle_seconds=_WEEK, stop_seconds=_WEEK, ack_seconds=_WEEK)
