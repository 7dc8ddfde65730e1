"""A stream without a model: each word of the audio is a constant of its own, and an oracle reads it back exactly.

So whatever is lost, doubled or misplaced was so by the stream, and thousands of cases take seconds. What the oracle
hears of a word that is cut is something else, as with Whisper.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pytest

from backends.base import RecognitionConfig
from backends.whisper import speech
from backends.whisper.model import Request
from backends.whisper.models import Loaded, Models
from backends.whisper.options import WhisperOptions
from backends.whisper.scheduler import Replaced
from backends.whisper.speech import Ears
from backends.whisper.stream import Stream
from backends.whisper.window import RATE, Hypothesis, Kind, Piece
from tests.backends.whisper.harness import Heard

LOUDEST: Final = 30_000
WHOLE: Final = 0.9
"""Share of a word that must be in the window for it to be heard."""


@dataclass(frozen=True)
class Spoken:
    """A word and when it is spoken, in samples."""

    number: int
    start: int
    end: int

    @property
    def text(self) -> str:
        """Five letters that compress badly: a final of many words is no loop."""
        digest = hashlib.blake2b(str(self.number).encode(), digest_size=5).digest()
        return "".join(chr(ord("a") + byte % 26) for byte in digest)


@dataclass(frozen=True)
class Script:
    """What is said. Times in samples."""

    words: tuple[Spoken, ...]
    length: int

    @classmethod
    def of(cls, *words: tuple[float, float], tail: float = 0.0) -> Script:
        """Of (pause before, duration) in seconds, and the silence at the end."""
        spoken, at = [], 0
        for number, (pause, duration) in enumerate(words, 1):
            at += round(pause * RATE)
            spoken.append(Spoken(number, at, at := at + round(duration * RATE)))
        return cls(tuple(spoken), at + round(tail * RATE))

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(word.text for word in self.words)

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.length / RATE

    def pcm(self) -> bytes:
        """The audio."""
        samples = np.zeros(self.length, "<i2")
        for word in self.words:
            samples[word.start : word.end] = _value(word.number)
        return samples.tobytes()


def _value(number: int) -> int:
    return 1_000 + number


class _Vad:
    """Silero's place: a frame in which anything is said is speech."""

    def __init__(self) -> None:
        self.session = self

    def run(self, _: None, given: dict[str, npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
        loud = (given["input"][:, speech.CONTEXT :] != 0).mean(1) > 0.3
        return [loud.astype(np.float32), given["h"], given["c"]]


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `Stream` hears speech with knows the scripts' audio."""
    monkeypatch.setattr(speech, "get_vad_model", _Vad)


class _AtOnce(Executor):
    """Runs what it is given on the loop: nothing depends on threads."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


Answer = Callable[[Request, Hypothesis], Hypothesis | Exception]


@dataclass
class Oracle:
    """In place of the scheduler and its model: hears what the script says, after a while.

    `turns`: how many turns of the loop a decode may take, at random. `noise`: how often it mishears what a partial has
    in its last second. `answer` may change what is heard; `gate` holds decodes up.
    """

    script: Script
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    turns: int = 0
    noise: float = 0.0
    answer: Answer | None = None
    gate: Callable[[Request], Awaitable[object]] | None = None
    heard_as: str = "en"
    partial_stretch: float = 1.0
    requests: list[Request] = field(default_factory=list)
    lanes: set[int] = field(default_factory=set)
    _waiting: dict[int, list[asyncio.Event]] = field(default_factory=dict)
    _count: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @contextlib.contextmanager
    def lane(self) -> Iterator[int]:
        lane = next(self._count)
        self.lanes.add(lane)
        try:
            yield lane
        finally:
            self.lanes.discard(lane)

    async def decode(self, lane: int, request: Request) -> Hypothesis:
        assert lane in self.lanes
        self.requests.append(request)
        for replaced in self._waiting.pop(lane, []):
            replaced.set()
        replaced = asyncio.Event()
        if request.kind is Kind.PARTIAL:
            self._waiting[lane] = [replaced]
        begins = self.chance.randint(0, self.turns)
        for turn in range(self.chance.randint(begins, self.turns)):
            await asyncio.sleep(0)
            if replaced.is_set() and turn < begins:
                raise Replaced
        if self.gate is not None:
            await self.gate(request)
        if not replaced.is_set():
            self._waiting.pop(lane, None)
        heard = self._heard(request)
        answer = heard if self.answer is None else self.answer(request, heard)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _heard(self, request: Request) -> Hypothesis:
        pieces = list(self._pieces(request.samples))
        if request.prefix:
            pieces = [piece for piece in pieces if piece.tokens[0] > request.prefix[-1]]
        if request.kind is Kind.PARTIAL:
            pieces = [replace(piece, start=None, end=None) for piece in self._misheard(pieces, request.seconds)]
        language = request.language or self.heard_as
        return Hypothesis(tuple(pieces), -0.1, 0.1, request.temperature, language, None if request.language else 0.9)

    def _pieces(self, samples: npt.NDArray[np.float32]) -> Iterator[Piece]:
        values = np.rint(samples * 32_768).astype(int)
        edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
        for start, end in itertools.pairwise(edges):
            if start < end and values[start]:
                word = self.script.words[values[start] - _value(1)]
                whole = end - start >= WHOLE * (word.end - word.start)
                text = word.text if whole else f"cut{self.chance.randrange(10**6)}"
                yield Piece(f" {text}", (word.number,), start / RATE, end / RATE, 0.9)

    def _misheard(self, pieces: Sequence[Piece], seconds: float) -> Iterator[Piece]:
        for piece in pieces:
            if (piece.end or 0) < seconds - 1 or self.chance.random() >= self.noise:
                yield piece
            elif self.chance.random() < 0.7:
                yield replace(piece, text=f" noise{self.chance.randrange(10**6)}")


class Library:
    """In place of `Models`: one model after another."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.prompts: list[tuple[str, str]] = []
        self.loaded = self._load()

    def _load(self) -> Loaded:
        model = SimpleNamespace(prompt=self._prompt, languages=("en", "de"), multilingual=True)
        return Loaded(cast("Any", model), cast("Any", self.oracle))

    def _prompt(self, lead: str, history: str) -> tuple[int, ...]:
        self.prompts.append((lead, history))
        return ()

    def switch(self) -> Loaded:
        """Another model; returns the one before, which waits for its streams to leave."""
        old, self.loaded = self.loaded, self._load()
        old.retire()
        return old

    async def current(self) -> Loaded:
        return self.loaded


class Metrics:
    """Counts what was rejected."""

    def __init__(self) -> None:
        self.reasons: list[tuple[str, Kind]] = []

    def rejected(self, reason: str, kind: Kind) -> None:
        self.reasons.append((reason, kind))


@dataclass
class Bench:
    """A stream on an oracle."""

    script: Script
    oracle: Oracle
    library: Library
    metrics: Metrics
    stream: Stream

    @classmethod
    def of(
        cls,
        script: Script,
        *,
        config: RecognitionConfig | None = None,
        options: WhisperOptions | None = None,
        language: str | None = "en",
        **oracle: Any,
    ) -> Bench:
        """With the oracle's fields."""
        source = Oracle(script, **oracle)
        library, metrics, options = Library(source), Metrics(), options or WhisperOptions()
        stream = Stream(
            cast("Models", library),
            Ears(options.speech_threshold),
            _AtOnce(),
            config or RecognitionConfig(),
            options,
            cast("Any", metrics),
            language=language,
        )
        return cls(script, source, library, metrics, stream)

    async def hear(self, chunks: Iterable[bytes] | AsyncIterator[bytes]) -> Heard:
        """The whole stream; checks that it leaves nothing behind."""
        before = asyncio.all_tasks()
        heard = Heard()
        source = chunks if isinstance(chunks, AsyncIterator) else feed(chunks)
        async for result in self.stream.results(source):
            heard.take(result)
        self.assert_left(before)
        return heard

    def assert_left(self, before: set[asyncio.Task[Any]]) -> None:
        """No task, no lane and no lease is left."""
        left = asyncio.all_tasks() - before
        assert not left, left
        assert not self.oracle.lanes
        assert self.library.loaded.idle.is_set()


async def feed(chunks: Iterable[bytes], chance: random.Random | None = None, turns: int = 3) -> AsyncIterator[bytes]:
    """The chunks, some turns of the loop apart."""
    for chunk in chunks:
        for _ in range(chance.randint(0, turns) if chance else 1):
            await asyncio.sleep(0)
        yield chunk
