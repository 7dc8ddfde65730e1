"""Voice activity against known speech times, and what it costs.

`python -m bench.vad` prints, for each detector, clean speech and speech in noise: how much of the speech a gate would
have cut off, how much of the silence it would have let through, and by how much onsets and ends are off. Then the
same of noise alone (see `bench.phantom` for half an hour of it). `--cost` prints CPU and latency of many streams at
once instead, through the real service.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from bench.noises import RATE, to_pcm16
from bench.speech import BACKGROUNDS, SNRS, Clip, by_telephone, clips, in_noise
from bridge.audio.vad.detector import DetectorName, VoiceDetection, make_voice_detection
from bridge.audio.vad.segmenter import Endpointing, Segmenter, SpeechOnset

DETECTORS: Final[tuple[DetectorName, ...]] = ("silero", "webrtc")
Spans = list[tuple[float, float]]


@dataclass
class Score:
    """Of some clips; times in seconds."""

    spoken: float = 0.0
    missed: float = 0.0
    silent: float = 0.0
    passed: float = 0.0
    """Of the silence, what was let through."""
    utterances: int = 0
    merged: int = 0
    """Utterances that were one with the one before them."""
    false: int = 0
    """Onsets where nobody spoke."""
    onsets: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    """Signed errors; positive is late."""

    def add(self, clip: Clip, heard: Spans, let_through: Spans) -> None:
        """What became of a clip."""
        grid = 1_000  # ms
        total = round(clip.seconds * grid)
        spoken, within, open_ = (np.zeros(total, bool) for _ in range(3))
        for mask, spans in ((spoken, clip.words), (within, clip.utterances), (open_, let_through)):
            for begin, end in spans:
                mask[max(0, round(begin * grid)) : round(end * grid)] = True
        self.spoken += spoken.sum() / grid
        self.missed += (spoken & ~open_).sum() / grid
        self.silent += (~within).sum() / grid
        self.passed += (~within & open_).sum() / grid
        self.utterances += len(clip.utterances)
        taken: set[tuple[float, float]] = set()
        for begin, end in clip.utterances:
            mine = [span for span in heard if span[0] < end and span[1] > begin]
            if mine and mine[0] in taken:
                self.merged += 1
            elif mine:
                self.onsets.append(mine[0][0] - begin)
                self.ends.append(mine[-1][1] - end)
            taken.update(mine)
        self.false += len(set(heard) - taken)

    def __str__(self) -> str:
        return (
            f"{self.missed / self.spoken:7.2%} {self.passed / self.silent:7.1%} {self.false:6} {self.merged:6}  "
            f"{_errors(self.onsets):>15} {_errors(self.ends):>15}"
        )


HEADING: Final = "missed   through  false merged   onset p50/p95 ms  end p50/p95 ms"


def _errors(values: Sequence[float]) -> str:
    """The median, signed, and the 95th percentile of the absolute."""
    if not values:
        return "-"
    absolute = sorted(map(abs, values))
    return f"{statistics.median(values) * 1e3:+.0f} / {absolute[len(absolute) * 95 // 100] * 1e3:.0f}"


async def probabilities(detection: VoiceDetection, streams: Sequence[bytes], rate: int = RATE) -> list[list[float]]:
    """What a loaded detection makes of whole streams."""
    heard: list[list[float]] = [[] for _ in streams]

    async def judge(pcm: bytes, mine: list[float]) -> None:
        more = asyncio.Event()

        def take(values: Sequence[float]) -> None:
            mine.extend(values)
            more.set()

        detector = detection.open(rate, take)
        detector.push(pcm)
        count = detector.finish()
        while len(mine) < count:
            more.clear()
            await more.wait()
        detector.close()

    await asyncio.gather(*(judge(pcm, mine) for pcm, mine in zip(streams, heard, strict=True)))
    return heard


def segments(heard: Sequence[float], frame_seconds: float, endpointing: Endpointing) -> tuple[Spans, Spans]:
    """Where there was speech, and what was let through."""
    segmenter = Segmenter(frame_seconds, endpointing)
    speech: Spans = []
    through: Spans = []
    events = [event for value in heard if (event := segmenter.push(value))]
    for event in (*events, *segmenter.force()):
        if isinstance(event, SpeechOnset):
            begin, opens = event.frame * frame_seconds, event.opens * frame_seconds
        else:
            speech.append((begin, event.frame * frame_seconds))
            through.append((opens, event.closes * frame_seconds))
    return speech, through


def conditions(clean: Sequence[Clip]) -> Iterator[tuple[str, list[Clip]]]:
    """Everything that is measured, by name."""
    yield "clean", list(clean)
    yield "telephone", [by_telephone(clip) for clip in clean]
    for noise in (*BACKGROUNDS, "babble"):
        for snr in SNRS:
            yield f"{noise} {snr} dB", [in_noise(clip, noise, snr, clean) for clip in clean]


async def accuracy(names: Sequence[DetectorName], endpointing: Endpointing) -> None:
    """Print the table of each detector."""
    clean = list(clips())
    for name in names:
        detection = make_voice_detection(name)
        await detection.load()
        print(f"{name:20} {HEADING}")
        for condition, spoken in conditions(clean):
            heard = await probabilities(detection, [to_pcm16(clip.signal) for clip in spoken])
            score = Score()
            for clip, values in zip(spoken, heard, strict=True):
                score.add(clip, *segments(values, detection.frame_seconds, endpointing))
            print(f"{condition:20} {score}", flush=True)
        await detection.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.vad", description=__doc__)
    parser.add_argument("--detector", choices=DETECTORS, help="only this one")
    for name in ("threshold", "silence", "padding"):
        parser.add_argument(f"--{name}", type=float, help="instead of the default")
    args = parser.parse_args()
    chosen = {"threshold": args.threshold, "silence_seconds": args.silence, "padding_seconds": args.padding}
    endpointing = Endpointing(**{k: v for k, v in chosen.items() if v is not None})
    asyncio.run(accuracy([args.detector] if args.detector else DETECTORS, endpointing))


if __name__ == "__main__":
    main()
