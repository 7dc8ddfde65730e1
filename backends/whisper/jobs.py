"""A request on its way through the scheduler, and the lane of the stream that made it."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Hashable
from typing import Any, Protocol

from backends.whisper.fairness import Share
from backends.whisper.window import Kind


class Request(Protocol):
    """A window to be decoded."""

    @property
    def kind(self) -> Kind:
        """How urgent it is."""

    @property
    def seconds(self) -> float:
        """How much audio it holds."""


class State(enum.Enum):
    """Where a job is."""

    RAW = enum.auto()
    """Waits for its features."""
    PREPARING = enum.auto()
    READY = enum.auto()
    """Waits for a batch."""
    RUNNING = enum.auto()
    OVER = enum.auto()
    """Answered, withdrawn or replaced; what a thread still finds out about it is thrown away."""


class Lane:
    """One stream's way into the queue. Opened by `Scheduler.lane`, and of no use but to hand to it."""

    __slots__ = ("jobs", "open", "running", "share")

    def __init__(self, share: Share) -> None:
        self.share = share
        self.jobs: dict[Job, None] = {}  # those that are not over, in the order of their requests
        self.running = 0  # jobs that a worker has in hand, withdrawn ones too
        self.open = True


class Job:
    """A request, until it is over. Times are the loop's, in seconds.

    `asked`: when it was made; `since`: for how long the stream has waited, which a partial inherits from the one that
    it replaces. Else a stream whose partials are replaced sooner than their turn comes would never have one decoded.
    """

    __slots__ = ("asked", "future", "key", "kind", "lane", "most", "prepared", "request", "since", "state", "taken")

    def __init__(self, lane: Lane, request: Request, key: Hashable, asked: float, future: asyncio.Future[Any]) -> None:
        self.lane = lane
        self.request = request
        self.kind = Kind(request.kind)
        self.key = key
        self.asked = asked
        self.since = asked
        self.future = future
        self.most: int | None = None  # size of the largest batch that it may be in, after one has failed
        self.prepared: Any = None
        self.state = State.RAW
        self.taken = False  # it was in a batch before

    @property
    def waits(self) -> bool:
        """Whether it can still be replaced."""
        return self.state in (State.RAW, State.PREPARING, State.READY)

    def turn(self, now: float) -> tuple[Kind, float]:
        """Whose turn it is: less comes first."""
        return self.kind, self.since + self.lane.share.penalty(now)

    def live(self, now: float) -> bool:
        """Whether the promise is for this one; see `Share.live`."""
        return self.lane.share.live(now)
