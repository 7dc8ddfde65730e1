"""What a client may say its audio is: encoding, sample rate, channels."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from bridge.errors import BridgeError

MIN_RATE: Final = 8_000
MAX_RATE: Final = 48_000
MAX_CHANNELS: Final = 8


class Encoding(enum.Enum):
    """How one sample is written; the value is the name on the wire."""

    PCM_S16LE = "pcm_s16le"
    PCM_F32LE = "pcm_f32le"
    MULAW = "mulaw"
    ALAW = "alaw"

    @property
    def width(self) -> int:
        """Bytes of one sample of one channel."""
        return _WIDTHS[self]


_WIDTHS: Final = {Encoding.PCM_S16LE: 2, Encoding.PCM_F32LE: 4, Encoding.MULAW: 1, Encoding.ALAW: 1}

_ALIASES: Final = {
    "linear16": Encoding.PCM_S16LE,
    "pcm16": Encoding.PCM_S16LE,
    "s16le": Encoding.PCM_S16LE,
    "float32": Encoding.PCM_F32LE,
    "f32le": Encoding.PCM_F32LE,
    "ulaw": Encoding.MULAW,
    "pcmu": Encoding.MULAW,
    "pcma": Encoding.ALAW,
}


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """The declared format of a stream. A frame is one sample of every channel, interleaved."""

    encoding: Encoding = Encoding.PCM_S16LE
    sample_rate: int = 16_000
    channels: int = 1

    def __post_init__(self) -> None:
        if not MIN_RATE <= self.sample_rate <= MAX_RATE:
            raise BridgeError(
                "unsupported_audio", f"sample_rate {self.sample_rate} is outside {MIN_RATE} to {MAX_RATE} Hz"
            )
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise BridgeError("unsupported_audio", f"channels {self.channels} is outside 1 to {MAX_CHANNELS}")

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.encoding.width * self.channels

    @classmethod
    def parse(cls, encoding: str, sample_rate: int, channels: int) -> AudioFormat:
        """The format of these wire values.

        Raises:
            BridgeError: `unsupported_audio`, naming what was given and what is allowed.
        """
        key = encoding.lower()
        known = _ALIASES.get(key)
        if known is None:
            try:
                known = Encoding(key)
            except ValueError:
                allowed = ", ".join(e.value for e in Encoding)
                raise BridgeError("unsupported_audio", f"encoding {encoding[:40]!r} is not one of {allowed}") from None
        return cls(known, sample_rate, channels)
