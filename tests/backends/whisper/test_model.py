"""The loaded model: windows in batches as alone, prompts and prefixes, times, languages, what limits a text."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from faster_whisper import WhisperModel

from backends.whisper.hardware import Hardware
from backends.whisper.model import (
    LONGEST_SECONDS,
    MOST_TOKENS,
    PROMPT_SIZES,
    Model,
    Request,
    most_tokens,
)
from backends.whisper.window import RATE, Hypothesis, Kind, Piece
from tests.backends.whisper.harness import sound
from tests.models import fixture
from tests.models.fixture import Utterance

CPU = Hardware("cpu", 0, "int8", "a test")


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    model = Model("tiny", fixture.MODEL, CPU)
    yield model
    model.close()


def samples(one: Utterance) -> npt.NDArray[np.float32]:
    return np.frombuffer(sound(one.path), "<i2").astype(np.float32) / np.float32(32_768)


def request(one: Utterance, kind: Kind = Kind.FINAL, **options: Any) -> Request:
    return Request(kind, samples(one), **({"language": one.language} | options))


def heard(model: Model, *requests: Request) -> list[Hypothesis]:
    return model.decode([model.prepare(request) for request in requests])


def same(one: Hypothesis, other: Hypothesis) -> bool:
    """The same words at the same times; scores of sums in another order differ a little."""
    return one.pieces == other.pieces and one.log_probability == pytest.approx(other.log_probability, abs=1e-3)


# Batches


@pytest.mark.parametrize("kind", Kind)
def test_a_batch_is_heard_as_its_windows_alone(model: Model, kind: Kind) -> None:
    recordings = fixture.certain()[:5]
    requests = [request(one, kind) for one in recordings]
    together = heard(model, *requests)
    for one, alone, beside in zip(recordings, requests, together, strict=True):
        assert same(heard(model, alone)[0], beside)
        assert beside.text == one.text


def test_partials_of_two_languages_in_a_batch(model: Model) -> None:
    recordings = [fixture.certain()[0], fixture.certain("de")[0]]
    requests = [request(one, Kind.PARTIAL) for one in recordings]
    assert model.key(requests[0]) == model.key(requests[1])
    assert [hypothesis.text for hypothesis in heard(model, *requests)] == [one.text for one in recordings]
    finals = [replace(one, kind=Kind.FINAL) for one in requests]
    assert model.key(finals[0]) != model.key(finals[1])  # they are aligned in one language


def test_prefixes_and_prompts_of_several_streams_in_a_batch(model: Model) -> None:
    recordings = fixture.certain(words=3)[:3]
    prompts = [model.prompt("", text) for text in ("red green blue " * 4, "one two three " * 4, "yes no stop " * 4)]
    assert len({len(prompt) for prompt in prompts}) == 1
    requests = [
        request(one, Kind.PARTIAL, prompt=prompt, prefix=model.tokens(one.text)[:count])
        for count, one, prompt in zip((0, 1, 2), recordings, prompts, strict=True)
    ]
    assert len({model.key(one) for one in requests}) == 1
    together = heard(model, *requests)
    for count, one, alone, beside in zip((0, 1, 2), recordings, requests, together, strict=True):
        assert same(heard(model, alone)[0], beside)
        assert beside.text == " ".join(one.text.split()[count:])


def test_what_may_share_a_batch(model: Model) -> None:
    base = request(fixture.certain()[0], Kind.PARTIAL)
    others = [
        replace(base, kind=Kind.FINAL),
        replace(base, language=None),
        replace(base, prompt=(1, 2, 3)),
        replace(base, temperature=0.4),
        replace(base, fit=True),
    ]
    assert len({model.key(one) for one in [base, *others]}) == len(others) + 1
    assert model.key(replace(base, prefix=(5,), language="de", samples=base.samples[:999])) == model.key(base)


def test_windows_in_which_nothing_is_heard_between_others(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    one = fixture.certain()[0]
    quiet = replace(request(one), samples=np.zeros(RATE, np.float32))
    monkeypatch.setattr("backends.whisper.model.most_tokens", lambda seconds: 0 if seconds == 1.0 else 99)
    for batch in ([quiet], [quiet, quiet], [request(one), quiet], [quiet, request(one), quiet]):
        found = heard(model, *batch)
        assert [hypothesis.text for hypothesis in found] == [one.text if each is not quiet else "" for each in batch]
        assert all(piece.start is not None for hypothesis in found for piece in hypothesis.pieces)


def test_silence_is_known_to_be_silence(model: Model) -> None:
    """It need not be empty; the guards tell it by these two."""
    found = heard(model, Request(Kind.FINAL, np.zeros(RATE, np.float32), "en"))[0]
    assert found.no_speech_probability > 0.9
    assert not found.pieces or found.log_probability < -2


# Words


def test_finals_have_times_and_partials_have_none(model: Model) -> None:
    one = fixture.certain(words=3)[0]
    final, partial = heard(model, request(one))[0], heard(model, request(one, Kind.PARTIAL))[0]
    assert final.text == partial.text == one.text
    for piece, word in zip(final.pieces, one.words, strict=True):
        assert piece.start == pytest.approx(word.start, abs=0.3)
        assert piece.end == pytest.approx(word.end, abs=0.3)
        assert 0 < (piece.probability or 0) <= 1
        assert piece.text == f" {word.word}"
    assert [(piece.start, piece.end, piece.probability) for piece in partial.pieces] == [(None, None, None)] * 3
    assert final.tokens == partial.tokens == model.tokens(one.text)


def test_it_hears_what_faster_whisper_hears(model: Model) -> None:
    """The same features, prompt and search: the same words and their score."""
    whisper = WhisperModel(str(fixture.MODEL), device="cpu", compute_type="int8", cpu_threads=1)
    for one in [*fixture.certain()[:4], *fixture.certain("de")[:2]]:
        segments, _ = whisper.transcribe(
            samples(one), language=one.language, beam_size=5, without_timestamps=True, word_timestamps=True
        )
        found = list(segments)
        own = heard(model, request(one))[0]
        assert own.text == " ".join(segment.text.strip() for segment in found)
        assert own.log_probability == pytest.approx(found[0].avg_logprob, abs=0.01)
        assert own.no_speech_probability == pytest.approx(found[0].no_speech_prob, abs=0.01)
        words = [word for segment in found for word in segment.words or ()]
        for piece, word in zip(own.pieces, words, strict=True):
            assert piece.start == pytest.approx(word.start, abs=0.35)  # it moves long words afterwards
            assert piece.probability == pytest.approx(word.probability, abs=0.02)


def test_a_forced_beginning_is_not_repeated(model: Model) -> None:
    """What the decoder was made to begin with is no part of the hypothesis, nor of its probability."""
    one = fixture.certain(words=4)[0]
    tokens = model.tokens(one.text)
    for count in range(5):
        found = heard(model, request(one, Kind.PARTIAL, prefix=tokens[:count]))[0]
        assert found.text == " ".join(one.text.split()[count:])
        assert found.log_probability > -0.7


def test_a_wrong_beginning_costs_no_words_behind_it(model: Model) -> None:
    one = fixture.certain(words=4)[0]
    wrong = model.tokens(next(word for word in fixture.VOCABULARY["en"] if word not in one.text))
    found = heard(model, request(one, Kind.PARTIAL, prefix=wrong))[0]
    assert len(found.pieces) <= 4
    assert found.text.split()[-1] == one.text.split()[-1]


@pytest.mark.parametrize("kind", Kind)
def test_an_encoder_that_sees_no_more_than_it_must(model: Model, kind: Kind) -> None:
    one = fixture.certain(words=3)[0]
    fitting = request(one, kind, fit=True)
    assert fitting.encoder_seconds == 5
    assert request(one, kind).encoder_seconds == LONGEST_SECONDS
    assert model.prepare(fitting).features.shape == (80, 500)
    assert model.prepare(request(one, kind)).features.shape == (80, 3_000)
    found = heard(model, fitting)[0]  # how well it hears so is another question, and the model's
    assert found.language == "en"
    assert most_tokens(fitting.seconds) >= len(found.tokens)


def test_the_longest_audio_is_cut_to_what_the_encoder_has(model: Model) -> None:
    long = Request(Kind.PARTIAL, np.zeros(31 * RATE, np.float32), "en", fit=True)
    assert long.encoder_seconds == 30
    assert model.prepare(long).features.shape == (80, 3_000)
    assert model.prepare(long).frames == 3_000


def test_hotter_is_chance(model: Model) -> None:
    one = fixture.certain(words=3)[0]
    found = heard(model, request(one, temperature=0.4))[0]
    assert found.temperature == 0.4
    assert found.pieces
    assert all(piece.start is not None for piece in found.pieces)


# Languages


def test_the_language_is_detected_where_none_is_given(model: Model) -> None:
    recordings = [one for one in fixture.utterances() if one.certain and one.seen and len(one.words) >= 4]
    chosen = [one for one in recordings if one.language == "en"][:2] + [o for o in recordings if o.language == "de"][:2]
    for found, one in zip(heard(model, *(request(one, language=None) for one in chosen)), chosen, strict=True):
        assert found.language == one.language
        assert found.language_probability is not None
        assert found.language_probability > 0.5
        assert found.text == one.text
        assert all(piece.start is not None for piece in found.pieces)  # aligned, although in two languages
    assert heard(model, request(chosen[0]))[0].language_probability is None


# Prompts


def test_prompts_have_few_lengths(model: Model) -> None:
    lengths = {len(model.prompt("", "one two three " * n)) for n in range(100)}
    assert lengths == set(PROMPT_SIZES)
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    history = " ".join(words)
    assert model.prompt("", history) == model.tokens(history)[-8:]  # the last ones


def test_hints_are_always_whole_and_history_fills_up(model: Model) -> None:
    hints = model.tokens("red green blue")
    prompt = model.prompt("red green blue", "one two three four five six seven eight nine")
    assert prompt[:3] == hints
    assert len(prompt) == 8
    assert prompt[3:] == model.tokens("five six seven eight nine")
    assert model.prompt("red green blue", "") == hints
    assert model.prompt("", "") == ()
    assert len(model.prompt("red " * 500, "one " * 500)) == PROMPT_SIZES[-1]


def test_a_prompt_does_not_become_text(model: Model) -> None:
    one = fixture.certain(words=3)[0]
    prompt = model.prompt("", "hello goodbye " * 10)
    found = heard(model, request(one, prompt=prompt))[0]
    assert found.text == one.text


# Limits


def test_no_speech_is_so_fast() -> None:
    assert most_tokens(1.0) < 40
    assert most_tokens(30.0) == MOST_TOKENS
    assert [most_tokens(s) for s in (0.0, 1.0, 5.0)] == sorted(most_tokens(s) for s in (0.0, 1.0, 5.0))


def test_a_text_ends_at_the_limit(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.whisper.model.most_tokens", lambda seconds: 2)
    one = fixture.certain(words=4)[0]
    assert heard(model, request(one, Kind.PARTIAL))[0].text == " ".join(one.text.split()[:2])
    long = next(u for u in fixture.certain() if len(u.words) == 8)
    texts = [found.text for found in heard(model, request(one, Kind.PARTIAL), request(long, Kind.PARTIAL))]
    assert texts == [" ".join(u.text.split()[:2]) for u in (one, long)]


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("size", PROMPT_SIZES)
def test_a_short_window_behind_a_long_prompt_has_room_for_its_words(model: Model, size: int, kind: Kind) -> None:
    """CTranslate2 counts the prompt in what it is told to generate at most."""
    one = next(u for u in fixture.certain() if len(u.words) == 5)
    prompt = model.tokens("one two three " * 100)[:size]
    for prefix in ((), model.tokens(one.text)[:2]):
        with pytest.MonkeyPatch.context() as context:
            context.setattr("backends.whisper.model.most_tokens", lambda seconds: 3)
            asked = request(one, kind, prompt=prompt, prefix=prefix if kind is Kind.PARTIAL else ())
            assert len(heard(model, asked)[0].pieces) == 3


def test_marks_belong_to_their_words(model: Model) -> None:
    pieces = model._pieces(list(model.tokens("stop, start! (yes) no")), "en")
    assert [piece.text for piece in pieces] == [" stop,", " start!", " (yes)", " no"]
    assert all(isinstance(piece, Piece) for piece in pieces)
    assert tuple(token for piece in pieces for token in piece.tokens) == model.tokens("stop, start! (yes) no")


def test_an_alignment_that_works_is_tried_and_one_that_cannot_is_found_out(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.try_alignment()

    def align(*args: Any, **options: Any) -> None:
        raise RuntimeError("no alignment heads")

    monkeypatch.setattr(model._whisper, "find_alignment", align)
    with pytest.raises(RuntimeError, match="no alignment heads"):
        model.try_alignment()


def test_closing_gives_the_memory_back() -> None:
    model = Model("tiny", Path(fixture.MODEL), CPU)
    assert model._whisper.model.model_is_loaded
    model.close()
    assert not model._whisper.model.model_is_loaded


def test_closing_waits_for_what_is_decoded() -> None:
    """CTranslate2 itself would silently keep everything."""
    model = Model("tiny", Path(fixture.MODEL), CPU, workers=2)
    asked = request(next(u for u in fixture.certain() if len(u.words) == 8))
    stopped = threading.Event()

    def decode() -> None:
        with contextlib.suppress(RuntimeError):  # between two windows it may be gone
            while not stopped.is_set():
                heard(model, asked)

    threads = [threading.Thread(target=decode) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    threading.Timer(0.2, stopped.set).start()
    model.close()
    assert not model._whisper.model.model_is_loaded
    for thread in threads:
        thread.join()
