"""How a connection ends when it does not end by itself."""

from __future__ import annotations

import asyncio
import contextlib
import http
import socket
import struct
from typing import Final

import msgspec

from bridge.security.headers import ALWAYS

CLOSE_SECONDS: Final = 1
"""For a peer to answer a close frame, or to read why it was refused. What it had to be told was sent before."""
_LATER: Final = "retry-after: 1\r\n"


def refusal(status: int, code: str, message: str) -> bytes:
    """An HTTP response that ends the connection."""
    body = msgspec.json.encode({"error": {"code": code, "message": message}})
    head = (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n{_LATER if status == 503 else ''}"
    ).encode()
    return b"".join((head, *(b"%s: %s\r\n" % header for header in ALWAYS), b"\r\n", body))


def reset(transport: asyncio.Transport) -> None:
    """Drop the connection, and with it what the kernel would go on offering to a peer that does not read."""
    raw = transport.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError, ValueError):  # it may be closed already
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def end_writing(transport: asyncio.Transport) -> None:
    """Send the end of what this side says; what the peer says is still received."""
    if transport.can_write_eof() and not transport.is_closing():
        transport.write_eof()
