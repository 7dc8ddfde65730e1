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
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import uvloop

from bench.noises import RATE, to_pcm16
from bench.speech import BACKGROUNDS, SNRS, Clip, by_telephone, clips, in_noise
from bridge.audio.vad.detector import DetectorName, VoiceDetection, make_voice_detection
from bridge.audio.vad.segmenter import Endpointing, Segmenter, SpeechOnset

DETECTORS: Final[tuple[DetectorName, ...]] = ("silero", "webrtc")
COST_STREAMS: Final = (1, 10, 100, 200)
COST_SECONDS: Final = 5.0
"""Of audio and of time, for each line."""
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


class Stream:
    """One real-time stream of speech; how long each of its frames waited, from the push that completed it."""

    def __init__(self, detection: VoiceDetection | None, audio: bytes, milliseconds: int) -> None:
        self.latencies: list[float] = []
        self._frame = detection.frame_seconds * RATE if detection else 0.0
        self._audio = audio
        self._step = milliseconds * RATE // 1_000 * 2
        self._pushed: deque[tuple[int, float]] = deque()
        self._judged = 0
        self._detector = detection.open(RATE, self._heard) if detection else None

    async def run(self, start: float, seconds: float) -> None:
        """Push from `start` on, by the loop's clock."""
        loop = asyncio.get_running_loop()
        sent = 0
        while sent / 2 / RATE < seconds:
            await asyncio.sleep(start + (sent + self._step) / 2 / RATE - loop.time())
            at = sent % (len(self._audio) - self._step)
            sent += self._step
            self._pushed.append((sent // 2, time.perf_counter()))
            if self._detector:
                self._detector.push(self._audio[at : at + self._step])

    def close(self) -> None:
        if self._detector:
            self._detector.close()

    def _heard(self, probabilities: Sequence[float]) -> None:
        now = time.perf_counter()  # finer than uvloop's clock
        for _ in probabilities:
            self._judged += 1
            while self._pushed[0][0] < self._judged * self._frame:
                self._pushed.popleft()
            self.latencies.append(now - self._pushed[0][1])


async def load_of(detection: VoiceDetection | None, streams: int, milliseconds: int) -> tuple[float, list[float]]:
    """CPU seconds per second of audio, and the latencies, of so many streams that push at different moments."""
    audio = to_pcm16(next(clips()).signal)
    start = asyncio.get_running_loop().time() + 0.1
    begun = time.process_time()
    running = [Stream(detection, audio, milliseconds) for _ in range(streams)]
    pushes = (s.run(start + n / streams * milliseconds / 1e3, COST_SECONDS) for n, s in enumerate(running))
    await asyncio.gather(*pushes)
    cpu = time.process_time() - begun
    for stream in running:
        stream.close()
    return cpu / streams / COST_SECONDS, sorted(latency for stream in running for latency in stream.latencies)


async def cost(names: Sequence[DetectorName]) -> None:
    """Print what each detector costs, beside the same pushes without any."""
    print("detector  streams  push   CPU ms per s of audio   latency p50/p95 ms")
    for streams in COST_STREAMS:
        for milliseconds in (20, 100):
            bare, _ = await load_of(None, streams, milliseconds)
            for name in names:
                detection = make_voice_detection(name)
                await detection.load()
                cpu, latencies = await load_of(detection, streams, milliseconds)
                await detection.close()
                middle, high = latencies[len(latencies) // 2] * 1e3, latencies[len(latencies) * 95 // 100] * 1e3
                cost = f"{(cpu - bare) * 1e3:6.2f} (+ {bare * 1e3:.2f} pushing)"
                print(f"{name:9} {streams:7} {milliseconds:5}   {cost:24}{middle:8.1f} / {high:.1f}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.vad", description=__doc__)
    parser.add_argument("--detector", choices=DETECTORS, help="only this one")
    parser.add_argument("--cost", action="store_true", help="CPU and latency instead of errors")
    for name in ("threshold", "silence", "padding"):
        parser.add_argument(f"--{name}", type=float, help="instead of the default")
    args = parser.parse_args()
    chosen = {"threshold": args.threshold, "silence_seconds": args.silence, "padding_seconds": args.padding}
    endpointing = Endpointing(**{k: v for k, v in chosen.items() if v is not None})
    names = [args.detector] if args.detector else DETECTORS
    if args.cost:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(cost(names))
    else:
        asyncio.run(accuracy(names, endpointing))


if __name__ == "__main__":
    main()
