"""Whole files through a session of their own, as fast as the backend takes them, in bounded memory.

    file → MediaDecoder → Run (feeds one session) → finals

A file has no clock: nobody waits for its audio, so neither silence nor a long backlog ends its session.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable
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
from bridge.session.places import Terms
from bridge.session.session import Session

MOST_WAITING: Final = 64
"""Finals that may wait for whoever takes them, before the file is read on."""
OUTBOX_EVENTS: Final = 4_096
"""That overflow an outbox: many more than the audio in the queue says."""
QUEUE_SECONDS: Final = 15.0
"""Audio that waits for the engine, half a megabyte: most of what people dictate is whole then, see `Run.finals`."""
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
        self._tasks: list[asyncio.Task[None]] = []
        self._broken: BridgeError | None = None  # why the audio ended before its end

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

    async def finals(self, *, together: bool = False) -> AsyncGenerator[events.Final]:
        """What was said, as it becomes final, to the end of the audio. To be used once.

        `together`: they may come at the end, all at once. For a short file that costs half: no task hands anything to
        another.

        Raises:
            BridgeError: the session did not get to the end. Or whatever `chunks` raised: then the finals of what came
                before it have been given.
        """
        failure: BridgeError | None = None
        if together and await self._fill():
            await self._session.run()
        else:
            self._start()
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
            failure = BridgeError("slow_receiver")
        elif failure is None and self._session.end_code != "stopped":
            failure = BridgeError(self._session.end_code or "internal")
        if failure is not None:
            raise failure
        await asyncio.gather(*self._tasks)
        if self._broken is not None:
            raise self._broken

    async def close(self) -> None:
        """End it, wherever it is."""
        for task in self._tasks:
            task.cancel()
        # What went wrong, `finals` has told whoever asked.
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self) -> None:
        """Feed it and run it, each in a task of its own."""
        session = self._session
        self._tasks = [
            asyncio.create_task(session.run(), name=f"session-{session.id}"),
            asyncio.create_task(self._feed(), name=f"feed-{session.id}"),
        ]

    async def _fill(self) -> bool:
        """Have the session take in audio before it runs, as far as it has room; whether that is all there is."""
        try:
            async for chunk in self._chunks:
                if not self._take(chunk):
                    return False
        except BridgeError as exc:
            self._broken = exc
        self._session.stop()
        return True

    async def _feed(self) -> None:
        session = self._session
        try:
            await session.room()
            async for chunk in self._chunks:
                if session.stopping:
                    break
                if not self._take(chunk):
                    await session.room()
                else:
                    await asyncio.sleep(0)  # a source that is always ready must not keep the loop
                while self._outbox.waiting > MOST_WAITING:
                    self._taken.clear()
                    await self._taken.wait()
        finally:
            session.stop()

    def _take(self, chunk: bytes) -> bool:
        """Have the session take it in; whether it takes more at once."""
        room = self._session.feed(chunk)
        self._bytes += len(chunk)
        if self._progress is not None:
            self._progress(self.seconds, self.total)
        return room


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
            start = dataclasses.replace(start, audio=media.format, partials=False, separate=False)
            with self._manager.seated(place, start, protocol, limits=self._limits, watched=False) as session:
                run = Run(session, media.format, media.chunks(), total=media.duration, progress=progress)
                try:
                    yield run
                finally:
                    await run.close()


def without_clock(limits: SessionLimits) -> SessionLimits:
    """Limits for audio from a file: nobody is waiting, so it may take as long as it takes."""
    return dataclasses.replace(
        limits,
        session_seconds=_WEEK,
        idle_seconds=_WEEK,
        stop_seconds=_WEEK,
        ack_seconds=_WEEK,
        queue_seconds=max(QUEUE_SECONDS, limits.queue_seconds),
    )
