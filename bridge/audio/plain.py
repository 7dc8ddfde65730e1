"""Files of samples without a codec: WAV as nearly all recorders write it, and raw ones. No FFmpeg is needed for them.

A WAV file that is anything else than usual is not for this module: it knows the shape that it can read at any place,
and says of every other that it does not.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from bridge.audio.decoded import HIGHEST_SENT_RATE
from bridge.audio.formats import MAX_CHANNELS, MAX_RATE, MIN_RATE, AudioFormat, Encoding
from bridge.audio.lanes import LaneWriter
from bridge.audio.samples import linear
from bridge.audio.sound import Sound
from bridge.audio.wav import ENCODINGS, EXTENSIBLE, UNKNOWN_SIZE

HEAD_BYTES: Final = 65_536
"""The samples of a usual file begin within so many bytes."""


@dataclass(frozen=True, slots=True)
class Plain:
    """Where the samples of a file lie, and what they are."""

    audio: AudioFormat
    start: int
    """The first byte of them."""
    size: int
    """Bytes of whole frames; as many as the file has, if the header claims more."""

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.size / self.audio.frame_bytes / self.audio.sample_rate

    @property
    def rate(self) -> int:
        """Of what comes out."""
        return min(self.audio.sample_rate, HIGHEST_SENT_RATE)

    @property
    def ready(self) -> bool:
        """Whether the samples are what is wanted, as they stand."""
        audio = self.audio
        return audio.encoding is Encoding.PCM_S16LE and audio.channels == 1 and audio.sample_rate == self.rate


def raw_samples(audio: AudioFormat, start: int, size: int) -> Plain:
    """A file of this size that has samples of that format from this byte on."""
    left = max(0, size - start)
    return Plain(audio, start, left - left % audio.frame_bytes)


def wav_samples(head: bytes, size: int) -> Plain | None:
    """The samples of a usual WAV file of this size that begins so; None for everything else."""
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    at, audio = 12, None
    while at + 8 <= len(head):
        name, length = struct.unpack_from("<4sI", head, at)
        body = at + 8
        if name == b"data":
            if audio is None:
                return None
            left = size - body
            if 0 < length < UNKNOWN_SIZE:
                left = min(left, length)
            return Plain(audio, body, left - left % audio.frame_bytes)
        if name == b"fmt ":
            if length < 16 or body + length > len(head):
                return None
            audio = _format(head[body : body + length])
            if audio is None:
                return None
        at = body + length + length % 2
    return None


def _format(chunk: bytes) -> AudioFormat | None:
    tag, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == EXTENSIBLE and len(chunk) >= 26:
        (tag,) = struct.unpack_from("<H", chunk, 24)
    encoding = ENCODINGS.get((tag, bits))
    if encoding is None or not MIN_RATE <= rate <= MAX_RATE or not 1 <= channels <= MAX_CHANNELS:
        return None
    audio = AudioFormat(encoding, rate, channels)
    return audio if align == audio.frame_bytes else None


class PlainConverter:
    """Whole frames of a plain file, in order, to PCM16 mono at its `rate`."""

    def __init__(self, plain: Plain) -> None:
        self._audio = plain.audio
        self._lanes = LaneWriter(plain.rate)

    def convert(self, data: bytes) -> bytes:
        """What is complete after these frames."""
        samples = linear(self._audio.encoding, data).reshape(-1, self._audio.channels)
        return self._lanes.write(Sound(samples, self._audio.sample_rate))[0]

    def tail(self) -> bytes:
        """What the resampler still holds."""
        return self._lanes.tail()[0]
