"""The gate on real speech: the same words at the same times as without it, and silence is not given to the engine."""

from __future__ import annotations

import numpy as np
import pytest

from bench.gate import Conversation, listen, text, times
from bench.noises import NOISES, RATE, at_level, to_pcm16
from bridge.settings import Settings
from tests.speech import SAMPLES, manifest, pcm

SPOKEN = ("short.flac", "hello.flac", "weather.flac")
PAUSE = 6.0
ROOM = -62.0
"""dBFS."""


@pytest.fixture(scope="module")
def talk() -> Conversation:
    """Three samples with long pauses, in a quiet room."""
    said = manifest()
    parts = [np.zeros(round(PAUSE * RATE))]
    for name in SPOKEN:
        parts += [np.frombuffer(pcm(SAMPLES / name), "<i2") / 32_768, np.zeros(round(PAUSE * RATE))]
    whole = np.concatenate(parts)
    whole += at_level(NOISES["fan"](np.random.default_rng(1), len(whole)), ROOM)
    return Conversation("talk", to_pcm16(whole), " ".join(said[name]["transcript"] for name in SPOKEN))


@pytest.mark.slow
async def test_the_words_are_the_same_and_their_times(talk: Conversation) -> None:
    heard = {}
    for detector, gate in (("off", "off"), ("silero", "on"), ("webrtc", "on")):
        settings = Settings.load({}, None, vad=detector, gate=gate)
        found, given = await listen(settings, {}, [talk])
        heard[detector] = found["talk"]
        assert text(found["talk"]) == talk.said
        assert given == pytest.approx(talk.seconds, abs=0.1) if gate == "off" else given < 0.75 * talk.seconds
    for detector in ("silero", "webrtc"):
        for (word, start), (before, at) in zip(times(heard[detector]), times(heard["off"]), strict=True):
            assert word == before
            assert start == pytest.approx(at, abs=0.1)
