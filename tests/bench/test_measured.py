"""The stretch in which all sessions are open, and what it comes to."""

from __future__ import annotations

import pytest

from bench.load.results import Seen
from bench.measured import Mark, stretch, summary


def mark(second: float, opened: int, frames: int = 100, *, cpu: float = 0.0, rss: float = 50.0) -> Mark:
    return Mark(Seen(open=opened, frames=frames), second, cpu, rss, 4)


def test_the_stretch_runs_from_the_first_report_with_all_to_the_last() -> None:
    marks = [mark(i, opened) for i, opened in enumerate((3, 10, 10, 10, 4, 0))]
    assert stretch(marks, 10, 1) == marks[1:4]


def test_of_several_generators_it_is_whole_turns() -> None:
    marks = [mark(i, opened) for i, opened in enumerate((5, 2, 5, 5, 5, 5, 5, 5, 1, 0))]
    assert stretch(marks, 10, 2) == marks[3:8]


@pytest.mark.parametrize("opened", [(3, 9, 9, 0), (10, 9, 10, 0), (0,)])
def test_there_is_none_if_not_all_were_open(opened: tuple[int, ...]) -> None:
    assert not stretch([mark(i, count) for i, count in enumerate(opened)], 10, 1)


def test_cost_is_that_of_the_stretch_and_memory_the_most_there_was() -> None:
    before = mark(0, 0, 0, rss=40.0)
    marks = [
        mark(1, 5, 500, cpu=7.0),
        mark(2, 10, 500, cpu=8.0),
        mark(3, 10, 100, cpu=8.5, rss=60.0),
        mark(4, 10, 100, cpu=9.0),
        mark(5, 0, 500, cpu=20.0),
    ]
    run = summary("x", 10, before, marks, Seen(completed=10))
    assert run.frames == 200
    assert run.cpu_us_per_frame == 5_000.0
    assert run.cpu_percent == 50.0
    assert run.memory_kb_per_session == 20 * 1_024 / 10
    assert not run.collapsed
    assert not run.full


def test_a_run_without_a_stretch_has_no_cost() -> None:
    run = summary("x", 10, mark(0, 0), [mark(1, 9), mark(2, 9)], Seen(completed=9, refused=1, failures={"no": 1}))
    assert run.cpu_us_per_frame is None
    assert run.collapsed == ("1 refused", "never all 10 sessions open for long")
    assert run.failures == {"no": 1}


def test_a_server_is_full_by_the_cores_it_has() -> None:
    marks = [mark(1, 10), mark(2, 10, cpu=1.0)]
    assert summary("x", 10, marks[0], marks, Seen()).full
    assert not summary("x", 10, marks[0], marks, Seen(), processes=2).full
