"""What the guards reject, and what people do say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.whisper.guards import GuardRules, Rejection, compression_ratio, judge, without_loop
from backends.whisper.window import Hypothesis, Piece


def said(text: str) -> tuple[Piece, ...]:
    return tuple(Piece(" " + word, (i,)) for i, word in enumerate(text.split()))


def signs(text: str) -> tuple[Piece, ...]:
    """A script without spaces, a piece for each character."""
    return tuple(Piece(char, (i,)) for i, char in enumerate(text))


def heard(pieces: Sequence[Piece], log_probability: float = -0.3, no_speech_probability: float = 0.0) -> Hypothesis:
    return Hypothesis(tuple(pieces), log_probability, no_speech_probability, 0.0, "en")


def verdict(text: str, **options: Any) -> Rejection | None:
    return judge(heard(said(text)), **options)


def texts(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces).strip()


@pytest.mark.parametrize(
    ("log_probability", "no_speech_probability", "rejection"),
    [
        (-0.3, 0.0, None),
        (-0.3, 0.99, None),  # surely heard, whatever the first token says
        (-1.0, 0.6, None),
        (-1.01, 0.6, Rejection.LOG_PROBABILITY),
        (-1.01, 0.61, Rejection.NO_SPEECH),
    ],
)
def test_probabilities_are_judged_as_faster_whisper_does(
    log_probability: float, no_speech_probability: float, rejection: Rejection | None
) -> None:
    assert judge(heard(said("thank you"), log_probability, no_speech_probability)) is rejection


def test_silence_is_not_tried_again() -> None:
    assert [rejection for rejection in Rejection if not rejection.retry] == [Rejection.NO_SPEECH]


@pytest.mark.parametrize("pieces", [(), said("..."), signs("。")])
def test_a_hypothesis_without_words_needs_no_rejection(pieces: tuple[Piece, ...]) -> None:
    assert judge(heard(pieces, -9.0, 1.0), speech_seconds=0.0) is None


def test_the_rules_can_be_set() -> None:
    quiet = heard(said("thank you"), -0.6, 0.5)
    assert judge(quiet, rules=GuardRules(no_speech_threshold=0.4)) is None
    strict = GuardRules(no_speech_threshold=0.4, log_probability_threshold=-0.5)
    assert judge(quiet, rules=strict) is Rejection.NO_SPEECH
    assert verdict("no no", rules=GuardRules(loop_repeats=(2,))) is Rejection.LOOP
    assert verdict("we said so", rules=GuardRules(compression_threshold=0.1)) is Rejection.COMPRESSION
    assert verdict("a b", speech_seconds=1.0, rules=GuardRules(words_per_second=1.0)) is Rejection.RATE
    assert verdict("abcde", speech_seconds=1.0, rules=GuardRules(characters_per_second=2.0)) is Rejection.RATE


# Loops


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("no no no", 0.6),
        ("no no no no", 0.8),
        ("No, no, no, no, no!", 1.0),
        ("thank you thank you thank you", 1.5),
        ("bye bye bye bye bye bye", 1.5),
        ("come on come on come on come on", 1.6),
        ("I don't know I don't know I don't know", 2.5),
        ("check one two check one two check one two", 3.0),
        ("zero zero seven zero zero seven", 2.0),
        ("that that is is that that is not is not", 2.5),
    ],
)
def test_what_people_repeat_passes(text: str, seconds: float) -> None:
    assert verdict(text, speech_seconds=seconds) is None


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("you " * 8, "you"),
        ("so I said " + "no " * 12, "so I said no"),
        ("well thank you " + "very much " * 6, "well thank you very much"),
        ("I think that I think that I think that I think that I think that", "I think that"),
        ("We'll see. " * 3 + "we'll see " * 3, "We'll see."),
        ("one two three four five six seven eight " * 4, "one two three four five six seven eight"),
        ("a b " * 6 + "and then it went on", "a b"),
    ],
)
def test_a_loop_is_rejected_and_what_it_repeats_kept_once(text: str, kept: str) -> None:
    assert verdict(text) is Rejection.LOOP
    assert texts(without_loop(said(text))) == kept


def test_a_loop_of_characters_is_found_in_scripts_without_spaces() -> None:
    looping = signs("はい" + "ありがとう" * 6)
    assert judge(heard(looping)) is Rejection.LOOP
    assert texts(without_loop(looping)) == "はいありがとう"
    assert judge(heard(signs("ありがとう" * 4))) is None  # as four times a word or two
    assert judge(heard(signs("哈哈哈哈哈"))) is None


def test_punctuation_neither_hides_a_loop_nor_is_one() -> None:
    dotted = [piece for word in said("no " * 8) for piece in (word, Piece(",", (0,)))]
    assert judge(heard(dotted)) is Rejection.LOOP
    assert texts(without_loop(dotted)) == "no,"
    assert judge(heard([*said("wait"), *(Piece(".", (0,)) for _ in range(9))])) is None


def test_a_loop_is_found_across_the_forced_prefix() -> None:
    assert verdict("no no no", prefix=said("oh no no no no no")) is Rejection.LOOP
    assert verdict("no no no") is None
    assert verdict("very much", prefix=said("thank you " + "very much " * 5)) is Rejection.LOOP


def test_a_loop_within_the_prefix_is_not_the_continuations_fault() -> None:
    assert verdict("and then", prefix=said("no " * 9)) is None
    assert verdict("no", prefix=said("no " * 9)) is Rejection.LOOP


def test_the_first_loop_counts() -> None:
    assert texts(without_loop(said("a " + "b " * 8 + "c d " * 6))) == "a b"


def test_without_a_loop_everything_stays() -> None:
    pieces = said("no no no and so on")
    assert without_loop(pieces) == pieces
    assert without_loop(()) == ()


@given(st.lists(st.sampled_from("abc"), max_size=60))
def test_what_is_left_of_a_loop_loops_no_more(letters: list[str]) -> None:
    pieces = said(" ".join(letters))
    left = without_loop(pieces)
    assert pieces[: len(left)] == left
    assert judge(heard(left), rules=GuardRules(compression_threshold=99.0)) is None
    assert (left == pieces) is (judge(heard(pieces), rules=GuardRules(compression_threshold=99.0)) is None)


@given(
    st.lists(st.sampled_from("abcd"), max_size=6),
    st.lists(st.sampled_from("vwxyz"), min_size=1, max_size=8, unique=True),
    st.integers(8, 12),
)
def test_any_phrase_loops_when_it_comes_eight_times(before: list[str], phrase: list[str], times: int) -> None:
    """From the tenth word before it: whatever was said, the loop is found and cut back to one round."""
    text = before + phrase * times
    assert verdict(" ".join(text)) is Rejection.LOOP
    assert texts(without_loop(said(" ".join(text)))).split() == before + phrase


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(0, 30))
def test_a_prefix_changes_nothing_about_a_loop_that_reaches_the_end(letters: list[str], split: int) -> None:
    """Wherever the decoder was forced to: a loop that the continuation closes is found."""
    pieces = said(" ".join(letters))
    rules = GuardRules(compression_threshold=99.0)
    without_last = judge(heard(pieces[:-1]), rules=rules)
    if split < len(pieces) and without_last is None and judge(heard(pieces), rules=rules) is not None:
        assert judge(heard(pieces[split:]), prefix=pieces[:split], rules=rules) is Rejection.LOOP


# Compression


def test_text_that_compresses_too_well_is_rejected() -> None:
    text = "Thank you so much. Thank you very much. Thank you so so much. Thank you very very much. " * 2
    assert compression_ratio(text) > 2.4
    assert verdict(text) is Rejection.COMPRESSION
    assert judge(heard([Piece(" " + "a" * 60, (1,))])) is Rejection.COMPRESSION


def test_compression_is_reckoned_as_openai_does() -> None:
    assert compression_ratio("no " * 10 + "no") > 2.4 > compression_ratio("no " * 9 + "no")
    assert compression_ratio("é") == 2 / 10  # bytes, not characters


# Rates


@pytest.mark.parametrize(
    ("text", "seconds", "rejection"),
    [
        ("yes", 0.05, None),
        ("yes it is", 0.2, None),
        ("thanks for watching please subscribe", 0.1, Rejection.RATE),
        ("to be or not to be that is the question whether", 1.0, Rejection.RATE),
        ("to be or not to be that is the", 1.0, None),
        ("internationalization characteristically misunderstandings", 1.0, Rejection.RATE),
        ("internationalization characteristically", 1.0, None),
    ],
)
def test_nobody_speaks_that_fast(text: str, seconds: float, rejection: Rejection | None) -> None:
    assert verdict(text, speech_seconds=seconds) is rejection


def test_the_words_of_the_prefix_take_time_too() -> None:
    assert verdict("that is the question", speech_seconds=0.7) is None
    assert verdict("that is the question", speech_seconds=0.7, prefix=said("to be or not to be")) is Rejection.RATE


def test_a_character_of_chinese_takes_longer_than_a_letter() -> None:
    fast = "今天天气很好我们去公园散步吧然后一起吃晚饭看一场新电影"
    assert judge(heard(signs(fast)), speech_seconds=1.0) is Rejection.RATE
    assert judge(heard(signs(fast)), speech_seconds=4.0) is None


def test_vowel_signs_and_marks_take_no_time_of_their_own() -> None:
    thai = "ที่นี่มีที่กินดีที่สุดที่ฉันรู้จักในเมืองนี้ครับ"
    assert len(thai) > 35 * 1.0
    assert judge(heard(signs(thai)), speech_seconds=0.5) is None
    assert judge(heard(said("oui") + tuple(Piece(" -", (0,)) for _ in range(6))), speech_seconds=0.1) is None


def test_where_speech_is_unknown_any_rate_is_possible() -> None:
    assert verdict("to be or not to be that is the question whether it is nobler in mind to suffer") is None


def test_the_surest_reason_is_named() -> None:
    loop = said("you " * 40)
    assert judge(heard(loop, -2.0, 0.9), speech_seconds=0.1) is Rejection.NO_SPEECH
    assert judge(heard(loop, -2.0, 0.1), speech_seconds=0.1) is Rejection.LOOP
    assert judge(heard(said("a b c d e f g h"), -2.0, 0.1), speech_seconds=0.1) is Rejection.RATE
