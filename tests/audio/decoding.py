"""Ways to run a stream decoder, and what to compare its sound with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from bridge.audio.decode import Lanes, StreamDecoder
from bridge.audio.formats import AudioFormat

RATE = 16_000

Samples = npt.NDArray[np.int16]


def drained(decoder: StreamDecoder) -> Iterator[Lanes]:
    """Everything that can be read now."""
    return iter(decoder.read, None)


def decoded_lanes(
    audio: AudioFormat, *messages: bytes, rate: int = RATE, lanes: int = 1, notices: list[str] | None = None
) -> list[Samples]:
    """All of it; the codes of notices are put into that list."""
    told: list[str] = [] if notices is None else notices
    decoder = StreamDecoder(audio, rate, lanes=lanes, notice=lambda code, _: told.append(code))
    pieces: list[Lanes] = []
    for message in messages:
        decoder.push(message)
        pieces += drained(decoder)
    decoder.finish()
    pieces += drained(decoder)
    decoder.close()
    for piece in pieces:
        assert len(piece) == lanes
        assert len({len(lane) for lane in piece}) == 1
        assert len(piece[0]) <= 2 * rate
    return [np.frombuffer(b"".join(piece[lane] for piece in pieces), "<i2") for lane in range(lanes)]


def decoded(audio: AudioFormat, *messages: bytes, rate: int = RATE, notices: list[str] | None = None) -> Samples:
    """All of it, mixed down."""
    (lane,) = decoded_lanes(audio, *messages, rate=rate, notices=notices)
    return lane


def cut(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """The data in pieces of these sizes, and the rest."""
    edges = [0, *(min(edge, len(data)) for edge in itertools.accumulate(sizes)), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if b > a]


def cut_evenly(data: bytes, size: int) -> list[bytes]:
    """The data in pieces of one size."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def sine(hertz: float, rate: int, seconds: float = 1.0, level: float = 0.5) -> npt.NDArray[np.float32]:
    times = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hertz * times)).astype("<f4")
