"""Pieces of sound, and what every decoder of this room is: bytes in, pieces out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

Int16 = npt.NDArray[np.int16]
Float32 = npt.NDArray[np.float32]

Notice = Callable[[str, str], None]
"""Is told a warning's code and its sentence."""

LOWEST_RATE: Final = 1_000
HIGHEST_RATE: Final = 768_000
"""A rate beyond these is a broken header: turning it into sound would make a small file hours long."""

PIECE_SECONDS: Final = 0.5
PIECE_VALUES: Final = 48_000
"""Longest piece of sound, and most values (frames times channels) in one: a few milliseconds of work.

Half a second, because a resampler may give twice as much at once: what it held back comes with the next piece.
"""


_highest: Final = np.maximum
_lowest: Final = np.minimum
"""Their `reduce` is what an array's `max()` and `min()` come to, without a function of Python in between."""


@dataclass(frozen=True, slots=True)
class Sound:
    """A piece of audio: `samples` has a row for each frame and a column for each channel.

    Floats have full scale 1.0. A piece may be empty: then there was work to do, and nothing to hear.
    """

    samples: Float32 | Int16
    rate: int


NOTHING: Final = Sound(np.empty((0, 1), np.float32), 1)
"""Work was done, and there is nothing to hear of it."""


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


def silence(frames: int, channels: int, rate: int) -> Sound:
    """So much of nothing."""
    return Sound(np.zeros((frames, channels), np.float32), rate)


def bounded(samples: npt.NDArray[Any]) -> Float32:
    """Floats that can be reckoned with.

    What is not a number is no sound. Beyond full scale it is clipped here: the largest floats would overflow in the
    mean of the channels and in the resampler.
    """
    if samples.size and not (_lowest.reduce(samples, axis=None) >= -1.0 and _highest.reduce(samples, axis=None) <= 1.0):
        samples = np.clip(np.where(np.isnan(samples), 0.0, samples), -1.0, 1.0)
    return samples.astype(np.float32, copy=False)
