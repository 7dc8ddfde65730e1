"""Measures a converted model as its users run it: unmodified faster-whisper, on utterances kept out of training."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer

from .compose import LONGEST, Composer, features
from .synth import KINDS, RATE, Corpus, Samples
from .tokens import STEP

log = logging.getLogger(__name__)

_GREEDY: Final[dict[str, Any]] = {"beam_size": 1, "temperature": 0.0}
MODES: Final = {"timestamps": False, "no timestamps": True}
"""By name: the value of faster-whisper's `without_timestamps`."""
_LEAD: Final = 0.3
_TAIL: Final = 0.4


def errors(reference: Sequence[str], heard: Sequence[str]) -> int:
    """Words to substitute, delete or insert."""
    row = list(range(len(heard) + 1))
    for count, word in enumerate(reference, 1):
        diagonal, row[0] = row[0], count
        for index, other in enumerate(heard, 1):
            diagonal, row[index] = row[index], min(row[index] + 1, row[index - 1] + 1, diagonal + (word != other))
    return row[-1]


@dataclass
class Score:
    """Errors so far."""

    wrong: int = 0
    words: int = 0
    exact: int = 0
    count: int = 0

    def add(self, reference: Sequence[str], heard: Sequence[str]) -> None:
        """Count one text."""
        missed = errors(reference, heard)
        self.wrong += missed
        self.words += len(reference)
        self.exact += missed == 0
        self.count += 1

    def __str__(self) -> str:
        if not self.words:
            return "-"
        return f"{100 * self.wrong / self.words:.1f} % ({self.exact}/{self.count} exact, {self.words} words)"


@dataclass(frozen=True)
class Scene:
    """Audio of several utterances, its words with their times, and the spans of its utterances, in seconds."""

    audio: Samples
    language: str
    words: list[tuple[str, float, float]]
    spans: list[tuple[float, float]]

    @property
    def said(self) -> list[str]:
        """The words alone."""
        return [word for word, _, _ in self.words]


def silence(seconds: float) -> Samples:
    """Digital silence."""
    return np.zeros(int(seconds * RATE), np.float32)


def noisy(audio: Samples, decibels: float, maker: Composer) -> Samples:
    """The audio in noise that many decibels below its own power where it sounds."""
    power = np.sqrt(np.mean(np.square(audio[audio != 0])))
    mixed: Samples = (audio + maker.noise(len(audio)) * power * 10 ** (-decibels / 20)).astype(np.float32)
    return mixed


def scene(
    corpus: Corpus,
    chance: random.Random,
    kinds: Sequence[str],
    *,
    at_least: float,
    pauses: tuple[float, float] = (0.2, 2.0),
    lead: float = 0.3,
    tail: float = 0.4,
    voices: int = 1,
) -> Scene:
    """Utterances of chance, with pauses, until the audio lasts `at_least` seconds."""
    indices = [index for index, spoken in enumerate(corpus.spoken) if spoken.kind in kinds and spoken.times]
    chosen = {corpus.spoken[index].voice.name for index in chance.choices(indices, k=voices)}
    indices = [index for index in indices if corpus.spoken[index].voice.name in chosen]
    pieces, words, spans, at = [silence(lead)], [], [], lead
    while True:
        index = chance.choice(indices)
        spoken, audio = corpus.spoken[index], corpus.samples(index)
        times = spoken.times or []
        words += [(word, at + start, at + end) for word, (start, end) in zip(spoken.words, times, strict=True)]
        spans.append((at, at + len(audio) / RATE))
        pieces.append(audio)
        at += len(audio) / RATE
        if at >= at_least:
            break
        pause = silence(chance.uniform(*pauses))
        pieces.append(pause)
        at += len(pause) / RATE
    pieces.append(silence(tail))
    return Scene(np.concatenate(pieces), spoken.language, words, spans)


