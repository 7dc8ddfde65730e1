"""Faults that an outsider found: material of other encoders, damage in the wrong place, what is no audio at all."""

from __future__ import annotations

import io
import itertools
import struct

import av
import numpy as np
import pytest

from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError
from tests.audio.decoding import cut_evenly, decoded
from tests.audio.encoding import contain, contained, opus_packets, speech
from tests.audio.test_mp4 import box
from tests.audio.test_ogg import FRAMES, HEAD, OGG, TAGS, page, stream

ID3 = b"ID3\4\0\0" + bytes([0, 0, 2, 0]) + bytes(256)
END_TAGS = [
    b"TAG" + b"a title".ljust(125, b"\0"),
    b"APETAGEX" + struct.pack("<III", 2_000, 64, 1) + bytes(12) + b"\xff\xfb" * 16 + b"APETAGEX" + bytes(24),
    b"LYRICSBEGIN" + b"la " * 99 + b"000308LYRICS200" + b"TAG" + bytes(125),
]


@pytest.fixture(scope="module")
def packets() -> list[bytes]:
    return opus_packets(speech(48_000, 2.0))


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("place", [4, 5, 6, 13, 14, 18, 22, 27])
def test_one_wrong_bit_in_the_header_of_an_ogg_page_costs_that_page(packets: list[bytes], place: int, bit: int) -> None:
    """A page that pretends to begin a stream, or to end it, took all that came after it."""
    good = decoded(OGG, *stream(packets))
    pages = stream(packets)
    broken = bytearray(pages[40])
    broken[place] ^= 1 << bit
    pages[40] = bytes(broken)
    notices: list[str] = []
    got = decoded(OGG, *pages, notices=notices)
    assert notices
    assert len(got) == len(good)
    end = 46 * FRAMES // 3  # past the page and what Opus remembers of it
    assert np.corrcoef(got[end:], good[end:])[0, 1] > 0.99


@pytest.mark.parametrize("bit", range(8))
def test_a_page_that_is_said_to_be_longer_than_it_is_takes_no_other_with_it(packets: list[bytes], bit: int) -> None:
    good = decoded(OGG, *stream(packets))
    pages = stream(packets)
    pages[40] = pages[40][:26] + bytes([pages[40][26] ^ 1 << bit]) + pages[40][27:]
    notices: list[str] = []
    got = decoded(OGG, *pages, notices=notices)
    assert notices
    assert abs(len(got) - len(good)) < 5_000
    assert np.corrcoef(got[-9_000:], good[-9_000:])[0, 1] > 0.99


def test_the_clock_of_ogg_sets_the_times_right_after_a_loss(packets: list[bytes]) -> None:
    """Pages of unlike lengths, of which the longest is lost: what came after it was too early, to the end."""
    pages, number = [page([HEAD], 0, 0, 2), page([TAGS], 1, 0)], 2
    edges = [0, 10, 12, 45, 50, 60, 90]
    for begin, end in itertools.pairwise(edges):
        pages.append(page(packets[begin:end], number, end * FRAMES))
        number += 1
    whole = decoded(OGG, *pages)
    for damaged in ([*pages[:4], *pages[5:]], [*pages[:4], pages[4][:40], *pages[5:]]):
        got = decoded(OGG, *damaged)
        assert len(got) == len(whole)
        assert np.corrcoef(got[-9_000:], whole[-9_000:])[0, 1] > 0.99


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("tag", END_TAGS)
@pytest.mark.parametrize("encoding", [Encoding.MP3, Encoding.AAC])
def test_a_tag_at_the_end_is_no_damage(encoding: Encoding, tag: bytes, size: int) -> None:
    data = contained(encoding)
    notices: list[str] = []
    got = decoded(AudioFormat(), *cut_evenly(data + tag, size), notices=notices)
    assert notices == []
    assert np.array_equal(got, decoded(AudioFormat(), data))


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("encoding", [Encoding.MP3, Encoding.AAC, Encoding.FLAC])
def test_a_tag_in_front_says_nothing_of_what_follows(encoding: Encoding, size: int) -> None:
    """ADTS of HLS, and some FLAC, begin with ID3 like MP3."""
    data = contained(encoding)
    for tags in (ID3, ID3 * 2, ID3 * 20):
        if encoding is not Encoding.MP3 and len(tags) > 2 * len(ID3):
            continue
        assert np.array_equal(decoded(AudioFormat(), *cut_evenly(tags + data, size)), decoded(AudioFormat(), data))


