"""Figures of many processes as one."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from bench.load.results import OTHERS, REASONS, Distribution, Seen, together


def of(values: list[float]) -> Distribution:
    distribution = Distribution()
    for value in values:
        distribution.add(value)
    return distribution


@pytest.mark.parametrize("shape", ["lognormal", "uniform", "two peaks"])
@pytest.mark.parametrize("percent", [1, 50, 90, 95, 99])
def test_percentiles_are_as_exact_as_said(shape: str, percent: int) -> None:
    chance = np.random.default_rng(7)
    values = {
        "lognormal": chance.lognormal(-4, 1.5, 20_000),
        "uniform": chance.uniform(1e-4, 2, 20_000),
        "two peaks": np.concatenate([chance.normal(0.01, 1e-3, 12_345), chance.normal(1, 0.1, 7_655)]),
    }[shape]
    expected = np.percentile(values, percent, method="inverted_cdf")
    assert of(values.tolist()).percentile(percent) == pytest.approx(expected, rel=0.015)


def test_what_is_longest_is_exact() -> None:
    few = of([0.5, 0.0, 1e-9, 0.123456])
    told = few.milliseconds()
    assert told == pytest.approx({"p50": 0, "p95": 500, "p99": 500, "max": 500}, rel=0.006, abs=0.01)
    assert told["max"] == 500
    assert (few.count, few.total) == pytest.approx((4, 0.623456))


def test_nothing_is_no_figure() -> None:
    assert Distribution().percentile(99) == 0
    assert Distribution().milliseconds() == {}


def test_memory_is_bounded() -> None:
    assert len(of(np.random.default_rng(1).uniform(0, 100, 50_000).tolist()).classes) < 2_000


def test_merged_is_as_if_seen_by_one() -> None:
    values = np.random.default_rng(3).lognormal(-3, 1, 1_000).tolist()
    whole = of(values[:300])
    whole.merge(of(values[300:]))
    assert whole.classes == of(values).classes
    assert (whole.count, whole.longest) == (1_000, max(values))


def test_what_processes_saw_adds_up() -> None:
    one = Seen(at=3, open=2, completed=5, frames=100, backends=["b"], cpu_seconds=0.5, failures={"full": 1})
    two = Seen(at=9, open=1, completed=4, refused=2, frames=50, backends=["a", "b"], failures={"full": 2, "no": 1})
    one.lag.add(0.25)
    two.lag.add(0.5)
    whole = together([one, two])
    assert (whole.at, whole.open, whole.completed, whole.refused, whole.frames) == (9, 3, 9, 2, 150)
    assert (whole.backends, whole.failures, whole.cpu_seconds) == (["a", "b"], {"full": 3, "no": 1}, 0.5)
    assert (whole.lag.count, whole.lag.longest) == (2, 0.5)


def test_it_survives_the_way_to_the_parent() -> None:
    seen = Seen(generator=7, open=3)
    seen.partial.add(0.0123)
    seen.fail("no")
    assert msgspec.json.decode(msgspec.json.encode(seen), type=Seen) == seen


def test_a_server_may_fail_in_any_number_of_ways() -> None:
    whole = Seen()
    for process in range(3):
        seen = Seen()
        for number in range(100):
            seen.fail(f"reason {process} {number}")
        whole.merge(seen)
    assert sum(whole.failures.values()) == 300
    assert len(whole.failures) == REASONS + 1
    assert OTHERS in whole.failures
