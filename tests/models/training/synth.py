"""Speech with word times from espeak-ng and flite: utterances to train on, and others to test with.

espeak-ng runs in this process through its C library, for its word events; flite runs as a program that prints phones.
"""

from __future__ import annotations

import ctypes
import json
import random
import subprocess
import tempfile
import wave
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from ..words import VOCABULARY

RATE: Final = 16_000
"""Samples per second of every utterance."""

Samples = NDArray[np.float32]
Times = list[tuple[float, float]]
"""Start and end of each word, in seconds."""

ACCENTS: Final = ("en-us", "en", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-scotland", "en-029", "en-us-nyc")
_VARIANTS: Final = (
    "m1 m2 m3 m5 m6 m7 f1 f2 f4 Alex Alicia Andrea Annie Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario "
    "Michael Mike adam anika antonio aunty belinda benjamin boris caleb david ed edward edward2 grandma grandpa "
    "gustave iven iven2 iven3 iven4 john kaukovalta klatt klatt3 klatt4 klatt5 klatt6 marcelo max michel miguel "
    "norbert pablo pedro quincy rob robert sandro steph steph2 steph3 travis victor zac"
)
VARIANTS: Final = tuple(_VARIANTS.split())
UNSEEN_ACCENTS: Final = ("en-us", "en", "en-gb-x-gbcwmd")
"""The last is never trained on; the others only with other variants."""
UNSEEN_VARIANTS: Final = ("m4", "m8", "f3", "f5", "linda", "Andy", "Denis", "paul", "shelby", "klatt2")
FLITE_PITCH: Final = {"kal16": 105, "rms": 100, "slt": 170, "awb": 120}
"""Mean pitch in hertz of each flite voice; `awb` is never trained on."""


@dataclass(frozen=True)
class Voice:
    """One way to speak: an engine's voice and its settings."""

    engine: str
    name: str
    rate: float
    """Words a minute (espeak), or how much longer than usual (flite)."""
    pitch: float
    """0 to 100 (espeak), or hertz (flite)."""
    pitch_range: int = 50
    gap: int = 0
    """Silence between words, in 10 ms (espeak)."""


@dataclass(frozen=True)
class Spoken:
    """An utterance's words, when they are spoken, and who speaks."""

    kind: str
    language: str
    words: list[str]
    times: Times | None
    """None where the engine's own times could not be matched to the words."""
    voice: Voice
    extra: dict[str, Any] = field(default_factory=dict)


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("uid", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_CALLBACK: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_SYNCHRONOUS: Final = 2
_WORD: Final = 1
_UTF8: Final = 1
_RATE, _PITCH, _RANGE, _GAP = 1, 3, 4, 7


class Espeak:
    """espeak-ng in this process. Its library has one state: one instance a process, one thread.

    Raises OSError where libespeak-ng.so.1 is not installed.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, 0)
        self._pieces: list[NDArray[np.int16]] = []
        self._starts: list[float] = []
        self._callback = _CALLBACK(self._receive)  # kept: the library holds only its address
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        index = 0
        while events[index].type != 0:
            event = events[index]
            if event.type == _WORD and event.length > 0:  # of no length: the mark of a clause
                self._starts.append(event.audio_position / 1000)
            index += 1
        if count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, voice: Voice) -> tuple[Samples, list[float]]:
        """The text's audio at 16 kHz and the start of each word in seconds. ValueError: no such voice."""
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice.name!r}")
        for parameter, value in (
            (_RATE, voice.rate),
            (_PITCH, voice.pitch),
            (_RANGE, voice.pitch_range),
            (_GAP, voice.gap),
        ):
            self._library.espeak_SetParameter(parameter, int(value), 0)
        self._pieces, self._starts = [], []
        said = text.encode() + b"\0"
        self._library.espeak_Synth(said, len(said), 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        audio = np.concatenate(self._pieces).astype(np.float32)
        return resample_poly(audio, 320, 441).astype(np.float32), list(self._starts)  # 22.05 to 16 kHz


_phones_of: dict[tuple[str, str], int] = {}


def _flite(text: str, voice: Voice) -> tuple[Samples, list[tuple[str, float]]]:
    """The text's audio at 16 kHz, and each phone with its end in seconds."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["flite", "-voice", voice.name, "--setf", f"duration_stretch={voice.rate:.3f}"]
        command += ["--setf", f"int_f0_target_mean={voice.pitch:.0f}", "-psdur", "-t", text, "-o", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        with wave.open(file.name) as reader:
            audio = np.frombuffer(reader.readframes(reader.getnframes()), np.int16).astype(np.float32)
    return audio, [(phone.split(":")[0], float(phone.split(":")[1])) for phone in told.split()]


def flite(text: str, words: list[str], voice: Voice) -> tuple[Samples, Times | None]:
    """The text's audio and its words' times: phones are counted off by how many each word has when said alone."""
    for word in words:
        if (voice.name, word) not in _phones_of:
            _phones_of[voice.name, word] = sum(phone != "pau" for phone, _ in _flite(word, voice)[1])
    audio, phones = _flite(text, voice)
    spoken, start = [], 0.0
    for phone, end in phones:
        if phone != "pau":
            spoken.append((start, end))
        start = end
    counts = [_phones_of[voice.name, word] for word in words]
    if sum(counts) != len(spoken):
        return audio, None
    times, index = [], 0
    for count in counts:
        times.append((spoken[index][0], spoken[index + count - 1][1]))
        index += count
    return audio, times


def _envelope(audio: Samples) -> Samples:
    return np.convolve(np.abs(audio), np.ones(160, np.float32) / 160, "same").astype(np.float32)


def trim(audio: Samples) -> tuple[Samples, Samples, float]:
    """The audio without silence at its ends, its envelope, and the seconds cut off its start."""
    envelope = _envelope(audio)
    loud = np.flatnonzero(envelope > 0.02 * envelope.max())
    return audio[loud[0] : loud[-1] + 1], envelope[loud[0] : loud[-1] + 1], loud[0] / RATE


def _ends(starts: list[float], envelope: Samples) -> Times | None:
    """Word times from starts alone: a word ends where its sound dies before the next one."""
    times: Times = []
    for start, end in zip(starts, [*starts[1:], len(envelope) / RATE], strict=True):
        piece = envelope[int(start * RATE) : int(end * RATE)]
        loud = np.flatnonzero(piece > 0.02 * envelope.max())
        if len(loud) == 0:
            return None
        times.append((start + loud[0] / RATE, start + (loud[-1] + 1) / RATE))
    return times


class Synthesizer:
    """Says words with either engine, trimmed, at one loudness, with word times."""

    def __init__(self) -> None:
        self._espeak: Espeak | None = None

    def say(self, text: str, words: list[str], voice: Voice) -> tuple[NDArray[np.int16], Times | None]:
        """The text at 16 kHz, peak 20000, and its words' times where they are known."""
        times: Times | None
        if voice.engine == "flite":
            audio, times = flite(text, words, voice)
            audio, _, cut = trim(audio)
            length = len(audio) / RATE
            if times is not None:
                times = [(max(0.0, start - cut), min(length, end - cut)) for start, end in times]
        else:
            self._espeak = self._espeak or Espeak()
            audio, starts = self._espeak.say(text, voice)
            audio, envelope, cut = trim(audio)
            times = None
            if len(starts) == len(words):
                times = _ends([max(0.0, start - cut) for start in starts], envelope)
        return (audio * (20_000 / np.abs(audio).max())).astype(np.int16), times


def phrase(chance: random.Random, words: tuple[str, ...]) -> tuple[list[str], str]:
    """One to eight words, and the text to speak: now and then with a comma between."""
    chosen = [chance.choice(words) for _ in range(min(chance.randint(1, 8), chance.randint(1, 10)))]
    text = chosen[0]
    for word in chosen[1:]:
        text += (", " if chance.random() < 0.15 else " ") + word
    return chosen, text


KINDS: Final = ("espeak_en", "espeak_en_unseen", "flite", "flite_unseen", "espeak_de", "espeak_de_unseen")
"""What is synthesized; `_unseen` voices are never trained on."""


def voice(chance: random.Random, kind: str, *, test: bool = False) -> Voice:
    """A voice of a kind, its settings by chance; a test of seen voices keeps to common rates."""
    if kind.startswith("flite"):
        name = "awb" if kind.endswith("unseen") else chance.choice(("kal16", "rms", "slt"))
        return Voice(
            "flite", name, round(chance.uniform(0.8, 1.35), 2), round(FLITE_PITCH[name] * chance.uniform(0.85, 1.2))
        )
    german = kind.startswith("espeak_de")
    if kind.endswith("unseen"):
        name = f"{'de' if german else chance.choice(UNSEEN_ACCENTS)}+{chance.choice(UNSEEN_VARIANTS)}"
        rate = chance.choice((chance.randint(100, 119), chance.randint(206, 225)))
    else:
        name = "de" if german else chance.choice(ACCENTS)
        if chance.random() < 0.94:
            name += f"+{chance.choice(VARIANTS)}"
        rate = chance.randint(120, 205) if test else chance.randint(98, 228)
    return Voice(
        "espeak", name, rate, chance.randint(25, 75), chance.randint(20, 80), chance.choice((0, 0, 1, 3, 6, 12))
    )


def utterances(
    speaker: Synthesizer, kind: str, count: int, seed: int, *, test: bool = False
) -> list[tuple[NDArray[np.int16], Spoken]]:
    """`count` utterances of a kind, of at most 12 s each. The same seed and engines give the same bytes."""
    chance = random.Random(seed)
    made: list[tuple[NDArray[np.int16], Spoken]] = []
    language = "de" if "_de" in kind else "en"
    while len(made) < count:
        words, text = phrase(chance, VOCABULARY[language])
        who = voice(chance, kind, test=test)
        audio, times = speaker.say(text, words, who)
        if 0.1 * RATE <= len(audio) <= 12 * RATE:
            made.append((audio, Spoken(kind, language, words, times, who)))
    return made


class Corpus:
    """Utterances on disk: one int16 stream and an index beside it."""

    def __init__(self, stem: Path) -> None:
        self.audio: NDArray[np.int16] = np.load(stem.with_suffix(".npy"), mmap_mode="r")
        index = json.loads(stem.with_suffix(".json").read_text())
        self._offsets: list[int] = index["offsets"]
        self.spoken = [Spoken(**{**entry, "voice": Voice(**entry["voice"])}) for entry in index["spoken"]]

    @staticmethod
    def write(stem: Path, made: list[tuple[NDArray[np.int16], Spoken]]) -> None:
        """Store utterances under `stem`, as .npy and .json."""
        np.save(stem.with_suffix(".npy"), np.concatenate([audio for audio, _ in made]))
        offsets = np.cumsum([0] + [len(audio) for audio, _ in made]).tolist()
        entries = [asdict(spoken) for _, spoken in made]
        stem.with_suffix(".json").write_text(json.dumps({"offsets": offsets, "spoken": entries}))

    def __len__(self) -> int:
        return len(self.spoken)

    def samples(self, index: int) -> Samples:
        """An utterance's audio, -1 to 1."""
        piece = self.audio[self._offsets[index] : self._offsets[index + 1]]
        return (piece / 32768).astype(np.float32)


TRAIN: Final = {"espeak_en": (13_000, 1), "espeak_de": (3_400, 2), "flite": (3_200, 3)}
TEST: Final = {
    "espeak_en": (150, 101),
    "espeak_en_unseen": (150, 102),
    "flite": (100, 103),
    "flite_unseen": (100, 104),
    "espeak_de": (100, 105),
    "espeak_de_unseen": (100, 106),
}
"""How many utterances of each kind, and their seed."""


def write_corpora(folder: Path, scale: float = 1.0) -> None:
    """Synthesize `train` and `test` below `folder`; `scale` makes fewer or more to train on."""
    folder.mkdir(parents=True, exist_ok=True)
    speaker = Synthesizer()
    for name, kinds, share in (("test", TEST, 1.0), ("train", TRAIN, scale)):
        made: list[tuple[NDArray[np.int16], Spoken]] = []
        for kind, (count, seed) in kinds.items():
            made += utterances(speaker, kind, max(1, int(count * share)), seed, test=name == "test")
        Corpus.write(folder / name, made)
