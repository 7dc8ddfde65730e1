from __future__ import annotations

import asyncio
import io
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.media import BLOCK_BYTES, WHOLE_BYTES, MediaDecoder, MediaInfo, shortened
from bridge.errors import BridgeError
from tests.audio.clips import RATE, clip, hear, loudness, spooled, tone, wav
from tests.audio.encoding import amr_nb, contained, g722, ogg_flac, speech
from tests.speech import SAMPLES

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONGEST = 30.0
LARGEST = 2**25


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def decoder() -> AsyncIterator[MediaDecoder]:
    decoder = MediaDecoder(max_bytes=LARGEST, max_seconds=LONGEST)
    await decoder.open()
    yield decoder
    await decoder.close()


async def refusal(decoder: MediaDecoder, data: bytes, name: str = "a.wav") -> BridgeError:
    with pytest.raises(BridgeError) as caught:
        await hear(decoder, data, name)
    assert str(caught.value).startswith(f"{name}: ")
    return caught.value


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("flac", "flac", 16_000),
        ("flac", "flac", 44_100),
        ("ogg", "libopus", 48_000),
        ("mp3", "mp3", 16_000),
        ("adts", "aac", 44_100),
        ("mp4", "aac", 16_000),
        ("mp4", "alac", 16_000),
        ("matroska", "libopus", 48_000),
        ("webm", "libopus", 48_000),
        ("mpegts", "aac", 44_100),
        ("avi", "mp3", 44_100),
        ("flv", "mp3", 44_100),
        ("asf", "wmav2", 44_100),
        ("aiff", "pcm_s16be", 16_000),
        ("au", "pcm_s16be", 16_000),
        ("caf", "pcm_s16le", 16_000),
        ("w64", "pcm_s16le", 16_000),
        ("wav", "adpcm_ms", 16_000),
        ("wav", "adpcm_ima_wav", 16_000),
        ("wv", "wavpack", 16_000),
        ("tta", "tta", 16_000),
        ("ac3", "ac3", 48_000),
        ("mp2", "mp2", 48_000),
    ],
)
async def test_every_usual_kind_is_heard(decoder: MediaDecoder, container: str, codec: str, rate: int) -> None:
    sound = tone(1.5, rate)
    data = clip(container, codec, np.hstack([sound, sound]) if codec == "wmav2" else sound, rate)
    heard, samples = await hear(decoder, data, "a")
    assert heard == rate
    assert len(samples) / rate == pytest.approx(1.5, abs=0.15)
    assert loudness(samples[rate // 4 : rate]) == pytest.approx(8_000 / 2**0.5, rel=0.1)


async def test_flac_and_vorbis_in_ogg(decoder: MediaDecoder) -> None:
    for data in (ogg_flac(speech(RATE, 1.5), RATE), contained(Encoding.OGG, 44_100, 1.5, 2, "vorbis")):
        rate, samples = await hear(decoder, data)
        assert len(samples) / rate == pytest.approx(1.5, abs=0.1)


async def test_samples_come_as_they_are(decoder: MediaDecoder) -> None:
    sound = speech(RATE, 2.5)
    for data in (wav(sound.tobytes()), clip("flac", "flac", sound)):
        rate, samples = await hear(decoder, data)
        assert rate == RATE
        assert samples.tobytes() == sound.tobytes()


async def test_what_is_at_hand_is_given_at_once(decoder: MediaDecoder) -> None:
    for rate in (8_000, 16_000, 48_000):
        data = wav(b"abcd" * 500, rate=rate) + b"LIST\4\0\0\0abcd"
        async with decoder.read(data, "a") as media:
            read = b"".join([chunk async for chunk in media.chunks()])
        given = decoder.at_once(data, "a", 1.0)
        assert given is not None
        assert (given[0], bytes(given[1])) == (media.format, read)
    raw = AudioFormat(Encoding.PCM_S16LE, 8_000)
    given = decoder.at_once(b"abcd" * 500, "a", 1.0, raw=raw)
    assert given is not None
    assert (given[0], bytes(given[1])) == (raw, b"abcd" * 500)


async def test_what_takes_work_or_a_disk_is_not(decoder: MediaDecoder, tmp_path: Path) -> None:
    sound = wav(b"abcd" * 500)
    path = tmp_path / "a.wav"
    path.write_bytes(sound)
    assert decoder.at_once(path, "a", 1.0) is None
    assert decoder.at_once(io.BytesIO(sound), "a", 1.0) is None
    assert decoder.at_once(sound, "a", 0.06) is None, "it is longer"
    assert decoder.at_once(wav(b"abcd" * 500, channels=2), "a", 1.0) is None, "it has to be mixed"
    assert decoder.at_once(b"fLaC" + bytes(100), "a", 1.0) is None
    with pytest.raises(BridgeError, match="holds no audio"):
        decoder.at_once(wav(b""), "a", 1.0)


async def test_stereo_is_mixed_and_high_rates_come_down(decoder: MediaDecoder) -> None:
    sides = np.hstack([tone(1.0, 96_000), np.zeros((96_000, 1), "<i2")])
    for data in (clip("wav", "pcm_s16le", sides, 96_000), clip("flac", "flac", sides, 96_000)):
        rate, samples = await hear(decoder, data)
        assert rate == 48_000
        assert len(samples) == pytest.approx(48_000, abs=100)
        assert loudness(samples[1_000:-1_000]) == pytest.approx(4_000 / 2**0.5, rel=0.02)


async def test_low_rates_come_up(decoder: MediaDecoder) -> None:
    rate, samples = await hear(decoder, wav(tone(1.0, 4_000).tobytes(), rate=4_000))
    assert rate == 16_000
    assert len(samples) == pytest.approx(16_000, abs=100)


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}])
async def test_mp4_wherever_its_index_is(decoder: MediaDecoder, options: dict[str, str]) -> None:
    data = clip("mp4", "aac", tone(1.5), options=options)
    _, samples = await hear(decoder, data, "a.mp4")
    assert len(samples) / RATE == pytest.approx(1.5, abs=0.15)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("matroska", "libopus"), ("avi", "mp3")])
