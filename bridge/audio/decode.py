"""Declared audio to PCM16 mono at the engine's rate, as it streams.

Length is exact: after `finish`, n input frames have become round(n * target / rate) samples, however the
input was cut into messages, and the samples themselves do not depend on the cutting either.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import soxr

from bridge.audio.formats import AudioFormat, Encoding

Int16 = npt.NDArray[np.int16]
Float32 = npt.NDArray[np.float32]


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


class StreamDecoder:
    """Decodes one stream. Holds at most one incomplete frame and the resampler's window.

    `frames` counts the whole frames taken in so far, at the client's rate.
    """

    def __init__(self, audio: AudioFormat, target_rate: int) -> None:
        self.frames = 0
        self._format = audio
        self._rate = target_rate
        self._rest = b""
        self._emitted = 0
        self._passthrough = (
            audio.encoding is Encoding.PCM_S16LE and audio.channels == 1 and audio.sample_rate == target_rate
        )
        self._resampler = self._make_resampler()

    def decode(self, data: bytes) -> bytes:
        """The PCM16 that is complete after these bytes; may be empty."""
        size = self._format.frame_bytes
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if extra := len(data) % size:
            self._rest = data[-extra:]
            data = data[:-extra]
        if not data:
            return b""
        self.frames += len(data) // size
        if self._passthrough:
            return data
        mono = self._mono(data)
        if self._resampler is not None:
            mono = self._resampler.resample_chunk(mono)
        return self._pcm16(mono)

    def finish(self) -> bytes:
        """What the resampler still holds. An incomplete last frame is dropped: it is no sample."""
        if self._resampler is None or not self.frames:
            return b""
        tail = self._resampler.resample_chunk(np.empty(0, np.float32), last=True)
        missing = round(self.frames * self._rate / self._format.sample_rate) - self._emitted
        if len(tail) < missing:
            tail = np.pad(tail, (0, missing - len(tail)))
        return self._pcm16(tail[:missing] if missing > 0 else tail[:0])

    def flush(self) -> bytes:
        """What the resampler still holds, so that a word is whole where the engine is to finalize it; goes on.

        The resampler begins anew after it: call it where speech pauses, not for every message.
        """
        tail = self.finish()
        self._resampler = self._make_resampler()
        return tail

    def _make_resampler(self) -> soxr.ResampleStream | None:
        if self._format.sample_rate == self._rate:
            return None
        return soxr.ResampleStream(self._format.sample_rate, self._rate, 1, dtype="float32", quality="HQ")

    def _mono(self, data: bytes) -> Float32:
        """All channels' mean, full scale 1.0."""
        encoding = self._format.encoding
        if encoding is Encoding.PCM_F32LE:
            samples = np.frombuffer(data, "<f4")
            # What is not a number is no sound. Beyond full scale it is clipped here: the largest floats would
            # overflow in the mean and in the resampler.
            samples = np.clip(np.nan_to_num(samples, nan=0.0), -1.0, 1.0)
        elif encoding is Encoding.PCM_S16LE:
            samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
        else:
            samples = _TABLES[encoding][np.frombuffer(data, np.uint8)].astype(np.float32) / 32768
        if self._format.channels > 1:
            return np.asarray(samples.reshape(-1, self._format.channels).mean(axis=1), np.float32)
        return np.asarray(samples, np.float32)

    def _pcm16(self, mono: Float32) -> bytes:
        self._emitted += len(mono)
        return np.clip(np.rint(mono * 32768), -32768, 32767).astype("<i2").tobytes()
