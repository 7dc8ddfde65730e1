"""Sound of any rate and any number of channels to PCM16 at the engine's rate: mixed down, or a lane for each channel.

Length is exact: n frames at one rate become round(n * target / rate) samples once the tail is given, however they were
cut into pieces, and the samples themselves do not depend on the cutting either.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import soxr

from bridge.audio.sound import Float32, Int16, Sound
from bridge.errors import BridgeError

Lanes = tuple[bytes, ...]
"""PCM16 of each lane, little-endian; all of one length."""

QUALITY: Final = "HQ"
"""soxr's: what would fold back into the engine's band is 100 dB down."""


class LaneWriter:
    """Writes one stream's lanes. Holds the resampler's window."""

    def __init__(self, target_rate: int, lanes: int = 1) -> None:
        self._target = target_rate
        self._lanes = lanes
        self._rate = target_rate
        self._taken = 0  # frames at `_rate`, since the rate was this
        self._given = 0  # samples at the target for them
        self._resampler: soxr.ResampleStream | None = None
        self.empty: Final[Lanes] = (b"",) * lanes

    def write(self, sound: Sound) -> Lanes:
        """The samples that are complete after this piece.

        Raises:
            BridgeError: `unsupported_audio`: it has another number of channels than there are lanes.
        """
        tail = self.empty
        if sound.rate != self._rate:
            tail = self.tail()
            self._rate, self._taken, self._given = sound.rate, 0, 0
        samples = self._arranged(sound.samples)
        self._taken += len(samples)
        if self._rate != self._target:
            samples = self._resampled(samples)
        written = self._pcm16(samples)
        return tuple(map(bytes.__add__, tail, written)) if tail is not self.empty else written

    def close(self) -> None:
        """Give the resampler's memory back, a megabyte for odd rates."""
        self._resampler = None

    def tail(self) -> Lanes:
        """What the resampler still holds. It begins anew after it: ask where the sound ends or pauses."""
        if self._resampler is None:
            return self.empty
        rest: Float32 = self._resampler.resample_chunk(self._nothing(), last=True)
        self._resampler = None
        missing = max(0, round(self._taken * self._target / self._rate) - self._given)
        if len(rest) < missing:
            rest = np.concatenate((rest, np.zeros((missing - len(rest), *rest.shape[1:]), np.float32)))
        return self._pcm16(rest[:missing])

    def _arranged(self, samples: Float32 | Int16) -> Float32 | Int16:
        """One column for each lane; a single lane is one-dimensional."""
        channels = samples.shape[1]
        if self._lanes == 1:
            return samples[:, 0] if channels == 1 else _mean(samples)
        if channels != self._lanes:
            raise BridgeError(
                "unsupported_audio", f"the audio has {channels} channel(s), but {self._lanes} were declared"
            )
        return samples

    def _resampled(self, samples: Float32 | Int16) -> Float32:
        if self._resampler is None:
            self._resampler = soxr.ResampleStream(
                self._rate, self._target, self._lanes, dtype="float32", quality=QUALITY
            )
        resampled: Float32 = self._resampler.resample_chunk(_floats(samples))
        return resampled

    def _nothing(self) -> Float32:
        return np.empty(0 if self._lanes == 1 else (0, self._lanes), np.float32)

    def _pcm16(self, samples: Float32 | Int16) -> Lanes:
        self._given += len(samples)
        if not len(samples):
            return self.empty
        if samples.dtype == np.int16:
            pcm = samples.astype("<i2", copy=False)
        else:
            scaled = samples * np.float32(32_768)
            np.rint(scaled, out=scaled)
            np.minimum(scaled, 32_767, out=scaled)
            np.maximum(scaled, -32_768, out=scaled)
            pcm = scaled.astype("<i2")
        return (pcm.tobytes(),) if self._lanes == 1 else tuple(pcm[:, lane].tobytes() for lane in range(self._lanes))


def _floats(samples: Float32 | Int16) -> Float32:
    if samples.dtype == np.int16:
        return samples.astype(np.float32) * np.float32(2**-15)
    return np.ascontiguousarray(samples, np.float32)


def _mean(samples: Float32 | Int16) -> Float32:
    """Column by column: numpy's mean over rows of two takes ten times as long."""
    floats = _floats(samples)
    total = floats[:, 0].copy()
    for column in range(1, floats.shape[1]):
        total += floats[:, column]
    total /= np.float32(floats.shape[1])
    return total
