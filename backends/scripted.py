"""The engine that says what it is told: for tests, demonstrations, benchmarks and for writing a client.

Two modes. `script` plays given results at given audio times. `markers` reads words out of the audio itself: during
word i every sample has the value 1000 + i, silence is 0, so that a word that was lost, cut or doubled on the way
shows in the transcript (a cut one ends in `~`).

Faults come by plan: the n-th fault belongs to the n-th stream that a session opens, so that re-opening meets the
next one. Each names the session time at which it strikes and its kind:

- `fail`: raise a retryable `BackendError` (`"retryable": false` makes it a final one);
- `stall`: take no more audio and answer nothing;
- `flood`: yield `count` partials at once;
- `end`: return early, as if the audio had ended;
- `reject`: refuse the configuration.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from backends.base import (
    AsyncBackend,
    Backend,
    BackendError,
    BlockingBackend,
    Capabilities,
    Fault,
    RecognitionConfig,
    Result,
    Word,
)
from backends.markers import MARKER, MARKER_PAUSE, MARKER_SECONDS, MarkerReader, marker_audio

__all__ = [
    "MARKER",
    "MARKER_PAUSE",
    "MARKER_SECONDS",
    "Script",
    "Scripted",
    "ScriptedBackend",
    "ScriptedFault",
    "ScriptedOptions",
    "ScriptedThreadsBackend",
    "marker_audio",
]

_STEP: Final = 0.5
_WORDS: Final = ["one", "two", "three", "four", "five", "six"]


@dataclass(frozen=True, slots=True)
class ScriptedOptions:
    """Settings of the scripted engine."""

    mode: Literal["script", "markers"] = field(
        default="script", metadata={"help": "Play a script, or read words from marker audio."}
    )
    script: Path | None = field(
        default=None, metadata={"help": "JSON file with `results` and `faults`; unset: counts to six, for ever."}
    )
    max_streams: int | None = field(default=None, metadata={"help": "Streams that it carries at once.", "min": 1})


@dataclass(frozen=True, slots=True)
class Scripted:
    """One result of a script; times in session seconds, `at` the audio time at which it is given."""

    at: float
    text: str
    is_final: bool
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class ScriptedFault:
    """One fault of the plan; `at` in session seconds."""

    at: float
    kind: Literal["fail", "stall", "flood", "end", "reject"]
    retryable: bool = True
    count: int = 1_000

    def __post_init__(self) -> None:
        if self.kind not in ("fail", "stall", "flood", "end", "reject"):
            raise ValueError(f"no such fault: {self.kind!r}")


@dataclass(frozen=True, slots=True)
class Script:
    """Results in the order of `at`, and faults: the n-th for a session's n-th stream."""

    results: tuple[Scripted, ...] | None = None
    faults: tuple[ScriptedFault, ...] = ()

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Script:
        """A script as JSON holds it: `{"results": [{"at", "text", "final", "start", "end"}], "faults": […]}`."""
        results = data.get("results")
        return cls(
            None
            if results is None
            else tuple(
                Scripted(r["at"], r["text"], r.get("final", False), r.get("start", 0.0), r.get("end", r["at"]))
                for r in sorted(results, key=lambda r: float(r["at"]))
            ),
            tuple(ScriptedFault(**f) for f in data.get("faults", ())),
        )

    def following(self, start: float) -> Iterator[Scripted]:
        """The results for a stream that begins at `start`: those that no earlier final has covered."""
        if self.results is not None:
            yield from (r for r in self.results if r.end > start + 1e-6)
            return
        utterance = int(start / (_STEP * len(_WORDS)) + 1e-6)
        yield from (r for r in _utterance(utterance) if r.end > start + 1e-6)
        while True:  # the default: a word every half second, a final every six
            utterance += 1
            yield from _utterance(utterance)


@functools.lru_cache(1_024)
def _utterance(number: int) -> tuple[Scripted, ...]:
    """One of the default script: remembered, so that a benchmark measures the bridge and not this."""
    base = number * _STEP * len(_WORDS)
    ends = [base + i * _STEP for i in range(1, len(_WORDS) + 1)]
    return tuple(Scripted(end, " ".join(_WORDS[:i]), i == len(_WORDS), base, end) for i, end in enumerate(ends, 1))


def _spoken(text: str, start: float, end: float) -> tuple[Word, ...]:
    """Its words, of one length each."""
    texts = text.split()
    step = (end - start) / max(1, len(texts))
    return tuple(Word(t, start + i * step, start + (i + 1) * step, 1.0) for i, t in enumerate(texts))


_spoken_before = functools.lru_cache(1_024)(_spoken)


