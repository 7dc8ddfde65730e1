"""An SQLite file: made, recognized, refused."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OPEN_MILLISECONDS: Final = 4_000
"""That a statement waits for other processes while the tables are made: several servers may start at once."""
BUSY_MILLISECONDS: Final = 500
"""The same later on; a transaction takes some milliseconds."""
WAL_BYTES: Final = 16 * 1_048_576
"""To which the WAL is cut back."""
CHECKED_BYTES: Final = 64 * 1_048_576
"""A file up to this size is read through when it is opened, some tenths of a second, and refused if it is damaged."""


@dataclass(frozen=True, slots=True)
class Schema:
    """Whose file it is and what stands in it.

    `what` is what sentences call it, `elsewhere` what its user may do besides (`set STT_… to another place`),
    `unavailable` the error that every failure becomes. `durable`: each transaction waits for the disk, so that not even
    a power failure takes one back that was answered.
    """

    what: str
    elsewhere: str
    application_id: int
    version: int
    tables: tuple[str, ...]
    unavailable: Callable[[str], Exception]
    durable: bool = False

    def name(self, path: Path | None) -> str:
        """What sentences call this file."""
        return f"{self.what} {'in memory' if path is None else path}"


def open_file(path: Path | None, schema: Schema) -> sqlite3.Connection:
    """A connection to the file, made where it is not there; None: to a database in memory.

    Raises:
        schema.unavailable: it cannot be made, or holds something else; the sentence says what to do.
    """
    name = schema.name(path)
    try:
        if path is not None and not path.exists():
            _make(path, schema)
        db = sqlite3.connect(path or ":memory:", isolation_level=None)
    except (OSError, sqlite3.Error) as exc:
        raise schema.unavailable(f"{name} cannot be made ({exc}): {schema.elsewhere}") from exc
    try:
        _prepare(db, path, schema)
    except sqlite3.OperationalError as exc:  # locked, read-only, no room: the file itself may be sound
        db.close()
        raise schema.unavailable(f"{name} cannot be used ({exc}): {schema.elsewhere}") from exc
    except sqlite3.DatabaseError as exc:
        db.close()
        raise _damaged(path, schema, exc) from exc
    except BaseException:
        db.close()
        raise
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


def shrink(db: sqlite3.Connection, pages: int) -> int:
    """Give some free pages back to the disk; how many are left."""
    db.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
    return int(db.execute("PRAGMA freelist_count").fetchone()[0])


def clean(db: sqlite3.Connection) -> None:
    """Let nothing that was deleted lie on in the WAL."""
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _make(path: Path, schema: Schema) -> None:
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
            _prepare(db, new, schema)
        try:
            with contextlib.suppress(FileExistsError):  # another server was faster
                path.hardlink_to(new)
        except OSError:  # no hard links on this file system: two that start in the same moment would be in trouble
            new.rename(path)


def _prepare(db: sqlite3.Connection, path: Path | None, schema: Schema) -> None:
    db.execute(f"PRAGMA busy_timeout={OPEN_MILLISECONDS}")
    db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # before all else: it is part of the first page
    with transaction(db):
        _make_tables(db, path, schema)
    if path is not None and path.stat().st_size <= CHECKED_BYTES:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _damaged(path, schema, verdict)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute(f"PRAGMA synchronous={'FULL' if schema.durable else 'NORMAL'}")
    db.execute("PRAGMA secure_delete=ON")
    db.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
    db.execute(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}")


def _make_tables(db: sqlite3.Connection, path: Path | None, schema: Schema) -> None:
    """In one transaction, so that of several servers that start at once one makes them."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != schema.application_id and tables:
        raise schema.unavailable(f"{path} is another program's database, and not {schema.what}: {schema.elsewhere}")
    if version > schema.version:
        raise schema.unavailable(
            f"{schema.name(path)} was written by a newer version (tables {version}, this one knows {schema.version}): "
            f"move it away (a new one is made), or {schema.elsewhere}"
        )
    if tables:
        return
    for statement in schema.tables:
        db.execute(statement)
    db.execute(f"PRAGMA application_id={schema.application_id}")
    db.execute(f"PRAGMA user_version={schema.version}")


def _damaged(path: Path | None, schema: Schema, why: object) -> Exception:
    return schema.unavailable(
        f"{schema.name(path)} is damaged, or no SQLite database ({why}): "
        f"move it away (a new one is made), or {schema.elsewhere}"
    )
