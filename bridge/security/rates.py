"""How often: rates as `limits` writes them (`600/minute`), over sliding windows, here or in a Redis for all servers.

A window slides as `limits` has it: what the one before it counted weighs as much as is left of it. In memory this
module counts by itself: the library's own memory starts a task at each request that looks through all callers, 4 ms for
10,000 of them, and keeps any number of them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import limits

CALLERS: Final = 50_000
"""Whose counts are in memory, 10 MB; who was not heard for longest is forgotten for one more."""
ANSWER_SECONDS: Final = 0.25
"""That a request waits for Redis."""
AWAY_SECONDS: Final = 5.0
"""For which Redis is left alone after it did not answer: else each request would wait."""
PREFIX: Final = "stt:rate"
_ROUNDING: Final = 1e-9
"""Who comes exactly when told is not to be refused for the last bit of a number."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)  # told apart by what it is: the library's are slow to compare
class Rate:
    """So many in so many seconds."""

    amount: int
    seconds: int
    item: limits.RateLimitItem


def parse_rates(text: str) -> tuple[Rate, ...]:
    """`600/minute`, or several, of which each holds: `20/second; 600/minute`.

    Raises:
        ValueError: it is no rate; a sentence that says what it should be.
    """
    try:
        items = limits.parse_many(text)
    except ValueError:
        raise ValueError(
            "should be a rate as 600/minute, 20/second or 5 per 2 minutes; several with ; between"
        ) from None
    if not all(item.amount for item in items):
        raise ValueError("should allow one request at least")
    return tuple(Rate(item.amount, item.get_expiry(), item) for item in items)


class Window(NamedTuple):
    """How one rate stands for one caller, after a request."""

    limit: int
    seconds: int
    """Its length."""
    remaining: int
    reset: float
    """Seconds: where nothing remains, until another is taken; else until the window ends."""
    refused: bool = False


class MemoryCounts:
    """This server's counts. `clock`: seconds, never going back."""

    def __init__(self, callers: int = CALLERS, clock: Callable[[], float] = time.monotonic) -> None:
        self._callers = callers
        self._clock = clock
        # Of each caller and rate: the number of the window that is on, what the one before it counted, and its own.
        self._counts: OrderedDict[tuple[str, Rate], tuple[int, int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def hit(self, key: str, rates: Sequence[Rate]) -> list[Window]:
        """Count one request in all of them, or in none where one refuses."""
        windows = [self.look(key, rate) for rate in rates]
        if not any(window.refused for window in windows):
            for number, rate in enumerate(rates):
                slot, before, now, _ = self._of(key, rate)
                self._counts[key, rate] = (slot, before, now + 1)
                windows[number] = self.look(key, rate)._replace(refused=False)
        while len(self._counts) > self._callers:
            self._counts.popitem(last=False)
        return windows

    def look(self, key: str, rate: Rate) -> Window:
        """How it stands: `refused` says whether a request would be. Counts nothing, and remembers nobody new."""
        length = rate.seconds
        _, before, now, into = self._of(key, rate)
        if (key, rate) in self._counts:
            self._counts.move_to_end((key, rate))
        weight = before * (1 - into / length) + now
        free = rate.amount - weight + _ROUNDING
        if free >= 1:
            return Window(rate.amount, length, math.floor(free), length - into)
        if now < rate.amount:  # the window before lets go of one while this one lasts
            wait = length * (1 - (rate.amount - 1 - now) / before) - into
        else:
            wait = length - into + length * (1 - (rate.amount - 1) / now)
        return Window(rate.amount, length, 0, wait, refused=True)

    def _of(self, key: str, rate: Rate) -> tuple[int, int, int, float]:
        """The number of the window that is on, what the one before it and it have counted, how long it has been on."""
        number, into = divmod(self._clock(), rate.seconds)
        slot, before, now = self._counts.get((key, rate), (-1, 0, 0))
        if slot != number:
            before, now = (now, 0) if slot == number - 1 else (0, 0)
        return int(number), before, now, into


class SharedCounts:
    """Those of all servers, in Redis, by the library's scripts. `url`: as STT_STORE has it.

    Raises:
        ImportError: the package redis is not installed.
    """

    def __init__(self, url: str) -> None:
        from limits.aio.storage import RedisStorage  # noqa: PLC0415 - only several servers need it
        from limits.aio.strategies import SlidingWindowCounterRateLimiter  # noqa: PLC0415
        from redis.asyncio import BlockingConnectionPool  # noqa: PLC0415 - an extra
        from redis.exceptions import RedisError  # noqa: PLC0415

        self.errors: tuple[type[Exception], ...] = (RedisError, OSError, TimeoutError)
        self._pool = BlockingConnectionPool.from_url(
            url, max_connections=8, timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS, protocol=2
        )
        # The pool knows where: the library does not read every address that redis-py does.
        options: Any = {"connection_pool": self._pool}  # which its annotations leave out
        self._storage = RedisStorage("async+redis://", implementation="redispy", key_prefix=PREFIX, **options)
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)

    async def hit(self, key: str, rates: Sequence[Rate]) -> list[Window]:
        """Count one request. Where one of several rates refuses, those before it have counted it.

        Raises:
            Exception: one of `errors`.
        """
        async with asyncio.timeout(ANSWER_SECONDS):
            return [await self._hit(key, rate) for rate in rates]

    async def _hit(self, key: str, rate: Rate) -> Window:
        taken = await self._limiter.hit(rate.item, key)
        stats = await self._limiter.get_window_stats(rate.item, key)
        # At the moment that it names the count is still what it was.
        return Window(rate.amount, rate.seconds, stats.remaining, stats.reset_time - time.time() + 0.01, not taken)

    async def add(self, key: str, amount: int, seconds: int) -> int:
        """Add to a count that begins anew so many seconds after its first addition; what it is now.

        Raises:
            Exception: one of `errors`.
        """
        async with asyncio.timeout(ANSWER_SECONDS):
            return int(await self._storage.incr(key, seconds, amount))

    async def close(self) -> None:
        """Let go of the connections."""
        await self._pool.disconnect()


class Counts:
    """Shared counts, and this server's own, which go on while Redis is away."""

    def __init__(self, shared: SharedCounts | None = None, own: MemoryCounts | None = None) -> None:
        self.own = own or MemoryCounts()
        self._shared = shared
        self._away_until = 0.0
        self._away = False

    @property
    def sharing(self) -> bool:
        """Whether there are others', be they away or not."""
        return self._shared is not None

    @property
    def shared(self) -> SharedCounts | None:
        """Those of all servers; None where there are none, or while they are away."""
        return None if self._shared is None or time.monotonic() < self._away_until else self._shared

    async def hit(self, key: str, rates: Sequence[Rate]) -> list[Window]:
        """Count one request in each of these rates; how they stand."""
        own = self.own.hit(key, rates)
        if (shared := self.shared) is None:
            return own
        try:
            windows = await shared.hit(key, rates)
        except shared.errors as exc:
            self.lost(exc)
            return own
        self.found()
        return windows

    def lost(self, exc: Exception) -> None:
        """Redis did not answer."""
        self._away_until = time.monotonic() + AWAY_SECONDS
        if not self._away:
            self._away = True
            log.warning("the shared counts are away (%s): this server counts alone", type(exc).__name__)

    def found(self) -> None:
        """Redis answered."""
        if self._away:
            self._away = False
            log.info("the shared counts are back")

    async def close(self) -> None:
        """Let go of Redis."""
        if self._shared is not None:
            await self._shared.close()
