"""One connection's events from a log and a hub, whichever is ahead."""

from __future__ import annotations

import asyncio

import pytest

from bridge.errors import BridgeError
from bridge.protocols.events import Closed, Joined, LastingEvent, SpeechStarted, Start
from bridge.session.eventlog.base import Entry, Progress, SessionRecord
from bridge.session.eventlog.sqlite import SqliteLog
from bridge.session.feed import Feed
from bridge.session.hub import Hub

FIRST = Joined("s", "live", 0)


def event(seq: int) -> SpeechStarted:
    return SpeechStarted(seq, float(seq))


async def filled(count: int) -> SqliteLog:
    log = SqliteLog(None, "here", 3_600)
    await log.open()
    await log.create(SessionRecord("s", b"", Start(), "en", "x", "native", "here", 1.0, Progress((0.0,))))
    for at in range(1, count + 1, 100):
        events = tuple(event(seq) for seq in range(at, min(at + 100, count + 1)))
        await log.write([Entry("s", 1, events, Progress((0.0,)), "x")])
    return log


@pytest.mark.parametrize("ahead", [0, 3, 40])
@pytest.mark.parametrize("history", [1, 10, 1_000])
async def test_every_event_comes_once(ahead: int, history: int) -> None:
    """The log may have events that the hub has yet to deliver."""
    log = await filled(700 + ahead)
    hub = Hub(1_000, history=history)
    hub.deliver_all(event(seq) for seq in range(1, 701))
    feed = Feed("s", FIRST, hub, log, from_seq=5)
    rest: tuple[LastingEvent, ...] = (
        *(event(seq) for seq in range(701 + ahead, 801)),
        Closed(801, "stopped", 0, 0, 0.0),
    )

    async def go_on() -> None:
        """Once somebody listens."""
        while not hub.receivers:
            await asyncio.sleep(0)
        await log.write([Entry("s", 1, rest, Progress((0.0,)), "x")])
        hub.deliver_all([*(event(seq) for seq in range(701, 701 + ahead)), *rest])

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(go_on())
        heard = [e async for events in feed for e in events]
    await log.close()
    assert heard[0] == FIRST
    assert [getattr(e, "seq", None) for e in heard[1:]] == list(range(5, 802))


async def test_what_is_kept_nowhere() -> None:
    hub = Hub(10, seq=7)
    with pytest.raises(BridgeError) as caught:
        async for _ in Feed("s", FIRST, hub, None, from_seq=3):
            pass
    assert caught.value.code == "seq_behind"


async def test_a_session_that_has_ended() -> None:
    hub = Hub(10)
    hub.deliver_all([event(1), Closed(2, "stopped", 0, 0, 0.0)])
    for from_seq, numbers in ((None, [2]), (1, [1, 2]), (2, [2]), (3, [])):
        heard = [e async for events in Feed("s", FIRST, hub, None, from_seq=from_seq) for e in events]
        assert [getattr(e, "seq", None) for e in heard[1:]] == numbers
    assert hub.receivers == 0
