"""Where a stream that has lasted long enough ends; by a clock of the test's own."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.session.stream_end import StreamEnd

RATE = 16_000
FRAME = 1_600


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def voice(seconds: float) -> bytes:
    return np.full(round(seconds * RATE), 3_000, "<i2").tobytes()


def quiet(seconds: float) -> bytes:
    return bytes(round(seconds * RATE) * 2)


def played(end: StreamEnd, clock: Clock, audio: bytes, *, speed: float = 1.0) -> float | None:
    """Give the audio in frames of 100 ms; returns where the stream ended, in seconds of this audio."""
    for at in range(0, len(audio) // 2, FRAME):
        chunk = audio[2 * at : 2 * (at + FRAME)]
        cut = end.take(chunk)
        if cut is not None:
            return (at + cut) / RATE
        clock.now += len(chunk) / 2 / RATE / speed
    return None


def test_a_stream_without_a_limit_does_not_end_by_itself() -> None:
    clock = Clock()
    end = StreamEnd(RATE, None, clock)
    assert played(end, clock, (voice(1) + quiet(2)) * 30) is None
    assert not end.due


def test_past_the_soft_age_a_final_is_due_and_a_pause_ends_it() -> None:
    clock = Clock()
    end = StreamEnd(RATE, 300, clock)
    assert played(end, clock, (voice(1) + quiet(1)) * 110) is None
    early = end.due
    assert played(end, clock, voice(35)) is None
    assert (early, end.due) == (False, True)
    assert played(end, clock, voice(1) + quiet(0.4) + voice(1) + quiet(1)) == pytest.approx(2.9, abs=0.02)
    assert not end.in_speech


def test_past_the_hard_age_ever_less_quiet_will_do() -> None:
    clock = Clock()
    end = StreamEnd(RATE, 300, clock)
    assert played(end, clock, (voice(0.94) + quiet(0.06)) * 270) is None
    at = played(end, clock, (voice(0.94) + quiet(0.06)) * 3)
    assert at is not None
    assert 0.94 <= at % 1.0 <= 1.0
    assert not end.in_speech


def test_without_any_quiet_it_ends_in_speech_and_well_before_the_limit() -> None:
    clock = Clock()
    end = StreamEnd(RATE, 300, clock)
    at = played(end, clock, voice(300))
    assert at == pytest.approx(273, abs=0.2)
    assert end.in_speech


def test_age_is_by_the_clock_too_but_not_before_the_first_audio() -> None:
    clock = Clock()
    end = StreamEnd(RATE, 300, clock)
    clock.now += 1_000
    assert end.take(voice(0.1)) is None
    assert end.age == pytest.approx(0.1)
    clock.now += 290
    assert end.due
    assert played(end, clock, quiet(1)) is not None


def test_a_replay_runs_faster_than_the_clock() -> None:
    clock = Clock()
    end = StreamEnd(RATE, 300, clock)
    at = played(end, clock, voice(300), speed=4)
    assert at == pytest.approx(273, abs=0.2)


def test_a_short_limit_shortens_the_wait_too() -> None:
    clock = Clock()
    end = StreamEnd(RATE, 2, clock)
    assert played(end, clock, voice(3)) == pytest.approx(1.9, abs=0.11)


def test_to_be_asked_ends_it_within_a_second() -> None:
    for limit in (None, 300):
        clock = Clock()
        end = StreamEnd(RATE, limit, clock)
        assert played(end, clock, voice(10)) is None
        end.ask()
        clock.now += 0.5
        end.ask()  # again changes nothing
        at = played(end, clock, voice(3))
        assert at is not None
        assert at <= 1.1
        assert end.in_speech


def test_asked_too_early_it_lasts_long_enough_for_a_word_to_be_heard() -> None:
    clock = Clock()
    end = StreamEnd(RATE, None, clock)
    end.ask()
    assert played(end, clock, voice(10)) == pytest.approx(5, abs=0.11)


def test_asked_in_a_pause_it_ends_there() -> None:
    clock = Clock()
    end = StreamEnd(RATE, None, clock)
    assert played(end, clock, voice(5)) is None
    end.ask()
    assert played(end, clock, voice(0.3) + quiet(0.3)) == pytest.approx(0.3 + 0.13, abs=0.05)
    assert not end.in_speech


def test_sessions_that_began_together_do_not_end_together() -> None:
    softs = set()
    for _ in range(20):
        clock = Clock()
        end = StreamEnd(RATE, 300, clock)
        end.take(voice(0.1))
        while not end.due:
            clock.now += 0.5
        softs.add(clock.now)
    assert len(softs) > 5
    assert min(softs) - 100 >= 225
    assert max(softs) - 100 <= 255


def test_what_is_owed_is_counted_from_the_first_voice_until_an_answer() -> None:
    clock = Clock()
    end = StreamEnd(RATE, None, clock)
    played(end, clock, quiet(1))
    assert end.unanswered_since is None
    played(end, clock, voice(0.5) + quiet(0.5))
    assert end.unanswered_since == pytest.approx(101)
    assert end.unanswered_voice == pytest.approx(0.5)
    end.answered()
    assert end.unanswered_since is None
    assert end.unanswered_voice == 0
