"""What the processes of one server say to each other: frames of MessagePack over a pair of sockets.

Each child has one line, to its parent, which passes on what children say to each other (`Post`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Final

import msgspec

log = logging.getLogger(__name__)

HEADER_BYTES: Final = 4
FRAME_BYTES: Final = 16 * 1_048_576
"""Of the largest message; the figures of one process take some 100 KB."""
WAITING_BYTES: Final = 4 * 1_048_576
"""Not read by the other side yet: past this, what children say to each other is left out."""


class Papers(msgspec.Struct, frozen=True, tag="papers"):
    """The first word to a child: the settings (JSON) and variables that count, and how many processes there are."""

    settings: bytes
    env: dict[str, str]
    processes: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """A child serves, at this address."""

    url: str


class Present(msgspec.Struct, frozen=True, tag="present"):
    """The numbers of the children that serve now; told to each of them whenever that changes."""

    numbers: frozenset[int]


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """A child is to end its sessions in order; or at once."""

    at_once: bool = False


class Post(msgspec.Struct, frozen=True, tag="post"):
    """From one child (`sender`) to another, or to all others (`to` 0). May be lost where `to` is gone or hangs."""

    topic: str
    body: bytes
    to: int = 0
    sender: int = 0


Message = Papers | Ready | Present | Stop | Post


class Line:
    """One end of a line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Message)

    @classmethod
    async def over(cls, sock: socket.socket) -> Line:
        """The line over this end of a pair of sockets, which belongs to it from now on."""
        sock.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def say(self, message: Message) -> None:
        """Send it. Never waits, and raises nothing where nobody is there any more."""
        if self._writer.is_closing():
            return
        if isinstance(message, Post) and self._writer.transport.get_write_buffer_size() > WAITING_BYTES:
            return
        body = self._encoder.encode(message)
        if len(body) > FRAME_BYTES:
            log.error("what is said to another process has %d bytes, and is left out", len(body))
            return
        self._writer.write(len(body).to_bytes(HEADER_BYTES) + body)

    async def hear(self) -> Message:
        """The next message.

        Raises:
            EOFError: the other side is gone, or says what cannot be understood.
        """
        try:
            size = int.from_bytes(await self._reader.readexactly(HEADER_BYTES))
            if size > FRAME_BYTES:
                raise EOFError(f"a message of {size} bytes")
            message: Message = self._decoder.decode(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError, msgspec.MsgspecError) as exc:
            raise EOFError(str(exc)) from exc
        return message

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
