"""One recognition session: client audio in, events out, and each word of the audio finalized exactly once.

The audio lies in a replay buffer until a final covers it. The backend reads from there through one stream after
another: when a stream ends early (an error, a stall, its longest duration), the next one starts at the last final
and is given the audio again. Because it starts exactly where the finals end, nothing is lost and nothing doubled.

Positions are samples at the engine's rate from the start of the session; times that leave are seconds on that clock.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final

from backends.base import BackendError, Fault, RecognitionConfig, Word
from bridge.audio.decode import StreamDecoder
from bridge.audio.wavheader import strip_wav_header
from bridge.errors import BridgeError
from bridge.protocols.events import Ack, Closed, Error, Partial, Ready, SpeechStarted, Start
from bridge.protocols.events import Final as FinalEvent
from bridge.protocols.events import Warning as WarningEvent
from bridge.session.engine import Engine
from bridge.session.hub import Hub, Outbox
from bridge.session.limits import SessionLimits, SessionObserver
from bridge.session.replay import ReplayBuffer
from bridge.session.stream import BackendStream, Experience, Placed

log = logging.getLogger(__name__)

BACKOFF_BASE: Final = 0.1
BACKOFF_CAP: Final = 5.0
"""Seconds; full jitter between 0 and min(cap, base * 2^failures), after Brooker, "Exponential Backoff and Jitter"."""
OVERLOAD_FACTOR: Final = 6
"""How many times longer both are for a backend that is overloaded, or whose quota is used up."""


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
        self._abandoned = False
        self._in_speech = False
        self._partials = 0  # of the utterance that is going on
        self._attempts = 0  # backend streams opened
        self._stream: BackendStream | None = None
        self._experience = Experience(engine.capabilities)
        self._first = True  # no audio yet: it may begin with a WAV header
        self._run_scope: asyncio.Timeout | None = None
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
        if self._stream is not None and self._buffer.nearly_full:
            self._stream.make_room()
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

    def abandon(self) -> None:
        """Close a stopping session with what is final now; the rest of its audio stays without a final."""
        self._abandoned = True
        if self._run_scope is not None:
            self._run_scope.reschedule(self._loop.time())

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
                if self._abandoned:
                    self.abandon()
                elif self.stopping:
                    self._limit_stop()
                await self._drive()
        except TimeoutError:
            if not self._abandoned:
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
        failing_since = 0.0
        while not (self._buffer.closed and self._buffer.start >= self._buffer.end):
            before = self._buffer.start
            try:
                await self._recognize()
                failures = 0
                continue
            except BackendError as exc:
                error = exc
            self._observer.backend_error(self._engine.name, error.code)
            now = self._loop.time()
            if not failures or self._buffer.start > before:
                failures, failing_since = 0, now
            log.warning(
                "backend stream failed: %s: %s",
                error.code,
                # What is wrong with a request may quote it: its phrases are the client's own words.
                "the client is told why" if error.fault is Fault.CLIENT else error,
                extra={"session": self.id, "backend": self._engine.name, "failures": failures},
            )
            if not error.retryable or now - failing_since >= self._limits.reopen_seconds:
                raise _as_bridge_error(error) from error
            await asyncio.sleep(_backoff(failures, error))
            failures += 1

    async def _recognize(self) -> None:
        """One backend stream, from the last final on.

        Raises:
            BackendError: it ended before all that it was given was finalized.
        """
        stream = self._stream = BackendStream(
            self._engine,
            self._buffer,
            self._experience,
            stall_seconds=self._limits.stall_seconds,
            publish=self._take,
        )
        config = RecognitionConfig(
            sample_rate=self._rate,
            language=self.language,
            partials=self._start.partials,
            words=self._start.words,
            phrases=self._start.phrases,
            session_id=self.id,
            start=self._buffer.start / self._rate,
            attempt=self._attempts,
        )
        self._attempts += 1
        self._partials = 0
        await stream.run(config)

    def _take(self, placed: Placed) -> None:
        """Publish a result."""
        if placed.result.is_final:
            self._take_final(placed)
        else:
            self._take_partial(placed)

    def _take_final(self, placed: Placed) -> None:
        result, end = placed.result, placed.end
        if result.text:
            self._speech(placed.start)
            spoken = placed.base + round(result.words[-1].end * self._rate) if result.words else end
            latency = self._latency(min(spoken, end))
            self._hub.publish(
                FinalEvent(
                    self._hub.next_seq(),
                    result.text,
                    self._seconds(placed.start),
                    self._seconds(end),
                    self._words(placed),
                    result.confidence,
                    result.language,
                )
            )
            self._observer.final(latency)
        self._in_speech = False
        self._partials = 0
        if end > self._buffer.start:
            self._buffer.trim(end)
            self._ack(self._loop.time())

    def _take_partial(self, placed: Placed) -> None:
        result = placed.result
        self._speech(placed.start)
        if not result.text or not self._start.partials:
            return
        self._partials += 1
        self._hub.publish(
            Partial(
                result.text,
                self._seconds(placed.start),
                self._seconds(placed.end),
                result.stability,
                self._words(placed),
            )
        )
        self._observer.partial(self._latency(placed.end), first=self._partials == 1)
        self._observer.queued(self._buffer.unread / self._rate)

    def _speech(self, start: int) -> None:
        if not self._in_speech:
            self._in_speech = True
            self._hub.publish(SpeechStarted(self._hub.next_seq(), self._seconds(start)))

    def _ack(self, now: float) -> None:
        self._acked = now
        self._hub.publish(Ack(self._decoder.frames, self._finalized_frames()))

    def _finalized_frames(self) -> int:
        """Frames at the client's rate that finals cover, rounded down."""
        if self._buffer.start >= self._buffer.end and self._buffer.closed:
            return self._decoder.frames
        return min(self._decoder.frames, self._buffer.start * self._start.audio.sample_rate // self._rate)

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

    def _words(self, placed: Placed) -> tuple[Word, ...]:
        if not self._start.words or not placed.result.words:
            return ()
        offset = placed.base / self._rate
        return tuple(
            Word(
                w.text,
                round(w.start + offset, 3),
                round(w.end + offset, 3),
                None if w.confidence is None else round(w.confidence, 3),
                w.speaker,
            )
            for w in placed.result.words
        )


def _backoff(failures: int, error: BackendError) -> float:
    """Seconds to wait before another stream is opened, after so many that failed without progress before this one."""
    factor = OVERLOAD_FACTOR if error.code == "overloaded" else 1
    return random.uniform(0, factor * min(BACKOFF_CAP, BACKOFF_BASE * 2 ** min(failures, 16)))  # noqa: S311 - jitter


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
