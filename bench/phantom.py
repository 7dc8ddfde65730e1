"""Words and speech that nobody said: half an hour of silence, hum and noise, faster than real time.

`python -m bench.phantom [NOISE…]` prints, for each noise at each of its levels, how much of it a gate by each voice
detector would let through to an engine, and how many words the embedded engine makes of all of it without a gate.
"""

from __future__ import annotations

import argparse
import asyncio
import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np

from backends.pocketsphinx_recognizer import Ears, Recognizer, load
from bench.noises import NOISES, RATE, at_level, to_pcm16
from bench.vad import DETECTORS, probabilities, segments
from bridge.audio.vad.detector import DetectorName, make_voice_detection
from bridge.audio.vad.segmenter import Endpointing

LEVELS: Final = (-70.0, -60.0, -50.0, -40.0, -30.0, -20.0)
"""dBFS (RMS), one after the other in a stream: each of them is a step up. Speech near a microphone is at -35 to -15."""
SCENE_SECONDS: Final = 36.0
"""Of each noise at each level: with silence and dither, half an hour."""

Row = list[tuple[str, bytes]]
"""The scenes of one stream: what is heard, and its audio."""


def streams() -> Iterator[tuple[str, Row]]:
    """Every stream by its name."""
    samples = round(SCENE_SECONDS * RATE)
    chance = np.random.default_rng(4)
    dither = chance.uniform(-0.5, 0.5, samples) + chance.uniform(-0.5, 0.5, samples)
    yield "silence", [("digital", bytes(2 * samples)), ("dither", to_pcm16(dither / 32_768))]
    for name, make in NOISES.items():
        noise = make(np.random.default_rng(zlib.crc32(name.encode())), samples)
        yield name, [(f"{level:.0f} dBFS", to_pcm16(at_level(noise, level))) for level in LEVELS]


def words_heard(decoder: Any, audio: Sequence[bytes]) -> list[list[str]]:
    """The words of the embedded engine's finals, by scene."""
    recognizer = Recognizer(decoder, Ears(), partials=False)
    heard: list[list[str]] = [[] for _ in audio]
    ends = [end / RATE for end in accumulate(len(scene) // 2 for scene in audio)]
    chunks = (scene[at : at + 3_200] for scene in audio for at in range(0, len(scene), 3_200))
    results = [result for chunk in chunks for result in recognizer.feed(chunk)] + list(recognizer.end())
    for result in results:
        for word in result.words if result.is_final else ():
            scene = next((n for n, end in enumerate(ends) if word.start < end), len(ends) - 1)
            heard[scene].append(word.text)
    return heard


async def let_through(name: DetectorName, audio: Sequence[bytes]) -> list[float]:
    """The share of each scene that a gate lets through."""
    detection = make_voice_detection(name)
    await detection.load()
    (heard,) = await probabilities(detection, [b"".join(audio)])
    await detection.close()
    _, through = segments(heard, detection.frame_seconds, Endpointing())
    open_ = np.zeros(sum(len(scene) // 2 for scene in audio), bool)
    for begin, end in through:
        open_[round(begin * RATE) : round(end * RATE)] = True
    places = list(accumulate((len(scene) // 2 for scene in audio), initial=0))
    return [float(open_[begin:end].mean()) for begin, end in pairwise(places)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.phantom", description=__doc__)
    parser.add_argument("noises", nargs="*", help="only these")
    parser.add_argument("--words", action="store_true", help="print the words, too")
    args = parser.parse_args()
    seconds = words = 0.0
    passed = dict.fromkeys(DETECTORS, 0.0)
    print(f"{'':21}  seconds  words  let through by {' and '.join(DETECTORS)}")
    for name, row in streams():
        if args.noises and name not in args.noises:
            continue
        audio = [pcm for _, pcm in row]
        heard = words_heard(load({}), audio)
        through = {detector: asyncio.run(let_through(detector, audio)) for detector in DETECTORS}
        for n, (scene, pcm) in enumerate(row):
            length = len(pcm) / 2 / RATE
            shares = "  ".join(f"{through[detector][n]:7.1%}" for detector in DETECTORS)
            said = " ".join(heard[n]) if args.words else ""
            print(f"{name:10} {scene:10} {length:8.0f} {len(heard[n]):6}  {shares}  {said}", flush=True)
            seconds, words = seconds + length, words + len(heard[n])
            for detector in DETECTORS:
                passed[detector] += through[detector][n] * length
    print(f"{'all':21} {seconds:8.0f} {words:6.0f}  " + "  ".join(f"{part / seconds:7.1%}" for part in passed.values()))


if __name__ == "__main__":
    main()