async def test_sound_of_a_film(decoder: MediaDecoder, container: str, codec: str) -> None:
    data = clip(container, codec, tone(1.5, 48_000), 48_000, film=True)
    _, samples = await hear(decoder, data, "a.mp4")
    assert len(samples) / 48_000 == pytest.approx(1.5, abs=0.15)


async def test_the_first_of_many_tracks_is_heard(decoder: MediaDecoder) -> None:
    _, samples = await hear(decoder, clip("matroska", "pcm_s16le", tone(1.0), tracks=20))
    assert len(samples) == RATE


async def test_recordings_of_the_project(decoder: MediaDecoder) -> None:
    for path in sorted(SAMPLES.glob("*.flac")):
        if path.stat().st_size < 300_000:
            async with decoder.read(path, path.name) as media:
                length = sum([len(chunk) async for chunk in media.chunks()]) / 2 / media.format.sample_rate
            assert media.duration == pytest.approx(length, abs=0.01)


# --- Where the file lies ---


def descriptors() -> list[str]:
    """What this process has open."""
    if sys.platform != "linux":
        pytest.skip("looks for descriptors in /proc")
    links = list(Path("/proc/self/fd").iterdir())  # one of them is the folder's own
    return sorted(str(link.readlink()) for link in links if link.exists())


async def test_a_file_by_name_in_memory_on_disk_and_as_a_request_keeps_it(
    decoder: MediaDecoder, tmp_path: Path
) -> None:
    for data in (wav(tone(2.0).tobytes()), clip("flac", "flac", tone(2.0))):
        path = tmp_path / "a"
        path.write_bytes(data)
        expected = (await hear(decoder, data))[1].tobytes()
        with path.open("rb") as opened, io.BytesIO(data) as memory, spooled(data, memory=100) as rolled:
            for file in (path, opened, memory, rolled):
                async with decoder.read(file, "a") as media:
                    assert b"".join([chunk async for chunk in media.chunks()]) == expected


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
async def test_large_files_are_read_where_they_lie(decoder: MediaDecoder, tmp_path: Path, name: str) -> None:
    sound = np.random.default_rng(1).integers(-9_000, 9_000, (RATE * 25 * 2, 1)).astype("<i2")
    path = tmp_path / name
    path.write_bytes(wav(sound.tobytes(), rate=32_000) if name == "a.wav" else clip("flac", "flac", sound, 32_000))
    assert path.stat().st_size > WHOLE_BYTES
    with path.open("rb") as file:
        async with decoder.read(file, name) as media:
            assert media.duration == pytest.approx(25)
            chunks = [chunk async for chunk in media.chunks()]
    assert [len(chunk) for chunk in chunks] == [128_000] * 12 + [64_000]
    assert b"".join(chunks) == sound.tobytes()


