"""The bridge beside a bare reader, as a ratio that a commit must not make worse; and how ratios come about."""

from __future__ import annotations

from typing import Any, Final

import pytest

from bench.measured import Run, measure
from bench.overhead import Overhead, compare, ratio, ratios_text, table
from bench.targets.contenders import CONTENDERS, Contender
from bench.targets.peers import PeerUnavailableError

BOUND: Final = 6.0
"""CPU time of a frame at the bridge by that at a bare reader, at most. It is less; this is for a busy machine."""
SESSIONS: Final = 100
SECONDS: Final = 6.0


def made(name: str, cost: float | None, **fields: Any) -> Run:
    """A run that was never played."""
    return Run(contender=name, sessions=10, cpu_us_per_frame=cost, **fields)


@pytest.mark.timeout(90)
def test_a_frame_costs_the_bridge_little_more_than_reading_it() -> None:
    found = compare(
        [CONTENDERS["bridge"], CONTENDERS["bare"]],
        1,
        lambda contender: measure(contender, sessions=SESSIONS, seconds=SECONDS),
    )
    assert not found.absent
    for (run,) in found.runs.values():
        assert not run.collapsed, run.failures
        assert run.completed == SESSIONS
        assert run.frames > SESSIONS * 10 * (SECONDS - 2)
    (bridge,) = found.runs["bridge"]
    assert bridge.latency_ms
    (one,) = found.ratios()
    assert one.median is not None
    assert one.median < BOUND, table(found)


def test_ratios_are_of_the_same_round() -> None:
    one = ratio([made("bridge", 30.0), made("bridge", 60.0)], [made("bare", 10.0), made("bare", 30.0)])
    assert (one.contender, one.against) == ("bridge", "bare")
    assert (one.median, one.least, one.most, one.rounds) == (2.5, 2.0, 3.0, 2)


@pytest.mark.parametrize("bad", [made("x", 1.0, collapsed=("3 dropped",)), made("x", None)])
def test_a_round_that_collapsed_is_in_no_ratio(bad: Run) -> None:
    good, bare = made("x", 20.0), made("bare", 10.0)
    assert ratio([bad, good], [bare, bare]).rounds == 1
    assert ratio([good, good], [bad, bare]).rounds == 1
    nothing = ratio([bad], [bare])
    assert nothing.median is None
    assert ratios_text([nothing]).split() == ["x", "/", "bare", "-"]


def test_who_has_no_time_left_costs_at_least_so_much() -> None:
    one = ratio([made("x", 20.0, cpu_percent=99.0)], [made("bridge", 10.0, cpu_percent=50.0)])
    assert one.at_least
    assert "at least 2.00" in ratios_text([one])
    assert ratio([made("x", 20.0)], [made("bridge", 10.0, cpu_percent=99.0)]).median is None


def test_the_bridge_is_compared_with_the_bare_reader_and_others_with_the_bridge() -> None:
    names = ("bridge", "bridge-base64", "bare", "bare-base64", "naive", "wyoming")
    found = Overhead({name: [made(name, 10.0)] for name in names}, {})
    assert [(r.contender, r.against) for r in found.ratios()] == [
        ("bridge", "bare"),
        ("bridge-base64", "bare-base64"),
        ("naive", "bridge"),
        ("wyoming", "bridge"),
    ]


def test_who_cannot_be_installed_has_a_row_that_says_why() -> None:
    asked: list[str] = []

    def once(contender: Contender) -> Run:
        asked.append(contender.name)
        if contender.name == "wyoming":
            raise PeerUnavailableError("pip install: exit code 1")
        return made(contender.name, 10.0)

    found = compare([CONTENDERS["wyoming"], CONTENDERS["bare"]], 2, once)
    assert asked == ["wyoming", "bare", "bare"]
    assert "wyoming: not run: pip install: exit code 1" in table(found).splitlines()


def test_the_table_shows_medians_and_invents_nothing() -> None:
    runs = [
        made("naive", cost, latency_ms={"p50": 3.0}, collapsed=collapsed, failures=failures)
        for cost, collapsed, failures in (
            (10.0, (), {}),
            (None, ("2 dropped",), {"reset": 2}),
            (30.0, (), {}),
        )
    ]
    _, row, note = table(Overhead({"naive": runs}, {})).splitlines()
    assert row.split()[:4] == ["naive", "20", "-", "3"]
    assert note == "naive, round 2: collapsed: 2 dropped; 2 x reset"
