"""Where connections come in: to begin a session, to go on with one, or to listen."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Final
from weakref import WeakValueDictionary

from bridge.errors import BridgeError
from bridge.observe import trace
from bridge.protocols.events import Join, Joined, LastingEvent, Ready, Resume, ServerEvent, Start
from bridge.session.account import NOBODY, Account
from bridge.session.eventlog.base import (
    EventLog,
    LogUnavailableError,
    Outcome,
    Progress,
    SessionRecord,
)
from bridge.session.feed import Feed
from bridge.session.keeper import LOG_SECONDS, Keeper, asking
from bridge.session.live import Live, Sender, check_token, digest
from bridge.session.manager import SessionManager, new_session_id
from bridge.session.origin import Origin

log = logging.getLogger(__name__)

TOLD: Final = 64
"""Events from which it is seen whether somebody was speaking."""


class Reception:
    """One server's, in front of the sessions that `keeper` runs."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._log = keeper.log
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def refusal(self) -> BridgeError | None:
        """Why a new session would be refused now."""
        return self._keeper.refusal()

    # Senders

    @contextlib.asynccontextmanager
    async def sender(
        self, opening: Start | Resume, protocol: str, account: Account = NOBODY
    ) -> AsyncGenerator[Sender | Feed]:
        """A connection begins a session or comes back to one; when the context ends, it is gone.

        A mere `Feed` stands for a session that has ended meanwhile: there is nothing left to send.

        Raises:
            BridgeError: why not; see `bridge.errors`.
        """
        session_id = opening.session_id or new_session_id()
        async with self._alone(session_id):
            if isinstance(opening, Start):
                sender: Sender | Feed = await self._begin(session_id, opening, protocol, account)
            else:
                sender = await self._resume(opening, account)
        if isinstance(sender, Feed):
            yield sender
            return
        try:
            yield sender
        finally:
            sender.live.detach(sender)

    async def _begin(self, session_id: str, start: Start, protocol: str, account: Account) -> Sender:
        if self._keeper.find(session_id) is not None:
            raise BridgeError("session_taken")
        token = secrets.token_urlsafe(32) if self._keeper.resume_seconds and start.resume is not False else None
        now = time.time()
        record = SessionRecord(
            session_id,
            digest(token) if token else b"",
            start,
            start.language or "",
            "",
            protocol,
            self._keeper.node,
            now,
            Progress((0.0,) * start.lanes),
            touched=now,
        )
        event_log = self._log if start.store else None
        if event_log is None and start.session_id is not None and await self._is_known(session_id):
            raise BridgeError("session_taken")  # else whoever knows its name could stand in front of it
        await self._keeper.manager.check(account)
        await self._keeper.make_room()
        live = await self._keeper.run(record, Origin(), event_log, account, create=True)
        return live.attach(token=token, partials=start.partials)

    async def _is_known(self, session_id: str) -> bool:
        """Whether the log has a session of this name; no while it is away."""
        try:
            return await self._keeper.known(session_id) is not None
        except BridgeError:
            return False

    async def _resume(self, resume: Resume, account: Account) -> Sender | Feed:
        live = self._keeper.find(resume.session_id)
        if live is not None:
            check_token(live.record, resume.token)
            await self._look_after(live)
            if not live.session.suspended and not live.ended.is_set():
                self._keeper.manager.metrics.resumes.labels("held").inc()
                sender = _attached(live, resume, account)
                began = live.trace.trace_id if live.trace is not None else None
                log.info("session resumed", extra={"session": resume.session_id, "session_trace": began})
                return sender
            if not await self._keeper.left(live):
                raise BridgeError("log_unavailable", "the session is being written; try again")
        record = await self._keeper.known(resume.session_id)
        if record is None or self._log is None:
            raise BridgeError("unknown_session")
        check_token(record, resume.token)
        self._check_seq(resume.from_seq, record.seq, record)
        if record.ended is None:
            if time.time() - record.touched > self._keeper.resume_seconds:
                raise BridgeError("session_expired")
            await self._keeper.make_room()
            record, told = await self._claim(self._log, record.session_id)
        if record.ended is not None:
            return self._told(_ready_of(record, self._keeper.manager), record, resume.from_seq)
        log.info("session goes on here", extra={"session": record.session_id})
        self._keeper.manager.metrics.resumes.labels("restored").inc()
        try:
            live = await self._keeper.run(record, Origin.of(record, told), self._log, account, create=False)
        except BridgeError:
            await self._keeper.release(self._log, record.session_id, record.epoch)
            raise
        try:
            return _attached(live, resume, account)
        except BridgeError:
            live.session.suspend("taken_over")  # as it was before: held by nobody
            raise

    def _check_seq(self, wanted: int | None, seq: int, record: SessionRecord | None) -> None:
        """Whether there are events up to what is wanted; `seq` is the last that is known here.

        Raises:
            BridgeError: `seq_ahead`. Or `log_unavailable`, where another server may have told of them while the log was
                away: it will write them, if it lives.
        """
        if wanted is None or wanted <= seq + 1:
            return
        open_elsewhere = (
            self._log is not None
            and self._log.shared
            and record is not None
            and record.ended is None
            and time.time() - record.touched <= self._keeper.resume_seconds
        )
        if open_elsewhere:
            raise BridgeError("log_unavailable", f"the event log does not have the event {wanted - 1} yet; try again")
        raise BridgeError("seq_ahead", f"the last event has the number {seq}")

    async def _look_after(self, live: Live) -> None:
        """Find out whether the session is still this server's.

        Its client may have gone on at another one, and come back before there was anything to write, which would have
        been refused. While the log is away, nobody else can have it.
        """
        if live.log is None or self._keeper.journal is None or self._keeper.journal.down:
            return
        with contextlib.suppress(LogUnavailableError, TimeoutError):
            async with asyncio.timeout(LOG_SECONDS):
                record = await live.log.read(live.session.id)
            if record is not None and record.epoch > live.publisher.epoch and live.publisher.owned:
                live.publisher.refused(Outcome.SUPERSEDED)

    async def _claim(self, event_log: EventLog, session_id: str) -> tuple[SessionRecord, list[LastingEvent]]:
        """Make a session this server's, one of another's or of this one's last life, unless it has ended just now.

        Also returns its last events.
        """
        async with asking():
            claimed = await event_log.claim(session_id)
            if claimed is None:
                raise BridgeError("unknown_session")
            return claimed, await event_log.events(session_id, max(1, claimed.seq - TOLD + 1), TOLD)

    # Receivers

    @contextlib.asynccontextmanager
    async def receiver(self, join: Join) -> AsyncGenerator[Feed]:
        """A connection listens to a session: to one that runs here, elsewhere, not yet, or no more.

        Raises:
            BridgeError: `seq_ahead` or `log_unavailable`, also of what another server has told and not yet written.
        """
        live = self._keeper.find(join.session_id)
        record = None
        if live is not None and (join.from_seq or 0) > live.publisher.hub.seq + 1:
            await self._look_after(live)  # who listens may have heard more where it runs now
            live = live if live.publisher.owned else None
        if live is None:
            record = await self._keeper.known(join.session_id)
        seq = live.publisher.hub.seq if live is not None else record.seq if record is not None else 0
        self._check_seq(join.from_seq, seq, record)
        joined = Joined(join.session_id, self._keeper.presence(live, record), seq)
        if record is not None and record.ended is not None:
            yield self._told(joined, record, join.from_seq)
            return
        async with self._keeper.rooms.received(join.session_id, record) as room:
            feed = Feed(
                join.session_id,
                joined,
                room.hub,
                self._log if live is None or live.stored else None,
                from_seq=join.from_seq,
                partials=join.partials,
                acks=False,
                limit=self._keeper.manager.limits.outbox_events,
            )
            try:
                with self._keeper.rooms.patience(room, feed.outbox):
                    yield feed
            finally:
                feed.leave()

    def _told(self, first: ServerEvent, record: SessionRecord, from_seq: int | None) -> Feed:
        """What is left to be told of a session that has ended; how it ended, at least."""
        known = from_seq is not None and from_seq > record.seq
        return Feed(record.session_id, first, None, self._log, from_seq=None if known else from_seq or record.seq)

    def _alone(self, session_id: str) -> asyncio.Lock:
        """One after the other where several want the same session. Forgotten once nobody holds or awaits it."""
        return self._locks.setdefault(session_id, asyncio.Lock())


def _attached(live: Live, resume: Resume, account: Account) -> Sender:
    """The sender that has come back. Its credential is the one that counts: the first may have expired."""
    sender = live.attach(
        token=resume.token,
        resumed=True,
        from_seq=resume.from_seq,
        offset=resume.offset,
        partials=live.record.start.partials,
    )
    if account.credential is not None:
        live.session.account = dataclasses.replace(live.session.account, credential=account.credential)
    return sender


def _ready_of(record: SessionRecord, manager: SessionManager) -> Ready:
    """What the sender of a session that has ended is told."""
    start, limits = record.start, manager.limits
    audio = start.audio
    return Ready(
        session_id=record.session_id,
        backend=record.backend,
        language=record.language,
        audio=audio,
        partials=start.partials,
        max_session_seconds=limits.session_seconds,
        idle_seconds=limits.idle_seconds,
        max_message_bytes=limits.message_bytes,
        resumed=True,
        last_seq=record.seq,
        received=record.progress.received,
        received_bytes=record.progress.header_bytes + record.progress.received * audio.frame_bytes if record.raw else 0,
        finalized=record.finalized,
        trace_id=trace.trace_id(),
    )
