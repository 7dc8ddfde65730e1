"""A session without a socket: what it is fed, what it says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from backends.base import AsyncBackend, BlockingBackend, Capabilities, RecognitionConfig, Result
from backends.scripted import Script, ScriptedBackend, ScriptedFault, ScriptedOptions
from bridge.protocols.events import Ack, Closed, Final, ServerEvent, Start
from bridge.session.engine import Engine
from bridge.session.limits import SessionLimits
from bridge.session.session import Session

FRAME = 3_200
"""Bytes of 100 ms."""


@dataclass
class Observed:
    """A `SessionObserver` that counts."""

    errors: list[str] = field(default_factory=list)
    finals: list[float] = field(default_factory=list)
    partials: int = 0
    seconds: float = 0.0
    given_seconds: float = 0.0

    def given(self, seconds: float) -> None:
        self.given_seconds += seconds

    def audio(self, seconds: float) -> None:
        self.seconds += seconds

    def partial(self, latency: float, *, first: bool) -> None:
        self.partials += 1

    def final(self, latency: float) -> None:
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
        return " ".join(e.text for e in self.events if isinstance(e, Final))

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
    backend: AsyncBackend | BlockingBackend, start: Start | None = None, limits: SessionLimits | None = None
) -> AsyncIterator[Running]:
    """A running session; leaving the context waits for its end. Times out as a test should."""
    engine = Engine(backend, threads=4)
    await engine.load()
    observed = Observed()
    session = Session("test", start or Start(), engine, limits or SessionLimits(), observer=observed, language="en-US")
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
        await engine.close()


def words(count: int, first: int = 0) -> str:
    """The transcript of `marker_audio(count)`."""
    return " ".join(f"w{first + i}" for i in range(count))


def lasting_numbers(events: list[ServerEvent]) -> list[int]:
    """The sequence numbers that events carry, in order."""
    return [seq for e in events if (seq := getattr(e, "seq", None)) is not None]


def markers(*faults: ScriptedFault, kind: Any = ScriptedBackend) -> Any:
    """The marker engine with these faults."""
    return kind(ScriptedOptions(mode="markers"), Script(faults=faults))


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
