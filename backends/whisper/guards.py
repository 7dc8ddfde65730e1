"""Which hypotheses are not believed, and why.

Whisper invents text where it hears little: it has learned from subtitles, which go on in silence, and a decoder that
repeats itself finds its own repetition ever more likely. The first three rules are those of OpenAI's `whisper` and of
faster-whisper, with their values. Loops and impossible rates are looked for besides, because a streaming window is
short: a loop is far along before its text compresses well.
"""

from __future__ import annotations

import enum
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from backends.whisper.agreement import spoken
from backends.whisper.window import Hypothesis, Piece

SLACK_SECONDS: Final = 0.5
"""Added to the seconds of speech before a rate is reckoned: a detector finds speech late and leaves out its edges."""

_PIECES_PER_WORD: Final = 3  # in scripts without spaces, whose pieces are mostly single characters
_WIDE: Final = 2.0  # a wide character (ideograph, kana) takes as long to say as two letters at least


class Rejection(enum.Enum):
    """Why a hypothesis is not believed. The value names it in metrics."""

    NO_SPEECH = "no_speech"
    LOG_PROBABILITY = "log_probability"
    COMPRESSION = "compression"
    LOOP = "loop"
    RATE = "rate"

    @property
    def retry(self) -> bool:
        """Whether another temperature may do better; not where nothing is said."""
        return self is not Rejection.NO_SPEECH


@dataclass(frozen=True, slots=True)
class GuardRules:
    """The limits; a hypothesis beyond one of them is rejected.

    `no_speech_threshold` (0 to 1), `log_probability_threshold` (mean of the tokens) and `compression_threshold` (bytes
    of the text by bytes compressed) are OpenAI's defaults, which faster-whisper has, too.

    `loop_repeats`: how often in a row makes a loop, first of one word, then of two and so on; the last is the longest
    that is looked for. People do say "no" four times and "thank you" three times; eleven times "no" is more than the
    compression threshold allows.

    `words_per_second` and `characters_per_second` hold for a whole window. Lively conversation has 3 to 4 words a
    second, auctioneers reach 7, the record is 10.9 (655 words a minute, Guinness 1995); a word of English has some 5
    letters.
    """

    no_speech_threshold: float = 0.6
    log_probability_threshold: float = -1.0
    compression_threshold: float = 2.4
    loop_repeats: tuple[int, ...] = (8, 6, 5, 4, 4, 4, 4, 4)
    words_per_second: float = 7.0
    characters_per_second: float = 35.0


DEFAULT_RULES: Final = GuardRules()


def judge(
    hypothesis: Hypothesis,
    *,
    speech_seconds: float | None = None,
    rules: GuardRules = DEFAULT_RULES,
    prefix: Sequence[Piece] = (),
) -> Rejection | None:
    """Why not to believe a hypothesis; None: believe it. One without words needs no rejection.

    Args:
        hypothesis: what the decoder has generated.
        speech_seconds: how much of the window is speech, to the detector; None: unknown, then any rate is possible.
        rules: the limits.
        prefix: the words that the decoder was forced to begin with. They count for rates, and a loop may begin there.
    """
    if not spoken(hypothesis.text):
        return None
    unlikely = hypothesis.log_probability < rules.log_probability_threshold
    if unlikely and hypothesis.no_speech_probability > rules.no_speech_threshold:
        return Rejection.NO_SPEECH
    loop = _loop([*prefix, *hypothesis.pieces], rules, behind=len(prefix))
    if loop:
        return Rejection.LOOP
    if compression_ratio(hypothesis.text) > rules.compression_threshold:
        return Rejection.COMPRESSION
    if speech_seconds is not None and _too_fast([*prefix, *hypothesis.pieces], speech_seconds, rules):
        return Rejection.RATE
    return Rejection.LOG_PROBABILITY if unlikely else None


def without_loop(pieces: Sequence[Piece], rules: GuardRules = DEFAULT_RULES) -> tuple[Piece, ...]:
    """The pieces up to the first loop, with what is repeated once; all of them where there is no loop.

    For a final that loops at every temperature: what the decoder says behind a loop is not heard.
    """
    found = _loop(pieces, rules)
    return tuple(pieces[: found[1]] if found else pieces)


def compression_ratio(text: str) -> float:
    """How much shorter zlib makes a text: 2.4 and more is one that repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def _loop(pieces: Sequence[Piece], rules: GuardRules, behind: int = 0) -> tuple[int, int] | None:
    """The first loop that goes on behind so many pieces: from its first piece to the end of its first round."""
    spots = [(key, i) for i, piece in enumerate(pieces) if (key := spoken(piece.text))]
    keys = [key for key, _ in spots]
    spaced = any(piece.text[:1].isspace() for piece in pieces)
    per_word = 1 if spaced else _PIECES_PER_WORD
    found: tuple[int, int] | None = None
    for size in range(1, len(rules.loop_repeats) * per_word + 1):
        needed = rules.loop_repeats[(size - 1) // per_word] * size
        run = 0
        for i in range(size, len(keys)):
            run = run + 1 if keys[i] == keys[i - size] else 0
            if run + size >= needed and spots[i][1] >= behind:
                first = i - run - size + 1
                if found is None or first < found[0]:
                    found = first, first + size
                break
    if found is None:
        return None
    first, end = found
    return spots[first][1], spots[end][1]


def _too_fast(pieces: Sequence[Piece], speech_seconds: float, rules: GuardRules) -> bool:
    """Whether nobody says so much in that time."""
    keys = [spoken(piece.text) for piece in pieces]
    words = sum(bool(key) and piece.text[:1].isspace() for key, piece in zip(keys, pieces, strict=True))
    characters = sum(
        _WIDE if unicodedata.east_asian_width(char) in "WF" else 1.0
        for key in keys
        for char in key
        if unicodedata.category(char)[0] != "M"  # a vowel sign is said with its consonant
    )
    seconds = speech_seconds + SLACK_SECONDS
    return words > rules.words_per_second * seconds or characters > rules.characters_per_second * seconds
