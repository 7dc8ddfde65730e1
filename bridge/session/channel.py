"""One recognition: the audio of one channel in, its events out, and each word of the audio finalized exactly once.

The audio lies in a replay buffer until a final covers it. The backend reads from there through one stream after
another: when a stream ends early (an error, a stall, its longest duration), the next one starts at the last final
and is given the audio again. Because it starts exactly where the finals end, nothing is lost and nothing doubled.

Positions are samples at the engine's rate from the start of the session; times that leave are seconds on that clock.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final, Protocol

from backends.base import BackendError, Fault, RecognitionConfig
from bridge.errors import BridgeError
from bridge.observe import trace
from bridge.protocols.events import Final as FinalEvent
from bridge.protocols.events import Partial, ServerEvent, SpeechEnded, SpeechStarted, Start
from bridge.session.account import NOBODY, Account
from bridge.session.breaker import Trial
from bridge.session.engine import Engine
from bridge.session.failover import Seat, speaks_against_it
from bridge.session.gate import Gate
from bridge.session.limits import SessionLimits, SessionObserver
from bridge.session.origin import Origin
from bridge.session.replay import ReplayBuffer
from bridge.session.stream import BackendStream, Experience, Placed
from bridge.session.voice import Voice, VoicePolicy

log = logging.getLogger(__name__)

BACKOFF_BASE: Final = 0.1
BACKOFF_CAP: Final = 5.0
"""Seconds; full jitter between 0 and min(cap, base * 2^failures), after Brooker, "Exponential Backoff and Jitter"."""
OVERLOAD_FACTOR: Final = 6
"""How many times longer both are for a backend that is overloaded, or whose quota is used up."""


def _nobody(*_: object) -> None:
    """Is told."""


class Told(Protocol):
    """Who is told of a channel's events; see `bridge.session.publisher`."""

    def next_seq(self) -> int:
        """The number of the next lasting event; to be published at once."""

    def publish(self, event: ServerEvent) -> None:
        """Take an event."""


