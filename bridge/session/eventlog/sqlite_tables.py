"""The event log's tables in SQLite."""

from __future__ import annotations

from typing import Final

from bridge.session.eventlog.base import LogUnavailableError
from bridge.sqlite.file import Schema

PLACES: Final = 1 << 32
"""The events of session `id` have places from `id * PLACES` on."""

_TABLES: Final = (
    "CREATE TABLE sessions ("
    "id INTEGER PRIMARY KEY, session_id TEXT NOT NULL UNIQUE, token_digest BLOB NOT NULL, start BLOB NOT NULL, "
    "language TEXT NOT NULL, backend TEXT NOT NULL, protocol TEXT NOT NULL, owner TEXT NOT NULL, "
    "created REAL NOT NULL, progress BLOB NOT NULL, touched REAL NOT NULL, epoch INTEGER NOT NULL, "
    "seq INTEGER NOT NULL, ended REAL, code TEXT)",
    "CREATE INDEX sessions_by_age ON sessions (touched)",
    # `place` is the session's id and the event's number (`PLACES`): in their order without an index of its own. A table
    # WITHOUT ROWID would put what is longer than a quarter of a page on a page of its own.
    "CREATE TABLE events (place INTEGER PRIMARY KEY, kind TEXT NOT NULL, data BLOB NOT NULL)",
    "CREATE TABLE deleted (session_id TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID",
    "CREATE TABLE nodes (node TEXT PRIMARY KEY, beat REAL NOT NULL) WITHOUT ROWID",
)

SCHEMA: Final = Schema(
    what="the event log",
    elsewhere="set STT_EVENT_LOG to another place, or to `off`",
    application_id=0x53545442,  # "STTB"
    version=1,
    tables=_TABLES,
    unavailable=LogUnavailableError,
)
