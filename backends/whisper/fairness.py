"""Whose turn it is: what each stream has used lately, and what that costs it.

An account forgets: what is added counts for less with time, half after 0.7 times its seconds. A stream that idles is
soon like new, and a busy one is measured by its rate.
"""

from __future__ import annotations

import math
from typing import Final

USED_SECONDS: Final = 10.0
"""How long decode time that was used is remembered."""
PENALTY: Final = 4.0
"""A second of decode time used lately lets a stream wait like one that came so many seconds later. Streams that speak
alike differ by less than they wait in a queue worth the name, so that between them age decides; one that sends ten
sessions' worth stands behind all of them. Nobody waits for ever: the penalty is bounded, age is not."""
HEARD_SECONDS: Final = 20.0
LIVE_SPEED: Final = 2.0
"""Times real time. A microphone's windows, 30 s long and one after the other, stay below; a file soon does not."""


class Account:
    """A sum that fades: what was added `seconds` ago counts for 1/e."""

    __slots__ = ("_seconds", "_since", "_value")

    def __init__(self, seconds: float, value: float = 0.0, now: float = 0.0) -> None:
        self._seconds = seconds
        self._value = value
        self._since = now

    def add(self, amount: float, now: float) -> None:
        """Add to it."""
        self._value = self.at(now) + amount
        self._since = now

    def at(self, now: float) -> float:
        """What is left of it."""
        return self._value * math.exp((self._since - now) / self._seconds)


class Share:
    """What one stream has had of the engine. Times in seconds, by the loop's clock."""

    __slots__ = ("_heard", "_used")

    def __init__(self, used: float, now: float) -> None:
        self._used = Account(USED_SECONDS, used, now)
        self._heard = Account(HEARD_SECONDS, 0.0, now)

    def use(self, seconds: float, now: float) -> None:
        """Its part of a batch's decode time."""
        self._used.add(seconds, now)

    def hear(self, seconds: float, now: float) -> None:
        """Audio that was finalized."""
        self._heard.add(seconds, now)

    def used(self, now: float) -> float:
        """Decode time used lately."""
        return self._used.at(now)

    def penalty(self, now: float) -> float:
        """By how much later its requests count as made than they were."""
        return PENALTY * self._used.at(now)

    def live(self, now: float) -> bool:
        """Whether its audio comes about as fast as it was spoken. What is promised is promised to those."""
        return self._heard.at(now) <= LIVE_SPEED * HEARD_SECONDS
