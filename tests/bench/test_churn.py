"""Sessions that come and go, a few of them; and what is said of a server that gives nothing back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bench.churn import Churn, idle_cpu_percent, main
from bench.footprint import Footprint
from bench.load.results import Seen

AT_REST = Footprint(rss_mb=100.0, threads=7, fds=24, tasks=8, cpu_seconds=1.0)


def made(after: Footprint) -> Churn:
    first = dataclasses.replace(AT_REST, rss_mb=150.0)
    return Churn(AT_REST, AT_REST, first, after, Seen(), 10, None)


@pytest.mark.timeout(60)
def test_short_sessions_leave_nothing(tmp_path: Path) -> None:
    file = tmp_path / "churn.json"
    assert main(["--connections", "60", "--minute", "3", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert (found["completed"], found["failures"], found["left"]) == (120, {}, [])
    assert found["before"]["fds"] < found["most"]["fds"]


@pytest.mark.timeout(60)
def test_sessions_wait_and_then_speak(tmp_path: Path) -> None:
    file = tmp_path / "idle.json"
    assert main(["--idle", "40", "--hold", "4", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert (found["completed"], found["most_open"], found["lost_frames"]) == (80, 40, 0)
    assert found["most"]["fds"] >= found["before"]["fds"] + 40
    assert 0 <= found["idle_cpu_percent"] < 100


def test_memory_is_compared_with_the_first_time() -> None:
    assert not made(dataclasses.replace(AT_REST, rss_mb=157.0)).left
    assert made(dataclasses.replace(AT_REST, rss_mb=160.0)).left == ["10.0 MB more than the first time"]


@pytest.mark.parametrize("name", ["threads", "fds", "tasks"])
def test_all_else_with_what_was_before(name: str) -> None:
    held = {"rss_mb": 100.0, name: getattr(AT_REST, name) + 5}
    assert made(dataclasses.replace(AT_REST, **held)).left == [f"5 {name} more than before"]


def test_idle_cpu_is_that_of_the_silence() -> None:
    looks = [
        (Seen(at=float(at), open=opened, frames=frames), dataclasses.replace(AT_REST, cpu_seconds=cpu))
        for at, opened, frames, cpu in (
            (1, 5, 0, 1.0),
            (2, 10, 0, 2.0),
            (4, 10, 0, 2.1),
            (5, 10, 9, 3.0),
            (9, 10, 0, 9.0),
        )
    ]
    assert idle_cpu_percent(looks, 10) == 5.0
    assert idle_cpu_percent(looks[:2], 10) is None


@pytest.mark.parametrize("hold", ["3", "56"])
def test_a_wait_that_cannot_be_is_refused(hold: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--idle", "100", "--hold", hold])
    assert "--hold: longer than opening takes" in capsys.readouterr().err
