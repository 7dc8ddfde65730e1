"""The journal on a real log that a test may take away, with publishers of its own."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Self

import pytest

from bridge.protocols.events import Ack, Closed, Final, LastingEvent, ServerEvent, Start
from bridge.session import journal
from bridge.session.eventlog.base import Entry, LogUnavailableError, Outcome, Progress, SessionRecord
from bridge.session.eventlog.sqlite import SqliteLog
from bridge.session.hub import Hub, Outbox
from bridge.session.journal import Journal
from bridge.session.publisher import Position, Publisher

RATE = 16_000


class TroubledLog(SqliteLog):
    """One in memory that goes away, hangs, or loses what it had."""

    def __init__(self) -> None:
        super().__init__(None, "here", 3_600)
        self.away = False
        self.hangs = False
        self.writes: list[int] = []
        self.unblocked = asyncio.Event()

    async def write(self, entries: Sequence[Entry]) -> list[Outcome]:
        self.writes.append(len(entries))
        if self.hangs:
            await self.unblocked.wait()
        if self.away:
            raise LogUnavailableError("it is away")
        return await super().write(entries)


class Talk:
    """A session that says what it is told to."""

    def __init__(self, writer: Journal, session_id: str) -> None:
        self.hub = Hub(1_000, history=64)
        self.box: Outbox = self.hub.subscribe()
        self.publisher = Publisher(self.hub, session_id=session_id, writer=writer)
        self.publisher.position = lambda: Position(Progress((float(self.publisher.seq),)), self.publisher.seq * RATE)
        self.outcomes: list[Outcome] = []
        self.publisher.lost = self.outcomes.append

    @property
    def record(self) -> SessionRecord:
        return SessionRecord(
            self.publisher.session_id, b"", Start(), "en", "scripted", "native", "here", 1.0, Progress((0.0,))
        )

    def say(self, text: str) -> None:
        self.publisher.publish(Final(self.publisher.next_seq(), text, 0.0, 1.0))
        self.publisher.publish(Ack(self.publisher.seq * RATE, self.publisher.seq * RATE))

    async def hears(self, count: int) -> list[ServerEvent]:
        """Everything, once so many lasting events have come."""
        events: list[ServerEvent] = []
        async with asyncio.timeout(5):
            while sum(isinstance(e, Final | Closed) for e in events) < count:
                events += await self.box.get()
        return events


class Scene:
    def __init__(self) -> None:
        self.log = TroubledLog()
        self.talks: dict[str, Talk] = {}
        self.journal = Journal(self.log, self.describe)

    def describe(self, session_id: str) -> SessionRecord | None:
        talk = self.talks.get(session_id)
        return talk.record if talk is not None else None

    async def __aenter__(self) -> Self:
        await self.log.open()
        self.journal.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.log.unblocked.set()
        await self.journal.close(2)
        await self.log.close()

    async def talk(self, session_id: str, *, known: bool = True) -> Talk:
        talk = self.talks[session_id] = Talk(self.journal, session_id)
        if known:
            await self.log.create(talk.record)
        return talk

    async def logged(self, session_id: str) -> list[str]:
        events: list[LastingEvent] = await self.log.events(session_id, 1)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        return [e.text for e in events if isinstance(e, Final)]


async def test_what_many_say_at_once_is_one_write() -> None:
    async with Scene() as scene:
        talks = [await scene.talk(f"s{i}") for i in range(50)]
        for talk in talks:
            talk.say("one")
            talk.say("two")
        for talk in talks:
            heard = await talk.hears(2)
            assert [e.text for e in heard if isinstance(e, Final)] == ["one", "two"]
            assert heard[-1] == Ack(2 * RATE, 2 * RATE)
        assert scene.log.writes == [50]
        assert await scene.logged("s49") == ["one", "two"]
        record = await scene.log.read("s49")
        assert record is not None
        assert record.progress.final == (2.0,)


async def test_what_is_said_while_the_journal_rests_is_one_write() -> None:
    async with Scene() as scene:
        talks = [await scene.talk(f"s{i}") for i in range(10)]
        talks[0].say("at once")
        await talks[0].hears(1)
        for talk in talks:
            talk.say("later")
            await asyncio.sleep(0)  # each in a turn of its own
        for talk in talks:
            await talk.hears(1)
        assert scene.log.writes == [1, 10]


async def test_one_who_says_much_ends_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, after a long one, it would be more than an outbox holds."""
    monkeypatch.setattr(journal, "PAUSE_SECONDS", 60)
    async with Scene() as scene:
        talk = await scene.talk("s")
        talk.say("at once")
        await talk.hears(1)
        for number in range(journal.URGENT):
            talk.say(f"{number}")
        await talk.hears(journal.URGENT)
        assert scene.log.writes == [1, 1]


