"""The figures of a run as they are told."""

from __future__ import annotations

import json

import pytest

from bench.load.plan import Plan
from bench.load.report import report
from bench.load.results import Seen

PLAN = Plan(url="ws://127.0.0.1:1/v1/stream", sessions=3, seconds=2, key="sesame-of-the-test")


def test_what_was_seen_is_told() -> None:
    seen = Seen(completed=2, dropped=1, frames=60, lost_frames=1, partials=9, finals=4, words_said=40, word_errors=3)
    seen.words_changed, seen.words_shown = 2, 50
    for _ in range(100):
        seen.partial.add(0.01)
    told = report(PLAN, seen)
    assert (told["completed"], told["dropped"]) == (2, 1)
    assert told["latency_ms"] == pytest.approx({"p50": 10, "p95": 10, "p99": 10, "max": 10}, rel=0.006)
    assert told["final_latency_ms"] == {}
    assert (told["word_error_rate"], told["words"]) == (0.075, 40)
    assert told["partials_per_second"] == 1.5
    assert told["flicker"] == 0.04


def test_what_was_not_measured_has_no_figure() -> None:
    told = report(PLAN, Seen())
    assert (told["word_error_rate"], told["flicker"]) == (None, None)
    assert (told["latency_ms"], told["speech_end_ms"], told["partials_per_second"]) == ({}, {}, 0)


def test_no_key_is_told() -> None:
    assert "sesame" not in json.dumps(report(PLAN, Seen()))
