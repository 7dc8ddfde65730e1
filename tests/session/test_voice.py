"""Sessions whose silence is not given to the engine: the same words at the same times, whatever breaks or is late."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from backends.base import BackendError, RecognitionConfig, Result
from backends.scripted import (
    MARKER,
    MARKER_SECONDS,
    ScriptedBackend,
    ScriptedFault,
    ScriptedThreadsBackend,
)
from bridge.audio.vad.segmenter import Endpointing
from bridge.protocols.events import Final, SpeechEnded, SpeechStarted, Start
from bridge.session.limits import SessionLimits
from bridge.session.voice import VoicePolicy
from tests.session.harness import NEVER, FunctionEngine, NonzeroDetection, Running, markers, session_on, words

RATE = 16_000

Words = list[tuple[str, float, float]]


def spoken(*pauses: float, first: float = 0.0) -> tuple[bytes, Words]:
    """Markers after `first` seconds, each followed by its pause; and the words with their times."""
    parts, expected, at = [np.zeros(round(first * RATE), "<i2")], [], first
    for n, pause in enumerate(pauses):
        parts.append(np.full(round(MARKER_SECONDS * RATE), MARKER + n, "<i2"))
        expected.append((f"w{n}", at, at + MARKER_SECONDS))
        parts.append(np.zeros(round(pause * RATE), "<i2"))
        at += (len(parts[-1]) + len(parts[-2])) / RATE
    return np.concatenate(parts).tobytes(), expected


def gated(
    seconds: float = 1.0,
    lateness: Callable[[], float | None] = lambda: None,
    frame_seconds: float = 0.032,
    **endpointing: float,
) -> VoicePolicy:
    return VoicePolicy(NonzeroDetection(frame_seconds, lateness), Endpointing(**endpointing), seconds)


def ears(policy: VoicePolicy) -> NonzeroDetection:
    assert isinstance(policy.detection, NonzeroDetection)
    return policy.detection


def assert_heard(running: Running, expected: Words, within: float = 0.0011) -> None:
    """Every word exactly once, at its time."""
    assert running.text == " ".join(w for w, _, _ in expected)
    heard = [t for w in running.words for t in (w.start, w.end)]
    assert heard == pytest.approx([t for _, start, end in expected for t in (start, end)], abs=within)
    assert running.closed.finalized == running.closed.received
    finals = [(e.start, e.end) for e in running.events if isinstance(e, Final)]
    assert all(start <= end for start, end in finals)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(finals))
    assert_speech_alternates(running)


def assert_speech_alternates(running: Running, channel: int | None = None) -> None:
    events = [e for e in running.events if isinstance(e, SpeechStarted | SpeechEnded) and e.channel == channel]
    assert [type(e) for e in events[::2]] == [SpeechStarted] * len(events[::2])
    assert [type(e) for e in events[1::2]] == [SpeechEnded] * len(events[1::2])
    times = [e.start if isinstance(e, SpeechStarted) else e.end for e in events]
    assert times == sorted(times)
    assert not times or times[-1] <= running.closed.duration


async def send(running: Running, audio: bytes, chance: random.Random, most: int = 48_000) -> None:
    """Messages of random lengths, as fast as the session takes them."""
    at = 0
    while at < len(audio):
        size = 2 * chance.randint(1, max(1, chance.choice([320, 3_200, most]) // 2))
        await running.send(audio[at : at + size], frame=size)
        at += size


def limited(seconds: float) -> Any:
    """Words as the marker engine hears them; refuses audio past its limit, as Google does."""

    async def recognize(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async def watched() -> AsyncIterator[bytes]:
            given = 0
            async for chunk in audio:
                given += len(chunk) // 2
                if given > seconds * config.sample_rate:
                    raise BackendError("too long", code="stream_limit", retryable=True)
                yield chunk

        async for result in markers().recognize(config, watched()):
            yield result

    return recognize


ENGINES: dict[str, Callable[..., Any]] = {
    "asyncio": lambda *faults: markers(*faults, kind=ScriptedBackend),
    "threads": lambda *faults: markers(*faults, kind=ScriptedThreadsBackend),
    "no flush": lambda *faults: FunctionEngine(markers(*faults).recognize),
    "limited": lambda *faults: FunctionEngine(limited(4.0), max_stream_seconds=4.0),
    "idle": lambda *faults: FunctionEngine(markers(*faults).recognize, idle_seconds=0.1),
    "limited, flush": lambda *faults: FunctionEngine(limited(4.0), max_stream_seconds=4.0, flush=True),
}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("engine", ENGINES)
async def test_a_gate_changes_no_word_and_no_time(engine: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of any length, messages of any length, a detector that is late now and then, and faults."""
    monkeypatch.setattr("bridge.session.channel._backoff", lambda failures, error: 0.01)
    chance = random.Random(f"{engine} {seed}")
    pauses = [chance.choice([0.0, 0.05, 0.3, 0.7, 1.3, 2.2, 5.0, 20.0]) for _ in range(25)]
    audio, expected = spoken(*pauses, first=chance.choice([0.0, 0.01, 0.5, 10.0]))
    moments = sorted(chance.uniform(0, len(audio) / 32_000) for _ in range(chance.randint(0, 10)))
    faults = [ScriptedFault(at, chance.choice(["fail", "end", "stall"])) for at in moments]
    lateness = chance.choice([[None], [None, 0.0, 0.005], [0.01]])
    voice = gated(
        chance.choice([0.1, 0.5, 1.0, 2.0]),
        lambda: chance.choice(lateness),
        chance.choice([0.02, 0.032, 0.03]),
        silence_seconds=chance.choice([0.1, 0.3, 0.8]),
        padding_seconds=chance.choice([0.0, 0.3, 1.0]),
    )
    limits = SessionLimits(stall_seconds=0.15)
    async with session_on(ENGINES[engine](*faults), limits=limits, voice=voice) as running:
        await send(running, audio, chance)
        running.session.stop()
    assert_heard(running, expected, 0.011 if "limited" in engine else 0.0011)