@pytest.mark.parametrize("data", [ID3, ID3[:40], ID3 * 300])
@pytest.mark.parametrize("size", [1, 100_000])
def test_nothing_but_tags(data: bytes, size: int) -> None:
    with pytest.raises(BridgeError) as caught:
        decoded(AudioFormat(), *cut_evenly(data, size))
    assert caught.value.code == "undecodable_audio"


@pytest.mark.parametrize("size", [1, 1_000])
@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"FORM\0\0\1\0AIFFCOMM", "AIFF"),
        (b"FORM\0\0\1\0AIFCFVER", "AIFF"),
        (b"RIFF\0\1\0\0AVI LIST", "AVI"),
        (b"RIFX\0\0\1\0WAVEfmt ", "WAV"),
        (b"caff\0\1\0\0desc", "CAF"),
        (b".snd\0\0\0\x18", "AU"),
        (b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb", "Wave64"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9", "WMA"),
    ],
)
def test_files_of_other_kinds_are_not_heard_as_noise(head: bytes, name: str, size: int) -> None:
    with pytest.raises(BridgeError, match=name) as caught:
        decoded(AudioFormat(), *cut_evenly(head + bytes(4_000), size))
    assert caught.value.code == "unsupported_audio"
    assert len(decoded(AudioFormat(Encoding.PCM_S16LE), head + bytes(4_000)))  # who declares samples means them


def _mp4() -> tuple[bytes, list[int]]:
    """A recording in fragments, and where they begin."""
    data = contain(Encoding.MP4, speech(48_000, 4.0), 48_000)
    places = [at - 4 for at in range(len(data)) if data[at : at + 4] == b"moof"]
    assert len(places) > 5
    return data, places


@pytest.mark.parametrize("kind", ["head", "size", "zeros", "gone"])
def test_a_broken_fragment_costs_itself(kind: str) -> None:
    data, places = _mp4()
    good = decoded(AudioFormat(), data)
    begin, end = places[2], places[3]
    broken = bytearray(data)
    if kind == "head":
        broken[begin + 8 : begin + 40] = bytes(32)
    elif kind == "size":
        broken[begin + 1] ^= 0x01
    elif kind == "zeros":
        broken[begin : begin + 200] = bytes(200)
    else:
        del broken[begin + 20 : begin + 320]
    notices: list[str] = []
    got = decoded(AudioFormat(), *cut_evenly(bytes(broken), 500), notices=notices)
    assert set(notices) == {"damaged_audio"}
    assert abs(len(got) - len(good)) <= 800  # shorter gaps are left as they are
    lost = len(good) * (end - places[0]) // (len(data) - places[0])
    after = slice(lost + 16_000, len(good) - 10)
    shift = len(got) - len(good)
    assert np.corrcoef(got[after.start + shift : after.stop + shift], good[after])[0, 1] > 0.95
    assert np.array_equal(got[: lost // 2], good[: lost // 2])


def test_comfort_noise_of_a_telephone_in_mp4_is_no_damage() -> None:
    """3GPP recorders leave frames empty in pauses."""
    noise = np.random.default_rng(1)
    frames = [b"\x3c" + noise.bytes(31) for _ in range(40)]
    frames[10:30] = [b"\x7c"] * 20
    messages: list[str] = []
    want = decoded(AudioFormat(Encoding.AMR_NB), b"".join(frames), notices=messages)
    assert messages == []
    got = decoded(AudioFormat(), _in_3gp(frames), notices=messages)
    assert messages == []
    assert abs(len(got) - len(want)) <= 1


def _in_3gp(frames: list[bytes]) -> bytes:
    file = io.BytesIO()
    with av.open(io.BytesIO(b"#!AMR\n" + b"".join(frames)), "r", format="amr") as source:
        options = {"movflags": "frag_keyframe+empty_moov"}
        with av.open(file, "w", format="3gp", options=options) as out:
            stream = out.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(source.streams.audio[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
    return file.getvalue()


def test_an_index_at_the_end_is_named() -> None:
    with pytest.raises(BridgeError, match="index at its end") as caught:
        decoded(AudioFormat(), box(b"ftyp", b"isom", bytes(4)) + box(b"free") + box(b"mdat", bytes(50_000)))
    assert caught.value.code == "undecodable_audio"
