"""Every encoding against an independent decoder, exact lengths, and that cutting the input changes nothing."""

from __future__ import annotations

import itertools

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio.decode import StreamDecoder
from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError

RATE = 16_000
RATES = (8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000)


def decoded(audio: AudioFormat, *messages: bytes, rate: int = RATE) -> npt.NDArray[np.int16]:
    decoder = StreamDecoder(audio, rate)
    pcm = b"".join([*(decoder.decode(message) for message in messages), decoder.finish()])
    return np.frombuffer(pcm, "<i2")


def sine(hertz: float, rate: int, seconds: float = 1.0, level: float = 0.5) -> npt.NDArray[np.float32]:
    times = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hertz * times)).astype("<f4")


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
    assert np.array_equal(decoded(AudioFormat(), samples.tobytes()), samples)


def test_every_pcm16_value_survives_the_way_through_floats() -> None:
    samples = np.arange(-32_768, 32_768, dtype="<i2")
    twice = np.repeat(samples, 2)  # two equal channels: their mean is the value itself
    assert np.array_equal(decoded(AudioFormat(channels=2), twice.tobytes()), samples)


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
    assert decoded(AudioFormat(channels=3), frames.tobytes()).tolist() == [100, 32_767, -2]
    opposite = np.array([[20_000, -20_000]] * 10, "<i2")
    assert not decoded(AudioFormat(channels=2), opposite.tobytes()).any()


# Lengths and cuts


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("target", [8_000, RATE])
@pytest.mark.parametrize("frames", [0, 1, 2, 100, 4_801])
def test_length_is_exact(rate: int, target: int, frames: int) -> None:
    got = decoded(AudioFormat(sample_rate=rate), bytes(2 * frames), rate=target)
    assert len(got) == round(frames * target / rate)


def test_an_incomplete_frame_is_kept_and_at_the_end_dropped() -> None:
    decoder = StreamDecoder(AudioFormat(channels=2), RATE)
    assert decoder.decode(b"\1\0\1") == b""
    assert decoder.frames == 0
    assert decoder.decode(b"\0\5") == b"\1\0"
    assert decoder.frames == 1
    assert decoder.decode(b"") == b""
    assert decoder.finish() == b""


FORMATS = st.builds(AudioFormat, st.sampled_from(Encoding), st.sampled_from(RATES), st.integers(1, 3))


@settings(deadline=None)
@given(FORMATS, st.integers(0, 2**32 - 1), st.lists(st.integers(1, 3_000), max_size=12))
def test_cuts_change_nothing(audio: AudioFormat, seed: int, cuts: list[int]) -> None:
    """Any bytes, cut anywhere, even inside a sample."""
    data = np.random.default_rng(seed).bytes(6_001)
    edges = [0, *np.minimum(np.cumsum(cuts), len(data)), len(data)] if cuts else [0, len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    whole = decoded(audio, data)
    assert np.array_equal(decoded(audio, *pieces), whole)
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
    got = decoded(AudioFormat(sample_rate=48_000), samples.tobytes())
    assert int(np.argmax(np.abs(got.astype(int)))) == 8_000


# What a client may declare


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("pcm_s16le", Encoding.PCM_S16LE),
        ("LINEAR16", Encoding.PCM_S16LE),
        ("pcm16", Encoding.PCM_S16LE),
        ("s16le", Encoding.PCM_S16LE),
        ("pcm_f32le", Encoding.PCM_F32LE),
        ("float32", Encoding.PCM_F32LE),
        ("f32le", Encoding.PCM_F32LE),
        ("mulaw", Encoding.MULAW),
        ("ulaw", Encoding.MULAW),
        ("PCMU", Encoding.MULAW),
        ("alaw", Encoding.ALAW),
        ("pcma", Encoding.ALAW),
    ],
)
def test_names_of_encodings(name: str, encoding: Encoding) -> None:
    assert AudioFormat.parse(name, RATE, 1).encoding is encoding


@pytest.mark.parametrize(
    ("encoding", "rate", "channels", "allowed"),
    [
        ("mp3", RATE, 1, "pcm_s16le, pcm_f32le, mulaw, alaw"),
        ("pcm_s16le", 7_999, 1, "8000 to 48000"),
        ("pcm_s16le", 48_001, 1, "8000 to 48000"),
        ("pcm_s16le", RATE, 0, "1 to 8"),
        ("pcm_s16le", RATE, 9, "1 to 8"),
    ],
)
def test_formats_that_are_refused(encoding: str, rate: int, channels: int, allowed: str) -> None:
    with pytest.raises(BridgeError, match=allowed) as caught:
        AudioFormat.parse(encoding, rate, channels)
    assert caught.value.code == "unsupported_audio"


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_a_flush_gives_everything_so_far_and_the_length_stays_exact(rate: int) -> None:
    decoder = StreamDecoder(AudioFormat(Encoding.PCM_S16LE, rate, 1), 16_000)
    tone = (8_000 * np.sin(2 * np.pi * 440 / rate * np.arange(rate))).astype("<i2").tobytes()
    half = len(tone) // 4 * 2
    first = decoder.decode(tone[:half]) + decoder.flush()
    assert len(first) // 2 == round(decoder.frames * 16_000 / rate)
    rest = decoder.decode(tone[half:]) + decoder.flush() + decoder.finish()
    assert len(first + rest) // 2 == 16_000
    heard = np.frombuffer(first + rest, "<i2").astype(float)
    wanted = 8_000 * np.sin(2 * np.pi * 440 / 16_000 * np.arange(16_000))
    assert np.corrcoef(heard, wanted)[0, 1] > 0.999
