"""Typed access to the tiny Whisper and to the speech it is tested with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from .words import VOCABULARY

__all__ = ["MODEL", "VOCABULARY", "LongFile", "Span", "Utterance", "Word", "certain", "long_files", "utterances"]

_HERE: Final = Path(__file__).resolve().parent
MODEL: Final = _HERE / "whisper-words"
"""A folder that `faster_whisper.WhisperModel` opens: 44 English and 12 German words, nothing else."""
_RECORDINGS: Final = _HERE / "utterances"


@dataclass(frozen=True)
class Word:
    """A word and when it is spoken, in seconds of its file."""

    word: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """A recording of 1 to 8 words: FLAC, mono, 16 kHz, with 0.25 s of silence before and 0.35 s behind."""

    path: Path
    text: str
    language: str
    voice: str
    seen: bool
    """The model was trained on this voice (never on this recording)."""
    certain: bool
    """The model hears it exactly with and without timestamps, also 3 dB softer or louder and 5 ms later."""
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Span:
    """An utterance in a long file, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class LongFile:
    """About 90 s of utterances with pauses of 0.5 to 2.5 s: FLAC, mono, 16 kHz."""

    path: Path
    language: str
    voice: str
    seen: bool
    utterances: tuple[Span, ...]

    @property
    def text(self) -> str:
        """All that is said."""
        return " ".join(span.text for span in self.utterances)


def _entries(name: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((_RECORDINGS / name).read_text(encoding="utf-8"))
    return entries


@cache
def utterances() -> tuple[Utterance, ...]:
    """All short recordings."""
    return tuple(
        Utterance(
            _RECORDINGS / entry["file"],
            entry["text"],
            entry["language"],
            entry["voice"],
            entry["seen"],
            entry["certain"],
            tuple(Word(**word) for word in entry["words"]),
        )
        for entry in _entries("utterances.json")
    )


def certain(language: str = "en", *, words: int | None = None) -> list[Utterance]:
    """The recordings of a language that a test may count on, or those with so many words."""
    return [
        utterance
        for utterance in utterances()
        if utterance.certain and utterance.language == language and words in {None, len(utterance.words)}
    ]


@cache
def long_files() -> tuple[LongFile, ...]:
    """The recordings of 90 s: English, German, and a voice that was never trained on."""
    return tuple(
        LongFile(
            _RECORDINGS / entry["file"],
            entry["language"],
            entry["voice"],
            entry["seen"],
            tuple(Span(**span) for span in entry["utterances"]),
        )
        for entry in _entries("long.json")
    )
