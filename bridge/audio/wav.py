"""WAV as it streams: a header, then samples.

A recorder that does not know its length writes a size that is none (0 or the largest), so such sizes mean "until the
end". Otherwise what follows the samples is no sound: tags, or the header of the next WAV where each message is a file
of its own.
"""

from __future__ import annotations

import struct
from typing import Final

from bridge.audio.formats import MAX_CHANNELS, Encoding
from bridge.audio.samples import RawSamples
from bridge.audio.sound import HIGHEST_RATE, LOWEST_RATE, NOTHING, Sound
from bridge.errors import BridgeError

ENCODINGS: Final = {
    (1, 8): Encoding.PCM_U8,
    (1, 16): Encoding.PCM_S16LE,
    (1, 24): Encoding.PCM_S24LE,
    (1, 32): Encoding.PCM_S32LE,
    (3, 32): Encoding.PCM_F32LE,
    (3, 64): Encoding.PCM_F64LE,
    (6, 8): Encoding.ALAW,
    (7, 8): Encoding.MULAW,
}
"""WAVE format tag and bits per sample (RFC 2361)."""
EXTENSIBLE: Final = 0xFFFE
UNKNOWN_SIZE: Final = 0x7FFF_0000
"""A size from here on is no size: no recorder that knows it streams two gigabytes."""
_LONGEST_FORMAT: Final = 4_096


class WavSource:
    """The samples of one WAV file, or of several in a row. Holds an incomplete header or frame."""

    def __init__(self) -> None:
        self._data = b""
        self._at = 0
        self._skip = 0  # bytes of a chunk that is of no interest
        self._left: int | None = 0  # bytes of samples to come; None: all
        self._in_data = self._finished = self._heard = False
        self._samples: RawSamples | None = None

    def push(self, data: bytes) -> None:
        """Take in one message."""
        self._data = self._data[self._at :] + data
        self._at = 0

    def finish(self) -> None:
        """No more will be pushed."""
        self._finished = True

    def read(self) -> Sound | None:
        """The next piece.

        Raises:
            BridgeError: `undecodable_audio` for a broken header, `unsupported_audio` for samples of another kind.
        """
        if self._samples is not None and (sound := self._samples.read()):
            self._heard = True
            return sound
        if self._in_data:
            return self._feed()
        if self._skip:
            step = min(self._skip, len(self._data) - self._at)
            self._skip -= step
            self._at += step
        if self._skip or not self._chunk():
            if self._finished and not self._heard and self._samples is None:
                raise BridgeError("undecodable_audio", "the WAV audio ends within its header")
            return None
        return NOTHING

    def close(self) -> None:
        """Forget what is held."""
        self._data, self._at = b"", 0
        self._samples = None
        self._in_data = False

    def _feed(self) -> Sound | None:
        """Give the samples' decoder what there is of them."""
        size = len(self._data) - self._at
        if self._left is not None:
            size = min(size, self._left)
            self._left -= size
            self._in_data = self._left > 0
        if not size:
            return None if self._in_data else NOTHING
        if self._samples is not None:
            self._samples.push(self._data[self._at : self._at + size])
        self._at += size
        return NOTHING

    def _chunk(self) -> bool:
        """Step into the next chunk; False while its header is incomplete."""
        head = self._data[self._at : self._at + 12]
        if len(head) < 8:
            return False
        name, size = struct.unpack_from("<4sI", head)
        if name in {b"RIFF", b"RF64"}:
            if len(head) < 12:
                return False
            self._at += 12
            return True
        if name == b"fmt ":
            if not 16 <= size <= _LONGEST_FORMAT:
                raise BridgeError("undecodable_audio", f"a format chunk of {size} bytes in the WAV audio is broken")
            if len(self._data) - self._at < 8 + size:
                return False
            self._samples = _samples_of(self._data[self._at + 8 : self._at + 8 + size])
            self._at += 8
            self._skip = size + size % 2
        elif name == b"data":
            if self._samples is None:
                raise BridgeError("undecodable_audio", "the WAV audio has no format chunk before its samples")
            self._at += 8
            self._in_data = True
            self._left = None if size == 0 or size >= UNKNOWN_SIZE else size + size % 2
        else:
            self._at += 8
            self._skip = size + size % 2
        return True


def _samples_of(chunk: bytes) -> RawSamples:
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == EXTENSIBLE and len(chunk) >= 26:
        (tag,) = struct.unpack_from("<H", chunk, 24)
    encoding = ENCODINGS.get((tag, bits))
    if encoding is None:
        raise BridgeError("unsupported_audio", f"WAV audio of format {tag} with {bits} bits is not supported")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE or not 1 <= channels <= MAX_CHANNELS:
        raise BridgeError("unsupported_audio", f"WAV audio of {rate} Hz and {channels} channel(s) is not supported")
    return RawSamples(encoding, rate, channels)
