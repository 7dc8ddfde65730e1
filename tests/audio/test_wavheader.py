"""WAV headers in front of raw audio: true ones, lying ones, broken ones."""

from __future__ import annotations

import io
import struct
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.wavheader import strip_wav_header
from bridge.errors import BridgeError

SAMPLES = bytes(range(64))


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def fmt(tag: int = 1, bits: int = 16, rate: int = 16_000, channels: int = 1, extra: bytes = b"") -> bytes:
    width = bits // 8 * channels
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate * width, width, bits) + extra)


def wav(*chunks: bytes, size: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def refusal(data: bytes, declared: AudioFormat | None = None) -> BridgeError:
    with pytest.raises(BridgeError) as caught:
        strip_wav_header(data, declared or AudioFormat(Encoding.PCM_S16LE))
    return caught.value


def test_the_standard_library_s_own() -> None:
    target = io.BytesIO()
    with wave.open(target, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(44_100)
        writer.writeframes(SAMPLES)
    assert strip_wav_header(target.getvalue(), AudioFormat(Encoding.PCM_S16LE, 44_100, 2)) == SAMPLES


@pytest.mark.parametrize(
    ("tag", "bits", "encoding"),
    [
        (1, 16, Encoding.PCM_S16LE),
        (3, 32, Encoding.PCM_F32LE),
        (6, 8, Encoding.ALAW),
        (7, 8, Encoding.MULAW),
    ],
)
def test_encodings(tag: int, bits: int, encoding: Encoding) -> None:
    data = wav(fmt(tag, bits, 8_000), chunk(b"data", SAMPLES))
    assert strip_wav_header(data, AudioFormat(encoding, 8_000)) == SAMPLES


def test_chunks_in_between_are_stepped_over() -> None:
    data = wav(chunk(b"JUNK", b"odd"), fmt(extra=b"\0\0"), chunk(b"LIST", b"INFO" * 10), chunk(b"data", SAMPLES))
    assert strip_wav_header(data, AudioFormat(Encoding.PCM_S16LE)) == SAMPLES


@pytest.mark.parametrize("size", [0, 1, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_sizes_are_not_believed(size: int) -> None:
    """A recorder that writes while it records does not know them."""
    data = wav(fmt(), chunk(b"data", SAMPLES, size), size=size)
    assert strip_wav_header(data, AudioFormat(Encoding.PCM_S16LE)) == SAMPLES


@pytest.mark.parametrize("data", [b"", b"RIFF", b"RIFF\0\0\0\0WAV", b"RIFX\0\0\0\0WAVE" + SAMPLES, SAMPLES])
def test_audio_without_a_header_is_left_alone(data: bytes) -> None:
    assert strip_wav_header(data, AudioFormat(Encoding.PCM_S16LE)) is data


@pytest.mark.parametrize(
    ("header", "named"),
    [
        (fmt(rate=8_000), "8000 Hz"),
        (fmt(channels=2), "2 channels"),
        (fmt(tag=7, bits=8), "mulaw"),
        (fmt(bits=24), "not supported"),
        (fmt(tag=0x55, bits=0), "not supported"),
    ],
)
def test_a_header_that_contradicts_start(header: bytes, named: str) -> None:
    error = refusal(wav(header, chunk(b"data", SAMPLES)))
    assert error.code == "unsupported_audio"
    assert named in str(error)


@pytest.mark.parametrize(
    "data",
    [
        wav(),
        wav(fmt()),
        wav(chunk(b"data", SAMPLES)),
        wav(chunk(b"data", SAMPLES), fmt()),
        wav(fmt()[:-4], chunk(b"data", SAMPLES)),
        wav(chunk(b"JUNK", b"", 0xFFFF_FFFF), fmt(), chunk(b"data", SAMPLES)),
        wav(chunk(b"fmt ", b"\1\0"), chunk(b"data", SAMPLES)),
    ],
)
def test_a_broken_header(data: bytes) -> None:
    assert refusal(data).code == "bad_audio"


@given(st.binary(max_size=200), st.binary(max_size=200), st.booleans())
def test_any_bytes_after_the_magic(middle: bytes, rest: bytes, named: bool) -> None:
    data = b"RIFF\0\0\0\0WAVE" + middle + (fmt() + b"data" if named else b"") + rest
    try:
        got = strip_wav_header(data, AudioFormat(Encoding.PCM_S16LE))
    except BridgeError:
        return
    assert data.endswith(got)
    assert len(got) < len(data)
