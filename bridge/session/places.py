"""Places for sessions: on which terms somebody is given one, and the line of those who wait for one to be free."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bridge.session.account import Account
from bridge.session.failover import Seat

KEPT_FOR_LIVE: Final = 0.25
"""Share of an engine, and of all sessions, that files leave free: who speaks now cannot wait, a file can."""
LOOK_AGAIN_SECONDS: Final = 5.0
"""After which whoever waits tries again without being called: an engine's own quota ends without a word."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a place is asked for.

    `batch`: for a file, so some room stays free for who speaks. `backend`: which one is wanted (None: the best that is
    well). `patience`: seconds to wait for a free place; without end also for an engine that still loads.
    """

    batch: bool = False
    backend: str | None = None
    patience: float = 0.0


LIVE: Final = Terms()


@dataclass(frozen=True, slots=True)
class Place:
    """What a session needs to begin: seats at an engine for this language, and who uses them.

    `spend` is told the seconds of audio that come.
    """

    seats: Sequence[Seat]
    language: str
    account: Account
    spend: Callable[[float], None] | None


class Line:
    """Those who wait, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def call(self) -> None:
        """Something is free: have the first one try."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def call_all(self) -> None:
        """Everything is different now: have all of them try."""
        for _ in range(len(self._waiting)):
            self.call()

    async def wait(self, seconds: float, *, again: bool) -> None:
        """Wait for one's turn, at most so long. `again`: who tried in vain keeps the head of the line.

        Safe to cancel: a turn that came at the same time goes to the next one.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if again:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(seconds, LOOK_AGAIN_SECONDS)):
                    await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.call()
            raise
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)
