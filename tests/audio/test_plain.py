from __future__ import annotations

import struct

import numpy as np
import pytest

from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.plain import PlainConverter, raw_samples, wav_samples
from tests.audio.clips import clip, loudness, tone, wav

LIST = b"LIST" + struct.pack("<I", 5) + b"INFO!\0"


def test_usual_wav() -> None:
    data = tone(0.5).tobytes()
    whole = wav(data)
    plain = wav_samples(whole, len(whole))
    assert plain is not None
    assert (plain.audio, plain.start, plain.size) == (AudioFormat(Encoding.PCM_S16LE), 44, len(data))
    assert plain.duration == 0.5
    assert plain.ready


def test_chunks_before_the_samples_are_passed_over() -> None:
    whole = wav(b"abcd", before=LIST)
    plain = wav_samples(whole, len(whole))
    assert plain is not None
    assert whole[plain.start : plain.start + plain.size] == b"abcd"


@pytest.mark.parametrize("claimed", [0, 0xFFFF_FFFF, 0x7FFF_FFFF, 1_000])
def test_a_size_that_is_none_means_to_the_end(claimed: int) -> None:
    whole = wav(b"abcdef", claimed=claimed)
    plain = wav_samples(whole, len(whole))
    assert plain is not None
    assert plain.size == 6


def test_what_follows_the_samples_is_no_sound() -> None:
    whole = wav(b"abcd") + LIST
    plain = wav_samples(whole, len(whole))
    assert plain is not None
    assert plain.size == 4


def test_an_incomplete_last_frame_is_dropped() -> None:
    whole = wav(b"abcdefg", channels=2)
    plain = wav_samples(whole, len(whole))
    assert plain is not None
    assert plain.size == 4


@pytest.mark.parametrize(
    "whole",
    [
        b"",
        b"RIFF",
        wav(b"ab")[:30],
        wav(b"ab")[:40],
        wav(b"ab", tag=2),
        wav(b"ab", rate=7_999),
        wav(b"ab", rate=0),
        wav(b"ab", rate=500_000),
        wav(b"ab", channels=0, align=2),
        wav(b"ab", channels=9),
        wav(b"ab", align=3),
        wav(b"ab", bits=24, align=4),
        wav(b"ab", bits=20),
        wav(b"ab", before=bytes(8) * 9_000),
        wav(b"ab").replace(b"fmt ", b"FMT "),
        wav(b"ab").replace(b"RIFF", b"RIFX"),
        b"RIFF\4\0\0\0WAVE" + b"data" + struct.pack("<I", 2) + b"ab",
        b"RIFF\4\0\0\0WAVE" + b"fmt " + struct.pack("<I", 4) + bytes(4),
        b"RIFF\4\0\0\0WAVE" + b"fmt " + struct.pack("<I", 0xFFFF_FFF0) + bytes(40),
    ],
    ids=range(19),
)
def test_every_other_shape_is_left_to_ffmpeg(whole: bytes) -> None:
    assert wav_samples(whole[:65_536], len(whole)) is None


@pytest.mark.parametrize(
    ("codec", "rate", "expected"),
    [
        ("pcm_u8", 16_000, Encoding.PCM_U8),
        ("pcm_s24le", 44_100, Encoding.PCM_S24LE),
        ("pcm_s32le", 48_000, Encoding.PCM_S32LE),
        ("pcm_f32le", 96_000, Encoding.PCM_F32LE),
        ("pcm_mulaw", 8_000, Encoding.MULAW),
        ("pcm_alaw", 8_000, Encoding.ALAW),
    ],
)
def test_samples_of_every_kind(codec: str, rate: int, expected: Encoding) -> None:
    whole = clip("wav", codec, tone(0.5, rate), rate)
    plain = wav_samples(whole, len(whole))
    assert plain is not None
    assert plain.audio == AudioFormat(expected, rate)
    assert plain.rate == min(rate, 48_000)
    assert not plain.ready
    converter = PlainConverter(plain)
    frames = 2_000 * plain.audio.frame_bytes
    data = whole[plain.start : plain.start + plain.size]
    pieces = [converter.convert(data[at : at + frames]) for at in range(0, len(data), frames)]
    samples = np.frombuffer(b"".join([*pieces, converter.tail()]), "<i2")
    assert len(samples) == plain.rate // 2
    assert loudness(samples) == pytest.approx(8_000 / 2**0.5, rel=0.02)


def test_raw_samples_end_with_a_whole_frame() -> None:
    plain = raw_samples(AudioFormat(Encoding.PCM_F32LE, 44_100, 2), 44, 44 + 1_003)
    assert (plain.start, plain.size) == (44, 1_000)
