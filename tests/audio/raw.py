"""Raw audio in every encoding of samples, from floats; and the project's samples as floats."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import numpy.typing as npt

from bridge.audio.formats import Encoding
from bridge.audio.samples import linear
from tests.speech import RECORDINGS, SAMPLES, pcm

Signal = npt.NDArray[np.float64]
"""Full scale is 1.0."""

RAW: Final = [encoding for encoding in Encoding if encoding.width]
FLOATS: Final = {
    Encoding.PCM_F32LE: "<f4",
    Encoding.PCM_F32BE: ">f4",
    Encoding.PCM_F64LE: "<f8",
    Encoding.PCM_F64BE: ">f8",
}
INTEGERS: Final = {
    Encoding.PCM_S8: "i1",
    Encoding.PCM_S16LE: "<i2",
    Encoding.PCM_S16BE: ">i2",
    Encoding.PCM_S32LE: "<i4",
    Encoding.PCM_S32BE: ">i4",
}


def encoded(signal: Signal, encoding: Encoding) -> bytes:
    """These samples, rounded and clipped as the encoding has it."""
    if encoding in FLOATS:
        return signal.astype(FLOATS[encoding]).tobytes()
    if encoding in {Encoding.MULAW, Encoding.ALAW}:
        table = linear(encoding, bytes(range(256))).astype(np.int64)
        order = np.argsort(table, kind="stable")
        between = (table[order][1:] + table[order][:-1]) / 2
        return order[np.searchsorted(between, signal * 32_768)].astype(np.uint8).tobytes()
    assert encoding.width
    full = 2.0 ** (8 * encoding.width - 1)
    steps = np.clip(np.rint(signal * full), -full, full - 1).astype(np.int64)
    match encoding:
        case Encoding.PCM_U8:
            return (steps + 128).astype(np.uint8).tobytes()
        case Encoding.PCM_S24LE:
            return steps.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        case Encoding.PCM_S24BE:
            return steps.astype(">i4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
        case _:
            return steps.astype(INTEGERS[encoding]).tobytes()


@functools.cache
def spoken(name: str, *, fine: bool = True) -> Signal:
    """A sample or a recording. `fine` fills the bits below the sixteenth, as a good converter does."""
    path = SAMPLES / name
    samples = np.frombuffer(pcm(path if path.exists() else RECORDINGS / name), "<i2") / 32_768
    return samples + (np.random.default_rng(0).uniform(-0.5, 0.5, len(samples)) / 32_768 if fine else 0)


def interleaved(*channels: Signal) -> Signal:
    """Channels as they are sent."""
    return np.stack(channels, axis=1).reshape(-1)
