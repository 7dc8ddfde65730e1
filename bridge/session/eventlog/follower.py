"""Who follows a session of another server: what comes waits here, within bounds."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from bridge.protocols.events import Ack, Partial, ServerEvent

BACKLOG: Final = 256
"""Messages that wait for one follower: some seconds of a lively session."""


class Follower:
    """One listener's queue."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self._waiting: deque[list[ServerEvent]] = deque()
        self._missed = False

    def put(self, events: list[ServerEvent]) -> None:
        """Never waits. What finds no room is left out; if it matters, the follower is told to read the log."""
        if self._missed:
            return  # it is going to read
        if len(self._waiting) >= BACKLOG:
            if all(isinstance(event, Partial | Ack) for event in events):
                return
            self.miss()
            return
        self._waiting.append(events)
        self.wake.set()

    def miss(self) -> None:
        """It may have missed something."""
        self._waiting.clear()
        self._missed = True
        self.wake.set()

    def take(self) -> list[ServerEvent] | None:
        """The next message, empty after a gap; None: nothing waits."""
        if self._missed:
            self._missed = False
            return []
        if self._waiting:
            return self._waiting.popleft()
        self.wake.clear()
        return None
