"""What responses become, without a socket: messages in, results out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.cloud import speech_v1, speech_v2
from google.protobuf import json_format

from backends.base import BackendError, RecognitionConfig, Result, Word
from backends.google.api import API
from backends.google.results import Transcript

RATE = 32_000  # bytes a second
LOUD = b"\x00\x40" * 1_600
SILENT = bytes(3_200)
FAINT = b"\x3f\x00" * 1_600  # 63 of 32,768

RESPONSES: dict[str, Any] = {
    "v1": speech_v1.StreamingRecognizeResponse,
    "v2": speech_v2.StreamingRecognizeResponse,
}


@pytest.fixture(params=RESPONSES)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def heard(version: str, audio: bytes = b"", config: RecognitionConfig | None = None, **options: Any) -> Transcript:
    """A transcript that was told of so much audio."""
    transcript = Transcript(API[version].fields, config or RecognitionConfig(), **options)
    for i in range(0, len(audio), 3_200):
        transcript.sent(audio[i : i + 3_200])
    return transcript


def response(version: str, *results: dict[str, Any], **fields: Any) -> Any:
    """A response as it comes off the wire; times are named as in v1."""
    text = json.dumps({"results": results, **fields})
    if version == "v2":
        for old, new in (
            ("resultEndTime", "resultEndOffset"),
            ("startTime", "startOffset"),
            ("endTime", "endOffset"),
            ("speechEventTime", "speechEventOffset"),
        ):
            text = text.replace(f'"{old}"', f'"{new}"')
    return json_format.Parse(text, RESPONSES[version].pb()())


def final(text: str, end: float, *words: tuple[str, float, float], **fields: Any) -> dict[str, Any]:
    alternative: dict[str, Any] = {"transcript": text, "confidence": 0.875}
    alternative["words"] = [{"word": w, "startTime": f"{a:.3f}s", "endTime": f"{b:.3f}s"} for w, a, b in words]
    return {"alternatives": [alternative], "isFinal": True, "resultEndTime": f"{end:.3f}s", **fields}


def interim(text: str, end: float, stability: float = 0.0) -> dict[str, Any]:
    return {"alternatives": [{"transcript": text}], "resultEndTime": f"{end:.3f}s", "stability": stability}


def test_a_final_with_words(version: str) -> None:
    transcript = heard(version, LOUD * 20)
    words = [("hello", 0.2, 0.5), ("world", 0.6, 1.1)]
    (result,) = transcript.take(response(version, final(" hello world", 1.2, *words, languageCode="en-us")))
    assert result == Result(
        "hello world",
        True,
        0.2,
        1.2,
        (Word("hello", 0.2, 0.5), Word("world", 0.6, 1.1)),
        confidence=0.875,
        language="en-us",
    )


def test_a_final_without_words_begins_where_the_last_one_ended(version: str) -> None:
    transcript = heard(version, LOUD * 40)
    spans = [
        (result.start, result.end)
        for end in (1.2, 2.5)
        for result in transcript.take(response(version, final("x", end)))
    ]
    assert spans == [(0.0, 1.2), (1.2, 2.5)]


def test_a_final_ends_behind_its_last_word(version: str) -> None:
    transcript = heard(version, LOUD * 20)
    (result,) = transcript.take(response(version, final("hello", 1.0, ("hello", 0.2, 1.3))))
    assert result.end == 1.3


def test_a_final_without_an_end_covers_what_its_partial_did(version: str) -> None:
    """Else it would be said, and its audio heard again by the next stream."""
    transcript = heard(version, LOUD * 40)
    list(transcript.take(response(version, interim("hello", 1.5))))
    (result,) = transcript.take(response(version, final("hello", 0.0)))
    assert (result.text, result.start, result.end) == ("hello", 0.0, 1.5)
    (later,) = transcript.take(response(version, final("world", 0.0)))
    assert (later.text, later.start, later.end) == ("world", 1.5, 3.0)  # nothing is known: all but the last second


def test_a_final_stays_inside_of_the_audio_and_behind_the_last_one(version: str) -> None:
    transcript = heard(version, LOUD * 10)
    (first,) = transcript.take(response(version, final("a", 9.0, ("a", 0.5, 8.0))))
    assert (first.start, first.end, first.words[0].end) == (0.5, 1.0, 1.0)
    (second,) = transcript.take(response(version, final("b", 0.3, ("b", 0.1, 0.3))))
    assert (second.start, second.end) == (1.0, 1.0)


def test_words_only_if_wanted_but_their_times_count(version: str) -> None:
    transcript = heard(version, LOUD * 20, RecognitionConfig(words=False))
    (result,) = transcript.take(response(version, final("hello", 1.0, ("hello", 0.2, 1.3))))
    assert (result.words, result.start, result.end) == ((), 0.2, 1.3)


def test_unset_numbers_are_none(version: str) -> None:
    transcript = heard(version, LOUD * 20)
    plain = final("hello", 1.0, ("hello", 0.2, 0.9))
    plain["alternatives"][0].pop("confidence")
    results = list(transcript.take(response(version, plain, interim("and", 1.5))))
    assert [r.confidence for r in results] == [None, None]
    assert results[0].words[0].confidence is None
    assert results[0].words[0].speaker is None
    assert results[1].stability is None
    assert results[0].language is None


def test_a_final_comes_before_the_interim_of_its_response(version: str) -> None:
    transcript = heard(version, LOUD * 20)
    results = list(transcript.take(response(version, final("one", 1.0), interim(" two", 1.5, 0.5))))
    assert [(r.text, r.is_final, r.start, r.end) for r in results] == [
        ("one", True, 0.0, 1.0),
        ("two", False, 1.0, 1.5),
    ]


def test_interim_results_are_one(version: str) -> None:
    transcript = heard(version, LOUD * 20)
    parts = interim("to be", 1.0, 0.875), interim(" or not to be", 1.5, 0.125)
    (result,) = transcript.take(response(version, *parts))
    assert (result.text, result.end, result.stability) == ("to be or not to be", 1.5, 0.125)


def test_no_interim_results_if_not_wanted(version: str) -> None:
    transcript = heard(version, LOUD * 20, RecognitionConfig(partials=False))
    assert not list(transcript.take(response(version, interim("to be", 1.0))))


@pytest.mark.parametrize("empty", [{}, {"alternatives": []}, {"alternatives": [{}]}])
def test_empty_results(version: str, empty: dict[str, Any]) -> None:
    transcript = heard(version, LOUD * 20)
    assert not list(transcript.take(response(version, empty)))
    (result,) = transcript.take(response(version, {**empty, "isFinal": True, "resultEndTime": "1s"}))
    assert result == Result("", True, 0.0, 1.0)


def test_speech_that_begins(version: str) -> None:
    transcript = heard(version, LOUD * 20)
    begin = response(version, speechEventType="SPEECH_ACTIVITY_BEGIN", speechEventTime="0.5s")
    assert list(transcript.take(begin)) == [Result("", False, 0.5, 0.5)]
    for other in ("SPEECH_ACTIVITY_END", "END_OF_SINGLE_UTTERANCE"):
        assert not list(transcript.take(response(version, speechEventType=other)))


def test_an_error_inside_of_a_response() -> None:
    transcript = heard("v1", LOUD)
    with pytest.raises(BackendError) as caught:
        list(transcript.take(response("v1", error={"code": 11, "message": "Exceeded maximum allowed stream duration"})))
    assert caught.value.code == "stream_limit"


def test_speakers(version: str) -> None:
    """Google may repeat the words of earlier finals, with labels that it corrected: they are not said again."""
    transcript = heard(version, LOUD * 40, diarization=True)
    list(transcript.take(response(version, final("hello", 1.0, ("hello", 0.2, 0.9)))))
    again = final("world", 2.0, ("hello", 0.2, 0.9), ("world", 1.2, 1.9))
    again["alternatives"][0]["words"][1]["speakerLabel"] = "2"
    (result,) = transcript.take(response(version, again))
    assert result.words == (Word("world", 1.2, 1.9, speaker="2"),)
    assert result.start == 1.2


def test_speakers_whose_repeated_words_end_a_little_later(version: str) -> None:
    transcript = heard(version, LOUD * 40, diarization=True)
    list(transcript.take(response(version, final("a b", 1.0, ("a", 0.1, 0.5), ("b", 0.6, 1.0)))))
    again = final("c", 2.5, ("a", 0.1, 0.5), ("b", 0.6, 1.02), ("c", 2.0, 2.5))
    (result,) = transcript.take(response(version, again))
    assert result.words == (Word("c", 2.0, 2.5),)
    assert result.start == 2.0


# Silence


def test_silence_is_closed_as_it_passes(version: str) -> None:
    transcript = heard(version, SILENT * 39)
    assert not transcript.claimable
    transcript.sent(SILENT)
    assert list(transcript.claim()) == [Result("", True, 0.0, 3.0)]
    assert not transcript.claimable
    for _ in range(30):
        transcript.sent(FAINT)
    assert list(transcript.claim()) == [Result("", True, 3.0, 6.0)]
    assert list(transcript.rest()) == [Result("", True, 6.0, 7.0)]


def test_nothing_is_claimed_after_a_sound(version: str) -> None:
    transcript = heard(version, LOUD + SILENT * 300)
    assert not transcript.quiet
    assert not transcript.claimable
    assert not list(transcript.claim())


def test_a_partial_stands_in_the_way(version: str) -> None:
    transcript = heard(version, SILENT * 100)
    list(transcript.take(response(version, interim("hm", 1.0))))
    assert not transcript.claimable


def test_silence_after_a_final_that_covers_the_sound(version: str) -> None:
    """To the sample: a final may end inside of the chunk where the sound does."""
    chunk = LOUD[:1_600] + SILENT[:1_600]
    transcript = heard(version, LOUD * 9 + chunk + SILENT * 40)
    list(transcript.take(response(version, final("hello", 0.94))))
    assert not transcript.claimable
    transcript = heard(version, LOUD * 9 + chunk + SILENT * 40)
    list(transcript.take(response(version, final("hello", 0.95))))
    assert list(transcript.claim()) == [Result("", True, 0.95, 4.0)]


def test_the_rest(version: str) -> None:
    transcript = heard(version, LOUD * 20)
    list(transcript.take(response(version, final("hello", 1.0))))
    assert list(transcript.rest()) == [Result("", True, 1.0, 2.0)]
    assert not list(transcript.rest())


def test_a_partial_that_google_leaves_open_is_kept(version: str) -> None:
    transcript = heard(version, LOUD * 20)
    list(transcript.take(response(version, interim("hello", 1.0))))
    assert list(transcript.rest()) == [Result("hello", True, 0.0, 2.0)]
