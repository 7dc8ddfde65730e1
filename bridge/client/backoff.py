"""When a client comes back after its connection broke, and for how long it tries."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reconnect:
    """How a client comes back, and what it keeps for that. Times are seconds.

    `first_seconds`: for so long even the first connection is tried again, after failures that may pass (0: not at all).
    `give_up_seconds`: how long after a break it tries; None: as long as the server holds the session.
    `base_seconds`, `most_seconds`: the waits between attempts are random, up to base * 2^n and never more than most
    ("full jitter", after Brooker, "Exponential Backoff and Jitter"): a server that comes back is not met by all its
    clients at once.
    `ring_seconds`, `ring_bytes`: how much audio is kept to be sent again, whichever is less; only the bytes count for
    coded audio. It should be more than a server keeps without a final (`STT_REPLAY_SECONDS`).
    `window_seconds`: raw audio that may be on its way beyond the server's last `ack`. Less makes `stop`, `flush` and
    resuming quicker; when a server turns out to be fast, the window widens by itself.
    `silence_seconds`: a server of which nothing is heard for so long, no pong either, counts as gone.
    """

    first_seconds: float = 0
    give_up_seconds: float | None = None
    base_seconds: float = 0.1
    most_seconds: float = 2
    ring_seconds: float = 120
    ring_bytes: int = 64 * 1_048_576
    window_seconds: float = 10
    silence_seconds: float = 15

    def __post_init__(self) -> None:
        for name in ("base_seconds", "most_seconds", "ring_seconds", "ring_bytes", "window_seconds", "silence_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} has to be more than 0")


class Backoff:
    """The waits of one outage after another. `draw` gives a number from 0 to 1."""

    def __init__(self, base: float, most: float, draw: Callable[[], float] = random.random) -> None:
        self._base = base
        self._most = most
        self._draw = draw
        self._tries = 0

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        longest = min(self._most, self._base * 2.0 ** min(self._tries, 32))
        self._tries += 1
        return self._draw() * longest

    def reset(self) -> None:
        """The outage is over."""
        self._tries = 0
