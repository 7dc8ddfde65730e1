"""Pace: a wrong rate shows in live audio, and a file that is sent fast is none."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.pace import Pace
from bridge.audio.suspicion import Finding

SIXTEEN = AudioFormat(Encoding.PCM_S16LE, 16_000)


def watched(arrivals: Iterable[tuple[float, int]], audio: AudioFormat = SIXTEEN) -> Finding | None:
    """Messages of so many bytes at these seconds, until there is a verdict."""
    pace = Pace(audio)
    for now, size in arrivals:
        finding = pace.push(size, now)
        if pace.done:
            return finding
    return None


def live(bytes_a_second: float, milliseconds: int, jitter: float = 0.0) -> Iterable[tuple[float, int]]:
    """A microphone's messages, each late by at most so many seconds, for a minute."""
    chance, latest = random.Random(1), 0.0
    for n in range(1, 60_000 // milliseconds):
        latest = max(latest, 100 + n * milliseconds / 1_000 + chance.uniform(0, jitter))
        yield latest, round(bytes_a_second * milliseconds / 1_000)


@pytest.mark.parametrize("milliseconds", [10, 64, 100, 1_000])
@pytest.mark.parametrize("true_rate", [8_000, 22_050, 32_000, 44_100, 48_000])
def test_a_live_microphone_at_another_rate(true_rate: int, milliseconds: int) -> None:
    finding = watched(live(true_rate * 2, milliseconds, jitter=0.05))
    assert finding is not None
    assert finding[0] == "wrong_rate"
    assert f"declare sample_rate {true_rate}" in finding[1]


@pytest.mark.parametrize("milliseconds", [20, 250])
def test_slower_than_declared(milliseconds: int) -> None:
    finding = watched(live(16_000 * 4, milliseconds), AudioFormat(Encoding.PCM_F32LE, 48_000))
    assert finding is not None
    assert "declare sample_rate 16000" in finding[1]


@pytest.mark.parametrize("pace", [0.85, 0.93, 1.0, 1.05, 1.2])
def test_real_time_or_about_so(pace: float) -> None:
    assert watched(live(32_000 * pace, 100, jitter=0.1)) is None


@pytest.mark.parametrize("pace", [1.75, 2.4, 5.0, 40.0])
def test_a_pace_of_no_common_rate(pace: float) -> None:
    assert watched(live(32_000 * pace, 100)) is None


@pytest.mark.parametrize("pace", [0.5, 1.5, 2.0, 3.0])
def test_a_file_that_fills_the_buffers_first_and_then_goes_at_the_engine_s_pace(pace: float) -> None:
    burst = ((100 + n / 1_000, 3_200) for n in range(50))
    after = ((100.05 + n / 10 / pace, 3_200) for n in itertools.count(1))
    assert watched(itertools.chain(burst, after)) is None


@pytest.mark.parametrize("burst", [1.0, 2.5])
def test_a_file_that_is_read_in_bursts(burst: float) -> None:
    """Three times real time on the whole."""
    assert watched((100 + n // 10 * burst / 3, round(3_200 * burst)) for n in itertools.count()) is None


def test_a_sender_that_pauses() -> None:
    """Push to talk: half of the time on the whole."""
    assert watched((100 + n / 10 + n // 10 * 1.0, 3_200) for n in itertools.count()) is None


def test_a_minute_at_once() -> None:
    assert watched([(100.0, 60 * 32_000), (109.0, 3_200)]) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 1_000_000)), max_size=200))
def test_any_arrivals_are_survived(steps: list[tuple[float, int]]) -> None:
    times = itertools.accumulate(step for step, _ in steps)
    watched(zip(times, (size for _, size in steps), strict=True))


@pytest.mark.parametrize("encoding", [Encoding.OPUS, Encoding.G722])
def test_coded_audio_has_a_pace_of_its_own(encoding: Encoding) -> None:
    assert Pace(AudioFormat(encoding)).done
