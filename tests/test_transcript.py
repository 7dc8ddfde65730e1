from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Word
from bridge.protocols import events, native
from bridge.transcript import (
    CUE_LINES,
    EXTENSIONS,
    FORMATS,
    LINE_CHARS,
    Segment,
    cues,
    to_json,
    to_srt,
    to_text,
    to_vtt,
    word_errors,
)

HELLO = Segment(
    "hello there",
    0.5,
    1.25,
    (Word("hello", 0.5, 0.8, 0.75, "A"), Word("there", 0.9, 1.25)),
    0.5,
)
SILENCE = Segment("", 1.25, 3.0)
LATE = Segment("an hour later", 3725.0, 3726.5)


def test_text_is_one_line_for_each_final_with_words() -> None:
    assert to_text([HELLO, SILENCE, LATE]) == "hello there\nan hour later\n"
    assert to_text([]) == ""


def test_json_holds_text_segments_and_words() -> None:
    assert json.loads(to_json([HELLO, SILENCE, LATE])) == {
        "text": "hello there an hour later",
        "segments": [
            {
                "text": "hello there",
                "start": 0.5,
                "end": 1.25,
                "confidence": 0.5,
                "words": [
                    {"text": "hello", "start": 0.5, "end": 0.8, "confidence": 0.75, "speaker": "A"},
                    {"text": "there", "start": 0.9, "end": 1.25},
                ],
            },
            {"text": "an hour later", "start": 3725.0, "end": 3726.5, "words": []},
        ],
    }


def test_json_keeps_letters_readable() -> None:
    assert "grüß gött" in to_json([Segment("grüß gött", 0, 1)])


def test_srt() -> None:
    assert to_srt([HELLO, SILENCE, LATE]) == (
        "1\n00:00:00,500 --> 00:00:01,250\nhello there\n\n2\n01:02:05,000 --> 01:02:06,500\nan hour later\n"
    )
    assert to_srt([]) == ""


def test_vtt() -> None:
    assert to_vtt([HELLO, SILENCE, LATE]) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.250\nhello there\n\n01:02:05.000 --> 01:02:06.500\nan hour later\n"
    )
    assert to_vtt([]) == "WEBVTT\n"


def test_markup_is_defused() -> None:
    segment = Segment("<b>R&D</b> --> {\\an8}\n\n2", 0, 1)
    assert to_vtt([segment]).splitlines()[3:] == ["&lt;b&gt;R&amp;D&lt;/b&gt; --&gt; {\\an8} 2"]
    assert to_srt([segment]).splitlines()[2:] == ["‹b›R&D‹/b› --› {/an8} 2"]  # noqa: RUF001


def test_control_characters_are_dropped() -> None:
    assert cues([Segment("a\x00b\x1b c\ud800", 0, 1)])[0].lines == ("ab c",)
    assert cues([Segment("\x00\n", 0, 1)]) == []


def test_long_final_is_cut_at_word_times() -> None:
    words = tuple(Word(f"word{i:02}", i + 0.25, i + 0.75) for i in range(20))
    result = cues([Segment(" ".join(word.text for word in words), 0.0, 30.0, words)])
    assert [cue.lines for cue in result] == [
        ("word00 word01 word02 word03 word04", "word05 word06 word07 word08 word09"),
        ("word10 word11 word12 word13 word14", "word15 word16 word17 word18 word19"),
    ]
    assert [(cue.start_ms, cue.end_ms) for cue in result] == [(250, 9750), (10250, 19750)]


def test_long_final_without_word_times_is_cut_in_proportion() -> None:
    result = cues([Segment(" ".join(["abcd"] * 20), 10.0, 20.0)])
    assert [(cue.start_ms, cue.end_ms) for cue in result] == [(10000, 17000), (17000, 20000)]


def test_words_that_do_not_match_the_text_are_not_trusted() -> None:
    assert cues([Segment("three words here", 1.0, 2.0, (Word("other", 7.0, 8.0),))])[0].end_ms == 2000


