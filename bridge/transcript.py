"""Finals as files: plain text, JSON, SubRip and WebVTT. Pure functions of a list of segments.

Captions have at most two lines of 42 characters (what players and broadcasters agree on). A final that is
longer becomes several cues, cut at word times where every word has them, else in proportion to its letters.
Cues are never empty and their times only go forward: each starts at or after the end of the cue before it.
"""

from __future__ import annotations

import html
import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from backends.base import Word

LINE_CHARS: Final = 42
CUE_LINES: Final = 2


class TimedText(Protocol):
    """A word of a final, whichever layer it comes from."""

    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def start(self) -> float: ...  # noqa: D102
    @property
    def end(self) -> float: ...  # noqa: D102
    @property
    def confidence(self) -> float | None: ...  # noqa: D102


class SpokenWord(TimedText, Protocol):
    """A word that may know who said it."""

    @property
    def speaker(self) -> str | None: ...  # noqa: D102


class SpokenText(TimedText, Protocol):
    """A final: `bridge.protocols.events.Final` and `bridge.protocols.native.FinalMessage` are two."""

    @property
    def words(self) -> Sequence[SpokenWord]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Segment:
    """One final as a transcript keeps it; times in seconds from the start of the audio."""

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()
    confidence: float | None = None

    @classmethod
    def of(cls, final: SpokenText) -> Segment:
        """The segment of a session's or a server's final."""
        words = tuple(Word(w.text, w.start, w.end, w.confidence, w.speaker) for w in final.words)
        return cls(final.text, final.start, final.end, words, final.confidence)


def to_text(segments: Iterable[Segment]) -> str:
    """One line for each final that has words."""
    return "".join(f"{text}\n" for segment in segments if (text := " ".join(segment.text.split())))


def to_object(segments: Iterable[Segment]) -> dict[str, Any]:
    """The whole `text` and its `segments`, each with its words; times in seconds."""
    spoken = [segment for segment in segments if segment.text.strip()]
    return {
        "text": " ".join(" ".join(segment.text.split()) for segment in spoken),
        "segments": [segment_object(segment) for segment in spoken],
    }


def to_json(segments: Iterable[Segment]) -> str:
    """The same as a document."""
    return json.dumps(to_object(segments), ensure_ascii=False, indent=2) + "\n"


def to_srt(segments: Iterable[Segment]) -> str:
    """SubRip. The format has no escapes: what a player would take for markup becomes a look-alike."""
    blocks = [
        f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n{_srt_escape(cue)}\n"
        for number, cue in enumerate(cues(segments), 1)
    ]
    return "\n".join(blocks)


