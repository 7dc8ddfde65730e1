"""The hub: numbers without gaps, newest partial only, one receiver never hurts another."""

from __future__ import annotations

import asyncio

from bridge.protocols.events import Ack, Closed, Final, Partial, SpeechStarted
from bridge.session.hub import Hub, Outbox


def partial(text: str) -> Partial:
    return Partial(text, 0.0, 1.0)


def closed(seq: int) -> Closed:
    return Closed(seq, "stopped", 0, 0, 0.0)


async def test_events_come_in_order_with_the_newest_partial_and_ack_last() -> None:
    box = Outbox(10)
    box.put(partial("old"))
    box.put(SpeechStarted(1, 0.0))
    box.put(Ack(1, 0))
    box.put(partial("new"))
    box.put(Ack(2, 0))
    assert await box.get() == [SpeechStarted(1, 0.0), partial("new"), Ack(2, 0)]


async def test_final_replaces_the_partial_before_it() -> None:
    box = Outbox(10)
    box.put(partial("hel"))
    box.put(Final(1, "hello", 0.0, 1.0))
    assert await box.get() == [Final(1, "hello", 0.0, 1.0)]


async def test_closed_is_the_last_of_all() -> None:
    box = Outbox(10)
    box.put(Ack(5, 5))
    box.put(closed(1))
    box.put(partial("too late"))
    assert await box.get() == [Ack(5, 5), closed(1)]
    assert await box.get() == []


async def test_get_waits_and_may_be_cancelled() -> None:
    box = Outbox(10)
    waiting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    waiting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    box.put(partial("a"))
    assert await asyncio.wait_for(waiting, 1) == [partial("a")]


async def test_partials_never_fill_an_outbox_and_lasting_events_overflow_it() -> None:
    hub = Hub(3)
    slow, quick = hub.subscribe(), hub.subscribe()
    for i in range(100):
        hub.deliver(partial(str(i)))
    assert await quick.get() == [partial("99")]
    for seq in range(1, 5):
        assert hub.deliver(SpeechStarted(seq, 0.0))
        seen = await quick.get()
    assert seen == [SpeechStarted(4, 0.0)]
    assert slow.overflowed
    assert await slow.get() == []
    assert not quick.overflowed


async def test_closed_finds_room_in_a_full_outbox() -> None:
    box = Outbox(1)
    box.put(SpeechStarted(1, 0.0))
    box.put(closed(2))
    assert await box.get() == [SpeechStarted(1, 0.0), closed(2)]
    assert not box.overflowed


async def test_a_slow_receiver_gets_the_newest_partial_of_every_channel() -> None:
    box = Outbox(10)
    for i in range(10):
        for channel in (0, 1):
            box.put(Partial(f"{channel}-{i}", 0.0, 1.0, channel=channel))
    box.put(Final(1, "done", 0.0, 1.0, channel=1))
    assert await box.get() == [Final(1, "done", 0.0, 1.0, channel=1), Partial("0-9", 0.0, 1.0, channel=0)]


def started(seq: int) -> SpeechStarted:
    return SpeechStarted(seq, float(seq))


async def test_an_event_comes_once_and_never_behind_a_gap() -> None:
    hub = Hub(10)
    box = hub.subscribe()
    assert hub.deliver_all([started(1), started(1), started(2)])
    assert not hub.deliver(started(4))
    assert hub.deliver_all([started(2), started(3), started(4)])
    assert await box.get() == [started(1), started(2), started(3), started(4)]
    hub.skip_to([started(9), started(10)])  # what lies between is lost for good
    assert await box.get() == [started(9), started(10)]


async def test_what_a_hub_remembers() -> None:
    hub = Hub(10, history=3)
    assert hub.since(1) == []
    for seq in range(1, 6):
        hub.deliver(started(seq))
    assert hub.since(2) is None
    assert hub.since(3) == [started(3), started(4), started(5)]
    assert hub.since(6) == []
    assert hub.remembered == [started(3), started(4), started(5)]
    assert Hub(10, seq=7).since(7) is None
    assert Hub(10, seq=7).since(8) == []


async def test_who_leaves_gets_nothing_more_and_the_end_empties_the_hub() -> None:
    hub = Hub(10)
    gone, there = hub.subscribe(), hub.subscribe()
    hub.unsubscribe(gone)
    hub.unsubscribe(gone)
    hub.deliver(started(1))
    assert (hub.receivers, hub.closed) == (1, False)
    hub.deliver(closed(2))
    assert (hub.receivers, hub.closed) == (0, True)
    assert await there.get() == [started(1), closed(2)]
    elsewhere = Hub(10)
    elsewhere.deliver(Closed(None, "shutting_down", 0, 0, 0.0))
    assert not elsewhere.closed


async def test_a_receiver_says_what_it_wants() -> None:
    box = Outbox(10, partials=False, acks=False)
    box.put(partial("no"))
    box.put(Ack(1, 1))
    box.put(started(1))
    assert await box.get() == [started(1)]


async def test_who_comes_late_gets_the_passing_events_that_still_count() -> None:
    hub = Hub(10)
    for event in (partial("old"), Ack(1, 0), started(1), partial("gone"), Ack(2, 1)):
        hub.deliver(event)
    assert await hub.subscribe().get() == [partial("gone"), Ack(2, 1)]
    hub.deliver(Final(2, "said", 0.0, 1.0))
    assert await hub.subscribe().get() == [Ack(2, 1)]
