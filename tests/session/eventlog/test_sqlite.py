"""The SQLite log: killed processes, several of them, bad files, time, room."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Final

import pytest

from bridge.session.eventlog.base import LogUnavailableError, Outcome
from bridge.session.eventlog.sqlite import TOMBSTONE_SECONDS, SqliteLog
from bridge.session.eventlog.sqlite_tables import SCHEMA
from tests.session.eventlog.samples import closed, entry, final, finals, name, record, write

ROOT: Final = Path(__file__).parents[3]
LIMIT: Final = 20.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def opened(
    path: Path | None, node: str = "here", retention: float = 100.0, clock: Clock | None = None
) -> SqliteLog:
    log = SqliteLog(path, node, retention, clock or time.time)
    await log.open()
    return log


def others(folder: Path) -> list[str]:
    """What lies there that is no database, nor belongs to one."""
    return [path.name for path in folder.iterdir() if ".db" not in path.suffix]


def content(folder: Path) -> bytes:
    """Of all files there."""
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def refusal(path: Path) -> str:
    """Why it cannot be opened."""
    log = SqliteLog(path, "here", 100)
    with pytest.raises(LogUnavailableError) as caught:
        await log.open()
    with pytest.raises(LogUnavailableError, match="not open"):
        await log.read("s")
    await log.close()
    return str(caught.value)


# The file


async def test_the_file_is_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "log.db"
    log = await opened(path)
    await log.create(record(name()))
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()} == {
        "log.db": 0o600,
        "log.db-wal": 0o600,
        "log.db-shm": 0o600,
    }
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
    await log.close()


async def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    path, session = tmp_path / "log.db", name()
    log = await opened(path)
    await log.create(record(session))
    await write(log, session, *finals(1, 3))
    await log.close()
    log = await opened(path, "next")
    assert await log.events(session, 1) == list(finals(1, 3))
    await log.close()


async def test_no_database(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    junk = b"not a database at all, but long enough to look at " * 20
    path.write_bytes(junk)
    sentence = await refusal(path)
    assert str(path) in sentence
    assert "move it away" in sentence
    assert path.read_bytes() == junk


async def test_a_damaged_database(tmp_path: Path) -> None:
    path, session = tmp_path / "log.db", name()
    log = await opened(path)
    await log.create(record(session))
    await write(log, session, *finals(1, 500))
    await log.close()
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xa5" * 20_000)
    assert "is damaged" in await refusal(path)


async def test_somebody_elses_database(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    assert "another program's" in await refusal(path)


async def test_a_newer_version(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    await (await opened(path)).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={SCHEMA.version + 1}")
    db.close()
    assert "newer version" in await refusal(path)


async def test_no_such_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    sentence = await refusal(tmp_path / "file" / "log.db")
    assert "STT_EVENT_LOG" in sentence
    assert "STT_EVENT_LOG" in await refusal(tmp_path)


async def test_a_failing_database_is_told_as_such(tmp_path: Path) -> None:
    """And is used again when it works."""
    path, session = tmp_path / "log.db", name()
    log = await opened(path)
    await log.create(record(session))
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(LogUnavailableError, match="locked"):
        await write(log, session, final(1))
    assert time.monotonic() - began < 1.0, "before the session stops waiting for it"
    blocker.execute("ROLLBACK")
    blocker.close()
    assert await write(log, session, final(1)) is Outcome.WRITTEN
    await log.close()


async def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    session = name()
    log = await opened(tmp_path / "log.db")
    await log.create(record(session))

    async def limit(pages: int) -> None:
        await log._database.do(lambda db: db.execute(f"PRAGMA max_page_count={pages}").fetchall())

    await limit(20)
    with pytest.raises(LogUnavailableError, match="full"):
        await write(log, session, *finals(1, 2_000))
    assert await log.events(session, 1) == []
    await limit(1_000_000)
    assert await write(log, session, *finals(1, 2_000)) is Outcome.WRITTEN
    await log.close()


# The thread


async def test_writes_do_not_stand_behind_everybodys_reads(tmp_path: Path) -> None:
    session = name()
    log = await opened(tmp_path / "log.db")
    await log.create(record(session))
    await write(log, session, *finals(1, 256))
    reads = [asyncio.create_task(log.events(session, 1)) for _ in range(200)]
    await asyncio.sleep(0)
    assert await write(log, session, final(257)) is Outcome.WRITTEN
    done = sum(task.done() for task in reads)
    assert done < 50
    assert all(len(page) == 256 for page in await asyncio.gather(*reads))
    await log.close()


async def test_closing_waits_for_what_is_being_written(tmp_path: Path) -> None:
    session = name()
    log = await opened(tmp_path / "log.db")
    await log.create(record(session))
    writing = asyncio.create_task(write(log, session, *finals(1, 5_000)))
    await asyncio.sleep(0)
    await log.close()
    assert await writing is Outcome.WRITTEN
    with pytest.raises((LogUnavailableError, RuntimeError)):
        await log.read(session)


# Processes

KILLED: Final = """
import asyncio, sys
from pathlib import Path
from bridge.session.eventlog.sqlite import SqliteLog
from tests.session.eventlog.samples import entry, final, record

