"""Frames of MP3 and ADTS: found where they are, with tags in front and junk between."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.mpeg import adts_frame_size, mp3_frame_size
from tests.audio.decoding import RATE, cut_evenly, decoded
from tests.audio.encoding import contained

MP3, AAC = AudioFormat(Encoding.MP3), AudioFormat(Encoding.AAC)
PICTURE = b"ID3\4\0\0\0\0\x4e\x10" + b"\xff\xfb\x90\x64" * 2_500  # 10,000 bytes of what looks like frames


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
def test_frames_of_mp3_follow_each_other(rate: int) -> None:
    data = contained(Encoding.MP3, rate, 1.0)
    at = frames = 0
    while size := mp3_frame_size(data, at):
        at, frames = at + size, frames + 1
    assert at == len(data)
    assert frames >= rate / (1_152 if rate >= 32_000 else 576)


def test_frames_of_adts_follow_each_other() -> None:
    data = contained(Encoding.AAC)
    at = 0
    while size := adts_frame_size(data, at):
        at += size
    assert at == len(data)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xff\x90\x00",  # layer I
        b"\xff\xfd\x90\x00",  # layer II
        b"\xff\xeb\x90\x00",  # no such version
        b"\xff\xfb\xf0\x00",  # no such bit rate
        b"\xff\xfb\x00\x00",  # free format
        b"\xff\xfb\x9c\x00",  # no such rate
        b"\xfe\xfb\x90\x00",
    ],
)
def test_what_is_no_frame_of_mp3(header: bytes) -> None:
    assert mp3_frame_size(header) == 0


@pytest.mark.parametrize("size", [1, 300, 20_000])
def test_a_tag_with_a_picture_in_front(size: int) -> None:
    """Of both, as players' files and HLS have it."""
    for audio in (MP3, AAC):
        data = contained(audio.encoding)
        notices: list[str] = []
        got = decoded(audio, *cut_evenly(PICTURE + data, size), notices=notices)
        assert not notices
        assert np.array_equal(got, decoded(audio, data))


def test_a_frame_that_only_counts_is_no_sound() -> None:
    plain = contained(Encoding.MP3)
    size = mp3_frame_size(plain) or 0
    counting = plain[:13] + b"Info" + bytes(size - 17)
    assert np.array_equal(decoded(MP3, counting + plain), decoded(MP3, plain))


@pytest.mark.parametrize("audio", [MP3, AAC])
def test_junk_between_frames(audio: AudioFormat) -> None:
    data = contained(audio.encoding)
    size = mp3_frame_size if audio is MP3 else adts_frame_size
    at = 0
    for _ in range(10):
        at += size(data, at) or 0
    notices: list[str] = []
    junk = b"\xff\xfb\x90\x64\xff\xf1\x50\x80junk" * 20
    got = decoded(audio, *cut_evenly(data[:at] + junk + data[at:], 100), notices=notices)
    assert "damaged_audio" in notices
    assert len(decoded(audio, data)) <= len(got) <= len(decoded(audio, data)) + 3 * 1_152
    assert got[: RATE // 4].tolist() == decoded(audio, data)[: RATE // 4].tolist()
