"""The engine `faulty`: a real one inside, which fails, stalls or ends its streams when told to.

It is a plug-in like other people's: `installed` writes what `pip` would, for the server's `PYTHONPATH`. The engine
inside is named by `STT_FAULTY_ENGINE` and keeps its own settings. Commands come as lines of JSON by a Unix socket,
`STT_FAULTY_CONTROL`; the answer says how many streams were struck:

    {"fault": "fail", "session_id": "…"}     this session's stream fails (without `session_id`: every stream)
    {"fault": "stall", "session_id": "…"}    it takes no more audio and answers nothing
    {"fault": "end", "session_id": "…"}      it ends early, as if its audio had; fails if that has ended already
    {"fault": "down", "seconds": 2}          every stream fails, and those that are opened for so long
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, cast

import msgspec

from backends import registry
from backends.base import AsyncBackend, BackendError, Capabilities, Fault, RecognitionConfig, Result
from bridge.settings import environment, read_options

KINDS: Final = ("fail", "stall", "end", "down")

ROOT: Final = Path(__file__).resolve().parent.parent.parent
ANSWER_SECONDS: Final = 2.0
DOWN_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class FaultyOptions:
    """Settings of the engine `faulty`."""

    engine: str = field(default="pocketsphinx", metadata={"help": "The engine inside."})
    control: Path | None = field(default=None, metadata={"help": "Unix socket that takes commands."})


class Command(msgspec.Struct):
    """What it is told."""

    fault: str
    session_id: str | None = None
    seconds: float = DOWN_SECONDS


class FaultyBackend(AsyncBackend):
    """See the module's text. Only engines that work on the event loop go inside."""

    name: ClassVar[str] = "faulty"
    Options = FaultyOptions

    def __init__(self, options: FaultyOptions | None = None) -> None:
        super().__init__(options or FaultyOptions())
        inside = registry.load_class(self.options.engine)
        if not issubclass(inside, AsyncBackend):
            raise BackendError(f"{self.options.engine} is no AsyncBackend", code="rejected", fault=Fault.OPERATOR)
        self._inside: AsyncBackend = inside(read_options(inside.settings_name(), inside.Options, environment()))
        self._streams: dict[asyncio.Future[str], str] = {}
        self._down_until = 0.0
        self._control: asyncio.Server | None = None

    @property
    def capabilities(self) -> Capabilities:
        """The inner engine's."""
        return self._inside.capabilities

    async def load(self) -> None:
        """Load the inner engine, then listen."""
        await self._inside.load()
        if self.options.control is not None:
            self.options.control.unlink(missing_ok=True)  # of a server that was killed
            self._control = await asyncio.start_unix_server(self._obey, self.options.control)

    async def close(self) -> None:
        """Close the inner engine."""
        if self._control is not None:
            self._control.close()
        await self._inside.close()

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Each connection is one command and its answer."""
        command = msgspec.json.decode(await reader.readline(), type=Command)
        writer.write(b"%d\n" % self.strike(command))
        writer.close()

    def strike(self, command: Command) -> int:
        """Obey; returns how many streams were struck."""
        if command.fault == "down":
            self._down_until = asyncio.get_running_loop().time() + command.seconds
        struck = [told for told, session in self._streams.items() if command.session_id in (None, session)]
        for told in struck:
            if not told.done():
                told.set_result("fail" if command.fault == "down" else command.fault)
        return len(struck)

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        """What the inner engine hears, until a fault."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._down_until:
            raise _failure()
        told: asyncio.Future[str] = loop.create_future()
        self._streams[told] = config.session_id
        heard_all = False

        async def tapped() -> AsyncGenerator[bytes]:
            nonlocal heard_all
            async for chunk in audio:
                heard_all = not chunk  # a flush owes as much as the end does
                yield chunk
            heard_all = True

        try:
            inside = cast("AsyncGenerator[Result]", self._inside.recognize(config, tapped()))
            async with contextlib.aclosing(inside) as results:
                while (result := await _next(results, told)) is not None:
                    yield result
            if not told.done() or (told.result() == "end" and not heard_all):
                return
            if told.result() == "stall":
                await loop.create_future()
            raise _failure()
        finally:
            del self._streams[told]


async def _next(results: AsyncGenerator[Result], told: asyncio.Future[str]) -> Result | None:
    """The next result; None at the end, and once there was a command."""

    async def step() -> Result | None:
        return await anext(results, None)

    following = asyncio.create_task(step())
    try:
        await asyncio.wait((following, told), return_when=asyncio.FIRST_COMPLETED)
        return None if told.done() else following.result()
    finally:
        following.cancel()
        await asyncio.wait({following})
        if not following.cancelled():
            following.exception()  # told above, or nobody is to know


def _failure() -> BackendError:
    return BackendError("it was told to fail", code="unavailable", retryable=True)


def installed(folder: Path) -> dict[str, str]:
    """Install the plug-in in `folder`, as `pip` would: the variables for a server that is to know it."""
    info = folder / "stt_bridge_chaos-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stt-bridge-chaos\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\nfaulty = {__name__}:{FaultyBackend.__name__}\n")
    paths = [str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


async def tell(control: Path, command: Command) -> int | None:
    """Send a command to a server; how many streams were struck, None if nobody listens."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(control)
            with contextlib.closing(writer):
                writer.write(msgspec.json.encode(command) + b"\n")
                return int(await reader.readline() or b"0")
    except (OSError, TimeoutError):
        return None
