"""The replay buffer: nothing lost, nothing read twice, bounded."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import FLUSH
from bridge.session.gate import Gate
from bridge.session.replay import AudioReader, ReplayBuffer


def roomy(gate: Gate | None = None) -> ReplayBuffer:
    return ReplayBuffer(queue_limit=1_000_000, replay_limit=1_000_000, gate=gate)


def pcm(first: int, count: int) -> bytes:
    """Samples that carry their own position."""
    return np.arange(first, first + count).astype("<u2").tobytes()


async def drain(reader: AudioReader) -> list[bytes]:
    return [chunk async for chunk in reader]


async def test_reader_gets_every_sample_in_order() -> None:
    buffer = ReplayBuffer(queue_limit=100, replay_limit=1_000)
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
    buffer = ReplayBuffer(queue_limit=100, replay_limit=1_000)
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
    buffer = ReplayBuffer(queue_limit=100, replay_limit=1_000)
    buffer.append(pcm(0, 7), 0.0)
    buffer.flush()
    buffer.append(pcm(7, 5), 0.0)
    buffer.flush()
    buffer.close()
    assert await drain(buffer.reader()) == [pcm(0, 7), FLUSH, pcm(7, 5), FLUSH]


async def test_flush_mark_is_replayed_until_a_final_covers_it() -> None:
    buffer = ReplayBuffer(queue_limit=100, replay_limit=1_000)
    buffer.append(pcm(0, 7), 0.0)
    buffer.flush()
    buffer.append(pcm(7, 5), 0.0)
    buffer.close()
    buffer.trim(3)
    assert await drain(buffer.reader()) == [pcm(3, 4), FLUSH, pcm(7, 5)]
    buffer.trim(7)
    assert await drain(buffer.reader()) == [pcm(7, 5)]


async def test_flush_mark_ends_the_stream_of_a_backend_that_knows_none() -> None:
    buffer = ReplayBuffer(queue_limit=100, replay_limit=1_000)
    buffer.append(pcm(0, 7), 0.0)
    buffer.flush()
    buffer.append(pcm(7, 5), 0.0)
    reader = buffer.reader()
    reader.flush_marks = False
    assert await drain(reader) == [pcm(0, 7)]
    assert reader.ended
    assert reader.position == 7


async def test_second_flush_without_audio_between_is_no_second_mark() -> None:
    buffer = ReplayBuffer(queue_limit=100, replay_limit=1_000)
    buffer.flush()
    buffer.append(pcm(0, 7), 0.0)
    buffer.flush()
    buffer.flush()
    buffer.close()
    assert await drain(buffer.reader()) == [pcm(0, 7), FLUSH]


async def test_flush_wakes_a_reader_that_has_read_everything() -> None:
    buffer = ReplayBuffer(queue_limit=100, replay_limit=1_000)
    buffer.append(pcm(0, 7), 0.0)
    reader = buffer.reader()
    await anext(reader)
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    buffer.flush()
    assert await asyncio.wait_for(waiting, 1) == FLUSH


async def test_finish_leaves_later_audio_for_the_next_stream() -> None:
    buffer = ReplayBuffer(queue_limit=100, replay_limit=1_000)
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
    buffer = ReplayBuffer(queue_limit=100, replay_limit=1_000)
    reader = buffer.reader()
    waiting = asyncio.create_task(drain(reader))
    await asyncio.sleep(0)
    buffer.reader()
    assert await asyncio.wait_for(waiting, 1) == []


async def test_reader_that_is_cancelled_while_it_waits_loses_nothing() -> None:
    buffer = ReplayBuffer(queue_limit=100, replay_limit=1_000)
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
    buffer = ReplayBuffer(queue_limit=100, replay_limit=1_000)
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


# Behind a gate


async def take(reader: AudioReader) -> list[int]:
    """The positions of all samples that the backend is given now."""
    given: list[int] = []
    while reader.available:
        given += np.frombuffer(await anext(reader), "<u2").tolist()
    return given


async def test_a_gate_leaves_silence_out_and_the_places_tell_where() -> None:
    gate = Gate()
    buffer = roomy(gate)
    reader = buffer.reader()
    buffer.append(pcm(0, 1_000), 0.0)
    assert not reader.available
    given: list[int] = []
    for first, last in ((100, 200), (300, 350), (800, 900)):
        gate.silence(first)
        gate.open(first)
        gate.shut(last, last)
        buffer.gate_moved()
        given += await take(reader)
    assert given == [*range(100, 200), *range(300, 350), *range(800, 900)]
    assert reader.given == 250
    assert [reader.place(s) for s in (0, 99, 100, 149, 150, 249)] == [100, 199, 300, 349, 800, 899]
    assert [reader.place(s, end=True) for s in (1, 100, 101, 150, 151, 250)] == [101, 200, 301, 350, 801, 900]
    assert reader.place(0, end=True) == 100  # nothing ends before the stream's first sample


@given(
    lengths=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=30),
    sizes=st.lists(st.integers(1, 97), min_size=1, max_size=10),
    trims=st.lists(st.integers(0, 3_000), max_size=10),
    restart=st.booleans(),
)
def test_every_sample_given_is_placed_where_it_came_from(
    lengths: list[tuple[int, int]], sizes: list[int], trims: list[int], restart: bool
) -> None:
    """Whatever the messages' lengths, and while finals come in."""

    async def check() -> None:
        gate = Gate()
        buffer = roomy(gate)
        reader = buffer.reader()
        position = 0
        for silence, speech in lengths:
            gate.silence(position + silence)
            gate.open(position + silence)
            position += silence + speech
            gate.shut(position, position)
        speech_at = [p for p in range(position) if any(f <= p < t for f, t in _stretches(lengths))]
        given: list[int] = []
        while buffer.end < position:
            buffer.append(pcm(buffer.end, sizes[buffer.end % len(sizes)]), 0.0)
            given += await take(reader)
            if trims:
                buffer.trim(min(trims.pop(), reader.position))
                expected = {p for p in given if p >= buffer.start}
                placed = [reader.place(n) for n in range(reader.given)]
                assert expected <= set(placed)
        if restart:
            begin = buffer.start
            reader = buffer.reader()
            assert begin <= reader.base == buffer.start
            given = await take(reader)
            speech_at = [p for p in speech_at if p >= begin]
            assert [reader.place(n) for n in range(reader.given)] == given
            assert [reader.place(n + 1, end=True) for n in range(reader.given)] == [p + 1 for p in given]
        assert given == speech_at

    asyncio.run(check())


