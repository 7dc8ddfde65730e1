"""Any history of two nodes on one log, against a model of thirty lines."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.protocols.events import Closed, LastingEvent
from bridge.session.eventlog.base import EventLog, Outcome, Progress, SessionExistsError, SessionRecord
from bridge.session.eventlog.urls import open_log
from tests.redis import RedisServer
from tests.session.eventlog.samples import LIMIT, closed, entry, final, name, record

NODES: Final = ("here", "there")
Step = tuple[Any, ...]


class Model:
    """What a log should know."""

    def __init__(self) -> None:
        self.records: dict[int, SessionRecord] = {}
        self.events: dict[int, list[LastingEvent]] = {}
        self.deleted: set[int] = set()

    def create(self, node: str, session: int, epoch: int, seq: int, replace: bool) -> bool:
        there = self.records.get(session)
        if there is not None and (not replace or (there.ended is None and there.epoch > epoch)):
            return False
        if session in self.deleted and not replace:
            return False
        self.deleted.discard(session)
        self.records[session] = record(str(session), owner=node, epoch=epoch, seq=seq)
        self.events[session] = []
        return True

    def write(self, node: str, session: int, epoch: int, first: int, count: int, end: bool, received: int) -> Outcome:
        there = self.records.get(session)
        if there is None:
            return Outcome.DELETED if session in self.deleted else Outcome.MISSING
        if (there.owner, there.epoch) != (node, epoch):
            return Outcome.SUPERSEDED
        new = [event for event in written(first, count, end) if (event.seq or 0) > there.seq]
        if new and new[0].seq != there.seq + 1:
            return Outcome.MISSING
        self.events[session] += new
        there = dataclasses.replace(there, seq=there.seq + len(new), progress=Progress((1.0,), received))
        if new and isinstance(new[-1], Closed):
            there = dataclasses.replace(there, ended=1.0, code=new[-1].code)
        self.records[session] = there
        return Outcome.WRITTEN

    def claim(self, node: str, session: int) -> SessionRecord | None:
        there = self.records.get(session)
        if there is not None and there.ended is None:
            there = self.records[session] = dataclasses.replace(there, owner=node, epoch=there.epoch + 1)
        return there

    def release(self, node: str, session: int, epoch: int) -> None:
        there = self.records.get(session)
        if there is not None and there.ended is None and (there.owner, there.epoch) == (node, epoch):
            self.records[session] = dataclasses.replace(there, owner="")

    def delete(self, session: int) -> bool:
        if self.records.pop(session, None) is None:
            return False
        self.events.pop(session)
        self.deleted.add(session)
        return True


def written(first: int, count: int, end: bool) -> list[LastingEvent]:
    events: list[LastingEvent] = [final(seq) for seq in range(first, first + count)]
    return [*events, closed(first + count)] if end else events


def plain(known: SessionRecord | None, session_id: str) -> SessionRecord | None:
    """Without the log's own times."""
    if known is None:
        return None
    ended = None if known.ended is None else 1.0
    return dataclasses.replace(known, session_id=session_id, touched=0.0, ended=ended)


NODE: Final = st.sampled_from(NODES)
SESSION: Final = st.integers(0, 1)
EPOCH: Final = st.integers(1, 3)
STEPS: Final = st.lists(
    st.one_of(
        st.tuples(st.just("create"), NODE, SESSION, EPOCH, st.sampled_from([0, 0, 0, 2]), st.booleans()),
        # Numbers that are likely to follow: most histories should get somewhere.
        st.tuples(
            st.just("write"),
            NODE,
            SESSION,
            EPOCH,
            st.integers(1, 4),
            st.integers(0, 3),
            st.sampled_from([False, False, False, True]),
            st.integers(0, 9),
        ),
        st.tuples(st.just("claim"), NODE, SESSION),
        st.tuples(st.just("release"), NODE, SESSION, EPOCH),
        st.tuples(st.just("delete"), NODE, SESSION),
        st.tuples(st.just("beat"), NODE),
    ),
    min_size=1,
    max_size=25,
)


async def history(url: str, steps: list[Step]) -> None:
    logs: dict[str, EventLog] = {}
    for node in NODES:
        log = open_log(url, node, 600)
        assert log is not None
        await log.open()
        logs[node] = log
    model, names = Model(), [name(), name()]
    try:
        async with asyncio.timeout(LIMIT):
            for what, node, *rest in steps:
                await step(logs[node], model, names, what, rest)
                for number, session in enumerate(names):
                    known = plain(await logs["here"].read(session), session)
                    assert known == plain(model.records.get(number), session)
                    assert await logs["there"].events(session, 1) == model.events.get(number, [])
    finally:
        for log in logs.values():
            await log.close()


async def step(log: EventLog, model: Model, names: list[str], what: str, rest: list[Any]) -> None:
    session = names[rest[0]] if rest else ""
    match what:
        case "create":
            _, epoch, seq, replace = rest
            try:
                await log.create(record(session, epoch=epoch, seq=seq), replace=replace)
                created = True
            except SessionExistsError:
                created = False
            assert created == model.create(log.node, *rest)
        case "write":
            _, epoch, first, count, end, received = rest
            given = entry(session, *written(first, count, end), epoch=epoch, progress=Progress((1.0,), received))
            assert await log.write([given]) == [model.write(log.node, *rest)]
        case "claim":
            assert plain(await log.claim(session), session) == plain(model.claim(log.node, *rest), session)
        case "release":
            await log.release(session, rest[1])
            model.release(log.node, *rest)
        case "delete":
            assert await log.delete(session) == model.delete(*rest)
        case "beat":
            await log.beat()


@contextlib.contextmanager
def fresh_file() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:{Path(folder) / 'log.db'}"


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_any_history_in_sqlite(steps: list[Step]) -> None:
    with fresh_file() as url:
        asyncio.run(history(url, steps))


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_any_history_in_redis(shared_redis: RedisServer, steps: list[Step]) -> None:
    asyncio.run(history(shared_redis.url, steps))
