"""WebRTC's voice detector, which pocketsphinx carries: the light choice, without a model or a further package."""

from __future__ import annotations

import logging
from typing import Final

from bridge.audio.vad.detector import Heard
from bridge.audio.vad.frames import RATE, FrameDetector, Frames

log = logging.getLogger(__name__)

FRAME_SAMPLES: Final = 480
"""30 ms, the longest frame that it takes."""


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
        self._vads = [Vad(mode, RATE, FRAME_SAMPLES / RATE) for mode in range(4)]

    def _judge(self) -> None:
        frames = self._frames.take(self._frames.whole)
        self.tell([sum(vad.is_speech(frame) for vad in self._vads) / 4 for frame in frames])
