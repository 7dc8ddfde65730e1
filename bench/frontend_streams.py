"""What the benchmarks of the audio front end send: speech with pauses, in the formats of clients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.codecs import Samples, at_rate, contained, opus, raw
from bench.noises import RATE, Signal, at_level, to_pcm16
from bench.speech import FLOOR_DBFS, clips
from bridge.audio.formats import AudioFormat, Encoding

RECORDINGS: Final = 4
"""Sessions take turns among so many, so that not all of them speak and pause at the same time."""
PAUSE_SECONDS: Final = 4.0
"""Between the samples, long enough for the gate to shut; those between their utterances are shorter."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What one client sends: each message holds `milliseconds` of audio, in a container on average."""

    audio: AudioFormat
    messages: tuple[bytes, ...]
    milliseconds: int


def _stereo(samples: Samples) -> tuple[AudioFormat, list[bytes]]:
    both = np.repeat(at_rate(samples, 48_000), 2, axis=1)
    return AudioFormat(Encoding.PCM_S16LE, 48_000, 2), [both.tobytes()]


_Coder = Callable[[Samples], tuple[AudioFormat, list[bytes]]]

FORMATS: Final[dict[str, tuple[_Coder, int]]] = {
    # What codes it, and the milliseconds of a message.
    "PCM16 16 kHz": (raw(Encoding.PCM_S16LE, 16_000, "pcm_s16le"), 100),
    "PCM16 16 kHz, 20 ms": (raw(Encoding.PCM_S16LE, 16_000, "pcm_s16le"), 20),
    "PCM16 48 kHz stereo": (_stereo, 100),
    "μ-law 8 kHz": (raw(Encoding.MULAW, 8_000, "pcm_mulaw"), 100),
    "Opus 48 kHz, 20 ms": (opus(32_000), 20),
    "Ogg/Opus": (contained(Encoding.OGG, 48_000, 24_000), 100),
    "WebM/Opus": (contained(Encoding.WEBM, 48_000, 32_000), 100),
    "FLAC": (contained(Encoding.FLAC, 16_000, 0), 100),
    "MP3 44.1 kHz": (contained(Encoding.MP3, 44_100, 64_000), 100),
    "AAC 44.1 kHz": (contained(Encoding.AAC, 44_100, 64_000), 100),
}


@functools.cache
def _spoken() -> Signal:
    """The project's samples in a row."""
    pause = at_level(np.random.default_rng(1).standard_normal(round(PAUSE_SECONDS * RATE)), FLOOR_DBFS)
    samples = (clip.signal for clip in clips() if clip.name.endswith(".flac"))
    return np.concatenate([part for signal in samples for part in (signal, pause)])


def recordings(seconds: float) -> list[Samples]:
    """Speech with pauses, begun at different places."""
    whole = _spoken()
    parts = []
    for n in range(RECORDINGS):
        part = np.resize(np.roll(whole, -n * len(whole) // RECORDINGS), round(seconds * RATE))
        parts.append(np.frombuffer(to_pcm16(part), "<i2")[:, np.newaxis])
    return parts


def streams(name: str, seconds: float) -> list[Stream]:
    """The recordings in that format."""
    code, milliseconds = FORMATS[name]
    count = round(1_000 * seconds / milliseconds)
    coded = []
    for samples in recordings(seconds):
        audio, messages = code(samples)
        if audio.encoding is not Encoding.OPUS:
            data = b"".join(messages)
            messages = [data[len(data) * n // count : len(data) * (n + 1) // count] for n in range(count)]
        coded.append(Stream(audio, tuple(messages[:count]), milliseconds))
    return coded
