"""Is what is heard the same, whether windows share batches or not? For models that hear something, and on a CPU.

On a GPU the order of a sum depends on the size of a batch, and so may, rarely, a doubtful word.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from backends.base import FLUSH, RecognitionConfig
from backends.whisper import hardware
from backends.whisper.backend import WhisperBackend
from backends.whisper.model import Model, Request
from backends.whisper.window import Kind
from bench.whisper_contender import SpokenModel, engine, options_of
from bench.whisper_load import Utterance, utterances

BATCH: Final = 8
STREAMS: Final = 8
EACH: Final = 4
"""Utterances of a stream."""
CHUNK_BYTES: Final = 6_400


async def same_texts(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Count windows and streams whose text is another in company."""
    said = utterances(args.speech)
    windows, different = await asyncio.to_thread(_windows, folder, args, said)
    options = replace(options_of(folder, args), batch_size=BATCH, batch_wait_seconds=0.05, workers=1)
    backend = engine(options, random=args.random)
    await backend.load()
    try:
        streams = [[said[(EACH * number + i) % len(said)] for i in range(EACH)] for number in range(STREAMS)]
        together = await asyncio.gather(*(_heard(backend, stream) for stream in streams))
        alone = [await _heard(backend, stream) for stream in streams]
    finally:
        await backend.close()
    different += sum(one != other for one, other in zip(together, alone, strict=True))
    return {"batch": BATCH, "windows": windows, "streams": STREAMS, "different": different}


def _windows(folder: Path, args: argparse.Namespace, said: Sequence[Utterance]) -> tuple[int, int]:
    """How many windows were decoded, as partials and as finals, and how many of them differed in a batch."""
    model = (SpokenModel if args.random else Model)("model", folder, hardware.choose(options_of(folder, args)))
    windows = different = 0
    for kind in Kind:
        prepared = [model.prepare(Request(kind, utterance.samples, "en")) for utterance in said[: 3 * BATCH]]
        for first in range(0, len(prepared), BATCH):
            batch = prepared[first : first + BATCH]
            for together, single in zip(model.decode(batch), batch, strict=True):
                [alone] = model.decode([single])
                windows += 1
                different += together.tokens != alone.tokens
    return windows, different


async def _heard(backend: WhisperBackend, said: Sequence[Utterance]) -> list[str]:
    """A stream's finals. Without partials, whose times, and so the words they commit, depend on the company."""

    async def audio() -> AsyncIterator[bytes]:
        for utterance in said:
            for start in range(0, len(utterance.pcm), CHUNK_BYTES):
                yield utterance.pcm[start : start + CHUNK_BYTES]
            yield FLUSH

    stream: Any = backend.recognize(RecognitionConfig(partials=False, silence_seconds=2.0), audio())
    async with aclosing(stream) as results:
        return [result.text async for result in results]
