"""One connection's events, in order and whole: those from a certain number on, then all others as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from bridge.errors import BridgeError
from bridge.protocols.events import Closed, ServerEvent
from bridge.session.eventlog.base import EventLog, LogUnavailableError
from bridge.session.hub import Hub, Outbox


class Feed:
    """Iterate over it once: lists of events, the first one `first` alone; it ends after `Closed` or an overflow.

    `from_seq`: the first lasting event that is wanted (None: those to come). What the hub does not remember is read
    from the log, page by page as the connection takes it, so that a long past costs no memory.
    """

    __slots__ = (
        "__weakref__",
        "_first",
        "_hub",
        "_log",
        "_next",
        "outbox",
        "session_id",
    )

    def __init__(
        self,
        session_id: str,
        first: ServerEvent,
        hub: Hub | None,
        log: EventLog | None,
        *,
        from_seq: int | None = None,
        partials: bool = True,
        acks: bool = True,
        limit: int = 256,
    ) -> None:
        self.outbox = Outbox(limit, partials=partials, acks=acks)
        """For what concerns this connection alone, too."""
        self.session_id = session_id
        self._first = first
        self._hub = hub
        self._log = log
        self._next = from_seq

    async def __aiter__(self) -> AsyncGenerator[Sequence[ServerEvent]]:
        """See the class. Safe to cancel.

        Raises:
            BridgeError: `seq_behind` if events that are wanted are kept nowhere; `log_unavailable`.
        """
        yield [self._first]
        hub = self._hub
        if self._next is None and hub is not None and hub.closed:
            self._next = hub.seq  # how it ended is all that is left
        while self._next is not None and (hub is None or hub.since(self._next) is None):
            page = await self._page(self._next)
            yield page
            self._next = page[-1].seq + 1 if page[-1].seq is not None else None  # type: ignore[union-attr]
            if isinstance(page[-1], Closed):
                return
        if hub is not None:
            # Nothing is awaited between the last page and the first event: none is missed, and none comes twice.
            over, remembered = hub.closed, self._join(hub)
            if remembered:
                yield remembered
            while not over and (events := await self.outbox.get()):
                yield events

    def _join(self, hub: Hub) -> Sequence[ServerEvent]:
        """Get what comes from now on; returns what is remembered of what is wanted before."""
        remembered: Sequence[ServerEvent] = () if self._next is None else hub.since(self._next) or ()
        if self._next is not None:
            self.outbox.after = self._next - 1  # the log may have been ahead of the hub
        if remembered:
            self.outbox.after = hub.seq
        if not hub.closed:
            hub.attach(self.outbox)
        return remembered

    def leave(self) -> None:
        """The connection is gone."""
        if self._hub is not None:
            self._hub.unsubscribe(self.outbox)

    async def _page(self, from_seq: int) -> Sequence[ServerEvent]:
        if self._log is None:
            raise BridgeError("seq_behind")
        try:
            page = await self._log.events(self.session_id, from_seq)
        except LogUnavailableError as exc:
            raise BridgeError("log_unavailable") from exc
        if not page or page[0].seq != from_seq:
            raise BridgeError("seq_behind")
        return page
