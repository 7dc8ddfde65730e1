"""The bridge's own protocol: audio as binary messages, or as base64 in JSON."""

from __future__ import annotations

import base64
from typing import ClassVar

import msgspec

from bench.load import wire
from bench.load.dialects.base import Ended, Heard, Opened, Say, Text, WebSocketDialect


class _Message(msgspec.Struct):
    """The fields that are looked at, of any message."""

    type: str
    text: str = ""
    end: float = 0.0
    code: str = ""
    received: int = 0
    backend: str = ""


_decoder = msgspec.json.Decoder(_Message)


class Native(WebSocketDialect):
    """Binary messages."""

    name: ClassVar[str] = "native"
    start: ClassVar[bytes] = wire.frame(wire.TEXT, b'{"type":"start","encoding":"pcm_s16le","words":false}')

    @classmethod
    def audio(cls, pcm: bytes) -> bytes:
        """One binary message."""
        return wire.frame(wire.BINARY, pcm)

    def finish(self) -> bytes:
        """`stop`."""
        return wire.frame(wire.TEXT, b'{"type":"stop"}')

    def receive(self, data: bytes) -> list[Heard]:
        """Messages of docs/protocol.md."""
        heard: list[Heard] = []
        for opcode, payload in self._reader.feed(data):
            if opcode == wire.TEXT:
                self._take(_decoder.decode(payload), heard)
            elif opcode == wire.UPGRADED:
                heard.append(Say(self.start))
            elif opcode == wire.PING:
                heard.append(Say(wire.frame(wire.PONG, payload)))
            elif opcode == wire.CLOSE:
                heard.append(Say(wire.frame(wire.CLOSE, payload[:2])))
        return heard

    @staticmethod
    def _take(message: _Message, heard: list[Heard]) -> None:
        match message.type:
            case "partial" | "final":
                heard.append(Text(message.text, message.end, message.type == "final"))
            case "ready":
                heard.append(Opened(message.backend))
            case "closed":
                heard.append(Ended(message.code == "stopped", message.received, message.code))


class NativeBase64(Native):
    """JSON messages."""

    name: ClassVar[str] = "native-base64"

    @classmethod
    def audio(cls, pcm: bytes) -> bytes:
        """One `audio` message."""
        return wire.frame(wire.TEXT, b'{"type":"audio","data":"%s"}' % base64.b64encode(pcm))
