"""Jobs in one SQLite file: the default, for one server or several on one machine."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bridge.jobs.changes import stop_of
from bridge.jobs.models import Job, Notice, Outcome, Progress, State, Terms, encode
from bridge.jobs.store import (
    LOST,
    LOST_MESSAGE,
    JobConflictError,
    JobStore,
    Rules,
    StoreFullError,
    StoreUnavailableError,
    job_of,
)
from bridge.sqlite.database import Database
from bridge.sqlite.file import Schema, clean, shrink, transaction

SWEEP_JOBS: Final = 100
"""Jobs that one transaction of a sweep deletes."""
SHRINK_PAGES: Final = 500

SCHEMA: Final = Schema(
    what="the store of jobs",
    elsewhere="set STT_STORE to another place",
    application_id=0x5354544A,  # "STTJ"
    version=1,
    tables=(
        "CREATE TABLE jobs ("
        "seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, backend TEXT NOT NULL, "
        "blob TEXT NOT NULL, fingerprint TEXT NOT NULL, told INTEGER NOT NULL, created REAL NOT NULL, "
        "terms BLOB NOT NULL, state TEXT NOT NULL DEFAULT 'queued', version INTEGER NOT NULL DEFAULT 1, "
        "attempt INTEGER NOT NULL DEFAULT 0, lost INTEGER NOT NULL DEFAULT 0, failures INTEGER NOT NULL DEFAULT 0, "
        # When it may be begun; while it runs, when its lease runs out; when it has ended, when its owner is told.
        "due REAL NOT NULL, "
        "started REAL, finished REAL, seconds REAL NOT NULL DEFAULT 0, total REAL, engine TEXT, language TEXT, "
        "code TEXT, message TEXT, notice TEXT NOT NULL DEFAULT 'none', notices INTEGER NOT NULL DEFAULT 0)",
        "CREATE INDEX jobs_by_due ON jobs (backend, state, due)",
        "CREATE INDEX jobs_by_owner ON jobs (owner, seq)",
        "CREATE INDEX jobs_by_end ON jobs (finished) WHERE finished IS NOT NULL",
        "CREATE INDEX jobs_by_state ON jobs (state)",
        "CREATE INDEX jobs_by_blob ON jobs (blob) WHERE finished IS NULL",
        "CREATE INDEX jobs_by_notice ON jobs (due) WHERE notice = 'pending'",
        "CREATE TABLE results (id TEXT PRIMARY KEY, segments BLOB NOT NULL)",
    ),
    unavailable=StoreUnavailableError,
    durable=True,  # an accepted job survives a power failure, too
)

_OWN: Final = frozenset({"seq", "owner", "backend", "blob", "fingerprint", "told", "created", "due"})
"""Columns that the store looks for; a job has them in its terms, or not at all."""


class SqliteJobStore(JobStore):
    """`path` None: in memory, gone with the process."""

    def __init__(self, path: Path | None, rules: Rules, clock: Callable[[], float] = time.time) -> None:
        super().__init__(rules)
        self._clock = clock
        self._database = Database(path, SCHEMA, thread="stt-jobs")

    async def open(self) -> None:
        """Make the file, its folder and its tables, where they are not there.

        Raises:
            StoreUnavailableError: the file cannot be used; the sentence says what to do.
        """
        await self._database.open()

    async def close(self) -> None:
        """Give everything back; waits for what is being written."""
        await self._database.close()

    # For whoever asks for a transcript

    async def submit(self, job_id: str, terms: Terms) -> Job:
        """See `JobStore`."""
        order = terms.order

        def work(db: sqlite3.Connection) -> Job:
            with transaction(db):
                found = db.execute("SELECT owner, fingerprint FROM jobs WHERE id = ?", (job_id,)).fetchone()
                if found is None:
                    (waiting,) = db.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()
                    if waiting >= self.rules.waiting:
                        raise StoreFullError
                    db.execute(
                        "INSERT INTO jobs (id, owner, backend, blob, fingerprint, told, created, terms, due) "
                        "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, min(?7, ?9))",  # clocks may be set back
                        (
                            job_id,
                            order.owner,
                            terms.backend,
                            order.blob,
                            order.fingerprint,
                            order.webhook is not None,
                            terms.created,
                            encode(terms),
                            self._clock(),
                        ),
                    )
                elif found != (order.owner, order.fingerprint):
                    raise JobConflictError(job_id)
                return _known(db, job_id)

        job = await self._database.do(work)
        self.changes.offer_work()
        return job

    async def get(self, job_id: str) -> Job | None:
        """See `JobStore`."""
        return await self._database.do(lambda db: _get(db, job_id))

    async def result(self, job_id: str) -> bytes | None:
        """See `JobStore`."""

        def work(db: sqlite3.Connection) -> bytes | None:
            found = db.execute("SELECT segments FROM results WHERE id = ?", (job_id,)).fetchone()
            return None if found is None else bytes(found[0])

        return await self._database.do(work)

    async def page(self, owner: str, state: State | None, after: str | None, limit: int) -> list[Job]:
        """See `JobStore`."""

        def work(db: sqlite3.Connection) -> list[Job]:
            found = db.execute(
                "SELECT * FROM jobs WHERE owner = ?1 AND (?2 IS NULL OR state = ?2) "
                "AND (?3 IS NULL OR seq < (SELECT seq FROM jobs WHERE id = ?3)) ORDER BY seq DESC LIMIT ?4",
                (owner, state, after, limit),
            )
            names = [column[0] for column in found.description]
            return [_job(names, row) for row in found]

        return await self._database.do(work)

    async def cancel(self, job_id: str) -> Job | None:
        """See `JobStore`."""

        def work(db: sqlite3.Connection) -> Job | None:
            with transaction(db):
                found = db.execute("UPDATE jobs SET state = 'cancelled' WHERE id = ? AND finished IS NULL", (job_id,))
                if found.rowcount:
                    _end(db, job_id, self._clock())
                return _get(db, job_id)

        job = await self._database.do(work)
        self.changes.ring(job_id)
        self.changes.ring(stop_of(job_id))
        self.changes.offer_notice()
        return job

    async def delete(self, job_id: str) -> bool:
        """See `JobStore`. Leaves nothing of it on the disk."""

        def work(db: sqlite3.Connection) -> bool:
            with transaction(db):
                found = db.execute("DELETE FROM jobs WHERE id = ? AND finished IS NOT NULL", (job_id,))
                if not found.rowcount:
                    return False
                db.execute("DELETE FROM results WHERE id = ?", (job_id,))
            shrink(db, SHRINK_PAGES)
            clean(db)
            return True

        deleted = await self._database.do(work)
        self.changes.ring(job_id)
        return deleted

    async def needs(self, blob: str) -> bool:
        """See `JobStore`."""

        def work(db: sqlite3.Connection) -> bool:
            found = db.execute("SELECT 1 FROM jobs WHERE blob = ? AND finished IS NULL", (blob,))
            return found.fetchone() is not None

        return await self._database.do(work)

    # For workers

    async def claim(self, backend: str) -> Job | None:
        """See `JobStore`."""

        def work(db: sqlite3.Connection) -> tuple[list[str], Job | None]:
            now = self._clock()
            with transaction(db):
                lost = self._take_back(db, backend, now)
                found = db.execute(
                    "UPDATE jobs SET state = 'running', attempt = attempt + 1, version = version + 1, due = ?1, "
                    "started = coalesce(started, ?2), seconds = 0 WHERE seq = (SELECT seq FROM jobs "
                    "WHERE backend = ?3 AND state = 'queued' AND due <= ?2 ORDER BY due, seq LIMIT 1) RETURNING id",
                    (now + self.rules.lease_seconds, now, backend),
                ).fetchone()
            # Not within the transaction: one that cannot be understood is begun all the same, and the next one's turn
            # comes, until it has been begun too often.
            return lost, None if found is None else _known(db, found[0])

        lost, job = await self._database.do(work)
        for job_id in lost:
            self.changes.ring(job_id)
        if lost:
            self.changes.offer_notice()
        if job is not None:
            self.changes.ring(job.id)
        return job

    def _take_back(self, db: sqlite3.Connection, backend: str, now: float) -> list[str]:
        """Jobs whose workers are gone wait again, before those that came later, or fail."""
        lost = db.execute(
            "SELECT id, lost + 1 FROM jobs WHERE backend = ? AND state = 'running' AND due < ?", (backend, now)
        ).fetchall()
        for job_id, times in lost:
            if times > self.rules.attempts:
                db.execute(
                    "UPDATE jobs SET state = 'failed', lost = lost + 1, code = ?, message = ? WHERE id = ?",
                    (LOST, LOST_MESSAGE, job_id),
                )
                _end(db, job_id, now)
            else:
                db.execute(
                    "UPDATE jobs SET state = 'queued', lost = lost + 1, version = version + 1, "
                    "due = min(created, ?), seconds = 0 WHERE id = ?",
                    (now, job_id),
                )
        return [job_id for job_id, _ in lost]

    async def beat(self, job: Job, progress: Progress) -> bool:
        """See `JobStore`."""

        def work(db: sqlite3.Connection) -> bool:
            found = db.execute(
                "UPDATE jobs SET due = ?, version = version + 1, seconds = ?, total = ?, engine = ?, language = ? "
                "WHERE id = ? AND attempt = ? AND state = 'running'",
                (
                    self._clock() + self.rules.lease_seconds,
                    progress.seconds,
                    progress.total,
                    progress.engine,
                    progress.language,
                    job.id,
                    job.attempt,
                ),
            )
            return found.rowcount == 1

        held = await self._database.do(work)
        self.changes.ring(job.id)
        return held

    async def finish(self, job: Job, outcome: Outcome, progress: Progress) -> bool:
        """See `JobStore`."""

        def work(db: sqlite3.Connection) -> bool:
            result = None if outcome.segments is None else encode(outcome.segments)  # before others are kept waiting
            with transaction(db):
                found = db.execute(
                    "UPDATE jobs SET state = ?, seconds = ?, total = ?, engine = ?, language = ?, code = ?, "
                    "message = ? WHERE id = ? AND attempt = ? AND state = 'running'",
                    (
                        outcome.state,
                        progress.seconds,
                        progress.total,
                        progress.engine,
                        progress.language,
                        outcome.code,
                        outcome.message,
                        job.id,
                        job.attempt,
                    ),
                )
                if found.rowcount != 1:  # not this attempt's any more, or ended by it already, unheard
                    there = db.execute("SELECT attempt, state FROM jobs WHERE id = ?", (job.id,)).fetchone()
                    return bool(there == (job.attempt, outcome.state))
                _end(db, job.id, self._clock())
                if result is not None:
                    db.execute("INSERT INTO results (id, segments) VALUES (?, ?)", (job.id, result))
                return True

        finished = await self._database.do(work)
        self.changes.ring(job.id)
        self.changes.offer_notice()
        return finished

    async def put_back(self, job: Job, seconds: float = 0.0, *, failed: bool = False) -> bool:
        """See `JobStore`."""

        def work(db: sqlite3.Connection) -> bool:
            now = self._clock()
            found = db.execute(
                "UPDATE jobs SET state = 'queued', version = version + 1, failures = failures + ?, due = ?, "
                "seconds = 0 WHERE id = ? AND attempt = ? AND state = 'running'",
                (failed, now + seconds if seconds else min(job.terms.created, now), job.id, job.attempt),
            )
            return found.rowcount == 1

        held = await self._database.do(work)
        self.changes.ring(job.id)
        self.changes.offer_work()
        return held

    async def next_claim(self, backend: str) -> float | None:
        """See `JobStore`."""
        return await self._seconds_until(
            "SELECT min(due) FROM jobs WHERE backend = ? AND state IN ('queued', 'running')", backend
        )

    async def follow(self, backend: str, wanted: Callable[[], Awaitable[object]]) -> None:
        """Nothing: nobody tells of what another process hands in. Its own workers take it, or others when they look."""

    # Webhooks

    async def claim_notice(self, seconds: float) -> Job | None:
        """See `JobStore`."""

        def work(db: sqlite3.Connection) -> Job | None:
            now = self._clock()
            with transaction(db):
                found = db.execute(
                    "UPDATE jobs SET notices = notices + 1, version = version + 1, due = ?1 WHERE seq = "
                    "(SELECT seq FROM jobs WHERE notice = 'pending' AND due <= ?2 ORDER BY due LIMIT 1) RETURNING id",
                    (now + seconds, now),
                ).fetchone()
            return None if found is None else _known(db, found[0])  # as in `claim`

        return await self._database.do(work)

    async def settle_notice(self, job: Job, *, delivered: bool, retry: float | None) -> None:
        """See `JobStore`."""
        notice = Notice.settled(delivered=delivered, retry=retry)

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE jobs SET notice = ?, version = version + 1, due = ? "
                "WHERE id = ? AND notices = ? AND notice = 'pending'",
                (notice, self._clock() + (retry or 0), job.id, job.notices),
            )

        await self._database.do(work)
        self.changes.ring(job.id)

    async def next_notice(self) -> float | None:
        """See `JobStore`."""
        return await self._seconds_until("SELECT min(due) FROM jobs WHERE notice = 'pending'")

    async def _seconds_until(self, query: str, *values: str) -> float | None:
        def work(db: sqlite3.Connection) -> float | None:
            (due,) = db.execute(query, values).fetchone()
            return None if due is None else max(0.0, due - self._clock())

        return await self._database.do(work)

    # Housekeeping

    async def sweep(self) -> int:
        """See `JobStore`. In small transactions: who writes meanwhile waits for one of them."""
        before = self._clock() - self.rules.retention_seconds
        swept = 0
        while some := await self._database.do(lambda db: _sweep(db, before)):
            swept += some
        if swept:
            while await self._database.do(lambda db: shrink(db, SHRINK_PAGES)):
                pass
            await self._database.do(clean)
        return swept

    async def counts(self) -> Mapping[State, int]:
        """See `JobStore`."""

        def work(db: sqlite3.Connection) -> list[tuple[str, int]]:
            return db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()

        found = dict(await self._database.do(work))
        return {state: found.get(state, 0) for state in State}


def _end(db: sqlite3.Connection, job_id: str, now: float) -> None:
    """It has ended, and whoever wants to hear of it shall."""
    db.execute(
        "UPDATE jobs SET version = version + 1, notice = CASE told WHEN 1 THEN 'pending' ELSE 'none' END, due = ?1, "
        "finished = ?1 WHERE id = ?2",
        (now, job_id),
    )


def _get(db: sqlite3.Connection, job_id: str) -> Job | None:
    found = db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,))
    row = found.fetchone()
    return None if row is None else _job([column[0] for column in found.description], row)


def _known(db: sqlite3.Connection, job_id: str) -> Job:
    job = _get(db, job_id)
    if job is None:
        raise StoreUnavailableError("a job is gone within the transaction that has written it")
    return job


def _job(names: Sequence[str], row: Sequence[Any]) -> Job:
    return job_of({name: value for name, value in zip(names, row, strict=True) if name not in _OWN})


def _sweep(db: sqlite3.Connection, before: float) -> int:
    with transaction(db):
        found = db.execute(
            "DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE finished < ? ORDER BY finished LIMIT ?) "
            "RETURNING id",
            (before, SWEEP_JOBS),
        ).fetchall()
        db.executemany("DELETE FROM results WHERE id = ?", found)
    return len(found)
