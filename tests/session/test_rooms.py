"""Rooms: receivers of sessions that run here, that ran here, and that nobody begins."""

from __future__ import annotations

import asyncio

from bridge.protocols.events import Closed, SpeechStarted
from bridge.session.hub import Outbox
from bridge.session.rooms import Rooms


def event(seq: int) -> SpeechStarted:
    return SpeechStarted(seq, float(seq))


async def test_a_receiver_that_lingers_does_not_keep_the_room_for_the_next_session() -> None:
    rooms = Rooms(None, 10, wait_seconds=10)
    async with rooms.received("room", None) as lingering:
        first = await rooms.runs_here("room", 0, stored=False)
        assert first is lingering
        first.hub.deliver_all([event(1), Closed(2, "stopped", 0, 0, 0.0)])
        rooms.left("room")
        second = await rooms.runs_here("room", 0, stored=False)
        assert second is not first
        box = second.hub.subscribe()
        second.hub.deliver(event(1))
        assert await box.get() == [event(1)]
    assert rooms.find("room") is second
    rooms.left("room")
    assert rooms.find("room") is None


async def test_each_receiver_waits_its_own_time() -> None:
    rooms = Rooms(None, 10, wait_seconds=0.2)
    loop = asyncio.get_running_loop()
    gone: dict[str, float] = {}

    async def wait(name: str, delay: float) -> None:
        await asyncio.sleep(delay)
        began = loop.time()
        async with rooms.received("room", None) as room:
            box = Outbox(10)
            with rooms.patience(room, box):
                assert await box.get() == [Closed(None, "sender_gone", 0, 0, 0.0)]
        gone[name] = loop.time() - began

    async with asyncio.timeout(5):
        await asyncio.gather(wait("first", 0), wait("second", 0.15))
    assert all(0.19 <= seconds < 1 for seconds in gone.values())
    assert rooms.find("room") is None


async def test_who_hears_something_goes_on_waiting() -> None:
    rooms = Rooms(None, 10, wait_seconds=0.2)
    async with rooms.received("room", None) as room:
        box = room.hub.subscribe()
        with rooms.patience(room, box):
            await asyncio.sleep(0.15)
            room.hub.deliver(event(1))
            await asyncio.sleep(0.15)
            assert await box.get() == [event(1)]
            room.local = True  # it runs here: its silence is nobody's absence
            await asyncio.sleep(0.3)
            room.hub.deliver(event(2))
            assert await box.get() == [event(2)]
            room.local = False