async def test_a_log_that_goes_away_and_comes_back() -> None:
    async with Scene() as scene:
        talk = await scene.talk("s")
        talk.say("one")
        await talk.hears(1)
        scene.log.away = True
        talk.say("two")
        heard = await talk.hears(1)
        assert heard == [Final(2, "two", 0.0, 1.0), Ack(2 * RATE, RATE)]
        away = [scene.journal.down]
        talk.say("three")
        assert scene.journal.backlog == 1
        scene.log.away = False
        async with asyncio.timeout(5):
            while not isinstance((heard := await talk.box.get())[-1], Ack) or heard[-1] != Ack(3 * RATE, 3 * RATE):
                pass
        assert [*away, scene.journal.down] == [True, False]
        assert await scene.logged("s") == ["one", "two", "three"]


async def test_a_log_that_hangs_holds_nobody_up_for_long() -> None:
    async with Scene() as scene:
        talk = await scene.talk("s")
        scene.log.hangs = True
        talk.say("one")
        before = asyncio.get_running_loop().time()
        await talk.hears(1)
        assert asyncio.get_running_loop().time() - before < 2 * journal.WRITE_SECONDS
        scene.log.hangs = False
        scene.log.unblocked.set()
        assert await scene.journal.flushed(talk.publisher, 5)
        assert await scene.logged("s") == ["one"]


async def test_a_session_that_the_log_has_lost_is_written_again() -> None:
    async with Scene() as scene:
        talk = await scene.talk("s")
        talk.say("one")
        await talk.hears(1)
        lost = talk.record
        await scene.log.create(lost, replace=True)  # as if the log had come back from an older copy of itself
        talk.say("two")
        await talk.hears(1)
        assert await scene.journal.flushed(talk.publisher, 5)
        assert await scene.logged("s") == ["one", "two"]


async def test_a_session_that_began_while_the_log_was_away() -> None:
    async with Scene() as scene:
        talk = await scene.talk("s", known=False)
        talk.say("one")
        await talk.hears(1)
        assert await scene.journal.flushed(talk.publisher, 5)
        assert await scene.logged("s") == ["one"]


async def test_more_is_lost_than_is_remembered() -> None:
    async with Scene() as scene:
        talk = await scene.talk("s")
        for number in range(100):
            talk.say(str(number))
        await talk.hears(100)
        await scene.log.create(talk.record, replace=True)
        talk.say("last")
        await talk.hears(1)
        assert await scene.journal.flushed(talk.publisher, 5)
        events = await scene.log.events("s", 1)
        assert [e.seq for e in events] == list(range(101 - 64, 102))


async def test_superseded_and_deleted() -> None:
    async with Scene() as scene:
        moved, deleted, other = [await scene.talk(name) for name in ("moved", "deleted", "other")]
        await scene.log.claim("moved")
        await scene.log.delete("deleted")
        for talk in (moved, deleted, other):
            talk.say("word")
        await other.hears(1)
        assert (moved.outcomes, deleted.outcomes, other.outcomes) == ([Outcome.SUPERSEDED], [Outcome.DELETED], [])
        assert await scene.journal.flushed(moved.publisher, 5)


async def test_the_end_waits_for_what_is_to_be_written_but_not_for_ever() -> None:
    scene = Scene()
    async with scene:
        talk = await scene.talk("s")
        talk.say("one")
    assert await talk.hears(1)
    gone = Scene()
    await gone.log.open()
    gone.journal.start()
    talk = await gone.talk("s")
    gone.log.away = True
    talk.say("one")
    await talk.hears(1)
    async with asyncio.timeout(3):
        assert not await gone.journal.flushed(talk.publisher, 0.1)
        await gone.journal.close(0.1)
    await gone.log.close()


async def test_a_session_that_began_while_the_log_was_away_is_not_taken_for_the_one_before_it() -> None:
    """Of the same name, which has ended: its events are not mixed with the new ones."""
    async with Scene() as scene:
        former = await scene.talk("room")
        former.say("old")
        former.publisher.publish(Closed(former.publisher.next_seq(), "stopped", 0, 0, 0.0))
        await former.hears(2)
        for reuse, logged in ((False, ["old"]), (True, ["new", "newer"])):
            talk = await scene.talk("room", known=False)
            talk.publisher.unknown = dataclasses.replace(talk.record, start=Start(reuse=reuse), created=2.0)
            talk.say("new")
            talk.say("newer")
            heard = await talk.hears(2)
            assert [e.text for e in heard if isinstance(e, Final)] == ["new", "newer"]
            assert await scene.journal.flushed(talk.publisher, 5)
            assert await scene.logged("room") == logged


async def test_a_session_that_was_created_although_that_seemed_to_fail() -> None:
    async with Scene() as scene:
        talk = await scene.talk("s")
        talk.publisher.unknown = talk.record
        talk.say("one")
        await talk.hears(1)
        assert await scene.logged("s") == ["one"]


async def test_what_cannot_be_written_costs_its_own_session_only() -> None:
    async with Scene() as scene:
        bad, good = await scene.talk("bad"), await scene.talk("good")
        bad.say("\ud800")  # no text that could be encoded
        good.say("one")
        assert len(await good.hears(1)) == 2
        assert len(await bad.hears(1)) == 2
        assert await scene.logged("good") == ["one"]
        good.say("two")
        await good.hears(1)
        assert not scene.journal.down
        assert scene.journal.backlog == 0
