"""Runs the sessions of this server: each in a task of its own, which ends in its own order, and is found by its name.

Sessions belong to the server, not to the connection that began them; see `bridge.session.reception` for those.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any, Final

from bridge.errors import BridgeError
from bridge.protocols.events import Presence
from bridge.session.account import NOBODY, Account
from bridge.session.eventlog.base import EventLog, LogUnavailableError, SessionExistsError, SessionRecord
from bridge.session.journal import Journal, create
from bridge.session.live import Live
from bridge.session.manager import SessionManager
from bridge.session.origin import Origin, known_format
from bridge.session.publisher import Publisher
from bridge.session.rooms import Rooms

log = logging.getLogger(__name__)

LOG_SECONDS: Final = 2.0
"""That a connection waits for the event log when it begins."""
LEAVE_SECONDS: Final = 2.0
"""For a session to leave its place to another one, and for what it said to be written."""


@contextlib.asynccontextmanager
async def asking() -> AsyncGenerator[None]:
    """What is asked of the event log meanwhile has `LOG_SECONDS`.

    Raises:
        BridgeError: `log_unavailable`.
    """
    try:
        async with asyncio.timeout(LOG_SECONDS):
            yield
    except (LogUnavailableError, TimeoutError) as exc:
        raise BridgeError("log_unavailable") from exc


class Keeper:
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
        self.node = node
        self.resume_seconds = resume_seconds
        self._live: dict[str, Live] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def refusal(self) -> BridgeError | None:
        """Why a new session would be refused now; None if it would be taken, if need be in the place of a held one."""
        refusal = self.manager.refusal()
        return None if refusal is not None and self._yielding(refusal) else refusal

    def _yielding(self, refusal: BridgeError) -> list[Live]:
        """Sessions that would give way to another one: they wait for their senders.

        Those that can be resumed all the same, if there are any; otherwise a client without a connection would keep out
        one that has one.
        """
        if refusal.code != "at_capacity":
            return []
        held = [live for live in self._live.values() if live.held and not live.session.stopping]
        return [live for live in held if live.suspendable] or held

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

    # A session's life

    async def run(
        self,
        record: SessionRecord,
        origin: Origin,
        event_log: EventLog | None,
        account: Account = NOBODY,
        *,
        create: bool,
    ) -> Live:
        """Have the session run in a task of its own; returns when it is open.

        Raises:
            BridgeError: the manager refuses it, or there is one of this name.
        """
        opened: asyncio.Future[Live] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(
            self._carry(record, origin, event_log, account, opened, create=create), name=f"session-{record.session_id}"
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
        account: Account,
        opened: asyncio.Future[Live],
        *,
        create: bool,
    ) -> None:
        """The session's whole life on this server."""
        session_id = record.session_id
        async with asking():
            room = await self.rooms.runs_here(session_id, record.seq, stored=event_log is not None)
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
                start,
                record.protocol,
                session_id=session_id,
                publisher=publisher,
                origin=origin,
                account=account,
                checked=create,
            ) as session:
                live = Live(
                    session,
                    publisher,
                    record,
                    event_log,
                    resume_seconds=self.resume_seconds,
                    outbox_events=self.manager.limits.outbox_events,
                )
                if create and event_log is not None:
                    await self._create(event_log, live)
                self._live[session_id] = live
                opened.set_result(live)
                await session.run()
                await self._let_go(live)
        finally:
            if live is not None:
                live.finished()
                if self._live.get(session_id) is live:
                    del self._live[session_id]
            if session_id not in self._live:
                self.rooms.left(session_id)

    async def _create(self, event_log: EventLog, live: Live) -> None:
        """Tell the log of a new session. While it is away the session begins all the same: it is told later."""
        record = self._record_of_live(live)
        try:
            async with asyncio.timeout(LOG_SECONDS):
                await create(event_log, record)
        except SessionExistsError:
            raise BridgeError("session_taken") from None
        except (LogUnavailableError, TimeoutError):
            log.warning("the event log does not know of the session yet", extra={"session": record.session_id})
            live.publisher.unknown = record

    async def _let_go(self, live: Live) -> None:
        """It has ended: what it said is written, and whoever resumes it may claim it."""
        if self.journal is None or live.log is None:
            return
        flushed = await self.journal.flushed(live.publisher, LEAVE_SECONDS)
        if flushed and live.session.suspended and live.publisher.owned:
            await self.release(live.log, live.session.id, live.publisher.epoch)

    async def release(self, event_log: EventLog, session_id: str, epoch: int) -> None:
        """Leave a session to whoever comes, as far as the log can be told."""
        with contextlib.suppress(LogUnavailableError, TimeoutError):  # then it is as if this server had been killed
            async with asyncio.timeout(LOG_SECONDS):
                await event_log.release(session_id, epoch)

    async def left(self, live: Live) -> bool:
        """Wait until the session has left this server; whether it has in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * LEAVE_SECONDS):
                await live.ended.wait()
        return live.ended.is_set()

    async def make_room(self) -> None:
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
        if oldest.suspendable:
            oldest.session.suspend("at_capacity")
        else:
            oldest.session.stop("sender_gone")
        await self.left(oldest)

    def presence(self, live: Live | None, record: SessionRecord | None) -> Presence:
        """Whether the sender is there."""
        if live is not None:
            return "ended" if live.over else "held" if live.held else "live"
        if record is None:
            return "waiting"
        if record.ended is not None:
            return "ended"
        elsewhere = self.log is not None and self.log.shared and record.owner not in ("", self.node)
        return "live" if elsewhere else "held"

    # What the log knows

    async def known(self, session_id: str) -> SessionRecord | None:
        """The log's record.

        Raises:
            BridgeError: `log_unavailable`.
        """
        if self.log is None:
            return None
        async with asking():
            return await self.log.read(session_id)

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
            self.node,
            record.created,
            session.position().progress,
            epoch=live.publisher.epoch,
            seq=live.publisher.seq,
        )
