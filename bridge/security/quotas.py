"""How much each key or user may use: sessions at once, and minutes of audio a day."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable
from typing import Final

from bridge.errors import BridgeError
from bridge.security.rates import CALLERS, Counts

DAY: Final = 86_400
WRITE_SECONDS: Final = 2.0
"""Between two times that Redis is told of the audio that came."""
AT_ONCE: Final = 256
"""Subjects of whom it is told in one go; the others are next."""
BUSY_SECONDS: Final = 5.0
"""After which somebody with all their sessions open may ask again."""

log = logging.getLogger(__name__)


class Quotas:
    """One server's. None: no limit. Days are those of UTC; `clock`: seconds since 1970.

    Sessions are counted by each server for itself. Minutes are too, from its start on, unless there are shared counts:
    then they are all servers' of this day, restarted or not. While Redis is away a server goes by what it knew, and
    what it was sent itself.
    """

    def __init__(
        self,
        sessions: int | None = None,
        audio_minutes: float | None = None,
        counts: Counts | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._most = sessions
        self._seconds = math.inf if audio_minutes is None else audio_minutes * 60
        self._counts = counts or Counts()
        self._clock = clock
        self._open: Counter[str] = Counter()
        self._day = 0
        self._used: OrderedDict[str, float] = OrderedDict()  # seconds this day, as far as it is known here
        self._unwritten: dict[str, float] = {}  # of them, those that the shared counts do not have yet
        self._writer: asyncio.Task[None] | None = None

    async def check(self, subject: str, *, place: bool = False) -> None:
        """Whether it has minutes left today. Who is in stays in, so the last session or file goes beyond them.

        `place`: whether it may have one more session, too.

        Raises:
            BridgeError: `quota_exceeded`, with `retry_after`.
        """
        if self._seconds != math.inf:
            await self._check_minutes(subject)
        if place and self._most is not None and self._open[subject] >= self._most:
            sentence = f"{self._most} sessions at once are open, as many as this key may have"
            raise BridgeError("quota_exceeded", sentence, retry_after=BUSY_SECONDS)

    async def _check_minutes(self, subject: str) -> None:
        self._turn_page()
        if self._counts.shared is not None:  # another server may have given it the rest
            await self._write(subject)
        if self._used.get(subject, 0.0) >= self._seconds:
            sentence = f"the {self._seconds / 60:g} minutes of audio that this key has a day are used up"
            raise BridgeError("quota_exceeded", sentence, retry_after=DAY - self._clock() % DAY)

    @contextlib.asynccontextmanager
    async def session(self, subject: str, *, checked: bool = True) -> AsyncGenerator[Callable[[float], None]]:
        """One more session; yields what is to be told of its audio.

        Raises:
            BridgeError: `quota_exceeded`, with `retry_after`; only where it is to be `checked`.
        """
        if checked:
            await self.check(subject, place=True)
        self._open[subject] += 1
        try:
            yield functools.partial(self._spend, subject)
        finally:
            self._open[subject] -= 1
            if not self._open[subject]:
                del self._open[subject]

    def _spend(self, subject: str, seconds: float) -> None:
        """So much audio came."""
        if self._seconds == math.inf:
            return
        self._turn_page()
        self._used[subject] = self._used.get(subject, 0.0) + seconds
        self._used.move_to_end(subject)
        if len(self._used) > CALLERS:
            self._used.popitem(last=False)
        if not self._counts.sharing or (subject not in self._unwritten and len(self._unwritten) >= CALLERS):
            return
        self._unwritten[subject] = self._unwritten.get(subject, 0.0) + seconds
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write_later(), name="quotas")

    def _turn_page(self) -> None:
        day = int(self._clock() // DAY)
        if day != self._day:
            self._day = day
            self._used.clear()
            self._unwritten.clear()

    async def _write_later(self) -> None:
        """Ends when there is nothing left to be written."""
        try:
            while self._unwritten:
                await asyncio.sleep(WRITE_SECONDS)
                await self._write_all()
        finally:
            self._writer = None

    async def _write_all(self) -> None:
        for subject in list(self._unwritten)[:AT_ONCE]:
            if not await self._write(subject):
                return

    async def _write(self, subject: str) -> bool:
        """Tell the shared counts, and learn what they have; whether they answered."""
        shared, day = self._counts.shared, self._day
        if shared is None:
            return False
        seconds = self._unwritten.pop(subject, 0.0)
        total: int | None = None
        try:
            total = await shared.add(f"minutes:{day}:{subject}", round(seconds * 1_000), 2 * DAY)
        except shared.errors as exc:
            self._counts.lost(exc)
        finally:
            if day == self._day:
                later = self._unwritten.get(subject, 0.0)
                if total is not None:
                    self._used[subject] = total / 1_000 + later
                elif seconds:  # kept also where this was cancelled
                    self._unwritten[subject] = seconds + later
        if total is not None:
            self._counts.found()
        return total is not None

    async def close(self) -> None:
        """Write what is left, as far as Redis takes it at once."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        await self._write_all()