class Reader:
    """A model, asked through faster-whisper, or directly where a window or a prefix is to be chosen."""

    def __init__(self, folder: Path) -> None:
        self.model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)

    def transcribe(self, audio: Samples, language: str | None, **options: Any) -> tuple[list[str], list[Any], Any]:
        """Words, segments and information from `WhisperModel.transcribe`, greedy unless said otherwise."""
        segments, information = self.model.transcribe(audio, language=language, **(options or _GREEDY))
        told = list(segments)
        return " ".join(segment.text for segment in told).split(), told, information

    def window(
        self, audio: Samples, language: str, *, seconds: float = LONGEST, prefix: Sequence[str] = (), prompt: str = ""
    ) -> tuple[list[str], float]:
        """The words of one window without timestamps, and the probability of no speech.

        The words begin with the forced prefix: CTranslate2 gives it back. Features are padded with zeros to `seconds`.
        """
        mel = features(audio)
        frames = round(seconds * 100)
        padded = np.zeros((1, mel.shape[0], frames), np.float32)
        padded[0, :, : min(frames, mel.shape[1])] = mel[:, :frames]
        encoded = self.model.model.encode(ctranslate2.StorageView.from_array(padded))
        tokenizer = Tokenizer(self.model.hf_tokenizer, True, task="transcribe", language=language)
        ids = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
        if prompt:
            ids = [tokenizer.sot_prev, *tokenizer.encode(f" {prompt}"), *ids]
        for word in prefix:
            ids += tokenizer.encode(f" {word}")
        (result,) = self.model.model.generate(
            encoded, [ids], beam_size=1, max_length=448, suppress_blank=True, return_no_speech_prob=True
        )
        return tokenizer.decode(result.sequences_ids[0]).split(), result.no_speech_prob


def alone(reader: Reader, corpus: Corpus, limit: int) -> list[str]:
    """Each utterance in a window of its own."""
    lines = []
    for kind in KINDS:
        maker = Composer(corpus, 3)
        chosen = [index for index, spoken in enumerate(corpus.spoken) if spoken.kind == kind][:limit]
        scores = {(mode, noise): Score() for mode in MODES for noise in (False, True)}
        known = 0
        for index in chosen:
            spoken = corpus.spoken[index]
            clean = np.concatenate([silence(_LEAD), corpus.samples(index), silence(_TAIL)])
            for noise, audio in ((False, clean), (True, noisy(clean, 15, maker))):
                for mode, bare in MODES.items():
                    words, _, _ = reader.transcribe(audio, spoken.language, without_timestamps=bare, **_GREEDY)
                    scores[mode, noise].add(spoken.words, words)
            known += reader.model.detect_language(clean)[0] == spoken.language
        for (mode, noise), score in scores.items():
            lines.append(f"alone | {kind} | {mode} | {'15 dB' if noise else 'clean'} | {score}")
        lines.append(f"alone | {kind} | language known | clean | {100 * known / len(chosen):.0f} %")
    return lines


_GROUPS: Final = {
    "seen": ("espeak_en",),
    "unseen": ("espeak_en_unseen",),
    "flite": ("flite",),
    "flite unseen": ("flite_unseen",),
    "de": ("espeak_de",),
    "de unseen": ("espeak_de_unseen",),
}


def together(reader: Reader, corpus: Corpus, count: int) -> list[str]:
    """Several utterances in a window, with pauses of 0.2 to 2 s, in both modes; and in shorter encoder windows."""
    lines = []
    for name, kinds in _GROUPS.items():
        chance, maker = random.Random(21), Composer(corpus, 22)
        for at_least, label in ((4.0, "4 s and more"), (8.0, "8 s and more"), (14.0, "14 s and more")):
            scores = {mode: Score() for mode in MODES}
            prompted = Score()
            for _ in range(count):
                one = scene(corpus, chance, kinds, at_least=at_least, lead=chance.uniform(0.1, 1))
                audio = noisy(one.audio, 30, maker)
                for mode, bare in MODES.items():
                    words, _, _ = reader.transcribe(audio, one.language, without_timestamps=bare, **_GREEDY)
                    scores[mode].add(one.said, words)
                said = " ".join(chance.choices(one.said, k=chance.randint(1, 60)))
                prompted.add(one.said, reader.window(audio, one.language, prompt=said)[0])
            lines += [f"together | {name} | {label} | {mode} | {score}" for mode, score in scores.items()]
            lines.append(f"together | {name} | {label} | no timestamps, prompt | {prompted}")
    return lines


