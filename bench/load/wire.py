"""A WebSocket client's bytes, as little of them as a load generator needs: it must cost less than what it loads.

It speaks to servers that are known, over plain TCP: no extension, no fragments. RFC 6455, sections 4.1 and 5.2.
"""

from __future__ import annotations

from typing import Final

from websockets.speedups import apply_mask

MASK: Final = b"\x5a\xc3\x17\xe9"
"""The same for all frames, so that sessions can share them. It is there to be taken off."""
KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="

UPGRADED: Final = 101
"""In place of an opcode: the handshake is complete."""
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10


class WireError(Exception):
    """The server said something that this does not understand; the text is what it said first."""


def upgrade(host: str, port: int, path: str) -> bytes:
    """The request for a WebSocket."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole, masked frame."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size <= 0xFFFF:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2)
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8)
    return head + MASK + apply_mask(payload, MASK)


class Reader:
    """What a server sends, frame by frame."""

    def __init__(self) -> None:
        self._rest = b""
        self._upgraded = False

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The opcodes and payloads that are whole now; `UPGRADED` first.

        Raises:
            WireError: the handshake was refused, or a frame is none that is known here.
        """
        if self._rest:
            data = self._rest + data
            self._rest = b""
        found: list[tuple[int, bytes]] = []
        at = 0
        if not self._upgraded:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._rest = data
                return found
            line = data[: data.find(b"\r\n")]
            if b" 101 " not in line:
                raise WireError(line[:100].decode("latin-1"))
            self._upgraded = True
            found.append((UPGRADED, b""))
            at = end + 4
        size = len(data)
        while size - at >= 2:
            first, length = data[at], data[at + 1]
            start = at + 2
            if length == 126:
                start += 2
                length = int.from_bytes(data[at + 2 : start])
            elif length == 127:
                start += 8
                length = int.from_bytes(data[at + 2 : start])
            if start + length > size or start > size:
                break
            if not first & 0x80 or data[at + 1] & 0x80:
                raise WireError("a frame that is fragmented or masked")
            found.append((first & 0x0F, data[start : start + length]))
            at = start + length
        self._rest = data[at:]
        return found
