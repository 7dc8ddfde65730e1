"""Speech at known times: the project's samples and the recordings beside it, set apart by silence, clean or in noise.

What is clean has the noise floor of a quiet room. Times are in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import soxr

from bench.noises import NOISES, RATE, Signal, at_level, normal
from bridge.audio.files import open_audio

ROOT: Final = Path(__file__).resolve().parent.parent
RECORDINGS: Final = ROOT.parent / "shared" / "recordings"

FLOOR_DBFS: Final = -62.0
SNRS: Final = (20, 10, 5, 0)
"""dB, of the speech's mean power while somebody speaks."""
BACKGROUNDS: Final = ("white", "pink", "brown", "hum 50 Hz", "fan")
EDGE: Final = 0.15
"""Kept around an utterance that is cut out of a sample; there is 0.4 s of quiet on each side."""


@dataclass(frozen=True)
class Clip:
    """A stream of utterances. `words` is what must not be missed, `utterances` from where to where somebody speaks."""

    name: str
    signal: Signal
    utterances: tuple[tuple[float, float], ...]
    words: tuple[tuple[float, float], ...]

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.signal) / RATE


def clips() -> Iterator[Clip]:
    """Every 16 kHz sample of one channel but the noisy one, and the recordings whose words' times are known."""
    for sample in json.loads((ROOT / "samples" / "manifest.json").read_text())["samples"]:
        name = sample["file"]
        if (sample["sample_rate"], sample["channels"]) == (RATE, 1) and name != "noisy.flac":
            spoken = [(said["start"], said["end"]) for said in sample["utterances"]]
            yield _apart(name, _signal(ROOT / "samples" / name), [[times] for times in spoken])
    for path in sorted(RECORDINGS.glob("librivox-*.alignment.json")):
        words = [w for w in json.loads(path.read_text())["w"] if not w["t"].startswith(("<", "["))]
        times = [(word["b"], word["b"] + word["d"]) for word in words]
        yield _apart(path.name.split(".")[0], _signal(path.with_suffix("").with_suffix(".wav")), [times])


def in_noise(clip: Clip, noise: str, snr_db: float, others: Sequence[Clip]) -> Clip:
    """The clip with a noise of `bench.noises`, or the babble of six of the other clips, so far below the speech."""
    if noise == "babble":
        background = _babble([other for other in others if other is not clip][:6], len(clip.signal))
    else:
        background = NOISES[noise](np.random.default_rng(len(clip.signal)), len(clip.signal))
    speech = np.concatenate([clip.signal[round(a * RATE) : round(b * RATE)] for a, b in clip.utterances])
    level = 10 * np.log10(np.mean(speech**2)) - snr_db
    return Clip(clip.name, clip.signal + at_level(background, level), clip.utterances, clip.words)


def by_telephone(clip: Clip) -> Clip:
    """The clip through 300 to 3400 Hz at 8 kHz, and back at 16 kHz as an engine gets it."""
    spectrum, hertz = np.fft.rfft(clip.signal), np.fft.rfftfreq(len(clip.signal), 1 / RATE)
    band = np.clip((hertz - 200) / 100, 0, 1) * np.clip((3_600 - hertz) / 200, 0, 1)
    narrow = soxr.resample(np.fft.irfft(spectrum * band, len(clip.signal)), RATE, 8_000)
    line = narrow + at_level(np.random.default_rng(8).standard_normal(len(narrow)), -55)
    return Clip(clip.name, soxr.resample(line, 8_000, RATE)[: len(clip.signal)], clip.utterances, clip.words)


def _apart(name: str, signal: Signal, spoken: Sequence[Sequence[tuple[float, float]]]) -> Clip:
    """Each utterance of a file, given by its words, with 1.2 to 3 s of silence before and after it."""
    chance = np.random.default_rng(len(signal))
    pieces: list[Signal] = []
    utterances, words = [], []
    at = 0.0

    def silence(seconds: float) -> None:
        nonlocal at
        pieces.append(np.zeros(round(seconds * RATE)))
        at += len(pieces[-1]) / RATE

    for times in spoken:
        silence(chance.uniform(1.2, 3.0))
        first = max(0, round((times[0][0] - EDGE) * RATE))
        piece = signal[first : round((times[-1][1] + EDGE) * RATE)]
        shift = at - first / RATE
        words += [(begin + shift, end + shift) for begin, end in times]
        utterances.append((times[0][0] + shift, times[-1][1] + shift))
        pieces.append(piece)
        at += len(piece) / RATE
    silence(2.0)
    whole = np.concatenate(pieces)
    whole += at_level(chance.standard_normal(len(whole)), FLOOR_DBFS)
    return Clip(name, whole, tuple(utterances), tuple(words))


def _babble(others: Sequence[Clip], samples: int) -> Signal:
    """Several voices at once, each of them without its pauses and as loud as the others."""
    voices = []
    for other in others:
        speech = np.concatenate([other.signal[round(a * RATE) : round(b * RATE)] for a, b in other.utterances])
        voices.append(np.resize(normal(speech), samples))
    return normal(np.sum(voices, axis=0))


def _signal(path: Path) -> Signal:
    with open_audio(str(path)) as source:
        return np.frombuffer(b"".join(source.chunks(1_000)), "<i2") / 32_768
