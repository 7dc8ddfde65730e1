"""What every detector does with PCM16 of any rate before it judges it: frames of one length at 16 kHz."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import soxr

from bridge.audio.vad.detector import Heard

RATE: Final = 16_000
"""Hertz; what the detectors hear, whatever the engine's rate is."""


class Frames:
    """The frames of one stream, each of `samples` samples and preceded by the `context` samples before it.

    Frame n covers the time from n * samples / 16000 seconds on: soxr takes its own delay back.
    """

    def __init__(self, rate: int, samples: int, *, context: int = 0) -> None:
        self.taken = 0
        """How many frames were given out."""
        self.seconds = samples / RATE
        """The length of a frame."""
        self._frame, self._context = 2 * samples, 2 * context  # bytes
        self._heard = bytearray(self._context)  # silence precedes the first sample
        self._resampler: soxr.ResampleStream | None = None
        if rate != RATE:
            # Of floats: soxr dithers integers, so that they would depend on the cutting.
            self._resampler = soxr.ResampleStream(rate, RATE, 1, dtype="float32", quality="LQ")

    @property
    def whole(self) -> int:
        """How many frames are complete and were not taken."""
        return (len(self._heard) - self._context) // self._frame

    def push(self, pcm: bytes) -> None:
        """Take in audio at the stream's rate."""
        if self._resampler is not None:
            pcm = _pcm16(self._resampler.resample_chunk(np.frombuffer(pcm, "<i2").astype(np.float32)))
        self._heard += pcm

    def finish(self) -> int:
        """No more is pushed: silence fills the last frame. Returns how many frames there are in all."""
        if self._resampler is not None:
            self._heard += _pcm16(self._resampler.resample_chunk(np.empty(0, np.float32), last=True))
            self._resampler = None
        self._heard += bytes((self._context - len(self._heard)) % self._frame)
        return self.taken + self.whole

    def take(self, most: int) -> list[bytes]:
        """The next frames, each with its context; so many at most."""
        count = min(self.whole, most)
        length = self._context + self._frame
        frames = [bytes(self._heard[at : at + length]) for at in range(0, count * self._frame, self._frame)]
        del self._heard[: count * self._frame]
        self.taken += count
        return frames


def _pcm16(samples: npt.NDArray[np.float32]) -> bytes:
    return np.clip(np.rint(samples), -32_768, 32_767).astype("<i2").tobytes()


class FrameDetector(ABC):
    """A `VoiceDetector` but for the judging."""

    def __init__(self, frames: Frames, heard: Heard) -> None:
        self._frames = frames
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._told = 0
        self._closed = False

    @property
    def waiting_seconds(self) -> float:
        """Audio in whole frames that was pushed and not judged."""
        return (self._frames.taken + self._frames.whole - self._told) * self._frames.seconds

    def push(self, pcm: bytes) -> None:
        """Take in audio, and have it judged if it completes a frame."""
        self._frames.push(pcm)
        if self._frames.whole:
            self._judge()

    def finish(self) -> int:
        """Have the last frame judged; returns how many there are."""
        count = self._frames.finish()
        if self._frames.whole:
            self._judge()
        return count

    def close(self) -> None:
        """Tell nothing more."""
        self._closed = True

    def tell(self, probabilities: Sequence[float]) -> None:
        """Give the caller the next frames' probabilities, from the event loop: what fails there harms nobody else."""
        self._loop.call_soon(self._tell, probabilities)

    def _tell(self, probabilities: Sequence[float]) -> None:
        self._told += len(probabilities)
        if not self._closed:
            self._heard(probabilities)

    @abstractmethod
    def _judge(self) -> None:
        """There are whole frames: `tell` their probabilities, now or later."""
