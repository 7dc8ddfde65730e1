from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.endpointing import Endpoint, Endpointer, EndpointRules

SPEECH = [True] * 30
SILENCE = [False] * 30


def endpoints(frames: list[bool], rules: EndpointRules | None = None) -> list[tuple[Endpoint, int, int]]:
    """Each endpoint with the segment's first frame and the frames pushed until then."""
    ends = Endpointer(rules)
    changes = [(ends.push(frame), ends.start, ends.position) for frame in frames]
    return [(change, start, position) for change, start, position in changes if change]


def test_silence_has_no_endpoints() -> None:
    assert endpoints(SILENCE * 10) == []


def test_speech_starts_at_seven_of_ten_and_takes_in_the_pre_roll() -> None:
    assert endpoints(SILENCE + SPEECH) == [(Endpoint.STARTED, 37 - 20, 37)]


def test_speech_ends_after_the_hangover() -> None:
    assert endpoints(SILENCE + SPEECH + SILENCE)[1] == (Endpoint.ENDED, 17, 60 + 9)


def test_a_click_starts_nothing() -> None:
    assert endpoints(SILENCE + [True] * 6 + SILENCE) == []


def test_a_pause_inside_a_sentence_ends_nothing() -> None:
    assert len(endpoints(SPEECH + [False] * 8 + SPEECH)) == 1


def test_the_first_segment_begins_with_the_stream_at_the_earliest() -> None:
    assert endpoints(SPEECH) == [(Endpoint.STARTED, 0, 7)]


def test_a_segment_does_not_reach_back_into_the_one_before() -> None:
    found = endpoints(SPEECH + [False] * 11 + SPEECH)
    assert [change for change, _, _ in found] == [Endpoint.STARTED, Endpoint.ENDED, Endpoint.STARTED]
    assert found[2][1] == found[1][2]


def test_quiet_counts_frames_since_speech() -> None:
    ends = Endpointer()
    for frame in [True, False, False]:
        ends.push(frame)
    assert ends.quiet == 2


def test_a_forced_start_finds_a_word_that_the_onset_has_not_proved() -> None:
    ends = Endpointer()
    for frame in SILENCE + [True] * 3:
        ends.push(frame)
    assert ends.force_start()
    assert (ends.in_speech, ends.start) == (True, 33 - 20)
    assert not ends.force_start()


def test_a_forced_start_leaves_silence_alone() -> None:
    ends = Endpointer()
    for frame in [*SILENCE, True, True, False]:
        ends.push(frame)
    assert not ends.force_start()
    assert not ends.in_speech


def test_kept_silence_is_not_taken_in_again() -> None:
    ends = Endpointer()
    for frame in SILENCE:
        ends.push(frame)
    ends.keep_from(28)
    for frame in SPEECH[:7]:
        ends.push(frame)
    assert ends.start == 28


def test_keep_from_is_refused_in_speech() -> None:
    ends = Endpointer()
    for frame in SPEECH:
        ends.push(frame)
    with pytest.raises(ValueError, match="silence"):
        ends.keep_from(3)


def test_a_split_goes_on_in_speech() -> None:
    ends = Endpointer()
    for frame in SPEECH:
        ends.push(frame)
    ends.split(20)
    assert (ends.in_speech, ends.start) == (True, 20)
    with pytest.raises(ValueError, match="split"):
        ends.split(20)


@pytest.mark.parametrize(
    "wrong",
    [
        {"onset_speech": 11},
        {"onset_speech": 0},
        {"hangover_silence": 13},
        {"pre_roll": -1},
        {"tail_speech": 0},
    ],
)
def test_impossible_rules_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EndpointRules(**wrong)


RULES = st.builds(
    lambda onset, speech, pre_roll, hangover, silence: EndpointRules(
        onset_window=onset,
        onset_speech=min(speech, onset),
        pre_roll=pre_roll,
        hangover_window=hangover,
        hangover_silence=min(silence, hangover),
        tail_speech=1,
    ),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 12),
    st.integers(1, 12),
    st.integers(1, 12),
)
# Runs, not coin flips: only those make segments.
FRAMES = st.lists(st.tuples(st.booleans(), st.integers(1, 25)), max_size=20).map(
    lambda runs: [speech for speech, length in runs for _ in range(length)]
)


@given(FRAMES, RULES)
def test_segments_follow_each_other_without_overlap(frames: list[bool], rules: EndpointRules) -> None:
    found = endpoints(frames, rules)
    assert [change for change, _, _ in found] == [Endpoint.STARTED, Endpoint.ENDED] * (len(found) // 2) + [
        Endpoint.STARTED
    ] * (len(found) % 2)
    ended = 0
    for change, start, position in found:
        assert ended <= start < position
        if change is Endpoint.STARTED:
            assert position - start <= rules.look_back
        else:
            ended = position


@given(FRAMES)
def test_every_long_run_of_speech_lies_in_a_segment(frames: list[bool]) -> None:
    rules = EndpointRules()
    ends = Endpointer(rules)
    covered = [False] * len(frames)
    start = 0
    for n, frame in enumerate(frames):
        change = ends.push(frame)
        if change is Endpoint.STARTED:
            start = ends.start
        if ends.in_speech or change:
            covered[start : n + 1] = [True] * (n + 1 - start)
    for n in range(len(frames) - rules.onset_speech + 1):
        if all(frames[n : n + rules.onset_speech]):
            assert all(covered[n : n + rules.onset_speech])


@given(FRAMES, st.data())
def test_splits_and_kept_silence_never_go_back(frames: list[bool], data: st.DataObject) -> None:
    ends = Endpointer()
    closed = 0
    for frame in frames:
        if ends.push(frame) is Endpoint.STARTED:
            assert ends.start >= closed
        if data.draw(st.integers(0, 9)):
            continue
        if not ends.in_speech:
            at = data.draw(st.integers(0, ends.position))
            ends.keep_from(at)
            closed = max(closed, at)
        elif ends.position > ends.start + 1:
            closed = data.draw(st.integers(ends.start + 1, ends.position))
            ends.split(closed)