async def test_large_files_are_converted_within_memory(decoder: MediaDecoder, tmp_path: Path) -> None:
    sound = np.hstack([tone(10.0, 44_100)] * 2)
    path = tmp_path / "a.wav"
    path.write_bytes(wav(sound.tobytes(), rate=44_100, channels=2))
    async with decoder.read(path, "a.wav") as media:
        samples = np.frombuffer(b"".join([chunk async for chunk in media.chunks()]), "<i2")
    assert media.format == AudioFormat(Encoding.PCM_S16LE, 44_100)
    assert np.abs(samples.astype(int) - sound[:, 0]).max() <= 1


async def test_what_is_no_file(decoder: MediaDecoder, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        await decoder.probe(tmp_path / "missing", "a")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(BridgeError, match="is not a file"):
            await decoder.probe(path, "a")


# --- Raw audio ---


async def test_raw_samples(decoder: MediaDecoder) -> None:
    sound = tone(1.0, 8_000)
    for audio, data in (
        (AudioFormat(Encoding.PCM_S16LE, 8_000), sound.tobytes()),
        (AudioFormat(Encoding.PCM_S16BE, 8_000), sound.astype(">i2").tobytes()),
        (AudioFormat(Encoding.PCM_F32LE, 8_000, 2), (np.hstack([sound, sound]) / 32_768).astype("<f4").tobytes()),
        (AudioFormat(Encoding.PCM_S16LE, 8_000), wav(sound.tobytes(), rate=8_000)),
    ):
        async with decoder.read(io.BytesIO(data), "a", raw=audio) as media:
            heard = b"".join([chunk async for chunk in media.chunks()])
        assert media.duration == 1.0
        assert heard == sound.tobytes()


async def test_raw_samples_with_another_header_are_refused(decoder: MediaDecoder) -> None:
    with pytest.raises(BridgeError, match="WAV header") as caught:
        async with decoder.read(io.BytesIO(wav(b"ab" * 99)), "a", raw=AudioFormat(Encoding.PCM_S16LE, 8_000)):
            pass
    assert caught.value.code == "unsupported_audio"


async def test_coded_audio_without_a_container(decoder: MediaDecoder) -> None:
    wide = speech(16_000, 1.5)
    for audio, data in (
        (AudioFormat(Encoding.G722), g722(wide)),
        (AudioFormat(Encoding.AMR_NB, 8_000), b"#!AMR\n" + amr_nb(speech(8_000, 1.5))),
        (AudioFormat(Encoding.MP3), clip("mp3", "mp3", wide)),
        (AudioFormat(Encoding.AUTO), clip("flac", "flac", wide)),
    ):
        async with decoder.read(io.BytesIO(data), "a", raw=audio) as media:
            size = sum([len(chunk) async for chunk in media.chunks()])
        assert size / 2 / media.format.sample_rate == pytest.approx(1.5, abs=0.1)


async def test_bare_opus_is_refused(decoder: MediaDecoder) -> None:
    with pytest.raises(BridgeError, match="Opus") as caught:
        async with decoder.read(io.BytesIO(b"ab" * 99), "a", raw=AudioFormat(Encoding.OPUS)):
            pass
    assert caught.value.code == "unsupported_audio"


# --- Limits ---


async def test_longest_and_largest(decoder: MediaDecoder) -> None:
    long = np.zeros((int(LONGEST * 8_000) + 8_000, 1), "<i2")
    for data in (
        wav(long.tobytes(), rate=8_000),
        clip("flac", "flac", long, 8_000),
        clip("mp4", "aac", long, 8_000),
        clip("mp3", "mp3", long, 8_000),
    ):
        assert (await refusal(decoder, data)).code == "audio_too_long"
    just = long[: int(LONGEST * 8_000)]
    assert len((await hear(decoder, clip("flac", "flac", just, 8_000)))[1]) == len(just)
    small = MediaDecoder(max_bytes=1_000, max_seconds=LONGEST)
    assert (await refusal(small, bytes(1_001))).code == "too_large"


async def test_what_declares_too_much_is_refused_before_it_is_read(decoder: MediaDecoder) -> None:
    head = bytearray(clip("flac", "flac", tone(1.0)))
    head[21] |= 0x0F  # the length that its header claims
    with spooled(bytes(head)) as file, pytest.raises(BridgeError) as caught:
        async with decoder.read(file, "a.flac"):
            pass
    assert caught.value.code == "audio_too_long"


# --- Probing ---


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (wav(bytes(32_000)), MediaInfo("wav", "pcm_s16le", 16_000, 1, 1.0)),
        (wav(bytes(8_000), bits=8, tag=7, rate=8_000), MediaInfo("wav", "pcm_mulaw", 8_000, 1, 1.0)),
        (clip("flac", "flac", tone(1.0)), MediaInfo("flac", "flac", 16_000, 1, 1.0)),
        (clip("ogg", "libopus", tone(1.0, 48_000), 48_000), MediaInfo("ogg", "opus", 48_000, 1, 1.0)),
    ],
    ids=("wav", "mulaw", "flac", "opus"),
)
async def test_probing_goes_by_the_content(decoder: MediaDecoder, data: bytes, expected: MediaInfo) -> None:
    with spooled(data) as file:
        found = await decoder.probe(file, "song.txt")
    assert found.duration == pytest.approx(expected.duration, abs=0.05)
    assert found == MediaInfo(
        expected.format_name, expected.codec, expected.sample_rate, expected.channels, found.duration
    )


