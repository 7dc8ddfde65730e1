"""WebRTC's voice detector, which pocketsphinx carries: the light choice, without a model or a further package.

It answers yes or no, in four degrees of strictness. The share of yes among all four over the last frames is no
probability yet: in steady noise the lax ones go on saying yes, and a strict one alone misses soft speech. Only near
unanimity tells speech, so the share is bent until that lies where the threshold lies: 11 yes of 12 make 0.42, and
begin speech by the default; 10 make 0.16, and keep it on. `python -m bench.vad` measures what comes of it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from bridge.audio.vad.detector import Heard
from bridge.audio.vad.frames import RATE, FrameDetector, Frames

FRAME_SAMPLES: Final = 480
"""30 ms, the longest frame that it takes."""
DEGREES: Final = 4
"""Of strictness; 0 is the laxest."""
WINDOW: Final = 3
"""Frames, 90 ms: single frames flicker. An onset is told that much later, which the padding takes back."""
BENT: Final = 10
"""The power that the share of yes is raised to."""


class WebrtcDetection:
    """Nothing is shared: each stream has detectors of its own, which follow its noise."""

    name = "webrtc"
    frame_seconds = FRAME_SAMPLES / RATE

    async def load(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to give back."""

    def open(self, rate: int, heard: Heard) -> WebrtcDetector:
        """A detector of a new stream."""
        return WebrtcDetector(rate, heard)


class WebrtcDetector(FrameDetector):
    """Judges where it is called: a frame costs some microseconds, less than to hand it to a thread."""

    def __init__(self, rate: int, heard: Heard) -> None:
        from pocketsphinx import Vad  # noqa: PLC0415 - its library is loaded with the first stream that needs it

        super().__init__(Frames(rate, FRAME_SAMPLES), heard)
        self._vads = [Vad(degree, RATE, self._frames.seconds) for degree in range(DEGREES)]
        self._votes = deque([0] * WINDOW, maxlen=WINDOW)

    def _judge(self) -> None:
        self.tell([self._probability(frame) for frame in self._frames.take(self._frames.whole)])

    def _probability(self, frame: bytes) -> float:
        # Every one of them hears every frame, because they follow the noise.
        self._votes.append(sum(bool(vad.is_speech(frame)) for vad in self._vads))
        share: float = sum(self._votes) / (WINDOW * DEGREES)
        return share**BENT
