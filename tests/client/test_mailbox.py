from __future__ import annotations

import asyncio

import pytest

from bridge.client import mailbox
from bridge.client.mailbox import Mailbox
from bridge.protocols.native import AckMessage, FinalMessage, PartialMessage, ServerMessage


def final(seq: int) -> FinalMessage:
    return FinalMessage(seq, f"w{seq}", 0, 1)


async def drain(box: Mailbox) -> list[ServerMessage]:
    box.end()
    got = []
    while (message := await box.get()) is not None:
        got.append(message)
    return got


async def test_in_order() -> None:
    box = Mailbox()
    messages: list[ServerMessage] = [
        final(1),
        PartialMessage("a", 0, 1),
        AckMessage(1, 0),
        PartialMessage("b", 0, 1),
        final(2),
    ]
    for message in messages:
        await box.put(message)
    assert await drain(box) == messages
    assert await box.get() is None


async def test_lasting_messages_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "MAX_LASTING", 2)
    box = Mailbox()
    await box.put(final(1))
    await box.put(final(2))
    third = asyncio.create_task(box.put(final(3)))
    await asyncio.sleep(0.01)
    assert not third.done()
    assert await box.get() == final(1)
    await third
    assert await drain(box) == [final(2), final(3)]


async def test_passing_messages_replace_each_other_once_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "MAX_PASSING", 3)
    box = Mailbox()
    for number in range(50):
        await box.put(PartialMessage(f"left {number}", 0, 1, channel=0))
        await box.put(PartialMessage(f"right {number}", 0, 1, channel=1))
        await box.put(AckMessage(number, 0))
    await box.put(final(1))
    got = await drain(box)
    assert len(got) <= 6
    assert got[-4:] == [
        PartialMessage("left 49", 0, 1, channel=0),
        PartialMessage("right 49", 0, 1, channel=1),
        AckMessage(49, 0),
        final(1),
    ]


async def test_a_cancelled_wait_loses_nothing() -> None:
    box = Mailbox()
    waiting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    waiting.cancel()
    await box.put(final(1))
    await asyncio.sleep(0)
    assert waiting.cancelled()
    assert await box.get() == final(1)


async def test_a_message_and_a_cancellation_at_once() -> None:
    box = Mailbox()
    waiting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    await box.put(final(1))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await box.get() == final(1)


async def test_the_end_wakes_who_waits() -> None:
    box = Mailbox()
    waiting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    box.end()
    assert await waiting is None
