"""Files that were made to break who reads them: every one is heard or refused by a code, in time."""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from bridge.audio.media import MediaDecoder
from bridge.errors import BridgeError
from tests.audio.clips import RATE, clip, flac_bomb, hear, outcome, spooled, tone, wav
from tests.audio.fuzz import damaged, megabytes

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONGEST = 600.0
REFUSALS = {"undecodable_audio", "unsupported_audio", "audio_too_long"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def decoder() -> AsyncIterator[MediaDecoder]:
    decoder = MediaDecoder(max_bytes=2**30, max_seconds=LONGEST)
    yield decoder
    await decoder.close()


async def refused(decoder: MediaDecoder, data: bytes, name: str = "a.wav") -> str:
    with pytest.raises(BridgeError) as caught:
        await hear(decoder, data, name)
    assert "/" not in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100_000,
        b"RIFF",
        b"\x1f\x8b\x08" + bytes(500),
        b"PK\3\4" + bytes(500),
        b"\x7fELF" + bytes(500),
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>' + b" " * 500,
        b"<!doctype html><html><body><audio src='http://127.0.0.1/a.wav'></audio></body></html>" * 9,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"[playlist]\nFile1=http://127.0.0.1:1/a.wav\n",
        b'<?xml version="1.0"?><MPD type="static" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"></MPD>',
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
        b";FFMETADATA1\ntitle=x\n",
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60_000, 60_000, 8, 6, 0, 0, 0) + bytes(400),
        b"GIF89a" + bytes(500),
    ],
    ids=range(16),
)
async def test_what_is_no_audio(decoder: MediaDecoder, data: bytes) -> None:
    assert await refused(decoder, data) in {"unsupported_audio", "undecodable_audio"}


async def test_a_container_that_is_not_listed(decoder: MediaDecoder) -> None:
    assert await refused(decoder, clip("nut", "pcm_s16le", tone(0.5))) == "unsupported_audio"


async def test_a_codec_that_is_not_listed(decoder: MediaDecoder) -> None:
    assert await refused(decoder, clip("wav", "dfpwm", tone(0.5))) == "unsupported_audio"


async def test_a_film_without_sound(decoder: MediaDecoder) -> None:
    silent = clip("matroska", "pcm_s16le", film=True, tracks=0)
    assert await refused(decoder, silent, "a.mkv") == "undecodable_audio"


async def test_hours_in_a_few_kilobytes(decoder: MediaDecoder) -> None:
    bomb = flac_bomb(12)
    assert len(bomb) < 100_000
    assert await outcome(decoder, bomb) == ("audio_too_long", 0)


async def test_hours_behind_a_header_that_claims_a_second(decoder: MediaDecoder) -> None:
    bomb = bytearray(flac_bomb(12))
    bomb[22:26] = struct.pack(">I", 8_000)  # samples in all
    how, samples = await outcome(decoder, bytes(bomb))
    assert how == "audio_too_long"
    assert LONGEST - 4 <= samples / 8_000 <= LONGEST


async def test_a_bomb_waits_for_its_reader(decoder: MediaDecoder) -> None:
    before = megabytes()
    bomb = bytearray(flac_bomb(12))
    bomb[22:26] = struct.pack(">I", 8_000)
    with spooled(bytes(bomb)) as file:
        async with decoder.read(file, "a.flac") as media:
            async for _ in media.chunks():
                await asyncio.sleep(0.3)
                break
    assert megabytes() - before < 10


async def test_mp3_that_lies_about_its_length(decoder: MediaDecoder) -> None:
    """No header says how long it is, and its first frames are much slower than the others."""
    slow = clip("mp3", "mp3", tone(0.2, 8_000), 8_000, options={"write_xing": "0", "id3v2_version": "0"})
    frames = clip("mp3", "mp3", tone(1.0), options={"write_xing": "0", "id3v2_version": "0"})
    rate, samples = await hear(decoder, slow[:500] + frames * 60, "a.mp3")
    assert 30 < len(samples) / rate < 80


async def test_mp3_whose_header_claims_hours(decoder: MediaDecoder) -> None:
    data = bytearray(clip("mp3", "mp3", tone(1.0)))
    at = data.index(b"Info") if b"Info" in data else data.index(b"Xing")
    data[at + 8 : at + 12] = struct.pack(">I", 0x7FFF_FFFF)  # frames
    rate, samples = await hear(decoder, bytes(data), "a.mp3")
    assert len(samples) / rate == pytest.approx(1.0, abs=0.2)


async def test_mp3_that_does_not_end(decoder: MediaDecoder) -> None:
    frames = clip("mp3", "mp3", np.zeros((8_000 * 10, 1), "<i2"), 8_000, options={"write_xing": "0"})
    assert await outcome(decoder, frames * 70) == ("audio_too_long", 0)


