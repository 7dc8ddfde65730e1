"""Least squares, on series whose slope is known."""

from __future__ import annotations

import random

import pytest

from bench.trend import Limit, trend


def test_a_line_has_its_slope_and_no_error() -> None:
    found = trend([0, 1_800, 3_600], [10, 15, 20], Limit(once=1, per_hour=8))
    assert (found.per_hour, found.error, found.hours, found.allowed) == (10, 0, 1, 9)
    assert not found.flat
    assert trend([0, 1_800, 3_600], [10, 15, 20], Limit(once=1, per_hour=9)).flat


def test_noise_is_no_growth_but_growth_in_noise_is() -> None:
    rng = random.Random(3)
    times = [60.0 * i for i in range(60)]
    noise = [rng.gauss(100, 10) for _ in times]
    assert trend(times, noise, Limit(once=1, per_hour=0)).flat
    leak = [value + at / 60 for at, value in zip(times, noise, strict=True)]
    assert not trend(times, leak, Limit(once=1, per_hour=0)).flat


def test_what_shrinks_is_flat() -> None:
    assert trend([0, 1, 2], [9, 5, 1], Limit(once=0, per_hour=0)).flat


@pytest.mark.parametrize("times", [[0.0, 1.0], [5.0, 5.0, 5.0]])
def test_it_takes_three_values_at_different_times(times: list[float]) -> None:
    with pytest.raises(ValueError, match="three values"):
        trend(times, [1.0] * len(times), Limit(once=0, per_hour=0))
