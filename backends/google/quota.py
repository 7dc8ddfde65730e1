"""Google's quota of requests a minute: every stream that is opened counts, a re-opened one too."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from backends.base import BackendError

WINDOW: Final = 60.0
"""Seconds."""
RESERVE: Final = 0.1
"""Share kept for streams that open sessions replace; new sessions are refused before it is touched."""


class Quota:
    """A sliding window over the streams opened in the last minute. Safe to use from several threads."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = per_minute
        self._clock = clock
        self._opened: deque[float] = deque()
        self._lock = threading.Lock()

    def take(self) -> None:
        """Count one more stream.

        Raises:
            BackendError: `overloaded`; the quota is used up.
        """
        with self._lock:
            if self._used() >= self._limit:
                raise BackendError(
                    f"the quota of {self._limit} requests a minute is used up", code="overloaded", retryable=True
                )
            self._opened.append(self._clock())

    def refusal(self) -> str | None:
        """Why a new session should come later; None while there is room."""
        with self._lock:
            used = self._used()
        if used < self._limit * (1 - RESERVE):
            return None
        return f"{used} of {self._limit} requests a minute are used up"

    def _used(self) -> int:
        since = self._clock() - WINDOW
        while self._opened and self._opened[0] <= since:
            self._opened.popleft()
        return len(self._opened)
