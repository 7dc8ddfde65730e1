"""Noise suppression: same length, same time, less noise, whatever the cutting."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio.denoise import INSTALL, DenoiseError, make_denoiser
from bridge.audio.formats import Encoding
from tests.audio.raw import Signal, encoded, spoken

RATE = 16_000
needs_package = pytest.mark.skipif(
    find_spec("webrtc_noise_gain") is None,
    reason="needs the package webrtc-noise-gain",
)


def pcm(signal: Signal) -> bytes:
    return encoded(signal, Encoding.PCM_S16LE)


def suppressed(data: bytes, rate: int = RATE, sizes: Iterable[int] = (1_600,)) -> bytes:
    """Cut into so many samples, over and over."""
    denoiser, clean, at, lengths = make_denoiser(rate), b"", 0, list(sizes)
    while at < len(data):
        for size in lengths:
            clean += denoiser.process(data[at : at + 2 * size])
            at += 2 * size
    return clean + denoiser.finish()


def speech_in_noise(decibels: float) -> tuple[Signal, Signal]:
    """Speech after a second of noise alone; and the noisy one."""
    speech = np.concatenate((np.zeros(RATE), spoken("meeting.flac")[: 4 * RATE]))
    noise = np.random.default_rng(1).standard_normal(len(speech))
    loud = speech[RATE:].std() * 10 ** (-decibels / 20)
    return speech, np.clip(speech + loud * noise, -1, 1)


def power(audio: Signal) -> Signal:
    """In each 20 ms."""
    return np.asarray(np.mean(audio[: len(audio) // 320 * 320].reshape(-1, 320) ** 2, axis=1))


def heard(data: bytes) -> Signal:
    return np.frombuffer(data, "<i2") / 32_768


@needs_package
@settings(max_examples=25, deadline=None)
@given(
    rate=st.sampled_from([8_000, 16_000, 48_000]),
    samples=st.integers(0, 6_000),
    sizes=st.lists(st.integers(0, 2_000), min_size=1, max_size=8).filter(any),
)
def test_length_is_exact_and_cuts_change_nothing(rate: int, samples: int, sizes: list[int]) -> None:
    data = pcm(speech_in_noise(10)[1][RATE : RATE + samples])
    clean = suppressed(data, rate, sizes)
    assert len(clean) == len(data)
    assert clean == suppressed(data, rate, [max(1, samples)])


@needs_package
@pytest.mark.parametrize("rate", [8_000, 16_000])
def test_time_is_not_shifted(rate: int) -> None:
    """Clicks stay within a sample of where they were."""
    clicks = np.zeros(3 * rate)
    at = np.arange(rate // 2, 3 * rate, rate // 2)
    clicks[at] = 0.9
    clean = np.abs(heard(suppressed(pcm(clicks), rate)))
    for place in at:
        assert abs(int(np.argmax(clean[place - 400 : place + 400])) - 400) <= 1


@needs_package
def test_nothing_is_lost_at_the_end() -> None:
    speech = spoken("meeting.flac")[RATE : 2 * RATE]  # breaks off in a word
    clean = heard(suppressed(pcm(speech)))
    assert clean[-80:].std() > 0.3 * speech[-80:].std()


@needs_package
def test_what_is_held_back_is_little() -> None:
    denoiser = make_denoiser(RATE)
    data = pcm(spoken("meeting.flac")[:RATE])
    answered = sum(len(denoiser.process(data[at : at + 640])) for at in range(0, len(data), 640))
    assert len(data) - answered <= 2 * 16 * RATE // 1_000
    denoiser.close()


@needs_package
@pytest.mark.parametrize("decibels", [0, 10])
def test_speech_stands_out_more(decibels: float) -> None:
    speech, noisy = speech_in_noise(decibels)
    clean = power(heard(suppressed(pcm(noisy))))
    before, clear = power(noisy), power(speech)
    settled = np.arange(len(clear)) > 25  # half a second to learn the noise
    loud, quiet = clear > np.quantile(clear, 0.85), (clear < 1e-5) & settled
    gain = 10 * np.log10(clean[loud].mean() / clean[quiet].mean() * before[quiet].mean() / before[loud].mean())
    assert gain > 5


@needs_package
def test_silence_stays_silence() -> None:
    assert not any(suppressed(bytes(2 * RATE)))


@needs_package
def test_clean_speech_keeps_its_level() -> None:
    speech = spoken("meeting.flac")
    assert power(heard(suppressed(pcm(speech)))).mean() == pytest.approx(power(speech).mean(), rel=0.5)


@needs_package
def test_after_close_nothing_happens() -> None:
    denoiser = make_denoiser(RATE)
    denoiser.process(bytes(3_200))
    denoiser.close()
    denoiser.close()
    assert denoiser.process(bytes(3_200)) == b""
    assert denoiser.finish() == b""


@needs_package
def test_an_end_without_audio() -> None:
    assert make_denoiser(8_000).finish() == b""


def test_a_missing_package_is_answered_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webrtc_noise_gain", None)
    with pytest.raises(DenoiseError) as caught:
        make_denoiser(RATE)
    assert INSTALL in str(caught.value)
