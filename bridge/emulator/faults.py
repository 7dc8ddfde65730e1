"""What goes wrong, planned: faults for each stream, by options or by a JSON file."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bridge.emulator.statuses import Code

STATUSES: Final = tuple(code.name for code in Code)


class PlanError(ValueError):
    """A plan that says nothing sensible; the text says what would."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to one stream. Positions (`…_at`, `lag`) are seconds of its audio, from its own start.

    - `refuse`: the status with which it is refused, right after its config.
    - `abort_at`: where it ends with `status`, the audio that reaches beyond unheard.
    - `freeze_at`: from there on audio is taken, and nothing is ever answered.
    - `lag`: results come so much later.
    - `half_close_lag`: seconds (of the emulator's clock) between the end of the audio and the last results.
    - `message`: the text of `status` and `refuse`; None: the usual one.
    """

    refuse: str | None = None
    abort_at: float | None = None
    status: str = "UNAVAILABLE"
    freeze_at: float | None = None
    lag: float = 0.0
    half_close_lag: float = 0.0
    message: str | None = None

    def __post_init__(self) -> None:
        for name in ("refuse", "status", "message"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "status"):
                raise PlanError(f"{name} should be a string, not {value!r}")
        for name in ("refuse", "status"):
            value = getattr(self, name)
            if value is not None and value not in STATUSES:
                raise PlanError(f"{name}: {value!r} is not one of {', '.join(STATUSES)}")
        for name in ("abort_at", "freeze_at", "lag", "half_close_lag"):
            value = getattr(self, name)
            if value is None and name.endswith("_at"):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise PlanError(f"{name} should be a number of seconds, not {value!r}")
            if not 0 <= value < math.inf:
                raise PlanError(f"{name} should be a number of seconds from 0 on, not {value!r}")


@dataclass(frozen=True, slots=True)
class Plan:
    """The faults of every stream, counted over the server from 0.

    `streams` are those of the first ones, `usual` those of all others. `refuse_first` bounds how many streams
    `usual.refuse` strikes (None: all). `abort_every`: every stream without an `abort_at` of its own ends at a random
    moment, after so many seconds of audio in the mean; the same `seed` gives the same moments.
    """

    usual: Faults = Faults()
    streams: tuple[Faults, ...] = ()
    refuse_first: int | None = None
    abort_every: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.abort_every is not None and not 0 < self.abort_every < math.inf:
            raise PlanError(f"abort_every should be a number of seconds above 0, not {self.abort_every!r}")

    def of(self, number: int) -> Faults:
        """The faults of the stream with this number."""
        faults = self.streams[number] if number < len(self.streams) else self.usual
        if number >= len(self.streams) and self.refuse_first is not None and number >= self.refuse_first:
            faults = dataclasses.replace(faults, refuse=None)
        if self.abort_every is not None and faults.abort_at is None:
            moment = random.Random(f"{self.seed}:{number}").expovariate(1 / self.abort_every)  # noqa: S311 - no secret
            faults = dataclasses.replace(faults, abort_at=moment)
        return faults


def read_plan(path: Path) -> tuple[Faults, ...]:
    """The faults of a JSON file: a list of objects with the fields of `Faults`.

    Raises:
        PlanError: it cannot be read, or is no such list.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise PlanError(f"the plan {path} cannot be read: {exc}") from exc
    if not isinstance(data, list):
        raise PlanError(f"the plan {path} should be a list with the faults of the first, second, … stream")
    return tuple(_faults(path, number, entry) for number, entry in enumerate(data, 1))


def _faults(path: Path, number: int, entry: Any) -> Faults:
    known = [field.name for field in dataclasses.fields(Faults)]
    if not isinstance(entry, dict):
        raise PlanError(f"the plan {path}, stream {number}: {entry!r} should be an object; {{}} for no fault")
    for name in entry:
        if name not in known:
            raise PlanError(f"the plan {path}, stream {number}: {name!r} is not one of {', '.join(known)}")
    try:
        return Faults(**entry)
    except PlanError as exc:
        raise PlanError(f"the plan {path}, stream {number}: {exc}") from exc
