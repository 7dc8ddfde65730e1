"""How much one caller may ask for: rates for each key and each address, and a stop to those who guess keys."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, Literal

from bridge.errors import BridgeError
from bridge.security.addresses import counted_as
from bridge.security.rates import Counts, MemoryCounts, Rate, Window

KNOWN: Final = 8_192
"""Callers that are remembered to have had a good key; an address that is locked stays open to them."""

Header = tuple[bytes, bytes]
By = Literal["key", "address", "failures"]


class Guards:
    """Counts what callers do. Rates without entries allow everything. `refused` is told by what it was."""

    def __init__(
        self,
        counts: Counts | None = None,
        *,
        rates: Sequence[Rate] = (),
        address_rates: Sequence[Rate] = (),
        failure_rates: Sequence[Rate] = (),
        refused: Callable[[By], None] = lambda _: None,
    ) -> None:
        self._counts = counts or Counts()
        self._failures = MemoryCounts()  # its own: what is locked here stays so, however many others come by
        self._rates = rates
        self._address_rates = address_rates
        self._failure_rates = failure_rates
        self._refused = refused
        self._known: OrderedDict[bytes, None] = OrderedDict()

    async def arrive(self, address: str, told: list[Header]) -> None:
        """Count a request or connection of this address, before it is known whose it is.

        `told`: headers for the answer are added, whatever it is.

        Raises:
            BridgeError: `rate_limited`, with `retry_after`.
        """
        if self._address_rates:
            await self._hit("address", counted_as(address), self._address_rates, told)

    async def hit(self, subject: str, told: list[Header]) -> None:
        """Count one of this subject; as `arrive`."""
        if self._rates:
            await self._hit("key", subject, self._rates, told)

    async def _hit(self, by: By, name: str, rates: Sequence[Rate], told: list[Header]) -> None:
        windows = await self._counts.hit(f"{by}:{name}", rates)
        _tell(by, windows, told)
        if refusing := [window for window in windows if window.refused]:
            self._refused(by)
            whose = "this key" if by == "key" else "this address"
            raise _too_many(f"too many requests of {whose}", refusing)

    # Who guesses keys

    def check(self, address: str, credential: str) -> None:
        """Whether a key or token of this address is looked at at all.

        One that was good here before is, even if somebody else behind the same address guesses keys; so a guess that
        is right is not found out.

        Raises:
            BridgeError: `rate_limited`, with `retry_after`.
        """
        name = counted_as(address)
        windows = [self._failures.look(name, rate) for rate in self._failure_rates]
        refusing = [window for window in windows if window.refused]
        if refusing and _digest(name, credential) not in self._known:
            self._refused("failures")
            raise _too_many("too many wrong keys of this address", refusing)

    def failed(self, address: str) -> None:
        """A key or token was wrong."""
        self._failures.hit(counted_as(address), self._failure_rates)

    def passed(self, address: str, credential: str) -> None:
        """It was good."""
        if not self._failure_rates:
            return
        digest = _digest(counted_as(address), credential)
        self._known[digest] = None
        self._known.move_to_end(digest)
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)

    async def close(self) -> None:
        """Let go of what the counts are kept in."""
        await self._counts.close()


def _too_many(what: str, refusing: Sequence[Window]) -> BridgeError:
    """Once the longest of their waits is over, all of them allow another."""
    window = max(refusing, key=lambda window: window.reset)
    sentence = f"{what}: {window.limit} in {window.seconds} s are allowed"
    return BridgeError("rate_limited", sentence, retry_after=max(1, math.ceil(window.reset)))


def _tell(by: By, windows: Sequence[Window], told: list[Header]) -> None:
    """RateLimit fields of draft-ietf-httpapi-ratelimit-headers-10, and the older ones that most clients read.

    The older ones tell of one rate: of that with least left.
    """
    for window in windows:
        name = f'"{by}"' if len(windows) == 1 else f'"{by}-{window.seconds}"'
        told.append((b"ratelimit-policy", f"{name};q={window.limit};w={window.seconds}".encode()))
        told.append((b"ratelimit", f"{name};r={window.remaining};t={math.ceil(window.reset)}".encode()))
    least = min(windows, key=lambda window: (window.remaining, -window.reset))
    before = next((int(value) for name, value in told if name == b"ratelimit-remaining"), None)
    if before is None or least.remaining < before:
        told[:] = [header for header in told if header[0] not in _OLDER]
        values = (least.limit, max(0, least.remaining), math.ceil(least.reset))
        told += zip(_OLDER, (str(value).encode() for value in values), strict=True)


_OLDER: Final = (b"ratelimit-limit", b"ratelimit-remaining", b"ratelimit-reset")


def _digest(address: str, credential: str) -> bytes:
    return hashlib.sha256(f"{address} {credential}".encode("utf-8", "surrogateescape")).digest()
