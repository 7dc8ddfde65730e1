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
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np

from backends.base import (
    AsyncBackend,
    BackendError,
    BlockingBackend,
    Capabilities,
    Fault,
    RecognitionConfig,
    Result,
    Word,
)

MARKER: Final = 1_000
"""Sample value of word 0; word i is MARKER + i."""
MARKER_SECONDS: Final = 0.3
"""Length of a whole word of markers."""
MARKER_PAUSE: Final = 0.2
"""Silence that ends an utterance of markers."""
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
        first = int(start / (_STEP * len(_WORDS)) + 1e-6)
        utterance = first
        while True:  # the default: a word every half second, a final every six
            base = utterance * _STEP * len(_WORDS)
            for i in range(1, len(_WORDS) + 1):
                end = base + i * _STEP
                if end > start + 1e-6:
                    yield Scripted(end, " ".join(_WORDS[:i]), i == len(_WORDS), base, end)
            utterance += 1


class _Player:
    """What both kinds share: feed it audio, it says what to yield. Times out are stream seconds."""

    def __init__(self, script: Script, config: RecognitionConfig, mode: str) -> None:
        self.fault = script.faults[config.attempt] if config.attempt < len(script.faults) else None
        self._config = config
        self._samples = 0
        self._reader = _MarkerReader(config.sample_rate) if mode == "markers" else None
        self._results = script.following(config.start)
        self._next = next(self._results, None)
        self._covered = 0.0
        self._open: Scripted | None = None  # the partial that no final has closed
        if self.fault and self.fault.kind == "reject":
            raise BackendError("the script refuses this stream", code="rejected", fault=Fault.CLIENT)

    @property
    def _now(self) -> float:
        """Stream seconds."""
        return self._samples / self._config.sample_rate

    def struck(self) -> ScriptedFault | None:
        """The fault whose time has come; once."""
        fault = self.fault
        if fault is not None and self._config.start + self._now >= fault.at - 1e-6:
            self.fault = None
            return fault
        return None

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
        results = []
        while self._next is not None and self._next.at <= self._config.start + self._now + 1e-6:
            self._open = None if self._next.is_final else self._next
            results.append(self._result(self._next))
            self._next = next(self._results, None)
        return self._noted(results)

    def rest(self) -> list[Result]:
        """Everything up to now, final."""
        if self._reader is not None:
            return self._noted(self._reader.rest())
        now = self._config.start + self._now
        while self._next is not None and self._next.start < now - 1e-6:
            self._next = next(self._results, None)  # belongs to the utterance that is closed here
        if self._open is not None:
            said, self._open = self._open, None
            return self._noted([self._result(dataclasses.replace(said, is_final=True, end=now))])
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
            texts = scripted.text.split()
            step = (end - start) / max(1, len(texts))
            words = tuple(Word(t, start + i * step, start + (i + 1) * step, 1.0) for i, t in enumerate(texts))
        return Result(
            scripted.text,
            scripted.is_final,
            start,
            end,
            words,
            stability=None if scripted.is_final else 0.5,
            confidence=1.0 if scripted.is_final else None,
        )