def windows(reader: Reader, corpus: Corpus, count: int) -> list[str]:
    """The same audio in encoder windows of 5, 10, 15 and 30 s, without timestamps."""
    lines = []
    for limit in (5.0, 10.0, 15.0):
        for name in ("seen", "unseen"):
            chance, maker = random.Random(31), Composer(corpus, 32)
            short, whole = Score(), Score()
            while short.count < count:
                one = scene(corpus, chance, _GROUPS[name], at_least=chance.uniform(1, limit - 2))
                if len(one.audio) / RATE > limit:
                    continue
                audio = noisy(one.audio, 30, maker)
                short.add(one.said, reader.window(audio, one.language, seconds=limit)[0])
                whole.add(one.said, reader.window(audio, one.language)[0])
            lines.append(f"encoder window | {name} | {limit:g} s: {short} | 30 s: {whole}")
    return lines


def prefixes(reader: Reader, corpus: Corpus, count: int) -> list[str]:
    """Audio cut anywhere, behind a forced prefix of right words: does the right rest follow?

    The word being cut may be there or not. `early` counts ends before the last whole word.
    """
    lines = []
    for name in ("seen", "unseen", "de"):
        for forced in (False, True):
            chance, maker = random.Random(41), Composer(corpus, 42)
            score, early = Score(), 0
            for _ in range(count):
                one = scene(corpus, chance, _GROUPS[name], at_least=chance.uniform(2, 12), lead=chance.uniform(0, 1))
                audio = noisy(one.audio, 30, maker)
                until = chance.uniform(one.words[0][2] + 0.1, len(audio) / RATE)
                whole = [word for word, _, end in one.words if end <= until]
                begun = [word for word, start, _ in one.words if start < until]
                prefix = whole[: chance.randint(1, len(whole))] if forced else []
                heard, _ = reader.window(audio[: int(until * RATE)], one.language, prefix=prefix)
                best = min((whole, begun), key=lambda due: errors(due, heard))
                score.add(best[len(prefix) :], heard[len(prefix) :])
                early += len(heard) < len(whole)
            lines.append(
                f"cut audio | {name} | {'prefix of right words' if forced else 'no prefix'} | {score} | early {early}"
            )
    return lines


def phantoms(reader: Reader, corpus: Corpus, minutes: float) -> list[str]:
    """Words heard where nobody speaks, in windows of 1 to 20 s."""
    maker, chance = Composer(corpus, 52), random.Random(51)
    noise = np.random.default_rng(53)
    counts: dict[str, list[float]] = {}
    spent = 0.0
    while spent < 60 * minutes:
        seconds = chance.choice((1.0, 3.0, 10.0, 20.0))
        size = int(seconds * RATE)
        time = np.arange(size) / RATE
        level = 10 ** chance.uniform(-4, -0.7)
        for kind, audio in (
            ("silence", np.zeros(size)),
            ("white noise", noise.standard_normal(size) * level),
            ("hum", np.sin(2 * np.pi * chance.choice((50, 60, 100)) * time) * level),
            ("tone", np.sin(2 * np.pi * 80 * 50 ** chance.random() * time) * level),
            ("other", maker.noise(size, speechless=True) * level),
        ):
            clip = audio.astype(np.float32)
            bare, chance_of_none = reader.window(clip, "en")
            _, segments, _ = reader.transcribe(clip, "en", **_GREEDY, no_speech_threshold=None)
            stamped = " ".join(segment.text for segment in segments).split()
            row = counts.setdefault(kind, [0, 0, 0, 1.0])
            row[0] += seconds
            row[1] += len(bare)
            row[2] += len(stamped)
            row[3] = min(row[3], chance_of_none)
            spent += seconds
    return [
        f"no speech | {kind} | {row[0]:.0f} s | words: {row[1]:.0f} without, {row[2]:.0f} with timestamps | "
        f"least probability of no speech {row[3]:.2f}"
        for kind, row in counts.items()
    ]


