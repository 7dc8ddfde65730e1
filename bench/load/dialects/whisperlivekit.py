"""WhisperLiveKit's protocol (`/asr`, full mode): PCM16 frames, an empty one at the end, `ready_to_stop` in return.

Each message holds the whole transcript: lines of committed words, and a buffer of words that may yet change. What is
new in a line is a final, told once; the buffer is a partial, told when it changes, and bears no time. The server does
not say what audio it got.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from bench.load.dialects.base import Ended, Heard, Opened, Say, Text, WebSocketDialect
from bench.load.wire import frame

_UPGRADED, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 101, 1, 2, 8, 9, 10
_NORMAL = b"\x03\xe8"


class _Line(msgspec.Struct, gc=False):
    """`end` is a clock's: H:MM:SS.cc from the start of the session. Silence is a line without text."""

    end: str
    text: str | None = None


class _Message(msgspec.Struct, gc=False):
    """The fields that are looked at, of any message."""

    type: str = ""
    lines: tuple[_Line, ...] = ()
    buffer_transcription: str = ""
    error: str = ""


class WhisperLiveKit(WebSocketDialect):
    """One session with a WhisperLiveKit server."""

    name: ClassVar[str] = "whisperlivekit"
    _decoder: ClassVar = msgspec.json.Decoder(_Message)

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[int] = []  # how many characters of each have been told
        self._partial = ""
        self._ended = False

    @classmethod
    def audio(cls, pcm: bytes) -> bytes:
        """The frame as it is."""
        return frame(_BINARY, pcm)

    def finish(self) -> bytes:
        """The empty frame."""
        return frame(_BINARY, b"")

    def receive(self, data: bytes) -> list[Heard]:
        """What the server's bytes say."""
        heard: list[Heard] = []
        for opcode, payload in self._reader.feed(data):
            if opcode == _TEXT:
                self._message(self._decoder.decode(payload), heard)
            elif opcode == _PING:
                heard.append(Say(frame(_PONG, payload)))
            elif opcode == _CLOSE:
                if not self._ended:  # else it answers the close of `ready_to_stop`
                    heard.append(Say(frame(_CLOSE, payload[:2])))
                self._end(False, heard)
        return heard

    def _message(self, message: _Message, heard: list[Heard]) -> None:
        if message.type == "config":
            heard.append(Opened())
        elif message.type == "ready_to_stop":
            heard.append(Say(frame(_CLOSE, _NORMAL)))
            self._end(True, heard)
        elif message.error:
            self._end(False, heard)
        self._lines += [0] * (len(message.lines) - len(self._lines))
        for number, line in enumerate(message.lines):
            if line.text and len(line.text) > self._lines[number]:
                heard.append(Text(line.text[self._lines[number] :].strip(), _seconds(line.end), True))
                self._lines[number] = len(line.text)
        partial = message.buffer_transcription.strip()
        if partial and partial != self._partial:
            heard.append(Text(partial, None, False))
        self._partial = partial

    def _end(self, ok: bool, heard: list[Heard]) -> None:
        if not self._ended:
            self._ended = True
            heard.append(Ended(ok, None))


def _seconds(clock: str) -> float:
    hours, minutes, seconds = clock.split(":")
    return int(hours) * 3_600 + int(minutes) * 60 + float(seconds)
