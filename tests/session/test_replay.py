"""The replay buffer: nothing lost, nothing read twice, bounded."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import FLUSH
from bridge.session.replay import AudioReader, ReplayBuffer

LIMITS = {"queue_limit": 100, "replay_limit": 1_000}


def pcm(first: int, count: int) -> bytes:
    """Samples that carry their own position."""
    return b"".join((first + i).to_bytes(2, "little") for i in range(count))


async def drain(reader: AudioReader) -> list[bytes]:
    return [chunk async for chunk in reader]


async def test_reader_gets_every_sample_in_order() -> None:
    buffer = ReplayBuffer(**LIMITS)
    reader = buffer.reader()
    buffer.append(pcm(0, 10), 0.0)
    reading = asyncio.create_task(drain(reader))
    await asyncio.sleep(0)
    buffer.append(pcm(10, 5), 0.1)
    buffer.close()
    assert b"".join(await reading) == pcm(0, 15)
    assert reader.position == 15
    assert reader.ended


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=20),
    finals=st.lists(st.integers(0, 400), max_size=5),
)
def test_next_reader_begins_exactly_at_the_last_final(sizes: list[int], finals: list[int]) -> None:
    async def check() -> None:
        buffer = ReplayBuffer(queue_limit=10_000, replay_limit=10_000)
        for size in sizes:
            buffer.append(pcm(buffer.end, size), 0.0)
        for final in finals:
            buffer.trim(final)
        reader = buffer.reader()
        buffer.close()
        expected = min(max([0, *finals]), buffer.end)
        assert reader.base == expected
        assert b"".join(await drain(reader)) == pcm(expected, buffer.end - expected)

    asyncio.run(check())


async def test_replay_goes_on_with_audio_that_arrives_later() -> None:
    buffer = ReplayBuffer(**LIMITS)
    buffer.append(pcm(0, 10), 0.0)
    first = buffer.reader()
    await anext(first)
    buffer.trim(4)
    second = buffer.reader()
    buffer.append(pcm(10, 3), 0.0)
    buffer.close()
    assert b"".join(await drain(second)) == pcm(4, 9)
    assert await drain(first) == []


async def test_room_follows_the_reader_and_the_finals() -> None:
    buffer = ReplayBuffer(queue_limit=100, replay_limit=150)
    reader = buffer.reader()
    buffer.append(pcm(0, 100), 0.0)
    assert not buffer.has_room
    waiting = asyncio.create_task(buffer.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await anext(reader)
    await asyncio.wait_for(waiting, 1)
    buffer.append(pcm(100, 60), 0.0)
    await anext(reader)
    assert buffer.unread == 0
    assert buffer.full
    assert not buffer.has_room
    buffer.trim(50)
    assert buffer.has_room


async def test_waiting_for_room_ends_when_the_buffer_closes() -> None:
    buffer = ReplayBuffer(queue_limit=1, replay_limit=1)
    buffer.append(pcm(0, 5), 0.0)
    waiting = asyncio.create_task(buffer.room())
    await asyncio.sleep(0)
    buffer.close()
    await asyncio.wait_for(waiting, 1)


async def test_flush_mark_stands_exactly_where_it_was_set() -> None:
    buffer = ReplayBuffer(**LIMITS)
    buffer.append(pcm(0, 7), 0.0)
    buffer.flush()
    buffer.append(pcm(7, 5), 0.0)
    buffer.flush()
    buffer.close()
    assert await drain(buffer.reader()) == [pcm(0, 7), FLUSH, pcm(7, 5), FLUSH]


async def test_flush_mark_is_replayed_until_a_final_covers_it() -> None:
    buffer = ReplayBuffer(**LIMITS)
    buffer.append(pcm(0, 7), 0.0)
    buffer.flush()
    buffer.append(pcm(7, 5), 0.0)
    buffer.close()
    buffer.trim(3)
    assert await drain(buffer.reader()) == [pcm(3, 4), FLUSH, pcm(7, 5)]
    buffer.trim(7)
    assert await drain(buffer.reader()) == [pcm(7, 5)]


async def test_flush_mark_ends_the_stream_of_a_backend_that_knows_none() -> None:
    buffer = ReplayBuffer(**LIMITS)
    buffer.append(pcm(0, 7), 0.0)
    buffer.flush()
    buffer.append(pcm(7, 5), 0.0)
    reader = buffer.reader()
    reader.flush_marks = False
    assert await drain(reader) == [pcm(0, 7)]
    assert reader.ended
    assert reader.position == 7


async def test_second_flush_without_audio_between_is_no_second_mark() -> None:
    buffer = ReplayBuffer(**LIMITS)
    buffer.flush()
    buffer.append(pcm(0, 7), 0.0)
    buffer.flush()
    buffer.flush()
    buffer.close()
    assert await drain(buffer.reader()) == [pcm(0, 7), FLUSH]


async def test_flush_wakes_a_reader_that_has_read_everything() -> None:
    buffer = ReplayBuffer(**LIMITS)
    buffer.append(pcm(0, 7), 0.0)
    reader = buffer.reader()
    await anext(reader)
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    buffer.flush()
    assert await asyncio.wait_for(waiting, 1) == FLUSH


async def test_finish_leaves_later_audio_for_the_next_stream() -> None:
    buffer = ReplayBuffer(**LIMITS)
    reader = buffer.reader()
    buffer.append(pcm(0, 7), 0.0)
    await anext(reader)
    buffer.append(pcm(7, 5), 0.0)
    reader.finish()
    assert await drain(reader) == []
    assert reader.position == 7
    buffer.trim(reader.position)
    buffer.close()
    assert b"".join(await drain(buffer.reader())) == pcm(7, 5)


async def test_detached_reader_that_waits_is_freed() -> None:
    buffer = ReplayBuffer(**LIMITS)
    reader = buffer.reader()
    waiting = asyncio.create_task(drain(reader))
    await asyncio.sleep(0)
    buffer.reader()
    assert await asyncio.wait_for(waiting, 1) == []


async def test_reader_that_is_cancelled_while_it_waits_loses_nothing() -> None:
    buffer = ReplayBuffer(**LIMITS)
    reader = buffer.reader()
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    buffer.append(pcm(0, 3), 0.0)
    assert await anext(reader) == pcm(0, 3)


async def test_arrival_is_the_time_of_the_chunk_that_holds_the_sample() -> None:
    buffer = ReplayBuffer(queue_limit=1_000, replay_limit=1_000)
    buffer.append(pcm(0, 320), 1.0)
    buffer.append(pcm(320, 320), 2.0)
    assert [buffer.arrival(p) for p in (1, 320, 321, 640, 641)] == [1.0, 1.0, 2.0, 2.0, None]


async def test_tiny_chunks_are_joined_so_that_they_cost_little_more_than_their_audio() -> None:
    buffer = ReplayBuffer(queue_limit=100_000, replay_limit=100_000)
    reader = buffer.reader()
    for i in range(5_000):
        buffer.append(pcm(i, 1), float(i))
        if i == 2_000:
            assert await anext(reader) == pcm(0, 320)
    buffer.close()
    rest = await drain(reader)
    assert b"".join(rest) == pcm(320, 4_680)
    assert len(rest) < 20
    assert len(await drain(buffer.reader())) < 20
    assert buffer.arrival(5_000) == 4_999.0


async def test_nothing_is_taken_after_the_close() -> None:
    buffer = ReplayBuffer(**LIMITS)
    buffer.close()
    buffer.append(pcm(0, 3), 0.0)
    assert buffer.end == 0


async def test_a_client_that_was_held_back_goes_on_while_no_stream_reads() -> None:
    buffer = ReplayBuffer(queue_limit=100, replay_limit=1_000)
    reader = buffer.reader()
    buffer.append(pcm(0, 150), 0.0)
    waiting = asyncio.create_task(buffer.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    reader.finish()
    assert await drain(reader) == []
    async with asyncio.timeout(1):
        await waiting
    assert buffer.has_room
