"""What a client may say its audio is: encoding, sample rate, channels."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from bridge.errors import BridgeError

MIN_RATE: Final = 8_000
MAX_RATE: Final = 192_000
MAX_CHANNELS: Final = 8


class Encoding(enum.Enum):
    """How audio is written; the value is the name on the wire."""

    AUTO = "auto"
    """Known by its first bytes; what begins like no known container is `PCM_S16LE`."""

    PCM_S8 = "pcm_s8"
    PCM_U8 = "pcm_u8"
    PCM_S16LE = "pcm_s16le"
    PCM_S16BE = "pcm_s16be"
    PCM_S24LE = "pcm_s24le"
    PCM_S24BE = "pcm_s24be"
    PCM_S32LE = "pcm_s32le"
    PCM_S32BE = "pcm_s32be"
    PCM_F32LE = "pcm_f32le"
    PCM_F32BE = "pcm_f32be"
    PCM_F64LE = "pcm_f64le"
    PCM_F64BE = "pcm_f64be"
    MULAW = "mulaw"
    ALAW = "alaw"

    G722 = "g722"
    AMR_NB = "amr_nb"
    AMR_WB = "amr_wb"
    OPUS = "opus"
    """Packets of RFC 6716 without a container, one in each message."""

    OGG = "ogg"
    WEBM = "webm"
    FLAC = "flac"
    MP3 = "mp3"
    AAC = "aac"
    """AAC in ADTS frames."""
    MP4 = "mp4"
    """Fragmented, or with its index in front."""
    WAV = "wav"

    # Each member is itself alone. What enumerations have is written in Python, and asked for at every frame.
    __hash__ = object.__hash__

    @property
    def width(self) -> int | None:
        """Bytes of one sample of one channel; None for coded audio and `AUTO`."""
        return _WIDTHS.get(self)


_WIDTHS: Final = {
    Encoding.PCM_S8: 1,
    Encoding.PCM_U8: 1,
    Encoding.PCM_S16LE: 2,
    Encoding.PCM_S16BE: 2,
    Encoding.PCM_S24LE: 3,
    Encoding.PCM_S24BE: 3,
    Encoding.PCM_S32LE: 4,
    Encoding.PCM_S32BE: 4,
    Encoding.PCM_F32LE: 4,
    Encoding.PCM_F32BE: 4,
    Encoding.PCM_F64LE: 8,
    Encoding.PCM_F64BE: 8,
    Encoding.MULAW: 1,
    Encoding.ALAW: 1,
}

# Names of other servers, SDKs, FFmpeg and RTP. Case does not matter, nor whether words are joined by - or _.
_ALIASES: Final = {
    "s8": Encoding.PCM_S8,
    "u8": Encoding.PCM_U8,
    "linear16": Encoding.PCM_S16LE,
    "pcm": Encoding.PCM_S16LE,
    "pcm16": Encoding.PCM_S16LE,
    "s16le": Encoding.PCM_S16LE,
    "s16be": Encoding.PCM_S16BE,
    "s24le": Encoding.PCM_S24LE,
    "s24be": Encoding.PCM_S24BE,
    "linear32": Encoding.PCM_S32LE,
    "s32le": Encoding.PCM_S32LE,
    "s32be": Encoding.PCM_S32BE,
    "float32": Encoding.PCM_F32LE,
    "f32le": Encoding.PCM_F32LE,
    "f32be": Encoding.PCM_F32BE,
    "float64": Encoding.PCM_F64LE,
    "f64le": Encoding.PCM_F64LE,
    "f64be": Encoding.PCM_F64BE,
    "ulaw": Encoding.MULAW,
    "pcm_mulaw": Encoding.MULAW,
    "pcmu": Encoding.MULAW,
    "pcm_alaw": Encoding.ALAW,
    "pcma": Encoding.ALAW,
    "amr": Encoding.AMR_NB,
    "amrnb": Encoding.AMR_NB,
    "amrwb": Encoding.AMR_WB,
    "ogg_opus": Encoding.OGG,
    "ogg_vorbis": Encoding.OGG,
    "webm_opus": Encoding.WEBM,
    "adts": Encoding.AAC,
    "m4a": Encoding.MP4,
    "wave": Encoding.WAV,
}


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """The declared format of a stream.

    A frame is one sample of every channel, interleaved. Coded audio says itself what it is: there `sample_rate` is the
    unit in which positions are counted, and `channels` what is expected.
    """

    encoding: Encoding = Encoding.AUTO
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
        """Bytes of one frame; 1 for coded audio, which may be cut anywhere. `AUTO` counts as `PCM_S16LE`."""
        if self.encoding is Encoding.AUTO:
            return 2 * self.channels
        width = self.encoding.width
        return 1 if width is None else width * self.channels

    @classmethod
    def parse(cls, encoding: str, sample_rate: int, channels: int) -> AudioFormat:
        """The format of these wire values.

        Raises:
            BridgeError: `unsupported_audio`, naming what was given and what is allowed.
        """
        key = encoding.lower().replace("-", "_")
        known = _ALIASES.get(key)
        if known is None:
            try:
                known = Encoding(key)
            except ValueError:
                allowed = ", ".join(e.value for e in Encoding)
                raise BridgeError("unsupported_audio", f"encoding {encoding[:40]!r} is not one of {allowed}") from None
        return cls(known, sample_rate, channels)