class Channel:
    """Feed it from one task, run it in another. `number` is None where a session has one recognition.

    `advanced` is called when more of the audio is final, `shown` after a partial, `warn` with what the client should be
    told of the backend. `origin`: where the session begins, if not at its first sample. `account`: on whose it runs
    now. `attempts`: streams that were opened before.
    """

    __slots__ = (
        "_account",
        "_advanced",
        "_attempts",
        "_buffer",
        "_experience",
        "_language",
        "_limits",
        "_loop",
        "_number",
        "_observer",
        "_out",
        "_partials",
        "_rate",
        "_seat",
        "_session_id",
        "_shown",
        "_silence_seconds",
        "_skip",
        "_speaking",
        "_speech_from",
        "_start",
        "_stream",
        "_trial",
        "_voice",
        "_warn",
    )

    def __init__(
        self,
        number: int | None,
        session_id: str,
        start: Start,
        language: str,
        seat: Seat,
        limits: SessionLimits,
        voice: VoicePolicy,
        *,
        out: Told,
        observer: SessionObserver,
        advanced: Callable[[], None] = _nobody,
        shown: Callable[[], None] = _nobody,
        warn: Callable[[str, str], None] = _nobody,
        origin: Origin = Origin(),
        account: Callable[[], Account] = lambda: NOBODY,
        attempts: int = 0,
    ) -> None:
        self._number = number
        self._session_id = session_id
        self._start = start
        self._language = language
        self._seat = seat
        self._limits = limits
        self._out = out
        self._observer = observer
        self._advanced = advanced
        self._shown = shown
        self._warn = warn
        self._account = account
        self._rate = seat.engine.sample_rate
        self._loop = asyncio.get_running_loop()
        self._silence_seconds = (start.endpointing or {}).get("silence_seconds")
        detection = voice.wanted(start)
        moved = voice.gate_seconds is not None or self._silence_seconds is not None
        gate = Gate() if moved and detection is not None else None
        # Everything before `begin` is final; of the audio that comes, so much lies before it.
        lane = number or 0
        begin = round(origin.final[lane] * self._rate) if origin.final else 0
        self._skip = max(0, begin - round(origin.frames * self._rate / start.audio.sample_rate))
        self._buffer = ReplayBuffer(
            queue_limit=round(limits.queue_seconds * self._rate),
            replay_limit=round(limits.replay_seconds * self._rate),
            gate=gate,
            answered=advanced,
            begin=begin,
        )
        self._voice: Voice | None = None
        if detection is not None:
            self._voice = Voice(
                detection,
                self._rate,
                voice.rules(start),
                self,
                gate,
                gate_seconds=voice.gate_seconds,
                endpoints=self._silence_seconds is not None,
                begin=begin,
            )
        speaking = origin.speaking[lane] if origin.speaking else None
        self._speaking = speaking is not None
        self._speech_from = round((speaking or 0.0) * self._rate)
        self._partials = 0  # of the utterance that is going on
        self._attempts = attempts  # backend streams opened
        self._stream: BackendStream | None = None
        self._experience: dict[Engine, Experience] = {}
        self._trial: Trial | None = None  # of the stream, as the breaker sees it

    # The audio

    @property
    def end(self) -> int:
        """Samples taken in."""
        return self._buffer.end

    @property
    def final(self) -> int:
        """The position before which everything is final."""
        return self._buffer.start

    @property
    def has_room(self) -> bool:
        """Whether it takes more audio."""
        return self._buffer.has_room and (self._voice is None or self._voice.has_room)

    async def room(self) -> None:
        """Wait until `has_room`. Safe to cancel."""
        await self._buffer.room()
        if self._voice is not None:
            await self._voice.room()

    def append(self, pcm: bytes, now: float) -> bool:
        """Take in PCM16 that arrived at `now`; whether there is room for more."""
        if self._skip:
            skipped = min(self._skip, len(pcm) // 2)
            self._skip -= skipped
            pcm = pcm[2 * skipped :]
        self._buffer.append(pcm, now)
        if self._voice is not None:
            self._voice.push(pcm)
        if self._stream is not None and self._buffer.nearly_full:
            self._stream.make_room()
        return self.has_room

    def flush(self) -> None:
        """Finalize what was said so far."""
        # At once: what is sent behind it may pass before the detector has judged what lies before it.
        self._buffer.flush()
        if self._voice is not None and self._buffer.gate is not None:
            position = self._buffer.end
            self._voice.decide(position, lambda: self._decided(position))

    def close(self) -> None:
        """No more audio: finalize every remaining word."""
        if self._voice is None:
            self._buffer.close()
        else:
            self._voice.finish(self._buffer.end, self._buffer.close)

    def abort(self) -> None:
        """Give everything up, also what this channel, its stream and the session know of each other."""
        if self._voice is not None:
            self._voice.close()
        self._buffer.abort()
        self._stream = None
        self._advanced = self._shown = self._warn = _nobody
        self._account = lambda: NOBODY

    def _decided(self, position: int) -> None:
        """Everything before the mark at `position` was decided; if all of it is final already, the client is told."""
        if self._buffer.start >= position:
            self._advanced()

    # What `Voice` tells

    def speech_started(self, position: int) -> None:
        """See `Listener`."""
        self._speech_started(position)

    def speech_ended(self, position: int) -> None:
        """See `Listener`."""
        self._speech_ended(min(position, self._buffer.end))  # silence may have filled the last frame

    def gate_moved(self) -> None:
        """See `Listener`."""
        self._buffer.gate_moved()

    def paused(self, speech_until: int, position: int) -> None:
        """See `Listener`."""
        if self._buffer.start < speech_until:  # else the speech has its final, and the engine is left in peace
            self._buffer.flush(position)

    # Speech, as the client is told

    def _speech_started(self, position: int) -> None:
        if not self._speaking:
            self._speaking, self._speech_from = True, position
            self._out.publish(SpeechStarted(self._out.next_seq(), self._seconds(position), self._number))

    def _speech_ended(self, position: int) -> None:
        if self._speaking and position >= self._speech_from:  # an engine may tell late of the silence before
            self._speaking = False
            self._out.publish(SpeechEnded(self._out.next_seq(), self._seconds(position), self._number))

    # The backend

    async def run(self, failed: BackendError | None = None, *, progress: bool = False) -> None:
        """One backend stream after another until all audio is finalized.

        `failed`: what ended the one before the first of them, with or without `progress`.

        Raises:
            BridgeError: the backend cannot go on.
        """
        failures = 0
        failing_since: float | None = None
        while not (self._buffer.closed and self._buffer.start >= self._buffer.end):
            error, failed = failed, None
            if error is None:
                before = self._buffer.start
                try:
                    about: trace.Attributes = {"stt.backend": self._seat.engine.name, "stt.attempt": self._attempts}
                    with trace.span("backend stream", about):
                        await self._recognize()
                    failures, failing_since = 0, None
                    continue
                except BackendError as exc:
                    error = exc
                    progress = self._buffer.start > before
            engine = self._seat.engine
            self._observer.backend_error(engine.name, error.code)
            now = self._loop.time()
            if failing_since is None or progress:
                failures, failing_since, progress = 0, now, True
            log.warning(
                "backend stream failed: %s: %s",
                error.code,
                # What is wrong with a request may quote it: its phrases are the client's own words.
                "the client is told why" if error.fault is Fault.CLIENT else error,
                extra={"session": self._session_id, "backend": engine.name, "failures": failures},
            )
            when = self._seat.failed(error, progress=progress)
            if when != "now":
                if when == "never" or now - failing_since >= self._limits.reopen_seconds:
                    raise _as_bridge_error(error) from error
                await asyncio.sleep(_backoff(failures, error))
                failures += 1
                self._seat.move_round()
            if self._seat.engine is not engine:
                self._moved(engine.name, self._seat.engine.name, error.code)

    def _moved(self, left: str, taken: str, code: str) -> None:
        """Another backend goes on; of what was wrong, the client learns the code."""
        self._observer.moved(left, taken)
        log.warning(
            "backend %s is left, %s goes on",
            left,
            taken,
            extra={"session": self._session_id, "backend": taken, "code": code},
        )
        self._warn("backend_changed", f"{left} failed ({code}); {taken} goes on")

    async def _recognize(self) -> None:
        """One backend stream, from the last final on.

        Raises:
            BackendError: it ended before all that it was given was finalized.
        """
        engine = self._seat.engine
        stream = self._stream = BackendStream(
            engine,
            self._buffer,
            self._experience.setdefault(engine, Experience(engine.capabilities)),
            stall_seconds=self._limits.stall_seconds,
            publish=self._take,
        )
        config = recognition(
            self._start,
            sample_rate=self._rate,
            language=self._language,
            session_id=self._session_id,
            credential=self._account().credential,
            begin=self._buffer.start / self._rate,
            attempt=self._attempts,
        )
        self._attempts += 1
        self._partials = 0
        trial = self._trial = self._seat.begin()
        try:
            await stream.run(config)
            trial.succeeded()
        except BackendError as exc:
            if speaks_against_it(exc):
                trial.failed()
            raise
        finally:
            trial.closed()
            self._observer.given(engine.name, stream.reader.given / self._rate)

    # Its results

    def _take(self, placed: Placed) -> None:
        """Publish a result."""
        if self._trial is not None:
            self._trial.result(final=placed.result.is_final)
        if placed.result.is_final:
            self._take_final(placed)
        else:
            self._take_partial(placed)

    def _take_final(self, placed: Placed) -> None:
        result, end = placed.result, placed.end
        if result.text:
            self._heard(placed.start)
        if self._voice is None:
            self._speech_ended(end)
        if result.text:
            spoken = round(result.words[-1].end * self._rate) if result.words else end
            latency = self._latency(min(spoken, end))
            self._out.publish(
                FinalEvent(
                    self._out.next_seq(),
                    result.text,
                    self._seconds(placed.start),
                    self._seconds(end),
                    result.words if self._start.words else (),
                    result.confidence,
                    result.language,
                    self._number,
                )
            )
            self._observer.final(self._seat.engine.name, latency)
        self._partials = 0
        if placed.covered > self._buffer.start:
            self._buffer.trim(placed.covered)
            self._advanced()

    def _take_partial(self, placed: Placed) -> None:
        result = placed.result
        self._heard(placed.start)
        if not result.text or not self._start.partials:
            return
        self._partials += 1
        self._out.publish(
            Partial(
                result.text,
                self._seconds(placed.start),
                self._seconds(placed.end),
                result.stability,
                result.words if self._start.words else (),
                self._number,
                None if result.committed is None else max(0, min(result.committed, len(result.text))),
            )
        )
        self._observer.partial(self._seat.engine.name, self._latency(placed.end), first=self._partials == 1)
        self._observer.queued(self._buffer.unread / self._rate)
        self._shown()

    def _heard(self, position: int) -> None:
        """The backend heard speech; who listens for voice activity knows better when it began."""
        if self._voice is None:
            self._speech_started(position)

    def _latency(self, position: int) -> float:
        arrived = self._buffer.arrival(position)
        return 0.0 if arrived is None else self._loop.time() - arrived

    def _seconds(self, position: int) -> float:
        return round(1_000 * position / self._rate) / 1_000


def recognition(
    start: Start,
    *,
    sample_rate: int,
    language: str,
    session_id: str,
    credential: str | None,
    begin: float = 0.0,
    attempt: int = 0,
) -> RecognitionConfig:
    """What a session asks of a backend stream that begins so many seconds into it, after so many attempts."""
    return RecognitionConfig(
        sample_rate=sample_rate,
        language=language,
        partials=start.partials,
        words=start.words,
        phrases=start.phrases,
        session_id=session_id,
        start=begin,
        attempt=attempt,
        # What the session chose; otherwise it is the engine's own business when an utterance ends.
        silence_seconds=(start.endpointing or {}).get("silence_seconds"),
        store=start.store,
        credential=credential,
        traceparent=trace.traceparent(),
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
