"""The whole road in one process: a client of the bridge, the real server on a Google engine, the emulator."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from bridge import app
from bridge.client import Client, ConnectionLost, SessionError, connect
from bridge.emulator.faults import Faults, Plan
from bridge.emulator.server import Emulator, EmulatorConfig, emulating
from bridge.protocols.native import (
    ClosedMessage,
    ErrorMessage,
    FinalMessage,
    ServerMessage,
    StartMessage,
    WarningMessage,
)
from bridge.settings import Settings
from tests.wire import markers

FRAME: Final = 3_200
"""Bytes of 100 ms."""


@dataclass
class Heard:
    """What a client was told in one session."""

    session_id: str = ""
    messages: list[ServerMessage] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The transcript."""
        return " ".join(m.text for m in self.messages if isinstance(m, FinalMessage) and m.text)

    @property
    def codes(self) -> list[str]:
        """Codes of all errors and warnings."""
        return [m.code for m in self.messages if isinstance(m, ErrorMessage | WarningMessage)]

    @property
    def closed(self) -> ClosedMessage:
        """The last message."""
        last = self.messages[-1]
        assert isinstance(last, ClosedMessage)
        return last

    def assert_whole(self, words: int, first: int = 0) -> None:
        """Every word once and in order, and not a sign of what went wrong on the way."""
        assert self.text.split() == markers(words, first)
        assert self.codes == []
        assert self.closed.code == "stopped"
        assert self.closed.finalized == self.closed.received


class Talk:
    """An open session: send with `client`, read what came in `heard`."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.heard = Heard(client.ready.session_id)
        self._news = asyncio.Condition()

    async def read(self) -> None:
        """Take every message up to the last one."""
        with contextlib.suppress(SessionError):  # said in the messages as well
            async for message in self.client:
                self.heard.messages.append(message)
                async with self._news:
                    self._news.notify_all()

    async def until_words(self, count: int, seconds: float = 10) -> None:
        """Wait for so many words that are final."""
        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(lambda: len(self.heard.text.split()) >= count)

    async def say(self, audio: bytes, *, speed: float = 0) -> None:
        """Send audio in frames of 100 ms, `speed` times as fast as life; 0: as fast as the server takes it."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for at in range(0, len(audio), FRAME):
            await self.client.send(audio[at : at + FRAME])
            delay = began + (at + FRAME) / 32_000 / speed - loop.time() if speed else 0
            if delay > 0:
                await asyncio.sleep(delay)


@contextlib.asynccontextmanager
async def talking(url: str, start: StartMessage | None = None, seconds: float = 30) -> AsyncIterator[Talk]:
    """A session; leaving the context says `stop` and waits for the last message, so long at most."""
    async with connect(f"ws{url.removeprefix('http')}/v1/stream", start) as client:
        talk = Talk(client)
        reading = asyncio.create_task(talk.read())
        try:
            yield talk
            if not reading.done():
                with contextlib.suppress(ConnectionLost):  # it may be over before its last message has been read
                    await client.stop()
            async with asyncio.timeout(seconds):
                await reading
        finally:
            reading.cancel()


async def spoken(url: str, audio: bytes, *, speed: float = 0, start: StartMessage | None = None) -> Heard:
    """One whole session."""
    async with talking(url, start) as talk:
        with contextlib.suppress(Exception):  # of a session that failed; what it was told is in the messages
            await talk.say(audio, speed=speed)
    return talk.heard


@contextlib.asynccontextmanager
async def road(
    engine: str = "google",
    api: str = "v1",
    config: EmulatorConfig | None = None,
    *,
    env: dict[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[str, Emulator]]:
    """The server's address and the emulator that it calls. `env`: more STT_GOOGLE_ variables, without that prefix."""
    async with emulating(config) as emulator, server(emulator.address, engine, api, env=env, **settings) as url:
        yield url, emulator


@contextlib.asynccontextmanager
async def server(
    endpoint: str, engine: str = "google", api: str = "v1", *, env: dict[str, str] | None = None, **settings: Any
) -> AsyncIterator[str]:
    """The real server in this process; its address."""
    defaults = {"port": 0, "backend": engine, "threads": 8, "gate": "off"}  # as in `google_env`
    chosen = Settings.load(env={}, env_file=None, **defaults | settings)
    async with app.serving(chosen, env=google_env(endpoint, api, env)) as url:
        yield url


def google_env(endpoint: str, api: str = "v1", more: dict[str, str] | None = None) -> dict[str, str]:
    """The engine's settings: no pacing, so that tests are quick, unless `more` says otherwise.

    And for a server that is given them: words of marker audio are no speech, a gate would keep them from the engine.
    """
    given = {"API": api, "PROJECT": "test", "ENDPOINT": f"http://{endpoint}", "REPLAY_SPEED": "0"} | (more or {})
    return {"STT_GATE": "off"} | {f"STT_GOOGLE_{name}": value for name, value in given.items()}


def in_order(*faults: Faults) -> EmulatorConfig:
    """An emulator whose first streams have these faults, one each, and the others none."""
    return EmulatorConfig(plan=Plan(streams=faults))


def always(fault: Faults) -> EmulatorConfig:
    """An emulator all of whose streams have this fault."""
    return EmulatorConfig(plan=Plan(usual=fault))


class Journal(logging.Handler):
    """The lines that operators would see of failures, and an event for the next one."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []
        self.times: list[float] = []
        self.news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self._loop.call_soon_threadsafe(self._noted)

    async def until(self, count: int, seconds: float = 10) -> None:
        """Wait for so many lines."""
        async with asyncio.timeout(seconds):
            while len(self.times) < count:
                self.news.clear()
                await self.news.wait()

    def _noted(self) -> None:
        self.times.append(self._loop.time())
        self.news.set()


@contextlib.contextmanager
def journal() -> Iterator[Journal]:
    """Collects what is logged as a warning or worse."""
    handler = Journal()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
