"""Where speech is: however the audio is cut, and as faster-whisper's own use of the same model finds it."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest
from faster_whisper.vad import get_vad_model

from backends.whisper.speech import FRAME, LONGEST_GAP_FRAMES, Ears
from backends.whisper.window import RATE
from bench.noises import NOISES, at_level
from tests.backends.whisper.harness import said, silence
from tests.models import fixture

THRESHOLD = 0.2
Samples = npt.NDArray[np.float32]


def samples(audio: bytes) -> Samples:
    return np.frombuffer(audio, "<i2").astype(np.float32) / np.float32(32_768)


@pytest.fixture(scope="module")
def talk() -> Samples:
    """Three utterances with pauses, and no whole number of frames."""
    audio, _ = said(fixture.certain()[:3])
    return samples(audio)[:-100]


def listened(*chunks: Samples, threshold: float = THRESHOLD) -> Ears:
    ears = Ears(threshold)
    for chunk in chunks:
        ears.listen(chunk)
    return ears


def places(ears: Ears, start: int, end: int) -> list[tuple[int, int]]:
    """Where the speech is, in samples."""
    return [(span.start, span.end) for span in ears.speech(start, end)]


def with_probabilities(*values: float) -> Ears:
    """Ears that have judged a frame by each of these."""
    ears = Ears(THRESHOLD)
    ears._probabilities = np.asarray(values, np.float32)
    return ears


def test_it_is_faster_whispers_own_model(talk: Samples) -> None:
    """Silero's state goes on from chunk to chunk; a mistake in that would show as other probabilities."""
    ears = listened(*np.array_split(talk, 7))
    whole = talk[: len(talk) // FRAME * FRAME].copy()
    own = np.asarray(get_vad_model()(whole), np.float32).reshape(-1)
    # It spoils the end of the last frame itself.
    np.testing.assert_allclose(ears._probabilities[:-1], own[:-1], atol=1e-4)
    assert own.max() > 0.9


def test_however_the_audio_is_cut(talk: Samples) -> None:
    whole = listened(talk)
    spans = places(whole, 0, len(talk))
    assert len(spans) >= 3
    chance = random.Random(1)
    for size in (160, 511, 512, 513, 5_000):
        ears = listened(*(talk[at : at + size] for at in range(0, len(talk), size)))
        assert places(ears, 0, len(talk)) == spans
    ears = listened(*np.split(talk, sorted(chance.sample(range(len(talk)), 40))))
    assert places(ears, 0, len(talk)) == spans
    assert ears.heard == whole.heard == len(talk)


def test_speech_is_where_words_are() -> None:
    for one in fixture.certain()[:8]:
        audio = samples(b"".join([silence(1), *[(said([one], 0)[0])], silence(1)]))
        spans = listened(audio).speech(0, len(audio))
        assert spans[0].start / RATE == pytest.approx(1 + one.words[0].start, abs=0.15)
        assert spans[-1].end / RATE == pytest.approx(1 + one.words[-1].end, abs=0.2)


def test_what_was_forgotten_changes_nothing_behind_it(talk: Samples) -> None:
    whole = listened(talk)
    half = len(talk) // 2
    ears = listened(talk[:half])
    ears.forget(half - 1_000)
    ears.listen(talk[half:])
    assert ears.heard == len(talk)
    start = half // FRAME * FRAME
    assert places(ears, start, len(talk)) == places(whole, start, len(talk))
    assert len(ears._probabilities) < len(talk) // FRAME - half // FRAME + 4
    ears.forget(0)  # going back is no harm
    ears.forget(10 * len(talk))  # nor is what was not heard yet
    assert ears.heard == len(talk)
    ears.listen(talk)
    assert ears.heard == 2 * len(talk)


def test_a_frame_counts_from_the_threshold_on() -> None:
    below, at = THRESHOLD - 0.01, THRESHOLD
    ears = with_probabilities(*[below] * 4, *[at] * 40, *[below] * 4)
    assert places(ears, 0, 48 * FRAME) == [(4 * FRAME, 44 * FRAME)]


@pytest.mark.parametrize(("probability", "few", "enough"), [(1.0, 2, 8), (0.25, 8, 32)])
def test_clicks_are_too_short_and_what_may_be_speech_must_last(probability: float, few: int, enough: int) -> None:
    assert places(with_probabilities(0, *[probability] * few, 0), 0, 99 * FRAME) == []
    ears = with_probabilities(0, *[probability] * enough, 0)
    assert places(ears, 0, 99 * FRAME) == [(FRAME, (1 + enough) * FRAME)]
    assert ears.speech(0, 99 * FRAME)[0].evidence == pytest.approx(probability * enough * FRAME / RATE)


def test_short_gaps_are_part_of_the_speech() -> None:
    gap = [0.0] * LONGEST_GAP_FRAMES
    word = [1.0] * 8
    assert places(with_probabilities(*word, *gap, 1), 0, 15 * FRAME) == [(0, 15 * FRAME)]
    ears = with_probabilities(*word, *gap, 0, *word)
    assert places(ears, 0, 23 * FRAME) == [(0, 8 * FRAME), (15 * FRAME, 23 * FRAME)]


def test_spans_stay_between_the_samples_asked_for() -> None:
    ears = with_probabilities(*[1.0] * 20)
    assert places(ears, 700, 9_000) == [(700, 9_000)]
    assert places(ears, 0, 100 * FRAME) == [(0, 20 * FRAME)]
    assert places(ears, 20 * FRAME, 22 * FRAME) == []


def test_a_higher_threshold_hears_less(talk: Samples) -> None:
    def samples_of_speech(threshold: float) -> int:
        return sum(end - start for start, end in places(listened(talk, threshold=threshold), 0, len(talk)))

    assert samples_of_speech(0.9) < samples_of_speech(0.05)


@pytest.mark.parametrize("noise", ["white", "pink", "hum 50 Hz", "clicks", "fan"])
def test_noise_is_no_speech(noise: str) -> None:
    made = NOISES[noise](np.random.default_rng(1), 10 * RATE)
    audio = np.asarray(at_level(made, -30), np.float32)
    assert listened(audio).speech(0, len(audio)) == []


def test_no_audio() -> None:
    ears = listened(np.zeros(0, np.float32), np.zeros(100, np.float32))
    assert ears.heard == 100
    assert ears.speech(0, 100) == []
