"""The SQLite file of an event log: made, recognized, refused."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bridge.session.eventlog.base import LogUnavailableError

APPLICATION_ID: Final = 0x53545442  # "STTB": whose file it is
VERSION: Final = 1
"""Of the tables."""
PLACES: Final = 1 << 32
"""The events of session `id` have places from `id * PLACES` on."""
OPEN_MILLISECONDS: Final = 4_000
"""That a statement waits for other processes while the tables are made: several servers may start at once."""
BUSY_MILLISECONDS: Final = 500
"""The same later on; a transaction takes some milliseconds."""
WAL_BYTES: Final = 16 * 1_048_576
"""To which the WAL is cut back."""
CHECKED_BYTES: Final = 64 * 1_048_576
"""A file up to this size is read through when it is opened, some tenths of a second, and refused if it is damaged."""

_ELSEWHERE: Final = "set STT_EVENT_LOG to another place, or to `off`"
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


def name_of(path: Path | None) -> str:
    """What sentences call it."""
    return "in memory" if path is None else str(path)


def open_file(path: Path | None) -> sqlite3.Connection:
    """A connection to the file, made where it is not there; None: to a database in memory.

    Raises:
        LogUnavailableError: it cannot be made, or holds something else; the sentence says what to do.
    """
    try:
        if path is not None and not path.exists():
            _make(path)
        db = sqlite3.connect(path or ":memory:", isolation_level=None)
    except (OSError, sqlite3.Error) as exc:
        raise LogUnavailableError(f"the event log {name_of(path)} cannot be made ({exc}): {_ELSEWHERE}") from exc
    try:
        _prepare(db, path)
    except LogUnavailableError:
        db.close()
        raise
    except sqlite3.OperationalError as exc:  # locked, read-only, no room: the file itself may be sound
        db.close()
        raise LogUnavailableError(f"the event log {name_of(path)} cannot be used ({exc}): {_ELSEWHERE}") from exc
    except sqlite3.DatabaseError as exc:
        db.close()
        raise LogUnavailableError(_damaged(path, exc)) from exc
    return db


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """IMMEDIATE: a transaction that begins by reading could not go on to write if another process wrote meanwhile."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # some failures have rolled back already
            db.execute("ROLLBACK")
        raise


def _make(path: Path) -> None:
    """The file and the folders that lead to it, for nobody but this user.

    It is made under another name and appears when it is whole: several servers that start at once would lock each other
    out while each turns the WAL on, which waits for nobody.
    """
    for folder in reversed(path.parents):
        folder.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder_of_new:
        new = Path(folder_of_new) / path.name
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as db:
            _prepare(db, new)
        try:
            with contextlib.suppress(FileExistsError):  # another server was faster
                path.hardlink_to(new)
        except OSError:  # no hard links on this file system: two that start in the same moment would be in trouble
            new.rename(path)


def _prepare(db: sqlite3.Connection, path: Path | None) -> None:
    db.execute(f"PRAGMA busy_timeout={OPEN_MILLISECONDS}")
    db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # before all else: it is part of the first page
    with transaction(db):
        _make_tables(db, path)
    if path is not None and path.stat().st_size <= CHECKED_BYTES:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise LogUnavailableError(_damaged(path, verdict))
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("PRAGMA secure_delete=ON")
    db.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
    db.execute(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}")


def _make_tables(db: sqlite3.Connection, path: Path | None) -> None:
    """In one transaction, so that of several servers that start at once one makes them."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and tables:
        raise LogUnavailableError(f"{path} is another program's database, and no event log: {_ELSEWHERE}")
    if version > VERSION:
        raise LogUnavailableError(
            f"the event log {path} was written by a newer version (tables {version}, this one knows {VERSION}): "
            f"move it away (a new one is made), or {_ELSEWHERE}"
        )
    if tables:
        return
    for statement in _TABLES:
        db.execute(statement)
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={VERSION}")


def _damaged(path: Path | None, why: object) -> str:
    return (
        f"the event log {name_of(path)} is damaged, or no SQLite database ({why}): "
        f"move it away (a new one is made), or {_ELSEWHERE}"
    )
