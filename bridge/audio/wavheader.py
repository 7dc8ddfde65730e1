"""A WAV header in front of raw audio: the commonest mistake of a first integration, so it is understood.

Only the first message is looked at. A header that agrees with the declared format is skipped; one that contradicts it
is refused, because its samples would be heard at the wrong speed or as noise.
"""

from __future__ import annotations

import struct

from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError

_TAGS = {
    (1, 16): Encoding.PCM_S16LE,
    (3, 32): Encoding.PCM_F32LE,
    (6, 8): Encoding.ALAW,
    (7, 8): Encoding.MULAW,
}
"""WAVE format tag and bits per sample (RFC 2361)."""


def strip_wav_header(data: bytes, declared: AudioFormat) -> bytes:
    """`data` without its WAV header; `data` itself where it has none.

    Sizes in the header are not believed: they are only used to step from chunk to chunk within `data`.

    Raises:
        BridgeError: `bad_audio` for a broken header, `unsupported_audio` for one that contradicts `declared`.
    """
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return data
    position, found = 12, None
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        body = position + 8
        if name == b"fmt " and size >= 16 and body + 16 <= len(data):
            tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data, body)
            found = (_TAGS.get((tag, bits)), channels, rate)
        elif name == b"data":
            _compare(found, declared)
            return data[body:]
        position = body + size + size % 2
    raise BridgeError("bad_audio", "the audio begins with a WAV header that has no data chunk in its first message")


def _compare(found: tuple[Encoding | None, int, int] | None, declared: AudioFormat) -> None:
    if found is None:
        raise BridgeError("bad_audio", "the audio begins with a WAV header that has no format chunk")
    encoding, channels, rate = found
    if found != (declared.encoding, declared.channels, declared.sample_rate):
        name = encoding.value if encoding else "an encoding that is not supported"
        raise BridgeError(
            "unsupported_audio",
            f"the audio begins with a WAV header that says {name}, {rate} Hz, {channels} channels, but `start` said "
            f"{declared.encoding.value}, {declared.sample_rate} Hz, {declared.channels} channels",
        )
