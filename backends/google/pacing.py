"""How fast audio may be sent: Google wants it at about real time, and a replay could be much faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

BURST: Final = 0.5
"""Seconds of audio that may go at once, so that live audio in any usual chunks never waits."""


class Pacer:
    """A token bucket of seconds of audio, refilled at `speed` times real time; 0: no pacing.

    Times in seconds; `clock` is monotonic.
    """

    def __init__(self, speed: float, *, burst: float = BURST, clock: Callable[[], float] = time.monotonic) -> None:
        self._speed = speed
        self._burst = burst
        self._clock = clock
        self._level = burst
        self._filled = clock()

    def delay(self, seconds: float) -> float:
        """Take so much audio out of the bucket; how long to wait before it is sent."""
        if not self._speed:
            return 0.0
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._filled) * self._speed) - seconds
        self._filled = now
        return max(0.0, -self._level / self._speed)
