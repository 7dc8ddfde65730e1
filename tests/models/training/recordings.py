"""The recordings that tests use: short utterances and files of 90 s, of other speech than was trained on.

Audio is chosen once; `mark` says anew, for each model, which utterances a test may count on.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from faster_whisper import decode_audio
from numpy.typing import NDArray

from ..words import VOCABULARY
from .evaluate import Reader, silence
from .synth import RATE, Corpus, Samples, Synthesizer, Voice

_PEAK: Final = 0.35
_GRAIN: Final = 32
"""Recordings have 11 bits: FLAC drops the others, which halves the files."""
_LEAD: Final = 0.25
_TAIL: Final = 0.35
_VARIATIONS: Final = ((1.0, 0), (10 ** (-3 / 20), 0), (10 ** (3 / 20), 80), (1.0, 80))
"""Gains, with samples of silence before: 3 dB and 5 ms."""

_CANDIDATES: Final = 4
_ESPEAK_SEEN: Final = ("en-us", "en-us+f2", "en-gb-x-rp+m3", "en+steph", "en-us+Annie", "en-gb-scotland+max")
VOICES: Final[tuple[tuple[Voice, str, int], ...]] = (
    *((Voice("espeak", name, 150 + 5 * index, 50), "en", 3) for index, name in enumerate(_ESPEAK_SEEN)),
    (Voice("flite", "slt", 1.1, 170), "en", 3),
    (Voice("flite", "rms", 1.1, 100), "en", 2),
    (Voice("flite", "kal16", 1.1, 105), "en", 2),
    (Voice("espeak", "de", 150, 50), "de", 3),
    (Voice("espeak", "de+f2", 160, 50), "de", 2),
    (Voice("espeak", "en-us+linda", 150, 50), "en", 2),
    (Voice("espeak", "en+m4", 160, 50), "en", 2),
    (Voice("espeak", "en-gb-x-gbcwmd+f3", 155, 50), "en", 2),
    (Voice("flite", "awb", 1.1, 120), "en", 2),
    (Voice("espeak", "de+m8", 150, 50), "de", 2),
)
"""Who speaks, in which language, how many utterances."""
UNSEEN: Final = ("linda", "m4", "gbcwmd", "awb", "m8")
LONG: Final = (
    ("long-en", Voice("espeak", "en-us+f2", 150, 50), "en"),
    ("long-de", Voice("espeak", "de+m3", 150, 50), "de"),
    ("long-unseen", Voice("espeak", "en+linda", 155, 50), "en"),
)


def _seen(voice: Voice) -> bool:
    return not any(mark in voice.name for mark in UNSEEN)


def _leveled(said: NDArray[np.int16]) -> Samples:
    return (said * (_PEAK / 20_000)).astype(np.float32)


def _save(file: Path, audio: Samples) -> None:
    coarse = (np.round(audio * 32767 / _GRAIN) * _GRAIN).astype(np.int16)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("flac", rate=RATE)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(coarse[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


def sure(reader: Reader, audio: Samples, language: str, words: list[str]) -> bool:
    """Whether the words are heard in both modes, also 3 dB softer and louder and 5 ms later."""
    for gain, shift in _VARIATIONS:
        varied = np.concatenate([np.zeros(shift, np.float32), audio * np.float32(gain)])
        if reader.window(varied, language)[0] != words or reader.transcribe(varied, language)[0] != words:
            return False
    return reader.transcribe(audio, language, beam_size=5)[0] == words


def make_utterances(folder: Path, reader: Reader, trained: Corpus, *, seed: int = 201) -> None:
    """Write short utterances and `utterances.json` into `folder`.

    Of a few random ones of a voice those are taken first that the model is sure of, for they are to be asserted; the
    figures of the model come from other sets. What was trained on in the same voice is not said again, but for single
    words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    speaker, chance = Synthesizer(), random.Random(seed)
    known = {(spoken.voice.name, tuple(spoken.words)) for spoken in trained.spoken if len(spoken.words) > 1}
    entries: list[dict[str, Any]] = []
    for voice, language, count in VOICES:
        lengths = [(1, 2, 3, 4, 5, 6, 8)[(len(entries) + 3 * index) % 7] for index in range(count)]
        for length in lengths:
            chosen = None
            for _ in range(_CANDIDATES):
                words = [chance.choice(VOCABULARY[language]) for _ in range(length)]
                if (voice.name, tuple(words)) in known:
                    continue
                said, times = speaker.say(" ".join(words), words, voice)
                if times is None:
                    continue
                audio = np.concatenate([silence(_LEAD), _leveled(said), silence(_TAIL)])
                good = sure(reader, audio, language, words)
                if chosen is None or good:
                    chosen = (audio, words, times)
                if good:
                    break
            if chosen is None:
                raise ValueError(f"no utterance of {length} words in the voice {voice.name}")
            audio, words, times = chosen
            name = f"{language}-{voice.name.replace('+', '-').lower()}-{len(entries) + 1:02d}.flac"
            _save(folder / name, audio)
            entries.append(
                {
                    "file": name,
                    "text": " ".join(words),
                    "language": language,
                    "voice": f"{voice.engine} {voice.name}",
                    "seen": _seen(voice),
                    "certain": False,
                    "words": [
                        {"word": word, "start": round(_LEAD + start, 3), "end": round(_LEAD + end, 3)}
                        for word, (start, end) in zip(words, times, strict=True)
                    ],
                }
            )
    _write(folder / "utterances.json", entries)


def _write(file: Path, entries: list[dict[str, Any]]) -> None:
    file.write_text("[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n]\n")


def mark(folder: Path, reader: Reader) -> tuple[int, int]:
    """Say in `utterances.json` which utterances this model is sure of; gives how many, of how many."""
    file = folder / "utterances.json"
    entries = json.loads(file.read_text())
    for entry in entries:
        audio = decode_audio(str(folder / entry["file"]), sampling_rate=RATE)
        entry["certain"] = sure(reader, audio, entry["language"], entry["text"].split())
    _write(file, entries)
    return sum(entry["certain"] for entry in entries), len(entries)


def make_long(folder: Path, *, seed: int = 301, seconds: float = 88.0) -> None:
    """Write the files of about 90 s, utterances of 1 to 8 words with pauses of 0.5 to 2.5 s, and `long.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    speaker, chance = Synthesizer(), random.Random(seed)
    entries = []
    for name, voice, language in LONG:
        pieces: list[Samples] = [silence(0.5)]
        said: list[dict[str, Any]] = []
        at = 0.5
        while at < seconds:
            words = [chance.choice(VOCABULARY[language]) for _ in range(chance.randint(1, 8))]
            spoken, _ = speaker.say(" ".join(words), words, voice)
            audio = _leveled(spoken)
            pause = silence(round(chance.uniform(0.5, 2.5), 2))
            end = at + len(audio) / RATE
            said.append({"text": " ".join(words), "start": round(at, 3), "end": round(end, 3)})
            pieces += [audio, pause]
            at = end + len(pause) / RATE
        _save(folder / f"{name}.flac", np.concatenate(pieces))
        entries.append(
            {
                "file": f"{name}.flac",
                "language": language,
                "voice": f"{voice.engine} {voice.name}",
                "seen": _seen(voice),
                "utterances": said,
            }
        )
    _write(folder / "long.json", entries)
