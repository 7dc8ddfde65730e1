from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.audio.vad.frames import RATE, Frames


def tone(rate: int, seconds: float, hertz: float = 440.0) -> bytes:
    time = np.arange(round(rate * seconds)) / rate
    samples: npt.NDArray[np.int16] = np.rint(8_000 * np.sin(2 * np.pi * hertz * time)).astype("<i2")
    return samples.tobytes()


def cut(pcm: bytes, rate: int, sizes: list[int], *, context: int = 0) -> list[bytes]:
    frames = Frames(rate, 480, context=context)
    got: list[bytes] = []
    for size in sizes:
        frames.push(pcm[: 2 * size])
        pcm = pcm[2 * size :]
        got += frames.take(frames.whole)
    frames.push(pcm)
    count = frames.finish()
    got += frames.take(frames.whole)
    assert len(got) == count == frames.taken
    return got


@given(st.lists(st.integers(0, 2_000), max_size=20), st.sampled_from((8_000, 16_000, 22_050, 48_000)))
def test_the_frames_do_not_depend_on_the_messages(sizes: list[int], rate: int) -> None:
    pcm = tone(rate, 0.3)
    assert cut(pcm, rate, sizes) == cut(pcm, rate, [])


def test_a_frame_brings_the_samples_before_it_and_silence_is_before_the_first_and_after_the_last() -> None:
    pcm = bytes(range(1, 251)) * 10  # 1,250 samples
    first, second, third = cut(pcm, RATE, [], context=64)
    assert first == bytes(128) + pcm[:960]
    assert second == pcm[960 - 128 : 1_920]
    assert third == pcm[1_920 - 128 :] + bytes(3 * 960 - 2_500)


def test_an_empty_stream_has_no_frames() -> None:
    assert cut(b"", RATE, []) == cut(b"", 8_000, []) == []


def test_no_more_frames_are_taken_than_wanted() -> None:
    frames = Frames(RATE, 480)
    frames.push(bytes(960 * 5))
    assert len(frames.take(2)) == 2
    assert (frames.whole, frames.taken) == (3, 2)
    assert len(frames.take(9)) == 3


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_time_stays_true_at_every_rate(rate: int) -> None:
    """A step in loudness is found in the frame of its time, and the length is right."""
    pcm = bytes(2 * rate) + tone(rate, 1.0)
    frames = [np.abs(np.frombuffer(frame, "<i2")).max() for frame in cut(pcm, rate, [])]
    assert len(frames) == pytest.approx(2.0 / 0.03, abs=1.01)
    loud = next(n for n, peak in enumerate(frames) if peak > 4_000)
    assert loud == 33  # 0.99 to 1.02 s
