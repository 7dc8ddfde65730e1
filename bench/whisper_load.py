"""People who speak, live: recorded utterances with pauses, paced by the clock, and how soon their finals come.

A session hands its engine what the bridge would behind its gate: the utterance as it is spoken, the silence that ends
it, then `FLUSH`; nothing in the pause. A final's latency runs from the moment at which the flush was due to the final
that covers it, a partial's from the moment at which its newest audio was due.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from backends.base import FLUSH, AsyncBackend, BackendError, RecognitionConfig, Result
from backends.whisper.window import RATE
from bench.percentiles import percentiles
from bench.process import cpu_seconds
from bridge.audio.files import open_audio
from bridge.transcript import word_errors

Float32 = npt.NDArray[np.float32]

SAMPLES: Final = Path(__file__).resolve().parent.parent / "samples"
CHUNK_SECONDS: Final = 0.1

EDGE_SECONDS: Final = 0.15
"""Kept of a recording around an utterance."""
SILENCE_SECONDS: Final = 0.8
"""Silence that ends an utterance: the bridge's own choice."""
PAUSE_SECONDS: Final = (0.4, 2.2)
"""More silence until the next one, of which an engine behind the gate hears nothing."""
FLOOR: Final = 10 ** (-62 / 20)
"""What a quiet room sounds like, of full scale."""

PROMISE_SECONDS: Final = 1.0
LATE_SHARE: Final = 0.05
"""Sessions are carried when at most so many finals take longer than the promise, and none fails."""
SPREAD_SECONDS: Final = 6.0
"""In which all sessions begin, one after the other; what is asked for then is not counted."""
LAST_SECONDS: Final = 5.0
"""How long finals are waited for when all has been said."""
_COVERED: Final = 0.02  # seconds that a final may end before its flush: chunks are whole frames of the engine's


@dataclass(frozen=True, slots=True)
class Utterance:
    """What somebody says: PCM16 mono at 16 kHz, with the silence that ends it; `speech_seconds` of it are speech."""

    pcm: bytes
    speech_seconds: float
    text: str

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.pcm) / 2 / RATE

    @property
    def samples(self) -> Float32:
        """From -1 to 1."""
        return floats(self.pcm)


@dataclass(frozen=True, slots=True)
class Turn:
    """An utterance at its time, in seconds of the run."""

    start: float
    utterance: Utterance

    @property
    def flush(self) -> float:
        """When it has ended and can first be asked for."""
        return self.start + self.utterance.seconds


@dataclass
class Run:
    """What one run saw; latencies in milliseconds, CPU in percent of one core.

    `carried`: the promise for finals was kept. `stopped`: it was so clearly not that the run was cut short, and the
    latencies are at least these.
    """

    contender: str
    sessions: int
    seconds: float
    carried: bool = False
    stopped: bool = False
    finals: int = 0
    late: int = 0
    empty: int = 0
    failures: int = 0
    word_error_rate: float | None = None
    """Of the finals that came."""
    final_ms: dict[str, float] = field(default_factory=dict)
    partial_ms: dict[str, float] = field(default_factory=dict)
    partials_per_second: float = 0.0
    """Of speech, and session."""
    cpu_percent: float = 0.0
    gpu_percent: float | None = None
    gpu_memory_mb: float | None = None
    lag_ms: dict[str, float] = field(default_factory=dict)
    load_average: float = 0.0
    refused: float = 0.0
    """Share of the time in which the engine would have refused another session."""


def utterances(folder: Path = SAMPLES) -> list[Utterance]:
    """The English utterances of a folder: the clean ones of the project's samples, or the recordings of the tests."""
    quiet = np.random.default_rng(0)
    found = []
    for file, spoken in _recordings(folder):
        with open_audio(str(file)) as source:
            pcm = np.frombuffer(b"".join(source.chunks(1_000)), "<i2")
        for start, end, text in spoken:
            piece = pcm[_at(start - EDGE_SECONDS) : _at(end + EDGE_SECONDS)]
            silence = quiet.standard_normal(_at(SILENCE_SECONDS - EDGE_SECONDS)) * FLOOR * 32_768
            whole = np.concatenate([piece, silence.astype(np.int16)])
            found.append(Utterance(whole.astype("<i2").tobytes(), end - start, text))
    return found