class _Player:
    """What both kinds share: feed it audio, it says what to yield. Times out are stream seconds."""

    __slots__ = (
        "_config",
        "_covered",
        "_fault",
        "_next",
        "_open",
        "_reader",
        "_results",
        "_samples",
        "_speak",
    )

    def __init__(self, script: Script, config: RecognitionConfig, mode: str) -> None:
        self._fault = script.faults[config.attempt] if config.attempt < len(script.faults) else None
        self._config = config
        # Texts of a script's own may be long: they are not kept.
        self._speak = _spoken if script.results is not None or mode == "markers" else _spoken_before
        self._samples = 0
        self._reader = MarkerReader(config.sample_rate) if mode == "markers" else None
        self._results = script.following(config.start)
        self._next = next(self._results, None)
        self._covered = 0.0
        self._open: Scripted | None = None  # the partial that no final has closed
        if self._fault and self._fault.kind == "reject":
            raise BackendError("the script refuses this stream", code="rejected", fault=Fault.CLIENT)

    @property
    def _now(self) -> float:
        """Stream seconds."""
        return self._samples / self._config.sample_rate

    def struck(self) -> ScriptedFault | None:
        """The fault whose time has come; once. One of the kind `fail` is raised."""
        fault = self._fault
        if fault is None or self._config.start + self._now < fault.at - 1e-6:
            return None
        self._fault = None
        if fault.kind == "fail":
            raise BackendError("the script fails here", code="scripted", retryable=fault.retryable)
        return fault

    def flood(self, fault: ScriptedFault) -> Iterator[Result]:
        """So many partials at once."""
        return (Result(f"flood {i}", False, self._covered, self._now) for i in range(fault.count))

    def take(self, chunk: bytes) -> list[Result]:
        """What the chunk brings; an empty one is the flush mark."""
        if not chunk:
            return self.rest()
        self._samples += len(chunk) // 2
        if self._reader is not None:
            return self._noted(self._reader.take(chunk))
        results: list[Result] = []
        while self._next is not None and self._next.at <= self._config.start + self._now + 1e-6:
            self._open = None if self._next.is_final else self._next
            if self._next.is_final or self._config.partials:
                results.append(self._result(self._next))
            self._next = next(self._results, None)
        return self._noted(results) if results else results

    def rest(self) -> list[Result]:
        """Everything up to now, final."""
        if self._reader is not None:
            return self._noted(self._reader.rest())
        now = self._config.start + self._now
        while self._next is not None and self._next.start < now - 1e-6:
            self._next = next(self._results, None)  # belongs to the utterance that is closed here
        if self._open is not None:
            said, self._open = self._open, None
            return self._noted([self._result(Scripted(now, said.text, True, said.start, now))])
        return self._noted([Result("", True, self._covered, self._now)]) if self._covered < self._now else []

    def _noted(self, results: list[Result]) -> list[Result]:
        for result in results:
            if result.is_final:
                self._covered = result.end
        if not self._config.words:
            results = [dataclasses.replace(r, words=()) if r.words else r for r in results]
        return results if self._config.partials else [r for r in results if r.is_final]

    def _result(self, scripted: Scripted) -> Result:
        start = max(0.0, scripted.start - self._config.start)
        end = max(start, scripted.end - self._config.start)
        words: tuple[Word, ...] = ()
        if scripted.is_final and self._config.words:
            words = self._speak(scripted.text, start, end)
        return Result(
            scripted.text,
            scripted.is_final,
            start,
            end,
            words,
            stability=None if scripted.is_final else 0.5,
            confidence=1.0 if scripted.is_final else None,
        )


class _ScriptedEngine(Backend):
    """What both kinds share: the options, and the script that they play. `script` wins over the options' file."""

    Options = ScriptedOptions

    def __init__(self, options: ScriptedOptions | None = None, script: Script | None = None) -> None:
        super().__init__(options or ScriptedOptions())
        self._script = script if script is not None else Script()
        self._given = script is not None
        self._capabilities = Capabilities(
            word_times=True, confidences=True, flush=True, max_streams=self.options.max_streams
        )

    @property
    def capabilities(self) -> Capabilities:
        """What the options say."""
        return self._capabilities

    def _read_script(self) -> None:
        """From the options' file, unless a script was given."""
        path = self.options.script
        if self._given or path is None:
            return
        try:
            self._script = Script.parse(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise BackendError(
                f"the script {path} cannot be read: {exc!r}", code="bad_script", fault=Fault.OPERATOR
            ) from exc

    def _player(self, config: RecognitionConfig) -> _Player:
        return _Player(self._script, config, self.options.mode)


class ScriptedBackend(_ScriptedEngine, AsyncBackend):
    """The scripted engine on the event loop."""

    name: ClassVar[str] = "scripted"

    async def load(self) -> None:
        """Read the script's file."""
        self._read_script()

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        """Play the script against the audio's clock."""
        player = self._player(config)
        async for chunk in audio:
            for result in player.take(chunk):
                yield result
            fault = player.struck()
            if fault is None:
                continue
            if fault.kind == "end":
                return
            if fault.kind == "stall":
                await asyncio.get_running_loop().create_future()
            for result in player.flood(fault):
                yield result
        for result in player.rest():
            yield result


class ScriptedThreadsBackend(_ScriptedEngine, BlockingBackend):
    """The same engine as a blocking generator, for the thread bridge."""

    name: ClassVar[str] = "scripted-threads"

    def load(self) -> None:
        """Read the script's file."""
        self._read_script()

    def recognize(self, config: RecognitionConfig, audio: Iterator[bytes]) -> Iterator[Result]:
        """Play the script against the audio's clock."""
        player = self._player(config)
        for chunk in audio:
            yield from player.take(chunk)
            fault = player.struck()
            if fault is None:
                continue
            if fault.kind == "end":
                return
            if fault.kind == "stall":
                _stall_until_cancelled(audio)
            yield from player.flood(fault)
        yield from player.rest()


def _stall_until_cancelled(audio: Iterator[bytes]) -> None:
    """A blocking engine can only be freed through its audio iterator, so it stalls there: nothing is read.

    An iterator without `cancelled` (a plain one, in a test) never frees it, as a real stall would.
    """
    cancelled: threading.Event = getattr(audio, "cancelled", threading.Event())
    cancelled.wait()
