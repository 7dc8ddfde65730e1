from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.audio.vad.segmenter import HYSTERESIS, Endpointing, Segmenter, SpeechEnd, SpeechOnset

FRAME = 0.03
Event = SpeechOnset | SpeechEnd

PROBABILITIES = st.lists(
    st.one_of(st.floats(0, 1), st.sampled_from((0.0, 0.3, 0.6, 1.0))).flatmap(
        lambda p: st.integers(1, 12).map(lambda n: [p] * n)
    ),
    max_size=40,
).map(lambda runs: [p for run in runs for p in run])
RULES = st.builds(
    Endpointing, threshold=st.floats(0, 1), silence_seconds=st.floats(0.1, 1), padding_seconds=st.floats(0, 0.5)
)


def row(*runs: tuple[float, int]) -> list[float]:
    return [probability for probability, frames in runs for _ in range(frames)]


def events(probabilities: Sequence[float], rules: Endpointing | None = None, *, force: bool = False) -> list[Event]:
    segmenter = Segmenter(FRAME, rules)
    found = [event for probability in probabilities if (event := segmenter.push(probability))]
    return [*found, *segmenter.force()] if force else found


RULE = Endpointing(threshold=0.5, silence_seconds=0.3, padding_seconds=0.15)
"""10 frames of silence, 5 of padding."""


def test_speech_begins_at_its_first_frame_and_the_padding_before_it_is_let_through() -> None:
    assert events(row((0, 20), (1, 3)), RULE) == [SpeechOnset(frame=20, opens=15)]


def test_speech_ends_where_the_silence_that_proves_it_begins() -> None:
    assert events(row((0, 20), (1, 5), (0, 10)), RULE) == [SpeechOnset(20, 15), SpeechEnd(frame=25, closes=35)]
    assert len(events(row((0, 20), (1, 5), (0, 9)), RULE)) == 1


def test_the_padding_reaches_neither_before_the_stream_nor_into_what_was_let_through() -> None:
    assert events(row((1, 3)), RULE) == [SpeechOnset(0, 0)]
    found = events(row((1, 3), (0, 10), (0, 2), (1, 3)), RULE)
    assert found == [SpeechOnset(0, 0), SpeechEnd(3, 13), SpeechOnset(15, 13)]


def test_what_is_shorter_than_90_ms_is_a_click() -> None:
    assert events(row((0, 20), (1, 2), (0, 20), (1, 2), (0, 1)), RULE) == []


def test_between_the_thresholds_a_frame_is_what_the_one_before_was() -> None:
    between = 0.5 - HYSTERESIS / 2
    assert events(row((between, 40)), RULE) == []
    assert events(row((1, 1), (between, 40)), RULE) == [SpeechOnset(0, 0)]
    assert events(row((1, 3), (0, 1), (between, 9)), RULE) == [SpeechOnset(0, 0), SpeechEnd(3, 13)]


def test_what_may_be_speech_is_pending_until_that_is_sure() -> None:
    segmenter = Segmenter(FRAME, RULE)
    for _ in range(20):
        segmenter.push(0)
    assert (segmenter.pending, segmenter.keep_from) == (None, 15)
    segmenter.push(1)
    assert (segmenter.pending, segmenter.keep_from) == (20, 15)
    segmenter.push(1)
    assert (segmenter.pending, segmenter.keep_from) == (20, 15)
    segmenter.push(0)
    assert (segmenter.pending, segmenter.keep_from) == (None, 18)
    for _ in range(3):
        segmenter.push(1)
    assert segmenter.in_speech
    assert segmenter.pending is None


def test_forced_speech_is_over_where_the_stream_is_or_where_silence_began() -> None:
    assert events(row((1, 5)), RULE, force=True) == [SpeechOnset(0, 0), SpeechEnd(5, 5)]
    assert events(row((1, 5), (0, 4)), RULE, force=True) == [SpeechOnset(0, 0), SpeechEnd(5, 9)]


def test_forced_what_may_be_speech_is_speech() -> None:
    assert events(row((0, 20), (1, 1)), RULE, force=True) == [SpeechOnset(20, 15), SpeechEnd(21, 21)]
    assert events(row((0, 20)), RULE, force=True) == []


