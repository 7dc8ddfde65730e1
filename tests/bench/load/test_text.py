"""A report as people read it."""

from __future__ import annotations

from typing import Any

import pytest

from bench.load.plan import Plan
from bench.load.report import report
from bench.load.results import Seen
from bench.load.text import lines, warning

PLAN = Plan(url="ws://127.0.0.1:1/v1/stream", sessions=3, seconds=2)


def read(seen: Seen, **more: Any) -> dict[str, str]:
    """Each line by its name."""
    return {line[:21].strip(): line[21:] for line in lines(report(PLAN, seen) | more) if line}


def test_all_of_it() -> None:
    seen = Seen(completed=1_998, refused=2, frames=40_000, lost_frames=3, partials=8_000, backends=["whisper"])
    seen.words_shown, seen.words_changed, seen.words_said, seen.word_errors = 100, 25, 1_000, 51
    seen.fail("overloaded")
    for distribution in (seen.partial, seen.speech_end, seen.final, seen.opening, seen.lag):
        distribution.add(0.01234)
    cost = {"cpu_us_per_frame": 45.5, "peak_mb": 120.0, "kb_per_session": 61.3}
    where = {"processor": "A Processor", "cpus": 8, "load_average": 0.5, "python": "3.12.1", "commit": "abc"}
    found = read(seen, open_at_once=1_998, server=cost, machine=where | {"versions": {"stt-bridge": "0.1.0"}})
    assert found["sessions"] == "1,998 completed, 2 refused, 0 dropped; 1,998 at once; 40,000 frames sent, 3 lost"
    assert found[""] == "1: overloaded"
    milliseconds = "p50 12.3 ms   p95 12.3 ms   p99 12.3 ms"
    for name in ("audio → partial", "speech end → final", "audio → final", "opening", "generator's own lag"):
        assert found[name] == milliseconds
    assert found["word error rate"] == "5.1% of 1,000 words"
    assert found["partials"] == "2 a second of audio; 0.25 words taken back for each word of a final"
    assert found["server"] == "45.5 µs of CPU a frame, 120 MB at most, 61.3 KB a session"
    assert found["machine"] == "A Processor, 8 CPUs, load 0.5; Python 3.12.1, stt-bridge 0.1.0 at abc"


def test_an_engine_that_does_not_listen_has_no_word_error_rate() -> None:
    found = read(Seen(completed=1, backends=["scripted"]))
    assert (
        found["word error rate"] == found["speech end → final"] == "not measured: the scripted engine does not listen"
    )


def test_a_run_in_which_nobody_got_in() -> None:
    found = read(Seen(refused=3))
    assert found["word error rate"] == "not measured: no session was completed"
    assert found["audio → partial"] == "not measured: there was none"
    assert "server" not in found


@pytest.mark.parametrize(("lag", "late"), [(0.004, False), (0.1, True)])
def test_a_generator_that_is_late_is_no_measure(lag: float, late: bool) -> None:
    seen = Seen()
    seen.lag.add(lag)
    told = warning(report(PLAN, seen))
    assert (told is not None and "the generator itself was late" in told) == late


def test_nothing_sent_is_nothing_late() -> None:
    assert warning(report(PLAN, Seen())) is None
