"""What its dialect makes of a WhisperLive server's bytes (recorded from version 0.10.0), and what it sends."""

from __future__ import annotations

import json

import numpy as np
import pytest
from websockets.frames import Opcode

from bench.load.dialects.base import Ended, Heard, Opened, Say, Text
from bench.load.dialects.whisper_live import WhisperLive
from tests.bench.load.dialects.frames import sent, server

SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nDate: Sun, 22 Nov 2026 04:11:04 GMT\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Accept: Uwcpsy0O2c1qce2XzjBRpMU83RQ=\r\n"
    b"Server: Python/3.11 websockets/17.4\r\n\r\n"
)
READY = b'\x81H{"uid": "bench", "message": "SERVER_READY", "backend": "faster_whisper"}'
TWO = b'\x81j{"uid": "bench", "segments": [{"start": "0.000", "end": "1.000", "text": " one two", "completed": false}]}'
FINAL = (
    b"\x81~\x00\xc5"
    b'{"uid": "bench", "segments": [{"start": "0.000", "end": "3.000", "text": " one two three four five six", '
    b'"completed": true}, {"start": "3.000", "end": "3.500", "text": " one", "completed": false}]}'
)
CLOSE = b"\x88\x02\x03\xe8"


def opened() -> WhisperLive:
    """A session that the server has accepted."""
    dialect = WhisperLive()
    dialect.receive(SWITCHED + READY)
    return dialect


def test_the_options_follow_the_handshake_and_audio_follows_the_answer() -> None:
    dialect = WhisperLive()
    assert dialect.hello("127.0.0.1", 9090, "/").startswith(b"GET / HTTP/1.1\r\n")
    (said,) = dialect.receive(SWITCHED)
    assert isinstance(said, Say)
    opcode, text = sent(said.data)
    assert opcode == Opcode.TEXT
    options = json.loads(text)
    assert {"uid", "language", "task", "model", "use_vad"} <= options.keys()
    assert dialect.receive(READY) == [Opened()]


def test_bytes_may_come_one_by_one() -> None:
    dialect, heard = WhisperLive(), list[Heard]()
    for byte in SWITCHED + READY + TWO + FINAL + CLOSE:
        heard += dialect.receive(bytes([byte]))
    assert [type(h) for h in heard] == [Say, Opened, Text, Text, Text, Say, Ended]


def test_a_partial_is_told_when_it_changes() -> None:
    dialect = opened()
    assert dialect.receive(TWO) == [Text("one two", 1.0, False)]
    assert dialect.receive(TWO + TWO) == []


def test_a_final_is_told_once_though_the_server_repeats_it() -> None:
    dialect = opened()
    assert dialect.receive(FINAL) == [Text("one two three four five six", 3.0, True), Text("one", 3.5, False)]
    assert dialect.receive(FINAL) == []


def test_the_same_word_in_the_next_segment_is_told_again() -> None:
    dialect = opened()
    dialect.receive(FINAL)
    later = json.dumps({"segments": [{"start": "6.000", "end": "6.500", "text": " one", "completed": False}]})
    assert dialect.receive(server(Opcode.TEXT, later.encode())) == [Text("one", 6.5, False)]


def test_audio_is_sent_as_float32() -> None:
    opcode, samples = sent(WhisperLive.audio(np.array([0, 16_384, -32_768], "<i2").tobytes()))
    assert opcode == Opcode.BINARY
    assert np.frombuffer(samples, "<f4").tolist() == [0.0, 0.5, -1.0]


def test_the_end_is_answered_by_a_close() -> None:
    dialect = opened()
    assert sent(dialect.finish()) == (Opcode.BINARY, b"END_OF_AUDIO")
    reply, ended = dialect.receive(CLOSE)
    assert isinstance(reply, Say)
    assert sent(reply.data) == (Opcode.CLOSE, b"\x03\xe8")
    assert ended == Ended(ok=True, received=None)


def test_a_ping_is_answered() -> None:
    (reply,) = opened().receive(server(Opcode.PING, b"1234"))
    assert isinstance(reply, Say)
    assert sent(reply.data) == (Opcode.PONG, b"1234")


@pytest.mark.parametrize(
    "message",
    [
        {"uid": "bench", "status": "WAIT", "message": 9.5},
        {"uid": "bench", "status": "ERROR", "message": "Failed to load model: small"},
        {"uid": "bench", "message": "DISCONNECT"},
    ],
    ids=["full", "error", "overtime"],
)
def test_a_refusal_ends_the_session_once(message: dict[str, object]) -> None:
    dialect = opened()
    assert dialect.receive(server(Opcode.TEXT, json.dumps(message).encode())) == [Ended(ok=False, received=None)]
    assert [type(h) for h in dialect.receive(CLOSE)] == [Say]


def test_a_close_with_another_code_is_a_failure() -> None:
    assert Ended(ok=False, received=None) in opened().receive(server(Opcode.CLOSE, b"\x03\xf3"))