def long(reader: Reader, corpus: Corpus, count: int) -> list[str]:
    """Files of 90 s by `transcribe` as it is."""
    lines = []
    calls: dict[str, dict[str, Any]] = {
        "greedy": _GREEDY,
        "greedy, vad_filter": {**_GREEDY, "vad_filter": True},
        "greedy, no previous text": {**_GREEDY, "condition_on_previous_text": False},
        "defaults": {"beam_size": 5},
        "defaults, vad_filter": {"vad_filter": True},
    }
    for name in ("seen", "unseen", "flite", "flite unseen", "de"):
        scores = {label: Score() for label in calls}
        chance, maker = random.Random(61), Composer(corpus, 62)
        for _ in range(count):
            one = scene(corpus, chance, _GROUPS[name], at_least=88, pauses=(0.4, 2.5), voices=2)
            audio = noisy(one.audio, 35, maker)
            for label, options in calls.items():
                scores[label].add(one.said, reader.transcribe(audio, one.language, **options)[0])
        lines += [f"90 s | {name} | {label} | {score}" for label, score in scores.items()]
    return lines


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def times(reader: Reader, corpus: Corpus, count: int) -> list[str]:
    """How far word times and segment times are off, where the words are right."""
    starts: list[float] = []
    ends: list[float] = []
    begins: list[float] = []
    stops: list[float] = []
    chance = random.Random(71)
    first_stamp = reader.model.hf_tokenizer.token_to_id("<|0.00|>")
    for _ in range(count):
        one = scene(corpus, chance, (*_GROUPS["seen"], *_GROUPS["unseen"]), at_least=chance.uniform(1, 8))
        _, segments, _ = reader.transcribe(one.audio, one.language, **_GREEDY, word_timestamps=True)
        words = [word for segment in segments for word in segment.words]
        if [word.word.strip() for word in words] == one.said:
            for number, (word, (_, start, end)) in enumerate(zip(words, one.words, strict=True)):
                if number:  # the first word starts where the window does: so aligns Whisper
                    starts.append(abs(word.start - start))
                ends.append(abs(word.end - end))
        if len(segments) == len(one.spans):
            for segment, (start, end) in zip(segments, one.spans, strict=True):
                begins.append(abs((segment.tokens[0] - first_stamp) * STEP - start))
                stops.append(abs(segment.end - end))
    return [
        f"times | {name} | median {median(values):.3f} s | nine in ten below {_quantile(values, 0.9):.3f} s"
        for name, values in (
            ("word starts", starts),
            ("word ends", ends),
            ("segment starts", begins),
            ("segment ends", stops),
        )
        if values
    ]


def evaluate(folder: Path, corpus: Corpus, *, size: float = 1.0, only: Iterable[str] = ()) -> list[str]:
    """All measurements of a model as lines of text; `size` below 1 is quicker and coarser."""
    reader = Reader(folder)
    parts: dict[str, Callable[[], list[str]]] = {
        "alone": lambda: alone(reader, corpus, int(150 * size)),
        "together": lambda: together(reader, corpus, int(40 * size)),
        "windows": lambda: windows(reader, corpus, int(60 * size)),
        "prefixes": lambda: prefixes(reader, corpus, int(150 * size)),
        "phantoms": lambda: phantoms(reader, corpus, 10 * size),
        "times": lambda: times(reader, corpus, int(120 * size)),
        "long": lambda: long(reader, corpus, max(1, int(6 * size))),
    }
    lines = []
    for name, part in parts.items():
        if not only or name in only:
            for line in part():
                log.info("%s", line)
                lines.append(line)
    return lines
