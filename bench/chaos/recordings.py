"""What the clients of a chaos run say: words of markers, or the project's samples, as samples and as files."""

from __future__ import annotations

import io
import itertools
import json
import random
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from backends.markers import MARKER_SECONDS, marker_audio
from bench.speech import ROOT
from bridge.audio.files import open_audio
from bridge.protocols.native import StartMessage

SAMPLES: Final = ROOT / "samples"
CHUNK_SECONDS: Final = 0.1
MARKER_RATE: Final = 16_000
OTHER_CHANNEL: Final = 1_000
"""The second channel's first word."""
FLUSH_SECONDS: Final = 0.05
"""Behind a sentence's end; what is sent at once then ends in the pause."""

UNSTEADY: Final = frozenset({"digits.flac", "long.flac"})
"""Samples in which the embedded engine hears a word otherwise when a stream begins at a final than when it began before
(at 1 of 3 and 3 of 28 of them): it carries the mean of the voice from one utterance to the next. See
`bench.chaos.seams`."""


@dataclass(frozen=True)
class Recording:
    """Audio that a client sends in real time. `expected` is the transcript, where it is known beforehand.

    `flushes`: seconds behind which the client asks for finals.
    """

    name: str
    start: StartMessage
    data: bytes
    seconds: float
    expected: str | None = None
    flushes: Sequence[float] = ()

    def chunks(self) -> Sequence[tuple[float, bytes]]:
        """What is sent, and at which time from the beginning."""
        count = max(1, round(self.seconds / CHUNK_SECONDS))
        frame = 2 * self.start.channels if self.start.encoding == "pcm_s16le" else 1
        ends = [len(self.data) * i // count // frame * frame for i in range(count)] + [len(self.data)]
        return [(i * self.seconds / count, self.data[ends[i] : ends[i + 1]]) for i in range(count)]


def marker_recordings(count: int, seconds: float, seed: int) -> list[Recording]:
    """Words that are known, in sentences of all lengths, some with hardly a pause between them.

    By turns samples, samples with flushes, two channels that are recognized apart, and a WAV file.
    """
    rng = random.Random(seed)
    kinds = itertools.cycle((_samples, _flushed, _stereo, _wav))
    return [kind(f"{kind.__name__[1:]}-{i}", seconds, rng) for i, kind in zip(range(count), kinds, strict=False)]


def _said(seconds: float, rng: random.Random, first: int = 0) -> tuple[bytes, str, list[float]]:
    """PCM16, its words, and where the sentences end."""
    parts: list[bytes] = []
    words: list[str] = []
    ends: list[float] = []
    at = 0.0
    while at < seconds:
        for i in range(last := rng.randint(1, 7)):
            pause = round(rng.uniform(0.3, 1.5) if i == last - 1 else 0.06, 3)
            parts.append(marker_audio(1, rate=MARKER_RATE, pause=pause, first=first + len(words)))
            words.append(f"w{first + len(words)}")
            at += MARKER_SECONDS + pause
        ends.append(at - pause)
    return b"".join(parts), " ".join(words), ends


def _samples(name: str, seconds: float, rng: random.Random) -> Recording:
    pcm, words, _ = _said(seconds, rng)
    return Recording(name, StartMessage(encoding="pcm_s16le"), pcm, len(pcm) / 2 / MARKER_RATE, words)


def _flushed(name: str, seconds: float, rng: random.Random) -> Recording:
    pcm, words, ends = _said(seconds, rng)
    start = StartMessage(encoding="pcm_s16le")
    return Recording(name, start, pcm, len(pcm) / 2 / MARKER_RATE, words, [end + FLUSH_SECONDS for end in ends])


def _stereo(name: str, seconds: float, rng: random.Random) -> Recording:
    tracks = [_said(seconds, rng), _said(seconds, rng, OTHER_CHANNEL)]
    frames = max(len(pcm) for pcm, _, _ in tracks) // 2
    lanes = [np.frombuffer(pcm.ljust(2 * frames, b"\0"), "<i2") for pcm, _, _ in tracks]
    start = StartMessage(encoding="pcm_s16le", channels=2, channel_mode="separate")
    words = " | ".join(words for _, words, _ in tracks)
    return Recording(name, start, np.stack(lanes, axis=1).tobytes(), frames / MARKER_RATE, words)


def _wav(name: str, seconds: float, rng: random.Random) -> Recording:
    pcm, words, _ = _said(seconds, rng)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(MARKER_RATE)
        writer.writeframes(pcm)
    return Recording(name, StartMessage(), file.getvalue(), len(pcm) / 2 / MARKER_RATE, words)


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
