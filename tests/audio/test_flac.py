"""FLAC's frames: cut where they end, found again after damage."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.audio.codec import CodedPacket, Lost, Turn
from bridge.audio.decode import StreamDecoder
from bridge.audio.flac import FlacReader, FrameHeader, parse_header
from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError
from tests.audio.decoding import RATE, cut_evenly, decoded, drained
from tests.audio.encoding import contain, contained, speech

FLAC = AudioFormat(Encoding.FLAC)


def crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        for bit in range(7, -1, -1):
            crc = (crc << 1 ^ (0x07 if (crc >> 7 ^ byte >> bit) & 1 else 0)) & 0xFF
    return crc


def header(
    *, number: bytes = b"\0", sizes: int = 0xC9, kind: int = 0x08, extra: bytes = b"", sync: int = 0xF8
) -> bytes:
    body = bytes([0xFF, sync, sizes, kind]) + number + extra
    return body + bytes([crc8(body)])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (header(), FrameHeader((9, 1, 8), variable=False, block_size=4_096, number=0)),
        (header(number=b"\x7f"), FrameHeader((9, 1, 8), variable=False, block_size=4_096, number=127)),
        (header(number=b"\xc2\x80"), FrameHeader((9, 1, 8), variable=False, block_size=4_096, number=128)),
        (
            header(number=b"\xfe\xbf\xbf\xbf\xbf\xbf\xbf", sync=0xF9),
            FrameHeader((9, 1, 8), variable=True, block_size=4_096, number=2**36 - 1),
        ),
        (header(sizes=0x69, extra=b"\x0f"), FrameHeader((9, 1, 8), variable=False, block_size=16, number=0)),
        (header(sizes=0x79, extra=b"\xff\xff"), FrameHeader((9, 1, 8), variable=False, block_size=65_536, number=0)),
        (header(sizes=0xCD, extra=b"\x3e\x80"), FrameHeader((13, 1, 8), variable=False, block_size=4_096, number=0)),
        (header(kind=0xA8), FrameHeader((9, 2, 8), variable=False, block_size=4_096, number=0)),  # mid and side
    ],
)
def test_headers(data: bytes, expected: FrameHeader) -> None:
    assert parse_header(data + b"rest") == expected
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 0x10
        assert parse_header(bytes(broken)) != expected
        assert parse_header(data[:place]) is None


@pytest.mark.parametrize(
    "data",
    [
        header(sizes=0x09),  # no size of block
        header(sizes=0xCF),  # no rate
        header(kind=0xB8),  # no such channels
        header(kind=0x09),  # a reserved bit
        header(number=b"\x80"),
        header(number=b"\xff"),
        header(number=b"\xc2\x00"),
    ],
)
def test_what_is_no_header(data: bytes) -> None:
    assert parse_header(data + b"rest") is None


def frames_of(data: bytes, size: int) -> list[object]:
    reader = FlacReader()
    found: list[object] = []
    for piece in [*cut_evenly(data, size), None]:
        if piece is None:
            reader.finish()
        else:
            reader.push(piece)
        while (item := reader.next()) is not None:
            if item is not Turn.OVER:
                found.append(bytes(item.packet) if isinstance(item, CodedPacket) else item)
    return found


@pytest.mark.parametrize("size", [1, 17, 1_000, 100_000])
def test_frames_are_those_of_the_encoder(size: int) -> None:
    data = contained(Encoding.FLAC)
    frames = frames_of(data, size)
    assert all(isinstance(frame, bytes) for frame in frames)
    assert data.endswith(b"".join(frame for frame in frames if isinstance(frame, bytes)))
    numbers = [parsed.number for frame in frames if isinstance(frame, bytes) and (parsed := parse_header(frame))]
    assert numbers == list(range(len(frames)))


def test_a_damaged_header_costs_its_frame_and_the_one_before() -> None:
    """Where the one before ends cannot be known; FFmpeg refuses what is behind it."""
    data = contained(Encoding.FLAC)
    frames = [frame for frame in frames_of(data, 1_000) if isinstance(frame, bytes)]
    at = data.index(frames[10])
    broken = data[:at] + b"\0\0" + data[at + 2 :]
    assert [item for item in frames_of(broken, 1_000) if isinstance(item, Lost)] == [Lost()]
    got, good = decoded(FLAC, broken), decoded(FLAC, data)
    assert len(got) == len(good)
    same = got == good
    assert same[: 9 * 1_152 - 50].all()
    assert same[11 * 1_152 + 50 :].all()


@pytest.mark.parametrize("place", [0.3, 0.5, 0.9])
def test_a_wrong_bit_is_silence_not_noise(place: float) -> None:
    data = bytearray(contained(Encoding.FLAC))
    data[round(len(data) * place)] ^= 0x20
    notices: list[str] = []
    got = decoded(FLAC, bytes(data), notices=notices)
    good = decoded(FLAC, contained(Encoding.FLAC))
    assert notices == ["damaged_audio"]
    assert len(got) == len(good)
    wrong = np.flatnonzero(got != good)
    assert not got[wrong].any()
    assert len(wrong) <= 2 * 1_152


def test_bytes_that_look_like_headers_take_short_turns() -> None:
    decoder = StreamDecoder(FLAC, RATE)
    decoder.push(contained(Encoding.FLAC)[:9_000] + b"\xff\xf8" * 300_000)
    turns = sum(1 for _ in drained(decoder))
    assert turns > 100
    decoder.close()


def test_the_longest_frame_is_a_bound() -> None:
    """What never ends is given up, and what comes after it is found."""
    data = contained(Encoding.FLAC)
    notices: list[str] = []
    decoder = StreamDecoder(FLAC, RATE, notice=lambda code, _: notices.append(code))
    decoder.push(data[:20_000])
    list(drained(decoder))
    before = decoder.frames
    for _ in range(12):
        decoder.push(bytes(200_000))
        list(drained(decoder))
    decoder.push(data[20_000:])
    list(drained(decoder))
    assert notices
    assert decoder.frames > before + RATE


@pytest.mark.parametrize(
    "info", [b"fLaC\x84\0\0\x04abcd", b"fLaC\0\0\0\x10" + bytes(16), b"fLaC\0\0\0\x22" + bytes(34)]
)
def test_broken_stream_information(info: bytes) -> None:
    with pytest.raises(BridgeError) as caught:
        decoded(FLAC, info + bytes(100))
    assert caught.value.code in {"undecodable_audio", "unsupported_audio"}


def test_24_bits() -> None:
    samples = speech(16_000, 1.0)
    assert np.array_equal(decoded(FLAC, contain(Encoding.FLAC, samples, 16_000)), samples[:, 0])
