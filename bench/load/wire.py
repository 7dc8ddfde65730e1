"""A WebSocket client's bytes, as little of them as a load generator needs: it must cost less than what it loads.

It speaks to servers that are known, over plain TCP: no extension, no fragments. RFC 6455, sections 4.1 and 5.2.
"""

from __future__ import annotations

from typing import Final

from websockets.frames import Frame, Opcode

KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="

MAX_HEAD: Final = 16_384
"""Bytes of an answer to the handshake."""
MAX_FRAME: Final = 16 * 1_048_576
"""Bytes of a frame. Servers say texts; more is a mistake, and not to be kept."""

UPGRADED: Final = 101
"""In place of an opcode: the handshake is complete."""
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10


class WireError(Exception):
    """The server said something that this does not understand; the text is what it said first."""


def upgrade(host: str, port: int, path: str, key: str = "") -> bytes:
    """The request for a WebSocket; an API key goes with it as a bearer token."""
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"{authorization}Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole, masked frame."""
    return Frame(Opcode(opcode), payload).serialize(mask=True)


class Reader:
    """What a server sends, frame by frame."""

    def __init__(self) -> None:
        self._rest = b""
        self._upgraded = False

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The opcodes and payloads that are whole now; `UPGRADED` first.

        Raises:
            WireError: the handshake was refused, or a frame is none that is known here. Feed it no more.
        """
        if self._rest:
            data = self._rest + data
            self._rest = b""
        found: list[tuple[int, bytes]] = []
        at = 0
        if not self._upgraded:
            at = self._shaken(data)
            if not at:
                return found
            found.append((UPGRADED, b""))
        size = len(data)
        while size - at >= 2:
            first, length = data[at], data[at + 1]
            if not first & 0x80 or length & 0x80:
                raise WireError("a frame that is fragmented or masked")
            start = at + 2
            if length == 126:
                start += 2
                length = int.from_bytes(data[at + 2 : start])
            elif length == 127:
                start += 8
                length = int.from_bytes(data[at + 2 : start])
            if start <= size and length > MAX_FRAME:
                raise WireError(f"a frame of {length} bytes")
            if start + length > size or start > size:
                break
            found.append((first & 0x0F, data[start : start + length]))
            at = start + length
        self._rest = data[at:]
        return found

    def _shaken(self, data: bytes) -> int:
        """Where the answer to the handshake ends; 0 if it has not come whole yet."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MAX_HEAD:
                raise WireError("an answer to the handshake that does not end")
            self._rest = data
            return 0
        line = data[: data.find(b"\r\n")]
        if line.split(b" ")[1:2] != [b"101"]:
            raise WireError(line[:100].decode("latin-1"))
        self._upgraded = True
        return end + 4
