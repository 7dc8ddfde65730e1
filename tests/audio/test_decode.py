"""Every encoding against an independent decoder, exact lengths, and that cutting the input changes nothing."""

from __future__ import annotations

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio.decode import StreamDecoder
from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError
from tests.audio.decoding import RATE, cut, decoded, decoded_lanes, drained, sine

PCM16 = AudioFormat(Encoding.PCM_S16LE)
RAW = [encoding for encoding in Encoding if encoding.width]
RATES = (8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 192_000)


def level_db(samples: npt.NDArray[np.int16], level: float = 0.5) -> float:
    """Against a sine of that level, edges left out."""
    inner = samples[len(samples) // 10 : -len(samples) // 10].astype(float) / 32_768
    return float(20 * np.log10(max(np.sqrt(np.mean(inner**2)), 1e-9) / (level / np.sqrt(2))))


# Encodings


@pytest.mark.parametrize(("encoding", "codec"), [(Encoding.MULAW, "pcm_mulaw"), (Encoding.ALAW, "pcm_alaw")])
def test_g711_agrees_with_ffmpeg(encoding: Encoding, codec: str) -> None:
    every_code = bytes(range(256))
    context = av.CodecContext.create(codec, "r")
    assert isinstance(context, av.AudioCodecContext)
    context.sample_rate = RATE
    context.layout = "mono"
    (frame,) = context.decode(av.Packet(every_code))
    expected = frame.to_ndarray().reshape(-1)
    assert np.array_equal(decoded(AudioFormat(encoding), every_code), expected)


def test_pcm16_passes_unchanged() -> None:
    samples = np.arange(-32_768, 32_768, 7, dtype="<i2")
    assert np.array_equal(decoded(PCM16, samples.tobytes()), samples)


def test_what_the_engine_wants_as_it_is_passes_without_being_read() -> None:
    decoder = StreamDecoder(AudioFormat(Encoding.PCM_S16LE), RATE)
    assert decoder.passes(b"ab" * 1_600)
    assert decoder.frames == 1_600
    assert not decoder.passes(b"")
    assert not decoder.passes(bytes(2 * RATE + 2))  # more than is read at once
    assert not decoder.passes(b"abc")
    decoder.push(b"abc")
    assert decoder.read() == (b"ab",)
    assert not decoder.passes(b"de")  # half a sample waits
    decoder.push(b"d")
    assert decoder.read() == (b"cd",)
    assert decoder.passes(b"ef")
    assert decoder.frames == 1_603
    assert not StreamDecoder(AudioFormat(Encoding.PCM_S16BE), RATE).passes(b"ab")
    assert not StreamDecoder(AudioFormat(Encoding.PCM_S16LE, 8_000), RATE).passes(b"ab")
    assert not StreamDecoder(AudioFormat(Encoding.PCM_S16LE, RATE, 2), RATE, lanes=2).passes(b"abcd")


def test_every_pcm16_value_survives_the_way_through_floats() -> None:
    samples = np.arange(-32_768, 32_768, dtype="<i2")
    twice = np.repeat(samples, 2)  # two equal channels: their mean is the value itself
    assert np.array_equal(decoded(AudioFormat(Encoding.PCM_S16LE, channels=2), twice.tobytes()), samples)


def test_float32_is_scaled_and_clipped() -> None:
    samples = np.array([0, 0.5, -0.5, 1, -1, 1.5, -7, 1 / 32_768, 3e38, -3e38], "<f4")
    expected = [0, 16_384, -16_384, 32_767, -32_768, 32_767, -32_768, 1, 32_767, -32_768]
    assert decoded(AudioFormat(Encoding.PCM_F32LE), samples.tobytes()).tolist() == expected


@pytest.mark.parametrize("rate", [8_000, RATE, 48_000])
@pytest.mark.parametrize("channels", [1, 3])
def test_floats_that_are_no_numbers(rate: int, channels: int) -> None:
    """NaN is silence, infinity full scale; neither may raise, or spread through the resampler."""
    hostile = np.array([np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45] * rate, "<f4")[: rate * channels]
    quiet = np.zeros(rate * channels, "<f4")
    got = decoded(AudioFormat(Encoding.PCM_F32LE, rate, channels), hostile.tobytes(), quiet.tobytes())
    assert len(got) == 2 * RATE
    assert not got[RATE + 1_000 :].any()


def test_channels_are_mixed_down() -> None:
    frames = np.array([[100, 300, -100], [32_767, 32_767, 32_767], [-3, -3, 0]], "<i2")
    assert decoded(AudioFormat(Encoding.PCM_S16LE, channels=3), frames.tobytes()).tolist() == [100, 32_767, -2]
    opposite = np.array([[20_000, -20_000]] * 10, "<i2")
    assert not decoded(AudioFormat(Encoding.PCM_S16LE, channels=2), opposite.tobytes()).any()


# Lengths and cuts


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("target", [8_000, RATE])
@pytest.mark.parametrize("frames", [0, 1, 2, 100, 4_801])
def test_length_is_exact(rate: int, target: int, frames: int) -> None:
    got = decoded(AudioFormat(Encoding.PCM_S16LE, rate), bytes(2 * frames), rate=target)
    assert len(got) == round(frames * target / rate)


def test_an_incomplete_frame_is_kept_and_at_the_end_dropped() -> None:
    decoder = StreamDecoder(AudioFormat(Encoding.PCM_S16LE, channels=2), RATE)
    decoder.push(b"\1\0\1")
    assert decoder.read() is None
    assert decoder.frames == 0
    decoder.push(b"\0\5")
    assert list(drained(decoder)) == [(b"\1\0",)]
    assert decoder.frames == 1
    decoder.push(b"")
    assert decoder.read() is None
    decoder.finish()
    assert decoder.read() is None


FORMATS = st.builds(AudioFormat, st.sampled_from(RAW), st.sampled_from(RATES), st.integers(1, 3))


@settings(deadline=None)
@given(FORMATS, st.integers(0, 2**32 - 1), st.lists(st.integers(1, 3_000), max_size=12))
def test_cuts_change_nothing(audio: AudioFormat, seed: int, cuts: list[int]) -> None:
    """Any bytes, cut anywhere, even inside a sample."""
    data = np.random.default_rng(seed).bytes(6_001)
    whole = decoded(audio, data)
    assert np.array_equal(decoded(audio, *cut(data, cuts)), whole)
    assert len(whole) == round(len(data) // audio.frame_bytes * RATE / audio.sample_rate)


# The resampler


@pytest.mark.parametrize("rate", RATES)
def test_speech_band_keeps_its_level(rate: int) -> None:
    got = decoded(AudioFormat(Encoding.PCM_F32LE, rate), sine(1_000, rate).tobytes())
    assert level_db(got) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(("hertz", "rate"), [(11_000, 48_000), (9_000, 48_000), (15_000, 44_100)])
def test_what_the_engine_cannot_hear_is_gone(hertz: float, rate: int) -> None:
    """It would come back as a tone below 8 kHz."""
    got = decoded(AudioFormat(Encoding.PCM_F32LE, rate), sine(hertz, rate).tobytes())
    assert level_db(got) < -80


def test_the_resampler_does_not_shift_time() -> None:
    """A click lands where it was."""
    samples = np.zeros(48_000, "<i2")
    samples[24_000] = 30_000
    got = decoded(AudioFormat(Encoding.PCM_S16LE, 48_000), samples.tobytes())
    assert int(np.argmax(np.abs(got.astype(int)))) == 8_000


# Flushes


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_a_flush_gives_everything_so_far_and_the_length_stays_exact(rate: int) -> None:
    decoder = StreamDecoder(AudioFormat(Encoding.PCM_S16LE, rate), RATE)
    tone = (8_000 * np.sin(2 * np.pi * 440 / rate * np.arange(rate))).astype("<i2").tobytes()
    half = len(tone) // 4 * 2
    decoder.push(tone[:half])
    decoder.flush()
    first = b"".join(piece for (piece,) in drained(decoder))
    assert len(first) // 2 == round(decoder.frames * RATE / rate)
    decoder.push(tone[half:])
    decoder.flush()
    rest = b"".join(piece for (piece,) in drained(decoder))
    decoder.finish()
    assert decoder.read() is None
    assert len(first + rest) // 2 == RATE
    heard = np.frombuffer(first + rest, "<i2").astype(float)
    wanted = 8_000 * np.sin(2 * np.pi * 440 / RATE * np.arange(RATE))
    assert np.corrcoef(heard, wanted)[0, 1] > 0.999


# Channels


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_each_channel_is_a_lane(rate: int) -> None:
    left, right = sine(440, rate), sine(1_000, rate, level=0.25)
    stereo = np.stack([left, right], axis=1)
    lanes = decoded_lanes(AudioFormat(Encoding.PCM_F32LE, rate, 2), stereo.astype("<f4").tobytes(), lanes=2)
    for lane, alone in zip(lanes, (left, right), strict=True):
        assert np.abs(lane - decoded(AudioFormat(Encoding.PCM_F32LE, rate), alone.tobytes()).astype(int)).max() <= 1


def test_as_many_lanes_as_channels_or_one() -> None:
    decoder = StreamDecoder(AudioFormat(Encoding.PCM_S16LE, channels=3), RATE, lanes=2)
    decoder.push(bytes(60))
    with pytest.raises(BridgeError, match=r"3 channel\(s\), but 2") as caught:
        decoder.read()
    assert caught.value.code == "unsupported_audio"
    decoder.push(bytes(60))
    assert decoder.read() is None


# Turns


@pytest.mark.parametrize("rate", [8_000, 192_000])
def test_a_turn_is_short(rate: int) -> None:
    """However much is pushed, at most a second of it is read at once."""
    decoder = StreamDecoder(AudioFormat(Encoding.MULAW, rate, 8), RATE)
    decoder.push(bytes(rate * 8 * 3))
    pieces = [len(piece) // 2 for (piece,) in drained(decoder)]
    assert len(pieces) >= 3
    assert max(pieces) <= RATE


def test_after_close_nothing_happens() -> None:
    decoder = StreamDecoder(PCM16, RATE)
    decoder.push(bytes(100))
    decoder.close()
    decoder.close()
    decoder.push(bytes(100))
    decoder.flush()
    decoder.finish()
    assert decoder.read() is None