def test_after_a_forced_end_all_begins_anew() -> None:
    segmenter = Segmenter(FRAME, RULE)
    for _ in range(5):
        segmenter.push(1)
    segmenter.force()
    assert segmenter.force() == []
    found = [event for _ in range(5) if (event := segmenter.push(1))]
    assert found == [SpeechOnset(5, 5)]


def test_threshold_0_lets_all_through() -> None:
    assert events(row((0, 100)), Endpointing(threshold=0.0)) == [SpeechOnset(0, 0)]


def test_a_threshold_of_1_is_reached_by_what_failed_open() -> None:
    assert events(row((1.0, 3)), Endpointing(threshold=1.0)) == [SpeechOnset(0, 0)]


@pytest.mark.parametrize("field", ["threshold", "silence_seconds", "padding_seconds"])
@pytest.mark.parametrize("value", [-0.1, 10.1, math.nan, math.inf])
def test_what_is_out_of_limits_is_refused_by_its_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Endpointing(**{field: value})


@pytest.mark.parametrize("limits", [(0.0, 0.1, 0.0), (1.0, 10.0, 2.0)])
def test_the_limits_themselves_are_allowed(limits: tuple[float, float, float]) -> None:
    assert Endpointing(*limits).threshold == limits[0]


@given(PROBABILITIES, RULES)
def test_onsets_and_ends_take_turns_and_never_go_back(probabilities: list[float], rules: Endpointing) -> None:
    segmenter = Segmenter(FRAME, rules)
    told: list[Event] = []
    for n, probability in enumerate(probabilities):
        if event := segmenter.push(probability):
            told.append(event)
        assert segmenter.position == n + 1
        assert segmenter.in_speech == (bool(told) and isinstance(told[-1], SpeechOnset))
        last = max(event.frame if isinstance(event, SpeechOnset) else event.closes for event in told) if told else 0
        assert segmenter.keep_from >= (0 if segmenter.in_speech else min(last, segmenter.position))
    told += segmenter.force()
    before = 0
    for n, event in enumerate(told):
        assert isinstance(event, SpeechEnd if n % 2 else SpeechOnset)
        if isinstance(event, SpeechOnset):
            assert before <= event.opens <= event.frame
            before = event.frame
        else:
            assert before < event.frame <= event.closes <= len(probabilities)
            before = event.closes
    assert len(told) % 2 == 0


@given(PROBABILITIES, RULES)
def test_no_stretch_of_speech_is_left_out(probabilities: list[float], rules: Endpointing) -> None:
    """Three frames in a row that reach the threshold are let through, and so is the padding before them."""
    told = events(probabilities, rules, force=True)
    through = [False] * len(probabilities)
    for onset, end in zip(told[::2], told[1::2], strict=True):
        assert isinstance(onset, SpeechOnset)
        assert isinstance(end, SpeechEnd)
        through[onset.opens : end.closes] = [True] * (end.closes - onset.opens)
    padding = math.ceil(rules.padding_seconds / FRAME - 1e-6)
    for n in range(len(probabilities) - 2):
        if all(probability >= rules.threshold for probability in probabilities[n : n + 3]):
            assert all(through[max(0, n - padding) : n + 3])


@given(PROBABILITIES, RULES)
def test_what_is_let_go_in_silence_is_never_wanted_back(probabilities: list[float], rules: Endpointing) -> None:
    segmenter = Segmenter(FRAME, rules)
    gone = 0
    for probability in probabilities:
        if isinstance(event := segmenter.push(probability), SpeechOnset):
            assert event.opens >= gone
        if not segmenter.in_speech:
            assert segmenter.keep_from >= gone
            gone = segmenter.keep_from


@given(PROBABILITIES)
def test_all_is_let_through_between_the_speech_of_one_segment(probabilities: list[float]) -> None:
    """A silence that is too short to end an utterance stays in it."""
    for event in events(probabilities, RULE):
        if isinstance(event, SpeechEnd):
            assert event.closes - event.frame == 10
            negative = RULE.threshold - HYSTERESIS
            assert all(probability < RULE.threshold for probability in probabilities[event.frame : event.closes])
            assert probabilities[event.frame] < negative
