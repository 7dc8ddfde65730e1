"""Models of chance are Whisper models to everybody, and their texts are as long as speech."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
from faster_whisper import WhisperModel

from bench.whisper_models import SIZES, Size, make, make_tokenizer
from bench.whisper_spoken import Spoken, most_tokens

MINUTE = Size(64, 2, 2, 2, mels=128, languages=100, text_tokens=1_500, alignment_heads=((1, 0), (1, 1)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "minute"
    make(MINUTE, path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1, local_files_only=True)


def noise(seconds: float) -> Any:
    return (np.random.default_rng(1).standard_normal(round(16_000 * seconds)) * 0.1).astype(np.float32)


@pytest.mark.parametrize(("name", "tokens"), [("small", 51_865), ("large-v3-turbo", 51_866)])
def test_vocabularies_are_as_large_as_the_true_ones(name: str, tokens: int) -> None:
    size = SIZES[name]
    vocabulary = make_tokenizer(size).get_vocab()
    assert size.tokens == len(vocabulary) == max(vocabulary.values()) + 1 == tokens
    assert vocabulary["<|endoftext|>"] == 50_257
    assert vocabulary["<|29.98|>"] == tokens - 2


def test_an_unmodified_faster_whisper_takes_one(model: Any, folder: Path) -> None:
    assert model.model.is_multilingual
    assert (
        model.model.n_mels
        == MINUTE.mels
        == json.loads((folder / "preprocessor_config.json").read_text())["feature_size"]
    )
    assert len(model.supported_languages) == 100
    language, probability, _ = model.detect_language(noise(2.0))
    assert language in model.supported_languages
    assert 0 < probability <= 1


def test_it_decodes_and_aligns(model: Any) -> None:
    segments, _ = model.transcribe(
        noise(3.0), language="en", beam_size=5, word_timestamps=True, without_timestamps=True, max_new_tokens=12
    )
    first = next(segments)
    assert [word.word for word in first.words] == [" " + text for text in first.text.split()]
    assert all(0 <= word.start <= word.end <= 3.0 for word in first.words)


def test_shorter_audio_has_the_beginning_of_the_same_text_and_is_sure_of_it(model: Any) -> None:
    texts = []
    for seconds in (1.0, 3.0):
        segments, _ = model.transcribe(
            noise(seconds), language="en", beam_size=1, temperature=0.0, without_timestamps=True, max_new_tokens=20
        )
        first = next(segments)
        texts.append(first.text.split())
        assert first.avg_logprob > -1.0  # no guard rejects it
        assert first.no_speech_prob < 0.5
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > len(texts[0]) / 2


@pytest.mark.parametrize("beam", [1, 5])
def test_texts_end_where_speech_would_in_batches_too(model: Any, beam: int) -> None:
    ids = [model.hf_tokenizer.token_to_id(f"<|{mark}|>") for mark in ("startoftranscript", "en", "transcribe")]
    mark = model.hf_tokenizer.token_to_id("<|notimestamps|>")
    spoken = Spoken(model.model, mark)
    features = np.zeros((2, MINUTE.mels, 3_000), np.float32)
    features[0, :, :301] = features[1, :, :601] = -0.5
    encoded = spoken.encode(ctranslate2.StorageView.from_array(features))
    free = [result.sequences_ids[0] for result in spoken.generate(encoded, [[*ids, mark]] * 2, beam_size=beam)]
    assert [len(tokens) for tokens in free] == [most_tokens(3.0), most_tokens(6.0)] == [9, 18]
    forced = spoken.generate(encoded, [[*ids, mark, *free[1][:12]]] * 2, beam_size=beam)
    assert [len(result.sequences_ids[0]) for result in forced] == [13, 18]
    assert forced[1].sequences_ids[0][:12] == free[1][:12]
    previous = [model.hf_tokenizer.token_to_id("<|startofprev|>"), *range(300, 364)]
    behind = spoken.generate(encoded, [[*previous, *ids, mark]] * 2, beam_size=beam)
    assert [len(result.sequences_ids[0]) for result in behind] == [9, 18]


def test_a_model_that_nobody_bounds_goes_on(model: Any) -> None:
    ids = [
        model.hf_tokenizer.token_to_id(f"<|{m}|>") for m in ("startoftranscript", "en", "transcribe", "notimestamps")
    ]
    encoded = model.model.encode(ctranslate2.StorageView.from_array(np.zeros((1, MINUTE.mels, 3_000), np.float32)))
    [result] = model.model.generate(encoded, [ids], beam_size=1, max_length=120)
    assert len(result.sequences_ids[0]) == 60
