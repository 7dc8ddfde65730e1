"""The generator's WebSocket against the library `websockets`, which is the judge."""

from __future__ import annotations

import pytest
from websockets.frames import Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

from bench.load import wire
from tests.bench.load.dialects.frames import sent, server

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


def asked(request: bytes) -> Request:
    """The request as a server reads it."""
    stream = StreamReader()
    stream.feed_data(request)
    reading = Request.parse(stream.read_line)
    with pytest.raises(StopIteration) as done:
        next(reading)
    assert not stream.buffer
    found: Request = done.value.value
    return found


@pytest.mark.parametrize(("host", "named"), [("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80")])
def test_a_server_accepts_the_upgrade(host: str, named: str) -> None:
    request = asked(wire.upgrade(host, 80, "/v1/stream?a=b"))
    assert request.path == "/v1/stream?a=b"
    assert request.headers["Host"] == named
    assert "Authorization" not in request.headers
    assert ServerProtocol().accept(request).status_code == 101


def test_a_key_is_a_bearer_token() -> None:
    assert asked(wire.upgrade("localhost", 80, "/", "sesame")).headers["Authorization"] == "Bearer sesame"


@pytest.mark.parametrize("size", [0, 1, 125, 126, 3_200, 65_535, 65_536, 100_000])
def test_frames_of_every_length(size: int) -> None:
    payload = bytes(n % 251 for n in range(size))
    assert sent(wire.frame(wire.BINARY, payload)) == (Opcode.BINARY, payload)
    reader = wire.Reader()
    assert reader.feed(SWITCHED + server(Opcode.TEXT, payload)) == [(wire.UPGRADED, b""), (wire.TEXT, payload)]


def test_bytes_may_come_one_by_one() -> None:
    payloads = [b"", b"x" * 125, b"y" * 126, b"z" * 65_536]
    reader = wire.Reader()
    heard = []
    for byte in SWITCHED + b"".join(server(Opcode.TEXT, p) for p in payloads) + server(Opcode.PING, b"1"):
        heard += reader.feed(bytes([byte]))
    assert heard == [(wire.UPGRADED, b""), *((wire.TEXT, p) for p in payloads), (wire.PING, b"1")]


def test_frames_that_come_with_the_handshake_and_in_pieces() -> None:
    reader = wire.Reader()
    whole = SWITCHED + server(Opcode.TEXT, b"one") + server(Opcode.TEXT, b"two" * 100)
    assert reader.feed(whole[:-1]) == [(wire.UPGRADED, b""), (wire.TEXT, b"one")]
    assert reader.feed(whole[-1:]) == [(wire.TEXT, b"two" * 100)]


@pytest.mark.parametrize(
    "line",
    [b"HTTP/1.1 503 Service Unavailable", b"HTTP/1.1 401 Unauthorized", b"HTTP/1.1 200 up 101 times", b"220 smtp"],
)
def test_a_refusal_is_told_in_the_server_s_words(line: bytes) -> None:
    with pytest.raises(wire.WireError, match=line.decode()):
        wire.Reader().feed(line + b"\r\nRetry-After: 1\r\n\r\n")


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (b"\x01\x01a", "fragmented"),
        (b"\x81\x83", "masked"),
        (b"\x82\x7f" + (1 << 40).to_bytes(8), f"a frame of {1 << 40} bytes"),
    ],
)
def test_a_frame_that_is_not_understood(odd: bytes, said: str) -> None:
    with pytest.raises(wire.WireError, match=said):
        wire.Reader().feed(SWITCHED + odd)


def test_a_handshake_that_never_ends_is_not_kept() -> None:
    reader = wire.Reader()
    reader.feed(b"HTTP/1.1 101 yes\r\n")
    with pytest.raises(wire.WireError, match="does not end"):
        reader.feed(b"X: y\r\n" * 4_000)
