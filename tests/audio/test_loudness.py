"""Levels: what may be speech, and where a cut hurts nobody."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.audio.loudness import Loudness, quiet_near
from tests.speech import SAMPLES, pcm

RATE = 16_000


def level(peak: int, seconds: float) -> bytes:
    return np.full(round(seconds * RATE), peak, "<i2").tobytes()


def noise(peak: int, seconds: float) -> bytes:
    rng = np.random.default_rng(1)
    return rng.integers(-peak, peak + 1, round(seconds * RATE)).astype("<i2").tobytes()


def chunks(audio: bytes, size: int = 3_200) -> list[bytes]:
    return [audio[i : i + size] for i in range(0, len(audio), size)]


def test_silence_and_a_quiet_room_are_no_speech() -> None:
    loudness = Loudness(RATE)
    assert not any(loudness.hear(chunk) for chunk in chunks(level(0, 2) + noise(100, 5)))


def test_steady_noise_becomes_the_background_and_a_voice_stands_out() -> None:
    loudness = Loudness(RATE)
    assert not any(loudness.hear(chunk) for chunk in chunks(noise(180, 10))[50:])
    assert loudness.hear(noise(800, 0.1))


def test_a_loud_voice_counts_even_if_nothing_else_was_ever_heard() -> None:
    loudness = Loudness(RATE)
    assert all(loudness.hear(chunk) for chunk in chunks(noise(4_000, 20)))


def test_most_of_a_recording_is_speech_and_what_is_before_it_is_not() -> None:
    speech = pcm(SAMPLES / "hello.flac")
    loudness = Loudness(RATE)
    assert not any(loudness.hear(chunk) for chunk in chunks(noise(20, 1)))
    heard = [loudness.hear(chunk) for chunk in chunks(speech)]
    assert sum(heard) > len(heard) / 2


@pytest.mark.parametrize("size", [320, 962, 3_200, 100_000])
def test_quiet_is_found_where_it_has_lasted_long_enough(size: int) -> None:
    """Whatever the chunks; to the resolution of 10 ms and one frame that straddles two chunks."""
    audio = noise(3_000, 0.5) + level(0, 0.06) + noise(3_000, 0.5) + level(0, 0.3) + noise(3_000, 0.5)
    assert first_quiet(audio, size, 0.04) == pytest.approx(0.54, abs=0.02)
    assert first_quiet(audio, size, 0.2) == pytest.approx(1.26, abs=0.02)
    assert first_quiet(audio, size, 0.4) is None


def first_quiet(audio: bytes, size: int, seconds: float) -> float | None:
    loudness = Loudness(RATE)
    before = 0
    for chunk in chunks(audio, size):
        loudness.hear(chunk)
        found = loudness.quiet_at(chunk, seconds)
        if found is not None:
            return (before + found) / RATE
        before += len(chunk) // 2
    return None


def test_quiet_is_relative_to_the_voice() -> None:
    assert first_quiet(noise(3_000, 0.5) + noise(200, 0.2), 3_200, 0.1) == pytest.approx(0.6, abs=0.02)
    assert first_quiet(noise(3_000, 0.5) + noise(600, 0.2), 3_200, 0.1) is None


def test_an_empty_chunk_says_nothing() -> None:
    loudness = Loudness(RATE)
    assert not loudness.hear(b"")
    assert loudness.quiet_at(b"", 0.04) is None


def test_the_quiet_place_nearest_to_a_position() -> None:
    audio = noise(3_000, 0.05) + level(0, 0.03) + noise(3_000, 0.1) + level(0, 0.02)
    for at, place in ((0.0, 0.055), (0.07, 0.065), (0.1, 0.075), (0.19, 0.185)):
        assert quiet_near(audio, round(at * RATE), RATE) / RATE == pytest.approx(place, abs=0.011)
    assert quiet_near(noise(3_000, 0.2), 100, RATE) == 100
    assert quiet_near(b"", 7, RATE) == 7
