"""Who receives which session on this server, whichever server runs it.

A room has a hub, and lasts as long as its session runs here or somebody listens. Where the session runs on another
server, or has yet to be resumed, the room follows the event log.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Final

from bridge.protocols.events import Closed
from bridge.session.eventlog.base import PAGE, EventLog, LogUnavailableError, SessionRecord
from bridge.session.hub import HISTORY, Hub, Outbox

log = logging.getLogger(__name__)

LONG_HISTORY: Final = 256
"""Events that a hub remembers where no log does, or where it may come back empty: what it lost is written again."""
RETRY_SECONDS: Final = 0.5
"""Between tries to read a log that is away."""


class Room:
    """One session's receivers here. `local`: whether it runs here, so that its events come from its publisher."""

    def __init__(self, session_id: str, hub: Hub) -> None:
        self.session_id = session_id
        self.hub = hub
        self.local = False
        self.stored = True
        self.receivers = 0
        self.follower: asyncio.Task[None] | None = None


class Patience:
    """Lets a receiver go when nothing has come for `seconds`, unless the session runs here. A context."""

    def __init__(self, room: Room, outbox: Outbox, seconds: float) -> None:
        self._room = room
        self._outbox = outbox
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._timer = self._loop.call_later(self._seconds, self._look)

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        since = now if self._room.local else max(self._began, self._room.hub.heard)
        if now - since >= self._seconds:
            self._outbox.put(Closed(None, "sender_gone", 0, 0, 0.0))
        else:
            self._timer = self._loop.call_at(since + self._seconds, self._look)


class Rooms:
    """Every room of this server. `log`: None where there is none."""

    def __init__(self, event_log: EventLog | None, outbox_events: int, *, wait_seconds: float) -> None:
        self._log = event_log
        self._limit = outbox_events
        self._wait_seconds = wait_seconds
        self._rooms: dict[str, Room] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def receivers(self) -> int:
        """Of all sessions."""
        return sum(room.receivers for room in self._rooms.values())

    def find(self, session_id: str) -> Room | None:
        """The room of this session, if there is one."""
        return self._rooms.get(session_id)

    def get(self, session_id: str, seq: int = 0) -> Room:
        """The room; a new one begins behind the event `seq`."""
        room = self._rooms.get(session_id)
        if room is None:
            forgetful = self._log is not None and self._log.forgetful
            hub = Hub(self._limit, seq=seq, history=LONG_HISTORY if forgetful else HISTORY)
            room = self._rooms[session_id] = Room(session_id, hub)
        return room

    # The session itself

    async def runs_here(self, session_id: str, seq: int, *, stored: bool) -> Room:
        """A session begins or goes on here, behind the event `seq`; its publisher delivers from now on.

        `stored`: whether the log has its events; otherwise more of them are remembered.

        Raises:
            LogUnavailableError: what happened elsewhere cannot be read.
        """
        room = self._rooms.get(session_id)
        if room is not None and (room.hub.closed or room.hub.seq > seq):
            del self._rooms[session_id]  # of a session before this one: who is still in it hears the end of that
        room = self.get(session_id, seq)
        room.local = True
        room.stored = stored
        if not stored:
            room.hub.remember(LONG_HISTORY)
        try:
            await self._stop_following(room)
            if room.hub.seq < seq:
                await self._catch_up(room, seq)
        except BaseException:
            self.left(session_id)
            raise
        return room

    def left(self, session_id: str) -> None:
        """It does not run here any more: it has ended, or goes on elsewhere."""
        room = self._rooms.get(session_id)
        if room is not None:
            room.local = False
            self._settle(room)

    # Receivers

    @contextlib.asynccontextmanager
    async def received(self, session_id: str, record: SessionRecord | None) -> AsyncGenerator[Room]:
        """Somebody listens, for as long as the context lasts. `record`: what the log knows of the session.

        Have a `Patience` with each of them, too.
        """
        room = self.get(session_id, record.seq if record is not None else 0)
        room.receivers += 1
        self._settle(room)
        self._tell_presence(room)
        try:
            yield room
        finally:
            room.receivers -= 1
            self._tell_presence(room)
            self._settle(room)

    def shut(self) -> None:
        """The server stops: whoever waits for a session that does not run here has to wait elsewhere."""
        for room in self._rooms.values():
            if not room.local:
                room.hub.deliver(Closed(None, "shutting_down", 0, 0, 0.0))

    async def close(self) -> None:
        """End every task. To be called when no connection is open."""
        for room in self._rooms.values():
            await self._stop_following(room)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # A room's life

    def _settle(self, room: Room) -> None:
        """Follow, or not; forget the room if nobody is in it."""
        if room.local or self._rooms.get(room.session_id) is not room:
            return
        if not room.receivers:
            del self._rooms[room.session_id]
            if room.stored:  # whoever is still being told reads on in the log
                room.hub.forget()
            if room.follower is not None:
                self._spawn(self._stop_following(room))
        elif room.follower is None and not room.hub.closed and self._log is not None and self._log.shared:
            # For all of them: no work of the one who came first, whose trace it would log.
            room.follower = asyncio.create_task(
                self._follow(room), name=f"follow-{room.session_id}", context=contextvars.Context()
            )

    async def _stop_following(self, room: Room) -> None:
        follower, room.follower = room.follower, None
        if follower is not None:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)

    async def _follow(self, room: Room) -> None:
        """Deliver what another server writes, as long as somebody listens and the session does not run here."""
        assert self._log is not None  # noqa: S101 - else nobody follows
        while True:
            try:
                async with contextlib.aclosing(self._log.follow(room.session_id)) as following:
                    async for events in following:
                        if not events or not room.hub.deliver_all(events):
                            await self._read_on(room)
            except Exception:  # who listens must not be left with a room that is dead
                log.exception("following a session failed; once more", extra={"session": room.session_id})
            await asyncio.sleep(RETRY_SECONDS)

    def patience(self, room: Room, outbox: Outbox) -> Patience:
        """For one receiver."""
        return Patience(room, outbox, self._wait_seconds)

    async def _read_on(self, room: Room) -> None:
        """Deliver what the log has and the room has not, however long the log is away."""
        while True:
            try:
                await self._catch_up(room)
            except LogUnavailableError:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _catch_up(self, room: Room, until: int | None = None) -> None:
        if self._log is None:
            return
        while until is None or room.hub.seq < until:
            page = await self._log.events(room.session_id, room.hub.seq + 1)
            if page and not room.hub.deliver_all(page):
                log.error("the event log has lost events of a session", extra={"session": room.session_id})
                room.hub.skip_to(page)
            if len(page) < PAGE:
                return

    # Presence

    def _tell_presence(self, room: Room) -> None:
        if self._log is not None and self._log.shared:
            self._spawn(self._set_receivers(self._log, room))

    async def _set_receivers(self, event_log: EventLog, room: Room) -> None:
        try:
            await event_log.set_receivers(room.session_id, room.receivers)
        except LogUnavailableError:
            log.debug("presence was not told", extra={"session": room.session_id})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
