"""The event log in one SQLite file: the default, for one server or several on one machine.

A thread of its own does the work (`bridge.sqlite.database`). A power failure may take the last moments with it, since
it is not waited for the disk at each write.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bridge.protocols.events import LastingEvent, ServerEvent
from bridge.session.eventlog.base import (
    PAGE,
    Entry,
    EventLog,
    Outcome,
    SessionExistsError,
    SessionRecord,
    decode_event,
)
from bridge.session.eventlog.codec import decode_progress, decode_start, encode
from bridge.session.eventlog.sqlite_tables import PLACES, SCHEMA
from bridge.session.eventlog.sqlite_write import write
from bridge.sqlite.database import Database
from bridge.sqlite.file import clean, shrink, transaction

SWEEP_EVENTS: Final = 2_000
"""Events that one transaction of a sweep deletes, about: some ten milliseconds."""
SWEEP_SESSIONS: Final = 500
SHRINK_PAGES: Final = 500
TOMBSTONE_SECONDS: Final = 86_400.0
"""A deleted session's id is kept at least so long: its owner may be silent for hours before it writes again."""


class SqliteLog(EventLog):
    """`path` None: in memory, gone with the process."""

    def __init__(
        self, path: Path | None, node: str, retention_seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(node, retention_seconds)
        self._clock = clock
        self._database = Database(path, SCHEMA, thread="stt-event-log")

    async def open(self) -> None:
        """Make the file, its folder and its tables, where they are not there.

        Raises:
            LogUnavailableError: the file cannot be used; the sentence says what to do.
        """
        await self._database.open()

    async def close(self) -> None:
        """Give everything back; waits for what is being written."""
        await self._database.close()

    # A session's life

    async def create(self, record: SessionRecord, *, replace: bool = False) -> None:
        """See `EventLog`. One that goes on in a later epoch than the record's is not replaced."""
        await self._database.do(lambda db: self._create(db, record, replace=replace))

    def _create(self, db: sqlite3.Connection, record: SessionRecord, *, replace: bool) -> None:
        if not replace:  # in one statement: see `sqlite_write`
            if not self._insert(db, record):
                raise SessionExistsError(record.session_id)
            return
        with transaction(db):
            there = _row(db, record.session_id)
            if there is not None:
                if there["ended"] is None and there["epoch"] > record.epoch:
                    raise SessionExistsError(record.session_id)
                _forget(db, [there["id"]])
            db.execute("DELETE FROM deleted WHERE session_id = ?", (record.session_id,))
            self._insert(db, record)

    def _insert(self, db: sqlite3.Connection, record: SessionRecord) -> bool:
        """A new session, unless there is one of its name, or was one that was deleted; whether it was written."""
        written = db.execute(
            "INSERT INTO sessions (session_id, token_digest, start, language, backend, protocol, owner, created, "
            "progress, touched, epoch, seq, ended, code) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, "
            "?13, ?14 WHERE NOT EXISTS (SELECT 1 FROM deleted WHERE session_id = ?1) "
            "ON CONFLICT (session_id) DO NOTHING",
            (
                record.session_id,
                record.token_digest,
                encode(record.start),
                record.language,
                record.backend,
                record.protocol,
                self.node,
                record.created,
                encode(record.progress),
                self._clock(),
                record.epoch,
                record.seq,
                record.ended,
                record.code,
            ),
        )
        return written.rowcount == 1

    async def write(self, entries: Sequence[Entry]) -> list[Outcome]:
        """See `EventLog`; one transaction for all."""

        def job(db: sqlite3.Connection) -> list[Outcome]:
            with transaction(db):
                return write(db, entries, self.node, self._clock())

        return await self._database.do(job, first=True)

    async def read(self, session_id: str) -> SessionRecord | None:
        """The session; None if it is not known, or deleted."""
        return await self._database.do(lambda db: _read(db, session_id))

    async def events(self, session_id: str, from_seq: int, limit: int = PAGE) -> list[LastingEvent]:
        """Its events from this number on, in order, at most `limit`."""

        def job(db: sqlite3.Connection) -> list[tuple[str, bytes]]:
            found = db.execute(
                "SELECT kind, data FROM sessions JOIN events ON place BETWEEN id * ?1 + ?2 AND id * ?1 + seq "
                "WHERE session_id = ?3 ORDER BY place LIMIT ?4",
                (PLACES, min(max(0, from_seq), PLACES), session_id, limit),
            )
            return found.fetchall()

        return [decode_event(kind, data) for kind, data in await self._database.do(job)]

    async def claim(self, session_id: str) -> SessionRecord | None:
        """Make this node the owner, unless the session has ended: then the record is as it was."""

        def job(db: sqlite3.Connection) -> SessionRecord | None:
            with transaction(db):
                db.execute(
                    "UPDATE sessions SET owner = ?, epoch = epoch + 1, touched = ? "
                    "WHERE session_id = ? AND ended IS NULL",
                    (self.node, self._clock(), session_id),
                )
                return _read(db, session_id)

        return await self._database.do(job)

    async def release(self, session_id: str, epoch: int) -> None:
        """Nobody owns the session from now on, `owner` is empty; its time to be resumed begins."""

        def job(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE sessions SET owner = '', touched = ? "
                "WHERE session_id = ? AND owner = ? AND epoch = ? AND ended IS NULL",
                (self._clock(), session_id, self.node, epoch),
            )

        await self._database.do(job)

    async def delete(self, session_id: str) -> bool:
        """See `EventLog`. Leaves the id alone, and nothing of the rest on the disk."""

        def job(db: sqlite3.Connection) -> bool:
            with transaction(db):
                if (row := _row(db, session_id)) is None:
                    return False
                _forget(db, [row["id"]])
                db.execute("INSERT INTO deleted (session_id, at) VALUES (?, ?)", (session_id, self._clock()))
            shrink(db, SHRINK_PAGES)
            clean(db)
            return True

        return await self._database.do(job)

    async def beat(self) -> None:
        """See `EventLog`."""

        def job(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO nodes (node, beat) VALUES (?, ?)", (self.node, self._clock()))

        await self._database.do(job)

    async def sweep(self) -> int:
        """See `EventLog`. In many small transactions: who writes meanwhile waits for one of them."""
        now = self._clock()
        swept = 0
        while some := await self._database.do(lambda db: _sweep(db, now - self.retention_seconds)):
            swept += some

        def finish(db: sqlite3.Connection) -> None:
            with transaction(db):
                kept = max(self.retention_seconds, TOMBSTONE_SECONDS)
                db.execute("DELETE FROM deleted WHERE at < ?", (now - kept,))
                db.execute("DELETE FROM nodes WHERE beat < ?", (now - self.retention_seconds,))

        await self._database.do(finish)
        if swept:
            while await self._database.do(lambda db: shrink(db, SHRINK_PAGES)):
                pass
            await self._database.do(clean)
        return swept

    # There are no other servers

    async def announce(self, session_id: str, events: Sequence[ServerEvent]) -> None:
        """Nothing: receivers are at this server."""

    async def set_receivers(self, session_id: str, count: int) -> None:
        """Nothing: nobody else asks."""

    async def receivers(self, session_id: str) -> int:  # noqa: ARG002 - the contract's
        """None."""
        return 0


def _row(db: sqlite3.Connection, session_id: str) -> dict[str, Any] | None:
    """A session's columns, and its node's last `beat`."""
    found = db.execute(
        "SELECT sessions.*, beat FROM sessions LEFT JOIN nodes ON node = owner WHERE session_id = ?", (session_id,)
    )
    values = found.fetchone()
    return None if values is None else dict(zip((column[0] for column in found.description), values, strict=True))


def _read(db: sqlite3.Connection, session_id: str) -> SessionRecord | None:
    if (row := _row(db, session_id)) is None:
        return None
    del row["id"]
    beat = row.pop("beat")
    if beat is not None and row["ended"] is None:
        row["touched"] = max(row["touched"], beat)
    row["start"], row["progress"] = decode_start(row["start"]), decode_progress(row["progress"])
    return SessionRecord(**row)


def _sweep(db: sqlite3.Connection, before: float) -> int:
    """Forget some sessions without a sign of life since then; how many."""
    with transaction(db):
        found = db.execute(
            "SELECT id, seq FROM sessions LEFT JOIN nodes ON node = owner "
            "WHERE touched < ?1 AND (ended IS NOT NULL OR coalesce(beat, 0) < ?1) ORDER BY touched LIMIT ?2",
            (before, SWEEP_SESSIONS),
        ).fetchall()
        chosen: list[int] = []
        events = 0
        for key, seq in found:
            if chosen and events + seq > SWEEP_EVENTS:
                break
            chosen.append(key)
            events += seq
        _forget(db, chosen)
    return len(chosen)


def _forget(db: sqlite3.Connection, keys: Sequence[int]) -> None:
    places = [(key * PLACES, (key + 1) * PLACES) for key in keys]
    db.executemany("DELETE FROM events WHERE place >= ? AND place < ?", places)
    db.executemany("DELETE FROM sessions WHERE id = ?", [(key,) for key in keys])
