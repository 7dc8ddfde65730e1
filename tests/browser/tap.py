"""A TCP proxy between a browser and the server that keeps the audio that goes by, and holds or cuts its sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

CHUNK = 65_536


class Tap:
    """Browsers connect to `url`. While `open` is unset, their WebSockets wait."""

    def __init__(self, server: str) -> None:
        address = urlsplit(server)
        self._server = (address.hostname, address.port)
        self.url = ""
        self.open = asyncio.Event()
        self.open.set()
        self.audio: list[bytearray] = []
        """Of each WebSocket, in the order of their connections."""
        self._sockets: set[asyncio.StreamWriter] = set()
        self._muted: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def before(cls, server: str) -> AsyncGenerator[Tap]:
        """A proxy that listens; in the end every connection is cut."""
        tap = cls(server)
        listening = await asyncio.start_server(tap._accept, "127.0.0.1", 0)
        tap.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        try:
            yield tap
        finally:
            listening.close()
            tasks = list(tap._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def cut(self) -> int:
        """Break every WebSocket; how many there were."""
        cut = list(self._sockets)
        for writer in cut:
            writer.transport.abort()
        return len(cut)

    def mute(self) -> None:
        """From now on nothing comes through the sockets that there are, and nobody is told."""
        self._muted |= self._sockets

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._carry(reader, writer)
        finally:
            self._tasks.discard(task)
            self._sockets.discard(writer)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        frames = None
        if b"upgrade: websocket" in head.lower():
            await self.open.wait()
            self._sockets.add(writer)
            self.audio.append(bytearray())
            frames = Frames(self.audio[-1])
            frames.feed(head)
        from_server, to_server = await asyncio.open_connection(*self._server)
        try:
            to_server.write(head)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(writer, reader, to_server, frames))
                group.create_task(self._pump(writer, from_server, writer, None))
        except* OSError:
            pass
        finally:
            to_server.transport.abort()

    async def _pump(
        self,
        client: asyncio.StreamWriter,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        frames: Frames | None,
    ) -> None:
        while data := await reader.read(CHUNK):
            if client in self._muted:
                continue
            if frames is not None:
                frames.feed(data)
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


class Frames:
    """Picks the audio out of what a client sends on a WebSocket without extensions."""

    def __init__(self, audio: bytearray) -> None:
        self._audio = audio
        self._protocol = ServerProtocol(max_size=None)

    def feed(self, data: bytes) -> None:
        """Take bytes as they come, from the request on."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._protocol.send_response(self._protocol.accept(event))
            elif isinstance(event, Frame) and event.opcode is Opcode.BINARY:
                self._audio += event.data
