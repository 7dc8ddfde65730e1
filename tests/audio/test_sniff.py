"""What audio is by its first bytes, and how soon that is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bridge.audio.decode import StreamDecoder
from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.sniff import foreign, sniff
from tests.audio.decoding import RATE, cut, decoded, drained
from tests.audio.encoding import CONTAINERS, contained, speech

HARD_TO_TELL = [
    b"\xff\xff" * 50,  # the smallest negative number
    b"\xff\xfb" * 50,
    b"\xff\xfb\x90\x64" * 50,
    b"\xff\xf1\x50\x80" * 50,
    b"\0\0\0\x20" + bytes(60),
    b"RIFF" + bytes(60),
    b"Og" * 30,
    b"ID" * 30,
    b"#!" * 30,
]


@pytest.mark.parametrize("encoding", CONTAINERS)
def test_every_container(encoding: Encoding) -> None:
    data = contained(encoding)
    assert sniff(data) is encoding
    decided = next(size for size in range(1, len(data)) if sniff(data[:size]) is not None)
    assert sniff(data[:decided]) is encoding
    assert decided <= (3_000 if encoding in {Encoding.MP3, Encoding.AAC} else 12)


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        (b"ID3", Encoding.MP3),
        (b"#!AMR\n", Encoding.AMR_NB),
        (b"#!AMR-WB\n", Encoding.AMR_WB),
        (b"RF64\xff\xff\xff\xffWAVE", Encoding.WAV),
        (b"\0\0\0\x18ftyp", Encoding.MP4),
        (b"\0\0\1\0moof", Encoding.MP4),
        (b"\0\0\0\x18styp", Encoding.MP4),
    ],
)
def test_magic(head: bytes, encoding: Encoding) -> None:
    assert sniff(head) is encoding
    assert all(sniff(head[:size]) is None for size in range(len(head)))


@pytest.mark.parametrize("data", HARD_TO_TELL)
def test_samples_that_look_like_something(data: bytes) -> None:
    assert sniff(data, whole=True) is Encoding.PCM_S16LE
    assert decoded(AudioFormat(), data).tobytes() == data


@given(st.binary(min_size=1, max_size=400), st.lists(st.integers(1, 20), max_size=20))
def test_samples_lose_no_byte(data: bytes, sizes: list[int]) -> None:
    """Whatever they are: random bytes are no container, as good as always. (Those of Hypothesis may well be one.)"""
    assume(sniff(data, whole=True) is Encoding.PCM_S16LE and foreign(data) is None)
    assert decoded(AudioFormat(), *cut(data, sizes)).tobytes() == data[: len(data) // 2 * 2]


def test_samples_are_not_held_back() -> None:
    """Speech is known to be samples at its first message, silence after five bytes."""
    for pcm in (speech(16_000).tobytes()[:640], bytes(640), np.full(320, -1, "<i2").tobytes()):
        decoder = StreamDecoder(AudioFormat(), RATE)
        decoder.push(pcm)
        assert b"".join(lane for (lane,) in drained(decoder)) == pcm


def test_one_message_that_ends_early() -> None:
    """Nothing more comes: what has been seen decides."""
    data = contained(Encoding.MP3, seconds=1.0)
    assert sniff(data[:2]) is None
    assert sniff(data[:2], whole=True) is Encoding.PCM_S16LE
    assert len(decoded(AudioFormat(), b"R")) == 0
    assert len(decoded(AudioFormat(), b"RI")) == 1
