"""Does live audio come at the pace of its declared rate? A wrong rate makes speech too fast or too slow to understand.

Files that are sent faster than real time must not be mistaken for it. They come in bursts, first into the server's
buffers and then as those empty; a microphone's audio keeps to a straight line from its first second on.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from bridge.audio.formats import AudioFormat
from bridge.audio.suspicion import Finding

_SECONDS: Final = 8.0
"""How long is listened, once: what goes on longer than this says no more, and what is judged later may be a file."""
_INTERVAL: Final = 0.1
"""Seconds between the arrivals that are noted."""
_FEWEST: Final = 8
"""Arrivals that make a line: messages of at most a second."""
_JITTER_SECONDS: Final = 0.12
"""How far arrivals may be off the line: a network's jitter. Bursts are longer, the first of a file by seconds."""
_TOLERANCE: Final = 0.02
_LIKE_REAL_TIME: Final = (0.77, 1.3)
"""Clocks drift, and programs that sleep between messages are up to a fifth late: 44.1 for 48 kHz cannot be told."""
_COMMON_RATES: Final = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)


class Pace:
    """Watches one stream's arrivals. `done` once there is nothing more to find out."""

    __slots__ = (
        "_bytes",
        "_latest",
        "_rate",
        "_second",
        "_seconds",
        "_times",
        "done",
    )

    def __init__(self, audio: AudioFormat) -> None:
        self.done = audio.encoding.width is None
        self._rate = audio.sample_rate
        self._second = audio.frame_bytes * audio.sample_rate
        self._bytes = 0
        self._latest = 0.0
        self._times: list[float] = []
        self._seconds: list[float] = []

    def push(self, size: int, now: float) -> Finding | None:
        """So many bytes have come; what is wrong, once."""
        if self.done:
            return None
        if not self._times or now - self._times[-1] >= _INTERVAL:
            if self._times:  # what had come before the gap: a burst ends higher than it begins
                self._note(self._latest)
            self._bytes += size
            self._note(now)
            if now - self._times[0] >= _SECONDS:
                self.done = True
                return self._verdict()
        else:
            self._bytes += size
        self._latest = now
        return None

    def _note(self, when: float) -> None:
        self._times.append(when)
        self._seconds.append(self._bytes / self._second)

    def _verdict(self) -> Finding | None:
        if len(set(self._times)) < _FEWEST:
            return None
        times, seconds = np.array(self._times), np.array(self._seconds)
        pace, start = np.polyfit(times - times[0], seconds, 1)
        off = float(np.abs(seconds - start - pace * (times - times[0])).max())
        slowest, fastest = _LIKE_REAL_TIME
        if slowest < pace < fastest or off > _JITTER_SECONDS * max(1.0, float(pace)):
            return None
        for rate in _COMMON_RATES:
            if abs(pace * self._rate / rate - 1) < _TOLERANCE:
                return "wrong_rate", (
                    f"audio comes steadily at {pace:.2f} times real time, as if its rate were {rate} Hz and not "
                    f"{self._rate}: if it is live, declare sample_rate {rate}, or the channels and the encoding that "
                    "explain so many bytes"
                )
        return None
