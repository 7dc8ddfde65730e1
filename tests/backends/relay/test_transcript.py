"""A session's messages as results: they tile the audio, flushes are answered, and nothing is cut in the middle."""

from __future__ import annotations

from backends.base import Result, Word
from backends.relay.transcript import Transcript
from bridge.protocols.native import (
    AckMessage,
    ClosedMessage,
    FinalMessage,
    PartialMessage,
    ServerMessage,
    SpeechEndedMessage,
    SpeechStartedMessage,
    WordObject,
)

RATE = 16_000
SECOND = bytes(2 * RATE)


def said(transcript: Transcript, *messages: ServerMessage) -> list[Result]:
    return [result for message in messages for result in transcript.take(message)]


def sent(seconds: float = 10) -> Transcript:
    transcript = Transcript(RATE)
    transcript.sent(bytes(2 * round(seconds * RATE)))
    return transcript


def test_everything_that_a_message_says_is_passed_on() -> None:
    word = WordObject("on", 0.5, 0.7, 0.8, "A")
    partial, final = said(
        sent(),
        PartialMessage("turn on", 0.2, 0.9, 0.6, 4, (word,)),
        FinalMessage(1, "turn on", 0.2, 1.0, (word,), 0.9, "en-GB"),
    )
    words = (Word("on", 0.5, 0.7, 0.8, "A"),)
    assert partial == Result("turn on", False, 0.2, 0.9, words, stability=0.6, committed=4)
    assert final == Result("turn on", True, 0.2, 1.0, words, confidence=0.9, language="en-GB")


def test_silence_is_final_as_it_passes() -> None:
    transcript = sent()
    assert said(transcript, AckMessage(32_000, 16_000)) == [Result("", True, 0.0, 1.0)]
    assert said(transcript, AckMessage(48_000, 16_000)) == []
    assert said(transcript, FinalMessage(1, "one", 1.2, 2.0), AckMessage(48_000, 32_000)) == [
        Result("one", True, 1.2, 2.0)
    ]
    assert said(transcript, AckMessage(64_000, 48_000)) == [Result("", True, 2.0, 3.0)]
    assert list(transcript.rest()) == [Result("", True, 3.0, 10.0)]


def test_times_that_are_rounded_leave_no_crumbs() -> None:
    transcript = sent()
    said(transcript, FinalMessage(1, "one", 0.0, 1.0))
    assert said(transcript, AckMessage(32_000, 16_007)) == []


def test_speech_that_goes_on_is_not_ended_by_what_lies_before_it() -> None:
    transcript = sent()
    assert said(transcript, SpeechStartedMessage(1, 2.0)) == [Result("", False, 2.0, 2.0)]
    assert said(transcript, AckMessage(48_000, 30_000)) == []
    said(transcript, SpeechEndedMessage(2, 2.4))  # a cough
    assert said(transcript, AckMessage(64_000, 48_000)) == [Result("", True, 0.0, 3.0)]


def test_a_flush_is_answered_at_its_place() -> None:
    transcript = sent(1)
    transcript.flushed()
    transcript.sent(SECOND)
    said(transcript, PartialMessage("one", 0.2, 0.9))
    assert said(transcript, AckMessage(32_000, 15_000)) == []
    # Counted at 8 kHz and rounded down, a sample is missing.
    assert said(transcript, AckMessage(32_000, 15_999)) == [Result("", True, 0.0, 1.0)]
    assert said(transcript, AckMessage(32_000, 15_999)) == []


def test_several_flushes_at_once() -> None:
    transcript = Transcript(RATE)
    for _ in range(3):
        transcript.sent(SECOND)
        transcript.flushed()
    assert said(transcript, AckMessage(48_000, 48_000)) == [Result("", True, 0.0, 3.0)]


def test_no_more_is_final_than_was_sent() -> None:
    assert said(sent(1), AckMessage(99_000, 99_000)) == [Result("", True, 0.0, 1.0)]


def test_what_says_nothing_of_speech() -> None:
    assert said(sent(), ClosedMessage("stopped", 0, 0, 0.0, 1)) == []
    assert list(Transcript(RATE).rest()) == []
