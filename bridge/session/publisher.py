"""Numbers a session's events and sees that they are in the event log before anybody hears of them.

    session ──publish──► (waits for the journal) ──► hub ──► receivers

So whoever knows of an event can be sure that another server would tell the same, if this one were killed now. That
costs what a write takes, and only what lasts pays it: a passing event goes at once, unless a lasting one before it
still waits. While the log is away the session goes on: its events are delivered, and kept to be written once the log is
back. Only `Ack.finalized` stays where the log knows it: the clients keep their audio as long as it may be needed.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from bridge.protocols.events import Ack, LastingEvent, Partial, Ready, ServerEvent
from bridge.session.eventlog.base import Entry, Outcome, Progress, SessionRecord
from bridge.session.hub import Hub

log = logging.getLogger(__name__)

BACKLOG: Final = 5_000
"""Events that one session keeps for a log that is away, an hour and more of speech. Past that it is logged no more."""


class Position(NamedTuple):
    """How far a session is, for the log and in frames at the client's rate, and at which backend."""

    progress: Progress
    finalized: int
    backend: str = ""


class Writer(Protocol):
    """Whom a publisher tells that it has something to be written; see `bridge.session.journal`."""

    @property
    def down(self) -> bool:
        """Whether the log is away."""

    def note(self, publisher: Publisher) -> None:
        """It has something to be written."""

    def announce(self, session_id: str, event: Partial | Ack) -> None:
        """Tell receivers at other servers of a passing event."""


