"""How much of a recording is left in the audio that came out at the other end."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

RATE: Final = 16_000
FINE: Final = 4
"""Steps between two samples: two clocks never agree on where a sample lies."""
SHIFT_SECONDS: Final = 0.020
"""By which a second may lie elsewhere than the one before it: a loaded machine slips now and then."""
LOUD: Final = 100
"""Root mean square from which there is something to compare in a second."""

Samples = NDArray[np.float64]


def correlations(original: bytes, arrived: bytes) -> list[float]:
    """For each second of the original that is not silent, how well what arrived agrees with it (1: fully)."""
    before = np.frombuffer(original, "<i2").astype(np.float64)
    after = np.frombuffer(arrived, "<i2").astype(np.float64)
    lag = _lag(before, after) * FINE
    fine = _finer(after)
    found = []
    reach = round(SHIFT_SECONDS * RATE) * FINE
    for at in range(0, len(before) - RATE + 1, RATE):
        second = before[at : at + RATE]
        if np.sqrt(np.mean(second**2)) < LOUD:
            continue
        for around, step in ((reach, FINE), (FINE, 1)):
            best, lag = max(
                (_alike(second, fine, at * FINE + lag + shift), lag + shift)
                for shift in range(-around, around + 1, step)
            )
        found.append(best)
    return found


def _lag(before: Samples, after: Samples) -> int:
    """By how many samples the whole lies later."""
    size = 1 << (len(before) + len(after)).bit_length()
    product = np.fft.irfft(np.fft.rfft(after, size) * np.conj(np.fft.rfft(before, size)), size)
    best = int(np.argmax(product))
    return best if best < size // 2 else best - size


def _finer(samples: Samples) -> Samples:
    """The same at `FINE` times the rate."""
    spectrum = np.fft.rfft(samples)
    return np.fft.irfft(np.pad(spectrum, (0, (FINE - 1) * len(samples) // 2)), FINE * len(samples)) * FINE


def _alike(second: Samples, fine: Samples, at: int) -> float:
    part = fine[max(at, 0) : at + RATE * FINE : FINE] if at > -RATE * FINE else fine[:0]
    if len(part) < RATE:
        part = np.pad(part, (RATE - len(part), 0) if at < 0 else (0, RATE - len(part)))
    scale = np.sqrt(np.sum(second**2) * np.sum(part**2))
    return float(np.sum(second * part) / scale) if scale else 0.0
