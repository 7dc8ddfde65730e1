"""The Wyoming protocol, as Home Assistant speaks it: `describe`, `transcribe`, `audio-start`, chunks, `audio-stop`.

An event is a line of JSON that tells the lengths of what follows it: data (JSON) and a payload (audio). The answer to
`describe` opens the session, for nothing else would be answered before the text.

Text on the way (`transcript-chunk`) only ever grows and bears no time; the partial told here is all of it so far. The
one final is the last transcript. No event says what audio it covers, or how much the server got.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Final

import msgspec

from bench.load.dialects.base import Dialect, Ended, Heard, Opened, Say, Text

_FORMAT: Final = {"rate": 16_000, "width": 2, "channels": 1, "timestamp": None}


class _Head(msgspec.Struct, gc=False):
    """The line of an event; its data may stand in it, too."""

    type: str
    data: dict[str, Any] = {}
    data_length: int | None = None
    payload_length: int | None = None


def _event(kind: str, data: dict[str, Any], payload: bytes = b"") -> bytes:
    """As the package `wyoming` 1.10.2 writes it."""
    head: dict[str, Any] = {"type": kind, "version": "1.10.2"}
    body = json.dumps(data).encode() if data else b""
    if body:
        head["data_length"] = len(body)
    if payload:
        head["payload_length"] = len(payload)
    return json.dumps(head).encode() + b"\n" + body + payload


class Wyoming(Dialect):
    """One utterance with a Wyoming server: it hangs up after the transcript."""

    name: ClassVar[str] = "wyoming"
    _heads: ClassVar = msgspec.json.Decoder(_Head)

    def __init__(self) -> None:
        self._held = b""
        self._told = ""
        self._streaming = False

    def hello(self, host: str, port: int, path: str, key: str = "") -> bytes:  # noqa: ARG002  # bare TCP has no path
        """The question who is there."""
        return _event("describe", {})

    @classmethod
    def audio(cls, pcm: bytes) -> bytes:
        """The frame as an `audio-chunk`."""
        return _event("audio-chunk", _FORMAT, pcm)

    def finish(self) -> bytes:
        """The end, upon which the transcript is due."""
        return _event("audio-stop", {"timestamp": None})

    def receive(self, data: bytes) -> list[Heard]:
        """What the server's bytes say."""
        self._held += data
        heard: list[Heard] = []
        while (event := self._next()) is not None:
            self._take(*event, heard)
        return heard

    def _next(self) -> tuple[str, dict[str, Any]] | None:
        """The next whole event: its type and its data."""
        line, found, rest = self._held.partition(b"\n")
        if not found:
            return None
        head = self._heads.decode(line)
        size = head.data_length or 0
        whole = size + (head.payload_length or 0)
        if len(rest) < whole:
            return None
        self._held = rest[whole:]
        return head.type, head.data | msgspec.json.decode(rest[:size]) if size else head.data

    def _take(self, kind: str, data: dict[str, Any], heard: list[Heard]) -> None:
        if kind == "info":
            begin = _event("transcribe", {"language": "en"}) + _event("audio-start", _FORMAT)
            heard.extend((Say(begin), Opened()))
        elif kind == "transcript-start":
            self._streaming = True
        elif kind == "transcript-chunk":
            self._told += data["text"]
            heard.append(Text(self._told.strip(), None, False))
        elif kind == "transcript":
            heard.append(Text(data["text"], None, True))
            if not self._streaming:
                heard.append(Ended(True, None))
        elif kind == "transcript-stop":
            heard.append(Ended(True, None))
        elif kind == "error":
            heard.append(Ended(False, None))
