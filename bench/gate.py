"""What the gate changes: the same conversation with and without it, on engines that listen for pauses by themselves.

`python -m bench.gate [--seconds-of-silence 8]` makes conversations of the project's samples, and of the recordings
beside the project if they are there, with pauses of 0.5, 1.5, 4 and more seconds between them in digital silence, in a
quiet and in a noisy room. Each goes through the embedded engine without a gate, then with one for each voice detector,
and again through `google` against the project's emulator, which recognizes by the embedded engine. Printed are the
word errors, how many words differ from those heard without a gate, by how much their times differ, and the share of
the audio that the engine was given; and, to compare with, what it changes to begin 21 ms later.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import numpy as np

from bench.accuracy import decoded, known_files
from bench.noises import NOISES, RATE, Signal, at_level, to_pcm16
from bridge.app import open_manager, session_limits
from bridge.audio.files import open_audio
from bridge.audio.formats import AudioFormat, Encoding
from bridge.commands.transcribe import transcribe
from bridge.emulator.server import EmulatorConfig, emulating
from bridge.protocols.events import Start
from bridge.session.batch import without_clock
from bridge.settings import Settings
from bridge.transcript import Segment, word_errors

BACKGROUNDS: Final = {"digital silence": None, "quiet room": -62.0, "noisy room": -45.0}
"""dBFS of fan noise."""
PAUSES: Final = (0.5, 1.5, 4.0)
PER_CONVERSATION: Final = 6
DETECTORS: Final = ("silero", "webrtc")
CUT: Final = 2 * 337
"""Bytes: 21 ms."""


@dataclass(frozen=True)
class Conversation:
    """Files with pauses between them, and what is said."""

    name: str
    pcm: bytes
    said: str

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.pcm) / 2 / RATE


def signal(path: Path) -> Signal:
    """A file at 16 kHz."""
    with open_audio(str(path)) as source:
        return np.frombuffer(decoded(source.format, source.chunks(1_000)), "<i2") / 32_768


def conversations(longest: float, seed: int = 1) -> Iterator[Conversation]:
    """All files, some in each conversation, once for each background."""
    chance = np.random.default_rng(seed)
    files = list(known_files())
    for background, level in BACKGROUNDS.items():
        for number, at in enumerate(range(0, len(files), PER_CONVERSATION)):
            some = files[at : at + PER_CONVERSATION]
            pauses = itertools.cycle((*PAUSES, longest))
            parts = [np.zeros(round(longest * RATE))]
            for path, _ in some:
                parts += [signal(path), np.zeros(round(next(pauses) * RATE))]
            whole = np.concatenate(parts)
            if level is not None:
                whole = whole + at_level(NOISES["fan"](chance, len(whole)), level)
            yield Conversation(f"{background} {number + 1}", to_pcm16(whole), " ".join(said for _, said in some))


class PcmSource:
    """A conversation as what `transcribe` reads."""

    def __init__(self, conversation: Conversation) -> None:
        self.name = conversation.name
        self.format = AudioFormat(Encoding.PCM_S16LE, RATE)
        self.duration: float | None = conversation.seconds
        self._pcm = conversation.pcm

    def chunks(self, milliseconds: int) -> Iterator[bytes]:
        size = RATE * milliseconds // 1_000 * 2
        for at in range(0, len(self._pcm), size):
            yield self._pcm[at : at + size]

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


Heard = dict[str, Sequence[Segment]]
"""The finals of each conversation."""


async def listen(settings: Settings, env: dict[str, str], talks: Sequence[Conversation]) -> tuple[Heard, float]:
    """What is heard, and how much of the audio the engine was given."""
    heard: Heard = {}
    async with open_manager(settings, env, without_clock(session_limits(settings))) as manager:
        for talk in talks:
            source = PcmSource(talk)
            heard[talk.name], _ = await transcribe(manager, Start(source.format, partials=False), source, _nobody)
        given = manager.metrics.backend_audio_seconds.labels(manager.engines.preferred.name)
        return heard, given.value


def _nobody(_: float) -> None:
    """No progress is shown."""


def times(segments: Sequence[Segment]) -> list[tuple[str, float]]:
    """Every word with its start."""
    return [(word.text, word.start) for segment in segments for word in segment.words]


def text(segments: Sequence[Segment]) -> str:
    """All that was heard."""
    return " ".join(segment.text for segment in segments)


def compare(name: str, talks: Sequence[Conversation], heard: Heard, before: Heard, given: float) -> None:
    """Print one line."""
    errors = sum(word_errors(talk.said, text(heard[talk.name]))[0] for talk in talks)
    words = sum(len(talk.said.split()) for talk in talks)
    differ = sum(word_errors(text(before[talk.name]), text(heard[talk.name]))[0] for talk in talks)
    shifts = [
        abs(one[1] - other[1])
        for talk in talks
        for one, other in zip(times(before[talk.name]), times(heard[talk.name]), strict=False)
        if text(before[talk.name]) == text(heard[talk.name])
    ]
    shift = f"{1e3 * max(shifts):.0f}" if shifts else "-"
    share = given / sum(talk.seconds for talk in talks)
    print(f"{name:34} {errors:5} {words:6} {differ:8} {shift:>10} {share:8.0%}", flush=True)


async def run(longest: float, only: str) -> None:
    """Print the table."""
    talks = [talk for talk in conversations(longest) if only in talk.name]
    print(f"{len(talks)} conversations, {sum(talk.seconds for talk in talks) / 60:.1f} minutes")
    print(f"{'':34} {'errors':>5} {'words':>6} {'differ':>8} {'shift ms':>10} {'given':>8}")
    for engine in ("pocketsphinx", "google"):
        async with contextlib.AsyncExitStack() as stack:
            env: dict[str, str] = {}
            if engine == "google":
                emulator = await stack.enter_async_context(emulating(EmulatorConfig(mode="speech")))
                env = {
                    "STT_GOOGLE_PROJECT": "bench",
                    "STT_GOOGLE_ENDPOINT": f"http://{emulator.address}",
                    "STT_GOOGLE_REPLAY_SPEED": "0",
                }
            before, given = await listen(_settings(engine, "off", "off"), env, talks)
            for background in BACKGROUNDS:
                some = [talk for talk in talks if talk.name.startswith(background)]
                if not some:
                    continue
                compare(f"{engine}, no gate, {background}", some, before, before, given * _share(some, talks))
            # What any change of the audio's framing does to this engine: a gate should do no more.
            cut = [replace(talk, pcm=talk.pcm[CUT:]) for talk in talks]
            shifted, given = await listen(_settings(engine, "off", "off"), env, cut)
            compare(f"{engine}, no gate, begun 21 ms later", talks, shifted, before, given)
            for detector in DETECTORS:
                heard, given = await listen(_settings(engine, detector, "on"), env, talks)
                compare(f"{engine}, {detector}", talks, heard, before, given)


def _share(some: Sequence[Conversation], talks: Sequence[Conversation]) -> float:
    return sum(talk.seconds for talk in some) / sum(talk.seconds for talk in talks)


def _settings(engine: str, detector: str, gate: str) -> Settings:
    return Settings.load({}, None, backend=engine, vad=detector, gate=gate)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.gate", description=__doc__)
    parser.add_argument("--seconds-of-silence", type=float, default=8, help="the longest pause (default: %(default)s)")
    parser.add_argument("--only", default="", help="conversations whose name holds this, as in 'noisy room'")
    args = parser.parse_args()
    asyncio.run(run(args.seconds_of_silence, args.only))


if __name__ == "__main__":
    main()
