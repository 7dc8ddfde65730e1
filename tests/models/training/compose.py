"""Windows to train on: several utterances with pauses, cut or whole, in noise; and what is to be heard in each.

Features come from faster-whisper's own extractor. What a window lacks to 30 s is zeros in feature space, as there.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

import numpy as np
from faster_whisper.feature_extractor import FeatureExtractor
from numpy.typing import NDArray
from scipy.signal import fftconvolve, lfilter, resample_poly

from ..fixture import Word
from .synth import RATE, Corpus, Samples

LONGEST: Final = 30.0
"""Seconds of Whisper's window."""
_EXTRACTOR: Final = FeatureExtractor(feature_size=80)


def features(audio: Samples) -> NDArray[np.float32]:
    """Log mel features (80, frames of 10 ms), as faster-whisper makes them."""
    made: NDArray[np.float32] = _EXTRACTOR(audio)[:, :-1]
    return made


@dataclass(frozen=True)
class Window:
    """What is heard, and what it says."""

    mel: NDArray[np.float16]
    segments: list[list[Word]]
    language: str
    seconds: float
    cut: bool
    """The audio ends within an utterance."""
    fragment: bool
    """The audio holds speech, but no whole word."""
    crossing: float | None
    """Start of an utterance that goes on behind a window of 30 s: Whisper gives its start alone."""

    @property
    def empty(self) -> bool:
        """Nobody speaks."""
        return not self.segments and not self.fragment and self.crossing is None


SPEECHLESS_SHARE: Final = 0.2
"""Of the windows, those in which nobody speaks."""