def _recordings(folder: Path) -> Iterator[tuple[Path, list[tuple[float, float, str]]]]:
    """Files of 16 kHz and one channel, each with who says what when."""
    if (manifest := folder / "manifest.json").exists():
        for sample in json.loads(manifest.read_text())["samples"]:
            clean = (sample["sample_rate"], sample["channels"]) == (RATE, 1)
            if clean and sample["file"] not in {"noisy.flac", "pause.flac"}:
                yield folder / sample["file"], [(u["start"], u["end"], u["text"]) for u in sample["utterances"]]
        return
    for entry in json.loads((folder / "utterances.json").read_text()):
        if entry["language"] == "en":
            words = entry["words"]
            yield folder / entry["file"], [(words[0]["start"], words[-1]["end"], entry["text"])]
    for entry in json.loads((folder / "long.json").read_text()):
        if entry["language"] == "en":
            yield folder / entry["file"], [(u["start"], u["end"], u["text"]) for u in entry["utterances"]]


def turns(said: Sequence[Utterance], session: int, sessions: int, seconds: float) -> list[Turn]:
    """What one of so many sessions says until the run ends; always the same."""
    chance = random.Random(session)
    at = SPREAD_SECONDS * session / sessions
    spoken: list[Turn] = []
    while True:
        for utterance in chance.sample(said, len(said)):
            if at + utterance.seconds > seconds:
                return spoken
            spoken.append(Turn(at, utterance))
            at += utterance.seconds + chance.uniform(*PAUSE_SECONDS)


