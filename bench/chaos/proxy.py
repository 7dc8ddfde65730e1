"""A TCP proxy that breaks connections on command, in the ways in which networks do.

| Kind | The client sees | The server sees |
|---|---|---|
| `fin` | the end of the stream | the end of the stream |
| `reset` | a reset | a reset |
| `mid_frame` | a part of a message, then an end or a reset | a part of a message, then an end or a reset |
| `half_open` | a reset | nothing for seconds: the old connection is still there when the next comes |
| `freeze` | nothing for seconds, then a reset | the same |

Nothing is delayed, repeated or changed besides.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, Final

KINDS: Final = ("fin", "reset", "mid_frame", "half_open", "freeze")

CHUNK_BYTES: Final = 65_536
HOLD_SECONDS: Final = (0.5, 3.0)
"""How long a frozen or half-open connection stays so."""
MESSAGE_SECONDS: Final = 3.0
"""How long to wait for a message that can be cut; acks come once a second, audio more often."""
CONNECT_SECONDS: Final = 2.0

_NO_LINGER: Final = struct.pack("ii", 1, 0)


class Link:
    """One connection through the proxy, until it is cut or both ends are done."""

    def __init__(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        rng: random.Random,
    ) -> None:
        self._client = client
        self._server = server
        self._rng = rng
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._cut_in: asyncio.StreamWriter | None = None  # the writer whose next chunk is cut
        self._was_cut = asyncio.Event()
        self._released = asyncio.Event()  # unset while the server's side outlives the client's
        self._released.set()
        self._pumps: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Carry bytes both ways until the connection ends. Cancelling it resets both sides."""
        (up_reader, down_writer), (down_reader, up_writer) = self._client, self._server
        self._pumps = [
            asyncio.create_task(self._pump(up_reader, up_writer)),
            asyncio.create_task(self._pump(down_reader, down_writer)),
        ]
        try:
            await asyncio.wait(self._pumps)
            await self._released.wait()
        finally:
            self._stop()
            _reset(up_writer)
            _reset(down_writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                await self._flowing.wait()
                if writer is self._cut_in and len(data) > 1:
                    writer.write(data[: self._rng.randrange(1, len(data))])
                    self._end(self._rng.choice((_close, _reset)))
                    return
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            self._end(_reset)

    async def strike(self, kind: str) -> float | None:
        """Break it; returns when the client's side broke, by the monotonic clock; None if it had ended before."""
        hold = self._rng.uniform(*HOLD_SECONDS)
        if self._was_cut.is_set() or all(pump.done() for pump in self._pumps):
            return None
        if kind == "mid_frame":
            self._cut_in = self._rng.choice((self._client, self._server))[1]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._was_cut.wait(), MESSAGE_SECONDS)
            return time.monotonic() if self._was_cut.is_set() else None
        began = time.monotonic()
        if kind == "freeze":
            self._flowing.clear()
            await asyncio.sleep(hold)
            self._end(_reset)
        elif kind == "half_open":
            self._was_cut.set()
            self._released.clear()
            self._stop()
            _reset(self._client[1])
            try:
                await asyncio.sleep(hold)
            finally:
                self._released.set()
        else:
            self._end(_close if kind == "fin" else _reset)
        return began

    def _end(self, how: Any) -> None:
        self._was_cut.set()
        how(self._client[1])
        how(self._server[1])
        self._stop()

    def _stop(self) -> None:
        for pump in self._pumps:
            if pump is not asyncio.current_task():
                pump.cancel()


class Proxy:
    """Listens on a port of its own for one client, and connects it to any of the servers that is not down."""

    def __init__(self, host: str, ports: Sequence[int], rng: random.Random) -> None:
        self.host = host
        self.ports = ports
        self.connections = 0
        """How many the server has taken."""
        self.address = ("", 0)
        self._rng = rng
        self._link: Link | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, host: str, ports: Sequence[int], rng: random.Random) -> AsyncGenerator[Proxy]:
        """A proxy that listens; in the end every connection is reset."""
        proxy = cls(host, ports, rng)
        server = await asyncio.start_server(proxy._accept, "127.0.0.1", 0)
        proxy.address = server.sockets[0].getsockname()[:2]
        try:
            yield proxy
        finally:
            server.close()
            tasks = list(proxy._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def strike(self, kind: str) -> float | None:
        """Break the newest connection; see `Link.strike`. Cancelling it leaves the connection to end by itself."""
        link = self._link
        return None if link is None else await self._owned(link.strike(kind))

    def _owned(self, work: Coroutine[Any, Any, float | None]) -> asyncio.Task[float | None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for port in self._rng.sample(self.ports, len(self.ports)):
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    return await asyncio.open_connection(self.host, port)
        return None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("no task")
        self._tasks.add(task)
        try:
            server = await self._connect()
            if server is None:
                _reset(writer)
                return
            self.connections += 1
            self._link = link = Link((reader, writer), server, self._rng)
            await link.run()
        except asyncio.CancelledError:
            _reset(writer)  # the proxy ends: the streams' own task must not be seen as cancelled
        finally:
            self._tasks.discard(task)


def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End it with a reset, unless it has ended."""
    raw: socket.socket | None = writer.get_extra_info("socket")
    if not writer.is_closing() and raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        writer.transport.abort()
