"""A recording that is all here: one stream over it, in the task of whoever asked.

A session has a client that sends and listens meanwhile: a decoder that may wait, a hub, acks, clocks, and audio that is
kept until it is final. Nothing of this is needed where the audio is whole before it begins and nobody hears of anything
before the end. Only if that one stream fails is a `Channel` made, which goes on behind the last final: with other
streams, other backends, and each word finalized once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from backends.base import BackendError, Result
from bridge.audio.decode import StreamDecoder
from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError
from bridge.observe import trace
from bridge.protocols.events import Final as FinalEvent
from bridge.protocols.events import ServerEvent, Start
from bridge.session.account import NOBODY, Account
from bridge.session.channel import Channel, recognition
from bridge.session.failover import Seat, speaks_against_it
from bridge.session.limits import SessionLimits, SessionObserver
from bridge.session.origin import Origin
from bridge.session.stream import placed_word
from bridge.session.voice import VoicePolicy

log = logging.getLogger(__name__)

PIECE_SECONDS: Final = 2.5
"""That the backend is given at once."""
_NO_VOICE: Final = VoicePolicy()


class Whole:
    """One recording. For the manager it is a session."""

    def __init__(
        self,
        session_id: str,
        start: Start,
        seat: Seat,
        limits: SessionLimits,
        *,
        observer: SessionObserver,
        language: str,
        account: Account = NOBODY,
    ) -> None:
        self.id = session_id
        self.end_code: str | None = None
        self.audio_seconds = 0.0
        """Of all its audio."""
        self._start = start
        self._seat = seat
        self._limits = limits
        self._observer = observer
        self._language = language
        self._account = account
        self._rate = seat.engine.sample_rate
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._finals: list[FinalEvent] = []
        self._final = 0  # samples: everything before is
        self._given = 0  # samples, to the first stream
        self._ended = False  # the first stream was given all of it
        self._waits_until = 0.0  # for the first stream, by the loop's clock
        self._patience = limits.stall_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._scope: asyncio.Timeout | None = None
        self._abandoned = False

    @property
    def backend(self) -> str:
        """The name of the backend that works for it now."""
        return self._seat.engine.name

    async def finals(self, audio: AudioFormat, samples: bytes | memoryview) -> Sequence[FinalEvent]:
        """What is said in these samples, which are in this format. To be used once; may be cancelled.

        Raises:
            BridgeError: the backend cannot go on, or the server stops.
        """
        try:
            pcm = self._pcm(audio, samples)
            self.audio_seconds = len(pcm) // 2 / self._rate
            self._observer.audio(self.audio_seconds)
            try:
                await self._hear(pcm)
            except BackendError as exc:
                await self._go_on(pcm, exc)
        except BridgeError as exc:
            error = exc
        except Exception:
            log.exception("session failed", extra={"session": self.id})
            error = BridgeError("internal")
        else:
            self.end_code = "stopped"
            return self._finals
        self.end_code = error.code
        raise error

    def _pcm(self, audio: AudioFormat, samples: bytes | memoryview) -> bytes | memoryview:
        """The same at the rate of the engine."""
        if audio == AudioFormat(Encoding.PCM_S16LE, self._rate):
            return samples
        decoder = StreamDecoder(audio, self._rate)
        decoder.push(bytes(samples))
        decoder.finish()
        pieces = []
        while (lanes := decoder.read()) is not None:
            pieces.append(lanes[0])
        return b"".join(pieces)

    # The first stream

    async def _hear(self, pcm: bytes | memoryview) -> None:
        """Recognize to the end of the audio.

        Raises:
            BackendError: it ended before that. The finals that came stand.
        """
        engine = self._seat.engine
        config = recognition(
            self._start,
            sample_rate=self._rate,
            language=self._language,
            session_id=self.id,
            credential=self._account.credential,
        )
        trial = self._seat.begin()
        self._scope = asyncio.timeout(None)
        self._wait()
        try:
            with trace.span("backend stream", {"stt.backend": engine.name, "stt.attempt": 0}):
                async with self._scope, contextlib.aclosing(engine.recognize(config, self._audio(pcm))) as results:
                    async for result in results:
                        self._wait()
                        trial.result(final=result.is_final)
                        if result.is_final:
                            self._take(result)
            if not self._ended:
                raise BackendError("the stream ended early", code="ended_early", retryable=True)
            trial.succeeded()
        except TimeoutError as exc:
            if self._abandoned:
                raise BridgeError("shutting_down") from exc
            trial.failed()
            raise BackendError("the stream does not answer", code="stalled", retryable=True) from exc
        except BackendError as exc:
            if speaks_against_it(exc):
                trial.failed()
            raise
        finally:
            self._scope = None
            if self._timer is not None:
                self._timer.cancel()
            trial.closed()
            self._observer.given(engine.name, self._given / self._rate)

    async def _audio(self, pcm: bytes | memoryview) -> AsyncGenerator[bytes]:
        size = round(PIECE_SECONDS * self._rate) * 2
        for at in range(0, len(pcm), size):
            self._wait()
            piece = bytes(pcm[at : at + size])
            self._given += len(piece) // 2
            yield piece
        self._ended = True
        answer_seconds = self._seat.engine.capabilities.answer_seconds
        if answer_seconds is not None:
            self._patience = min(self._patience, answer_seconds)
        self._wait()

    def _take(self, result: Result) -> None:
        """Keep a final, clipped to what the stream was given and to what is not final yet."""
        end = max(self._final, min(round(result.end * self._rate), self._given))
        start = min(max(self._final, round(result.start * self._rate)), end)
        self._final = end
        if not result.text:
            return
        words = tuple([placed_word(word, 0, self._rate) for word in result.words]) if self._start.words else ()
        self._finals.append(
            FinalEvent(
                0,
                result.text,
                round(start / self._rate, 3),
                round(end / self._rate, 3),
                words,
                result.confidence,
                result.language,
            )
        )
        self._observer.final(self._seat.engine.name, self._loop.time() - self._began)

    def _wait(self) -> None:
        """Something went on: from now, the engine has its time again. One timer, however often that is."""
        self._waits_until = self._loop.time() + self._patience
        if self._timer is None:
            self._timer = self._loop.call_at(self._waits_until, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        if now < self._waits_until:
            self._timer = self._loop.call_at(self._waits_until, self._look)
        else:
            self._stop()

    def _stop(self) -> None:
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(self._loop.time())

    # Those after it

    async def _go_on(self, pcm: bytes | memoryview, failed: BackendError) -> None:
        """Behind the last final, as a session does."""
        channel = Channel(
            None,
            self.id,
            self._start,
            self._language,
            self._seat,
            self._limits,
            _NO_VOICE,
            out=self,
            observer=self._observer,
            origin=Origin(final=(self._final / self._rate,)),
            account=lambda: self._account,
            attempts=1,
        )
        channel.append(bytes(pcm), self._began)
        channel.close()
        try:
            async with asyncio.timeout(None) as self._scope:
                if self._abandoned:  # just when the first stream failed
                    self._stop()
                await channel.run(failed, progress=self._final > 0)
        except TimeoutError as exc:
            raise BridgeError("shutting_down") from exc
        finally:
            self._scope = None
            channel.abort()

    # What the manager calls

    def shut_down(self) -> None:
        """The server stops: all the audio is here, and is finalized."""

    def abandon(self) -> None:
        """The server waits no longer."""
        self._abandoned = True
        self._stop()

    # What the channel calls

    def next_seq(self) -> int:
        """Nobody counts."""
        return 0

    def publish(self, event: ServerEvent) -> None:
        """Keep what is said."""
        if isinstance(event, FinalEvent):
            self._finals.append(event)
