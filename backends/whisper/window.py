"""What streams, policy, scheduler and model hand each other."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

RATE: Final = 16_000
"""Samples a second, of all audio here: what Whisper and Silero were trained on."""


class Kind(enum.IntEnum):
    """Why a window is decoded; less is more urgent."""

    FINAL = 0
    PARTIAL = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """A word as the tokenizer splits it, with its leading space if it has one; punctuation belongs to a word.

    `start` and `end` are seconds from the window's first sample, None where nothing was aligned.
    """

    text: str
    tokens: tuple[int, ...]
    start: float | None = None
    end: float | None = None
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What the model hears in a window, without the prefix that it was forced to begin with.

    `log_probability` is the mean of the tokens generated. `language` is Whisper's code (`en`); where it was detected
    in this very window, `language_probability` says how surely.
    """

    pieces: tuple[Piece, ...]
    log_probability: float
    no_speech_probability: float
    temperature: float
    language: str
    language_probability: float | None = None

    @property
    def text(self) -> str:
        """The words."""
        return "".join(piece.text for piece in self.pieces).strip()

    @property
    def tokens(self) -> tuple[int, ...]:
        """The words' tokens."""
        return tuple(token for piece in self.pieces for token in piece.tokens)
