"""The gate: what was passed over stays so, what was let through stays so, and nothing is in between."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bridge.session.gate import Gate

END = 120

positions = st.integers(0, END)
changes = st.one_of(
    st.tuples(st.just("open"), positions),
    st.tuples(st.just("shut"), positions, positions),
    st.tuples(st.just("silence"), positions),
    st.tuples(st.just("read"), positions),
)


def stretches(gate: Gate, position: int) -> list[tuple[int, int | None]]:
    """Everything that `next` gives from `position` on."""
    found: list[tuple[int, int | None]] = []
    while True:
        first, last = gate.next(position)
        assert first >= position
        if first == last:
            return found
        found.append((first, last))
        if last is None:
            return found
        assert last > first
        position = last


def passing(gate: Gate, position: int) -> set[int]:
    """All positions from `position` on that pass."""
    return {p for first, last in stretches(gate, position) for p in range(first, 2 * END if last is None else last)}


@given(st.lists(changes, max_size=40))
def test_what_was_decided_stays_decided(plan: list[tuple[str, int] | tuple[str, int, int]]) -> None:
    gate = Gate()
    reader = 0
    for name, *values in plan:
        before, silent, was_open = passing(gate, reader), gate.silent_until, gate.is_open
        match name:
            case "open":
                gate.open(values[0])
                assert gate.is_open
            case "shut":
                gate.shut(*values)
                assert not gate.is_open
            case "silence":
                gate.silence(*values)
                assert gate.is_open == was_open
            case _:
                reader = max(reader, values[0])
                gate.forget(reader)
        after = passing(gate, reader)
        assert gate.silent_until >= silent
        assert not {p for p in after - before if p < silent}  # silence is never taken back
        assert not {p for p in before - after if p >= reader and p < silent}  # nor is what passes, once all is known
        found = stretches(gate, reader)
        assert all(left is not None and left < right for (_, left), (right, _) in itertools.pairwise(found))
        if not gate.is_open:
            position = found[-1][1] or 0 if found else reader
            assert gate.next(position) == (max(position, gate.silent_until),) * 2


def test_it_begins_shut_and_knows_nothing() -> None:
    gate = Gate()
    assert not gate.is_open
    assert gate.next(0) == (0, 0)
    assert gate.next(7) == (7, 7)


def test_silence_is_passed_over_up_to_where_it_is_known() -> None:
    gate = Gate()
    gate.silence(50)
    assert gate.next(0) == (50, 50)
    gate.silence(30)
    assert gate.next(0) == (50, 50)
    assert gate.next(60) == (60, 60)


def test_speech_that_is_noticed_late_begins_in_the_past_and_never_in_known_silence() -> None:
    gate = Gate()
    gate.silence(50)
    gate.open(70)
    assert gate.next(0) == (70, None)
    gate.shut(100, 90)
    gate.open(80)
    assert gate.next(0) == (70, None)  # it touches the stretch before: they are one
    gate.shut(120, 110)
    gate.silence(150)
    gate.open(0)
    assert gate.next(0) == (70, 120)
    assert gate.next(120) == (150, None)


def test_a_stretch_that_holds_nothing_is_none() -> None:
    gate = Gate()
    gate.open(50)
    gate.shut(40, 40)
    gate.silence(60)
    gate.open(60)
    assert gate.next(0) == (60, None)


def test_the_memory_of_stretches_is_bounded_by_what_is_read() -> None:
    gate = Gate()
    for n in range(10_000):
        gate.open(100 * n + 50)
        gate.shut(100 * n + 80, 100 * n + 70)
        gate.forget(100 * n + 80)
    assert len(gate._stretches) == 0
