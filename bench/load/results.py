"""What was seen: counts, and distributions that can be put together from several processes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import msgspec

_STEP: Final = 1.01
_LOG: Final = math.log(_STEP)
_LEAST: Final = 1e-6
"""Seconds; what is less counts as this."""
REASONS: Final = 20
"""Of failures that are told apart: servers may say anything."""
OTHERS: Final = "other reasons"


class Distribution(msgspec.Struct):
    """Durations in seconds, in classes 1 % apart: bounded in memory however long a run lasts, and exact enough."""

    classes: dict[int, int] = {}
    count: int = 0
    total: float = 0.0
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        """Take in one."""
        number = int(math.log(seconds / _LEAST) / _LOG) if seconds > _LEAST else 0
        self.classes[number] = self.classes.get(number, 0) + 1
        self.count += 1
        self.total += seconds
        self.longest = max(self.longest, seconds)

    def merge(self, other: Distribution) -> None:
        """Take in all of another."""
        for number, count in other.classes.items():
            self.classes[number] = self.classes.get(number, 0) + count
        self.count += other.count
        self.total += other.total
        self.longest = max(self.longest, other.longest)

    def percentile(self, percent: float) -> float:
        """The value, in seconds, that so many of them do not exceed; 0 where there is none."""
        wanted = math.ceil(self.count * percent / 100)
        for number in sorted(self.classes):
            wanted -= self.classes[number]
            if wanted <= 0:
                return min(self.longest, _LEAST * math.exp((number + 0.5) * _LOG))
        return 0.0

    def milliseconds(self) -> dict[str, float]:
        """p50, p95, p99 and the longest; empty where there is none."""
        if not self.count:
            return {}
        values = {f"p{percent}": self.percentile(percent) for percent in (50, 95, 99)} | {"max": self.longest}
        return {name: round(1e3 * value, 2) for name, value in values.items()}


class Seen(msgspec.Struct, kw_only=True):
    """What happened to sessions, in one process or in all; in a stretch of time or in the whole run."""

    at: float = 0.0
    """When it was told: seconds of the machine's monotonic clock, which all its processes share."""
    generator: int = 0
    """Which process tells it: the number of its first session."""
    open: int = 0
    """Sessions that are open now."""
    completed: int = 0
    refused: int = 0
    """Never opened."""
    dropped: int = 0
    """Ended in any other way than was asked for."""
    frames: int = 0
    lost_frames: int = 0
    partials: int = 0
    finals: int = 0
    words_shown: int = 0
    """In finals."""
    words_changed: int = 0
    """Words of partials that the next text of the utterance did not begin with."""
    word_errors: int = 0
    words_said: int = 0
    failures: dict[str, int] = {}
    """Why sessions were refused or dropped, as far as that was said; what is rare of very many reasons is `OTHERS`."""
    backends: list[str] = []
    opening: Distribution = msgspec.field(default_factory=Distribution)
    """From connecting to the permission to send."""
    partial: Distribution = msgspec.field(default_factory=Distribution)
    """From sending a frame to the first partial that covers its end."""
    final: Distribution = msgspec.field(default_factory=Distribution)
    """From sending the frame at which a final ends to the final."""
    speech_end: Distribution = msgspec.field(default_factory=Distribution)
    """From sending the end of an utterance, as the recording has it, to the final that covers it."""
    lag: Distribution = msgspec.field(default_factory=Distribution)
    """How much later than due frames were sent: this program's own fault."""
    cpu_seconds: float = 0.0
    """Of the generators."""

    def fail(self, reason: str) -> None:
        """Count why."""
        self._failed(reason, 1)

    def _failed(self, reason: str, count: int) -> None:
        if reason not in self.failures and len(self.failures) >= REASONS:
            reason = OTHERS
        self.failures[reason] = self.failures.get(reason, 0) + count

    def merge(self, other: Seen) -> None:
        """Take in what another process saw."""
        self.at = max(self.at, other.at)
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in DISTRIBUTIONS:
            getattr(self, name).merge(getattr(other, name))
        for reason, count in other.failures.items():
            self._failed(reason, count)
        self.backends = sorted({*self.backends, *other.backends})


DISTRIBUTIONS: Final = ("opening", "partial", "final", "speech_end", "lag")
_COUNTS: Final = (
    "open", "completed", "refused", "dropped", "frames", "lost_frames", "partials", "finals",
    "words_shown", "words_changed", "word_errors", "words_said", "cpu_seconds",
)  # fmt: skip


def together(seen: Iterable[Seen]) -> Seen:
    """All of them as one."""
    whole = Seen()
    for one in seen:
        whole.merge(one)
    return whole
