"""A stream through a voice detection, and what was heard of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from bridge.audio.vad.detector import VoiceDetection
from bridge.audio.vad.segmenter import Endpointing, Segmenter, SpeechOnset


class Listener:
    """Takes in probabilities; `heard(n)` waits for so many."""

    def __init__(self) -> None:
        self.probabilities: list[float] = []
        self.calls = 0
        self._more = asyncio.Event()

    def __call__(self, probabilities: Sequence[float]) -> None:
        self.calls += 1
        self.probabilities += probabilities
        self._more.set()

    async def heard(self, count: int) -> list[float]:
        async with asyncio.timeout(10):
            while len(self.probabilities) < count:
                self._more.clear()
                await self._more.wait()
        return self.probabilities


async def judged(detection: VoiceDetection, messages: Iterable[bytes], rate: int = 16_000) -> list[float]:
    """All of a stream, pushed message by message."""
    listener = Listener()
    detector = detection.open(rate, listener)
    for message in messages:
        detector.push(message)
        await asyncio.sleep(0)
    count = detector.finish()
    await listener.heard(count)
    detector.close()
    return listener.probabilities


def chunks(pcm: bytes, size: int) -> list[bytes]:
    return [pcm[at : at + size] for at in range(0, len(pcm), size)]


def speech_times(
    probabilities: Iterable[float], frame_seconds: float, endpointing: Endpointing | None = None
) -> list[tuple[float, float]]:
    """From when to when somebody spoke, in seconds."""
    segmenter = Segmenter(frame_seconds, endpointing)
    events = [event for probability in probabilities if (event := segmenter.push(probability))]
    times = [event.frame * frame_seconds for event in (*events, *segmenter.force())]
    assert all(isinstance(event, SpeechOnset) for event in events[::2])
    return list(zip(times[::2], times[1::2], strict=True))
