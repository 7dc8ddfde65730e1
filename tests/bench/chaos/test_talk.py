"""What counts as different, and what as silence."""

from __future__ import annotations

import itertools
import time

import pytest

from bench.chaos.nodes import Nodes
from bench.chaos.recordings import (
    MARKER_RATE,
    OTHER_CHANNEL,
    UNSTEADY,
    Recording,
    marker_recordings,
    sample_recordings,
)
from bench.chaos.run import Chaos, Plan, Struck
from bench.chaos.talk import Heard
from bridge.protocols.native import AckMessage, ClosedMessage, FinalMessage, PartialMessage, StartMessage

RECORDING = Recording("one", StartMessage(), bytes(64_000), 2.0)
FINALS = (FinalMessage(1, "one two", 0.0, 1.0), FinalMessage(2, "three", 1.0, 2.0))
CLOSED = ClosedMessage("stopped", 32_000, 32_000, 2.0, seq=3)


def heard(*messages: object, recording: Recording = RECORDING) -> Heard:
    session = Heard(recording, began=time.monotonic())
    for message in messages:
        session.take(message)  # type: ignore[arg-type]
    return session


def test_a_whole_session_differs_in_nothing() -> None:
    session = heard(PartialMessage("one", 0, 1), FINALS[0], AckMessage(1, 1), FINALS[1], CLOSED)
    assert session.differences("one two three") == []
    assert session.seqs == [1, 2, 3]
    assert len(session.told) == 5
    assert len(session.lasted) == 3


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ((*FINALS, CLOSED, CLOSED), "sequence numbers"),
        ((FINALS[0], CLOSED), "sequence numbers"),
        ((FINALS[0], FinalMessage(2, "four", 1.0, 2.0), CLOSED), "instead of 'one two three'"),
        ((FINALS[0], FinalMessage(2, "three", 0.9, 2.0), CLOSED), "overlap"),
        (FINALS, "no `closed`"),
        ((*FINALS, ClosedMessage("idle_timeout", 32_000, 32_000, 2.0, seq=3)), "closed:"),
        ((*FINALS, ClosedMessage("stopped", 32_000, 31_999, 2.0, seq=3)), "closed:"),
        ((*FINALS, ClosedMessage("stopped", 30_000, 30_000, 1.8, seq=3)), "instead of 2.0 s"),
    ],
)
def test_what_is_wrong_is_found(messages: tuple[object, ...], part: str) -> None:
    assert any(part in sentence for sentence in heard(*messages).differences("one two three"))


def test_silence_is_the_longest_gap_around_a_fault_or_soon_after_it() -> None:
    session = Heard(RECORDING, began=0.0, told=[1, 2, 3, 7.5, 8, 20, 21], lasted=[2, 8, 21])
    assert session.silences(3.5) == (12, 13)  # 8 to 20 begins within five seconds
    assert session.silences(2.5) == (4.5, 6)
    assert session.silences(1.5) == (4.5, 6)
    assert session.silences(30) == (0, 0)


def test_marker_recordings_say_each_word_once_and_are_sent_whole() -> None:
    recordings = marker_recordings(4, 12, seed=7)
    assert [r.name for r in recordings] == ["samples-0", "flushed-1", "stereo-2", "wav-3"]
    for recording in recordings:
        assert recording.expected is not None
        for channel, words in enumerate(recording.expected.split(" | ")):
            first = channel * OTHER_CHANNEL
            assert words.split() == [f"w{first + i}" for i in range(len(words.split()))]
        chunks = recording.chunks()
        assert b"".join(chunk for _, chunk in chunks) == recording.data
        if recording.start.encoding == "pcm_s16le":  # a file is cut anywhere
            assert all(len(chunk) % (2 * recording.start.channels) == 0 for _, chunk in chunks)
        assert all(b[0] - a[0] == pytest.approx(0.1, abs=0.01) for a, b in itertools.pairwise(chunks))
        assert recording.seconds >= 12


def test_flushes_fall_into_pauses() -> None:
    (recording,) = (r for r in marker_recordings(2, 12, seed=7) if r.flushes)
    for flush in recording.flushes:
        at = next(at for at, _ in recording.chunks() if at >= flush)
        assert not any(recording.data[2 * round(t * MARKER_RATE)] for t in (flush, at)), (flush, at)


def test_channels_are_transcripts_of_their_own() -> None:
    words = (FinalMessage(1, "one", 0.0, 1.0, channel=1), FinalMessage(2, "two", 0.5, 0.9, channel=0))
    assert heard(*words, CLOSED).differences("two | one") == []


def test_sample_recordings_are_those_that_the_engine_repeats() -> None:
    recordings = sample_recordings(longest=10)
    assert {r.start.encoding for r in recordings} == {"pcm_s16le", "auto"}
    assert not {r.name.split()[0] for r in recordings} & UNSTEADY
    assert all(b"".join(c for _, c in r.chunks()) == r.data for r in recordings)
    assert len({r.name for r in recordings}) == len(recordings) > 10


def test_a_fault_belongs_to_the_sessions_that_it_hit() -> None:
    one, other = heard(), heard()
    assert one in Struck("kill", 0.0, (one,)).sessions
    assert other not in Struck("kill", 0.0, (one,)).sessions


def test_only_faults_that_came_alone_tell_of_silence() -> None:
    one, other = (Heard(RECORDING, began=0.0, told=[5, 9, 14, 29, 33], lasted=[33]) for _ in range(2))
    chaos = Chaos(Nodes([]), Plan(9, seed=1), [], {})
    chaos.struck += [Struck("fin", 10, (one,)), Struck("kill", 12, (one, other)), Struck("fin", 30, (other,))]
    table = chaos.silences()
    assert table["fin"] == {
        "count": 2,
        "alone": 1,
        "median": 4,
        "longest": 4,
        "lasting_median": 33,
        "lasting_longest": 33,
    }
    assert (table["kill"]["count"], table["kill"]["alone"], table["kill"]["longest"]) == (1, 1, 15)
