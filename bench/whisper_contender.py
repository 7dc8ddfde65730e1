"""One run of one contender of `bench.whisper`, in this process: prints it as JSON.

`ours` is the engine `whisper` as the bridge opens it. `loop` is what every simple server does with one model: whenever
half a second of new audio has come, and when an utterance ends, `WhisperModel.transcribe` in a thread, behind one lock.
It has what costs nothing: at most one partial of a session waits, one that its final overtakes is dropped, none is
asked for while nobody speaks, and the endpoints are the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import uvloop
from faster_whisper import WhisperModel

from backends.base import AsyncBackend, Capabilities, RecognitionConfig, Result
from backends.whisper import hardware, models
from backends.whisper.backend import WhisperBackend
from backends.whisper.model import Model
from backends.whisper.options import WhisperOptions
from backends.whisper.window import RATE
from bench.whisper_load import SAMPLES, Load, floats, utterances
from bench.whisper_spoken import Spoken
from bridge.commands.serve import settle_memory

CONTENDERS: Final = ("ours", "loop")
PARTIAL_BYTES: Final = RATE  # half a second of PCM16
SILENT: Final = 0.003
"""Root of the mean square, of full scale: 12 dB above the floor of the recordings."""


class SpokenModel(Model):
    """Of random weights, with texts as long as speech."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._whisper.model = Spoken(self._whisper.model, self.tokenizer(self.languages[0]).no_timestamps)


class OneWindow(WhisperModel):  # type: ignore[misc]
    """Of random weights, whose word times mean nothing: `transcribe` does not look again behind the last word."""

    model: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model = Spoken(self.model, self.hf_tokenizer.token_to_id("<|notimestamps|>"))

    def _split_segments_by_timestamps(self, *args: Any, **kwargs: Any) -> Any:
        segments, seek, _ = super()._split_segments_by_timestamps(*args, **kwargs)
        return segments, seek, True


class LockedLoop(AsyncBackend):
    """One model, one lock. `random`: its weights are."""

    name: ClassVar[str] = "locked-loop"

    def __init__(self, folder: Path, options: WhisperOptions, *, random: bool) -> None:
        super().__init__()
        self._random = random
        self._temperatures = options.temperatures
        self._lock = asyncio.Lock()
        chosen = hardware.choose(options)
        self._whisper: Any = (OneWindow if random else WhisperModel)(
            str(folder),
            device=chosen.device,
            compute_type=chosen.compute_type,
            cpu_threads=options.threads or os.cpu_count() or 1,
            local_files_only=True,
        )

    @property
    def capabilities(self) -> Capabilities:
        """As far as the load needs them."""
        return Capabilities(flush=True)

    async def load(self) -> None:
        """Warm up."""
        for final in (False, True):
            await asyncio.to_thread(self.transcribe, bytes(2 * RATE), final=final)

    def transcribe(self, pcm: bytes, *, final: bool) -> str:
        """One window. Blocks."""
        segments, _ = self._whisper.transcribe(
            floats(pcm),
            language="en",
            beam_size=5 if final else 1,
            temperature=self._temperatures if final else 0.0,
            word_timestamps=final,
            condition_on_previous_text=False,
            without_timestamps=self._random,
        )
        return "".join(segment.text for segment in segments).strip()

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:  # noqa: ARG002
        """One stream."""
        results: asyncio.Queue[Result | None] = asyncio.Queue()
        reading = asyncio.create_task(self._read(audio, results))
        try:
            while (result := await results.get()) is not None:
                yield result
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, audio: AsyncIterator[bytes], results: asyncio.Queue[Result | None]) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                pcm, asked, before = bytearray(), 0, 0
                over = asyncio.Event()
                partial: asyncio.Task[None] | None = None
                async for chunk in audio:
                    pcm += chunk
                    start, end = before / 2 / RATE, (before + len(pcm)) / 2 / RATE
                    if not chunk:
                        over.set()
                        over = asyncio.Event()
                        tasks.create_task(self._hear(bytes(pcm), start, end, results, None))
                        before += len(pcm)
                        pcm, asked, partial = bytearray(), 0, None
                    elif len(pcm) - asked >= PARTIAL_BYTES and (partial is None or partial.done()):
                        asked = len(pcm)
                        if _sounds(pcm[-PARTIAL_BYTES:]):
                            partial = tasks.create_task(self._hear(bytes(pcm), start, end, results, over))
        finally:
            results.put_nowait(None)

    async def _hear(
        self, pcm: bytes, start: float, end: float, results: asyncio.Queue[Result | None], over: asyncio.Event | None
    ) -> None:
        """A partial of an utterance until that is `over`; without that, a final."""
        async with self._lock:
            if over is not None and over.is_set():
                return
            text = await asyncio.to_thread(self.transcribe, pcm, final=over is None)
        if over is None or not over.is_set():
            results.put_nowait(Result(text, over is None, start, end))


def _sounds(pcm: bytes | bytearray) -> bool:
    return bool(np.sqrt(np.mean(floats(pcm) ** 2)) > SILENT)


def engine(options: WhisperOptions, *, random: bool) -> WhisperBackend:
    """The engine `whisper`. All of this process have random models, or all real ones."""
    vars(models)["Model"] = SpokenModel if random else Model
    return WhisperBackend(options)


def contender(name: str, options: WhisperOptions, *, random: bool) -> AsyncBackend:
    """The engine of this name; its model's folder is `options.model`."""
    if name == "loop":
        return LockedLoop(Path(options.model), options, random=random)
    return engine(options, random=random)


def options_of(folder: Path, args: argparse.Namespace) -> WhisperOptions:
    """The settings of both."""
    return WhisperOptions(
        model=str(folder),
        offline=True,
        device=args.device,
        compute_type=args.compute_type,
        batch_size=args.batch_size,
        workers=args.workers,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every part of the benchmark takes."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--compute-type", default="auto")
    parser.add_argument("--batch-size", type=int, default=0, help="of ours; 0: its own choice")
    parser.add_argument("--workers", type=int, default=0, help="of ours; 0: its own choice")
    parser.add_argument(
        "--least-partials", type=float, default=0.0, help="a second of speech, without which no session is carried"
    )
    parser.add_argument("--speech", type=Path, default=SAMPLES, help="folder of recorded utterances")
    parser.add_argument("--random", action="store_true", help="the model is of random weights")


async def play(name: str, args: argparse.Namespace) -> Load:
    """One run."""
    backend = contender(name, options_of(args.model, args), random=args.random)
    await backend.load()
    settle_memory()
    load = Load(name, utterances(args.speech), args.sessions, args.seconds, args.least_partials)
    try:
        await load.play(backend)
    finally:
        await backend.close()
    if args.random:
        load.run.word_error_rate = None
    return load


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.whisper_contender", description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("model", type=Path, help="folder")
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0)
    add_options(parser)
    args = parser.parse_args()
    print(json.dumps(asdict(uvloop.run(play(args.contender, args)).run)), flush=True)
    os._exit(0)  # a thread may still decode what nobody waits for


if __name__ == "__main__":
    main()
