"""One recognition session: client audio in, events out, and each word of the audio finalized exactly once.

The audio lies in a replay buffer until a final covers it. The backend reads from there through one stream after
another: when a stream ends early (an error, a stall, its longest duration), the next one starts at the last final
and is given the audio again. Because it starts exactly where the finals end, nothing is lost and nothing doubled.

Positions are samples at the engine's rate from the start of the session; times that leave are seconds on that clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import Final

from backends.base import BackendError, Fault, RecognitionConfig, Result, Word
from bridge.audio.decode import StreamDecoder
from bridge.audio.wavheader import strip_wav_header
from bridge.errors import BridgeError
from bridge.protocols.events import Ack, Closed, Error, Partial, Ready, SpeechStarted, Start
from bridge.protocols.events import Final as FinalEvent
from bridge.protocols.events import Warning as WarningEvent
from bridge.session.engine import Engine
from bridge.session.hub import Hub, Outbox
from bridge.session.limits import SessionLimits, SessionObserver
from bridge.session.replay import AudioReader, ReplayBuffer

log = logging.getLogger(__name__)

BACKOFF_BASE: Final = 0.1
BACKOFF_CAP: Final = 5.0
"""Seconds; full jitter between 0 and min(cap, base * 2^failures), after Brooker, "Exponential Backoff and Jitter"."""

RESULTS_AT_ONCE: Final = 32
"""Results that are taken without a pause for other tasks; fewer than an outbox holds."""

SOFT_SHARE: Final = 0.8
HARD_SHARE: Final = 0.95
"""Shares of a backend's longest stream: past the first a final ends the stream, at the second it ends anyway."""


