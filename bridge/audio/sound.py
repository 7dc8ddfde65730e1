"""What every decoder of this room is: bytes in, pieces of sound out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

Int16 = npt.NDArray[np.int16]
Float32 = npt.NDArray[np.float32]

LOWEST_RATE: Final = 1_000
HIGHEST_RATE: Final = 768_000
"""A rate beyond these is a broken header: turning it into sound would make a small file hours long."""

PIECE_SECONDS: Final = 0.5
PIECE_VALUES: Final = 48_000
"""Longest piece of sound, and most values (frames times channels) in one: a few milliseconds of work.

Half a second, because a resampler may give twice as much at once: what it held back comes with the next piece.
"""


@dataclass(frozen=True, slots=True)
class Sound:
    """A piece of audio: `samples` has a row for each frame and a column for each channel.

    Floats have full scale 1.0. A piece may be empty: then there was work to do, and nothing to hear.
    """

    samples: Float32 | Int16
    rate: int


class SoundSource(Protocol):
    """A decoder. What it raises is a `BridgeError`, after which it is only to be closed."""

    def push(self, data: bytes) -> None:
        """Take in one message; nothing is decoded yet."""

    def finish(self) -> None:
        """No more will be pushed."""

    def read(self) -> Sound | None:
        """The next piece, at most `PIECE_SECONDS` and `PIECE_VALUES`; None: nothing more until the next push."""

    def close(self) -> None:
        """Give everything back; may be called twice."""


def piece_frames(rate: int, channels: int) -> int:
    """How many frames make the longest piece."""
    return max(1, min(int(PIECE_SECONDS * rate), PIECE_VALUES // channels))
