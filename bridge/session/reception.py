"""Where connections come in: to begin a session, to go on with one, or to listen.

Sessions belong to the server, not to the connection that began them: each runs in a task of its own, which ends in its
own order, and is found by its name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any, Final
from weakref import WeakValueDictionary

from bridge.errors import BridgeError
from bridge.protocols.events import Join, Joined, LastingEvent, Presence, Ready, Resume, ServerEvent, Start
from bridge.session.eventlog.base import (
    EventLog,
    LogUnavailableError,
    Outcome,
    Progress,
    SessionExistsError,
    SessionRecord,
)
from bridge.session.feed import Feed
from bridge.session.journal import Journal
from bridge.session.live import Live, Sender, check_token, digest
from bridge.session.manager import SessionManager, new_session_id
from bridge.session.origin import Origin, known_format
from bridge.session.publisher import Publisher
from bridge.session.rooms import Room, Rooms

log = logging.getLogger(__name__)

LOG_SECONDS: Final = 2.0
"""That a connection waits for the event log when it begins."""
LEAVE_SECONDS: Final = 2.0
"""For a session to leave its place to another one, and for what it said to be written."""
TOLD: Final = 64
"""Events from which it is seen whether somebody was speaking."""


class Reception:
    """One server's. `event_log`: None where nothing is kept. `node`: this life of this server."""

    def __init__(
        self,
        manager: SessionManager,
        event_log: EventLog | None,
        *,
        node: str,
        resume_seconds: float,
        wait_seconds: float,
    ) -> None:
        self.manager = manager
        self.log = event_log
        self.journal = None if event_log is None else Journal(event_log, self._record_of)
        self.rooms = Rooms(event_log, manager.limits.outbox_events, wait_seconds=wait_seconds)
        self._node = node
        self._resume_seconds = resume_seconds
        self._live: dict[str, Live] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    def refusal(self) -> BridgeError | None:
        """Why a new session would be refused now; None if it would be taken, if need be in the place of a held one."""
        refusal = self.manager.refusal()
        return None if refusal is not None and self._yielding(refusal) else refusal

    def _yielding(self, refusal: BridgeError) -> list[Live]:
        """Sessions that would give way to another one: they wait for their senders, and can be resumed all the same."""
        if refusal.code != "at_capacity":
            return []
        return [live for live in self._live.values() if live.held and live.suspendable]

    @property
    def held(self) -> int:
        """Sessions that wait for their senders."""
        return sum(live.held for live in self._live.values())

    def find(self, session_id: str) -> Live | None:
        """The session, if it runs here."""
        return self._live.get(session_id)

    async def open(self) -> None:
        """Make the event log usable, before the first connection.

        Raises:
            LogUnavailableError: it is not.
        """
        if self.log is not None:
            await self.log.open()
        if self.journal is not None:
            self.journal.start()

    async def drain(self, seconds: float) -> bool:
        """The server stops: see `SessionManager.drain`. Who waits for a session elsewhere is let go, too."""
        self.rooms.shut()
        return await self.manager.drain(seconds)

    async def close(self) -> None:
        """Write what is left, and end. To be called when all has drained and no connection is open."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LEAVE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.rooms.close()
        if self.journal is not None:
            await self.journal.close(LEAVE_SECONDS)
        if self.log is not None:
            await self.log.close()

    # Senders

    @contextlib.asynccontextmanager
    async def sender(self, opening: Start | Resume, protocol: str) -> AsyncGenerator[Sender | Feed]:
        """A connection begins a session or comes back to one; when the context ends, it is gone.

        A mere `Feed` stands for a session that has ended meanwhile: there is nothing left to send.

        Raises:
            BridgeError: why not; see `bridge.errors`.
        """
        session_id = opening.session_id or new_session_id()
        async with self._alone(session_id):
            if isinstance(opening, Start):
                sender: Sender | Feed = await self._begin(session_id, opening, protocol)
            else:
                sender = await self._resume(opening)
        if isinstance(sender, Feed):
            yield sender
            return
        try:
            yield sender
        finally:
            sender.live.detach(sender)

    async def _begin(self, session_id: str, start: Start, protocol: str) -> Sender:
        if session_id in self._live:
            raise BridgeError("session_taken")
        token = secrets.token_urlsafe(32) if self._resume_seconds and start.resume is not False else None
        now = time.time()
        record = SessionRecord(
            session_id,
            digest(token) if token else b"",
            start,
            start.language or "",
            "",
            protocol,
            self._node,
            now,
            Progress((0.0,) * start.lanes),
            touched=now,
        )
        event_log = self.log if start.store else None
        await self._make_room()
        live = await self._run(record, Origin(), event_log, create=True)
        return live.attach(token=token, partials=start.partials)

    async def _resume(self, resume: Resume) -> Sender | Feed:
        live = self._live.get(resume.session_id)
        if live is not None:
            check_token(live.record, resume.token)
            await self._look_after(live)
            if not live.session.suspended and not live.ended.is_set():
                self.manager.metrics.resumes.labels("held").inc()
                return live.attach(
                    token=resume.token,
                    resumed=True,
                    from_seq=resume.from_seq,
                    offset=resume.offset,
                    partials=live.record.start.partials,
                )
            await self._left(live)
        record = await self.known(resume.session_id)
        if record is None or self.log is None:
            raise BridgeError("unknown_session")
        check_token(record, resume.token)
        self._check_seq(resume.from_seq, record.seq, record)
        if record.ended is None:
            if time.time() - record.touched > self._resume_seconds:
                raise BridgeError("session_expired")
            await self._make_room()
            record, told = await self._claim(self.log, record.session_id)
        if record.ended is not None:
            return self._told(_ready_of(record, self.manager), record, resume.from_seq)
        log.info("session goes on here", extra={"session": record.session_id})
        self.manager.metrics.resumes.labels("restored").inc()
        try:
            live = await self._run(record, Origin.of(record, told), self.log, create=False)
        except BridgeError:
            await self._release(self.log, record.session_id, record.epoch)
            raise
        try:
            return live.attach(
                token=resume.token,
                resumed=True,
                from_seq=resume.from_seq,
                offset=resume.offset,
                partials=live.record.start.partials,
            )
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
            self.log is not None
            and self.log.shared
            and record is not None
            and record.ended is None
            and time.time() - record.touched <= self._resume_seconds
        )
        if open_elsewhere:
            raise BridgeError("log_unavailable", f"the event log does not have the event {wanted - 1} yet; try again")
        raise BridgeError("seq_ahead", f"the last event has the number {seq}")

    async def _look_after(self, live: Live) -> None:
        """Find out whether the session is still this server's.

        Its client may have gone on at another one, and come back before there was anything to write, which would have
        been refused. While the log is away, nobody else can have it.
        """
        if live.log is None or self.journal is None or self.journal.down:
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
        try:
            async with asyncio.timeout(LOG_SECONDS):
                claimed = await event_log.claim(session_id)
                if claimed is None:
                    raise BridgeError("unknown_session")
                told = await event_log.events(session_id, max(1, claimed.seq - TOLD + 1), TOLD)
        except (LogUnavailableError, TimeoutError) as exc:
            raise BridgeError("log_unavailable") from exc
        return claimed, told

    # Sessions

    async def _run(self, record: SessionRecord, origin: Origin, event_log: EventLog | None, *, create: bool) -> Live:
        """Have the session run in a task of its own; returns when it is open.

        Raises:
            BridgeError: the manager refuses it, or there is one of this name.
        """
        opened: asyncio.Future[Live] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(
            self._carry(record, origin, event_log, opened, create=create), name=f"session-{record.session_id}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            either: set[asyncio.Future[Any]] = {task, opened}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not opened.done():
            task.result()  # raises what went wrong
        return opened.result()

    async def _carry(
        self,
        record: SessionRecord,
        origin: Origin,
        event_log: EventLog | None,
        opened: asyncio.Future[Live],
        *,
        create: bool,
    ) -> None:
        """The session's whole life on this server."""
        session_id = record.session_id
        room = await self._room(record, stored=event_log is not None)
        live: Live | None = None
        try:
            publisher = Publisher(
                room.hub,
                session_id=session_id,
                epoch=record.epoch,
                seq=record.seq,
                finalized=origin.finalized,
                writer=self.journal if event_log is not None else None,
            )
            start = known_format(record.start, record.progress.raw)
            async with self.manager.session(
                start, record.protocol, session_id=session_id, publisher=publisher, origin=origin
            ) as session:
                live = Live(
                    session,
                    publisher,
                    record,
                    event_log,
                    resume_seconds=self._resume_seconds,
                    outbox_events=self.manager.limits.outbox_events,
                )
                if create and event_log is not None:
                    await self._create(event_log, self._record_of_live(live), reuse=record.start.reuse)
                self._live[session_id] = live
                opened.set_result(live)
                await session.run()
                await self._let_go(live)
        finally:
            if live is not None:
                live.finished()
                if self._live.get(session_id) is live:
                    del self._live[session_id]
            self.rooms.left(session_id)

    async def _room(self, record: SessionRecord, *, stored: bool) -> Room:
        try:
            async with asyncio.timeout(LOG_SECONDS):
                return await self.rooms.runs_here(record.session_id, record.seq, stored=stored)
        except (LogUnavailableError, TimeoutError) as exc:
            raise BridgeError("log_unavailable") from exc

    async def _create(self, event_log: EventLog, record: SessionRecord, *, reuse: bool) -> None:
        """Tell the log of a new session. While it is away the session begins all the same: it is told later."""
        try:
            async with asyncio.timeout(LOG_SECONDS):
                try:
                    await event_log.create(record)
                except SessionExistsError:
                    known = await event_log.read(record.session_id) if reuse else None
                    # Only a session of its own protocol: else whoever may send could delete any that has ended.
                    own = known is None or (known.ended is not None and known.protocol == record.protocol)
                    if not reuse or not own:
                        raise BridgeError("session_taken") from None
                    await event_log.create(record, replace=True)
        except (LogUnavailableError, TimeoutError):
            log.warning("the event log does not know of the session yet", extra={"session": record.session_id})

    async def _let_go(self, live: Live) -> None:
        """It has ended: what it said is written, and whoever resumes it may claim it."""
        if self.journal is None or live.log is None:
            return
        flushed = await self.journal.flushed(live.publisher, LEAVE_SECONDS)
        if flushed and live.session.suspended and live.publisher.owned:
            await self._release(live.log, live.session.id, live.publisher.epoch)

    async def _release(self, event_log: EventLog, session_id: str, epoch: int) -> None:
        with contextlib.suppress(LogUnavailableError, TimeoutError):  # then it is as if this server had been killed
            async with asyncio.timeout(LOG_SECONDS):
                await event_log.release(session_id, epoch)

    async def _left(self, live: Live) -> None:
        """Wait until the session has left this server, or at least its place."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * LEAVE_SECONDS):
                await live.ended.wait()

    async def _make_room(self) -> None:
        """Where there is none, the session that has waited longest for its sender gives way.

        Raises:
            BridgeError: there is none, and nobody gives way.
        """
        refusal = self.manager.refusal()
        if refusal is None:
            return
        if not (yielding := self._yielding(refusal)):
            raise refusal
        oldest = min(yielding, key=lambda live: live.held_since or 0.0)
        log.info("session gives way to another", extra={"session": oldest.session.id})
        oldest.session.suspend("at_capacity")
        await self._left(oldest)

    # Receivers

    @contextlib.asynccontextmanager
    async def receiver(self, join: Join) -> AsyncGenerator[Feed]:
        """A connection listens to a session: to one that runs here, elsewhere, not yet, or no more.

        Raises:
            BridgeError: `seq_ahead` or `log_unavailable`, also of what another server has told and not yet written.
        """
        live = self._live.get(join.session_id)
        record = None
        if live is not None and (join.from_seq or 0) > live.publisher.hub.seq + 1:
            await self._look_after(live)  # who listens may have heard more where it runs now
            live = live if live.publisher.owned else None
        if live is None:
            record = await self.known(join.session_id)
        seq = live.publisher.hub.seq if live is not None else record.seq if record is not None else 0
        self._check_seq(join.from_seq, seq, record)
        joined = Joined(join.session_id, self.presence(live, record), seq)
        if record is not None and record.ended is not None:
            yield self._told(joined, record, join.from_seq)
            return
        async with self.rooms.received(join.session_id, record) as room:
            feed = Feed(
                join.session_id,
                joined,
                room.hub,
                self.log if live is None or live.stored else None,
                from_seq=join.from_seq,
                partials=join.partials,
                acks=False,
                limit=self.manager.limits.outbox_events,
            )
            try:
                yield feed
            finally:
                feed.leave()

    def _told(self, first: ServerEvent, record: SessionRecord, from_seq: int | None) -> Feed:
        """What is left to be told of a session that has ended; how it ended, at least."""
        known = from_seq is not None and from_seq > record.seq
        return Feed(record.session_id, first, None, self.log, from_seq=None if known else from_seq or record.seq)

    def presence(self, live: Live | None, record: SessionRecord | None) -> Presence:
        """Whether the sender is there."""
        if live is not None:
            return "ended" if live.over else "held" if live.held else "live"
        if record is None:
            return "waiting"
        if record.ended is not None:
            return "ended"
        elsewhere = self.log is not None and self.log.shared and record.owner not in ("", self._node)
        return "live" if elsewhere else "held"

    # What the log knows

    async def known(self, session_id: str) -> SessionRecord | None:
        """The log's record.

        Raises:
            BridgeError: `log_unavailable`.
        """
        if self.log is None:
            return None
        try:
            async with asyncio.timeout(LOG_SECONDS):
                return await self.log.read(session_id)
        except (LogUnavailableError, TimeoutError) as exc:
            raise BridgeError("log_unavailable") from exc

    def _record_of(self, session_id: str) -> SessionRecord | None:
        live = self._live.get(session_id)
        return None if live is None or live.log is None else self._record_of_live(live)

    def _record_of_live(self, live: Live) -> SessionRecord:
        """As the log should know it."""
        record, session = live.record, live.session
        return SessionRecord(
            record.session_id,
            record.token_digest,
            record.start,
            session.language,
            session.backend,
            record.protocol,
            self._node,
            record.created,
            session.position().progress,
            epoch=live.publisher.epoch,
            seq=live.publisher.seq,
        )

    def _alone(self, session_id: str) -> asyncio.Lock:
        """One after the other where several want the same session. Forgotten once nobody holds or awaits it."""
        return self._locks.setdefault(session_id, asyncio.Lock())


def _ready_of(record: SessionRecord, manager: SessionManager) -> Ready:
    """What the sender of a session that has ended is told."""
    start, limits = record.start, manager.limits
    audio = start.audio
    finalized = int(min(record.progress.final, default=0.0) * audio.sample_rate + 1e-6)
    raw = audio.encoding.width is not None or record.progress.raw
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
        received_bytes=record.progress.header_bytes + record.progress.received * audio.frame_bytes if raw else 0,
        finalized=finalized,
    )