async def main():
    log = SqliteLog(Path(sys.argv[1]), sys.argv[2], 100)
    await log.open()
    sessions = sys.argv[3:]
    for session in sessions:
        await log.create(record(session))
    for seq in range(1, 1_000_000):
        outcomes = await log.write([entry(session, final(seq)) for session in sessions])
        print(seq, {outcome.value for outcome in outcomes}, flush=True)

asyncio.run(main())
"""


def writer(path: Path, node: str, *sessions: str) -> subprocess.Popen[str]:
    """A process that writes one event after the other, and says what is written."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(path), node, *sessions],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


async def test_nothing_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    for kill in range(5):
        sessions = [name() for _ in range(3)]
        process = writer(path, f"node-{kill}", *sessions)
        assert process.stdout is not None
        lines = [await asyncio.to_thread(process.stdout.readline) for _ in range(20 + 17 * kill)]
        process.kill()
        rest = await asyncio.to_thread(process.stdout.read)
        process.stdout.close()
        await asyncio.to_thread(process.wait, LIMIT)
        assert process.returncode == -signal.SIGKILL
        last = int((lines + rest.splitlines())[-1].split()[0])
        log = await opened(path)
        for session in sessions:
            claimed = await log.claim(session)
            assert claimed is not None
            assert claimed.seq in (last, last + 1), "what was said to be written, at most the batch under way besides"
            stored = [event.seq for event in await log.events(session, 1, limit=100_000)]
            assert stored == list(range(1, claimed.seq + 1))
            assert await write(log, session, final(claimed.seq + 1), epoch=2) is Outcome.WRITTEN
        await log.close()


async def test_two_processes_on_one_file(tmp_path: Path) -> None:
    """Both write; who is claimed by another hears of it."""
    path = tmp_path / "log.db"
    mine, taken, own = name(), name(), name()
    process = writer(path, "theirs", mine, taken)
    assert process.stdout is not None
    try:
        assert "'written'" in await asyncio.to_thread(process.stdout.readline)
        log = await opened(path)
        await log.create(record(own))
        for seq in range(1, 50):
            assert await write(log, own, final(seq)) is Outcome.WRITTEN
        claimed = await log.claim(taken)
        assert claimed is not None
        assert await write(log, taken, final(claimed.seq + 1, "ours"), epoch=2) is Outcome.WRITTEN
        async with asyncio.timeout(LIMIT):
            while "superseded" not in await asyncio.to_thread(process.stdout.readline):
                pass
    finally:
        process.kill()
        process.stdout.close()
        await asyncio.to_thread(process.wait, LIMIT)
    events = await log.events(taken, 1, limit=100_000)
    assert events == [*finals(1, claimed.seq), final(claimed.seq + 1, "ours")]
    await log.close()


