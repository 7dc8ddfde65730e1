"""Where a session's events go: every receiver has an outbox of its own, and none can hold up another.

The hub gives each lasting event its sequence number, 1, 2, 3 … without gaps. Partials and acks are passing things:
they carry no number, and a receiver that is behind gets only the newest (the newest partial of each channel).
"""

from __future__ import annotations

import asyncio
from collections import deque

from bridge.protocols.events import Ack, Closed, Final, Partial, ServerEvent


class Outbox:
    """One receiver's events. `limit` lasting events may wait; past that `overflowed` is set and it ends."""

    def __init__(self, limit: int) -> None:
        self.overflowed = False
        self._limit = limit
        self._lasting: deque[ServerEvent] = deque()
        self._partials: dict[int | None, Partial] = {}  # by channel
        self._ack: Ack | None = None
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: ServerEvent) -> None:
        """Take an event in; never waits."""
        if self._closed:
            return
        if isinstance(event, Partial):
            self._partials[event.channel] = event
        elif isinstance(event, Ack):
            self._ack = event
        else:
            if isinstance(event, Final):
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
            self._waiter = asyncio.get_running_loop().create_future()
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


class Hub:
    """A session's receivers and its sequence numbers."""

    def __init__(self, outbox_limit: int) -> None:
        self._limit = outbox_limit
        self._seq = 0
        self._outboxes: list[Outbox] = []

    def subscribe(self) -> Outbox:
        """A new receiver's outbox, from the next event on."""
        outbox = Outbox(self._limit)
        self._outboxes.append(outbox)
        return outbox

    def next_seq(self) -> int:
        """The number of the next lasting event; to be published at once."""
        self._seq += 1
        return self._seq

    def publish(self, event: ServerEvent) -> None:
        """Give the event to every receiver."""
        for outbox in self._outboxes:
            outbox.put(event)
