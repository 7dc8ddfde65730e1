"""A session without a socket: what it is fed, what it says."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np

from backends.base import AsyncBackend, BackendError, BlockingBackend, Capabilities, RecognitionConfig, Result, Word
from backends.scripted import Script, ScriptedBackend, ScriptedFault, ScriptedOptions
from bridge.audio.vad.detector import Heard
from bridge.protocols.events import Ack, Closed, Joined, Ready, ServerEvent, Start
from bridge.protocols.events import Final as FinalEvent
from bridge.session.engine import Engine
from bridge.session.failover import EnginePool, Seat
from bridge.session.limits import SessionLimits
from bridge.session.session import Session
from bridge.session.voice import VoicePolicy

FRAME: Final = 3_200
"""Bytes of 100 ms."""
NEVER: Final = float("inf")
"""As the lateness of a detector: it answers when it is told to."""


@dataclass
class Observed:
    """A `SessionObserver` that counts."""

    errors: list[str] = field(default_factory=list)
    finals: list[float] = field(default_factory=list)
    partials: int = 0
    seconds: float = 0.0
    given_seconds: float = 0.0

    moves: list[tuple[str, str]] = field(default_factory=list)

    def given(self, backend: str, seconds: float) -> None:
        self.given_seconds += seconds

    def moved(self, left: str, taken: str) -> None:
        self.moves.append((left, taken))

    def audio(self, seconds: float) -> None:
        self.seconds += seconds

    def partial(self, backend: str, latency: float, *, first: bool) -> None:
        self.partials += 1

    def final(self, backend: str, latency: float) -> None:
        self.finals.append(latency)

    def backend_error(self, backend: str, code: str) -> None:
        self.errors.append(code)

    def queued(self, seconds: float) -> None:
        assert seconds >= 0


@dataclass
class Running:
    """A session under test and all that it has said so far."""

    session: Session
    observed: Observed
    events: list[ServerEvent] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, audio: bytes, frame: int = FRAME) -> None:
        """Feed in frames, as fast as the session takes them."""
        for i in range(0, len(audio), frame):
            if not self.session.feed(audio[i : i + frame]):
                await self.session.room()
            await asyncio.sleep(0)

    async def until(self, kind: type[ServerEvent], count: int = 1) -> list[ServerEvent]:
        """Wait for so many events of a kind."""
        async with asyncio.timeout(10):
            while len(found := [e for e in self.events if isinstance(e, kind)]) < count:
                self.news.clear()
                await self.news.wait()
        return found

    @property
    def text(self) -> str:
        """All finals."""
        return " ".join(e.text for e in self.events if isinstance(e, FinalEvent))

    @property
    def words(self) -> list[Word]:
        """The words of all finals, in the order in which those came."""
        return [word for e in self.events if isinstance(e, FinalEvent) for word in e.words]

    @property
    def closed(self) -> Closed:
        """The last event."""
        last = self.events[-1]
        assert isinstance(last, Closed)
        return last

    @property
    def acks(self) -> list[Ack]:
        """Every ack."""
        return [e for e in self.events if isinstance(e, Ack)]


@contextlib.asynccontextmanager
async def session_on(
    backend: AsyncBackend | BlockingBackend | EnginePool,
    start: Start | None = None,
    limits: SessionLimits | None = None,
    voice: VoicePolicy | None = None,
    *,
    denoise: bool = False,
) -> AsyncIterator[Running]:
    """A running session; leaving the context waits for its end. Times out as a test should."""
    engines = backend if isinstance(backend, EnginePool) else EnginePool(Engine(backend, threads=4))
    await engines.load()
    observed = Observed()
    start = start or Start()
    seats = contextlib.ExitStack()
    session = Session(
        "test",
        start,
        seats.enter_context(seats_of(engines, "en-US", start.lanes)),
        limits or SessionLimits(),
        observer=observed,
        language="en-US",
        voice=voice or VoicePolicy(),
        denoise=denoise,
    )
    running = Running(session, observed)
    outbox = session.subscribe()

    async def read() -> None:
        while events := await outbox.get():
            running.events += events
            running.news.set()
            if isinstance(events[-1], Closed):
                return

    try:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            reading = group.create_task(read())
            task = group.create_task(session.run())
            try:
                yield running
            except BaseException:
                task.cancel()
                reading.cancel()
                raise
    finally:
        seats.close()
        await engines.close()


def words(count: int, first: int = 0) -> str:
    """The transcript of `marker_audio(count)`."""
    return " ".join(f"w{first + i}" for i in range(count))


def lasting_numbers(events: list[ServerEvent]) -> list[int]:
    """The sequence numbers that events carry, in order."""
    passing = (Ready, Joined)  # they name the last number of others
    return [seq for e in events if (seq := getattr(e, "seq", None)) is not None and not isinstance(e, passing)]


def markers(*faults: ScriptedFault, kind: Any = ScriptedBackend) -> Any:
    """The marker engine with these faults."""
    return kind(ScriptedOptions(mode="markers"), Script(faults=faults))


def limited(seconds: float) -> Any:
    """Words as the marker engine hears them; refuses audio past its limit, as Google does."""

    async def recognize(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async def watched() -> AsyncIterator[bytes]:
            given = 0
            async for chunk in audio:
                given += len(chunk) // 2
                if given > seconds * config.sample_rate:
                    raise BackendError("too long", code="stream_limit", retryable=True)
                yield chunk

        async for result in markers().recognize(config, watched()):
            yield result

    return recognize


@contextlib.contextmanager
def seats_of(pool: EnginePool, language: str, count: int = 1, **terms: Any) -> Iterator[Sequence[Seat]]:
    """Seats, as `EnginePool.take_seats` gives them, for as long as the context lasts."""
    seats = pool.take_seats(language, count, **terms)
    try:
        yield seats
    finally:
        for seat in seats:
            seat.give_back()


class FunctionEngine(AsyncBackend):
    """An engine made of a function, without flush and with whatever else a test needs."""

    name: ClassVar[str] = "function"

    def __init__(self, body: Any, **capabilities: Any) -> None:
        super().__init__()
        self._body = body
        self._capabilities = Capabilities(**capabilities)
        self.configs: list[RecognitionConfig] = []

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        self.configs.append(config)
        async for result in self._body(config, audio):
            yield result


class NonzeroDetection:
    """A `VoiceDetection` that takes a frame for speech if it has a sample that is neither zero nor in `silent`.

    `lateness` gives the seconds after which a frame is answered; None answers in the loop's next turn. Where it is
    `NEVER`, a frame is answered, and all before it, when `answer` is called or one behind it is answered.
    """

    name = "nonzero"

    def __init__(self, frame_seconds: float = 0.032, lateness: Callable[[], float | None] = lambda: None) -> None:
        self.frame_seconds = frame_seconds
        self.lateness = lateness
        self.silent: set[int] = set()
        self.detectors: list[NonzeroDetector] = []

    async def load(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to give back."""

    def open(self, rate: int, heard: Heard) -> NonzeroDetector:
        """See `VoiceDetection`."""
        self.detectors.append(NonzeroDetector(self, rate, heard))
        return self.detectors[-1]

    def answer(self) -> None:
        """Every detector answers for all that it was given, now."""
        for detector in self.detectors:
            detector.answer(detector.frames)


