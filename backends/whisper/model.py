"""One loaded Whisper model: windows in, hypotheses out.

faster-whisper loads the model, makes the features and splits words; its `transcribe` takes one recording at a time, so
the windows of many sessions go to CTranslate2 directly, in the way that faster-whisper's own batches do. What
CTranslate2 asks of a batch is in `Model.key`.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ctranslate2
import numpy as np
import numpy.typing as npt
from faster_whisper import WhisperModel
from faster_whisper.audio import pad_or_trim
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_suppressed_tokens, merge_punctuations

from backends.whisper.hardware import Hardware
from backends.whisper.window import RATE, Hypothesis, Kind, Piece

Float32 = npt.NDArray[np.float32]

FRAMES_PER_SECOND: Final = 100
LONGEST_SECONDS: Final = 30
FIT_SECONDS: Final = 5
"""Where windows are not padded to 30 s, they are to a multiple of this: equal lengths share batches."""

PROMPT_SIZES: Final = (0, 8, 24, 64, 128, 223)
"""Tokens of previous text: only prompts of equal length share batches, so these are the lengths. 223 is the most that
Whisper takes."""

TOKENS_PER_SECOND: Final = 20
SPARE_TOKENS: Final = 12
"""No speech is as fast as this, in any language; a decoder that goes on has lost its way and is stopped."""
MOST_TOKENS: Final = 224

BEST_OF: Final = 5
"""Samples at a temperature, of which the likeliest counts."""

CLOSE_SECONDS: Final = 5.0

PREPENDED: Final = "\"'“¿([{-"
APPENDED: Final = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001 - of other scripts, too


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A window of audio, mono at 16 kHz, and how it is to be decoded.

    `prompt`: tokens of the text before the window, as `Model.prompt` gives them. `prefix`: tokens that the text must
    begin with. `language`: Whisper's code; None detects it. `fit`: the encoder sees little more than the audio. Finals
    are aligned: their pieces have times.
    """

    kind: Kind
    samples: Float32
    language: str | None
    prompt: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()
    temperature: float = 0.0
    fit: bool = False

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        return len(self.samples) / RATE

    @property
    def encoder_seconds(self) -> int:
        """Length that the encoder is given."""
        fitting = math.ceil(self.seconds / FIT_SECONDS) * FIT_SECONDS
        return min(LONGEST_SECONDS, max(FIT_SECONDS, fitting)) if self.fit else LONGEST_SECONDS


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A request with its features: (mels, frames) float32, padded."""

    request: Request
    features: Float32
    frames: int


class Model:
    """A `Decoder` of the scheduler. Every method may be called from any thread."""

    def __init__(
        self,
        name: str,
        folder: Path,
        hardware: Hardware,
        *,
        workers: int = 1,
        threads: int = 1,
        task: str = "transcribe",
        beam_size: int = 5,
    ) -> None:
        self.name = name
        self.folder = folder
        self.hardware = hardware
        self._task = task
        self._beam_size = beam_size
        self._whisper = WhisperModel(
            str(folder),
            device=hardware.device,
            device_index=hardware.index,
            compute_type=hardware.compute_type,
            cpu_threads=threads,
            num_workers=workers,
            local_files_only=True,
        )
        self.languages: tuple[str, ...] = tuple(self._whisper.supported_languages)
        self.multilingual: bool = self._whisper.model.is_multilingual
        self._suppressed = list(get_suppressed_tokens(self.tokenizer(self.languages[0]), [-1]))
        self._to_cpu = hardware.device == "cuda" and len(self._whisper.model.device_index) > 1

    @functools.lru_cache(maxsize=128)  # noqa: B019 - a model lives as long as its cache is wanted
    def tokenizer(self, language: str) -> Tokenizer:
        """For this language, Whisper's code."""
        return Tokenizer(self._whisper.hf_tokenizer, self.multilingual, task=self._task, language=language)

    def tokens(self, text: str) -> tuple[int, ...]:
        """The tokens of text that stands behind other text."""
        text = text.strip()
        return tuple(self.tokenizer(self.languages[0]).encode(f" {text}")) if text else ()

    def prompt(self, lead: str, history: str) -> tuple[int, ...]:
        """The tokens of `lead` (hints, initial prompt), then of the end of `history`: as many as make a good length."""
        first, rest = self.tokens(lead)[-PROMPT_SIZES[-1] :], self.tokens(history)
        size = max(len(first), *(size for size in PROMPT_SIZES if size <= len(first) + len(rest)))
        return first + rest[len(rest) - (size - len(first)) :]

    # The scheduler's `Decoder`

    def prepare(self, request: Request) -> Prepared:
        """The features, as faster-whisper makes them."""
        features = self._whisper.feature_extractor(request.samples)[..., :-1]
        frames = request.encoder_seconds * FRAMES_PER_SECOND
        return Prepared(
            request,
            np.ascontiguousarray(pad_or_trim(features, frames), np.float32),
            min(features.shape[-1], frames),
        )

    def key(self, request: Request) -> Hashable:
        """Requests with an equal key may be decoded together.

        CTranslate2 wants `<|startoftranscript|>` at one place in all prompts, one way of searching and one length of
        features; finals are aligned with one language at a time.
        """
        final = request.kind is Kind.FINAL
        return (
            request.kind,
            request.encoder_seconds,
            len(request.prompt),
            request.temperature,
            request.language if final else request.language is None,
        )

    def decode(self, batch: Sequence[Prepared]) -> list[Hypothesis]:
        """Blocks, without the interpreter's lock."""
        requests = [prepared.request for prepared in batch]
        first = requests[0]
        model = self._whisper.model
        encoded = self._encoded(batch)
        languages, surely = self._languages(requests, encoded)
        prompts = [self._prompt(request, language) for request, language in zip(requests, languages, strict=True)]
        limits = [len(request.prefix) + most_tokens(request.seconds) for request in requests]
        results = model.generate(
            encoded,
            prompts,
            beam_size=self._beam_size if first.kind is Kind.FINAL and first.temperature == 0 else 1,
            sampling_topk=0 if first.temperature else 1,
            sampling_temperature=first.temperature or 1,
            num_hypotheses=BEST_OF if first.temperature else 1,
            max_length=_max_length(max(limits), max(map(len, prompts))),
            suppress_tokens=self._suppressed,
            return_scores=True,
            return_no_speech_prob=True,
        )
        texts = [
            [token for token in result.sequences_ids[0][:limit] if token < self.tokenizer(language).eot]
            for result, limit, language in zip(results, limits, languages, strict=True)
        ]
        if first.kind is Kind.FINAL:
            pieces = self._aligned(batch, encoded, texts, languages)
        else:
            pieces = [
                self._pieces(text[len(request.prefix) :], language)
                for text, request, language in zip(texts, requests, languages, strict=True)
            ]
        return [
            Hypothesis(
                tuple(words),
                _log_probability(result, len(request.prefix)),
                result.no_speech_prob,
                request.temperature,
                language,
                probability,
            )
            for words, result, request, language, probability in zip(
                pieces, results, requests, languages, surely, strict=True
            )
        ]

    def try_alignment(self) -> None:
        """Align two tokens with silence: some converted models do not know their alignment heads.

        Raises:
            RuntimeError: this one does not.
        """
        quiet = self.prepare(Request(Kind.FINAL, np.zeros(RATE, np.float32), self.languages[0]))
        self._aligned([quiet], self._encoded([quiet]), [list(self.tokens("one two"))], [self.languages[0]])

    def close(self) -> None:
        """Give the memory back, whoever still refers to the model. Blocks while it decodes, for seconds at most."""
        until = time.monotonic() + CLOSE_SECONDS
        self._whisper.model.unload_model()
        # Of a model that is in use CTranslate2 unloads nothing, and says nothing; its threads let go after the answer.
        while self._whisper.model.model_is_loaded and time.monotonic() < until:
            time.sleep(0.005)
            self._whisper.model.unload_model()
        self.tokenizer.cache_clear()

    def _encoded(self, batch: Sequence[Prepared]) -> Any:
        features = ctranslate2.StorageView.from_array(np.stack([prepared.features for prepared in batch]))
        return self._whisper.model.encode(features, to_cpu=self._to_cpu)

    def _languages(self, requests: Sequence[Request], encoded: Any) -> tuple[list[str], list[float | None]]:
        """The language of each, and how surely it was detected where it was."""
        if not self.multilingual or requests[0].language is not None:
            return [request.language or self.languages[0] for request in requests], [None] * len(requests)
        likeliest = [found[0] for found in self._whisper.model.detect_language(encoded)]
        return [token[2:-2] for token, _ in likeliest], [probability for _, probability in likeliest]

    def _prompt(self, request: Request, language: str) -> list[int]:
        tokenizer = self.tokenizer(language)
        previous = [tokenizer.sot_prev, *request.prompt] if request.prompt else []
        return [*previous, *tokenizer.sot_sequence, tokenizer.no_timestamps, *request.prefix]

    def _pieces(self, tokens: list[int], language: str) -> list[Piece]:
        words, their_tokens = self.tokenizer(language).split_to_word_tokens(tokens)
        split = [
            {"word": word, "tokens": list(own), "start": None, "end": None, "probability": None}
            for word, own in zip(words, their_tokens, strict=True)
        ]
        return _merged(split)

    def _aligned(
        self, batch: Sequence[Prepared], encoded: Any, texts: Sequence[list[int]], languages: Sequence[str]
    ) -> list[list[Piece]]:
        frames = [prepared.frames for prepared in batch]
        if len(set(languages)) == 1 and all(texts):
            found = self._whisper.find_alignment(self.tokenizer(languages[0]), list(texts), encoded, frames)
            return [_merged(words) for words in found]
        if len(batch) == 1:
            return [[]]
        # Where nothing was heard in some windows, or several languages were detected just now: each by itself.
        return [
            pieces
            for prepared, text, language in zip(batch, texts, languages, strict=True)
            for pieces in self._aligned([prepared], self._encoded([prepared]) if text else None, [text], [language])
        ]


def most_tokens(seconds: float) -> int:
    """Tokens that speech of this length can have at most."""
    return min(MOST_TOKENS, SPARE_TOKENS + math.ceil(TOKENS_PER_SECOND * seconds))


def _max_length(limit: int, prompt: int) -> int:
    """What CTranslate2 must be told so that the text may have so many tokens: it gives at most half of it to the text,
    and counts the prompt in the other half or, where that is longer, in all of it.
    """
    return min(2 * MOST_TOKENS, max(2 * limit, prompt + limit))


def _log_probability(result: Any, prefix: int) -> float:
    """Mean of the tokens that were generated, and of the end of the text, as faster-whisper counts it."""
    length = len(result.sequences_ids[0])
    return float(result.scores[0]) * length / (length - prefix + 1) if length else 0.0


def _merged(words: list[dict[str, Any]]) -> list[Piece]:
    """Words with their punctuation."""
    merge_punctuations(words, PREPENDED, APPENDED)
    return [
        Piece(
            word["word"],
            tuple(word["tokens"]),
            None if word["start"] is None else float(word["start"]),
            None if word["end"] is None else float(word["end"]),
            None if word["probability"] is None else float(word["probability"]),
        )
        for word in words
        if word["tokens"] and word["word"].strip()
    ]
