"""Coded audio without a container: Opus packets as phones send them, AMR, G.722."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio.decode import StreamDecoder
from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError
from tests.audio.decoding import RATE, cut, cut_evenly, decoded, decoded_lanes, drained
from tests.audio.encoding import Samples, amr_nb, amr_wb, g722, opus_packets, speech

OPUS = AudioFormat(Encoding.OPUS)
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
PRE_SKIP = 312


def likeness(heard: Samples, original: Samples, lag: int) -> float:
    """Correlation of the short-time spectra, in decibels: coders of speech do not keep the waveform."""
    spectra = []
    for samples in (heard[lag:], original):
        length = min(len(heard) - lag, len(original)) // 160 * 160 - 512
        windows = np.lib.stride_tricks.sliding_window_view(samples[: length + 512].astype(float), 512)[::160]
        spectra.append(np.log(np.abs(np.fft.rfft(windows * np.hanning(512)))[:, 8:100] + 30).ravel())
    shared = min(map(len, spectra))
    return float(np.corrcoef(spectra[0][:shared], spectra[1][:shared])[0, 1])


def original(rate: int = RATE) -> Samples:
    return decoded(AudioFormat(Encoding.PCM_S16LE, rate), speech(rate).tobytes())


def head(channels: int = 1, pre_skip: int = PRE_SKIP) -> bytes:
    return struct.pack("<8sBBHIhB", b"OpusHead", 1, channels, pre_skip, 48_000, 0, 0)


@pytest.mark.parametrize("milliseconds", [2.5, 5, 10, 20, 40, 60, 120])
@pytest.mark.parametrize("rate", OPUS_RATES)
def test_opus_packets_of_every_length_and_rate(milliseconds: float, rate: int) -> None:
    packets = opus_packets(speech(rate), rate, milliseconds)
    got = decoded(OPUS, *packets)
    assert len(got) == len(packets) * milliseconds * RATE / 1_000
    assert likeness(got, original(rate), 104) > 0.9


def test_opus_in_stereo() -> None:
    packets = opus_packets(speech(48_000, channels=2), 48_000, bit_rate=96_000)
    lanes = decoded_lanes(AudioFormat(Encoding.OPUS, channels=2), *packets, lanes=2)
    for lane, channel in zip(lanes, speech(48_000, channels=2).T, strict=True):
        alone = decoded(AudioFormat(Encoding.PCM_S16LE, 48_000), np.ascontiguousarray(channel).tobytes())
        assert likeness(lane, alone, 104) > 0.9
    mixed = decoded(OPUS, *packets)
    assert len(mixed) == len(lanes[0])


def android(header: bytes) -> bytes:
    return b"AOPUSHDR" + struct.pack("<Q", len(header)) + header + b"AOPUSDLY" + struct.pack("<QQ", 8, 6_500_000)


@pytest.mark.parametrize(
    "first",
    [
        [head()],
        [android(head())],
        [head(), struct.pack("<Q", 6_500_000), struct.pack("<Q", 80_000_000)],
    ],
    ids=["head", "android", "three buffers"],
)
def test_codec_specific_data_comes_first(first: list[bytes]) -> None:
    """It is no sound, and what it says is to be skipped is skipped."""
    packets = opus_packets(speech(48_000))
    got, plain = decoded(OPUS, *first, *packets), decoded(OPUS, *packets)
    assert len(got) == len(plain) - PRE_SKIP // 3
    assert np.corrcoef(got[100:], plain[PRE_SKIP // 3 + 100 :])[0, 1] > 0.999


@pytest.mark.parametrize("broken", [head()[:12], head(channels=0), b"OpusHead" + bytes(11), b"AOPUSHDR" + bytes(8)])
def test_a_broken_opus_header(broken: bytes) -> None:
    packets = opus_packets(speech(48_000))[:5]
    if broken.startswith(b"AOPUS"):  # nothing in it
        assert len(decoded(OPUS, broken, *packets)) >= 4 * 320
        return
    with pytest.raises(BridgeError) as caught:
        decoded(OPUS, broken, *packets)
    assert caught.value.code == "undecodable_audio"


def test_a_lost_opus_packet_is_silence_of_its_length() -> None:
    packets = opus_packets(speech(48_000))
    notices: list[str] = []
    whole = decoded(OPUS, *packets)
    got = decoded(OPUS, *packets[:70], b"", *packets[71:], notices=notices)
    assert notices == ["damaged_audio"]
    assert len(got) == len(whole)
    assert np.array_equal(got[: 69 * 320], whole[: 69 * 320])


@pytest.mark.parametrize("bad", [b"\xff" * 30, b"\x4b\xff" + bytes(50), bytes(70_000)])
def test_a_damaged_opus_packet_costs_itself(bad: bytes) -> None:
    packets = opus_packets(speech(48_000))
    got = decoded(OPUS, *packets[:70], bad, *packets[71:])
    assert len(got) == pytest.approx(len(packets) * 320, abs=320)


def test_only_damaged_packets_are_an_error() -> None:
    with pytest.raises(BridgeError, match="no sound was found in the opus audio"):
        decoded(OPUS, *[b"\xff" * 30] * 20)


def test_a_packet_is_heard_at_once() -> None:
    decoder = StreamDecoder(OPUS, RATE)
    heard = 0
    for count, packet in enumerate(opus_packets(speech(48_000))[:50], 1):
        decoder.push(packet)
        heard += sum(len(pcm) // 2 for (pcm,) in drained(decoder))
        assert decoder.frames == count * 320
        assert heard >= (count - 2) * 320, "the resampler holds less than two packets"


@pytest.mark.parametrize("bit_rate", [4_750, 5_900, 7_950, 12_200])
def test_amr_narrow_band(bit_rate: int) -> None:
    coded = amr_nb(speech(8_000), bit_rate)
    got = decoded(AudioFormat(Encoding.AMR_NB), *cut_evenly(coded, 33))
    assert len(got) == 151 * 320
    assert likeness(got, original(8_000), 90) > 0.8
    assert np.array_equal(decoded(AudioFormat(), *cut(b"#!AMR\n" + coded, [1] * 20)), got)
    assert np.array_equal(decoded(AudioFormat(Encoding.AMR_NB), *cut(b"#!AMR\n" + coded, [1] * 20)), got)


@pytest.mark.parametrize("mode", [0, 2, 8])
def test_amr_wide_band(mode: int) -> None:
    coded = amr_wb(speech(16_000), mode)
    if coded is None:
        pytest.skip("needs an encoder: Debian's package libvo-amrwbenc0")
    got = decoded(AudioFormat(Encoding.AMR_WB), *cut_evenly(coded, 33))
    assert len(got) == 150 * 320
    assert likeness(got, original(), 90) > 0.9
    assert np.array_equal(decoded(AudioFormat(), *cut(b"#!AMR-WB\n" + coded, [1] * 20)), got)


@pytest.mark.parametrize("encoding", [Encoding.AMR_NB, Encoding.AMR_WB])
def test_pauses_in_amr(encoding: Encoding) -> None:
    """Comfort noise and frames without data are 20 ms, as any other."""
    wide = encoding is Encoding.AMR_WB
    frames = [bytes([(9 if wide else 8) << 3 | 4]) + bytes(5), b"\x7c", b"\x7c", b"\x7c"]
    assert len(decoded(AudioFormat(encoding), *frames * 10)) == 40 * 320


def test_damage_in_amr() -> None:
    coded = amr_nb(speech(8_000))
    notices: list[str] = []
    # A type that does not exist, for three bytes: the frames behind it are found again.
    got = decoded(AudioFormat(Encoding.AMR_NB), coded[: 32 * 50] + b"\x54\x54\x54" + coded[32 * 50 :], notices=notices)
    assert notices == ["damaged_audio"]
    assert len(got) == 152 * 320


def test_amr_of_several_channels_is_refused() -> None:
    with pytest.raises(BridgeError, match="one channel") as caught:
        decoded(AudioFormat(Encoding.AMR_NB), b"#!AMR_MC1.0\n\0\0\0\2" + bytes(100))
    assert caught.value.code == "unsupported_audio"


def test_g722() -> None:
    coded = g722(speech(16_000))
    got = decoded(AudioFormat(Encoding.G722, 8_000), *cut_evenly(coded, 160))
    assert len(got) == 3 * RATE
    assert np.corrcoef(got[22:], original()[:-22])[0, 1] > 0.99


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([Encoding.G722, Encoding.AMR_NB]), st.lists(st.integers(1, 2_000), max_size=20))
def test_cuts_change_nothing(encoding: Encoding, sizes: list[int]) -> None:
    coded = g722(speech(16_000)) if encoding is Encoding.G722 else amr_nb(speech(8_000))
    audio = AudioFormat(encoding)
    assert np.array_equal(decoded(audio, *cut(coded, sizes)), decoded(audio, coded))
