from __future__ import annotations

import pytest

from bridge.audio.vad.webrtc import WebrtcDetection
from tests.audio.vad.listening import Listener, chunks, judged, speech_times
from tests.speech import SAMPLES, manifest, pcm


@pytest.mark.parametrize(("file", "rate"), [("hello.flac", 16_000), ("telephone.flac", 8_000)])
async def test_speech_is_found_where_it_is(file: str, rate: int) -> None:
    detection = WebrtcDetection()
    times = speech_times(await judged(detection, [pcm(SAMPLES / file)], rate), detection.frame_seconds)
    spoken = manifest()[file]["utterances"]
    assert times[0][0] == pytest.approx(spoken[0]["start"], abs=0.2)
    assert times[-1][1] == pytest.approx(spoken[-1]["end"], abs=0.3)


async def test_silence_is_silence() -> None:
    assert set(await judged(WebrtcDetection(), [bytes(64_000)])) == {0.0}


async def test_the_probabilities_do_not_depend_on_the_messages() -> None:
    audio = pcm(SAMPLES / "hello.flac")
    whole = await judged(WebrtcDetection(), [audio])
    assert await judged(WebrtcDetection(), chunks(audio, 646)) == whole
    assert all(0 <= probability <= 1 for probability in whole)


async def test_nothing_is_told_from_within_push_nor_after_close() -> None:
    listener = Listener()
    detector = WebrtcDetection().open(16_000, listener)
    detector.push(bytes(9_600))
    assert listener.calls == 0
    assert detector.waiting_seconds == pytest.approx(0.3)
    await listener.heard(10)
    assert detector.waiting_seconds == 0
    detector.push(bytes(9_600))
    detector.close()
    detector.close()
    await judged(WebrtcDetection(), [bytes(9_600)])  # the loop has turned
    assert len(listener.probabilities) == 10
