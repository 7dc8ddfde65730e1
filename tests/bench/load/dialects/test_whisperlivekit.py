"""What its dialect makes of a WhisperLiveKit server's bytes (recorded from version 0.2.26), and what it sends."""

from __future__ import annotations

import json

from websockets.frames import Opcode

from bench.load.dialects.base import Ended, Heard, Opened, Say, Text
from bench.load.dialects.whisperlivekit import WhisperLiveKit
from tests.bench.load.dialects.frames import sent, server

SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: 5q+r2/HC2AZkMrUFWnWpORm/J2I=\r\ndate: Sun, 22 Nov 2026 04:21:03 GMT\r\n"
    b"server: uvicorn\r\n\r\n"
)
CONFIG = b'\x816{"type":"config","useAudioWorklet":true,"mode":"full"}'
HEARD = (
    b'\x81~\x01\x12{"status":"active_transcription","lines":[],"buffer_transcription":" one","buffer_diarization":"",'
    b'"buffer_translation":"","remaining_time_transcription":0,"remaining_time_transcription_processing":0.0,'
    b'"remaining_time_transcription_policy":0.5,"remaining_time_diarization":0}'
)
COMMITTED = (
    b'\x81~\x01Q{"status":"active_transcription","lines":[{"speaker":1,"text":" one","start":"0:00:00.00",'
    b'"end":"0:00:00.50"}],"buffer_transcription":"","buffer_diarization":"","buffer_translation":"",'
    b'"remaining_time_transcription":0,"remaining_time_transcription_processing":0.0,'
    b'"remaining_time_transcription_policy":0.1,"remaining_time_diarization":0}'
)
LAST = b'\x81\x18{"type":"ready_to_stop"}'
CLOSE = b"\x88\x02\x03\xe8"


def opened() -> WhisperLiveKit:
    """A session that the server has accepted."""
    dialect = WhisperLiveKit()
    assert dialect.receive(SWITCHED + CONFIG) == [Opened()]
    return dialect


def lines(*told: tuple[str | None, str]) -> bytes:
    """A message with such lines."""
    message = {"lines": [{"text": text, "end": end} for text, end in told], "buffer_transcription": ""}
    return server(Opcode.TEXT, json.dumps(message).encode())


def test_a_word_is_partial_and_then_final_and_told_once() -> None:
    dialect = opened()
    assert dialect.receive(HEARD + HEARD) == [Text("one", None, False)]
    assert dialect.receive(COMMITTED + COMMITTED) == [Text("one", 0.5, True)]


def test_what_is_new_in_a_line_is_final() -> None:
    dialect = opened()
    dialect.receive(COMMITTED)
    assert dialect.receive(lines((" one two three", "0:01:01.50"))) == [Text("two three", 61.5, True)]


def test_silence_is_a_line_that_says_nothing() -> None:
    dialect = opened()
    told = dialect.receive(lines((" one", "0:00:00.50"), (None, "0:00:09.00"), (" two", "1:00:00.00")))
    assert told == [Text("one", 0.5, True), Text("two", 3_600.0, True)]


def test_the_end_is_asked_for_by_an_empty_frame_and_the_client_hangs_up() -> None:
    dialect = opened()
    assert sent(dialect.finish()) == (Opcode.BINARY, b"")
    said, ended = dialect.receive(LAST)
    assert isinstance(said, Say)
    assert sent(said.data) == (Opcode.CLOSE, b"\x03\xe8")
    assert ended == Ended(ok=True, received=None)
    assert dialect.receive(CLOSE) == []


def test_a_close_before_that_is_a_failure() -> None:
    reply, ended = opened().receive(CLOSE)
    assert isinstance(reply, Say)
    assert ended == Ended(ok=False, received=None)


def test_an_error_is_a_failure() -> None:
    assert opened().receive(server(Opcode.TEXT, b'{"type":"error","error":"no"}')) == [Ended(ok=False, received=None)]


def test_audio_is_sent_as_it_is() -> None:
    assert sent(WhisperLiveKit.audio(b"\x01\x02" * 1_600)) == (Opcode.BINARY, b"\x01\x02" * 1_600)


def test_bytes_may_come_one_by_one() -> None:
    dialect, heard = WhisperLiveKit(), list[Heard]()
    for byte in SWITCHED + CONFIG + HEARD + COMMITTED + server(Opcode.PING, b"1") + LAST:
        heard += dialect.receive(bytes([byte]))
    assert [type(h) for h in heard] == [Opened, Text, Text, Say, Say, Ended]
