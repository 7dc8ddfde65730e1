"""The log of several processes of one server: what they tell each other of sessions, and what is not lost with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.protocols.events import Ack
from bridge.session.eventlog.siblings import SiblingsLog
from tests.session.eventlog.samples import LIMIT, final, name, record, write


class Exchange:
    """Carries what processes say to each other, at once, unless it is `cut`."""

    def __init__(self) -> None:
        self.members: dict[int, Member] = {}
        self.cut = False
        self.said = 0

    def join(self, number: int) -> Member:
        return Member(self, number)

    def present(self, number: int, *, here: bool) -> None:
        """One begins to serve, or dies."""
        if not here:
            del self.members[number]
        for member in self.members.values():
            for tell in member.watchers:
                tell()


class Member:
    """One process's `Siblings`."""

    def __init__(self, exchange: Exchange, number: int) -> None:
        self.exchange = exchange
        self.number = number
        self.handlers: dict[str, Callable[[int, bytes], None]] = {}
        self.watchers: list[Callable[[], None]] = []
        exchange.members[number] = self

    @property
    def siblings(self) -> frozenset[int]:
        return frozenset(self.exchange.members) - {self.number}

    def when_siblings_change(self, tell: Callable[[], None]) -> None:
        self.watchers.append(tell)

    def on(self, topic: str, handler: Callable[[int, bytes], None]) -> None:
        self.handlers[topic] = handler

    def post(self, topic: str, body: bytes, to: int = 0) -> None:
        self.exchange.said += 1
        if not self.exchange.cut:
            for number in self.siblings if to == 0 else self.siblings & {to}:
                self.exchange.members[number].handlers[topic](self.number, body)


class Processes:
    """The logs of several processes on one file."""

    def __init__(self, path: Path) -> None:
        self.exchange = Exchange()
        self.logs: dict[int, SiblingsLog] = {}
        self._path = path

    async def start(self, number: int) -> SiblingsLog:
        log = self.logs[number] = SiblingsLog(self._path, f"node-{number}", 60, self.exchange.join(number))
        await log.open()
        self.exchange.present(number, here=True)
        return log

    async def end(self, number: int) -> None:
        await self.logs.pop(number).close()
        self.exchange.present(number, here=False)


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Processes]:
    made = Processes(tmp_path / "log.db")
    for number in (1, 2):
        await made.start(number)
    yield made
    for log in made.logs.values():
        await log.close()


class Heard:
    """What one process hears of a session, as `Rooms` does: it reads the log where it may have missed something."""

    def __init__(self, log: SiblingsLog, session_id: str) -> None:
        self.events: list[Any] = []
        self.wake = asyncio.Event()
        self._log = log
        self._session_id = session_id

    async def listen(self) -> None:
        async with contextlib.aclosing(self._log.follow(self._session_id)) as following:
            async for events in following:
                missed = not events or any(
                    getattr(event, "seq", None) not in (None, self._last + 1) for event in events
                )
                for event in await self._log.events(self._session_id, self._last + 1) if missed else events:
                    self.events.append(event)
                self.wake.set()

    @property
    def _last(self) -> int:
        return max((event.seq for event in self.events if getattr(event, "seq", None)), default=0)

    async def until(self, *events: Any) -> None:
        async with asyncio.timeout(LIMIT):
            while self.events[-len(events) :] != list(events):
                self.wake.clear()
                await self.wake.wait()


@contextlib.asynccontextmanager
async def receiving(log: SiblingsLog, session_id: str) -> AsyncIterator[Heard]:
    """A room of this process with one receiver."""
    heard = Heard(log, session_id)
    task = asyncio.create_task(heard.listen())
    await log.set_receivers(session_id, 1)
    try:
        yield heard
    finally:
        await log.set_receivers(session_id, 0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_is_written_and_what_passes(processes: Processes) -> None:
    owner, other = processes.logs.values()
    session = name()
    await owner.create(record(session))
    await write(owner, session, final(1))
    async with receiving(other, session) as heard:
        await heard.until(final(1))
        assert owner.heard_elsewhere(session)
        assert not other.heard_elsewhere(session)
        assert (await owner.receivers(session), await other.receivers(session)) == (1, 0)
        await owner.announce(session, [Ack(5, 3)])
        await write(owner, session, final(2), final(3))
        await heard.until(final(1), Ack(5, 3), final(2), final(3))
    assert not owner.heard_elsewhere(session)
    assert await owner.receivers(session) == 0


async def test_where_nobody_listens_nothing_is_said(processes: Processes) -> None:
    owner = processes.logs[1]
    session = name()
    await owner.create(record(session))
    await write(owner, session, final(1))
    await owner.announce(session, [Ack(5, 3)])
    await owner.beat()
    assert processes.exchange.said == 0


async def test_who_goes_on_with_it_tells_of_it(processes: Processes) -> None:
    first, second = processes.logs.values()
    third = await processes.start(3)
    session = name()
    await first.create(record(session))
    async with receiving(third, session) as heard:
        await write(first, session, final(1))
        await heard.until(final(1))
        assert await second.claim(session) is not None
        await write(second, session, final(2), epoch=2)
        await write(first, session, final(2, "what the former owner says"))
        await heard.until(final(1), final(2))


async def test_what_is_lost_is_read(processes: Processes) -> None:
    owner, other = processes.logs.values()
    session = name()
    await owner.create(record(session))
    async with receiving(other, session) as heard:
        await write(owner, session, final(1))
        await heard.until(final(1))
        processes.exchange.cut = True
        await write(owner, session, final(2))
        processes.exchange.cut = False
        await write(owner, session, final(3))
        await heard.until(final(1), final(2), final(3))
        processes.exchange.cut = True
        await write(owner, session, final(4))
        await other.beat()
        await heard.until(final(3), final(4))


async def test_a_process_that_takes_another_s_place_learns_who_listens(processes: Processes) -> None:
    session = name()
    other = processes.logs[2]
    await processes.logs[1].create(record(session))
    async with receiving(other, session) as heard:
        await processes.end(1)
        owner = await processes.start(1)
        assert owner.heard_elsewhere(session)
        assert await owner.claim(session) is not None
        await write(owner, session, final(1), epoch=2)
        await heard.until(final(1))
        await processes.end(2)
        assert not owner.heard_elsewhere(session)
        await processes.start(2)


async def test_receivers_that_were_told_of_in_vain_are_told_of_again(processes: Processes) -> None:
    owner, other = processes.logs.values()
    session = name()
    counted: dict[str, int] = defaultdict(int)
    processes.exchange.cut = True
    async with receiving(other, session):
        processes.exchange.cut = False
        counted["before"] = await owner.receivers(session)
        await other.beat()
        counted["after"] = await owner.receivers(session)
    assert counted == {"before": 0, "after": 1}