class Publisher:
    """One session's. Without a writer, or once the log has given it up, events go to the hub at once.

    Nothing more is published of a session that was superseded.
    """

    __slots__ = (
        "__weakref__",
        "_away",
        "_held_ack",
        "_logged_final",
        "_logged_seq",
        "_superseded",
        "_unlogged",
        "_waiting",
        "_wanted_final",
        "_writer",
        "epoch",
        "hub",
        "lost",
        "position",
        "seq",
        "session_id",
        "unknown",
    )

    def __init__(
        self,
        hub: Hub,
        *,
        session_id: str = "",
        epoch: int = 1,
        seq: int = 0,
        finalized: int = 0,
        writer: Writer | None = None,
    ) -> None:
        self.hub = hub
        self.session_id = session_id
        self.epoch = epoch
        self.seq = seq
        """The number of the last lasting event."""
        self.position: Callable[[], Position] | None = None
        """How far the session is; the session puts it here. Asked when an entry is made."""
        self.unknown: SessionRecord | None = None
        """The session as it began, if the log was away then and has to be told of it first."""
        self.lost: Callable[[Outcome], None] = lambda _: None
        """Called once, if the log refuses the session; whoever is responsible for it puts it here."""
        self._writer = writer
        self._superseded = False
        self._unlogged: deque[LastingEvent] = deque()
        self._waiting: deque[ServerEvent] = deque()  # not delivered yet
        self._logged_seq = seq
        self._logged_final = finalized
        self._wanted_final = finalized  # how far the furthest ack goes
        self._away = False  # the log is; nothing waits for it
        self._held_ack: Ack | None = None  # the last one, if it was delivered with less than it says

    @property
    def backlogged(self) -> bool:
        """Whether receivers know of events that the log has not."""
        return self._away and bool(self._unlogged)

    @property
    def logged(self) -> bool:
        """Whether its events go into the log."""
        return self._writer is not None

    @property
    def owned(self) -> bool:
        """Whether the session is still this server's."""
        return not self._superseded

    def told_finalized(self, finalized: int) -> int:
        """As much of it as a client may rely on: what the log knows, if there is one."""
        return finalized if self._writer is None else min(finalized, self._logged_final)

    def next_seq(self) -> int:
        """The number of the next lasting event; to be published at once."""
        self.seq += 1
        return self.seq

    def publish(self, event: ServerEvent) -> None:
        """Give the event to every receiver, as soon as it may be known."""
        if self._superseded:
            return
        writer = self._writer
        if writer is None:
            self._deliver(event)
            return
        if self._to_be_logged(event):
            writer.note(self)
        elif not self._waiting:
            self._deliver(event)
            return
        if self._writer is None or self._away:
            self._release_all()
            self._deliver(event)
        else:
            self._wait(event)
            if writer.down:
                self.unavailable()

    def _to_be_logged(self, event: ServerEvent) -> bool:
        """Whether something has to be written first."""
        if isinstance(event, Ack):
            self._wanted_final = max(self._wanted_final, event.finalized)
            return event.finalized > self._logged_final
        if isinstance(event, Partial | Ready) or getattr(event, "seq", None) is None:
            return False
        self._unlogged.append(event)  # type: ignore[arg-type]  # what has a number is lasting
        if len(self._unlogged) > BACKLOG:
            log.error("session is logged no more: the event log was away too long", extra={"session": self.session_id})
            self.give_up()
        return True

    def _wait(self, event: ServerEvent) -> None:
        """Behind those that wait. Of passing ones in a row the newest is enough."""
        last = self._waiting[-1] if self._waiting else None
        replaced = (isinstance(event, Ack) and isinstance(last, Ack)) or (
            isinstance(event, Partial) and isinstance(last, Partial) and event.channel == last.channel
        )
        if replaced:
            self._waiting[-1] = event
        else:
            self._waiting.append(event)

    def settle(self) -> None:
        """The session has ended: let go of it. What it came to stays, for what is still to be written."""
        if self.position is not None:
            position = self.position()
            self.position = lambda: position
        self.lost = lambda _: None

    # What the journal calls

    @property
    def pending(self) -> bool:
        """Whether there is something to be written."""
        return self._writer is not None and (bool(self._unlogged) or self._wanted_final > self._logged_final)

    @property
    def unlogged(self) -> int:
        """Events that are to be written."""
        return len(self._unlogged)

    @property
    def first_unlogged(self) -> int:
        """The number of the first event that is to be written."""
        return (self._unlogged[0].seq if self._unlogged else None) or self.seq + 1

    def take(self) -> tuple[Entry, Position] | None:
        """What is to be written now; None if nothing is. It stays until `written`."""
        if not self.pending or self.position is None:
            return None
        position = self.position()
        return Entry(self.session_id, self.epoch, tuple(self._unlogged), position.progress, position.backend), position

    def written(self, entry: Entry, position: Position) -> None:
        """The entry is in the log: what waited for it is delivered."""
        for event in entry.events:
            if self._unlogged and self._unlogged[0] is event:
                self._unlogged.popleft()
                self._logged_seq = event.seq or self._logged_seq
        self._logged_final = max(self._logged_final, position.finalized)
        if self._away and not self._unlogged:
            self._away = False
            if self._held_ack is not None:
                self._deliver(self._capped(self._held_ack))
        self._release()

    def refused(self, outcome: Outcome) -> None:
        """The log has another owner for the session, or was told to forget it."""
        if outcome is Outcome.SUPERSEDED:
            self._superseded = True
            self._unlogged.clear()
            self._waiting.clear()
            self._writer = None
        else:
            self.give_up()
        self.lost(outcome)

    def unavailable(self) -> None:
        """The log is away: nothing waits for it any more."""
        self._away = True
        self._release_all()

    def rewind(self, events: list[LastingEvent]) -> None:
        """The log has lost these; they are written again, before what waits for it."""
        known = {event.seq for event in self._unlogged}
        self._unlogged.extendleft(event for event in reversed(events) if event.seq not in known)

    def give_up(self) -> None:
        """Log nothing more of this session."""
        self._writer = None
        self._unlogged.clear()
        self._release_all()

    # Delivery

    def _release(self) -> None:
        """Deliver what needs wait no longer."""
        while self._waiting:
            event = self._waiting[0]
            seq: int | None = getattr(event, "seq", None)
            if seq is not None and seq > self._logged_seq:
                return
            if isinstance(event, Ack) and event.finalized > self._logged_final:
                return
            self._waiting.popleft()
            self._deliver(event)

    def _release_all(self) -> None:
        while self._waiting:
            event = self._waiting.popleft()
            self._deliver(event)

    def _deliver(self, event: ServerEvent) -> None:
        if isinstance(event, Ack):
            event = self._capped(event)
        self.hub.deliver(event)
        if isinstance(event, Partial | Ack) and self._writer is not None:
            self._writer.announce(self.session_id, event)

    def _capped(self, ack: Ack) -> Ack:
        """With what the log knows, as long as there is one."""
        told = self.told_finalized(ack.finalized)
        self._held_ack = ack if told < ack.finalized else None
        return ack if told == ack.finalized else dataclasses.replace(ack, finalized=told)
