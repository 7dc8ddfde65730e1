"""The streaming policy on lists of words, as no engine could produce them on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.whisper.agreement import (
    KEEP_SECONDS,
    WORD_SECONDS,
    Agreement,
    Cut,
    cut,
    forced_cut,
    joined_text,
    spoken,
    timed,
    words,
)
from backends.whisper.window import Piece

TRUTH = """
    so we walked along their river until sunset then two geese crossed above our heads while nobody had brought any
    camera which seemed rather sad because such moments pass quickly
"""
LENGTH = len(TRUTH.split())
NOISE = ("zebra", "hmm", "walk", "riverside", "thanks", "42")


def said(text: str, start: float | None = None, each: float = 0.5) -> tuple[Piece, ...]:
    """Words with their leading space; from `start` on with times, each half a second and 0.1 s less of it spoken."""
    pieces = []
    for i, word in enumerate(text.split()):
        begin = None if start is None else start + i * each
        end = None if begin is None else begin + each - 0.1
        pieces.append(Piece(" " + word, (i,), begin, end, None if begin is None else 0.9))
    return tuple(pieces)


def split(*texts: str) -> tuple[Piece, ...]:
    """Pieces as given."""
    return tuple(Piece(text, (i,)) for i, text in enumerate(texts))


def after(*continuations: str) -> Agreement:
    agreement = Agreement()
    for continuation in continuations:
        agreement.partial(said(continuation))
    return agreement


def state(agreement: Agreement) -> tuple[str, str]:
    return joined_text(agreement.committed), joined_text(agreement.tail)


def times(pieces: Sequence[Piece]) -> list[tuple[float, float]]:
    """To the millisecond; of words that have times only."""
    return [(round(w.start, 3), round(w.end, 3)) for w in pieces if w.start is not None and w.end is not None]


# What is the same word


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (" Hello,", "hello"),
        (" HELLO!", "hello"),
        ("“Straße”", "strasse"),
        ("\uff37\uff49\uff44\uff45\u3000\uff21", "widea"),
        (" e-mail", "email"),
        (" we\u2019re", "we're"),
        ("'bout", "bout"),
        (" 1,000.", "1,000"),
        ("%", "%"),
        ("zero\u200bwidth", "zerowidth"),
        (" ...", ""),
        ("。", ""),
        ("", ""),
        ("一二、", "一二"),
        ("สวัสดี", "สวัสดี"),
    ],
)
def test_spelling_that_is_not_heard_does_not_count(text: str, same: str) -> None:
    assert spoken(text) == same


@pytest.mark.parametrize(("one", "other"), [("were", "we're"), ("3.5", "35"), ("5%", "5"), ("10:30", "1030")])
def test_words_of_another_meaning_stay_apart(one: str, other: str) -> None:
    assert spoken(one) != spoken(other)


@given(st.text())
def test_spaces_and_quotation_marks_are_never_spoken(text: str) -> None:
    assert spoken(f' "{text}", ') == spoken(text)


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        ((" Hello", ",", " world", "!"), (" Hello,", " world!")),
        ((" twenty", "-five", " geese"), (" twenty-five", " geese")),
        ((" don", "'", "t"), (" don't",)),
        ((" -", " yes"), (" - yes",)),
        (("「", "は", "い", "」", "。"), ("「は", "い」。")),
        ((" ¿", "Qué", "?"), (" ¿Qué?",)),
        (("今", "日", "は"), ("今", "日", "は")),
        ((" 3", ".", "5"), (" 3.5",)),
        ((",", " then"), (", then",)),
        ((" see", " ("), (" see (",)),
        ((" ...",), ()),
        (("",), ()),
        ((), ()),
    ],
)
def test_pieces_make_words(pieces: tuple[str, ...], whole: tuple[str, ...]) -> None:
    assert tuple(word.text for word in words(split(*pieces))) == whole


def test_a_word_has_the_times_of_its_spoken_pieces() -> None:
    pieces = (
        Piece(" “", (1,), 0.0, 0.4, 0.1),
        Piece("twenty", (2,), 0.5, 0.8, 0.9),
        Piece("-five", (3, 4), 0.8, 1.1, 0.7),
        Piece("”", (5,), 1.1, 2.0, 0.2),
    )
    assert words(pieces) == (Piece(" “twenty-five”", (1, 2, 3, 4, 5), 0.5, 1.1, 0.7),)


def test_times_are_carried_over_by_tokens() -> None:
    aligned = (Piece(" Hel", (1,), 0.1, 0.2, 0.9), Piece("lo", (2,), 0.2, 0.4, 0.5), Piece(" you", (3,), 0.5, 0.7, 0.8))
    plain = (Piece(" Hello", (1, 2)), Piece(" you", (3,)), Piece(" there", (4,)))
    assert timed(plain, aligned) == (
        Piece(" Hello", (1, 2), 0.1, 0.4, 0.5),
        Piece(" you", (3,), 0.5, 0.7, 0.8),
        Piece(" there", (4,)),
    )


# LocalAgreement


def test_one_hypothesis_commits_nothing() -> None:
    agreement = after("the cat")
    assert state(agreement) == ("", "the cat")
    assert (agreement.text, agreement.stability, agreement.committed_length) == ("the cat", 0.0, 0)


def test_nothing_heard_is_not_stable() -> None:
    assert (Agreement().text, Agreement().stability) == ("", 0.0)


def test_what_two_hypotheses_share_is_committed_in_the_newest_spelling() -> None:
    agreement = after("the cat", "The cat, sat on")
    assert state(agreement) == ("The cat,", "sat on")
    assert agreement.committed_length == len("The cat,")
    assert agreement.stability == pytest.approx(8 / 15)


def test_the_last_word_is_never_committed() -> None:
    assert state(after("the cat", "the cat")) == ("the", "cat")


def test_settled_words_are_committed_to_the_last() -> None:
    agreement = after("the cat")
    agreement.partial(said("the cat"), settled=2)
    assert state(agreement) == ("the cat", "")
    assert agreement.stability == 1.0


@pytest.mark.parametrize(("settled", "committed"), [(0, ""), (1, ""), (2, "twenty-five"), (3, "twenty-five geese")])
def test_settled_counts_the_pieces_as_they_are_given(settled: int, committed: str) -> None:
    agreement = Agreement()
    agreement.partial(split(" twenty", "-five", " geese"))
    agreement.partial(split(" twenty", "-five", " geese"), settled=settled)
    assert state(agreement)[0] == committed


def test_each_hypothesis_is_compared_behind_what_was_committed_by_the_one_before() -> None:
    agreement = after("a b c", "a b c d")  # commits a b c
    agreement.partial(said("d e"))  # a continuation of a b c
    assert state(agreement) == ("a b c d", "e")
    agreement.partial(said("f g"))
    assert state(agreement) == ("a b c d", "f g")


def test_a_word_repeated_is_not_taken_for_the_committed_one() -> None:
    agreement = after("no no", "no no no")
    assert state(agreement) == ("no no", "no")
    agreement.partial(said("no yes"))
    assert state(agreement) == ("no no no", "yes")


def test_a_disagreement_stops_at_the_first_word_that_differs() -> None:
    assert state(after("a b c d e", "a b x d e")) == ("a b", "x d e")


def test_only_hypotheses_in_a_row_agree() -> None:
    assert state(after("a b c", "x y z", "a b c")) == ("", "a b c")


def test_words_split_otherwise_agree_where_both_have_an_end() -> None:
    agreement = after("in side the", "inside the house")
    assert state(agreement) == ("inside the", "house")
    assert state(after("carpet is", "car pet is old")) == ("car pet is", "old")
    assert state(after("carpet", "car is old")) == ("", "car is old")
    agreement = Agreement()
    agreement.partial(split("今日", "は", "い"))
    agreement.partial(split("今", "日は", "い", "い"))
    assert state(agreement) == ("今日はい", "い")


def test_a_hypothesis_that_stops_early_keeps_the_tail_once() -> None:
    agreement = after("a b c d", "a b.")
    assert state(agreement) == ("a", "b c d")
    agreement.partial(said("b c d e"))
    assert state(agreement) == ("a b c d", "e")


def test_a_hypothesis_that_stops_early_twice_gives_the_tail_up() -> None:
    agreement = after("a b c d", "a b", "b")
    assert state(agreement) == ("a", "b")


def test_an_empty_hypothesis_changes_nothing_the_first_time() -> None:
    agreement = after("a b c", "a b c d", "")
    assert state(agreement) == ("a b c", "d")
    agreement.partial(said("d e"))
    assert state(agreement) == ("a b c d", "e")


@pytest.mark.parametrize("nothing", ["", "..."])
def test_two_empty_hypotheses_take_the_tail_but_nothing_committed(nothing: str) -> None:
    agreement = after("a b c", "a b c d", nothing, nothing)
    assert state(agreement) == ("a b c", "")


def test_tails_are_given_up_one_at_a_time() -> None:
    agreement = after("a b c", "", "x y", "")
    assert state(agreement) == ("", "x y")


def test_text_has_no_space_in_front_and_committed_length_none_at_the_end() -> None:
    agreement = Agreement()
    for _ in range(2):
        agreement.partial(split(" a", " b ", "c"))
    assert agreement.text == "a b c"
    assert agreement.committed_length == len("a b")
    agreement.trim(1)
    assert agreement.text == "b c"


# Answers that come late


def test_an_answer_may_be_overtaken_by_the_one_before_it() -> None:
    agreement = after("a b")
    asked = agreement.position
    agreement.partial(said("a b c"))  # commits a b while the other is decoded
    agreement.partial(said("a b c d"), after=asked)
    assert state(agreement) == ("a b c", "d")


def test_a_late_answer_does_not_commit_its_last_word_either() -> None:
    agreement = after("a b c d")
    asked = agreement.position
    agreement.partial(said("a b c d"))
    agreement.partial(said("a b c d"), after=asked)
    assert state(agreement) == ("a b c", "d")


def test_a_late_answer_that_hears_the_committed_words_otherwise_doubles_none() -> None:
    agreement = after("the weather tomorrow is")
    asked = agreement.position
    agreement.partial(said("the weather tomorrow is fine"))
    agreement.partial(said("the whether tomorrow's fine I think"), after=asked)
    assert state(agreement) == ("the weather tomorrow is fine", "I think")


def test_an_answer_from_before_the_final_is_ignored() -> None:
    agreement = after("a b", "a b c")
    asked = agreement.position
    agreement.final(said("a b c"))
    agreement.partial(said("c d"), after=asked)
    assert agreement.text == ""
    for _ in range(2):
        agreement.partial(said("e f g h"), after=agreement.position)
    assert state(agreement) == ("e f g", "h")
    agreement.partial(said("c d e f g h i"), after=asked)
    assert state(agreement) == ("e f g", "h")


def test_an_answer_to_words_that_were_trimmed_since_is_ignored() -> None:
    agreement = after("a b")
    asked = agreement.position
    agreement.partial(said("a b c"))
    agreement.trim(1)
    agreement.partial(said("a b c d"), after=asked)
    assert state(agreement) == ("b", "c")


def test_an_answer_cannot_come_from_the_future() -> None:
    with pytest.raises(ValueError, match="after 1 of 0"):
        Agreement().partial(said("a"), after=1)


# Trimming


def test_trimming_takes_committed_words_and_the_rest_goes_on() -> None:
    agreement = after("a b c", "a b c d")
    assert joined_text(agreement.trim(2)) == "a b"
    assert state(agreement) == ("c", "d")
    agreement.partial(said("d e"))
    assert state(agreement) == ("c d", "e")
    assert joined_text(agreement.final(said("c d e"))) == "c d e"


def test_a_forced_trim_takes_words_of_the_tail() -> None:
    agreement = after("a b c d", "a x c d")
    assert joined_text(agreement.trim(2)) == "a x"
    assert state(agreement) == ("", "c d")
    agreement.partial(said("c d e"))
    assert state(agreement) == ("c d", "e")


@pytest.mark.parametrize("count", [-1, 4])
def test_no_more_is_trimmed_than_there_is(count: int) -> None:
    agreement = after("a b c", "a b c")
    with pytest.raises(ValueError, match="of 3 words"):
        agreement.trim(count)
    assert state(agreement) == ("a b", "c")


# Finals


def final(committed: str, hypothesis: str, heard_in: float | None = None) -> str:
    """The final of a window whose words were committed when it held so many seconds."""
    agreement = Agreement()
    for _ in range(2):
        agreement.partial(said(committed), settled=len(committed.split()), seconds=heard_in)
    assert state(agreement) == (committed, "")
    return joined_text(agreement.final(said(hypothesis, 0.0)))


@pytest.mark.parametrize(
    ("committed", "hypothesis", "text"),
    [
        ("", "the cat sat", "the cat sat"),
        ("the cat", "the cat sat", "the cat sat"),
        ("The cat,", "the cat sat", "The cat, sat"),
        ("the cat", "", "the cat"),
        ("the cat", "...", "the cat"),
        ("the cat sat", "the cat sad on a mat", "the cat sat on a mat"),
        ("the cat sat", "cat sat down", "the cat sat down"),
        ("the cat sat", "the big cat sat down", "the cat sat down"),
        ("the cat sat down", "the cat", "the cat sat down"),
        ("I uh went home", "I went home yesterday", "I uh went home yesterday"),
        ("uh yes", "yes I do", "uh yes I do"),
        ("yes", "oh yes it is", "yes it is"),
        ("we have 2", "we have two days", "we have 2 days"),
        ("the weather tomorrow is", "the whether tomorrow's fine", "the weather tomorrow is fine"),
        ("a database", "a data base is", "a database is"),
        ("Hello s", "hellos world", "Hello s world"),
        ("no no", "no no no", "no no no"),
        ("no no no", "no no", "no no no"),
        ("the cat", "the cat the dog", "the cat the dog"),
    ],
)
def test_a_final_goes_on_where_it_matches_the_committed_words_best(committed: str, hypothesis: str, text: str) -> None:
    assert final(committed, hypothesis) == text


def test_what_is_said_after_the_committed_words_were_heard_is_not_taken_for_them() -> None:
    assert final("we went home uh", "we went home yesterday", heard_in=0.9) == "we went home uh yesterday"
    assert final("some words nobody said", "other", heard_in=0.0) == "some words nobody said"
    late = Agreement()
    for _ in range(2):
        late.partial(said("some words"), settled=2, seconds=1.0)
    assert joined_text(late.final(said("quite another sentence", 2.0))) == "some words quite another sentence"


def test_the_bound_of_the_committed_words_moves_with_the_window() -> None:
    agreement = Agreement()
    agreement.partial(said("a b c d"), seconds=2.0)
    agreement.partial(said("a b c d"), seconds=2.5)
    agreement.trim(1, 1.8)
    assert joined_text(agreement.final(said("q r", 0.8))) == "b c q r"


def test_the_bound_is_that_of_the_hypothesis_before() -> None:
    agreement = Agreement()
    agreement.partial(said("a b"), seconds=1.0)
    agreement.partial(said("a b"), seconds=9.0)  # `a` was heard in the first second
    assert joined_text(agreement.final(said("q r", 2.0))) == "a q r"


def test_what_the_next_hypothesis_commits_was_heard_before_the_window_moved() -> None:
    agreement = Agreement()
    agreement.partial(said("a b c"), seconds=5.0)
    agreement.trim(1, 4.0)  # b c were heard in what is now the first second
    agreement.partial(said("b c"), settled=2, seconds=3.0)
    assert joined_text(agreement.final(said("q r", 2.0))) == "b c q r"


def test_joining_ends_nothing() -> None:
    agreement = after("a b c", "a b c d")
    assert joined_text(agreement.joined(said("a b c e", 0.0))) == "a b c e"
    assert state(agreement) == ("a b c", "d")


def test_words_keep_their_space_where_the_hypothesis_has_none_in_front() -> None:
    agreement = Agreement()
    for _ in range(2):
        agreement.partial(said("uh"), settled=1, seconds=0.1)
    hypothesis = (Piece("Hello", (1,), 1.0, 1.4), Piece(" you", (2,), 1.5, 1.9))
    assert joined_text(agreement.final(hypothesis)) == "uh Hello you"


def test_languages_without_spaces_get_none() -> None:
    agreement = Agreement()
    agreement.partial(split("今", "日", "は"))
    agreement.partial(split("今", "日", "は", "い"))
    assert agreement.text == "今日はい"
    assert joined_text(agreement.final(split("今", "日", "は", "い", "い", "天", "気"))) == "今日はいい天気"


def test_a_final_begins_anew() -> None:
    agreement = after("a b c", "a b c")
    agreement.final(said("a b c"))
    assert (agreement.committed, agreement.tail, agreement.text) == ((), (), "")
    agreement.partial(said("c d"))
    assert state(agreement) == ("", "c d")


def test_a_rejected_final_leaves_what_is_committed() -> None:
    agreement = after("a b c", "a b c")
    assert joined_text(agreement.rejected()) == "a b"
    assert agreement.text == ""
    assert agreement.rejected() == ()


def test_committed_words_get_the_times_of_their_matches() -> None:
    agreement = after("the cat sat", "the cat sat")
    result = agreement.final(said("the cad sat down", 1.0))
    assert [word.text for word in result] == [" the", " cat", " sat", " down"]
    assert times(result) == [(1.0, 1.4), (1.5, 1.9), (2.0, 2.4), (2.5, 2.9)]
    assert {word.probability for word in result} == {0.9}


def test_times_of_partial_hypotheses_are_not_kept() -> None:
    agreement = Agreement()
    for _ in range(2):
        agreement.partial(said("uh a", 7.0), settled=2)
    assert times(agreement.final(said("a", 1.0))) == [(0.4, 1.0), (1.0, 1.4)]


def test_two_words_share_the_time_of_the_one_they_match() -> None:
    agreement = Agreement()
    for _ in range(2):
        agreement.partial(said("data bases"), settled=2)
    result = agreement.final((Piece(" databases", (1,), 1.0, 1.9, 0.5),))
    assert times(result) == [(1.0, 1.4), (1.4, 1.9)]
    assert [word.probability for word in result] == [0.5, 0.5]


def test_one_word_spans_the_two_it_matches() -> None:
    agreement = Agreement()
    for _ in range(2):
        agreement.partial(said("databases"), settled=1)
    heard = (Piece(" data", (1,), 1.0, 1.4, 0.5), Piece(" bases", (2,), 1.4, 1.9, 0.7))
    assert [(w.start, w.end, w.probability) for w in agreement.final(heard)] == [(1.0, 1.9, 0.5)]


@pytest.mark.parametrize(
    ("committed", "hypothesis", "unmatched", "expected"),
    [
        ("a uh b", "a b", 1, (1.4, 1.5)),  # between its neighbours
        ("uh ah a b", "a b", 0, (0.0, 0.5)),  # as long before the first as words are
        ("a b uh", "a b", 2, (1.9, 1.9)),  # no room is known
    ],
)
def test_words_without_a_match_get_a_time_from_their_neighbours(
    committed: str, hypothesis: str, unmatched: int, expected: tuple[float, float]
) -> None:
    agreement = Agreement()
    for _ in range(2):
        agreement.partial(said(committed), settled=len(committed.split()))
    word = agreement.final(said(hypothesis, 1.0))[unmatched]
    assert times([word]) == [expected]
    assert word.probability is None


def test_a_last_word_without_a_match_lasts_no_longer_than_words_do() -> None:
    for bound, end in ((2.0, 2.0), (9.0, round(1.9 + WORD_SECONDS, 3))):
        agreement = Agreement()
        for _ in range(2):
            agreement.partial(said("a b uh"), settled=3, seconds=bound)
        word = agreement.final(said("a b", 1.0))[2]
        assert times([word]) == [(1.9, end)]


def test_where_nothing_has_a_time_no_word_gets_one() -> None:
    agreement = after("a b c", "a b c")
    assert {(word.start, word.end) for word in agreement.final(said("a x c d"))} == {(None, None)}
    agreement = after("a b c", "a b c")
    assert {(word.start, word.end) for word in agreement.final(())} == {(None, None)}


# Whatever the hypotheses are

TEXT = st.sampled_from(
    [
        " a",
        " A,",
        " b",
        " b.",
        " b ",
        " ab",
        "a",
        "-b",
        " c",
        " we're",
        " were",
        ",",
        " ...",
        " (",
        "。",
        "今",
        "日",
        "今日",
        "",
        " ",
    ]
)
PIECES = st.lists(st.builds(Piece, TEXT, st.tuples(st.integers(0, 3))), max_size=8)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("partial"), PIECES, st.none() | st.integers(0, 8), st.none() | st.floats(0, 30)),
        st.tuples(st.just("late"), PIECES, st.integers(0, 6), st.none() | st.floats(0, 30)),
        st.tuples(st.just("trim"), st.just([]), st.integers(0, 4), st.floats(0, 5)),
    ),
    max_size=12,
)


@given(STEPS, PIECES, st.booleans())
def test_what_is_committed_is_never_taken_back(
    steps: Sequence[tuple[str, list[Piece], int | None, float | None]], last: list[Piece], accepted: bool
) -> None:
    agreement = Agreement()
    for kind, pieces, number, seconds in steps:
        committed, promised = agreement.committed, agreement.text[: agreement.committed_length]
        if kind == "trim":
            count = min(number or 0, len(agreement.committed))
            assert agreement.trim(count, seconds or 0.0) == committed[:count]
            assert agreement.committed == committed[count:]
            continue
        if kind == "late":
            agreement.partial(pieces, after=max(0, agreement.position - (number or 0)), seconds=seconds)
        else:
            agreement.partial(pieces, settled=number, seconds=seconds)
        assert agreement.committed[: len(committed)] == committed
        assert agreement.text.startswith(promised)
        assert agreement.committed_length >= len(promised)
        assert 0.0 <= agreement.stability <= 1.0
    committed, promised = agreement.committed, agreement.text[: agreement.committed_length]
    result = agreement.final(last) if accepted else agreement.rejected()
    assert [word.text for word in result][: len(committed)] == [word.text for word in committed]
    assert joined_text(result).startswith(promised)
    assert joined_text(result).strip().startswith(promised)
    assert agreement.text == ""


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=6), max_size=8))
def test_what_is_committed_was_heard_twice(hypotheses: list[list[str]]) -> None:
    """Each word that is committed was at the same place of an earlier hypothesis, too, and was not the last."""
    agreement = Agreement()
    earlier: list[list[str]] = []
    for continuation in hypotheses:
        done = [word.text.strip() for word in agreement.committed]
        agreement.partial(said(" ".join(continuation)))
        now = [word.text.strip() for word in agreement.committed]
        if len(now) > len(done):
            whole = done + continuation
            assert now == whole[: len(now)]
            assert len(now) < len(whole)
            assert any(now == words[: len(now)] for words in earlier[-2:])  # one that stopped early may lie between
        earlier.append(done + continuation)


@given(PIECES)
def test_words_have_all_the_text_and_all_tokens(pieces: list[Piece]) -> None:
    whole = words(pieces)
    if whole:
        assert "".join(word.text for word in whole) == "".join(piece.text for piece in pieces)
        assert [t for word in whole for t in word.tokens] == [t for piece in pieces for t in piece.tokens]
    else:
        assert not any(spoken(piece.text) for piece in pieces)
    assert all(spoken(word.text) for word in whole)


def spoken_truth(count: int) -> tuple[Piece, ...]:
    return said(" ".join(TRUTH.split()[:count]), 0.3)


class Listener:
    """A decoder that hears the truth as far as the window goes, more or less."""

    def __init__(self, count: int, data: st.DataObject, noise: Sequence[str]) -> None:
        self.truth = spoken_truth(count)
        self.seconds = 0.3 + 0.5 * count
        self._data = data
        self._noise = noise

    def continuation(self, agreement: Agreement, trimmed: int, now: float) -> list[Piece]:
        """What follows the committed words in a window that reaches to `now`."""
        known = trimmed + len(agreement.committed)
        heard = [word for word in self.truth[known:] if word.start is not None and word.start < now]
        if heard and heard[-1].end is not None and heard[-1].end > now:  # its last word is not over
            size = self._data.draw(st.integers(1, len(heard[-1].text) - 1))
            heard[-1] = Piece(heard[-1].text[: size + 1], (0,))
        if self._noise and heard:
            for _ in range(self._data.draw(st.integers(0, 2))):
                heard[self._data.draw(st.integers(0, len(heard) - 1))] = Piece(
                    " " + self._data.draw(st.sampled_from(self._noise)), (0,)
                )
            heard = heard[: self._data.draw(st.integers(0, len(heard)))]  # it stops early
        return [Piece(word.text, word.tokens) for word in heard]


def stream(listener: Listener, data: st.DataObject) -> tuple[tuple[Piece, ...], Agreement]:
    """The words trimmed while the truth was heard, and the agreement as it stands at the end."""
    agreement = Agreement()
    gone: tuple[Piece, ...] = ()
    now = 0.0
    while now < listener.seconds:
        now += data.draw(st.floats(0.2, 2.0))
        agreement.partial(listener.continuation(agreement, len(gone), now), seconds=now)
        if len(agreement.committed) > 8:
            count = data.draw(st.integers(0, len(agreement.committed)))
            gone += agreement.trim(count)
    return gone, agreement


@given(st.integers(0, LENGTH), st.data())
def test_hypotheses_that_are_true_make_a_final_that_is(count: int, data: st.DataObject) -> None:
    listener = Listener(count, data, ())
    gone, agreement = stream(listener, data)
    assert [word.text for word in gone] == [word.text for word in listener.truth[: len(gone)]]
    assert agreement.final(listener.truth[len(gone) :]) == listener.truth[len(gone) :]


@given(st.integers(1, LENGTH), st.data())
def test_noise_doubles_no_word_and_loses_none_behind_it(count: int, data: st.DataObject) -> None:
    listener = Listener(count, data, NOISE)
    gone, agreement = stream(listener, data)
    known = [*gone, *agreement.committed]
    result = gone + agreement.final(listener.truth[len(gone) :])
    assert len(result) == len(listener.truth)
    assert [word.text for word in result[len(known) :]] == [word.text for word in listener.truth[len(known) :]]
    doubled = {word for word, times in Counter(word.text for word in result).items() if times > 1}
    assert not doubled & {word.text for word in listener.truth}


@given(st.integers(1, LENGTH), st.data())
def test_times_follow_each_other(count: int, data: st.DataObject) -> None:
    listener = Listener(count, data, NOISE)
    _, agreement = stream(listener, data)
    drop = data.draw(st.sets(st.integers(0, count - 1)))
    heard = tuple(word for i, word in enumerate(listener.truth) if i not in drop)
    result = agreement.final(heard)
    if not heard:
        assert all(word.start is None for word in result)
        return
    flat = [time for word in result for time in (word.start, word.end) if time is not None]
    assert len(flat) == 2 * len(result)
    assert flat == sorted(flat)
    assert flat[0] >= 0.0


# Where a window is cut


def rounded(place: Cut | None) -> tuple[int, float] | None:
    return None if place is None else (place.words, round(place.seconds, 3))


def window(text: str, committed: int, gaps: Sequence[tuple[float, float]] = ()) -> tuple[int, float] | None:
    """Ten seconds, the limit ten seconds; each word begins a second after the last, which has been over for 0.1 s."""
    return rounded(cut(said(text, 0.0, 1.0), committed, 10.0, gaps, 10.0))


def test_a_window_is_cut_as_late_as_possible() -> None:
    assert window("a b c d e f g h i j", 10) == (9, 8.95)


def test_enough_audio_stays() -> None:
    assert KEEP_SECONDS == 1.0
    assert rounded(cut(said("a b c", 7.0, 1.0), 3, 10.0, (), 10.0)) == (2, 8.95)
    assert rounded(cut(said("a b c", 7.1, 1.0), 3, 10.0, (), 10.0)) == (1, 8.05)


def test_only_committed_words_are_cut_off() -> None:
    assert window("a b c d e f g h i j", 6) == (6, 5.95)


def test_a_window_is_not_cut_for_little() -> None:
    assert window("a b c d e f g h i j", 4) is None
    assert window("a b c d e f g h i j", 0) is None
    assert window("", 0) is None
    assert cut(said("a b c d e f g h"), 8, 10.0, (), 10.0) is None


def test_the_end_of_a_sentence_is_better_than_a_pause_and_a_pause_than_nothing() -> None:
    pause = [(6.85, 7.1)]
    assert window("a b c d e f g h i j", 10, gaps=pause) == (7, 6.975)
    assert window("a b c d e f. g h i j", 10, gaps=pause) == (6, 5.95)
    assert window("a b c d e f. g. h i j", 10) == (7, 6.95)
    assert window("a b c. d e f g h i j", 10) == (9, 8.95)  # too far back
    assert window("a b c d e f. g. h i j", 10, gaps=[(5.8, 6.1)]) == (6, 5.95)


@pytest.mark.parametrize(
    "end", [".", "?", "!", "…", '."', ".”", "。", "」。", "\uff1f", "؟", "।", "...", "\uff01\uff09"]
)
def test_sentences_end_in_many_ways(end: str) -> None:
    assert window(f"a b c d e f{end} g h i j", 10) == (6, 5.95)


@pytest.mark.parametrize("mark", [",", "、", ";", "-", "'", ""])
def test_not_every_mark_ends_a_sentence(mark: str) -> None:
    assert window(f"a b c d e f{mark} g h i j", 10) == (9, 8.95)


def test_a_pause_is_where_it_is_heard_rather_than_where_words_are_aligned() -> None:
    words = (Piece(" a", (1,), 5.0, 6.0), Piece(" b", (2,), 6.05, 9.5))
    assert rounded(cut(words, 1, 10.0, [(6.1, 6.2)], 10.0)) == (1, 6.15)
    assert rounded(cut(words, 1, 10.0, [(8.0, 8.5)], 10.0)) == (1, 6.025)


def test_words_that_overlap_are_cut_between() -> None:
    words = (Piece(" a", (1,), 5.0, 6.2), Piece(" b", (2,), 6.0, 7.0))
    assert rounded(cut(words, 1, 10.0, (), 10.0)) == (1, 6.1)


def test_a_window_at_its_limit_keeps_two_words() -> None:
    assert rounded(forced_cut(said("a b c d e f g h i j", 0.0, 1.0), 10.0)) == (8, 7.95)
    assert rounded(forced_cut(said("a b c d e f g h i j", 0.0, 1.0), 10.0, [(7.8, 8.0)])) == (8, 7.9)


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        ((), (0, 5.0)),
        (said("a", 0.0), (1, 5.0)),
        (said("a b c", 0.0), (3, 5.0)),  # silence behind them
        (said("a b c", 8.0), (1, 8.45)),
        (said("a b", 6.0), (1, 6.45)),
        (said("a", 6.0), (1, 6.4)),
        (said("a b c d", 3.9), (3, 5.35)),
        (said("a b c"), (3, 5.0)),
        ((Piece(" a", (1,), 0.0, 11.0),), (1, 10.0)),
        (said("a b c", 9.9), (3, 10.0)),
    ],
)
def test_a_window_at_its_limit_is_always_cut(pieces: tuple[Piece, ...], found: tuple[int, float]) -> None:
    assert rounded(forced_cut(pieces, 10.0)) == found


def pairs(times: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(times[::2], times[1::2], strict=False))


def test_a_forced_cut_leaves_no_committed_word_behind() -> None:
    late = (*said("a", 0.0), *said("b c d", 8.0))
    assert [rounded(forced_cut(late, 10.0, committed=n)) for n in range(5)] == [
        (2, 8.45),
        (2, 8.45),
        (2, 8.45),
        (3, 8.95),
        (4, 9.4),
    ]


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[Piece, ...], float, list[tuple[float, float]]]:
    """Words and gaps anywhere in a window; some words have no time."""
    seconds = draw(st.floats(1.0, 40.0))
    times = pairs(sorted(draw(st.lists(st.floats(0.0, seconds), max_size=20))))
    texts = draw(st.lists(st.sampled_from([" a", " b.", " c,", " -"]), min_size=len(times), max_size=len(times)))
    aligned = draw(st.lists(st.booleans(), min_size=len(times), max_size=len(times)))
    pieces = tuple(
        Piece(text, (1,), *(time if known else (None, None)))
        for text, time, known in zip(texts, times, aligned, strict=True)
    )
    return pieces, seconds, pairs(sorted(draw(st.lists(st.floats(0.0, seconds), max_size=8))))


@given(windows(), st.integers(0, 10), st.floats(1.0, 30.0))
def test_a_cut_leaves_a_window_that_is_short_and_not_too_short(
    found: tuple[tuple[Piece, ...], float, list[tuple[float, float]]], committed: int, limit: float
) -> None:
    pieces, seconds, gaps = found
    place = cut(pieces, committed, seconds, gaps, limit)
    if place is not None:
        assert 0 < place.words <= min(committed, len(pieces))
        assert KEEP_SECONDS - 1e-9 <= seconds - place.seconds <= limit / 2 + 1e-9
        assert place.seconds > 0


@given(windows())
def test_a_forced_cut_halves_the_window_at_least(
    found: tuple[tuple[Piece, ...], float, list[tuple[float, float]]],
) -> None:
    pieces, seconds, gaps = found
    place = forced_cut(pieces, seconds, gaps)
    assert 0 <= place.words <= len(pieces)
    assert seconds / 2 <= place.seconds <= seconds
