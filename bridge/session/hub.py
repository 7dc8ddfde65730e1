"""Where a session's events go: every receiver has an outbox of its own, and none can hold up another.

Lasting events carry a sequence number, 1, 2, 3 … without gaps. Partials and acks are passing things: they carry no
number, and a receiver that is behind gets only the newest (the newest partial of each channel).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from bridge.protocols.events import Ack, Closed, Error, LastingEvent, Partial, ServerEvent
from bridge.protocols.events import Final as FinalEvent

HISTORY: Final = 32
"""Lasting events that a hub remembers, for who joins meanwhile; what lies before is read from the event log."""


class Outbox:
    """One receiver's events. `limit` lasting events may wait; past that `overflowed` is set and it ends."""

    __slots__ = (
        "__weakref__",
        "_ack",
        "_closed",
        "_lasting",
        "_limit",
        "_loop",
        "_partials",
        "_waiter",
        "_wants_acks",
        "_wants_partials",
        "acked",
        "after",
        "overflowed",
    )

    def __init__(self, limit: int, *, partials: bool = True, acks: bool = True) -> None:
        self.overflowed = False
        self.acked = Ack(0, 0)
        """What the receiver was told last; nobody is told of less."""
        self.after = 0
        """Up to which number the receiver has been told by other ways."""
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._wants_partials = partials
        self._wants_acks = acks
        self._lasting: deque[ServerEvent] = deque()
        self._partials: dict[int | None, Partial] = {}  # by channel
        self._ack: Ack | None = None
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def closed(self) -> bool:
        """Whether it takes nothing more."""
        return self._closed

    @property
    def waiting(self) -> int:
        """Lasting events that were not taken yet."""
        return len(self._lasting)

    def put(self, event: ServerEvent) -> None:
        """Take an event in; never waits."""
        if self._closed or (getattr(event, "seq", None) or self.after + 1) <= self.after:
            return
        if isinstance(event, Partial):
            if not self._wants_partials:
                return
            self._partials[event.channel] = event
        elif isinstance(event, Ack):
            if not self._wants_acks or event.received < self.acked.received or event.finalized < self.acked.finalized:
                return
            self._ack = self.acked = event
        else:
            if isinstance(event, FinalEvent):
                self._partials.pop(event.channel, None)  # the final replaces it
            self._lasting.append(event)
            if isinstance(event, Closed):
                self._closed = True
            elif len(self._lasting) > self._limit:
                self.overflowed = True
                self._closed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> list[ServerEvent]:
        """All that waits, in order; empty when nothing will ever come again. Safe to cancel."""
        while not self._lasting and not self._partials and self._ack is None:
            if self._closed:
                return []
            self._waiter = self._loop.create_future()
            await self._waiter
        if self.overflowed:
            return []
        events = list(self._lasting)
        self._lasting.clear()
        closing = events.pop() if events and isinstance(events[-1], Closed) else None
        events += self._partials.values()
        self._partials.clear()
        if self._ack is not None:
            events.append(self._ack)
        self._ack = None
        if closing is not None:
            events.append(closing)
        return events


_SAID: Final = (FinalEvent, Error, Closed)


class Finals(Outbox):
    """Of a receiver that wants to know what was said and how it ended, and nothing of the way there."""

    __slots__ = ()

    def put(self, event: ServerEvent) -> None:
        """As `Outbox`."""
        if isinstance(event, _SAID):
            super().put(event)


class Hub:
    """A session's receivers on this server, whoever runs the session.

    `seq`: the last lasting event that was delivered. `history`: how many of them are remembered.
    """

    __slots__ = (
        "__weakref__",
        "_history",
        "_limit",
        "_loop",
        "_outboxes",
        "_passing",
        "closed",
        "heard",
        "seq",
    )

    def __init__(self, outbox_limit: int, *, seq: int = 0, history: int = HISTORY) -> None:
        self.seq = seq
        self.closed = False
        """Whether the session has ended: nothing comes any more."""
        self.heard = 0.0
        """When the last event came, by the event loop's clock."""
        self._limit = outbox_limit
        self._loop = asyncio.get_running_loop()  # asked for at each event, it would cost a system call
        self._outboxes: list[Outbox] = []
        self._history: deque[LastingEvent] = deque(maxlen=history)
        self._passing: dict[object, Partial | Ack] = {}  # the last of each kind that still counts

    @property
    def receivers(self) -> int:
        """Outboxes that get the events, the sender's own included."""
        return len(self._outboxes)

    def subscribe(self, *, partials: bool = True, acks: bool = True) -> Outbox:
        """A new receiver's outbox, from the next event on."""
        outbox = Outbox(self._limit, partials=partials, acks=acks)
        self.attach(outbox)
        return outbox

    def attach(self, outbox: Outbox) -> None:
        """Put every event from the next one on into it, too; of the passing ones, the last before."""
        for event in self._passing.values():
            outbox.put(event)
        self._outboxes.append(outbox)

    def unsubscribe(self, outbox: Outbox) -> None:
        """The receiver has left; nothing if it has before."""
        if outbox in self._outboxes:
            self._outboxes.remove(outbox)

    def deliver(self, event: ServerEvent) -> bool:
        """Give the event to every receiver, unless they had it. Returns False, and does nothing, if one is missing."""
        seq: int | None = getattr(event, "seq", None)
        self.heard = self._loop.time()
        if seq is not None:
            if seq <= self.seq:
                return True
            if seq > self.seq + 1:
                return False
            self.seq = seq
            self._history.append(event)  # type: ignore[arg-type]  # what has a number is lasting
            if isinstance(event, FinalEvent):
                self._passing.pop((Partial, event.channel), None)
        elif isinstance(event, Partial):
            self._passing[Partial, event.channel] = event
        elif isinstance(event, Ack):
            self._passing[Ack] = event
        for outbox in self._outboxes:
            outbox.put(event)
        if isinstance(event, Closed):
            self.closed = event.seq is not None
            self._outboxes.clear()
            self._passing.clear()
        return True

    def deliver_all(self, events: Iterable[ServerEvent]) -> bool:
        """One after the other; stops at a gap and returns False."""
        return all(self.deliver(event) for event in events)

    def remember(self, count: int) -> None:
        """So many lasting events from now on."""
        self._history = deque(self._history, maxlen=count)

    def forget(self) -> None:
        """Remember nothing: a session's words need not wait for the collector, which comes seldom."""
        self._history.clear()
        self._passing.clear()

    def skip_to(self, events: Sequence[LastingEvent]) -> None:
        """Deliver these although some before them are lost for good."""
        if events and (first := events[0].seq) is not None and first > self.seq:
            self.seq = first - 1
        self.deliver_all(events)

    @property
    def remembered(self) -> list[LastingEvent]:
        """The last lasting events."""
        return list(self._history)

    def since(self, from_seq: int) -> list[LastingEvent] | None:
        """The lasting events from this number on; None if they are not all remembered."""
        if from_seq > self.seq:
            return []
        first = self._history[0].seq if self._history else None
        if first is None or from_seq < first:
            return None
        return [event for event in self._history if event.seq is not None and event.seq >= from_seq]