async def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    for attempt in range(10):
        logs = [SqliteLog(tmp_path / f"{attempt // 2}.db", f"node-{i}", 100) for i in range(8)]
        await asyncio.gather(*(log.open() for log in logs))
        await asyncio.gather(*(log.create(record(name())) for log in logs))
        await asyncio.gather(*(log.close() for log in logs))
    assert others(tmp_path) == []


@pytest.mark.parametrize("links", [True, False])
async def test_the_file_appears_whole(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file system knows no hard links."""
    path, session = tmp_path / "log.db", name()
    if not links:

        def refused(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(Path, "hardlink_to", refused)
    log = await opened(path)
    assert others(tmp_path) == []
    await log.create(record(session))
    await log.close()
    log = await opened(path)
    assert await log.read(session) is not None
    await log.close()


# Time and room


async def test_sweeping_by_the_clock() -> None:
    clock = Clock()
    log = await opened(None, clock=clock)
    live, ended, released = name(), name(), name()
    for session in (live, ended, released):
        await log.create(record(session))
    await write(log, ended, closed(1))
    await log.release(released, 1)
    clock.now += 60
    await log.beat()
    clock.now += 39
    assert await log.sweep() == 0
    clock.now += 2
    assert await log.sweep() == 2
    assert await log.read(live) is not None
    clock.now += 60
    assert await log.sweep() == 1, "its owner has not beaten since"
    assert await log.read(live) is None
    await log.close()


async def test_tombstones_are_swept_later() -> None:
    """A session's owner may have nothing to write for hours; it must not bring back what was deleted."""
    clock = Clock()
    log = await opened(None, clock=clock)
    session = name()
    await log.create(record(session))
    await log.delete(session)
    clock.now += TOMBSTONE_SECONDS - 1
    await log.sweep()
    assert await write(log, session, final(1)) is Outcome.DELETED
    clock.now += 2
    await log.sweep()
    assert await write(log, session, final(1)) is Outcome.MISSING
    await log.close()


async def test_what_is_forgotten_is_not_on_the_disk(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "log.db"
    log = await opened(path, clock=clock)
    for session in ("of-the-deleted-one", "of-the-swept-one"):
        await log.create(record(session))
        await write(log, session, *(final(seq, f"secret words {session}") for seq in range(1, 200)))

    def found(words: str) -> bool:
        return f"secret words {words}".encode() in content(tmp_path)

    assert found("of-the-deleted-one")
    await log.delete("of-the-deleted-one")
    assert not found("of-the-deleted-one")
    assert found("of-the-swept-one")
    clock.now += 101
    assert await log.sweep() == 1
    assert not found("of-the-swept-one")
    await log.close()


async def test_nor_beside_what_is_kept(tmp_path: Path) -> None:
    """Small events of many sessions share a page."""
    log = await opened(tmp_path / "log.db")
    sessions = [name() for _ in range(20)]
    for session in sessions:
        await log.create(record(session))
        await write(log, session, final(1, f"secret {session}"))
    await log.delete(sessions[10])
    kept = content(tmp_path)
    assert f"secret {sessions[9]}".encode() in kept
    assert f"secret {sessions[10]}".encode() not in kept
    await log.close()


async def test_a_sweep_of_many_lets_others_write_and_gives_room_back(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "log.db"
    log = await opened(path, clock=clock)
    for _ in range(10):
        old = [name() for _ in range(200)]
        await asyncio.gather(*(log.create(record(session)) for session in old))
        await log.write([entry(session, *finals(1, 10)) for session in old])
    before = path.stat().st_size
    clock.now += 101
    live = name()
    await log.create(record(live))
    sweep = asyncio.create_task(log.sweep())
    seq = 0
    while not sweep.done():
        seq += 1
        assert await write(log, live, final(seq)) is Outcome.WRITTEN
    assert await sweep == 2_000
    assert seq > 10, "it was swept in small steps"
    assert path.stat().st_size < before / 4
    assert await log.events(live, 1, limit=10_000) == list(finals(1, seq))
    await log.close()
