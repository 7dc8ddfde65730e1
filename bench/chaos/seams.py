"""Whether the embedded engine repeats itself: `python -m bench.chaos.seams`.

After a failure a stream begins where the finals before it end. It then knows neither the mean of the voice, which it
carries from one utterance to the next, nor the background noise. Each sample is recognized as a whole, then again from
the end of each of its finals on, and from those of the streams that begin there; differences are printed. Samples in
which there are any stand in `bench.chaos.recordings.UNSTEADY`: no chaos run can expect the same words of them.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
from typing import Any, Final

import numpy as np
import soxr

from backends.base import Result
from backends.pocketsphinx_recognizer import SAMPLE_RATE, Ears, Recognizer, load
from bench.chaos.recordings import SAMPLES, UNSTEADY
from bridge.audio.files import open_audio

CHUNK_BYTES: Final = 3_200
NEAR: Final = SAMPLE_RATE // 4
"""Samples by which two finals that are the same may end apart: a stream that begins later rounds otherwise."""


def recognized(decoder: Any, pcm: bytes) -> list[Result]:
    """The finals, heard by a fork of the decoder, as the engine forks one for each stream: it keeps a state."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with os.fdopen(writing, "wb") as file:
            recognizer = Recognizer(decoder, Ears(), partials=False)
            finals = [
                result
                for at in range(0, len(pcm), CHUNK_BYTES)
                for result in recognizer.feed(pcm[at : at + CHUNK_BYTES])
            ]
            pickle.dump([*finals, *recognizer.end()], file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        finals = pickle.load(file)  # noqa: S301 - our own child's
    os.waitpid(child, 0)
    return list(finals)


def audio(name: str) -> bytes:
    """A sample at the engine's rate."""
    with open_audio(str(SAMPLES / name)) as source:
        pcm, rate = b"".join(source.chunks(100)), source.format.sample_rate
    if rate == SAMPLE_RATE:
        return pcm
    resampled = soxr.resample(np.frombuffer(pcm, "<i2").astype("f4"), rate, SAMPLE_RATE)
    samples: bytes = np.clip(np.rint(resampled), -32_768, 32_767).astype("<i2").tobytes()
    return samples


def differences(decoder: Any, pcm: bytes) -> tuple[int, list[str]]:
    """How many seams were tried, and what was heard otherwise behind one; a sentence each."""
    heard: dict[int, list[tuple[int, str]]] = {}

    def finals(start: int) -> list[tuple[int, str]]:
        """Ends and texts of the finals of a stream that begins there."""
        if start not in heard:
            results = recognized(decoder, pcm[2 * start :])
            heard[start] = [(start + round(r.end * SAMPLE_RATE), r.text) for r in results]
        return heard[start]

    found = []
    whole, tried = finals(0), set[int]()
    seams = [end for end, _ in whole]
    while seams:
        seam = seams.pop()
        if seam in tried or seam >= len(pcm) // 2 - NEAR:
            continue
        tried.add(seam)
        expected = " ".join(text for end, text in whole if text and end > seam + NEAR)
        got = " ".join(text for _, text in finals(seam) if text)
        if got != expected:
            found.append(f"from {seam / SAMPLE_RATE:.2f} s on {got!r} instead of {expected!r}")
        seams += [end for end, _ in finals(seam)]
    return len(tried), found


def main() -> int:
    """Try the samples; exit code 1 if another than the known ones differs."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos.seams", description=__doc__)
    parser.add_argument("--longest", type=float, default=20, help="seconds; one of two minutes takes ten")
    args = parser.parse_args()
    samples = json.loads((SAMPLES / "manifest.json").read_text())["samples"]
    names = [sample["file"] for sample in samples if sample["seconds"] <= args.longest]
    decoder = load({})
    tried, unsteady = 0, set()
    for name in names:
        count, found = differences(decoder, audio(name))
        tried += count
        if found:
            unsteady.add(name)
        for sentence in found:
            print(f"{name}: {sentence}", flush=True)
    print(f"{len(names)} samples, {tried} seams; not the same behind each: {', '.join(sorted(unsteady)) or 'none'}")
    return int(not unsteady <= UNSTEADY)


if __name__ == "__main__":
    sys.exit(main())
