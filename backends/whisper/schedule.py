"""Which model serves at which time of day: `STT_WHISPER_SCHEDULE=07:00=large-v3-turbo,22:00=small`.

A change is an instant, not a reading of the clock on the wall: each comes once a day, also on days when the clocks are
put forward or back. A time that is skipped comes when the clocks are put forward, one that comes twice counts the
first time. Instants are seconds since the epoch, as of `time.time`.
"""

from __future__ import annotations

import asyncio
import bisect
import datetime as dt
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Self
from zoneinfo import ZoneInfo

log = logging.getLogger(__name__)

SCHEDULE: Final = "STT_WHISPER_SCHEDULE"
TIMEZONE: Final = "STT_WHISPER_TIMEZONE"

LOOK_SECONDS: Final = 60.0
"""How often the clock is looked at while nothing is due: it may be set, and the machine may have slept."""
RETRY_SECONDS: Final = 60.0
LONGEST_RETRY_SECONDS: Final = 900.0
"""How long to wait before a model that could not be loaded is tried again: at first, and after failures in a row."""
LEAST_SLEEP: Final = 0.05
"""Seconds: a sleep may end a little before the clock says so."""
SECOND: Final = 1e-3
"""How precisely the moment is found when clocks are put forward, in seconds."""

_PIECE: Final = re.compile(r"(\d{1,2}):(\d{2})\s*=\s*(\S(?:.*\S)?)")


class Change(NamedTuple):
    """From `at` on, `model` serves."""

    at: dt.time
    model: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """Changes of the model, every day at the same times, in their order. Empty, it is false.

    `zone`: where those are the times of day; None: where the machine is.
    """

    changes: tuple[Change, ...] = ()
    zone: dt.tzinfo | None = None

    @classmethod
    def parse(cls, text: str, zone: str = "") -> Self:
        """What `STT_WHISPER_SCHEDULE` and `STT_WHISPER_TIMEZONE` say.

        Raises:
            ValueError: a sentence that names the variable, and the piece that is wrong.
        """
        changes: dict[dt.time, Change] = {}
        for piece in filter(None, map(str.strip, text.split(","))):
            found = _PIECE.fullmatch(piece)
            if found is None or int(found[1]) > 23 or int(found[2]) > 59:
                raise ValueError(f"{SCHEDULE}: {piece!r} is not allowed: it should be HH:MM=MODEL, such as 22:00=small")
            at = dt.time(int(found[1]), int(found[2]))
            if at in changes:
                raise ValueError(f"{SCHEDULE}: {piece!r} is not allowed: {at:%H:%M} has a model already")
            changes[at] = Change(at, found[3])
        return cls(tuple(changes[at] for at in sorted(changes)), _zone(zone))

    def __bool__(self) -> bool:
        return bool(self.changes)

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that it names, each once."""
        return tuple(dict.fromkeys(change.model for change in self.changes))

    def now(self, clock: Callable[[], float] = time.time) -> str | None:
        """The model of this hour; None without a schedule."""
        return self.model(clock()) if self else None

    def model(self, when: float) -> str:
        """The model at an instant. The schedule must not be empty."""
        return self._around(when)[0][1]

    def last(self, when: float) -> float:
        """The instant of the change before, or at, an instant. The schedule must not be empty."""
        return self._around(when)[0][0]

    def seconds_until_change(self, when: float) -> float:
        """From an instant to the next change. The schedule must not be empty."""
        return self._around(when)[1][0] - when

    def _around(self, when: float) -> tuple[tuple[float, str], tuple[float, str]]:
        """The change before an instant and the one after it: when, and which model."""
        today = self._wall(when).date()
        # Two days back: a zone may leave out a whole day, as Samoa did in December 2011.
        days = [today + dt.timedelta(days=n) for n in (-2, -1, 0, 1, 2)]
        found = [(self._instant(day, change.at), change.model) for day in days for change in self.changes]
        # Of changes that a clock skips all come at one instant, and the last of them counts.
        index = bisect.bisect_right(found, when, key=lambda change: change[0])
        return found[index - 1], found[index]

    def _wall(self, when: float) -> dt.datetime:
        """What the clock on the wall shows."""
        return dt.datetime.fromtimestamp(when, self.zone).replace(tzinfo=None)

    def _instant(self, day: dt.date, at: dt.time) -> float:
        """The first instant at which the clock on the wall shows this, or is past it."""
        wall = dt.datetime.combine(day, at, tzinfo=self.zone)
        first, second = wall.replace(fold=0).timestamp(), wall.replace(fold=1).timestamp()
        if first <= second:
            return first
        # The clock skips it: the two are what it would be before and after (PEP 495), and the skip lies between.
        shown = wall.replace(tzinfo=None)
        before, after = second, first
        while after - before > SECOND:
            middle = (before + after) / 2
            if self._wall(middle) < shown:
                before = middle
            else:
                after = middle
        return round(after)


def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name) if name else None
    except (ValueError, KeyError, OSError):
        raise ValueError(
            f"{TIMEZONE}: {name!r} is not allowed: it should be a time zone that this machine knows, "
            "such as Europe/Berlin"
        ) from None


async def run(
    schedule: Schedule,
    use_model: Callable[[str], Awaitable[None]],
    *,
    loaded_at: float | None = None,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Follow a schedule, which must not be empty, until it is cancelled.

    Nothing is done before the first change after `loaded_at` (None: now), when the caller asked for the model of the
    hour. Between changes, the model is whoever's who changes it. One that cannot be loaded is tried again, until it can
    or the next change comes; the log says so. `clock` tells the seconds since the epoch.
    """
    seen = schedule.last(clock() if loaded_at is None else loaded_at)
    attempt, patience = 0, 0.0  # 0: nothing is due; seconds to wait before it
    while True:
        now = clock()
        last = schedule.last(now)
        # Set back by little, a clock must not undo a change; set back by much, it was wrong before.
        if last > seen or now < seen - LOOK_SECONDS:
            seen, attempt, patience = last, 1, 0.0
        if attempt and patience <= 0:
            model = schedule.model(seen)
            try:
                await use_model(model)
            except Exception as exc:  # noqa: BLE001 - whatever it was, the next change must come
                patience = min(LONGEST_RETRY_SECONDS, RETRY_SECONDS * 2 ** min(attempt - 1, 16))
                attempt += 1
                log.warning("schedule: %s is not used, tried again in %.0f s: %s", model, patience, exc)
            else:
                attempt = 0
                log.info("schedule: %s serves", model)
            continue  # the clock went on
        wait = min(LOOK_SECONDS, schedule.seconds_until_change(now), patience or LOOK_SECONDS)
        await sleep(max(LEAST_SLEEP, wait))
        patience = max(0.0, patience - wait)
