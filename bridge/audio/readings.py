"""Raw bytes read under every encoding: which reading explains them in the fewest bits?

The principle is minimum description length (J. Rissanen, 1978): audio read rightly is predictable, so what a sample
differs from the one before it is small; the same bytes read in a wrong width, byte order or companding law jump, and
cost about as many bits as there are. It needs no idea of what speech looks like: hiss, tones and fricatives cost less
when read rightly, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bridge.audio.formats import Encoding
from bridge.audio.samples import TYPES, linear

Values = npt.NDArray[np.float64]

ALIGNMENT: Final = 24
"""Bytes after which a sample begins in every encoding: the least common multiple of the widths."""

_FRAME: Final = 64
"""Samples of which the mean is taken: shorter than anything that speech does, long enough for a mean."""
_OVERHEAD_BITS: Final = 2.4
"""What a sample costs besides the size of its difference: a sign, and the spread around the mean (Laplace)."""
_MOST: Final = 8.3
"""Bits for a byte of pure chance, in the narrowest reading."""
_FULL_SCALE_BITS: Final = 23
"""Floats are counted in steps of a 24-bit converter: finer differences are noise."""

LARGEST_FLOAT: Final = 4.0
"""Floats up to this (12 dB over full scale) are badly levelled; beyond it they are integers in disguise."""
_LARGEST_INTEGER: Final = 65_536.0
_SMALLEST_FLOAT: Final = 1e-20
"""Bytes that are no floats soon turn into ones that are out of these bounds. Silence is zero, or a rounding error."""
_ODD_SHARE: Final = 0.02

_TONE_VALUES: Final = 40
_TONE_STEPS: Final = 4_096
"""A tone whose period is a whole number of samples has at most so many values, of 13 bits; loud speech has hundreds."""

READABLE: Final = tuple(encoding for encoding in Encoding if encoding.width is not None)
"""Every encoding whose bytes can be read as samples."""
FLOATS: Final = frozenset({Encoding.PCM_F32LE, Encoding.PCM_F32BE, Encoding.PCM_F64LE, Encoding.PCM_F64BE})


def _companded(encoding: Encoding) -> Values:
    """For each code of G.711 its place among all, silence being 0: steps as the ear and the noise have them."""
    levels = linear(encoding, bytes(range(256))).astype(np.int64)
    return np.sign(levels) * np.searchsorted(np.unique(np.abs(levels)), np.abs(levels)).astype(np.float64)


_COMPANDED: Final = {encoding: _companded(encoding) for encoding in (Encoding.MULAW, Encoding.ALAW)}


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes as samples of one encoding."""

    encoding: Encoding
    values: Values
    """In steps of the encoding; companded steps for G.711, those of a 24-bit converter for floats."""
    full_scale: float
    """The largest value that there can be."""
    unused_bits: int = 0
    """Low bits that are the same in every sample, and taken off `values`: 16 bits in a container of 32 are 16 bits."""
    disguised: bool = False
    """Floats whose full scale is 32,768: integers that were cast and not divided."""

    @property
    def repeats(self) -> bool:
        """Whether hardly any value is new: a tone made by a machine, which fits many readings equally well."""
        steps = np.rint(self.values * (_TONE_STEPS / self.full_scale))
        return len(np.unique(steps)) < _TONE_VALUES

    @property
    def level(self) -> float:
        """Standard deviation, full scale being 1.0."""
        return float(self.values.std()) / self.full_scale if len(self.values) else 0.0


def read(encoding: Encoding, data: bytes) -> Reading | None:
    """The samples of these bytes; None where they are no such samples. What is left over at the end is not read."""
    width = encoding.width
    if width is None:
        raise ValueError(f"{encoding.value} is not an encoding of samples")
    data = data[: len(data) // width * width]
    if encoding in _COMPANDED:
        return Reading(encoding, _COMPANDED[encoding][np.frombuffer(data, np.uint8)], 127.0)
    if encoding in FLOATS:
        return _floats(encoding, data)
    if encoding is Encoding.PCM_U8:
        return Reading(encoding, np.frombuffer(data, np.uint8).astype(np.float64) - 128, 128.0)
    if encoding in {Encoding.PCM_S24LE, Encoding.PCM_S24BE}:
        triples = np.frombuffer(data, np.uint8).reshape(-1, 3)
        padded = np.zeros((len(triples), 4), np.uint8)
        padded[:, 1:] = triples if encoding is Encoding.PCM_S24LE else triples[:, ::-1]
        samples = padded.view("<i4").reshape(-1) >> 8
    else:
        samples = np.frombuffer(data, TYPES[encoding]).astype(np.int32)
    unused = _unused_bits(samples)
    return Reading(encoding, (samples >> unused).astype(np.float64), float(1 << (8 * width - 1 - unused)), unused)


def _floats(encoding: Encoding, data: bytes) -> Reading | None:
    with np.errstate(invalid="ignore"):  # some of what is not a number complains when it is copied
        values = np.frombuffer(data, TYPES[encoding]).astype(np.float64)
    size = np.abs(values)
    usual = (size == 0) | ((size > _SMALLEST_FLOAT) & (size < _LARGEST_INTEGER))  # what is not a number is neither
    if not len(values) or np.mean(usual) < 1 - _ODD_SHARE:
        return None
    values = np.where(usual, values, 0.0)
    disguised = float(np.abs(values).max()) > LARGEST_FLOAT
    steps = values * (2.0**_FULL_SCALE_BITS / (32_768.0 if disguised else 1.0))
    unused = _unused_bits(np.rint(steps).astype(np.int64))  # floats are made of integers, as a rule
    full_scale = float(1 << (_FULL_SCALE_BITS - unused))
    return Reading(encoding, steps / (1 << unused), full_scale, unused, disguised=disguised)


def _unused_bits(samples: npt.NDArray[np.signedinteger[Any]]) -> int:
    """How many low bits are the same in every sample; 0 where all are."""
    varying = int(np.bitwise_or.reduce(samples ^ samples[0])) if len(samples) else 0
    return (varying & -varying).bit_length() - 1 if varying else 0


def bits_per_byte(reading: Reading, lags: Iterable[int], channels: int = 1) -> float:
    """What these samples cost, predicted by silence or by the sample so many before, whatever is best.

    `channels` is how many there surely are, where that is known.
    """
    values, bits = reading.values, 8 * (reading.encoding.width or 1)
    cost = _bits(values, 1, math.inf)
    for lag in lags:
        cost = min(cost, _bits(values[lag:] - values[:-lag], lag, math.inf if lag == channels else bits))
    return min(8 * cost / bits, _MOST)


def _bits(residual: Values, channels: int, limit: float) -> float:
    """Mean bits of a sample; each channel has means of its own, so that a silent one costs nothing.

    Of several channels none may cost `limit`: one of them would be pure chance, which no microphone gives. That tells
    two channels from the two halves of a wider sample.
    """
    whole = len(residual) // (_FRAME * channels) * _FRAME * channels
    if not whole:
        return math.inf
    means = np.abs(residual[:whole]).reshape(-1, _FRAME, channels).mean(axis=1)
    costs = (np.log2(1 + means) + _OVERHEAD_BITS * (means > 0)).mean(axis=0)
    return math.inf if channels > 1 and costs.max() >= limit else float(costs.mean())
