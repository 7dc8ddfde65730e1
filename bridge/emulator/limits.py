"""What Google allows a stream and a project, as data, and the count of what a project uses."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits; durations in seconds. The defaults are the real ones, as far as they are known, but for the pace.

    `stream_seconds` holds for a stream's age and for its audio, whichever comes first; None: the API's own (v1: 305,
    v2: 300). `pace_seconds` is how far audio may run ahead of `pace_rate`, seconds of audio a second; 0, for tests
    that send as fast as they can: any pace.
    """

    stream_seconds: float | None = None
    audio_timeout: float = 10.0
    message_bytes: int = 25_600
    pace_seconds: float = 0.0
    pace_rate: float = 3.0
    max_streams: int = 300
    requests_per_minute: int = 3_000
    streams_per_connection: int = 100


class Quota:
    """Streams open at once and streams opened in the last minute. A minute lasts `60 / speed` seconds."""

    def __init__(self, limits: Limits, speed: float) -> None:
        self._limits = limits
        self._minute = 60.0 / speed
        self._open = 0
        self._recent: deque[float] = deque()

    def take(self, now: float) -> bool:
        """Count one more stream if it is allowed. `now`: any steady clock, in seconds."""
        while self._recent and self._recent[0] <= now - self._minute:
            self._recent.popleft()
        if self._open >= self._limits.max_streams or len(self._recent) >= self._limits.requests_per_minute:
            return False
        self._open += 1
        self._recent.append(now)
        return True

    def give_back(self) -> None:
        """A stream that was counted has ended."""
        self._open -= 1
