"""How likely each moment of a stream is speech: the contract of the detectors, and which there are.

    open(rate, heard) → push* → finish? → close

A detector cuts a stream into frames of `frame_seconds`, from the first sample on and without gaps, and gives each a
probability. What becomes of the probabilities is the segmenter's matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol

DetectorName = Literal["auto", "silero", "webrtc"]

Heard = Callable[[Sequence[float]], None]
"""Takes the probabilities, 0 to 1, of the next frames, one for each and in order."""

FAILED_OPEN: Final = 1.0
"""The probability of what a broken model cannot judge: too much audio for an engine is cheaper than lost words."""


class VoiceDetectionError(Exception):
    """A detector cannot be used here; the message says what would help."""


class VoiceDetector(Protocol):
    """Judges one lane of one session. To be used on the event loop alone; no method blocks.

    `heard` is called on the event loop, never from within `push` or `finish`.
    """

    @property
    def waiting_seconds(self) -> float:
        """Whole frames pushed and not judged yet. Nothing here limits it: whoever pushes waits while it is much."""

    def push(self, pcm: bytes) -> None:
        """Take in PCM16 mono, of any length."""

    def finish(self) -> int:
        """No more is pushed; the incomplete last frame is judged as well, as if silence followed.

        Returns how many frames the stream has: when `heard` was given so many probabilities, all is judged.
        """

    def close(self) -> None:
        """Give it up; `heard` is not called again. May be called twice."""


class VoiceDetection(Protocol):
    """What all detectors of a server share: the model, and whatever runs it."""

    name: str
    frame_seconds: float

    async def load(self) -> None:
        """Make ready, without blocking the event loop. Safe to cancel; then only `close` may follow.

        Raises:
            VoiceDetectionError: it will not work here.
        """

    async def close(self) -> None:
        """Give everything back, when the detectors were closed. May be called twice, and is safe to cancel."""

    def open(self, rate: int, heard: Heard) -> VoiceDetector:
        """A detector of a new stream of PCM16 mono at `rate` Hz; only between `load` and `close`."""


def make_voice_detection(name: DetectorName) -> VoiceDetection:
    """The detection of that name; `auto` is Silero's where its packages are installed, else WebRTC's.

    Raises:
        VoiceDetectionError: its packages are not installed.
    """
    # Late, so that a server that gates nothing pays for none of it.
    from bridge.audio.vad.silero import SileroDetection, missing  # noqa: PLC0415
    from bridge.audio.vad.webrtc import WebrtcDetection  # noqa: PLC0415

    absent = missing() if name != "webrtc" else []
    if name == "webrtc" or (name == "auto" and absent):
        return WebrtcDetection()
    if absent:
        raise VoiceDetectionError(
            f"the voice detector silero needs {', '.join(absent)}: pip install 'stt-bridge[silero]'"
        )
    return SileroDetection()
