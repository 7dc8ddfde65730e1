"""A soak of some seconds, and what is said of a server that grows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from bench.load.results import Seen
from bench.soak import Sample, Soak, main, trends


def sample(minute: int, *, rss: float = 150.0, threads: int = 7, fds: int = 74, opened: int = 50) -> Sample:
    return Sample(60.0 * minute, rss, threads, 8 + 4 * opened, fds, opened, 10.0, 30_000, 100, 0, {}, {}, {}, {})


@pytest.mark.timeout(60)
def test_some_seconds_are_flat_and_leave_a_receipt(tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    seconds = "0.00222"  # hours: eight seconds
    assert (
        main(["--hours", seconds, "--every", "0.5", "--sessions", "8", "--session-seconds", "1", "--json", str(file)])
        == 0
    )
    found = json.loads(file.read_text())
    assert found["flat"]
    assert found["completed"] > 8  # sessions were begun anew
    assert (found["refused"], found["dropped"], found["lost_frames"]) == (0, 0, 0)
    assert 12 <= len(found["samples"]) <= 17
    assert set(found["trends_per_hour"]) == {"rss_mb", "threads", "idle_fds", "tasks"}
    for one in found["samples"]:
        assert one["rss_mb"] > 20
        assert min(one["threads"], one["tasks"], one["fds"]) > 0
    assert found["samples"][-1]["latency_ms"]["p99"] > 0
    assert found["machine"]["cpus"]


def test_sessions_that_come_and_go_are_no_growth() -> None:
    rng = random.Random(9)
    opened = [rng.randint(40, 50) for _ in range(30)]
    samples = [sample(i, opened=count, fds=24 + count) for i, count in enumerate(opened)]
    assert all(one.flat for one in trends(samples).values())


@pytest.mark.parametrize("grows", ["rss", "threads", "fds"])
def test_a_leak_is_not_flat(grows: str) -> None:
    rng = random.Random(9)
    rates = {"rss": 0.5, "threads": 0.3, "fds": 1.0}  # a minute
    values = [sample(i, **_leak(grows, i * rates[grows] + rng.uniform(0, 1))) for i in range(30)]
    found = trends(values)
    name = {"rss": "rss_mb", "fds": "idle_fds"}.get(grows, grows)
    assert not found[name].flat
    assert found[name].per_hour == pytest.approx(60 * rates[grows], rel=0.2)
    assert not Soak(values, Seen(), found).sound


def _leak(name: str, amount: float) -> dict[str, Any]:
    base = {"rss": 150.0, "threads": 7, "fds": 74}[name]
    return {name: base + amount if name == "rss" else int(base + amount)}


def test_growth_that_ends_in_the_first_half_is_flat() -> None:
    samples = [sample(i, rss=100.0 + min(i, 14) * 5) for i in range(30)]
    assert trends(samples)["rss_mb"].flat


def test_a_failed_session_is_not_sound() -> None:
    samples = [sample(i) for i in range(30)]
    assert Soak(samples, Seen(completed=9), trends(samples)).sound
    assert not Soak(samples, Seen(completed=9, dropped=1), trends(samples)).sound


@pytest.mark.parametrize("hours", ["0", "21", "0.1"])
def test_too_short_or_too_long_is_refused(hours: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--hours", hours])
    assert "--hours: at most 20, and enough for 8 samples" in capsys.readouterr().err
