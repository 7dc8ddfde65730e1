"""A session that runs on this server, and who sends it audio: one connection at a time, or none for a while."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import logging

from bridge.errors import BridgeError
from bridge.observe import trace
from bridge.protocols.events import Ack, Closed
from bridge.session.eventlog.base import EventLog, Outcome, SessionRecord
from bridge.session.feed import Feed
from bridge.session.publisher import Publisher
from bridge.session.session import Session

log = logging.getLogger(__name__)


def digest(token: str) -> bytes:
    """What is kept of a resume token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def check_token(record: SessionRecord, token: str) -> None:
    """Whether it is the session's.

    Raises:
        BridgeError: `wrong_token`.
    """
    if not record.token_digest or not hmac.compare_digest(record.token_digest, digest(token)):
        raise BridgeError("wrong_token")


class Sender:
    """One connection as a session's sender. It stays so until it leaves, or another one takes its place."""

    __slots__ = (
        "feed",
        "live",
        "reason",
        "session",
    )

    def __init__(self, live: Live, feed: Feed) -> None:
        self.live = live
        self.session = live.session
        self.feed = feed
        self.reason = "sender_gone"
        """Why its connection ended."""

    @property
    def current(self) -> bool:
        """Whether its audio still counts."""
        return self.live.sender is self


class Live:
    """A running session. `record` is as it was begun here; `stored`: whether the log knows it.

    `resume_seconds`: how long it is held for a sender that is gone.
    """

    __slots__ = (
        "__weakref__",
        "_hold",
        "_outbox_events",
        "_resume_seconds",
        "ended",
        "held_since",
        "log",
        "publisher",
        "record",
        "sender",
        "session",
        "trace",
    )

    def __init__(
        self,
        session: Session,
        publisher: Publisher,
        record: SessionRecord,
        event_log: EventLog | None,
        *,
        resume_seconds: float,
        outbox_events: int,
    ) -> None:
        self.session = session
        self.publisher = publisher
        self.record = record
        self.log = event_log
        self.sender: Sender | None = None
        self.trace = trace.current()
        """Its own, whose id is that of the connection that began it here."""
        self.held_since: float | None = None
        """When its sender was lost, by the event loop's clock."""
        self.ended = asyncio.Event()
        """Set when it runs no more."""
        self._resume_seconds = resume_seconds if record.token_digest else 0.0
        self._outbox_events = outbox_events
        self._hold: asyncio.TimerHandle | None = None
        session.suspendable = lambda: self.suspendable
        publisher.lost = self._lost

    @property
    def stored(self) -> bool:
        """Whether it could go on elsewhere."""
        return self.log is not None

    @property
    def over(self) -> bool:
        """Whether it has ended, and was said to have."""
        return self.ended.is_set() or self.publisher.hub.closed

    @property
    def held(self) -> bool:
        """Whether it waits for its sender."""
        return self.held_since is not None

    @property
    def suspendable(self) -> bool:
        """Whether it can be left as it is, because its client will go on with it: here later, or elsewhere."""
        # Who has said `stop` and is gone may be done; one that is there will say it again.
        comes_back = not self.session.stopping if self.held else self.record.start.resume is True
        return self.stored and bool(self.record.token_digest) and comes_back and not self.publisher.backlogged

    def attach(
        self,
        *,
        token: str | None,
        resumed: bool = False,
        from_seq: int | None = None,
        offset: int | None = None,
        partials: bool = True,
    ) -> Sender:
        """A connection becomes the sender; the one before, if there is one, is told and let go.

        Raises:
            BridgeError: `seq_ahead`, `offset_ahead`, `offset_behind` or `bad_start`; nothing has changed.
        """
        if from_seq is not None and from_seq > self.publisher.seq + 1:
            raise BridgeError("seq_ahead", f"the last event has the number {self.publisher.seq}")
        self.session.expect(offset)
        if self._hold is not None:
            self._hold.cancel()
            self._hold = self.held_since = None
        self.session.unhold()
        self._dismiss()
        if resumed and self.trace is not None and (asked := trace.trace_id()) != self.trace.trace_id:
            self.trace.sender_trace = asked
        ready = dataclasses.replace(
            self.session.ready(token, self._resume_seconds if token else 0.0, resumed=resumed),
            trace_id=trace.trace_id(),
        )
        feed = Feed(
            self.session.id,
            ready,
            self.publisher.hub,
            self.log,
            # Of a session that begins nothing is missed; one that comes back asks for what it wants.
            from_seq=from_seq if resumed else 1,
            partials=partials,
            limit=self._outbox_events,
        )
        feed.outbox.acked = Ack(ready.received, ready.finalized)
        self.sender = Sender(self, feed)
        return self.sender

    def detach(self, sender: Sender) -> None:
        """Its connection is gone: hold the session for it, unless somebody else is the sender or it has ended."""
        sender.feed.leave()
        if not sender.current:
            return
        self.sender = None
        if self.over:
            return
        if not self._resume_seconds:
            self.session.stop(sender.reason)
            return
        loop = asyncio.get_running_loop()
        self.held_since = loop.time()
        self.session.hold()
        self._hold = loop.call_later(self._resume_seconds, self._expired)

    def _lost(self, outcome: Outcome) -> None:
        """The log refuses the session: another server has it now, or it was deleted."""
        if outcome is Outcome.SUPERSEDED:
            log.info("session was taken over by another server", extra={"session": self.session.id})
            self._dismiss()
            self.session.suspend("taken_over")
        else:
            self.session.cut("deleted")

    def finished(self) -> None:
        """It runs no more."""
        if self._hold is not None:
            self._hold.cancel()
        self.held_since = None
        self.ended.set()
        # No cycle is left behind: the collector runs seldom.
        self.publisher.settle()
        self.session.suspendable = lambda: False

    def _dismiss(self) -> None:
        """Tell the sender that it is one no more."""
        if self.sender is not None:
            former, self.sender = self.sender, None
            former.feed.leave()
            former.feed.outbox.put(
                Closed(None, "taken_over", self.session.received, self.session.finalized, self.session.audio_seconds)
            )

    def _expired(self) -> None:
        """Nobody came back."""
        self.held_since = None
        self.session.stop("sender_gone")
