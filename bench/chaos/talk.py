"""One client of a chaos run: a recording in real time through the client library, and what it was told."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from bench.chaos.recordings import Recording
from bridge.client import Client, ClientError, ConnectError, SessionError, connect, receive
from bridge.protocols.native import ClosedMessage, FinalMessage, ServerMessage, WarningMessage

PATIENCE_SECONDS: Final = 90.0
"""For all that breaks in one session; a session that lasts longer hangs."""
WINDOW_SECONDS: Final = 5.0
"""A silence that begins so long after a fault is the fault's."""
AGAIN_SECONDS: Final = 0.2
TOLERANCE: Final = 1e-6

T = TypeVar("T")


@dataclass(eq=False)
class Heard:
    """What a session's client was told. Times are of the monotonic clock."""

    recording: Recording
    session_id: str = ""
    began: float = 0.0
    ended: float = 0.0
    seqs: list[int] = field(default_factory=list)
    finals: list[FinalMessage] = field(default_factory=list)
    warnings: Counter[str] = field(default_factory=Counter)
    closed: ClosedMessage | None = None
    failure: str | None = None
    told: list[float] = field(default_factory=list)
    """When a message came."""
    lasted: list[float] = field(default_factory=list)
    """When a lasting one came."""
    late: float = 0.0
    """The longest that a final came after its audio had been due to be sent, in seconds."""

    @property
    def text(self) -> str:
        """The transcript; of channels that are recognized apart one after the other."""
        return " | ".join(" ".join(final.text for final in finals) for finals in self.channels)

    @property
    def channels(self) -> list[list[FinalMessage]]:
        """The finals of each channel."""
        numbers = sorted({final.channel or 0 for final in self.finals})
        return [[final for final in self.finals if (final.channel or 0) == number] for number in numbers]

    def take(self, message: ServerMessage) -> None:
        """Note a message."""
        now = time.monotonic()
        self.told.append(now)
        if (seq := getattr(message, "seq", None)) is not None and not hasattr(message, "session_id"):
            self.lasted.append(now)
            self.seqs.append(seq)
        match message:
            case FinalMessage():
                self.finals.append(message)
                self.late = max(self.late, now - self.began - message.end)
            case WarningMessage():
                self.warnings[message.code] += 1
            case ClosedMessage():
                self.closed = message

    def differences(self, expected: str) -> list[str]:
        """What is not as it would be without faults; a sentence each."""
        wrong = []
        if self.failure is not None:
            wrong.append(f"it failed: {self.failure}")
        if self.seqs != list(range(1, len(self.seqs) + 1)):
            wrong.append(f"sequence numbers: {self.seqs}")
        if self.text != expected:
            wrong.append(f"heard {self.text!r} instead of {expected!r}")
        if any(b.start < a.end - TOLERANCE for finals in self.channels for a, b in itertools.pairwise(finals)):
            wrong.append(f"finals overlap: {[(f.start, f.end) for f in self.finals]}")
        if self.closed is None:
            wrong.append("no `closed`")
        elif self.closed.code != "stopped" or self.closed.finalized != self.closed.received:
            wrong.append(f"closed: {self.closed}")
        elif abs(self.closed.duration - self.recording.seconds) > 0.1:  # a codec's padding
            wrong.append(f"{self.closed.duration} s were received instead of {self.recording.seconds} s")
        return wrong

    def silences(self, at: float) -> tuple[float, float]:
        """The longest time without a message, and without a lasting one, around a fault and after it."""
        return _gap([self.began, *self.told], at), _gap([self.began, *self.lasted], at)


def _gap(times: list[float], at: float) -> float:
    """The longest of the gaps that the fault falls into or that begin soon after it."""
    return max((b - a for a, b in itertools.pairwise(times) if b >= at and a <= at + WINDOW_SECONDS), default=0.0)


async def talk(url: str, recording: Recording, opened: Callable[[Heard], None] | None = None) -> Heard:
    """A whole session. `opened` is called once it has a name."""
    heard = Heard(recording)
    async with _judged(heard), contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        client = await _open(stack, lambda: connect(url, recording.start))
        heard.session_id, heard.began = client.ready.session_id, time.monotonic()
        if opened is not None:
            opened(heard)
        sending = group.create_task(_speak(client, recording, heard.began))
        async for message in client:
            heard.take(message)
        await sending
    return heard


async def listen(url: str, told: Heard) -> Heard:
    """All of somebody else's session, from its beginning."""
    heard = Heard(told.recording, told.session_id, began=told.began)
    async with _judged(heard), contextlib.AsyncExitStack() as stack:
        async for message in await _open(stack, lambda: receive(url, told.session_id, from_seq=1)):
            heard.take(message)
    return heard


@contextlib.asynccontextmanager
async def _judged(heard: Heard) -> AsyncGenerator[None]:
    """Notes how the session failed, if it does."""
    limit = heard.recording.seconds + PATIENCE_SECONDS
    try:
        async with asyncio.timeout(limit):
            yield
    except* TimeoutError:
        heard.failure = f"it was not over after {limit:.0f} s"
    except* ClientError as group:
        heard.failure = "; ".join(f"{type(exc).__name__}: {exc}" for exc in group.exceptions)
    heard.ended = time.monotonic()


async def _open(stack: contextlib.AsyncExitStack, attempt: Callable[[], AbstractAsyncContextManager[T]]) -> T:
    """A session, as soon as one comes about: none that was never opened can be unbroken."""
    while True:
        try:
            return await stack.enter_async_context(attempt())
        except ConnectError:
            await asyncio.sleep(AGAIN_SECONDS)
        except SessionError as exc:
            if not exc.retryable:
                raise
            await asyncio.sleep(AGAIN_SECONDS)


async def _speak(client: Client, recording: Recording, began: float) -> None:
    """Send at the pace of speech; what a break delayed follows at once, as from a microphone's buffer."""
    flushes = deque(recording.flushes)
    for at, chunk in recording.chunks():
        delay = began + at - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        if flushes and at >= flushes[0]:  # all before `at` has been sent
            flushes.popleft()
            await client.flush()
        await client.send(chunk)
    await client.stop()