@pytest.mark.parametrize("claimed", [0, 1, 0x7FFF_FFFF, 0xFFFF_FFFE, 0xFFFF_FFFF])
async def test_wav_that_lies_about_its_size(decoder: MediaDecoder, claimed: int) -> None:
    data = wav(tone(0.5).tobytes(), claimed=claimed)
    if claimed == 1:
        assert await refused(decoder, data) == "undecodable_audio"
    else:
        assert len((await hear(decoder, data))[1]) == RATE // 2


@pytest.mark.parametrize(
    "data",
    [
        wav(bytes(1_000), align=3),
        wav(bytes(1_000), align=0),
        wav(bytes(1_000), align=65_535),
        wav(bytes(1_000), channels=65_535, align=2),
        wav(bytes(1_000), channels=0, align=2),
        wav(bytes(1_000), rate=0),
        wav(bytes(1_000), rate=1),
        wav(bytes(1_000), rate=0xFFFF_FFFF),
        wav(bytes(1_000), bits=0),
        wav(bytes(1_000), bits=65_535),
        wav(bytes(1_000), tag=0x55),
        wav(bytes(1_000), tag=0xFFFF),
        wav(bytes(1_000), before=b"LIST" + struct.pack("<I", 0xFFFF_FFFF)),
        wav(bytes(1_000), before=b"id3 " + struct.pack("<I", 0x7FFF_FFFF)),
    ],
    ids=range(14),
)
async def test_wav_that_is_none(decoder: MediaDecoder, data: bytes) -> None:
    how, _ = await outcome(decoder, data)
    assert how in {"heard", *REFUSALS}


async def test_mp4_that_breaks_off(decoder: MediaDecoder) -> None:
    early = clip("mp4", "aac", tone(8.0), options={"movflags": "faststart"})
    late = clip("mp4", "aac", tone(8.0))
    _, samples = await outcome(decoder, early[: len(early) // 2])
    assert 2 * RATE < samples < 6 * RATE
    assert await refused(decoder, late[: len(late) // 2], "a.mp4") in {"unsupported_audio", "undecodable_audio"}


async def test_mp4_that_claims_more_samples_than_it_has(decoder: MediaDecoder) -> None:
    data = bytearray(clip("mp4", "aac", tone(1.0)))
    for table in (b"stsz", b"stts", b"stco", b"stsc"):
        at = data.index(table)
        broken = data[:]
        broken[at + 8 : at + 16] = struct.pack(">II", 0x00FF_FFFF, 0x00FF_FFFF)
        assert (await outcome(decoder, bytes(broken)))[0] in {"heard", *REFUSALS}


async def test_too_many_tracks(decoder: MediaDecoder) -> None:
    many = clip("matroska", "pcm_s16le", tone(0.05), tracks=100)
    how, _ = await outcome(decoder, many)
    assert how in {"heard", *REFUSALS}


async def test_damaged_files(decoder: MediaDecoder) -> None:
    """Two hundred, the same each time. `python -m tests.audio.fuzz` looks for more, in the decoders of live audio."""
    good = [
        clip("flac", "flac", tone(0.5)),
        clip("mp3", "mp3", tone(0.5)),
        clip("mp4", "aac", tone(0.5)),
        clip("ogg", "libopus", tone(0.5, 48_000), 48_000),
        clip("matroska", "libopus", tone(0.5, 48_000), 48_000, film=True),
        clip("wav", "adpcm_ms", tone(0.5)),
        clip("aiff", "pcm_s16be", tone(0.5)),
        clip("asf", "wmav2", np.hstack([tone(0.5, 44_100)] * 2), 44_100),
        wav(tone(0.5).tobytes()),
        clip("mpegts", "aac", tone(0.5, 44_100), 44_100),
    ]
    chance = random.Random(7)
    cases = [damaged(good[number % len(good)], chance.choice(good), chance) for number in range(200)]
    outcomes: Counter[str] = Counter()
    places = asyncio.Semaphore(4)

    async def one(data: bytes) -> None:
        async with places:
            begun = time.monotonic()
            how, _ = await outcome(decoder, data)
            assert time.monotonic() - begun < 10
            outcomes[how] += 1

    await asyncio.gather(*(one(data) for data in cases))
    assert set(outcomes) <= {"heard", *REFUSALS}
    assert outcomes["heard"] > 20
    assert outcomes.total() - outcomes["heard"] > 20
    assert len((await hear(decoder, good[0]))[1]) == RATE // 2


async def test_random_bytes_behind_every_magic(decoder: MediaDecoder) -> None:
    chance = np.random.default_rng(9)
    for magic in (
        b"fLaC",
        b"OggS\0\2",
        b"ID3\4\0\0\0\0\0\0\xff\xfb",
        b"\xff\xf1",
        b"caff\0\1",
        b"\x1aE\xdf\xa3",
        b"wvpk",
    ):
        how, _ = await outcome(decoder, magic + chance.bytes(60_000))
        assert how in {"heard", *REFUSALS}
    for box in (b"ftypM4A ", b"moov", b"mdat"):
        how, _ = await outcome(decoder, struct.pack(">I", 24) + box + chance.bytes(60_000))
        assert how in {"heard", *REFUSALS}
