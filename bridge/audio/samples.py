"""Raw samples, without container or codec: linear in every width and byte order, and G.711."""

from __future__ import annotations

from typing import Final

import numpy as np

from bridge.audio.formats import Encoding
from bridge.audio.sound import Float32, Int16, Sound, bounded, piece_frames


def _mulaw_table() -> Int16:
    """ITU-T G.711 μ-law: every code's 16-bit linear value."""
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    exponent, mantissa = (code >> 4) & 7, code & 0x0F
    magnitude = (((mantissa << 3) + 0x84) << exponent) - 0x84
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)


def _alaw_table() -> Int16:
    """ITU-T G.711 A-law: every code's 16-bit linear value."""
    code = np.arange(256, dtype=np.int32) ^ 0x55
    exponent, mantissa = (code >> 4) & 7, code & 0x0F
    magnitude = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 0x108) << np.maximum(exponent - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


_TABLES: Final = {Encoding.MULAW: _mulaw_table(), Encoding.ALAW: _alaw_table()}

TYPES: Final = {
    Encoding.PCM_S8: "i1",
    Encoding.PCM_U8: "u1",
    Encoding.PCM_S16LE: "<i2",
    Encoding.PCM_S16BE: ">i2",
    Encoding.PCM_S32LE: "<i4",
    Encoding.PCM_S32BE: ">i4",
    Encoding.PCM_F32LE: "<f4",
    Encoding.PCM_F32BE: ">f4",
    Encoding.PCM_F64LE: "<f8",
    Encoding.PCM_F64BE: ">f8",
}
"""numpy's names, where it has one."""


def linear(encoding: Encoding, data: bytes) -> Float32 | Int16:  # noqa: PLR0911 - one for each kind of sample
    """The samples of these bytes, which are whole: 16-bit integers where they are exact, floats otherwise."""
    match encoding:
        case Encoding.MULAW | Encoding.ALAW:
            return _TABLES[encoding][np.frombuffer(data, np.uint8)]
        case Encoding.PCM_S24LE | Encoding.PCM_S24BE:
            return _of_24_bits(data, big=encoding is Encoding.PCM_S24BE)
    samples = np.frombuffer(data, TYPES[encoding])
    match samples.dtype.kind, samples.itemsize:
        case "f", _:
            return bounded(samples)
        case _, 4:
            return samples.astype(np.float32) * np.float32(2**-31)
        case "u", _:
            return (samples.astype(np.int16) - 128) << 8
        case _, 1:
            return samples.astype(np.int16) << 8
    return samples.astype(np.int16, copy=False)


def _of_24_bits(data: bytes, *, big: bool) -> Float32:
    triples = np.frombuffer(data, np.uint8).reshape(-1, 3)
    upper = np.zeros((len(triples), 4), np.uint8)
    upper[:, 1:] = triples[:, ::-1] if big else triples
    return upper.view("<i4").reshape(-1).astype(np.float32) * np.float32(2**-31)


class RawSamples:
    """Samples as declared, cut into messages anywhere. Holds what was not read yet, at last an incomplete frame."""

    __slots__ = ("_at", "_channels", "_data", "_encoding", "_frame_bytes", "_piece_bytes", "_rate")

    def __init__(self, encoding: Encoding, rate: int, channels: int) -> None:
        width = encoding.width
        if width is None:
            raise ValueError(f"{encoding.value} is not an encoding of samples")
        self._encoding = encoding
        self._rate = rate
        self._channels = channels
        self._frame_bytes = width * channels
        self._piece_bytes = piece_frames(rate, channels) * self._frame_bytes
        self._data = b""
        self._at = 0

    @property
    def empty(self) -> bool:
        """Whether nothing is held."""
        return self._at == len(self._data)

    def push(self, data: bytes) -> None:
        """Take in any number of bytes."""
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    def finish(self) -> None:
        """An incomplete last frame is dropped: it is no sample."""

    def read(self) -> Sound | None:
        """The next whole frames."""
        whole = self.read_bytes(self._piece_bytes)
        return Sound(linear(self._encoding, whole).reshape(-1, self._channels), self._rate) if whole else None

    def read_bytes(self, most: int) -> bytes:
        """The same as they came, at most so many bytes; empty: nothing more for now."""
        at = self._at
        size = min(len(self._data) - at, most)
        size -= size % self._frame_bytes
        self._at = at + size
        return self._data[at : at + size]  # all of it: no copy

    def close(self) -> None:
        """Forget what is held."""
        self._data, self._at = b"", 0
