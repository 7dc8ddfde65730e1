"""Noise suppression, for sessions that ask for it: RNNoise, a small recurrent network that mutes what is not speech.

J.-M. Valin, "A Hybrid DSP/Deep Learning Approach to Real-Time Full-Band Speech Enhancement", 2018. The library and its
weights come in the package pyrnnoise. Only its binding to the library is loaded: the package itself imports tools for
files and plots, and its own interface rounds to 16 bits on the way.

It makes speech easier for people to listen to, and often harder for recognizers: see docs/audio.md for figures.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import soxr

Float32 = npt.NDArray[np.float32]

INSTALL: Final = "pip install 'stt-bridge[denoise]'"

_PACKAGE: Final = "pyrnnoise"
_RATE: Final = 48_000
"""The only rate that RNNoise knows."""
_DELAY_FRAMES: Final = 2
"""How late RNNoise answers: one frame for its overlapping windows, one that its network looks ahead."""


class DenoiseError(Exception):
    """Noise suppression is not to be had; the text is a sentence that says how to get it."""


class Denoiser(Protocol):
    """Suppresses the noise of one lane. The answer has the length of what was given, and no shift in time."""

    def process(self, pcm: bytes) -> bytes:
        """Take in PCM16, any whole number of samples; what is ready of the answer: some 60 ms are held back."""

    def finish(self) -> bytes:
        """No more will come: the rest of the answer. Gives everything back."""

    def close(self) -> None:
        """Give everything back, without the rest; may be called at any time, and twice."""


def make_denoiser(rate: int) -> Denoiser:
    """A denoiser of PCM16 mono at `rate` Hz. It computes on the caller's thread: about 7 ms for 100 ms of audio.

    Raises:
        DenoiseError: its package is not installed, or not for this machine.
    """
    return _RnnoiseDenoiser(rate, _binding())


@cache
def _binding() -> ModuleType:
    """pyrnnoise's module that binds the library, without the package around it."""
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise DenoiseError(f"noise suppression needs the package {_PACKAGE}, which is not installed: {INSTALL}")
    spec = importlib.util.spec_from_file_location("_stt_bridge_rnnoise", Path(package.origin).with_name("rnnoise.py"))
    if spec is None or spec.loader is None:
        raise DenoiseError(f"the package {_PACKAGE} has no module rnnoise: {INSTALL}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (OSError, AttributeError) as exc:
        raise DenoiseError(f"the library of {_PACKAGE} cannot be loaded ({exc}): {INSTALL}") from exc
    return module


class _RnnoiseDenoiser:
    def __init__(self, rate: int, binding: ModuleType) -> None:
        self._library: ctypes.CDLL = binding.lib
        self._frame = int(binding.FRAME_SIZE)
        self._state: int | None = self._library.rnnoise_create(None)
        if not self._state:
            raise MemoryError("RNNoise gave no state")
        self._up = _resampler(rate, _RATE)
        self._down = _resampler(_RATE, rate)
        self._late = _DELAY_FRAMES * self._frame  # samples of the answer that belong to no input
        self._waiting = np.empty(0, np.float32)
        self._given = 0  # samples, at `rate`
        self._answered = 0

    def process(self, pcm: bytes) -> bytes:
        samples = np.frombuffer(pcm, "<i2").astype(np.float32)
        if self._state is None or not len(samples):
            return b""
        self._given += len(samples)
        clean = self._suppress(_resample(self._up, samples))
        return self._pcm16(_resample(self._down, clean)) if len(clean) else b""

    def finish(self) -> bytes:
        if self._state is None or not self._given:
            self.close()
            return b""
        rest = _resample(self._up, np.empty(0, np.float32), last=True)
        silence = np.zeros((_DELAY_FRAMES + 1) * self._frame, np.float32)  # the delay, and an incomplete frame
        clean = self._suppress(np.concatenate((rest, silence)))
        tail = _resample(self._down, clean, last=True)
        self.close()
        missing = self._given - self._answered
        if len(tail) < missing:  # the resamplers' rounding: less than a sample's worth
            tail = np.pad(tail, (0, missing - len(tail)))
        return self._pcm16(tail[:missing])

    def close(self) -> None:
        if self._state is not None:
            self._library.rnnoise_destroy(ctypes.c_void_p(self._state))
            self._state = None

    def __del__(self) -> None:
        self.close()  # the state is the library's memory, which Python does not count

    def _suppress(self, noisy: Float32) -> Float32:
        """What RNNoise makes of the whole frames at 48 kHz; the samples are floats of 16-bit size."""
        noisy = np.concatenate((self._waiting, noisy))
        whole = len(noisy) // self._frame * self._frame
        self._waiting = noisy[whole:]
        clean = np.empty(whole, np.float32)
        for at in range(0, whole, self._frame):
            self._library.rnnoise_process_frame(self._state, _pointer(clean[at:]), _pointer(noisy[at:]))
        skipped = min(self._late, whole)
        self._late -= skipped
        return clean[skipped:]

    def _pcm16(self, samples: Float32) -> bytes:
        self._answered += len(samples)
        return np.clip(np.rint(samples), -32768, 32767).astype("<i2").tobytes()


def _resampler(source: int, target: int) -> soxr.ResampleStream | None:
    return None if source == target else soxr.ResampleStream(source, target, 1, dtype="float32", quality="HQ")


def _resample(resampler: soxr.ResampleStream | None, samples: Float32, *, last: bool = False) -> Float32:
    if resampler is None:
        return samples
    return np.asarray(resampler.resample_chunk(samples, last=last), np.float32)


def _pointer(samples: Float32) -> ctypes._Pointer[ctypes.c_float]:
    return samples.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
