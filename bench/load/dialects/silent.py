"""A server that takes audio and says nothing: what reading alone costs."""

from __future__ import annotations

from typing import ClassVar

from bench.load import wire
from bench.load.dialects.base import Ended, Heard, Opened, Say, WebSocketDialect
from bench.load.dialects.native import Native, NativeBase64


class Silent(WebSocketDialect):
    """Binary messages; a close frame ends it."""

    name: ClassVar[str] = "silent"
    words: ClassVar[bool] = False

    @classmethod
    def audio(cls, pcm: bytes) -> bytes:
        """One binary message."""
        return Native.audio(pcm)

    def finish(self) -> bytes:
        """A close frame."""
        return wire.frame(wire.CLOSE, (1_000).to_bytes(2))

    def receive(self, data: bytes) -> list[Heard]:
        """The handshake, pings and the end."""
        heard: list[Heard] = []
        for opcode, payload in self._reader.feed(data):
            if opcode == wire.UPGRADED:
                heard.append(Opened())
            elif opcode == wire.PING:
                heard.append(Say(wire.frame(wire.PONG, payload)))
            elif opcode == wire.CLOSE:
                heard.append(Ended(payload[:2] == (1_000).to_bytes(2)))
        return heard


class SilentBase64(Silent):
    """JSON messages, as the bridge's."""

    name: ClassVar[str] = "silent-base64"

    @classmethod
    def audio(cls, pcm: bytes) -> bytes:
        """One `audio` message."""
        return NativeBase64.audio(pcm)
