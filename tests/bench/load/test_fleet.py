"""Generators in processes of their own against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.load.fleet import play
from bench.load.plan import Plan, PlanError
from bench.load.report import report
from bench.load.results import Seen
from bench.process import started

SERVE = ["serve", "--backend", "scripted", "--port", "0", "--log-level", "error"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """One that takes three sessions, and wants a key."""
    settings = {"STT_EVENT_LOG": "off", "STT_VAD": "off", "STT_MAX_SESSIONS": "3", "STT_API_KEYS": "sesame"}
    with started(SERVE, "stream", settings) as (_, url):
        yield url


async def test_three_sessions_by_two_processes(server: str) -> None:
    told: list[Seen] = []
    plan = Plan(url=server, sessions=3, seconds=3, ramp=0.3, key="sesame", every=0.5)
    seen = await play(plan, 2, told.append)
    assert (seen.completed, seen.refused, seen.dropped, seen.failures) == (3, 0, 0, {})
    assert (seen.frames, seen.lost_frames, seen.open) == (90, 0, 0)
    assert seen.backends == ["scripted"]
    assert seen.finals == 3  # at three seconds
    assert seen.partials == 3 * 5
    assert (seen.words_shown, seen.words_changed) == (3 * 6, 0)
    assert {one.generator for one in told} == {0, 1}
    assert sum(one.frames for one in told) == 90
    figures = report(plan, seen)
    assert 0 < figures["latency_ms"]["p50"] < 500
    assert figures["generator_lag_ms"]["p50"] < 100
    assert figures["word_error_rate"] is None
    assert figures["generator_cpu_seconds"] > 0


async def test_one_too_many_is_refused_by_the_server_s_word_for_it(server: str) -> None:
    seen = await play(Plan(url=server, sessions=4, seconds=2, ramp=0.2, key="sesame"))
    assert (seen.completed, seen.refused, seen.dropped) == (3, 1, 0)
    assert list(seen.failures.values()) == [1]


async def test_without_the_key_nobody_gets_in(server: str) -> None:
    seen = await play(Plan(url=server, sessions=2, seconds=1, ramp=0))
    assert (seen.completed, seen.refused) == (0, 2)


@pytest.mark.parametrize("processes", [0, 3, 17])
async def test_as_many_processes_as_there_is_work_for(processes: int) -> None:
    with pytest.raises(PlanError, match="processes: 1 to 16"):
        await play(Plan(url="ws://127.0.0.1:9/", sessions=2), processes)


async def test_a_generator_that_fails_is_no_result(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="exit code 1"):
        await play(Plan(url="ws://127.0.0.1:9/", sessions=2, audio=str(tmp_path)), 2)
    assert "manifest.json is not there" in capfd.readouterr().err
