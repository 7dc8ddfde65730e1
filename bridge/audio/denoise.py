"""Noise suppression, for sessions that ask for it: WebRTC's, as in browsers and conferencing.

The package webrtc-noise-gain (of Home Assistant) holds it. It estimates the noise's spectrum by itself, knows nothing
of the speaker, and answers 6 ms late. It makes speech easier for people to listen to, and often no easier for
recognizers: docs/audio.md has the figures, docs/decisions.md why it was chosen.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np
import soxr

INSTALL: Final = "pip install 'stt-bridge[denoise]'"

_RATE: Final = 16_000
"""The only rate that the package takes."""
_FRAME_BYTES: Final = 320
"""10 ms, the only length that it takes."""
_DELAY: Final = 96
"""Samples by which the answer is late, at `_RATE`: its analysis windows overlap by so many."""
_LEVEL: Final = 2
"""Of 1 to 4: the one that its authors propose, and Home Assistant uses. More of it distorts speech."""


class DenoiseError(Exception):
    """Noise suppression is not to be had; the text is a sentence that says how to get it."""


class Denoiser(Protocol):
    """Suppresses the noise of one lane. The answer has the length of what was given, and no shift in time."""

    def process(self, pcm: bytes) -> bytes:
        """Take in PCM16, whole samples; what is ready of the answer: at 16 kHz up to 16 ms are held back."""

    def finish(self) -> bytes:
        """No more will come: the rest of the answer."""

    def close(self) -> None:
        """Give everything back; may be called at any time, and twice. Nothing is answered after it."""


def make_denoiser(rate: int) -> Denoiser:
    """A denoiser of PCM16 mono at `rate` Hz. It computes on the caller's thread: 0.2 ms for 100 ms of audio.

    Raises:
        DenoiseError: its package is not installed.
    """
    try:
        from webrtc_noise_gain import (  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415 - an extra
            AudioProcessor,
        )
    except ImportError as exc:
        raise DenoiseError(f"noise suppression needs the package webrtc-noise-gain ({exc}): {INSTALL}") from exc
    return _WebrtcDenoiser(rate, AudioProcessor(0, _LEVEL))


class _WebrtcDenoiser:
    def __init__(self, rate: int, processor: Any) -> None:
        self._processor: Any = processor
        self._up, self._down = _Resampler(rate, _RATE), _Resampler(_RATE, rate)
        self._late = 2 * _DELAY  # bytes of the answer that belong to no input
        self._waiting = b""
        self._given = self._answered = 0  # bytes

    def process(self, pcm: bytes) -> bytes:
        if self._processor is None:
            return b""
        self._given += len(pcm)
        return self._answer(self._down.resample(self._suppress(self._up.resample(pcm))))

    def finish(self) -> bytes:
        if self._processor is None:
            return b""
        rest = self._up.finish() + bytes(2 * _DELAY + _FRAME_BYTES)  # the delay, and an incomplete frame
        tail = self._down.resample(self._suppress(rest)) + self._down.finish()
        missing = self._given - self._answered
        self.close()
        return self._answer(tail[:missing].ljust(missing, b"\0"))

    def close(self) -> None:
        self._processor = None

    def _suppress(self, pcm: bytes) -> bytes:
        """What the whole frames become, at `_RATE`."""
        pcm = self._waiting + pcm
        whole = len(pcm) // _FRAME_BYTES * _FRAME_BYTES
        self._waiting = pcm[whole:]
        frames = (pcm[at : at + _FRAME_BYTES] for at in range(0, whole, _FRAME_BYTES))
        clean = b"".join(bytes(self._processor.Process10ms(frame).audio) for frame in frames)
        skipped = min(self._late, len(clean))
        self._late -= skipped
        return clean[skipped:]

    def _answer(self, pcm: bytes) -> bytes:
        self._answered += len(pcm)
        return pcm


class _Resampler:
    """PCM16 to PCM16 at another rate, or unchanged. The samples do not depend on the cutting."""

    def __init__(self, source: int, target: int) -> None:
        # Floats: soxr's integers are dithered, differently in every cutting.
        self._stream = None if source == target else soxr.ResampleStream(source, target, 1, dtype="float32")

    def resample(self, pcm: bytes, *, last: bool = False) -> bytes:
        if self._stream is None:
            return pcm
        samples = self._stream.resample_chunk(np.frombuffer(pcm, "<i2").astype(np.float32), last=last)
        return np.asarray(np.clip(np.rint(samples), -32_768, 32_767), "<i2").tobytes()

    def finish(self) -> bytes:
        """What is still held; nothing follows."""
        return self.resample(b"", last=True)