async def test_probing_decodes_the_first_sound(decoder: MediaDecoder) -> None:
    whole = clip("flac", "flac", tone(2.0))
    with pytest.raises(BridgeError) as caught:
        await decoder.probe(io.BytesIO(whole[:8_192] + bytes(2_000)), "a.flac")
    assert caught.value.code == "undecodable_audio"


# --- Life ---


async def test_leaving_before_the_end(decoder: MediaDecoder) -> None:
    data = clip("flac", "flac", np.zeros((RATE * 29, 1), "<i2"))
    for _ in range(5):
        async with decoder.read(io.BytesIO(data), "a") as media:
            assert len(await anext(media.chunks())) == 4 * RATE
    assert len((await hear(decoder, data))[1]) == 29 * RATE


async def test_readers_do_not_hinder_each_other(decoder: MediaDecoder) -> None:
    sounds = [tone(0.5 + number / 10) for number in range(12)]
    heard = await asyncio.gather(*(hear(decoder, clip("flac", "flac", sound)) for sound in sounds))
    assert [samples.tobytes() for _, samples in heard] == [sound.tobytes() for sound in sounds]


async def test_many_readers_of_one_open_file(decoder: MediaDecoder, tmp_path: Path) -> None:
    """The kernel's position of a descriptor is everybody's; nobody here may go by it."""
    sound = np.random.default_rng(2).integers(-9_000, 9_000, (24_000 * 29, 1)).astype("<i2")
    path = tmp_path / "a.flac"
    path.write_bytes(clip("flac", "flac", sound, 24_000))
    assert path.stat().st_size > WHOLE_BYTES
    with path.open("rb") as file:

        async def read() -> bytes:
            async with decoder.read(file, "a") as media:
                return b"".join([chunk async for chunk in media.chunks()])

        assert set(await asyncio.gather(*(read() for _ in range(3)))) == {sound.tobytes()}


async def test_cancelling_leaves_no_descriptor(decoder: MediaDecoder, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(np.zeros((44_100 * 20, 2), "<i2").tobytes(), rate=44_100, channels=2))

    async def read() -> None:
        async with decoder.read(path, "a.wav") as media:
            async for _ in media.chunks():
                pass

    await hear(decoder, wav(b"ab"))
    before = descriptors()
    for turns in range(12):
        task = asyncio.create_task(read())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert descriptors() == before


async def test_a_cancelled_read_of_the_disk_ends_before_its_file_is_closed(
    decoder: MediaDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(bytes(10 * BLOCK_BYTES)))
    whole, ended, started = os.pread, [], threading.Event()

    def slow(fd: int, size: int, at: int) -> bytes:
        started.set()
        time.sleep(0.2)
        ended.append(Path(f"/proc/self/fd/{fd}").readlink())
        return whole(fd, size, at)

    monkeypatch.setattr(os, "pread", slow)
    task = asyncio.create_task(decoder.probe(path, "a.wav"))
    await asyncio.to_thread(started.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [path]


async def test_closed_decoder_refuses() -> None:
    decoder = MediaDecoder(max_bytes=LARGEST, max_seconds=LONGEST)
    await decoder.close()
    with pytest.raises(BridgeError) as caught:
        await hear(decoder, clip("flac", "flac", tone(0.1)))
    assert caught.value.code == "shutting_down"


async def test_names_in_sentences() -> None:
    assert shortened("") == "the file"
    assert shortened("a\nb\0.wav") == "a�b�.wav"
    assert shortened("x" * 500) == "x" * 120 + "…"
    assert shortened("ü.wav") == "ü.wav"