def to_vtt(segments: Iterable[Segment]) -> str:
    """WebVTT (W3C): `&`, `<` and `>` are escaped, so no text is taken for a tag or for a cue's time line."""
    blocks = [
        f"{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}\n"
        f"{html.escape(chr(10).join(cue.lines), quote=False)}\n"
        for cue in cues(segments)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


FORMATS: Final[dict[str, Callable[[Iterable[Segment]], str]]] = {
    "text": to_text,
    "json": to_json,
    "srt": to_srt,
    "vtt": to_vtt,
}
"""Every format by its name on the command line."""

EXTENSIONS: Final = {"text": "txt", "json": "json", "srt": "srt", "vtt": "vtt"}
"""The usual file name extension of each format."""


@dataclass(frozen=True, slots=True)
class Cue:
    """What is on the screen from `start_ms` to `end_ms`."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]


def cues(segments: Iterable[Segment]) -> list[Cue]:
    """Captions for these finals, in the order of their times."""
    result: list[Cue] = []
    shown_until = 0
    for segment in sorted(segments, key=lambda segment: segment.start):
        lines = _wrap(_pieces(segment))
        for first in range(0, len(lines), CUE_LINES):
            block = lines[first : first + CUE_LINES]
            start = max(round(block[0][0].start * 1000), shown_until)
            # A cue of no length is never shown, so one millisecond is the least.
            shown_until = max(round(block[-1][-1].end * 1000), start + 1)
            texts = tuple(" ".join(piece.text for piece in line) for line in block)
            result.append(Cue(start, shown_until, texts))
    return result


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is never cut again: a word, or a part of one that is wider than a line."""

    text: str
    start: float
    end: float


def _pieces(segment: Segment) -> list[_Piece]:
    tokens = _printable(segment.text).split()
    whole = sum(len(token) for token in tokens)
    # The text may be written otherwise than its words (case, punctuation): their number must be the same.
    timed = len(segment.words) == len(tokens)
    pieces: list[_Piece] = []
    done = 0
    for index, token in enumerate(tokens):
        if timed:
            start, end = segment.words[index].start, segment.words[index].end
        else:
            length = segment.end - segment.start
            start = segment.start + length * done / whole
            end = segment.start + length * (done + len(token)) / whole
        done += len(token)
        for at in range(0, len(token), LINE_CHARS):
            part = token[at : at + LINE_CHARS]
            share = (end - start) / len(token)
            pieces.append(_Piece(part, start + share * at, start + share * (at + len(part))))
    return pieces


def _wrap(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """Lines of at most `LINE_CHARS`, as few as there can be and of about equal length."""
    fewest = _fill(pieces, LINE_CHARS)
    if len(fewest) < 2:
        return fewest
    total = sum(len(piece.text) + 1 for piece in pieces) - 1
    for width in range(total // len(fewest), LINE_CHARS):
        lines = _fill(pieces, width)
        if len(lines) == len(fewest) and all(_width(line) <= LINE_CHARS for line in lines):
            return lines
    return fewest


def _fill(pieces: Sequence[_Piece], width: int) -> list[list[_Piece]]:
    lines: list[list[_Piece]] = []
    room = 0
    for piece in pieces:
        if lines and len(piece.text) + 1 <= room:
            lines[-1].append(piece)
            room -= len(piece.text) + 1
        else:
            lines.append([piece])
            room = width - len(piece.text)
    return lines


def _width(line: Sequence[_Piece]) -> int:
    return sum(len(piece.text) + 1 for piece in line) - 1


def _printable(text: str) -> str:
    """The text without control characters; white space of any kind, line ends too, as spaces."""
    return "".join(
        " " if char.isspace() else char
        for char in text
        if char.isspace() or unicodedata.category(char) not in {"Cc", "Cs"}
    )


_SRT_LOOK_ALIKES: Final = str.maketrans({"<": "‹", ">": "›"})  # noqa: RUF001 - that is the point


def _srt_escape(cue: Cue) -> str:
    # `{\an8}` and its like are commands to the players that know SubStation Alpha.
    return "\n".join(cue.lines).translate(_SRT_LOOK_ALIKES).replace("{\\", "{/")


def _clock(milliseconds: int, mark: str) -> str:
    seconds, ms = divmod(milliseconds, 1000)
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(minutes, 60)
    return f"{hours:02}:{m:02}:{s:02}{mark}{ms:03}"


def segment_object(segment: Segment) -> dict[str, Any]:
    """One segment as JSON holds it."""
    item: dict[str, Any] = {"text": segment.text, "start": segment.start, "end": segment.end}
    if segment.confidence is not None:
        item["confidence"] = segment.confidence
    item["words"] = [_word_object(word) for word in segment.words]
    return item


def _word_object(word: Word) -> dict[str, Any]:
    item: dict[str, Any] = {"text": word.text, "start": word.start, "end": word.end}
    if word.confidence is not None:
        item["confidence"] = word.confidence
    if word.speaker is not None:
        item["speaker"] = word.speaker
    return item


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """How many words to change, add or remove to turn the hypothesis into the reference, and of how many.

    Case and punctuation do not count.
    """
    expected, heard = _plain_words(reference), _plain_words(hypothesis)
    row = list(range(len(heard) + 1))
    for i, word in enumerate(expected, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1], len(expected)


def _plain_words(text: str) -> list[str]:
    kept = "".join(char if char.isalnum() or char == "'" else " " for char in text.casefold())
    return [word for part in kept.split() if (word := part.strip("'"))]
