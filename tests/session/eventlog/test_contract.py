"""What every event log owes, each kind on the real thing."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from bridge.protocols import events
from bridge.session.eventlog.base import EventLog, Outcome, Progress, SessionExistsError
from tests.session.eventlog.samples import Open, closed, entry, eventually, final, finals, name, record, write

EVERY_KIND = (
    events.SpeechStarted(1, 0.5, 0),
    events.Final(2, "", 0.0, 0.0),
    final(3),
    events.SpeechEnded(4, 1.5),
    events.Warning(5, "clipping", "The microphone's gain is too high."),
    events.Error(6, "backend_failed", "It broke.", fatal=True, retryable=True),
    closed(7),
)


# Writing and reading


async def test_a_session_is_read_as_it_was_created(log: EventLog) -> None:
    session = name()
    before = record(session)
    await log.create(before)
    after = await log.read(session)
    assert after is not None
    assert abs(after.touched - before.created) > 1_000_000, "by the log's own clock"
    assert dataclasses.replace(after, touched=0.0) == before


async def test_events_are_read_as_they_were_written(log: EventLog) -> None:
    session = name()
    await log.create(record(session))
    assert await write(log, session, *EVERY_KIND[:3]) is Outcome.WRITTEN
    assert await write(log, session, *EVERY_KIND[3:]) is Outcome.WRITTEN
    assert await log.events(session, 1) == list(EVERY_KIND)


async def test_pages(log: EventLog) -> None:
    session = name()
    await log.create(record(session))
    await write(log, session, *finals(1, 20))
    assert await log.events(session, 3, limit=4) == list(finals(3, 6))
    assert await log.events(session, 18) == list(finals(18, 20))
    assert await log.events(session, 21) == []
    assert await log.events(session, -1, limit=1) == [final(1)]
    assert await log.events(session, 1 << 80) == []


async def test_pages_end_with_the_session(log: EventLog) -> None:
    first, second = name(), name()
    for session in (first, second):
        await log.create(record(session))
        await write(log, session, *finals(1, 3))
    assert await log.events(first, 1) == list(finals(1, 3))
    await log.delete(first)
    assert await log.events(second, 1) == list(finals(1, 3))


async def test_the_record_follows_what_is_written(log: EventLog) -> None:
    session = name()
    await log.create(record(session))
    created = await log.read(session)
    progress = Progress((3.0, 4.0), 9, 44, raw=True)
    assert await log.write([entry(session, *finals(1, 3), progress=progress, backend="other")]) == [Outcome.WRITTEN]
    after = await log.read(session)
    assert after is not None
    assert created is not None
    assert (after.seq, after.progress, after.backend, after.ended, after.code) == (3, progress, "other", None, None)
    assert after.touched >= created.touched


async def test_progress_without_events(log: EventLog) -> None:
    session = name()
    await log.create(record(session))
    await write(log, session, final(1))
    progress = Progress((9.0, 9.0), 99)
    assert await log.write([entry(session, progress=progress)]) == [Outcome.WRITTEN]
    after = await log.read(session)
    assert after is not None
    assert (after.seq, after.progress) == (1, progress)


async def test_closed_ends_it(log: EventLog) -> None:
    session = name()
    await log.create(record(session))
    await write(log, session, final(1), closed(2))
    after = await log.read(session)
    assert after is not None
    assert (after.seq, after.code) == (2, "stopped")
    assert after.ended == pytest.approx(after.touched, abs=0.001)
    assert await write(log, session, final(1), closed(2)) is Outcome.WRITTEN
    again = await log.read(session)
    assert again is not None
    assert dataclasses.replace(again, touched=0.0) == dataclasses.replace(after, touched=0.0)


async def test_writing_twice_writes_once(log: EventLog) -> None:
    session = name()
    await log.create(record(session))
    await write(log, session, *finals(1, 3))
    assert await write(log, session, *finals(1, 3)) is Outcome.WRITTEN
    assert await write(log, session, *finals(2, 5)) is Outcome.WRITTEN
    assert await log.events(session, 1) == list(finals(1, 5))


@pytest.mark.parametrize("numbers", [(3,), (4, 5), (2, 4), (1, 2, 4)])
async def test_a_gap_is_refused_whole(log: EventLog, numbers: tuple[int, ...]) -> None:
    session = name()
    await log.create(record(session))
    await write(log, session, final(1))
    before = await log.read(session)
    assert await write(log, session, *(final(seq) for seq in numbers)) is Outcome.MISSING
    assert await log.events(session, 1) == [final(1)]
    assert await log.read(session) == before


async def test_what_carries_no_number_is_no_part_of_the_log(log: EventLog) -> None:
    session = name()
    await log.create(record(session))
    unnumbered = events.Closed(None, "shutting_down", 0, 0, 0.0)
    assert await write(log, session, final(1), unnumbered) is Outcome.WRITTEN
    after = await log.read(session)
    assert after is not None
    assert (after.seq, after.ended) == (1, None)


async def test_each_entry_has_its_own_outcome(log: EventLog) -> None:
    good, gap, gone, late, unknown = (name() for _ in range(5))
    for session in (good, gap, gone, late):
        await log.create(record(session))
    await log.delete(gone)
    await log.claim(late)
    entries = [entry(session, final(2 if session == gap else 1)) for session in (good, gap, gone, late, unknown, good)]
    assert await log.write(entries) == [
        Outcome.WRITTEN,
        Outcome.MISSING,
        Outcome.DELETED,
        Outcome.SUPERSEDED,
        Outcome.MISSING,
        Outcome.WRITTEN,
    ]
    assert await log.write([]) == []


async def test_a_large_entry(log: EventLog) -> None:
    """What gathers while the log is away comes at once."""
    session = name()
    await log.create(record(session))
    assert await write(log, session, *finals(1, 3_000)) is Outcome.WRITTEN
    assert await log.events(session, 2_999) == list(finals(2_999, 3_000))


async def test_what_is_not_there(log: EventLog) -> None:
    session = name()
    assert await log.read(session) is None
    assert await log.claim(session) is None
    assert await log.events(session, 1) == []
    assert await log.delete(session) is False
    await log.release(session, 1)


# Creating


async def test_a_name_is_taken_once(log: EventLog) -> None:
    session = name()
    await log.create(record(session))
    await write(log, session, closed(1))
    with pytest.raises(SessionExistsError):
        await log.create(record(session))
    assert await log.events(session, 1) == [closed(1)]


async def test_of_two_that_create_at_once_one_succeeds(log: EventLog, other: EventLog) -> None:
    for _ in range(20):
        session = name()
        tried = await asyncio.gather(log.create(record(session)), other.create(record(session)), return_exceptions=True)
        assert sorted(map(type, tried), key=str) == sorted([type(None), SessionExistsError], key=str)


async def test_replacing(log: EventLog, other: EventLog) -> None:
    session = name()
    await other.create(record(session))
    await write(other, session, final(1), closed(2))
    await log.create(record(session, language="fr"), replace=True)
    after = await log.read(session)
    assert after is not None
    assert (after.language, after.seq, after.ended, after.code, after.owner) == ("fr", 0, None, None, "here")
    assert await log.events(session, 1) == []
    assert await write(other, session, final(1)) is Outcome.SUPERSEDED
    assert await write(log, session, final(1)) is Outcome.WRITTEN


async def test_a_record_that_begins_later(log: EventLog) -> None:
    """The log has lost the session, and its owner remembers the last events only."""
    session = name()
    await log.create(record(session, seq=41, epoch=3), replace=True)
    assert await write(log, session, final(43), epoch=3) is Outcome.MISSING
    assert await write(log, session, final(41), final(42), epoch=3) is Outcome.WRITTEN
    assert await log.events(session, 1) == [final(42)]


async def test_who_was_superseded_does_not_replace(log: EventLog, other: EventLog) -> None:
    session = name()
    await log.create(record(session))
    await other.claim(session)
    await write(other, session, final(1), epoch=2)
    with pytest.raises(SessionExistsError):
        await log.create(record(session), replace=True)
    assert await log.events(session, 1) == [final(1)]


# Owners


async def test_claiming(log: EventLog, other: EventLog) -> None:
    session = name()
    await log.create(record(session))
    await write(log, session, final(1))
    claimed = await other.claim(session)
    assert claimed is not None
    assert (claimed.epoch, claimed.owner, claimed.seq) == (2, "there", 1)
    assert await write(log, session, final(2)) is Outcome.SUPERSEDED
    assert await write(log, session, final(2), epoch=2) is Outcome.SUPERSEDED, "the epoch of another node"
    assert await write(other, session, final(2), epoch=2) is Outcome.WRITTEN
    assert await log.events(session, 1) == [final(1), final(2)]


async def test_claiming_again(log: EventLog) -> None:
    session = name()
    await log.create(record(session))
    claimed = await log.claim(session)
    assert claimed is not None
    assert claimed.epoch == 2
    assert await write(log, session, final(1)) is Outcome.SUPERSEDED
    assert await write(log, session, final(1), epoch=2) is Outcome.WRITTEN


async def test_an_ended_session_is_not_claimed(log: EventLog, other: EventLog) -> None:
    session = name()
    await log.create(record(session))
    await write(log, session, closed(1))
    claimed = await other.claim(session)
    assert claimed == await log.read(session)
    assert claimed is not None
    assert (claimed.epoch, claimed.owner) == (1, "here")


async def test_of_many_claims_each_has_its_epoch(log: EventLog, other: EventLog) -> None:
    """Whatever the race: one owner at any time, and events without a gap or a repeat."""
    session = name()
    await log.create(record(session))
    written: list[int] = []

    async def fight(mine: EventLog) -> None:
        for _ in range(15):
            claimed = await mine.claim(session)
            assert claimed is not None
            assert claimed.owner == mine.node
            written.append(-claimed.epoch)
            for seq in range(claimed.seq + 1, claimed.seq + 4):
                if await write(mine, session, final(seq, mine.node), epoch=claimed.epoch) is not Outcome.WRITTEN:
                    break
                written.append(seq)

    await asyncio.gather(fight(log), fight(other), fight(log), fight(other))
    epochs = [-number for number in written if number < 0]
    assert sorted(epochs) == list(range(2, 62))
    numbers = [number for number in written if number > 0]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    assert [event.seq for event in await log.events(session, 1)] == list(range(1, len(numbers) + 1))


async def test_releasing(log: EventLog, other: EventLog) -> None:
    session = name()
    await log.create(record(session))
    await log.release(session, 2)
    await other.release(session, 1)
    before = await other.read(session)
    assert before is not None
    assert before.owner == "here", "neither had a say"
    await log.release(session, 1)
    released = await other.read(session)
    assert released is not None
    assert (released.owner, released.epoch) == ("", 1)
    assert await write(log, session, final(1)) is Outcome.SUPERSEDED
    claimed = await other.claim(session)
    assert claimed is not None
    assert (claimed.owner, claimed.epoch) == ("there", 2)


async def test_an_ended_session_is_not_released(log: EventLog) -> None:
    session = name()
    await log.create(record(session))
    await write(log, session, closed(1))
    before = await log.read(session)
    await log.release(session, 1)
    assert await log.read(session) == before


# Deleting


async def test_deleting(log: EventLog) -> None:
    session = name()
    await log.create(record(session))
    await write(log, session, *finals(1, 3))
    assert await log.delete(session) is True
    assert await log.delete(session) is False
    assert await log.read(session) is None
    assert await log.events(session, 1) == []
    assert await log.claim(session) is None
    assert await write(log, session, final(4)) is Outcome.DELETED


async def test_a_deleted_name_is_used_again_on_purpose_only(log: EventLog) -> None:
    session = name()
    await log.create(record(session))
    await log.delete(session)
    with pytest.raises(SessionExistsError):
        await log.create(record(session))
    await log.create(record(session), replace=True)
    assert await write(log, session, final(1)) is Outcome.WRITTEN


# Time


async def test_a_beat_touches_what_the_node_owns(log: EventLog, other: EventLog) -> None:
    mine, released, ended = name(), name(), name()
    for session in (mine, released, ended):
        await log.create(record(session))
    await log.release(released, 1)
    await write(log, ended, closed(1))
    before = [await other.read(session) for session in (mine, released, ended)]
    await asyncio.sleep(0.01)
    await other.beat()
    assert [await other.read(session) for session in (mine, released, ended)] == before
    await log.beat()
    after = [await other.read(session) for session in (mine, released, ended)]
    assert after[1:] == before[1:]
    assert after[0] is not None
    assert before[0] is not None
    assert after[0].touched > before[0].touched


async def test_sessions_are_forgotten(url: str, open_logs: Open) -> None:
    """Those that ended, that were given up, and whose owner is gone; not one whose owner lives."""
    log = await open_logs(url, retention_seconds=1)
    live, ended, released, claimed = name(), name(), name(), name()
    for session in (live, ended, released, claimed):
        await log.create(record(session))
        await write(log, session, *finals(1, 3))
    await write(log, ended, closed(4))
    await log.release(released, 1)
    if url != "sqlite::memory:":
        gone = await open_logs(url, "there", retention_seconds=1)
        await gone.claim(claimed)

    async def forgotten() -> bool:
        await log.beat()
        await log.sweep()
        rest = [session for session in (ended, released) if await log.read(session) is not None]
        if url != "sqlite::memory:" and await log.read(claimed) is not None:
            rest.append(claimed)
        return not rest

    await eventually(forgotten)
    assert await log.events(ended, 1) == []
    assert await write(log, ended, final(5)) is Outcome.MISSING
    assert await write(log, live, final(4)) is Outcome.WRITTEN
    assert await log.events(live, 1) == list(finals(1, 4))


async def test_what_a_caller_gives_up_does_no_harm(log: EventLog) -> None:
    """Cancelled at any moment: the events are there or not, and come again without a repeat."""
    session = name()
    await log.create(record(session))
    for seq in range(1, 40):
        task = asyncio.create_task(write(log, session, final(seq)))
        await asyncio.sleep(seq * 0.000_05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await write(log, session, final(seq)) is Outcome.WRITTEN
    assert await log.events(session, 1) == list(finals(1, 39))
    assert await asyncio.gather(*(log.read(session) for _ in range(50))) == [await log.read(session)] * 50
