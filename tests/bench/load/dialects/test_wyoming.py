"""What its dialect makes of a Wyoming server's bytes (recorded from wyoming 1.10.2), and what it sends."""

from __future__ import annotations

import json
from typing import Any

from bench.load.dialects.base import Ended, Heard, Opened, Say, Text
from bench.load.dialects.wyoming import Wyoming

INFO = b'{"type": "info", "version": "1.10.2", "data_length": 37}\n{"asr": [{"name": "faster-whisper"}]}'
START = b'{"type": "transcript-start", "version": "1.10.2", "data_length": 18}\n{"language": "en"}'
ONE = b'{"type": "transcript-chunk", "version": "1.10.2", "data_length": 15}\n{"text": "one"}'
TWO = b'{"type": "transcript-chunk", "version": "1.10.2", "data_length": 16}\n{"text": " two"}'
TRANSCRIPT = b'{"type": "transcript", "version": "1.10.2", "data_length": 19}\n{"text": "one two"}'
STOP = b'{"type": "transcript-stop", "version": "1.10.2"}\n'


def events(data: bytes) -> list[tuple[str, dict[str, Any], bytes]]:
    """Type, data and payload of each event, by the protocol's own lengths."""
    found = []
    while data:
        line, _, rest = data.partition(b"\n")
        head = json.loads(line)
        size, more = head.get("data_length", 0), head.get("payload_length", 0)
        found.append((head["type"], json.loads(rest[:size] or b"{}"), rest[size : size + more]))
        data = rest[size + more :]
    return found


def test_it_asks_who_is_there_and_then_opens() -> None:
    dialect = Wyoming()
    assert events(dialect.hello("127.0.0.1", 10_300, "/")) == [("describe", {}, b"")]
    said, opened = dialect.receive(INFO)
    assert isinstance(said, Say)
    assert [kind for kind, _, _ in events(said.data)] == ["transcribe", "audio-start"]
    assert opened == Opened()


def test_audio_goes_as_it_is_after_its_format() -> None:
    pcm = bytes(range(200)) * 16
    assert events(Wyoming.audio(pcm)) == [
        ("audio-chunk", {"rate": 16_000, "width": 2, "channels": 1, "timestamp": None}, pcm)
    ]


def test_chunks_add_up_and_the_transcript_is_final() -> None:
    dialect = Wyoming()
    assert dialect.receive(START) == []
    assert dialect.receive(ONE + TWO) == [Text("one", None, False), Text("one two", None, False)]
    assert [kind for kind, _, _ in events(dialect.finish())] == ["audio-stop"]
    assert dialect.receive(TRANSCRIPT) == [Text("one two", None, True)]
    assert dialect.receive(STOP) == [Ended(ok=True, received=None)]


def test_without_chunks_the_transcript_is_the_end() -> None:
    assert Wyoming().receive(TRANSCRIPT) == [Text("one two", None, True), Ended(ok=True, received=None)]


def test_bytes_may_come_one_by_one() -> None:
    dialect, heard = Wyoming(), list[Heard]()
    for byte in INFO + START + ONE + TWO + TRANSCRIPT + STOP:
        heard += dialect.receive(bytes([byte]))
    assert [type(h) for h in heard] == [Say, Opened, Text, Text, Text, Ended]


def test_data_may_stand_in_the_line_and_a_payload_is_stepped_over() -> None:
    odd = b'{"type": "odd", "payload_length": 3}\nabc'
    assert Wyoming().receive(odd + b'{"type": "transcript", "data": {"text": "one"}}\n')[0] == Text("one", None, True)


def test_an_error_ends_the_session() -> None:
    assert Wyoming().receive(b'{"type": "error", "data": {"text": "no"}}\n') == [Ended(ok=False, received=None)]
