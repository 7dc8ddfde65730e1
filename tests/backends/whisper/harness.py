"""What the tests of the engine `whisper` share: the fixture's speech, streams of it, and what every stream owes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol

import pytest

from backends.base import FLUSH, RecognitionConfig, Result
from backends.whisper.backend import WhisperBackend
from backends.whisper.model import Model, Prepared
from backends.whisper.options import WhisperOptions
from backends.whisper.window import Hypothesis
from tests.models import fixture
from tests.models.fixture import Utterance
from tests.speech import SECOND, pcm

FRAME: Final = 3_200
"""Bytes of 100 ms."""
WORD_TIMES: Final = 0.15
"""Seconds that the start and end of a word may be off."""
ROUNDING: Final = 0.002
"""Seconds."""

sound = cache(pcm)
"""The audio of one of the fixture's files."""


def silence(seconds: float) -> bytes:
    """Digital silence."""
    return bytes(2 * round(seconds * SECOND / 2))


def said(utterances: Sequence[Utterance], pause: float = 1.2) -> tuple[bytes, str]:
    """Utterances one after the other, with so much silence behind each, and their words."""
    audio = b"".join(sound(one.path) + silence(pause) for one in utterances)
    return audio, " ".join(one.text for one in utterances)


class Timed(Protocol):
    """A word of a result or of a message."""

    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...


def assert_times(words: Sequence[Timed], utterances: Sequence[Utterance], *, first: float, pause: float = 1.2) -> None:
    """The words begin and end when they are spoken in `said(utterances, pause)`, which begins at `first` seconds.

    Nearly all within 0.15 s, which is half of a syllable; none is off by a whole one. A boundary is two words'.
    """
    expected = []
    for one in utterances:
        expected += [(first + word.start, first + word.end) for word in one.words]
        first += len(sound(one.path)) / SECOND + pause
    off = [
        max(abs(word.start - start), abs(word.end - end)) for word, (start, end) in zip(words, expected, strict=True)
    ]
    assert max(off) < 0.3, off
    assert sum(each > WORD_TIMES for each in off) <= max(2, 0.1 * len(off)), off


def unpaused(utterances: Iterable[Utterance], gap: float = 0.05) -> bytes:
    """Utterances without the silence around them: speech that does not end."""
    parts = []
    for one in utterances:
        first, last = (2 * round(t * SECOND / 2) for t in (one.words[0].start - 0.03, one.words[-1].end + 0.03))
        parts += [sound(one.path)[max(0, first) : last], silence(gap)]
    return b"".join(parts)


def cut(audio: bytes, size: int = FRAME) -> list[bytes]:
    """In chunks of so many bytes."""
    return [audio[at : at + size] for at in range(0, len(audio), size)]


async def played(chunks: Iterable[bytes], *, then: asyncio.Future[None] | None = None) -> AsyncIterator[bytes]:
    """The chunks as fast as they are taken; then the end, or what the future brings."""
    for chunk in chunks:
        yield chunk
        await asyncio.sleep(0)
    if then is not None:
        await then


async def paced(audio: bytes, speed: float, size: int = FRAME) -> AsyncIterator[bytes]:
    """Audio `speed` times as fast as life."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for at in range(0, len(audio), size):
        await asyncio.sleep(max(0.0, began + at / SECOND / speed - loop.time()))
        yield audio[at : at + size]


class Promises:
    """Checks what a stream owes, result by result: nothing that was called committed is ever taken back."""

    def __init__(self) -> None:
        self.committed = ""
        """The words that must come."""
        self.until = 0.0
        """Everything before is final, in seconds."""

    def take(self, text: str, *, final: bool, committed: int | None, start: float, end: float) -> None:
        """The next result of the stream."""
        assert start >= self.until - ROUNDING, f"{text!r} begins at {start}, but all up to {self.until} is final"
        assert end >= start
        if final:
            rest = self.committed.removeprefix(text)
            kept = text.startswith(self.committed) or (text and rest != self.committed and rest.startswith(" "))
            assert kept, f"{self.committed!r} was committed, the final says {text!r}"
            self.committed = "" if text.startswith(self.committed) else rest.lstrip()
            self.until = end
        elif text:
            assert text.startswith(self.committed), f"{self.committed!r} was committed, a partial says {text!r}"
            assert committed is not None
            assert len(self.committed) <= committed <= len(text)
            self.committed = text[:committed]


@dataclass
class Heard:
    """The results of a stream; each is checked as it comes."""

    results: list[Result] = field(default_factory=list)
    promises: Promises = field(default_factory=Promises)

    def take(self, result: Result) -> None:
        """The next one."""
        self.promises.take(
            result.text, final=result.is_final, committed=result.committed, start=result.start, end=result.end
        )
        at = result.start
        for word in result.words:
            assert at - ROUNDING <= word.start <= word.end <= result.end + ROUNDING
            at = word.end
        if result.words:
            assert " ".join(word.text for word in result.words) == result.text
        self.results.append(result)

    @property
    def finals(self) -> list[Result]:
        """With and without text."""
        return [result for result in self.results if result.is_final]

    @property
    def partials(self) -> list[Result]:
        """Those with text."""
        return [result for result in self.results if not result.is_final and result.text]

    @property
    def text(self) -> str:
        """The transcript."""
        return " ".join(result.text for result in self.finals if result.text)

    @property
    def utterances(self) -> list[str]:
        """The text of each final that has one."""
        return [result.text for result in self.finals if result.text]

    def assert_in_order(self, seconds: float) -> None:
        """Finals cover the audio without a gap that is final twice, up to its end."""
        for one, other in pairwise(self.finals):
            assert one.end <= other.start + ROUNDING
        assert abs(self.finals[-1].end - seconds) < ROUNDING


async def heard(
    backend: WhisperBackend, audio: bytes | Iterable[bytes] | AsyncIterator[bytes], *, limit: float = 40, **config: Any
) -> Heard:
    """One whole stream, as fast as it goes unless the audio says otherwise."""
    if isinstance(audio, bytes):
        audio = cut(audio)
    source = audio if isinstance(audio, AsyncIterator) else played(audio)
    result = Heard()
    async with asyncio.timeout(limit):
        async for one in backend.recognize(RecognitionConfig(**config), source):
            result.take(one)
    return result


@contextlib.asynccontextmanager
async def loaded(model: Path | None = None, **options: Any) -> AsyncIterator[WhisperBackend]:
    """The engine with the fixture's model."""
    backend = WhisperBackend(WhisperOptions(model=str(model or fixture.MODEL), **options))
    await backend.load()
    try:
        yield backend
    finally:
        await backend.close()


def flushed(audio: bytes, *positions: float) -> list[bytes]:
    """The audio with a flush at each of these seconds, and chunks in between."""
    chunks = []
    at = 0
    for position in positions:
        mark = 2 * round(position * SECOND / 2)
        chunks += [*cut(audio[at:mark]), FLUSH]
        at = mark
    return [*chunks, *cut(audio[at:])]


def breaking(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Sequence[Prepared]], Exception | None]) -> None:
    """The `decode` of every model raises what `fails` gives; sessions with phrases are known by their prompts."""
    decode = Model.decode

    def broken(model: Model, batch: Sequence[Prepared]) -> list[Hypothesis]:
        if (error := fails(batch)) is not None:
            raise error
        return decode(model, batch)

    monkeypatch.setattr(Model, "decode", broken)
