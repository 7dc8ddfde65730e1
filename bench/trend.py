"""Whether a series of measurements is flat: least squares, with what the noise of the series leaves open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

SURE: Final = 2.0
"""Standard errors: growth that may as well be noise is none."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What may be added over a stretch of time: so much at all, and so much for each hour."""

    once: float
    per_hour: float


@dataclass(frozen=True, slots=True)
class Trend:
    """A series: its slope per hour, the standard error of that, and whether it grew no more than it may."""

    per_hour: float
    error: float
    hours: float
    allowed: float
    flat: bool


def trend(seconds: Sequence[float], values: Sequence[float], limit: Limit) -> Trend:
    """Of values at these times.

    Raises:
        ValueError: fewer than three, or all at one time.
    """
    if len(seconds) < 3 or min(seconds) == max(seconds):
        raise ValueError("a trend takes three values at different times")
    hours = np.array(seconds) / 3_600
    line, covariance = np.polyfit(hours, values, 1, cov=True)
    slope, error = float(line[0]), math.sqrt(covariance[0, 0])
    duration = float(np.ptp(hours))
    allowed = limit.once + limit.per_hour * duration
    return Trend(
        round(slope, 3),
        round(error, 3),
        round(duration, 4),
        round(allowed, 3),
        (slope - SURE * error) * duration <= allowed,
    )
