"""How loud audio is, as it streams: whether it may be speech, and where it is quiet enough to be cut.

Levels only, no model: what hangs on the answer (a look at a silent backend, the place of a cut) is repaired where the
answer is wrong. Gating by a real voice activity detector is another matter.
"""

from __future__ import annotations

from typing import Final

import numpy as np

FRAME_SECONDS: Final = 0.01
"""Resolution at which quiet is looked for."""

LOUD: Final = 900
"""Peak (of 32,767; -31 dBFS) that counts as voice whatever the background: speech near a microphone is louder."""
AUDIBLE: Final = 150
"""Peak (-47 dBFS) below which nothing counts as voice."""
ABOVE_FLOOR: Final = 4
"""How many times (12 dB) voice is louder than the background."""
QUIET_SHARE: Final = 0.1
"""Quiet is 20 dB below the loudest of the last seconds: weaker than any vowel, about as weak as a closed stop."""
QUIET_PEAK: Final = 30
"""Peak (-61 dBFS) that is quiet whatever came before."""
HALF_LIFE: Final = 3.0
"""Seconds in which what was loud, or silent, counts half."""


_highest: Final = np.maximum
_lowest: Final = np.minimum
"""Their `reduce` is what an array's `max()` and `min()` come to, without a function of Python in between."""


class Loudness:
    """The level of one stream of PCM16 mono at `rate` Hz."""

    def __init__(self, rate: int) -> None:
        self.quiet_seconds = 0.0
        """How long it has been quiet at the end of the audio that `quiet_at` was asked about."""
        self._rate = rate
        self._frame = round(FRAME_SECONDS * rate)
        self._length = 0
        self._fading = 1.0
        self._loudest = 0.0
        self._floor = float(LOUD)

    def hear(self, pcm: bytes) -> bool:
        """Take in the next chunk; returns whether it may hold speech."""
        samples = np.frombuffer(pcm, "<i2")
        if not len(samples):
            return False
        peak = max(int(_highest.reduce(samples)), -int(_lowest.reduce(samples)))
        if len(samples) != self._length:  # a client's chunks are of one length, as a rule
            self._length = len(samples)
            self._fading = 0.5 ** (self._length / self._rate / HALF_LIFE)
        fading = self._fading
        self._loudest = max(peak, self._loudest * fading)
        self._floor = min(peak, self._floor / fading)
        return peak >= LOUD or (peak >= AUDIBLE and peak >= ABOVE_FLOOR * self._floor)

    def quiet_at(self, pcm: bytes, seconds: float) -> int | None:
        """Where, in samples of this chunk, it has been quiet for so many seconds; None if nowhere.

        For a chunk that was heard. Quiet at the end of one chunk counts on in the next.
        """
        samples = np.frombuffer(pcm, "<i2")
        threshold = max(QUIET_PEAK, QUIET_SHARE * self._loudest)
        starts = np.arange(0, len(samples), self._frame)
        if not len(starts):
            return None
        quiet = (_highest.reduceat(samples, starts) <= threshold) & (_lowest.reduceat(samples, starts) >= -threshold)
        for start, is_quiet in zip(starts.tolist(), quiet.tolist(), strict=True):
            end = min(start + self._frame, len(samples))
            self.quiet_seconds = self.quiet_seconds + (end - start) / self._rate if is_quiet else 0.0
            if self.quiet_seconds >= seconds - 1e-9:
                return end
        return None


def quiet_near(pcm: bytes, at: int, rate: int) -> int:
    """The quiet place nearest to sample `at`; `at` itself where nothing is quiet. Quiet as in `Loudness`."""
    samples = np.abs(np.frombuffer(pcm, "<i2").astype(np.int32))
    frame = round(FRAME_SECONDS * rate)
    starts = np.arange(0, len(samples) - frame + 1, frame)
    if not len(starts):
        return at
    peaks = _highest.reduceat(samples, starts)
    middles = starts[peaks <= max(QUIET_PEAK, QUIET_SHARE * int(peaks.max()))] + frame // 2
    return int(middles[np.abs(middles - at).argmin()]) if len(middles) else at
