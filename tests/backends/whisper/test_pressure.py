"""Pressure: when partials give way, and when new sessions are refused."""

from __future__ import annotations

import pytest

from backends.whisper.pressure import BUSY_SECONDS, FRESH_SECONDS, MOST_STRETCH, RAISE, WINDOW_SECONDS, Pressure
from backends.whisper.window import Kind


def pressed(seconds: float = 60.0, kind: Kind = Kind.PARTIAL, wait: float = 0.6) -> tuple[Pressure, float]:
    """Ten requests a second have waited so long, all the time; and what time it is now."""
    pressure = Pressure(1.0, 1)
    now = 0.0
    while now < seconds:
        now += 0.1
        pressure.waited(kind, wait, now)
        pressure.stretch(now)
    return pressure, now


@pytest.mark.parametrize(("kind", "limit"), [(Kind.FINAL, 0.25), (Kind.PARTIAL, 0.5)])
def test_long_waits_stretch_and_short_ones_do_not(kind: Kind, limit: float) -> None:
    pressure, now = pressed(kind=kind, wait=limit + 0.01)
    assert pressure.stretch(now) == MOST_STRETCH
    pressure, now = pressed(kind=kind, wait=limit - 0.01)
    assert pressure.stretch(now) == 1.0


def test_a_raise_needs_evidence_that_is_newer_than_the_last() -> None:
    pressure = Pressure(1.0, 1)
    for _ in range(50):
        pressure.waited(Kind.PARTIAL, 3.0, 1.0)
    assert [pressure.stretch(now) for now in (1.0, 1.6, 2.2, 2.8)] == [1.0, RAISE, RAISE, RAISE]


def test_a_few_accidents_do_not_stretch() -> None:
    pressure = Pressure(1.0, 1)
    for n in range(400):
        pressure.waited(Kind.PARTIAL, 3.0 if n % 30 == 0 else 0.01, n / 10)
        assert pressure.stretch(n / 10) == 1.0


def test_a_stretch_falls_slowly_and_wholly() -> None:
    pressure, now = pressed()
    seen = [pressure.stretch(now + seconds) for seconds in range(1, 200)]
    assert seen == sorted(seen, reverse=True)
    assert seen[3] == MOST_STRETCH
    assert 3 < seen[20] < 6
    assert seen[-1] < 1.01


def test_a_look_after_a_long_time_is_as_good_as_many() -> None:
    one, now = pressed()
    many, _ = pressed()
    for half in range(2 * 60):
        many.stretch(now + half / 2)
    one.stretch(now + FRESH_SECONDS + 0.5)
    assert one.stretch(now + 60) == pytest.approx(
        many.stretch(now + 60), rel=0.02
    )  # they saw the last long wait at other times


def answers(pressure: Pressure, late: int, timely: int, *, wait: float = 0.5, now: float = 0.0) -> None:
    for n in range(late + timely):
        pressure.answered(1.2 if n < late else 0.4, wait, now)


@pytest.mark.parametrize(
    ("late", "timely", "refused"),
    [(0, 100, False), (2, 2, False), (3, 40, True), (3, 60, False), (5, 90, True), (5, 100, False)],
)
def test_late_finals_refuse(late: int, timely: int, refused: bool) -> None:
    pressure = Pressure(1.0, 1)
    answers(pressure, late, timely)
    assert (pressure.refusal(1.0) is not None) is refused


def test_the_sentence_and_the_end_of_a_refusal() -> None:
    pressure = Pressure(1.0, 1)
    answers(pressure, 4, 6, now=100.0)
    assert pressure.refusal(100.0) == (
        "4 of the last 10 finals took longer than 1 s, because others were decoded first"
    )
    assert pressure.refusal(100.0 + WINDOW_SECONDS - 0.1)
    assert pressure.refusal(100.0 + WINDOW_SECONDS + 0.1) is None


def test_a_slow_machine_without_a_queue_refuses_nobody() -> None:
    pressure = Pressure(1.0, 1)
    for n in range(20):
        pressure.answered(4.0, 0.02, n / 10)
    assert pressure.refusal(2.0) is None


def test_finals_that_wait_now_count() -> None:
    pressure = Pressure(1.0, 1)
    assert pressure.refusal(1.0, overdue=2) is None
    assert pressure.refusal(1.0, overdue=3) is not None
    answers(pressure, 0, 100)
    assert pressure.refusal(1.0, overdue=3) is None
    assert pressure.refusal(1.0, overdue=6) is not None


def test_busy_is_a_share_of_all_workers_lately() -> None:
    pressure = Pressure(1.0, 2)
    first = pressure.begin(0.0)
    second = pressure.begin(1.0)
    assert pressure.busy(5.0) == pytest.approx((5 + 4) / (2 * BUSY_SECONDS))
    pressure.end(second, 5.0)
    assert pressure.busy(7.5) == pytest.approx((5 + 2.5) / (2 * BUSY_SECONDS))
    pressure.end(first, 7.5)
    assert pressure.busy(7.5) == pytest.approx((5 + 2.5) / (2 * BUSY_SECONDS))
    assert pressure.busy(12.6) == 0.0


def test_always_busy_refuses_only_when_partials_can_give_way_no_more() -> None:
    pressure = Pressure(1.0, 1)
    pressure.begin(0.0)
    assert pressure.busy(50.0) == 1.0
    assert pressure.refusal(50.0) is None
    pressure, now = pressed()
    assert pressure.refusal(now) is None
    run = pressure.begin(now)
    now += FRESH_SECONDS - 0.2
    assert pressure.refusal(now) is not None
    pressure.end(run, now)
    assert pressure.refusal(now + 1) is None


def test_what_is_remembered_is_bounded_though_nobody_asks() -> None:
    pressure = Pressure(1.0, 1)
    for n in range(10_000):
        pressure.waited(Kind.PARTIAL, 0.6, n / 10)
        pressure.answered(1.5, 1.0, n / 10)
        pressure.end(pressure.begin(n / 10), n / 10 + 0.05)
    assert len(pressure._waits) <= 10 * FRESH_SECONDS + 1
    assert len(pressure._finals) <= 10 * WINDOW_SECONDS + 1
    assert len(pressure._ran) <= 10 * BUSY_SECONDS + 1