class NonzeroDetector:
    """See `NonzeroDetection`."""

    def __init__(self, detection: NonzeroDetection, rate: int, heard: Heard) -> None:
        self.frames = 0
        """Whole frames pushed."""
        self.closed = False
        self._detection = detection
        self._length = 2 * round(detection.frame_seconds * rate)
        self._heard = heard
        self._rest = b""
        self._waiting: deque[float] = deque()

    @property
    def waiting_seconds(self) -> float:
        """See `VoiceDetector`."""
        return len(self._waiting) * self._detection.frame_seconds

    def push(self, pcm: bytes) -> None:
        """See `VoiceDetector`."""
        pcm = self._rest + pcm
        whole = len(pcm) // self._length
        self._rest = pcm[whole * self._length :]
        if not whole or self.closed:
            return
        frames = np.frombuffer(pcm, "<i2", whole * self._length // 2).reshape(whole, -1)
        speech = ~np.isin(frames, [0, *self._detection.silent])
        self._waiting.extend(float(frame.any()) for frame in speech)
        self.frames += whole
        loop, seconds = asyncio.get_running_loop(), self._detection.lateness()
        if seconds is None:
            loop.call_soon(self.answer, self.frames)
        elif seconds != NEVER:
            loop.call_later(seconds, self.answer, self.frames)

    def finish(self) -> int:
        """See `VoiceDetector`."""
        if self._rest:
            self.push(bytes(self._length - len(self._rest)))
        return self.frames

    def close(self) -> None:
        """See `VoiceDetector`."""
        self.closed = True

    def answer(self, frame: int) -> None:
        """Answer for all frames before this one."""
        told = self.frames - len(self._waiting)
        answers = [self._waiting.popleft() for _ in range(told, frame)]
        if answers and not self.closed:
            self._heard(answers)
