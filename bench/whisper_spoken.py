"""Ends the texts of a model that hears nothing where speech of that length would have ended.

What a window costs depends on how many tokens the decoder makes. A model with weights of chance goes on for ever, so
both contenders of `bench.whisper` get theirs through `Spoken`, which allows for as many tokens as people speak in the
audio of the window: in a batch, the longest decides how long all are decoded, as with a real model.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

TOKENS_PER_SECOND: Final = 3.0
"""Conversation has 2.5 to 3 words a second with its small pauses, and English a little more than a token a word."""
_FRAMES_PER_SECOND: Final = 100


@dataclass(frozen=True, slots=True)
class Told:
    """Of CTranslate2's `WhisperGenerationResult` what the contenders read."""

    sequences_ids: list[list[int]]
    scores: list[float]
    no_speech_prob: float


class Spoken:
    """Stands for a `ctranslate2.models.Whisper`. A thread that encodes generates from that before it encodes again."""

    def __init__(self, model: Any, no_timestamps: int) -> None:
        self._model = model
        self._no_timestamps = no_timestamps
        self._encoded = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, features: Any, to_cpu: bool = False) -> Any:
        """As the model. Features are padded with zeros, so they tell how long the audio is."""
        sounding = np.array(features)[:, 0] != 0
        self._encoded.seconds = [np.flatnonzero(row).max(initial=0) / _FRAMES_PER_SECOND for row in sounding]
        return self._model.encode(features, to_cpu=to_cpu)

    def generate(self, features: Any, prompts: Sequence[Sequence[int]], **options: Any) -> list[Told]:
        """As the model, with texts of the length of speech."""
        starts = [_text_start(prompt, self._no_timestamps) for prompt in prompts]
        limits = [
            # What is forced is a part of the text; one more token, at least, is always looked for.
            max(len(prompt) - start + 1, most_tokens(seconds))
            for prompt, start, seconds in zip(prompts, starts, self._encoded.seconds, strict=True)
        ]
        # CTranslate2 takes half of it for the text, or what the prompt leaves of it, if that is less.
        longest = max(2 * max(limits), max(limits) + max(starts))
        results = self._model.generate(features, prompts, **options | {"max_length": longest})
        return [
            Told([ids[:limit] for ids in result.sequences_ids], result.scores, result.no_speech_prob)
            for result, limit in zip(results, limits, strict=True)
        ]


def most_tokens(seconds: float) -> int:
    """Tokens of a text that is so long."""
    return max(1, math.ceil(TOKENS_PER_SECOND * seconds))


def _text_start(prompt: Sequence[int], no_timestamps: int) -> int:
    return list(prompt).index(no_timestamps) + 1