def test_word_wider_than_a_line_is_broken() -> None:
    result = cues([Segment("x" * 100, 0.0, 1.0)])
    assert [line for cue in result for line in cue.lines] == ["x" * 42, "x" * 42, "x" * 16]
    assert [(cue.start_ms, cue.end_ms) for cue in result] == [(0, 840), (840, 1000)]


def test_lines_are_balanced() -> None:
    text = "we leave in the morning and come back before nine"
    assert cues([Segment(text, 0, 1)])[0].lines == ("we leave in the morning", "and come back before nine")


def test_segment_of_both_layers() -> None:
    event = events.Final(7, "hello there", 0.5, 1.25, HELLO.words, 0.5, "en-US")
    message = native.FinalMessage(
        7,
        "hello there",
        0.5,
        1.25,
        tuple(native.WordObject(w.text, w.start, w.end, w.confidence, w.speaker) for w in HELLO.words),
        0.5,
    )
    assert Segment.of(event) == Segment.of(message) == HELLO


def test_every_format_has_an_extension() -> None:
    assert FORMATS.keys() == EXTENSIONS.keys()


times = st.floats(min_value=0, max_value=1e5, allow_nan=False)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    start, end = sorted((draw(times), draw(times)))
    if draw(st.booleans()):
        return Segment(draw(st.text(max_size=150)), start, end)
    texts = draw(st.lists(st.text("abcßñ日本<>&{}-\\'", min_size=1, max_size=60), max_size=20))
    bounds = sorted(draw(st.lists(times, min_size=2 * len(texts), max_size=2 * len(texts))))
    words = tuple(Word(t, bounds[2 * i], bounds[2 * i + 1]) for i, t in enumerate(texts))
    return Segment(" ".join(texts), start, end, words)


@given(st.lists(segments(), max_size=5))
def test_cues_are_never_empty_and_never_go_back(finals: list[Segment]) -> None:
    end = 0
    for cue in cues(finals):
        assert end <= cue.start_ms < cue.end_ms
        assert 1 <= len(cue.lines) <= CUE_LINES
        assert all(line and line == line.strip() and len(line) <= LINE_CHARS for line in cue.lines)
        end = cue.end_ms


@given(segments())
def test_cues_keep_every_character(final: Segment) -> None:
    shown = "".join("".join(cue.lines) for cue in cues([final])).replace(" ", "")
    kept = [c for c in final.text if not c.isspace() and c.isprintable()]
    assert [c for c in shown if c.isprintable()] == kept


STAMP = r"\d\d+:[0-5]\d:[0-5]\d"


@given(st.lists(segments(), max_size=5))
def test_srt_and_vtt_can_be_taken_apart_again(finals: list[Segment]) -> None:
    expected = len(cues(finals))
    srt = to_srt(finals)
    assert len(re.findall(rf"^\d+\n{STAMP},\d{{3}} --> {STAMP},\d{{3}}\n", srt, re.MULTILINE)) == expected
    assert srt.count("-->") == expected
    assert len([block for block in srt.split("\n\n") if block]) == expected
    vtt = to_vtt(finals)
    assert vtt.startswith("WEBVTT\n")
    assert vtt.count("-->") == expected
    assert len([block for block in vtt.rstrip("\n").split("\n\n") if block]) == expected + 1
    srt.encode()
    vtt.encode()


@given(st.lists(segments(), max_size=5))
def test_json_can_be_read_back(finals: list[Segment]) -> None:
    assert len(json.loads(to_json(finals))["segments"]) == sum(1 for final in finals if final.text.strip())


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [
        ("", "", (0, 0)),
        ("Eight of spades, four of clubs.", "eight of spades four of clubs", (0, 6)),
        ("one two three", "one three", (1, 3)),
        ("one two three", "one too three four", (2, 3)),
        ("it's 'quoted'", "its quoted", (1, 2)),
        ("one", "", (1, 1)),
        ("", "one", (1, 0)),
    ],
)
def test_word_errors(reference: str, hypothesis: str, errors: tuple[int, int]) -> None:
    assert word_errors(reference, hypothesis) == errors
