"""Batches of the SQLite log: few statements, every session judged by itself."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.session.eventlog import sqlite_write
from bridge.session.eventlog.base import Entry, Outcome, Progress
from bridge.session.eventlog.sqlite import SqliteLog
from bridge.session.eventlog.sqlite_tables import PLACES
from bridge.session.eventlog.sqlite_write import write
from tests.session.eventlog.samples import closed, entry, final, finals, record

TEXTS = ('quote " \\ backslash', "nul \x00 \x1f \u2028 \u2029", "grüß 日本語 😀", "</script> {} [] \\u0041", "")


@pytest.fixture
def log(tmp_path: Path) -> SqliteLog:
    return SqliteLog(tmp_path / "log.db", "here", 3_600.0)


@pytest.fixture
def db(tmp_path: Path, log: SqliteLog) -> Iterator[sqlite3.Connection]:
    """The same file, past the log: with the sessions `s0` to `s99`, and `gone`, which was deleted."""

    async def prepare() -> None:
        await log.open()
        for number in range(100):
            await log.create(record(f"s{number}"))
        await log.create(record("gone"))
        await log.delete("gone")
        await log.close()

    asyncio.run(prepare())
    connection = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    yield connection
    connection.close()


def statements(db: sqlite3.Connection, entries: list[Entry]) -> int:
    """How many one batch takes; all of it is written."""
    seen: list[str] = []
    db.set_trace_callback(seen.append)
    outcomes = write(db, entries, "here", 1.0)
    db.set_trace_callback(None)
    assert set(outcomes) == {Outcome.WRITTEN}
    return len([statement for statement in seen if not statement.startswith("--")])  # a comment is a trigger's


def test_a_large_batch_takes_as_many_statements_as_a_small_one(db: sqlite3.Connection) -> None:
    one = statements(db, [entry("s0", final(1))])
    assert one == statements(db, [entry(f"s{number}", *finals(1, 5)) for number in range(1, 100)]) == 3


def test_sessions_of_one_batch_are_judged_each_by_itself(db: sqlite3.Connection) -> None:
    db.execute("UPDATE sessions SET owner = 'there' WHERE session_id = 's1'")
    outcomes = write(
        db,
        [
            entry("s0", final(1)),
            entry("s1", final(1)),
            entry("s2", final(1), epoch=2),
            entry("s3", final(2)),
            entry("gone", final(1)),
            entry("never", final(1)),
            entry("s4", final(1), closed(2)),
            entry("s5"),
        ],
        "here",
        77.0,
    )
    assert outcomes == [
        Outcome.WRITTEN,
        Outcome.SUPERSEDED,
        Outcome.SUPERSEDED,
        Outcome.MISSING,
        Outcome.DELETED,
        Outcome.MISSING,
        Outcome.WRITTEN,
        Outcome.WRITTEN,
    ]
    rows = dict(
        db.execute("SELECT session_id, seq || ' ' || ifnull(ended, '-') || ' ' || ifnull(code, '-') FROM sessions")
    )
    assert [rows[f"s{number}"] for number in range(6)] == [
        "1 - -",
        "0 - -",
        "0 - -",
        "0 - -",
        "2 77.0 stopped",
        "0 - -",
    ]
    touched = {name for (name,) in db.execute("SELECT session_id FROM sessions WHERE touched = 77.0")}
    assert touched == {"s0", "s4", "s5"}
    assert db.execute("SELECT count(*) FROM events").fetchone() == (3,)


def test_a_session_may_stand_in_a_batch_twice(db: sqlite3.Connection) -> None:
    late = Progress((9.0, 9.0), 900)
    entries = [entry("s0", *finals(1, 2), closed(3)), entry("s0", *finals(2, 2), closed(3), progress=late)]
    assert write(db, entries, "here", 5.0) == [Outcome.WRITTEN] * 2
    assert write(db, [entry("s1", final(1)), entry("s1", final(3))], "here", 5.0) == [Outcome.WRITTEN, Outcome.MISSING]
    seq, ended, code, progress = db.execute(
        "SELECT seq, ended, code, progress FROM sessions WHERE session_id = 's0'"
    ).fetchone()
    assert (seq, ended, code) == (3, 5.0, "stopped")
    assert b'"received":900' in progress
    assert db.execute("SELECT count(*) FROM events").fetchone() == (4,)


def test_more_events_than_fit_in_one_statement(db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_write, "EVENT_CHARS", 700)
    assert write(db, [entry("s0", *finals(1, 30)), entry("s1", *finals(1, 20))], "here", 1.0) == [Outcome.WRITTEN] * 2
    assert db.execute("SELECT count(DISTINCT place) FROM events").fetchone() == (50,)


def test_text_comes_back_as_it_was_and_as_bytes(db: sqlite3.Connection, tmp_path: Path) -> None:
    given = tuple(final(seq, text) for seq, text in enumerate(TEXTS, 1))
    assert write(db, [entry("s0", *given)], "here", 1.0) == [Outcome.WRITTEN]
    assert db.execute("SELECT DISTINCT typeof(data) FROM events").fetchall() == [("blob",)]
    assert db.execute("SELECT DISTINCT typeof(progress) FROM sessions").fetchall() == [("blob",)]

    async def read() -> None:
        again = SqliteLog(tmp_path / "log.db", "here", 3_600.0)
        await again.open()
        assert tuple(await again.events("s0", 1)) == given
        known = await again.read("s0")
        assert known is not None
        assert known.progress == entry("s0").progress
        await again.close()

    asyncio.run(read())


def test_the_last_place_of_a_session_is_its_own(db: sqlite3.Connection) -> None:
    """Numbers of places are wider than the 53 bits that other readers of JSON have."""
    db.execute("UPDATE sessions SET id = 9007199 WHERE session_id = 's0'")
    assert write(db, [entry("s0", final(1))], "here", 1.0) == [Outcome.WRITTEN]
    assert db.execute("SELECT place FROM events").fetchone() == (9_007_199 * PLACES + 1,)
