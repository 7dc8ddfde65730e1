"""WhisperLive's protocol, as its own client speaks it: JSON options, then 16 kHz float32 frames, `END_OF_AUDIO`.

The server repeats its last ten segments with each message, some ten times a second. A segment that is `completed` is a
final, told once; the last one that is not is a partial, told when it has changed. The server does not say what audio
it got, and finalizes nothing at the end: it hangs up.
"""

from __future__ import annotations

import json
from typing import ClassVar, Final

import msgspec
import numpy as np

from bench.load.dialects.base import Ended, Heard, Opened, Say, Text, WebSocketDialect
from bench.load.wire import frame

_UPGRADED, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 101, 1, 2, 8, 9, 10
_NORMAL: Final = b"\x03\xe8"

_OPTIONS: Final = {
    "uid": "bench",
    "language": "en",
    "task": "transcribe",
    "model": "small",
    "use_vad": True,
    "send_last_n_segments": 10,
    "no_speech_thresh": 0.45,
    "clip_audio": False,
    "same_output_threshold": 10,
    "enable_translation": False,
    "target_language": "fr",
    "hotwords": None,
    "enable_diarization": False,
    "word_timestamps": False,
}
"""What decides how the server works is its client's default; the language is given, or it would look for one."""


class _Segment(msgspec.Struct, gc=False):
    """Times are decimal numbers in strings: seconds from the start of the session."""

    end: str
    text: str
    completed: bool


class _Message(msgspec.Struct, gc=False):
    """The fields that are looked at, of any message."""

    segments: tuple[_Segment, ...] = ()
    message: str | float = ""
    status: str = ""


class WhisperLive(WebSocketDialect):
    """One session with a WhisperLive server."""

    name: ClassVar[str] = "whisper-live"
    _decoder: ClassVar = msgspec.json.Decoder(_Message)

    def __init__(self) -> None:
        super().__init__()
        self._finalized = 0.0
        self._partial = ("", "")
        self._ended = False

    @classmethod
    def audio(cls, pcm: bytes) -> bytes:
        """The frame as its client sends it: float32, twice the bytes."""
        return frame(_BINARY, (np.frombuffer(pcm, "<i2").astype("<f4") / 32_768).tobytes())

    def finish(self) -> bytes:
        """The server hangs up when it reads this: whatever it has not told by then, it never tells."""
        return frame(_BINARY, b"END_OF_AUDIO")

    def receive(self, data: bytes) -> list[Heard]:
        """What the server's bytes say."""
        heard: list[Heard] = []
        for opcode, payload in self._reader.feed(data):
            if opcode == _TEXT:
                self._message(self._decoder.decode(payload), heard)
            elif opcode == _UPGRADED:
                heard.append(Say(frame(_TEXT, json.dumps(_OPTIONS).encode())))
            elif opcode == _PING:
                heard.append(Say(frame(_PONG, payload)))
            elif opcode == _CLOSE:
                heard.append(Say(frame(_CLOSE, payload[:2])))
                self._end(payload[:2] == _NORMAL, heard)
        return heard

    def _message(self, message: _Message, heard: list[Heard]) -> None:
        if message.message == "SERVER_READY":
            heard.append(Opened())
        elif message.status in ("WAIT", "ERROR") or message.message == "DISCONNECT":
            self._end(False, heard)  # full, broken, or connected for too long
        for segment in message.segments:
            if not segment.completed:
                if (segment.text, segment.end) != self._partial:
                    self._partial = (segment.text, segment.end)
                    heard.append(Text(segment.text.strip(), float(segment.end), False))
            elif (end := float(segment.end)) > self._finalized:
                self._finalized = end
                heard.append(Text(segment.text.strip(), end, True))

    def _end(self, ok: bool, heard: list[Heard]) -> None:
        if not self._ended:
            self._ended = True
            heard.append(Ended(ok, None))