class Load:
    """Plays `sessions` people for `seconds` after the warm-up.

    They are carried only with so many partials a second of speech, in the mean, as `least_partials`.
    """

    def __init__(
        self, contender: str, said: Sequence[Utterance], sessions: int, seconds: float, least_partials: float = 0.0
    ) -> None:
        self._least_partials = least_partials
        self.run = Run(contender, sessions, seconds)
        self._turns = [turns(said, number, sessions, SPREAD_SECONDS + seconds) for number in range(sessions)]
        self._due = sum(turn.flush >= SPREAD_SECONDS for spoken in self._turns for turn in spoken)
        self._pending: list[deque[tuple[float, float]]] = [deque() for _ in range(sessions)]  # position, when
        self._heard: list[list[str]] = [[] for _ in range(sessions)]  # since the last flush that was answered
        self._answered = [0] * sessions
        self._errors = self._words = 0
        self._finals: list[float] = []
        self._partials: list[float] = []
        self._lags: list[float] = []
        self._speech = 0.0
        self._began = 0.0
        self._hopeless = asyncio.Event()

    async def play(self, backend: AsyncBackend) -> None:
        """Play all of it, and fill in the run. An engine's failures are counted, not raised."""
        run, pid = self.run, os.getpid()
        self._began = time.perf_counter()
        cpu, wall = cpu_seconds(pid), self._began
        watch = asyncio.create_task(self._watch(backend))
        sessions = [asyncio.create_task(self._session(backend, number)) for number in range(run.sessions)]
        hopeless = asyncio.create_task(self._hopeless.wait())
        everyone = asyncio.create_task(_all(sessions))
        try:
            await asyncio.wait({everyone, hopeless}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            run.cpu_percent = round(100 * (cpu_seconds(pid) - cpu) / (time.perf_counter() - wall), 1)
            for task in (*sessions, hopeless, watch):
                task.cancel()
            await asyncio.gather(*sessions, hopeless, watch, everyone, return_exceptions=True)
        run.stopped = self._hopeless.is_set()
        missing = self._overdue() if run.stopped else [max(waited, PROMISE_SECONDS) for waited in self._waiting()]
        run.late += len(missing)
        self._finals += missing
        run.finals = len(self._finals)
        run.final_ms, run.partial_ms = percentiles(self._finals), percentiles(self._partials)
        run.partials_per_second = round(len(self._partials) / max(1.0, self._speech), 2)
        in_time = not run.stopped and not run.failures and run.late <= LATE_SHARE * max(1, run.finals)
        run.carried = in_time and run.partials_per_second >= self._least_partials
        run.lag_ms = percentiles(self._lags)
        run.word_error_rate = round(self._errors / self._words, 4) if self._words else None
        run.load_average = os.getloadavg()[0]

    def _waiting(self) -> list[float]:
        """How long each final has been waited for that has not come."""
        now = self._now
        return [now - due for pending in self._pending for _, due in pending if due >= SPREAD_SECONDS]

    def _overdue(self) -> list[float]:
        return [waited for waited in self._waiting() if waited >= PROMISE_SECONDS]

    @property
    def _now(self) -> float:
        return time.perf_counter() - self._began

    async def _session(self, backend: AsyncBackend, number: int) -> None:
        audio: asyncio.Queue[bytes | None] = asyncio.Queue()
        talking = asyncio.create_task(self._talk(number, audio))
        config = RecognitionConfig(language="en-US", silence_seconds=3 * SILENCE_SECONDS, session_id=str(number))
        try:
            stream: Any = backend.recognize(config, _chunks(audio))
            async with aclosing(stream) as results:
                async for result in results:
                    self._hear(number, result)
            self.run.failures += not talking.done()  # it ended before its audio did
        except BackendError:
            self.run.failures += 1
        finally:
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)

    async def _talk(self, number: int, audio: asyncio.Queue[bytes | None]) -> None:
        size = 2 * _at(CHUNK_SECONDS)
        position = 0.0
        for turn in self._turns[number]:
            for index in range(0, len(turn.utterance.pcm), size):
                chunk = turn.utterance.pcm[index : index + size]
                await self._until(turn.start + (index + len(chunk)) / 2 / RATE)
                audio.put_nowait(chunk)
            position += turn.utterance.seconds
            self._pending[number].append((position, turn.flush))
            audio.put_nowait(FLUSH)
            if turn.flush >= SPREAD_SECONDS:
                self._speech += turn.utterance.speech_seconds
        for _ in range(round(LAST_SECONDS / CHUNK_SECONDS)):
            if self._pending[number]:
                await asyncio.sleep(CHUNK_SECONDS)
        audio.put_nowait(None)

    async def _until(self, when: float) -> None:
        await asyncio.sleep(max(0.0, when - self._now))
        self._lags.append(max(0.0, self._now - when))

    def _hear(self, number: int, result: Result) -> None:
        now, pending = self._now, self._pending[number]
        if not result.is_final:
            if result.text and now >= SPREAD_SECONDS:
                self._partials.append(now - self._spoken_at(number, result.end))
            return
        if result.text:
            self._heard[number].append(result.text)
        while pending and pending[0][0] <= result.end + _COVERED:
            _, due = pending.popleft()
            text = " ".join(self._heard[number])
            self._compare(number, text)
            if due < SPREAD_SECONDS:
                continue
            self._finals.append(now - due)
            self.run.empty += not text
            self.run.late += now - due >= PROMISE_SECONDS
            # More than this, and no final still to come can save it.
            if self.run.late > LATE_SHARE * self._due + 1:
                self._hopeless.set()

    def _compare(self, number: int, text: str) -> None:
        """What has been heard with what was said in the next turn."""
        said = self._turns[number][self._answered[number]].utterance.text
        errors, words = word_errors(said, text)
        self._errors, self._words = self._errors + errors, self._words + words
        self._heard[number].clear()
        self._answered[number] += 1

    def _spoken_at(self, number: int, position: float) -> float:
        """When the audio at this place of a session's stream was due."""
        before = 0.0
        for turn in self._turns[number]:
            if position <= before + turn.utterance.seconds + _COVERED:
                return turn.start + position - before
            before += turn.utterance.seconds
        return self._now

    async def _watch(self, backend: AsyncBackend) -> None:
        """What can only be seen from time to time."""
        gpu = Gpu.first()
        used: list[float] = []
        refused: list[bool] = []
        while True:
            await asyncio.sleep(0.5)
            if self.run.late + len(self._overdue()) > LATE_SHARE * self._due + 1:
                self._hopeless.set()
            if self._now < SPREAD_SECONDS:
                continue
            refused.append(backend.refusal() is not None)
            self.run.refused = round(sum(refused) / len(refused), 2)
            if gpu is not None:
                percent, memory = gpu.read()
                used.append(percent)
                self.run.gpu_percent = round(sum(used) / len(used), 1)
                self.run.gpu_memory_mb = max(self.run.gpu_memory_mb or 0.0, memory)


class Gpu:
    """How busy the first GPU is, by NVML."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    @classmethod
    def first(cls) -> Gpu | None:
        """None where there is none, or nobody to ask."""
        try:
            import pynvml  # noqa: PLC0415 - of the extra `cuda`

            pynvml.nvmlInit()
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByIndex(0))
        except Exception:  # noqa: BLE001 - not installed, or no driver that answers
            return None

    @property
    def name(self) -> str:
        """Of the device."""
        name = self._nvml.nvmlDeviceGetName(self._handle)
        return name.decode() if isinstance(name, bytes) else str(name)

    def read(self) -> tuple[float, float]:
        """Percent of the time in which it did something, and MB of its memory that are used."""
        rates = self._nvml.nvmlDeviceGetUtilizationRates(self._handle)
        return float(rates.gpu), self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used / 1e6


def floats(pcm: bytes | bytearray) -> Float32:
    """PCM16 as samples from -1 to 1."""
    return np.frombuffer(pcm, "<i2").astype(np.float32) * np.float32(1 / 32_768)


def _at(seconds: float) -> int:
    return max(0, round(seconds * RATE))


async def _all(tasks: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks)


async def _chunks(audio: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
    while (chunk := await audio.get()) is not None:
        yield chunk
