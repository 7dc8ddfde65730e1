"""What the clients of a chaos run say: words of markers, or the project's samples, as samples and as files."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from backends.markers import MARKER_SECONDS, marker_audio
from bench.speech import ROOT
from bridge.audio.files import open_audio
from bridge.protocols.native import StartMessage

SAMPLES: Final = ROOT / "samples"
CHUNK_SECONDS: Final = 0.1
MARKER_RATE: Final = 16_000

UNSTEADY: Final = frozenset({"digits.flac", "long.flac"})
"""Samples in which the embedded engine hears a word otherwise when a stream begins at a final than when it began before
(at 1 of 3 and 3 of 28 of them): it carries the mean of the voice from one utterance to the next. See
`bench.chaos.seams`."""


@dataclass(frozen=True)
class Recording:
    """Audio that a client sends in real time. `expected` is the transcript, where it is known beforehand."""

    name: str
    start: StartMessage
    data: bytes
    seconds: float
    expected: str | None = None

    def chunks(self) -> Sequence[tuple[float, bytes]]:
        """What is sent, and at which time from the beginning."""
        count = max(1, round(self.seconds / CHUNK_SECONDS))
        frame = 2 * self.start.channels if self.start.encoding == "pcm_s16le" else 1
        ends = [len(self.data) * i // count // frame * frame for i in range(count)] + [len(self.data)]
        return [(i * self.seconds / count, self.data[ends[i] : ends[i + 1]]) for i in range(count)]


def marker_recordings(count: int, seconds: float, seed: int) -> list[Recording]:
    """Words that are known, in sentences of all lengths, some with hardly a pause between them."""
    rng = random.Random(seed)
    return [_markers(f"markers-{i}", seconds, rng) for i in range(count)]


def _markers(name: str, seconds: float, rng: random.Random) -> Recording:
    parts: list[bytes] = []
    words: list[str] = []
    at = 0.0
    while at < seconds:
        for i in range(last := rng.randint(1, 7)):
            pause = round(rng.uniform(0.3, 1.5) if i == last - 1 else 0.06, 3)
            parts.append(marker_audio(1, rate=MARKER_RATE, pause=pause, first=len(words)))
            words.append(f"w{len(words)}")
            at += MARKER_SECONDS + pause
    pcm = b"".join(parts)
    return Recording(
        name, StartMessage(encoding="pcm_s16le"), pcm, len(pcm) / 2 / MARKER_RATE, expected=" ".join(words)
    )


def sample_recordings(*, longest: float, files: bool = True) -> list[Recording]:
    """The samples up to `longest` seconds: as PCM16 at the rate they have, and as the files that they are."""
    recordings = []
    for entry in json.loads((SAMPLES / "manifest.json").read_text())["samples"]:
        name, seconds = entry["file"], entry["seconds"]
        if name in UNSTEADY or seconds > longest:
            continue
        with open_audio(str(SAMPLES / name)) as source:
            pcm = b"".join(source.chunks(100))
            form = source.format
        start = StartMessage(encoding="pcm_s16le", sample_rate=form.sample_rate, channels=form.channels)
        recordings.append(Recording(name, start, pcm, len(pcm) / 2 / form.channels / form.sample_rate))
        if files and name.endswith(".flac"):
            recordings.append(Recording(f"{name} as a file", StartMessage(), (SAMPLES / name).read_bytes(), seconds))
    return recordings
