from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from bridge.client.ring import Ring

APPEND = st.binary(max_size=20)
FORGET = st.integers(0, 300)
PIECE = st.tuples(st.integers(0, 300), st.integers(1, 30))


@hypothesis.given(st.lists(APPEND | FORGET | PIECE, max_size=40))
def test_it_is_a_stretch_of_all_that_was_appended(steps: list[bytes | int | tuple[int, int]]) -> None:
    ring, whole, start = Ring(), b"", 0
    for step in steps:
        if isinstance(step, bytes):
            ring.append(step)
            whole += step
        elif isinstance(step, int):
            ring.forget(step)
            start = max(start, min(step, len(whole)))
        else:
            at, most = step
            if start <= at < len(whole):
                assert ring.piece(at, most) == whole[at : at + most]
            else:
                with pytest.raises(ValueError, match="outside"):
                    ring.piece(at, most)
        assert (ring.start, ring.end, ring.held) == (start, len(whole), len(whole) - start)


@hypothesis.given(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=20), st.data())
def test_packets_stay_whole(packets: list[bytes], data: st.DataObject) -> None:
    ring = Ring(packets=True)
    begins = []
    for packet in packets:
        begins.append(ring.end)
        ring.append(packet)
    for _ in range(3):
        before, start = data.draw(st.integers(0, ring.end + 5)), ring.start
        ring.forget(before)
        assert ring.start in (*begins, ring.end)
        assert start <= ring.start <= max(before, start)
        at, taken = ring.start, []
        while at < ring.end:
            taken.append(ring.piece(at, 1))
            at += len(taken[-1])
        assert taken == packets[len(packets) - len(taken) :]


def test_a_position_inside_of_a_packet_is_that_packets() -> None:
    ring = Ring(packets=True)
    for packet in (b"abc", b"de", b"f"):
        ring.append(packet)
    assert [ring.whole(at) for at in range(7)] == [0, 0, 0, 3, 3, 5, 6]
    ring.forget(4)
    assert (ring.start, ring.piece(3, 1)) == (3, b"de")
    ring.append(b"")
    assert ring.piece(5, 9) == b"f"


def test_memory_is_given_back() -> None:
    ring = Ring()
    for _ in range(100):
        ring.append(bytes(100_000))
        ring.forget(ring.end - 1_000)
    assert ring._data.__sizeof__() < 300_000
