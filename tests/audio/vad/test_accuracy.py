"""Both detectors on speech at known times, clean and in noise, and on noise alone: the short form of `bench.vad`."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from bench.noises import NOISES, RATE, at_level, to_pcm16
from bench.speech import Clip, by_telephone, clips, in_noise
from bench.vad import Score, probabilities, segments
from bridge.audio.vad.detector import DetectorName, make_voice_detection
from bridge.audio.vad.segmenter import Endpointing
from bridge.audio.vad.silero_model import missing

DETECTORS = [
    pytest.param(
        "silero", marks=pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}"), id="silero"
    ),
    "webrtc",
]
ENDPOINTING = Endpointing()


@cache
def spoken() -> list[Clip]:
    """Three voices, and the real one if it is there."""
    return [clip for clip in clips() if clip.name.startswith(("commands", "voice-slt", "voice-awb", "librivox-0880"))]


async def score(name: DetectorName, heard: list[Clip]) -> Score:
    detection = make_voice_detection(name)
    await detection.load()
    total = Score()
    for clip, values in zip(
        heard, await probabilities(detection, [to_pcm16(clip.signal) for clip in heard]), strict=True
    ):
        total.add(clip, *segments(values, detection.frame_seconds, ENDPOINTING))
    await detection.close()
    return total


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("condition", ["clean", "telephone", "white", "pink", "hum 50 Hz", "fan", "babble"])
async def test_less_than_a_hundredth_of_speech_is_missed_clean_and_at_10_db(name: DetectorName, condition: str) -> None:
    if condition == "clean":
        heard = spoken()
    elif condition == "telephone":
        heard = [by_telephone(clip) for clip in spoken()]
    else:
        heard = [in_noise(clip, condition, 10, spoken()) for clip in spoken()]
    result = await score(name, heard)
    assert result.missed < 0.01 * result.spoken


@pytest.mark.parametrize("name", DETECTORS)
async def test_clean_utterances_are_found_one_by_one(name: DetectorName) -> None:
    result = await score(name, spoken())
    assert (result.false, result.merged) == (0, 0)
    assert len(result.onsets) == result.utterances
    assert max(map(abs, result.onsets)) < ENDPOINTING.padding_seconds
    assert np.median(np.abs(result.ends)) < 0.15


@pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}")
@pytest.mark.parametrize("noise", NOISES)
async def test_silero_hears_no_speech_in_noise(noise: str) -> None:
    detection = make_voice_detection("silero")
    await detection.load()
    signal = NOISES[noise](np.random.default_rng(1), 5 * RATE)
    streams = [to_pcm16(at_level(signal, level)) for level in (-60, -40, -20)]
    for values in await probabilities(detection, streams):
        assert segments(values, detection.frame_seconds, ENDPOINTING) == ([], [])
    await detection.close()
