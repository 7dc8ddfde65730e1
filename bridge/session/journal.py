"""Writes the events of every session of this server to the event log, many at once (group commit).

While one batch is written the next one gathers, so that the log is asked no more often than it can answer and a session
waits for two writes at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from bridge.protocols.events import Ack, Partial
from bridge.session.eventlog.base import (
    Entry,
    EventLog,
    LogUnavailableError,
    Outcome,
    SessionExistsError,
    SessionRecord,
)
from bridge.session.publisher import Position, Publisher

log = logging.getLogger(__name__)

WRITE_SECONDS: Final = 1.0
"""That a write may take before sessions no longer wait for it."""
BACKOFF_BASE: Final = 0.1
BACKOFF_CAP: Final = 0.5
"""Seconds between tries while the log is away."""
BEAT_SECONDS: Final = 5.0
"""How often this server says that it lives."""
DEAD_SECONDS: Final = 15.0
"""Without a beat for so long, a server is dead."""
SWEEP_SECONDS: Final = 60.0
"""How often what is no longer kept is looked for; sooner where the retention is short."""
HOUSEKEEPING_SECONDS: Final = 30.0
"""That either may take."""
BATCH: Final = 64
"""Sessions in one write."""
PAUSE_SECONDS: Final = 0.02
"""After a write that took all there was: what comes meanwhile goes into one. The first after a quiet time waits for
nothing; with many sessions a write for each event would cost more than all that is written."""
URGENT: Final = 16
"""Events of one session that end that pause: released all at once, those of a fast file would overflow its outbox."""

Describe = Callable[[str], SessionRecord | None]
"""A session of this server as the log should know it; None if it is not here any more."""


async def create(event_log: EventLog, record: SessionRecord) -> None:
    """A new session in the log. One of the same name is replaced if the new one may (`Start.reuse`).

    Raises:
        SessionExistsError: it may not.
    """
    try:
        await event_log.create(record)
    except SessionExistsError:
        known = await event_log.read(record.session_id)
        if known is not None and (known.owner, known.created) == (record.owner, record.created):
            return  # itself: a try before this one broke off without an answer
        if not record.start.reuse or not (known is None or _is_over(known, record, shared=event_log.shared)):
            raise
        await event_log.create(record, replace=True)


def _is_over(known: SessionRecord, record: SessionRecord, *, shared: bool) -> bool:
    """Whether nobody will go on with it. Of another protocol: or whoever may send could delete any that has ended."""
    if known.protocol != record.protocol:
        return False
    # Without a token nobody can resume it; where its server was killed, it has not been closed.
    alone = not shared or record.created - known.touched > DEAD_SECONDS
    return known.ended is not None or (not known.token_digest and known.owner != record.owner and alone)


class Journal:
    """One server's. `describe` is asked when the log has lost a session that goes on here."""

    def __init__(self, event_log: EventLog, describe: Describe) -> None:
        self.log = event_log
        self.down = False
        """Whether the log is away."""
        self._describe = describe
        self._noted: dict[Publisher, None] = {}
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._written = asyncio.Condition()
        self._passing: dict[str, dict[object, Partial | Ack]] = {}
        self._passing_wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def backlog(self) -> int:
        """Sessions that have something to be written."""
        return len(self._noted)

    def start(self) -> None:
        """Begin to write."""
        sweep_seconds = min(SWEEP_SECONDS, self.log.retention_seconds / 4)
        self._tasks += [
            asyncio.create_task(self._run(), name="journal"),
            asyncio.create_task(self._regularly(BEAT_SECONDS, self.log.beat), name="beat"),
            asyncio.create_task(self._regularly(sweep_seconds, self.log.sweep), name="sweep"),
        ]
        if self.log.shared:
            self._tasks.append(asyncio.create_task(self._announce(), name="announcements"))

    async def close(self, seconds: float) -> None:
        """Write what is left, within so many seconds, and end."""
        try:
            async with asyncio.timeout(seconds):
                await self._until(lambda: not self._noted)
        except TimeoutError:
            log.error("%d sessions have events that the event log has not", len(self._noted))  # noqa: TRY400 - no news
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def flushed(self, publisher: Publisher, seconds: float) -> bool:
        """Wait until what it has published is written; whether it came to that."""
        try:
            async with asyncio.timeout(seconds):
                await self._until(lambda: publisher not in self._noted)
        except TimeoutError:
            return False
        return True

    async def _until(self, done: Callable[[], bool]) -> None:
        async with self._written:
            await self._written.wait_for(done)

    def note(self, publisher: Publisher) -> None:
        """See `Writer`."""
        self._noted[publisher] = None
        self._wake.set()
        if publisher.unlogged >= URGENT:
            self._urgent.set()

    def announce(self, session_id: str, event: Partial | Ack) -> None:
        """See `Writer`; of each session the newest of a kind."""
        if self.log.heard_elsewhere(session_id):
            key = event.channel if isinstance(event, Partial) else "ack"
            self._passing.setdefault(session_id, {})[key] = event
            self._passing_wake.set()

    # The journal's own tasks

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            while batch := self._gather():
                try:
                    async with asyncio.timeout(WRITE_SECONDS):
                        outcomes = await self._write(batch)
                except (LogUnavailableError, TimeoutError) as exc:
                    self._failed(exc, failures)
                    await asyncio.sleep(min(BACKOFF_CAP, BACKOFF_BASE * 2**failures))
                    failures = min(failures + 1, 16)
                    continue
                if self.down:
                    log.warning("the event log is back; %d sessions are written", len(self._noted))
                failures, self.down = 0, False
                for (publisher, entry, position), outcome in zip(batch, outcomes, strict=True):
                    try:
                        await self._settle(publisher, entry, position, outcome)
                    except Exception:  # no other session may wait for a write that never comes
                        log.exception("session is logged no more", extra={"session": publisher.session_id})
                        publisher.give_up()
                await self._notify()
                if len(batch) < BATCH:
                    await self._pause()
            await self._notify()

    async def _pause(self) -> None:
        """Until more is worth a write."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PAUSE_SECONDS):
                await self._urgent.wait()

    async def _write(self, batch: list[tuple[Publisher, Entry, Position]]) -> list[Outcome]:
        """Write it; what nobody has foreseen costs the session whose entry it is, and no other.

        Raises:
            LogUnavailableError: the log is away.
        """
        for publisher, _, _ in batch:
            if publisher.unknown is not None:
                await self._introduce(publisher, publisher.unknown)
        logged = [(publisher, entry) for publisher, entry, _ in batch if publisher.logged]
        try:
            outcomes = await self.log.write([entry for _, entry in logged])
        except LogUnavailableError:
            raise
        except Exception:
            log.exception("the event log refuses what %d sessions have; each by itself", len(batch))
            outcomes = [await self._write_alone(publisher, entry) for publisher, entry in logged]
        by_publisher = {publisher: outcome for (publisher, _), outcome in zip(logged, outcomes, strict=True)}
        return [by_publisher.get(publisher, Outcome.WRITTEN) for publisher, _, _ in batch]

    async def _write_alone(self, publisher: Publisher, entry: Entry) -> Outcome:
        try:
            return (await self.log.write([entry]))[0]
        except LogUnavailableError:
            raise
        except Exception:
            log.exception("session is logged no more", extra={"session": publisher.session_id})
            publisher.give_up()
            return Outcome.WRITTEN

    async def _introduce(self, publisher: Publisher, record: SessionRecord) -> None:
        """Tell the log of a session that began while it was away; if there is one of its name, it is logged no more."""
        try:
            await create(self.log, dataclasses.replace(record, seq=publisher.first_unlogged - 1))
        except SessionExistsError:
            log.error("there is another session of its name in the event log", extra={"session": record.session_id})  # noqa: TRY400
            publisher.give_up()
        publisher.unknown = None

    async def _notify(self) -> None:
        async with self._written:
            self._written.notify_all()

    def _gather(self) -> list[tuple[Publisher, Entry, Position]]:
        """What the next write is to hold. Who has nothing more is forgotten."""
        batch = []
        self._urgent.clear()
        for publisher in list(self._noted):
            if (taken := publisher.take()) is None:
                del self._noted[publisher]
            else:
                batch.append((publisher, *taken))
                if len(batch) == BATCH:
                    break
        return batch

    async def _settle(self, publisher: Publisher, entry: Entry, position: Position, outcome: Outcome) -> None:
        """One entry's outcome."""
        self._noted.pop(publisher, None)
        match outcome:
            case Outcome.WRITTEN:
                publisher.written(entry, position)
            case Outcome.MISSING:
                await self._restore(publisher)
            case _:
                publisher.refused(outcome)
        if publisher.pending:  # the back of the queue: nobody waits longer than for two writes
            self._noted[publisher] = None

    def _failed(self, error: Exception, failures: int) -> None:
        reason = str(error) or "it does not answer"
        if not self.down:
            log.error("the event log is away; sessions go on: %s", reason)
        elif failures == 1:
            log.info("the event log is still away: %s", reason)
        self.down = True
        for publisher in self._noted:
            publisher.unavailable()

    async def _restore(self, publisher: Publisher) -> None:
        """The log has lost the session, or its last events: give it what is still known here."""
        record = self._describe(publisher.session_id)
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                known = await self.log.read(publisher.session_id)
                first = 1 if known is None else known.seq + 1
                events = publisher.hub.since(first)
                if record is None:
                    publisher.give_up()
                    return
                log.error("the event log has lost events of a session", extra={"session": publisher.session_id})
                whole = events is not None and known is not None
                # Where more is lost than is remembered here, the log goes on with what there is.
                publisher.rewind(publisher.hub.remembered if events is None else events)
                if not whole:
                    await self.log.create(dataclasses.replace(record, seq=publisher.first_unlogged - 1), replace=True)
        except SessionExistsError:  # it goes on elsewhere, in a later epoch
            publisher.refused(Outcome.SUPERSEDED)
        except (LogUnavailableError, TimeoutError) as exc:
            self._failed(exc, 0)
        # It is noted again with what it has; if the log was away, the next write finds that out.

    async def _regularly(self, seconds: float, what: Callable[[], Awaitable[object]]) -> None:
        """Do it at once and every so many seconds, as far as the log can be reached."""
        while True:
            try:
                async with asyncio.timeout(HOUSEKEEPING_SECONDS):
                    await what()
            except (LogUnavailableError, TimeoutError) as exc:
                log.debug("housekeeping of the event log failed: %s", exc)
            await asyncio.sleep(seconds)

    async def _announce(self) -> None:
        while True:
            await self._passing_wake.wait()
            self._passing_wake.clear()
            passing, self._passing = self._passing, {}
            if self.down:
                continue  # nobody hears it there
            for session_id, events in passing.items():
                try:
                    async with asyncio.timeout(WRITE_SECONDS):
                        await self.log.announce(session_id, list(events.values()))
                except (LogUnavailableError, TimeoutError):
                    log.debug("passing events were not announced", extra={"session": session_id})
