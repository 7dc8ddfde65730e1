"""The search for how many sessions are carried, on runs that were never played."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.capacity import Capacity, faults, ratios_text, search
from bench.measured import Run


def run(sessions: int, p99: float = 10.0, **fields: Any) -> Run:
    return Run(contender="x", sessions=sessions, latency_ms={"p99": p99}, **fields)


def carrying(limit: int) -> Callable[[int], Run]:
    return lambda sessions: run(sessions, 10.0 if sessions <= limit else 80.0)


@pytest.mark.parametrize("limit", [3, 100, 777, 1_999])
def test_it_is_found_to_a_twentieth(limit: int) -> None:
    found = search("x", carrying(limit), limit_ms=50, least=100, most=4_000)
    assert not found.bound
    assert found.sessions <= limit <= found.sessions * 1.05 + 1
    assert found.steps[0].sessions == 100


def test_who_carries_all_that_is_tried_carries_at_least_so_many() -> None:
    found = search("x", carrying(9_999), limit_ms=50, least=100, most=500)
    assert [step.sessions for step in found.steps] == [100, 200, 400, 500]
    assert str(found) == "at least 500 sessions (more were not tried)"


def test_who_carries_nothing_has_none() -> None:
    assert str(search("x", carrying(0), limit_ms=50, least=8, most=500)) == "0 sessions"


def test_a_late_generator_ends_the_search() -> None:
    def once(sessions: int) -> Run:
        return run(sessions, lag_ms={"p99": 5.0 if sessions < 400 else 30.0})

    found = search("x", once, limit_ms=50, least=100, most=4_000)
    assert str(found) == "at least 200 sessions (the load generator was late with 400)"


def test_what_counts_against_it() -> None:
    assert faults(run(10), 50) == []
    assert faults(run(10, 50.1), 50) == ["p99 50.1 ms"]
    assert faults(run(10, collapsed=("1 dropped",)), 50) == ["1 dropped"]
    assert faults(Run(contender="x", sessions=1), 50) == ["no latency was seen"]


def test_ratios_say_which_side_could_do_more() -> None:
    one, bounded, naive = Capacity("bridge", 1_000), Capacity("bridge", 1_000, "late"), Capacity("naive", 200)
    assert ratios_text([one, naive]) == "bridge / naive: 5.00"
    assert ratios_text([bounded, naive]) == "bridge / naive: at least 5.00"
    assert ratios_text([one, Capacity("naive", 200, "late")]) == "bridge / naive: at most 5.00"
    assert ratios_text([bounded, Capacity("naive", 200, "late")]) == "bridge / naive: -"
    assert ratios_text([one, Capacity("naive")]) == "bridge / naive: -"
