"""Sessions as who asks about them sees them: those that run here, elsewhere, and those that are kept."""

from __future__ import annotations

import asyncio
import contextlib

from bridge.protocols.events import Closed, Final
from bridge.session.directory import SessionState
from bridge.session.eventlog.base import PAGE, LogUnavailableError, SessionRecord
from bridge.session.keeper import LOG_SECONDS, Keeper, asking
from bridge.session.live import Live


class Archive:
    """The `SessionDirectory` of one server."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._log = keeper.log

    async def describe(self, session_id: str) -> SessionState | None:
        """See `SessionDirectory`."""
        live = self._keeper.find(session_id)
        if live is not None:
            return await self._of_live(live)
        record = await self._keeper.known(session_id)
        if record is None:
            return None
        return SessionState(
            session_id=session_id,
            state=self._keeper.presence(None, record),
            code=record.code,
            backend=record.backend,
            language=record.language,
            protocol=record.protocol,
            created=record.created,
            ended=record.ended,
            seq=record.seq,
            received=_seconds(record),
            finalized=min(record.progress.final, default=0.0),
            receivers=await self._receivers(session_id, stored=True),
            stored=True,
        )

    async def _of_live(self, live: Live) -> SessionState:
        session, record = live.session, live.record
        position = session.position()
        return SessionState(
            session_id=session.id,
            state=self._keeper.presence(live, None),
            code=session.end_code,
            backend=session.backend,
            language=session.language,
            protocol=record.protocol,
            created=record.created,
            ended=None,
            seq=live.publisher.hub.seq,
            received=round(session.audio_seconds, 3),
            finalized=round(min(position.progress.final, default=0.0), 3),
            receivers=await self._receivers(session.id, stored=live.stored),
            stored=live.stored,
        )

    async def finals(self, session_id: str) -> list[Final]:
        """See `SessionDirectory`."""
        live = self._keeper.find(session_id)
        if live is not None and not live.stored:
            return [event for event in live.publisher.hub.remembered if isinstance(event, Final)]
        if self._log is None:
            return []
        finals: list[Final] = []
        at: int | None = 1
        while at is not None:
            async with asking():
                page = await self._log.events(session_id, at)
            finals += [event for event in page if isinstance(event, Final)]
            last = page[-1] if page else None
            at = last.seq + 1 if last is not None and last.seq is not None and not isinstance(last, Closed) else None
            if len(page) < PAGE:
                break
        return finals

    async def delete(self, session_id: str) -> bool:
        """See `SessionDirectory`."""
        live = self._keeper.find(session_id)
        known = False
        if self._log is not None and (live is None or live.stored):
            async with asking():
                known = await self._log.delete(session_id)
        if live is not None:
            live.publisher.give_up()
            live.session.cut("deleted")
        await self._tell(session_id, elsewhere=known)
        return known or live is not None

    async def _tell(self, session_id: str, *, elsewhere: bool) -> None:
        """Whoever waits for it here, or receives it elsewhere, waits for nothing."""
        closed = Closed(None, "deleted", 0, 0, 0.0)
        room = self._keeper.rooms.find(session_id)
        if room is not None and not room.local:
            room.hub.deliver(closed)
        if elsewhere and self._log is not None and self._log.shared:
            with contextlib.suppress(LogUnavailableError, TimeoutError):
                async with asyncio.timeout(LOG_SECONDS):
                    await self._log.announce(session_id, [closed])

    async def _receivers(self, session_id: str, *, stored: bool) -> int:
        """Here and at other servers, as far as that can be told."""
        room = self._keeper.rooms.find(session_id)
        here = room.receivers if room is not None else 0
        if self._log is None or not stored:
            return here
        try:
            async with asyncio.timeout(LOG_SECONDS):
                return here + await self._log.receivers(session_id)
        except (LogUnavailableError, TimeoutError):
            return here


def _seconds(record: SessionRecord) -> float:
    return round(record.progress.received / record.start.audio.sample_rate, 3)
