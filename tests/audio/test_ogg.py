"""Ogg's pages: packets as soon as they are whole, streams beside the one that is heard, what is lost and marked."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.ogg import PageChecksum
from bridge.errors import BridgeError
from tests.audio.decoding import RATE, cut_evenly, decoded
from tests.audio.encoding import contained, opus_packets, speech

OGG = AudioFormat(Encoding.OGG)
FRAMES = 960
HEAD = struct.pack("<8sBBHIhB", b"OpusHead", 1, 1, 312, 48_000, 0, 0)
TAGS = b"OpusTags" + bytes(8)


def page(packets: list[bytes], number: int, granule: int, flags: int = 0, serial: int = 5, table: bytes = b"") -> bytes:
    for packet in packets if not table else ():
        table += b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, serial, number, 0, len(table)) + table
    checksum = PageChecksum()
    checksum.add(head + b"".join(packets))
    return head[:22] + checksum.value.to_bytes(4, "little") + head[26:] + b"".join(packets)


def stream(packets: list[bytes], *, end: int | None = None, serial: int = 5, head: bytes = HEAD) -> list[bytes]:
    """A page for each packet; the last says where the sound ends."""
    pages = [page([head], 0, 0, 2, serial), page([TAGS], 1, 0, 0, serial)]
    for number, packet in enumerate(packets, 1):
        last = number == len(packets)
        granule = end if last and end is not None else number * FRAMES
        pages.append(page([packet], number + 1, granule, 4 if last else 0, serial))
    return pages


@pytest.fixture(scope="module")
def packets() -> list[bytes]:
    return opus_packets(speech(48_000, 2.0))


def test_the_checksum_is_that_of_libogg() -> None:
    data = contained(Encoding.OGG)
    end = data.index(b"OggS", 1)
    checksum = PageChecksum()
    checksum.add(data[:22] + bytes(4))
    checksum.add(data[26:end])
    assert checksum.value == int.from_bytes(data[22:26], "little")


def test_the_last_page_says_where_the_sound_ends(packets: list[bytes]) -> None:
    whole = decoded(OGG, *stream(packets))
    assert len(whole) == (len(packets) * FRAMES - 312) // 3
    shorter = decoded(OGG, *stream(packets, end=len(packets) * FRAMES - 600))
    assert len(shorter) == len(whole) - 200
    assert np.array_equal(shorter[:-300], whole[: len(shorter) - 300])  # the resampler sees the end coming


@pytest.mark.parametrize("end", [0, 1, 5_000, 2**62])
def test_an_end_that_cannot_be(packets: list[bytes], end: int) -> None:
    """As FFmpeg's own encoder of Vorbis writes it: nothing is taken away."""
    one_page = page(packets[:60], 2, end, 4)
    got = decoded(OGG, page([HEAD], 0, 0, 2), page([TAGS], 1, 0), one_page)
    assert len(got) == (60 * FRAMES - 312) // 3


def test_a_packet_is_heard_before_its_page_is_whole(packets: list[bytes]) -> None:
    from bridge.audio.decode import StreamDecoder

    decoder = StreamDecoder(OGG, RATE)
    body = page(packets[:50], 2, 50 * FRAMES)
    decoder.push(page([HEAD], 0, 0, 2) + page([TAGS], 1, 0) + body[: len(body) // 2])
    while decoder.read() is not None:
        pass
    assert decoder.frames > 20 * FRAMES / 3


def test_packets_over_several_pages(packets: list[bytes]) -> None:
    big = b"OpusTags" + bytes(8) + bytes(100_000)
    parts = cut_evenly(big, 255 * 255)
    tags = [page([parts[0]], 1, -1, 0, table=b"\xff" * 255), page([parts[1]], 2, 0, 1)]
    audio = [page([packet], number, (number - 2) * FRAMES) for number, packet in enumerate(packets, 3)]
    notices: list[str] = []
    got = decoded(OGG, page([HEAD], 0, 0, 2), *tags, *audio, notices=notices)
    assert not notices
    assert len(got) == (len(packets) * FRAMES - 312) // 3


def test_other_streams_beside_it(packets: list[bytes]) -> None:
    """Pictures, or a second sound: the first that can be heard is."""
    ours = stream(packets)
    theirs = stream(packets[::-1], serial=9, head=HEAD)
    pictures = [page([b"\x80theora" + bytes(30)], 0, 0, 2, 7), *(page([bytes(500)], n, n, 0, 7) for n in range(1, 50))]
    mixed = [pictures[0], ours[0], theirs[0]]
    for index in range(1, len(ours)):
        mixed += [ours[index], theirs[index], *pictures[index : index + 1]]
    assert np.array_equal(decoded(OGG, *mixed), decoded(OGG, *ours))


def test_only_pictures() -> None:
    pictures = [page([b"\x80theora" + bytes(30)], 0, 0, 2, 7), *(page([bytes(500)], n, n, 0, 7) for n in range(1, 50))]
    with pytest.raises(BridgeError, match="no sound was found in the ogg audio"):
        decoded(OGG, *pictures)


@pytest.mark.parametrize("missing", [1, 3, 40])
def test_missing_pages_are_silence_of_their_length(packets: list[bytes], missing: int) -> None:
    pages = stream(packets)
    notices: list[str] = []
    got = decoded(OGG, *pages[:30], *pages[30 + missing :], notices=notices)
    assert notices == ["damaged_audio"]
    assert len(got) == len(decoded(OGG, *pages))


def test_a_stream_that_is_joined_in_the_middle_of_its_time(packets: list[bytes]) -> None:
    """Positions that begin at an hour are no hour of silence."""
    pages = stream(packets)
    later = [struct.pack("<q", struct.unpack_from("<q", data, 6)[0] + 3_600 * 48_000) for data in pages]
    moved = pages[:2] + [data[:6] + at + data[14:] for data, at in zip(pages[2:], later[2:], strict=True)]
    assert len(decoded(OGG, *moved)) == len(decoded(OGG, *pages))
    assert len(decoded(OGG, *moved[:30], *moved[33:])) == len(decoded(OGG, *pages))


def test_one_wrong_bit_costs_no_page(packets: list[bytes]) -> None:
    """Its sound is tried: a page may hold a second of it."""
    body = bytearray(page(packets[:50], 2, 50 * FRAMES))
    body[2_000] ^= 1
    notices: list[str] = []
    good = decoded(OGG, page([HEAD], 0, 0, 2), page([TAGS], 1, 0), page(packets[:50], 2, 50 * FRAMES))
    got = decoded(OGG, page([HEAD], 0, 0, 2), page([TAGS], 1, 0), bytes(body), notices=notices)
    assert notices == ["damaged_audio"]
    assert len(got) == len(good)
    assert np.mean(got == good) > 0.5


@pytest.mark.parametrize("head", [HEAD[:10], b"\1vorbis" + bytes(5), b"\x7fFLAC" + bytes(20)])
def test_a_broken_header_of_the_codec(head: bytes, packets: list[bytes]) -> None:
    with pytest.raises(BridgeError) as caught:
        decoded(OGG, *stream(packets, head=head))
    assert caught.value.code == "undecodable_audio"
