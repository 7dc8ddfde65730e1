"""The recognizer itself, without processes: the real engine on real speech."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from backends import pocketsphinx_recognizer
from backends.base import Result, Word
from backends.pocketsphinx_recognizer import Cepstra, Ears, Recognizer, Utterance, add_phrases, distance, quietest
from bench.noises import NOISES, at_level, to_pcm16
from tests.speech import CARDS, SECOND, recording

pocketsphinx = pytest.importorskip("pocketsphinx")


@pytest.fixture(scope="module")
def shared_decoder() -> Any:
    return pocketsphinx_recognizer.load({})


@pytest.fixture
def decoder(shared_decoder: Any) -> Iterator[Any]:
    """A decoder as a fresh stream finds it."""
    mean = shared_decoder.get_cmn(False)
    yield shared_decoder
    shared_decoder.activate_search("_default")
    shared_decoder.set_cmn(mean)


@pytest.fixture
def commands(decoder: Any) -> Any:
    """A decoder for card names only: ten times as fast as free speech."""
    assert add_phrases(decoder, "cards", CARDS) == 0
    decoder.activate_search("cards")
    return decoder


def recognizer(decoder: Any, **options: Any) -> Recognizer:
    return Recognizer(decoder, Ears(), **options)


def recognize(recognizer: Recognizer, audio: bytes, chunk: int = 3_200) -> list[Result]:
    results = [r for at in range(0, len(audio), chunk) for r in recognizer.feed(audio[at : at + chunk])]
    return results + list(recognizer.end())


def finals(results: list[Result]) -> list[Result]:
    return [result for result in results if result.is_final]


def said(results: list[Result]) -> str:
    return " ".join(result.text for result in finals(results) if result.text)


def noise(seconds: float, level: int) -> bytes:
    chance = random.Random(7)
    samples = (round(chance.gauss(0, level)) for _ in range(round(seconds * pocketsphinx_recognizer.SAMPLE_RATE)))
    return b"".join(max(-32768, min(32767, sample)).to_bytes(2, "little", signed=True) for sample in samples)


def test_free_speech_is_recognized_with_times_and_confidences(decoder: Any) -> None:
    results = recognize(recognizer(decoder), recording("cards-005.wav") + bytes(SECOND))
    assert said(results) == "eight of spades four of clubs seven of hearts"
    final = finals(results)[0]
    assert [word.text for word in final.words] == final.text.split()
    times = [time for word in final.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert final.start <= times[0]
    assert times[-1] <= final.end
    assert all(word.confidence is not None and 0 <= word.confidence <= 1 for word in final.words)
    assert final.confidence is not None
    partials = [result for result in results if not result.is_final]
    assert partials[0].text == ""
    assert partials[0].start == final.start
    assert len({partial.text for partial in partials}) > 5
    assert all(a.text != b.text for a, b in pairwise(partials[1:]))


def test_the_outcome_does_not_depend_on_the_chunks(commands: Any) -> None:
    audio = recording("cards-005.wav") + bytes(7 * SECOND) + recording("cards-001.wav")
    mean = commands.get_cmn(False)
    outcomes = []
    for chunk in (32, 3_200, 10 * SECOND, 958):
        commands.set_cmn(mean)
        outcomes.append(recognize(recognizer(commands), audio, chunk))
    assert said(outcomes[0]) == "eight of spades four of clubs seven of hearts ten of clubs"
    assert all(outcome == outcomes[0] for outcome in outcomes)


@pytest.mark.parametrize("cut", [960, 961, 0])
def test_finals_follow_each_other_and_reach_the_end(commands: Any, cut: int) -> None:
    audio = bytes(SECOND) + recording("cards-001.wav")[: -cut * 2 or None]
    results = finals(recognize(recognizer(commands), audio))
    assert results[-1].end == len(audio) / SECOND
    for before, after in pairwise(results):
        assert before.end <= after.start <= after.end


def test_no_partials_where_none_are_wanted(commands: Any) -> None:
    results = recognize(recognizer(commands, partials=False), recording("cards-001.wav"))
    assert [result.text for result in results] == ["ten of clubs"]


def test_silence_is_finalized_every_five_seconds_but_for_what_speech_may_still_take_in(decoder: Any) -> None:
    engine = recognizer(decoder)
    results = list(engine.feed(bytes(21 * SECOND)))
    assert [result.text for result in results] == [""] * 4
    assert results[0].start == 0
    for before, after in pairwise(results):
        assert before.end == after.start
    assert 21 - 5.1 < results[-1].end <= 21 - 0.7
    assert [result.end for result in engine.end()] == [21]


@pytest.mark.parametrize("level", [3, 300, 30_000])
def test_noise_makes_no_failure_and_soft_noise_no_words(commands: Any, level: int) -> None:
    results = recognize(recognizer(commands), noise(3, level))
    assert finals(results)[-1].end == 3
    assert level > 300 or said(results) == ""


def test_an_empty_stream_has_no_results(decoder: Any) -> None:
    assert recognize(recognizer(decoder), b"") == []


def test_flush_answers_with_a_final_up_to_the_flush(commands: Any) -> None:
    engine = recognizer(commands)
    audio = recording("cards-001.wav")
    first = [*engine.feed(audio), *engine.flush()]
    assert said(first) == "ten of clubs"
    assert first[-1].end == len(audio) / SECOND
    again = list(engine.flush())
    assert [(r.text, r.is_final, r.start, r.end) for r in again] == [("", True, first[-1].end, first[-1].end)]
    second = [*engine.feed(audio), *engine.end()]
    assert said(second) == "ten of clubs"
    assert second[-1].end == 2 * len(audio) / SECOND
    assert second[-1].words[0].start > first[-1].end


def test_the_last_word_is_heard_though_the_audio_stops_right_after_it(commands: Any) -> None:
    audio = recording("cards-001.wav")
    whole = finals(recognize(recognizer(commands), audio))[0]
    stop = round(whole.words[-1].end * pocketsphinx_recognizer.SAMPLE_RATE) * 2
    assert said(recognize(recognizer(commands), audio[:stop])) == "ten of clubs"


def test_an_overlong_utterance_is_cut_without_losing_or_doubling_a_word(
    decoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pocketsphinx_recognizer, "LONGEST_FRAMES", 60)  # 1.8 s
    monkeypatch.setattr(pocketsphinx_recognizer, "CUT_SEARCH_FRAMES", 35)
    results = finals(recognize(recognizer(decoder), recording("cards-005.wav")))
    assert said(results) == "eight of spades four of clubs seven of hearts"
    texts = [result.text for result in results if result.text]
    assert len(texts) > 1
    for before, after in pairwise(results):
        assert before.end == after.start


def test_phrases_win_only_where_they_fit(decoder: Any) -> None:
    phrases = ["tend of clubs", "one", "zero", "nine of hearts"]
    assert add_phrases(decoder, "some", phrases) == 0
    audio = recording("cards-001.wav")
    assert said(recognize(recognizer(decoder, prefer="some"), audio)) == "tend of clubs"
    assert decoder.current_search() == "_default"
    assert add_phrases(decoder, "others", ["turn left", "go forward"]) == 0
    assert said(recognize(recognizer(decoder, prefer="others"), audio)) == "ten of clubs"


def test_phrases_that_the_dictionary_lacks_are_counted(decoder: Any) -> None:
    phrases = ["Ten of CLUBS!", "zorblax", "ten zorblax", "", "§$%", "<s> ) ; zorblax", "ten-of-clubs", "don't"]
    assert add_phrases(decoder, "odd", phrases) == 5
    assert add_phrases(decoder, "none", ["zorblax"]) == 1
    with pytest.raises(KeyError):
        decoder.activate_search("none")


def test_a_mean_is_weighed_by_its_count_and_forgets() -> None:
    known = Cepstra((10.0, 20.0), 10) + Cepstra((40.0, 20.0), 10)
    assert known.mean == (2.5, 2.0)
    assert known.at_most(5) == Cepstra((12.5, 10.0), 5)
    assert known.at_most(50) is known
    assert (Cepstra() + known, known + Cepstra()) == (known, known)
    assert Cepstra().mean == ()


def test_distance_needs_both() -> None:
    assert distance((0.0, 3.0), (4.0, 0.0)) == 5
    assert distance((), (4.0, 0.0)) == 0


def test_the_mean_is_read_out_of_a_running_decoder(decoder: Any) -> None:
    audio = recording("cards-001.wav")
    audio = audio[: len(audio) // pocketsphinx_recognizer.FRAME_BYTES * pocketsphinx_recognizer.FRAME_BYTES]
    utterance = pocketsphinx_recognizer.Utterance(decoder, Cepstra(), begin=0)
    utterance.feed(audio)
    utterance.finish()
    whole = pocketsphinx.Decoder(lm=None, keyphrase="hello", kws_threshold=1e-20, loglevel="FATAL")
    whole.start_utt()
    whole.process_raw(audio, no_search=True, full_utt=True)
    mean = tuple(float(value) for value in whole.get_cmn(False).split(","))
    assert math.dist(utterance.spoken.mean, mean) < 1.5


def test_the_quietest_frame_is_found() -> None:
    loud, soft = noise(0.3, 1_000), noise(0.09, 10)
    assert quietest(loud + soft + loud) == 11


def test_clicks_over_noise_that_grows_make_no_words(decoder: Any) -> None:
    """The detector takes both for speech at first, and the search has no other end than a word."""
    clicks = NOISES["clicks"](np.random.default_rng(1), 8 * pocketsphinx_recognizer.SAMPLE_RATE)
    audio = b"".join(to_pcm16(at_level(clicks, level))[: 4 * SECOND] for level in (-70, -60, -50))
    assert said(recognize(recognizer(decoder), audio)) == ""


def test_a_word_that_lasts_too_long_for_its_sounds_is_left_out(decoder: Any) -> None:
    utterance = Utterance(decoder, Cepstra(), begin=0)

    class Segment:
        def __init__(self, word: str, frames: int) -> None:
            self.word, self.start_frame, self.end_frame = word, 0, frames - 1

    assert utterance._is_word(Segment("up", 60))  # 2 sounds
    assert not utterance._is_word(Segment("up", 61))
    assert utterance._is_word(Segment("and(2)", 80))
    assert utterance._is_word(Segment("a word that no dictionary has", 500))
    utterance.finish()


@pytest.mark.parametrize(
    ("start", "end", "background", "alone"),
    [
        (0.4, 0.7, 3, True),
        (0.4, 0.7, 0, True),
        (0.4, 0.86, 3, False),  # reaches into the silence
        (0.1, 0.5, 3, False),  # most of it is background
        (0.4, 0.7, 1_000, False),  # all of it is no louder than that
    ],
)
def test_a_short_noise_is_told_from_a_word_that_is_said_alone(
    decoder: Any, start: float, end: float, background: int, alone: bool
) -> None:
    utterance = Utterance(decoder, Cepstra(), begin=SECOND)
    utterance.audio += noise(0.4, background) + noise(0.3, 1_000) + noise(0.3, background)
    said_at = utterance.begin / pocketsphinx_recognizer.SAMPLE_RATE
    word = Word("up", said_at + start, said_at + end)
    ends = utterance.begin + pocketsphinx_recognizer.SAMPLE_RATE
    assert recognizer(decoder)._stands_alone(word, utterance, ends) is alone
    utterance.finish()


def test_a_word_that_is_said_alone_is_heard(decoder: Any) -> None:
    audio = recording("cards-001.wav")
    words = finals(recognize(recognizer(decoder), audio + bytes(SECOND)))[0].words
    ten = audio[: round(words[0].end * pocketsphinx_recognizer.SAMPLE_RATE) * 2]
    assert said(recognize(recognizer(decoder), ten + bytes(SECOND))) == "ten"