class _MarkerReader:
    """Words out of marker audio."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._position = 0  # samples taken
        self._value = 0  # of the run that is going on
        self._run = 0
        self._words: list[Word] = []
        self._covered = 0
        self._quiet = 0

    def take(self, chunk: bytes) -> list[Result]:
        samples = np.frombuffer(chunk, "<i2")
        edges = np.flatnonzero(np.diff(samples)) + 1
        results: list[Result] = []
        changed = False
        for part in np.split(samples, edges):
            value = int(part[0])
            if value != self._value:
                changed |= self._end_run()
                self._value = value
            self._run += len(part)
            self._position += len(part)
            self._quiet = self._quiet + len(part) if value == 0 else 0
            if self._quiet >= MARKER_PAUSE * self._rate and self._position - self._covered >= self._rate / 2:
                results.append(self._final(self._position))
                changed = False
        if changed and self._words:
            text = " ".join(w.text for w in self._words)
            results.append(Result(text, False, self._words[0].start, self._position / self._rate))
        return results

    def rest(self) -> list[Result]:
        self._end_run()
        return [self._final(self._position)] if self._position > self._covered else []

    def _end_run(self) -> bool:
        value, run, self._run = self._value, self._run, 0
        if value < MARKER or not run:
            return False
        whole = abs(run - MARKER_SECONDS * self._rate) <= 0.01 * self._rate
        end = self._position / self._rate
        self._words.append(Word(f"w{value - MARKER}{'' if whole else '~'}", end - run / self._rate, end, 1.0))
        return True

    def _final(self, until: int) -> Result:
        words, self._words = tuple(self._words), []
        start = words[0].start if words else self._covered / self._rate
        self._covered = until
        return Result(" ".join(w.text for w in words), True, start, until / self._rate, words, confidence=1.0)


def marker_audio(words: int, *, rate: int = 16_000, pause: float = 0.3, first: int = 0) -> bytes:
    """Marker audio of so many words, each followed by a pause (seconds): PCM16 mono for mode `markers`."""
    quiet = np.zeros(round(pause * rate), "<i2")
    length = round(MARKER_SECONDS * rate)
    parts = [p for i in range(words) for p in (np.full(length, MARKER + first + i, "<i2"), quiet)]
    return np.concatenate(parts).tobytes() if parts else b""


def _failure(fault: ScriptedFault) -> BackendError:
    return BackendError("the script fails here", code="scripted", retryable=fault.retryable)


def _capabilities(options: ScriptedOptions) -> Capabilities:
    return Capabilities(word_times=True, confidences=True, flush=True, max_streams=options.max_streams)


def _read_script(options: ScriptedOptions) -> Script:
    if options.script is None:
        return Script()
    try:
        return Script.parse(json.loads(options.script.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BackendError(
            f"the script {options.script} cannot be read: {exc!r}", code="bad_script", fault=Fault.OPERATOR
        ) from exc


class ScriptedBackend(AsyncBackend):
    """The scripted engine on the event loop. `script` wins over the options' file."""

    name: ClassVar[str] = "scripted"
    Options = ScriptedOptions

    def __init__(self, options: ScriptedOptions | None = None, script: Script | None = None) -> None:
        super().__init__(options or ScriptedOptions())
        self._script = script if script is not None else Script()
        self._given = script is not None

    @property
    def capabilities(self) -> Capabilities:
        """What the options say."""
        return _capabilities(self.options)

    async def load(self) -> None:
        """Read the script's file."""
        if not self._given:
            self._script = _read_script(self.options)

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        """Play the script against the audio's clock."""
        player = _Player(self._script, config, self.options.mode)
        async for chunk in audio:
            for result in player.take(chunk):
                yield result
            fault = player.fault and player.struck()
            if not fault:
                continue
            if fault.kind == "fail":
                raise _failure(fault)
            if fault.kind == "end":
                return
            if fault.kind == "stall":
                await asyncio.get_running_loop().create_future()
            for result in player.flood(fault):
                yield result
        for result in player.rest():
            yield result


class ScriptedThreadsBackend(BlockingBackend):
    """The same engine as a blocking generator, for the thread bridge."""

    name: ClassVar[str] = "scripted-threads"
    Options = ScriptedOptions

    def __init__(self, options: ScriptedOptions | None = None, script: Script | None = None) -> None:
        super().__init__(options or ScriptedOptions())
        self._script = script if script is not None else Script()
        self._given = script is not None

    @property
    def capabilities(self) -> Capabilities:
        """What the options say."""
        return _capabilities(self.options)

    def load(self) -> None:
        """Read the script's file."""
        if not self._given:
            self._script = _read_script(self.options)

    def recognize(self, config: RecognitionConfig, audio: Iterator[bytes]) -> Iterator[Result]:
        """Play the script against the audio's clock."""
        player = _Player(self._script, config, self.options.mode)
        for chunk in audio:
            yield from player.take(chunk)
            fault = player.fault and player.struck()
            if not fault:
                continue
            if fault.kind == "fail":
                raise _failure(fault)
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