class Session:
    """One session on one engine. Feed it from one task, run it in another, read its outboxes from others.

    `run` ends after `Closed` has been published, or when it is cancelled (the client is gone): then the backend's
    stream is closed and nothing more is published.
    """

    def __init__(
        self,
        session_id: str,
        start: Start,
        engine: Engine,
        limits: SessionLimits,
        *,
        observer: SessionObserver,
        language: str,
    ) -> None:
        self.id = session_id
        self.language = language
        self._start = start
        self._engine = engine
        self._limits = limits
        self._observer = observer
        self._rate = engine.sample_rate
        self._decoder = StreamDecoder(start.audio, self._rate)
        self._buffer = ReplayBuffer(
            queue_limit=round(limits.queue_seconds * self._rate),
            replay_limit=round(limits.replay_seconds * self._rate),
        )
        self._hub = Hub(limits.outbox_events)
        self._loop = asyncio.get_running_loop()
        self._opened = self._active = self._acked = self._loop.time()
        self._end_code: str | None = None
        self._in_speech = False
        self._partials = 0  # of the utterance that is going on
        self._attempts = 0  # backend streams opened
        self._reader: AudioReader | None = None
        self._first = True  # no audio yet: it may begin with a WAV header
        self._stream_scope: asyncio.Timeout | None = None
        self._run_scope: asyncio.Timeout | None = None
        self._seen: tuple[int, int, int] = (0, 0, 0)
        self._seen_at = self._opened
        self._results = 0
        self._watch_handle: asyncio.TimerHandle

    # What the client's side calls

    def subscribe(self) -> Outbox:
        """A new receiver of this session's events: `Ready`, then everything from now on."""
        outbox = self._hub.subscribe()
        outbox.put(self._ready())
        return outbox

    @property
    def end_code(self) -> str | None:
        """Why the session ended, or is ending; None while it goes on."""
        return self._end_code

    @property
    def audio_seconds(self) -> float:
        """Audio received so far, in seconds."""
        return self._buffer.end / self._rate

    @property
    def stopping(self) -> bool:
        """Whether the session takes no more audio."""
        return self._end_code is not None

    def feed(self, data: bytes) -> bool:
        """Take in audio in the declared format. False: await `room` before the next.

        Raises:
            BridgeError: `bad_audio` or `unsupported_audio`; the data is dropped, the session goes on.
        """
        if self._end_code is not None:
            return True  # what comes after the end is not part of the session
        now = self._active = self._loop.time()
        if self._first and data:
            self._first = False
            data = self._without_header(data)
        before = self._buffer.end
        self._buffer.append(self._decoder.decode(data), now)
        self._observer.audio((self._buffer.end - before) / self._rate)
        if now - self._acked >= self._limits.ack_seconds:
            self._ack(now)
        if self._buffer.full:
            self._make_room()
        return self._buffer.has_room

    async def room(self) -> None:
        """Wait until the session takes audio again. Safe to cancel."""
        await self._buffer.room()
        self._active = self._loop.time()  # the client was kept waiting: it was not idle

    def touch(self) -> None:
        """The client gave a sign of life other than audio."""
        self._active = self._loop.time()

    def flush(self) -> None:
        """Finalize what was said so far; the session goes on."""
        if not self.stopping:
            now = self._active = self._loop.time()
            self._buffer.append(self._decoder.flush(), now)
            self._buffer.flush()

    def stop(self, code: str = "stopped") -> None:
        """No more audio: finalize every remaining word, then close with `code`. The first call counts."""
        if self._end_code is not None:
            return
        self._end_code = code
        self._buffer.append(self._decoder.finish(), self._loop.time())
        self._buffer.close()
        self._limit_stop()

    def refuse(self, error: BridgeError) -> None:
        """End the session for a fatal fault of the client's; what was accepted before is still finalized."""
        if not self.stopping:
            self._fail(error)
            self.stop(error.code)

    def _limit_stop(self) -> None:
        """What is left must be finalized within a limit; before `run`, there is nothing to limit."""
        if self._run_scope is not None:
            self._run_scope.reschedule(self._loop.time() + self._limits.stop_seconds)

    # The session's own task

    async def run(self) -> None:
        """Open the backend, publish what it hears, end with `Closed`. See the class for cancellation."""
        self._watch_handle = self._loop.call_later(self._watch_interval(), self._watch)
        try:
            async with asyncio.timeout(None) as self._run_scope:
                if self.stopping:
                    self._limit_stop()
                await self._drive()
        except TimeoutError:
            self._break(BridgeError("backend_stalled", "the backend did not finish in time"))
        except BridgeError as exc:
            self._break(exc)
        except Exception:
            log.exception("session failed", extra={"session": self.id})
            self._break(BridgeError("internal"))
        finally:
            self._run_scope = None
            self._watch_handle.cancel()
            self._buffer.close()
        self._hub.publish(
            Closed(
                self._hub.next_seq(),
                self._end_code or "stopped",
                self._decoder.frames,
                self._finalized_frames(),
                round(self._buffer.end / self._rate, 3),
            )
        )

    async def _drive(self) -> None:
        """One backend stream after another until all audio is finalized."""
        failures = 0
        while not (self._buffer.closed and self._buffer.start >= self._buffer.end):
            before = self._buffer.start
            try:
                await self._stream()
                failures = 0
                continue
            except BackendError as exc:
                error = exc
            self._observer.backend_error(self._engine.name, error.code)
            failures = 0 if self._buffer.start > before else failures + 1
            log.warning(
                "backend stream failed: %s: %s",
                error.code,
                error,
                extra={"session": self.id, "backend": self._engine.name, "failures": failures},
            )
            if not error.retryable or failures > self._limits.reopen_attempts:
                raise _as_bridge_error(error) from error
            await asyncio.sleep(random.uniform(0, min(BACKOFF_CAP, BACKOFF_BASE * 2**failures)))  # noqa: S311 - jitter

    async def _stream(self) -> None:
        """One backend stream, from the last final on.

        Raises:
            BackendError: it ended before all that it was given was finalized.
        """
        capabilities = self._engine.capabilities
        reader = self._reader = self._buffer.reader()
        reader.flush_marks = capabilities.flush
        config = RecognitionConfig(
            sample_rate=self._rate,
            language=self.language,
            partials=self._start.partials,
            words=self._start.words,
            phrases=self._start.phrases,
            session_id=self.id,
            start=reader.base / self._rate,
            attempt=self._attempts,
        )
        self._attempts += 1
        self._partials = 0
        scope = self._stream_scope = asyncio.timeout(None)
        try:
            async with scope, contextlib.aclosing(self._engine.recognize(config, reader)) as results:
                async for result in results:
                    self._take(result, reader)
                    if self._results % RESULTS_AT_ONCE == 0:
                        await asyncio.sleep(0)  # an engine that never waits must not keep receivers from reading
        except TimeoutError as exc:
            if not scope.expired():
                raise
            raise BackendError("waiting audio was left untouched", code="stalled", retryable=True) from exc
        finally:
            self._stream_scope = None
            reader.detach()
        if not reader.ended:
            raise BackendError("the stream ended early", code="ended_early", retryable=True)
        self._finalize(reader.position)

    def _take(self, result: Result, reader: AudioReader) -> None:
        """Place a result on the session's clock and publish it."""
        self._results += 1
        base = reader.base
        end = min(base + round(result.end * self._rate), reader.position)
        start = min(max(base + round(result.start * self._rate), self._buffer.start), max(end, self._buffer.start))
        end = max(start, end)
        if not result.is_final:
            self._take_partial(result, base, start, end)
            return
        if result.text:
            self._speech(start)
            spoken = base + round(result.words[-1].end * self._rate) if result.words else end
            latency = self._latency(min(spoken, end))
            self._hub.publish(
                FinalEvent(
                    self._hub.next_seq(),
                    result.text,
                    self._seconds(start),
                    self._seconds(end),
                    self._words(result.words, base) if self._start.words else (),
                    result.confidence,
                    result.language,
                )
            )
            self._observer.final(latency)
        self._in_speech = False
        self._partials = 0
        self._finalize(end)
        limit = self._engine.capabilities.max_stream_seconds
        if limit is not None and reader.position - base >= SOFT_SHARE * limit * self._rate:
            reader.finish()

    def _take_partial(self, result: Result, base: int, start: int, end: int) -> None:
        self._speech(start)
        if not result.text or not self._start.partials:
            return
        self._partials += 1
        self._hub.publish(
            Partial(
                result.text,
                self._seconds(start),
                self._seconds(end),
                result.stability,
                self._words(result.words, base) if self._start.words and result.words else (),
            )
        )
        self._observer.partial(self._latency(end), first=self._partials == 1)
        self._observer.queued(self._buffer.unread / self._rate)

    def _speech(self, start: int) -> None:
        if not self._in_speech:
            self._in_speech = True
            self._hub.publish(SpeechStarted(self._hub.next_seq(), self._seconds(start)))

    def _finalize(self, position: int) -> None:
        if position > self._buffer.start:
            self._buffer.trim(position)
            self._ack(self._loop.time())

    def _ack(self, now: float) -> None:
        self._acked = now
        self._hub.publish(Ack(self._decoder.frames, self._finalized_frames()))

    def _finalized_frames(self) -> int:
        """Frames at the client's rate that finals cover, rounded down."""
        if self._buffer.start >= self._buffer.end and self._buffer.closed:
            return self._decoder.frames
        return min(self._decoder.frames, self._buffer.start * self._start.audio.sample_rate // self._rate)

    def _make_room(self) -> None:
        """The replay buffer is full and no final came: ask for one, or end the stream where it stands."""
        if self._engine.capabilities.flush:
            self._buffer.flush()
        elif self._reader is not None:
            self._reader.finish()

    def _without_header(self, data: bytes) -> bytes:
        stripped = strip_wav_header(data, self._start.audio)
        if stripped is not data:
            self._hub.publish(
                WarningEvent(
                    self._hub.next_seq(),
                    "wav_header",
                    "the audio begins with a WAV header; it was skipped: send the samples alone",
                )
            )
        return stripped

    # Watching the clock

    def _watch_interval(self) -> float:
        now = self._loop.time()
        return max(
            0.01,
            min(
                self._active + self._limits.idle_seconds - now,
                self._opened + self._limits.session_seconds - now,
                self._limits.stall_seconds / 4,
            ),
        )

    def _watch(self) -> None:
        """Called when the earliest of the session's deadlines may have come."""
        now = self._loop.time()
        self._check_deadlines(now)
        self._watch_handle = self._loop.call_later(self._watch_interval(), self._watch)

    def _check_deadlines(self, now: float) -> None:
        if not self.stopping:
            if now - self._opened >= self._limits.session_seconds:
                self.stop("session_too_long")
            elif now - self._active >= self._limits.idle_seconds and self._buffer.has_room:
                self.stop("idle_timeout")
        if not self.stopping and not self._buffer.has_room:
            self._active = now  # the client is being slowed, not idle
        reader = self._reader
        limit = self._engine.capabilities.max_stream_seconds
        if (
            reader is not None
            and limit is not None
            and reader.position - reader.base >= HARD_SHARE * limit * self._rate
        ):
            reader.finish()
        seen = (self._attempts, reader.position if reader else 0, self._results)
        if seen != self._seen or not self._waiting(reader):
            self._seen, self._seen_at = seen, now
        elif now - self._seen_at >= self._limits.stall_seconds and self._stream_scope is not None:
            scope, self._stream_scope = self._stream_scope, None  # once: closing the stream may take its time
            scope.reschedule(now)

    def _waiting(self, reader: AudioReader | None) -> bool:
        """Whether the backend owes something: to read audio, the answer to a flush, or the end of its stream."""
        return reader is not None and (self._buffer.unread > 0 or reader.ended or reader.flushed > self._buffer.start)

    # Small things

    def _ready(self) -> Ready:
        return Ready(
            session_id=self.id,
            backend=self._engine.name,
            language=self.language,
            audio=self._start.audio,
            partials=self._start.partials and self._engine.capabilities.partials,
            max_session_seconds=self._limits.session_seconds,
            idle_seconds=self._limits.idle_seconds,
            max_message_bytes=self._limits.message_bytes,
        )

    def _break(self, error: BridgeError) -> None:
        """The session cannot go on: whatever it was to end with, it ends with this."""
        self._fail(error)
        self._end_code = error.code

    def _fail(self, error: BridgeError) -> None:
        self._hub.publish(Error(self._hub.next_seq(), error.code, str(error), True, error.row.retryable))

    def _latency(self, position: int) -> float:
        arrived = self._buffer.arrival(position)
        return 0.0 if arrived is None else self._loop.time() - arrived

    def _seconds(self, position: int) -> float:
        return round(position / self._rate, 3)

    def _words(self, words: tuple[Word, ...], base: int) -> tuple[Word, ...]:
        offset = base / self._rate
        return tuple(
            Word(
                w.text,
                round(w.start + offset, 3),
                round(w.end + offset, 3),
                None if w.confidence is None else round(w.confidence, 3),
                w.speaker,
            )
            for w in words
        )


def _as_bridge_error(error: BackendError) -> BridgeError:
    """What the client is told when a backend gives up; the backend's own words only where they help a client."""
    if error.fault is Fault.CLIENT:
        return BridgeError("unsupported_language" if error.code == "language" else "backend_rejected", str(error))
    if error.fault is Fault.OPERATOR:
        return BridgeError("backend_misconfigured")
    if error.code == "stalled":
        return BridgeError("backend_stalled")
    if error.code == "overloaded":
        return BridgeError("at_capacity", "the backend is overloaded")
    return BridgeError("backend_failed", f"the backend failed: {error.code}")