class Composer:
    """Makes windows of a corpus by chance."""

    def __init__(self, corpus: Corpus, seed: int) -> None:
        self._corpus = corpus
        self._chance = random.Random(seed)
        self._noise = np.random.default_rng(seed)
        self._of_language: dict[str, list[int]] = defaultdict(list)
        self._of_voice: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index, spoken in enumerate(corpus.spoken):
            if spoken.times is not None:
                # A third of the English is flite: its few voices are the hardest to hear.
                repeat = 2 if spoken.kind.startswith("flite") else 1
                self._of_language[spoken.language] += [index] * repeat
                self._of_voice[spoken.language, spoken.voice.name].append(index)

    def window(self, shortest: float, longest: float, *, augment: bool = True) -> Window:
        """A window with `shortest` to `longest` seconds of audio."""
        chance = self._chance
        language = "de" if chance.random() < 0.2 else "en"
        room = chance.uniform(shortest, longest)
        audio = np.zeros(int(room * RATE), np.float32)
        segments: list[list[Word]] = []
        cut = fragment = False
        crossing = None
        may_cut = chance.random() < 0.4 or room >= LONGEST - 0.01
        last_end = 0.0
        if chance.random() >= SPEECHLESS_SHARE:
            at = self._lead(room)
            first, enough = self._pick(language), chance.random() < 0.12
            while True:
                said, words = self._utterance(first, at, augment=augment)
                first = self._pick(language, like=first)
                end = at + len(said) / RATE
                if end > room - 0.02:
                    if not may_cut or at > room - 0.15:
                        break
                    cut = True
                begin = int(at * RATE)
                piece = said[: len(audio) - begin]
                audio[begin : begin + len(piece)] += piece
                last_end = min(end, room)
                if cut:
                    # A word is due when four fifths of it were heard.
                    whole = [word for word in words if word.start + 0.8 * (word.end - word.start) <= room]
                    if room >= LONGEST - 0.01:
                        crossing = words[0].start
                    elif whole:
                        segments.append([Word(word.word, word.start, min(word.end, room)) for word in whole])
                    else:
                        fragment = True
                    break
                segments.append(words)
                at = end + self._pause()
                if enough or at > room - 0.1:
                    break
        if not cut and segments and chance.random() < 0.85:
            tail = chance.uniform(0.02, 0.5) if chance.random() < 0.5 else chance.uniform(0.3, 1.6)
            audio = audio[: int((last_end + tail) * RATE)]
        if len(audio) < 0.2 * RATE:
            audio = np.zeros(int(0.2 * RATE), np.float32)
        if augment:
            silent = not segments and not fragment and crossing is None
            audio = self._spoil(audio, silent=silent)
        mel = features(audio.astype(np.float32)).astype(np.float16)
        return Window(mel, segments, language, len(audio) / RATE, cut, fragment, crossing)

    def _pick(self, language: str, like: int | None = None) -> int:
        chance = self._chance
        if like is not None and chance.random() < 0.6:  # people mostly go on speaking with their own voice
            return chance.choice(self._of_voice[language, self._corpus.spoken[like].voice.name])
        return chance.choice(self._of_language[language])

    def _lead(self, room: float) -> float:
        chance = self._chance
        draw = chance.random()
        if draw < 0.15:
            return chance.uniform(0.0, min(0.1, room / 2))
        if draw < 0.9:
            return chance.uniform(0.0, min(1.0, room / 2))
        return chance.uniform(0.0, min(4.0, room / 2))

    def _pause(self) -> float:
        chance = self._chance
        draw = chance.random()
        if draw < 0.65:
            return chance.uniform(0.15, 1.2)
        return chance.uniform(1.0, 2.2) if draw < 0.95 else chance.uniform(2.2, 4.0)

    def _utterance(self, index: int, at: float, *, augment: bool) -> tuple[Samples, list[Word]]:
        chance, spoken = self._chance, self._corpus.spoken[index]
        said = self._corpus.samples(index)
        speed = chance.uniform(0.87, 1.15) if augment else 1.0
        if augment:
            said = np.interp(np.arange(0, len(said) - 1, speed), np.arange(len(said)), said).astype(np.float32)
            said = said * np.float32(10 ** (chance.uniform(-8, 0) / 20))
        times = spoken.times or []
        words = [
            Word(word, at + start / speed, at + end / speed)
            for word, (start, end) in zip(spoken.words, times, strict=True)
        ]
        return said, words

    def _spoil(self, audio: Samples, *, silent: bool) -> Samples:
        """Room, channel, noise and level."""
        chance = self._chance
        if not silent:
            audio = self._channel(audio)
        power = 10 ** chance.uniform(-4.5, -0.8) if silent else float(np.sqrt(np.mean(audio**2)))
        if chance.random() < (0.9 if silent else 0.75):
            noise = self.noise(len(audio), speechless=silent)
            audio = audio + noise * np.float32(power * 10 ** (-chance.uniform(6, 45) / 20))
        elif not silent and chance.random() < 0.5:
            audio = audio + self._noise.standard_normal(len(audio)).astype(np.float32) * np.float32(1e-4)
        return (audio * np.float32(10 ** (chance.uniform(-24, 0) / 20))).astype(np.float32)

    def _channel(self, audio: Samples) -> Samples:
        """Now and then a room, a telephone's band, a telephone's companding."""
        chance = self._chance
        if chance.random() < 0.12 and len(audio) > 800:
            count = int(RATE * chance.uniform(0.1, 0.4))
            decay = np.exp(-np.arange(count) / (count / 6))
            echo = (self._noise.standard_normal(count) * decay).astype(np.float32)
            echo[0] = chance.uniform(4, 12)
            audio = fftconvolve(audio, echo / np.abs(echo).max())[: len(audio)].astype(np.float32)
        if chance.random() < 0.15:
            audio = resample_poly(resample_poly(audio, 1, 2), 2, 1)[: len(audio)].astype(np.float32)
        if chance.random() < 0.1:
            peak = np.abs(audio).max() + 1e-9
            coded = np.sign(audio) * np.log1p(255 * np.abs(audio / peak)) / np.log(256)
            coded = np.round(coded * 127) / 127
            audio = (peak * np.sign(coded) * (256 ** np.abs(coded) - 1) / 255).astype(np.float32)
        return audio

    def _melody(self, count: int) -> Samples:
        """Notes and chords one after the other, with overtones: struck ones that die away, and held ones."""
        chance = self._chance
        made = np.zeros(count, np.float32)
        key, struck = 55 * 2 ** chance.uniform(0, 3), chance.random() < 0.7
        beat = chance.uniform(0.1, 0.6)
        at = 0
        while at < count:
            length = min(count - at, int(RATE * beat * chance.choice((0.5, 1, 1, 2, 4))))
            time = np.arange(length) / RATE
            fade = np.exp(-time * chance.uniform(0.5, 6)) if struck else np.minimum(1, 40 * (time[-1] - time))
            for _ in range(chance.choice((0, 1, 1, 2, 3, 4))):
                pitch = key * 2 ** (chance.choice((0, 2, 3, 4, 5, 7, 8, 9, 11, 12, 14, 16)) / 12)
                dull = chance.uniform(1, 2.5)
                for overtone in range(1, chance.randint(2, 9)):
                    if pitch * overtone < RATE / 2:
                        tone = np.sin(2 * np.pi * pitch * overtone * time + chance.random() * 6)
                        made[at : at + length] += (fade * tone / overtone**dull).astype(np.float32)
            at += length
        return made

    def noise(self, count: int, *, speechless: bool = False) -> Samples:
        """Noise of power 1: white, brown, hum or hiss; with `speechless` also tones, beeps, clicks and melodies."""
        chance = self._chance
        made = self._noise.standard_normal(count).astype(np.float32)
        time = np.arange(count) / RATE
        draw = chance.random() * (1.9 if speechless else 1.0)
        if draw < 0.35:
            pass
        elif draw < 0.75:
            made = lfilter([1], [1, -chance.uniform(0.7, 0.98)], made)
        elif draw < 0.9:
            mains = chance.choice((50, 60, 100, 120))
            made = 0.2 * made + sum(
                np.sin(2 * np.pi * mains * harmonic * time + chance.random() * 6) / harmonic
                for harmonic in (1, 2, 3, 5)
            )
        elif draw < 1.0:
            made = lfilter([1, -0.95], [1], made)
        elif draw < 1.25:  # a tone, steady, gliding or beeping
            pitch, glide = 80 * 50 ** chance.random(), chance.choice((0.0, 0.0, chance.uniform(-300, 300)))
            tone = np.sin(2 * np.pi * (pitch + glide * time / 2) * time)
            if chance.random() < 0.4:
                tone = tone * (np.sin(2 * np.pi * chance.uniform(0.5, 4) * time) > 0)
            made = tone + 10 ** chance.uniform(-3, -0.5) * made
        elif draw < 1.45:  # clicks
            clicks = np.zeros(count, np.float32)
            for _ in range(max(1, int(count / RATE * chance.uniform(0.5, 8)))):
                clicks[chance.randrange(count)] = chance.uniform(0.3, 1)
            made = lfilter([1], [1, -chance.uniform(0.5, 0.97)], clicks) * 30 + 0.05 * made
        else:
            made = self._melody(count) + 10 ** chance.uniform(-4, -1) * made
        level: Samples = (made / (np.sqrt(np.mean(np.square(made))) + 1e-9)).astype(np.float32)
        return level