def _stretches(lengths: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found, position = [], 0
    for silence, speech in lengths:
        found.append((position + silence, position + silence + speech))
        position += silence + speech
    return found


async def test_the_memory_of_places_is_bounded_by_what_is_not_final() -> None:
    gate = Gate()
    buffer = roomy(gate)
    reader = buffer.reader()
    chunk = bytes(200)
    for n in range(5_000):
        at = n * 100
        buffer.append(chunk, 0.0)
        gate.silence(at + 50)
        gate.open(at + 50)
        gate.shut(at + 80, at + 80)
        buffer.gate_moved()
        await anext(reader)
        assert reader.place(reader.given - 1) == at + 79
        buffer.trim(reader.covered(at + 80))
    assert len(reader._places) <= 2
    assert len(gate._stretches) <= 1
    assert buffer.end - buffer.start <= 100


async def test_a_final_covers_the_silence_behind_it_when_all_speech_before_is_answered() -> None:
    gate = Gate()
    buffer = roomy(gate)
    reader = buffer.reader()
    buffer.append(pcm(0, 1_000), 0.0)
    gate.open(100)
    assert await anext(reader) == pcm(100, 900)  # more than is judged
    gate.shut(400, 300)
    assert gate.silent_until == 1_000  # the gate is shut behind what has passed
    buffer.append(pcm(1_000, 500), 0.0)
    gate.silence(1_200)
    buffer.gate_moved()
    assert reader.position == 1_200
    assert reader.covered(299) == 299
    assert reader.covered(300) == 1_200
    buffer.trim(reader.covered(300))
    gate.silence(1_300)
    buffer.gate_moved()
    assert buffer.start == 1_300


async def test_silence_that_is_passed_over_answers_the_marks_in_it_once() -> None:
    answered = 0

    def count() -> None:
        nonlocal answered
        answered += 1

    gate = Gate()
    buffer = ReplayBuffer(queue_limit=10_000, replay_limit=10_000, gate=gate, answered=count)
    buffer.append(bytes(2_000), 0.0)
    buffer.flush(500)
    buffer.flush(600)
    gate.silence(400)
    reader = buffer.reader()
    assert (reader.base, answered) == (400, 0)
    gate.silence(700)
    buffer.gate_moved()
    assert (buffer.start, answered, buffer.flushing) == (700, 1, False)
    gate.silence(800)
    buffer.gate_moved()
    assert answered == 1


async def test_all_who_wait_for_room_are_woken_and_one_may_give_up() -> None:
    buffer = ReplayBuffer(queue_limit=10, replay_limit=100)
    reader = buffer.reader()
    buffer.append(pcm(0, 10), 0.0)
    waiting = [asyncio.create_task(buffer.room()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await anext(reader)
    async with asyncio.timeout(1):
        await waiting[0]
        await waiting[2]
