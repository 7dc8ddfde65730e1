"""WAV as recorders stream it: any sample, any size in the header, several in a row."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError
from tests.audio.decoding import RATE, cut, cut_evenly, decoded
from tests.audio.encoding import speech

WAV = AudioFormat(Encoding.WAV)
SAMPLES = speech(16_000, 0.5).tobytes()


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def form(tag: int = 1, bits: int = 16, rate: int = RATE, channels: int = 1, more: bytes = b"") -> bytes:
    width = bits // 8 * channels
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate * width % 2**32, width % 2**16, bits) + more)


def wav(*chunks: bytes, name: bytes = b"RIFF") -> bytes:
    body = b"".join(chunks)
    return name + struct.pack("<I", len(body) + 4) + b"WAVE" + body


@pytest.mark.parametrize(
    ("tag", "bits", "encoding"),
    [
        (1, 8, Encoding.PCM_U8),
        (1, 16, Encoding.PCM_S16LE),
        (1, 24, Encoding.PCM_S24LE),
        (1, 32, Encoding.PCM_S32LE),
        (3, 32, Encoding.PCM_F32LE),
        (3, 64, Encoding.PCM_F64LE),
        (6, 8, Encoding.ALAW),
        (7, 8, Encoding.MULAW),
    ],
)
def test_every_kind_of_sample(tag: int, bits: int, encoding: Encoding) -> None:
    data = np.random.default_rng(1).bytes(4_800)
    expected = decoded(AudioFormat(encoding, 8_000), data)
    assert np.array_equal(decoded(WAV, wav(form(tag, bits, 8_000), chunk(b"data", data))), expected)
    extensible = form(0xFFFE, bits, 8_000, more=struct.pack("<HHIH", 22, bits, 4, tag) + bytes(14))
    assert np.array_equal(decoded(WAV, wav(extensible, chunk(b"data", data))), expected)


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000, None])
def test_sizes_that_recorders_write(size: int | None) -> None:
    assert decoded(WAV, wav(form(), chunk(b"data", SAMPLES, size))).tobytes() == SAMPLES


def test_what_is_not_sound_is_left_out() -> None:
    data = wav(form(), chunk(b"LIST", b"INFO" * 9 + b"x"), chunk(b"data", SAMPLES), chunk(b"LIST", bytes(99)))
    assert decoded(WAV, *cut_evenly(data, 7)).tobytes() == SAMPLES


def test_each_message_a_file() -> None:
    """A browser's recorder that is asked for a WAV every half second."""
    one = wav(form(), chunk(b"data", SAMPLES))
    assert decoded(WAV, one, one, one).tobytes() == 3 * SAMPLES
    other = wav(form(rate=8_000), chunk(b"data", speech(8_000, 0.5).tobytes()))
    assert len(decoded(WAV, one, other)) == RATE


def test_rf64() -> None:
    data = wav(chunk(b"ds64", bytes(28)), form(), chunk(b"data", SAMPLES, 0xFFFF_FFFF), name=b"RF64")
    assert decoded(WAV, data).tobytes() == SAMPLES


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 3_000), max_size=20))
def test_cuts_change_nothing(sizes: list[int]) -> None:
    data = wav(form(), chunk(b"fact", bytes(4)), chunk(b"data", SAMPLES), chunk(b"id3 ", bytes(30)))
    assert decoded(WAV, *cut(data, sizes)).tobytes() == SAMPLES


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (wav(form(tag=2, bits=4), chunk(b"data", bytes(100))), "unsupported_audio"),
        (wav(form(rate=0), chunk(b"data", bytes(100))), "unsupported_audio"),
        (wav(form(rate=4_000_000_000), chunk(b"data", bytes(100))), "unsupported_audio"),
        (wav(form(channels=0), chunk(b"data", bytes(100))), "unsupported_audio"),
        (wav(form(channels=900), chunk(b"data", bytes(100))), "unsupported_audio"),
        (wav(chunk(b"data", bytes(100))), "undecodable_audio"),
        (wav(chunk(b"fmt ", b"\1\0")), "undecodable_audio"),
        (wav(chunk(b"fmt ", bytes(40), 0x7FFF_FFFF)), "undecodable_audio"),
        (wav(chunk(b"LIST", bytes(40), 0xFFFF_0000)), "undecodable_audio"),
        (wav(form()[:12]), "undecodable_audio"),
    ],
)
def test_broken_headers(data: bytes, code: str) -> None:
    with pytest.raises(BridgeError) as caught:
        decoded(WAV, *cut_evenly(data, 11))
    assert caught.value.code == code


def test_a_header_without_samples_is_silence() -> None:
    assert not len(decoded(WAV, wav(form(), chunk(b"data", b""))))
