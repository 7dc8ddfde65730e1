"""What a microphone hears while nobody speaks: seeded noises for the benchmarks of voice activity, at 16 kHz.

Each maker returns float samples of the wanted length with an RMS of 1.0; `at_level` and `mixed` set the level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

RATE: Final = 16_000

Signal = npt.NDArray[np.float64]
"""Full scale is 1.0."""
Maker = Callable[[np.random.Generator, int], Signal]


def normal(signal: Signal) -> Signal:
    """The same at an RMS of 1.0."""
    return signal / float(np.sqrt(np.mean(signal**2)))


def _coloured(chance: np.random.Generator, samples: int, exponent: float) -> Signal:
    """Gaussian noise whose power falls with frequency to the power of `exponent`, from 20 Hz up."""
    spectrum = np.fft.rfft(chance.standard_normal(samples))
    frequency = np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 20.0)
    return normal(np.fft.irfft(spectrum * frequency ** (-exponent / 2), samples))


def white(chance: np.random.Generator, samples: int) -> Signal:
    """The same power at every frequency: an amplifier's hiss."""
    return _coloured(chance, samples, 0.0)


def pink(chance: np.random.Generator, samples: int) -> Signal:
    """The same power in every octave: rain, distant traffic."""
    return _coloured(chance, samples, 1.0)


def brown(chance: np.random.Generator, samples: int) -> Signal:
    """6 dB less in each octave: wind, air conditioning."""
    return _coloured(chance, samples, 2.0)


def _mains(frequency: float) -> Maker:
    def hum(chance: np.random.Generator, samples: int) -> Signal:
        """Mains hum: the frequency and its harmonics, each 4 dB below the one before, and a little hiss."""
        time = np.arange(samples) / RATE
        tones = sum(
            10 ** (-4 * n / 20) * np.sin(2 * np.pi * frequency * (n + 1) * time + chance.uniform(0, 2 * np.pi))
            for n in range(20)
        )
        return normal(normal(np.asarray(tones)) + 0.01 * chance.standard_normal(samples))

    return hum


def fan(chance: np.random.Generator, samples: int) -> Signal:
    """A turning fan: brown noise that swells with each blade (23 a second), and a whine of the motor at 230 Hz."""
    time = np.arange(samples) / RATE
    swell = 1 + 0.4 * np.sin(2 * np.pi * 23 * time) + 0.2 * np.sin(2 * np.pi * 0.3 * time)
    return normal(brown(chance, samples) * swell + 0.1 * np.sin(2 * np.pi * 230 * time))


def clicks(chance: np.random.Generator, samples: int) -> Signal:
    """Two keys, relays or crackles a second: decaying bursts of 2 to 20 ms, over hiss 46 dB below their peak."""
    signal = 0.005 * chance.standard_normal(samples)
    for at in chance.integers(0, samples, size=max(1, 2 * samples // RATE)):
        length = min(int(chance.integers(RATE // 500, RATE // 50)), samples - int(at))
        decay = np.exp(-5 * np.arange(length) / length)
        signal[at : at + length] += chance.uniform(0.3, 1) * decay * chance.standard_normal(length)
    return normal(signal)


def swelling(chance: np.random.Generator, samples: int) -> Signal:
    """Pink noise that rises and falls by 30 dB every 20 s: a car comes and goes."""
    time = np.arange(samples) / RATE
    return normal(pink(chance, samples) * 10 ** (-15 * (1 + np.cos(2 * np.pi * time / 20)) / 20))


NOISES: Final[Mapping[str, Maker]] = {
    "white": white,
    "pink": pink,
    "brown": brown,
    "hum 50 Hz": _mains(50.0),
    "hum 60 Hz": _mains(60.0),
    "fan": fan,
    "clicks": clicks,
    "swelling": swelling,
}


def at_level(signal: Signal, dbfs: float) -> Signal:
    """A noise at an RMS level, in dB below full scale."""
    return signal * 10 ** (dbfs / 20)


def to_pcm16(signal: Signal) -> bytes:
    """Little-endian 16-bit samples; what is louder than full scale is clipped."""
    return np.clip(np.rint(signal * 32_768), -32_768, 32_767).astype("<i2").tobytes()
