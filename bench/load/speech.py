"""What the sessions say: the project's recorded samples, with their words and when each piece of speech ends."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.load.plan import FRAME_BYTES, FRAME_SECONDS, RATE
from bridge.audio.decode import StreamDecoder
from bridge.audio.files import open_audio

SAMPLES: Final = Path(__file__).resolve().parent.parent.parent / "samples"
LONGEST: Final = 20.0
"""Seconds of a sample that is used: sessions should differ."""


class SpeechError(Exception):
    """There is nothing to say; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """Words, and when they end in seconds."""

    text: str
    end: float


@dataclass(frozen=True, slots=True)
class Clip:
    """Speech cut into frames of the length that is sent, the last one filled with silence."""

    name: str
    frames: tuple[bytes, ...]
    utterances: tuple[Utterance, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """What one session says: numbers of clips, each after so many frames of silence; then silence up to the end."""

    clips: tuple[tuple[int, int], ...]
    frames: int


def pcm16(path: Path) -> bytes:
    """A file as samples of 16 kHz, mono."""
    with open_audio(str(path)) as source:
        decoder = StreamDecoder(source.format, RATE)
        parts: list[bytes] = []
        for chunk in source.chunks(1_000):
            decoder.push(chunk)
            parts += (piece for (piece,) in iter(decoder.read, None))
        decoder.finish()
        parts += (piece for (piece,) in iter(decoder.read, None))
        decoder.close()
    return b"".join(parts)


def cut(pcm: bytes) -> tuple[bytes, ...]:
    """In frames."""
    pcm += bytes(-len(pcm) % FRAME_BYTES)
    return tuple(pcm[i : i + FRAME_BYTES] for i in range(0, len(pcm), FRAME_BYTES))


def manifest(folder: Path = SAMPLES) -> list[dict[str, Any]]:
    """The recordings of a folder that can be used: `file`, `seconds`, `utterances` with `text` and `end` in seconds.

    Raises:
        SpeechError: there are none.
    """
    path = folder / "manifest.json"
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
        usable = [s for s in samples if s.get("utterances") and s["seconds"] <= LONGEST]
    except FileNotFoundError:
        if folder == SAMPLES:
            raise SpeechError(
                "the project's recordings are not installed: name a FOLDER with a manifest.json by --audio, "
                "or run it from the repository"
            ) from None
        raise SpeechError(f"{path} is not there") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise SpeechError(f"{path} cannot be used: {type(exc).__name__}: {exc}") from exc
    if not usable:
        raise SpeechError(f"{path} names no recording of up to {LONGEST:g} s with utterances")
    return usable


@functools.cache
def clips(folder: Path = SAMPLES) -> tuple[Clip, ...]:
    """All of the manifest's recordings, in its order.

    Raises:
        SpeechError: there are none.
        AudioFileError: one cannot be read.
    """
    found = []
    for sample in manifest(folder):
        utterances = tuple(Utterance(u["text"], u["end"]) for u in sample["utterances"])
        found.append(Clip(sample["file"], cut(pcm16(folder / sample["file"])), utterances))
    return tuple(found)


def part(all_clips: Sequence[Clip], seconds: float, think: float, rng: random.Random) -> Part:
    """Whole clips in a random order with pauses between them, as many as there is time for."""
    frames = max(1, round(seconds / FRAME_SECONDS))
    chosen: list[tuple[int, int]] = []
    at = 0
    waiting = list(range(len(all_clips)))
    rng.shuffle(waiting)
    while waiting:
        number = waiting.pop()
        pause = round(rng.uniform(0, 2 * think) / FRAME_SECONDS) if chosen else 0
        end = at + pause + len(all_clips[number].frames)
        if end <= frames:
            chosen.append((pause, number))
            at = end
            if not waiting:  # all was said: again
                waiting = list(range(len(all_clips)))
                rng.shuffle(waiting)
    return Part(tuple(chosen), frames)


def said(all_clips: Sequence[Clip], spoken: Part) -> list[Utterance]:
    """The utterances of a part, on its own clock."""
    found: list[Utterance] = []
    at = 0
    for pause, number in spoken.clips:
        at += pause
        clip = all_clips[number]
        found += (Utterance(u.text, u.end + at * FRAME_SECONDS) for u in clip.utterances)
        at += len(clip.frames)
    return found


def on_the_wire(silence: bytes, frames: Sequence[Sequence[bytes]], spoken: Part) -> list[bytes]:
    """A part as what is sent of it: `frames` are those of each clip."""
    found: list[bytes] = []
    for pause, number in spoken.clips:
        found += [silence] * pause
        found += frames[number]
    return found + [silence] * (spoken.frames - len(found))
