"""Words and speech that nobody said: half an hour of silence, hum and noise, faster than real time.

`python -m bench.phantom [NOISE…]` prints, for each noise at each of its levels, the share of it that each voice
detector would let through to an engine, and the words that the embedded engine makes of all of it without a gate.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Iterator
from typing import Final

import numpy as np

from backends.pocketsphinx_recognizer import Ears, Recognizer, load
from bench.noises import NOISES, RATE, at_level, to_pcm16

LEVELS: Final = (-70.0, -60.0, -50.0, -40.0, -30.0, -20.0)
"""dBFS (RMS). Speech near a microphone is at -35 to -15."""
SCENE_SECONDS: Final = 36.0
"""Of each noise at each level: with silence and dither, half an hour."""


def scenes() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Streams by name, each a row of scenes: what is heard, and its audio."""
    samples = round(SCENE_SECONDS * RATE)
    chance = np.random.default_rng(4)
    dither = chance.uniform(-0.5, 0.5, samples) + chance.uniform(-0.5, 0.5, samples)
    yield "silence", [("digital", bytes(2 * samples)), ("dither", to_pcm16(dither / 32_768))]
    for name, make in NOISES.items():
        noise = make(np.random.default_rng(zlib.crc32(name.encode())), samples)
        yield name, [(f"{level:.0f} dBFS", to_pcm16(at_level(noise, level))) for level in LEVELS]


def words_heard(decoder: object, audio: list[bytes]) -> list[list[str]]:
    """The words of the finals, by scene."""
    recognizer = Recognizer(decoder, Ears(), partials=False)
    heard: list[list[str]] = [[] for _ in audio]
    ends = np.cumsum([len(scene) // 2 for scene in audio]) / RATE
    chunks = (scene[at : at + 3_200] for scene in audio for at in range(0, len(scene), 3_200))
    results = [result for chunk in chunks for result in recognizer.feed(chunk)] + list(recognizer.end())
    for result in results:
        for word in result.words if result.is_final else ():
            heard[min(len(heard) - 1, int(np.searchsorted(ends, word.start, side="right")))].append(word.text)
    return heard


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.phantom", description=__doc__)
    parser.add_argument("noises", nargs="*", help="only these")
    parser.add_argument("--words", action="store_true", help="print the words, too")
    args = parser.parse_args()
    total = seconds = 0.0
    for name, row in scenes():
        if args.noises and name not in args.noises:
            continue
        begun = time.process_time()
        heard = words_heard(load({}), [audio for _, audio in row])
        cost = time.process_time() - begun
        for (scene, audio), words in zip(row, heard, strict=True):
            print(
                f"{name:10} {scene:10} {len(audio) / 2 / RATE:6.0f} s {len(words):5} words",
                " ".join(words) if args.words else "",
                flush=True,
            )
            total += len(words)
            seconds += len(audio) / 2 / RATE
        print(f"{name:10} cpu {cost:.1f} s", flush=True)
    print(f"{'all':21} {seconds:6.0f} s {total:5.0f} words")


if __name__ == "__main__":
    main()
