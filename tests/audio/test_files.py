from __future__ import annotations

import asyncio
import contextlib
import io
import math
import os
import struct
import threading
import tracemalloc
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from bridge.audio import files
from bridge.audio.files import AudioFileError, open_audio, read_ahead
from bridge.audio.formats import AudioFormat, Encoding
from tests.speech import RECORDINGS


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray[Any, np.dtype[np.int16]]:
    return (8000 * np.sin(2 * math.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.int16)


def write_wav(path: Path, samples: np.ndarray[Any, Any], rate: int, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.ascontiguousarray(samples).tobytes())
    return path


def write(path: Path, codec: str, samples: np.ndarray[Any, np.dtype[np.int16]], rate: int) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        resampler = av.AudioResampler(stream.format.name, "mono", rate, frame_size=stream.frame_size or 1024)
        source = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        source.sample_rate = rate
        for frame in [*resampler.resample(source), *resampler.resample(None)]:
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def read(name: Path | str, milliseconds: int = 100, **kwargs: Any) -> tuple[AudioFormat, bytes]:
    with open_audio(str(name), **kwargs) as source:
        return source.format, b"".join(source.chunks(milliseconds))


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000])
def test_wav_keeps_its_rate_and_samples(tmp_path: Path, rate: int) -> None:
    samples = tone(0.73, rate)
    path = write_wav(tmp_path / "a.wav", samples, rate)
    assert read(path) == (AudioFormat(Encoding.PCM_S16LE, rate), samples.tobytes())


@pytest.mark.parametrize(("rate", "becomes"), [(4_000, 16_000), (96_000, 48_000)])
def test_rates_beyond_the_protocol_are_resampled(tmp_path: Path, rate: int, becomes: int) -> None:
    audio, data = read(write_wav(tmp_path / "a.wav", tone(1.0, rate), rate))
    assert audio.sample_rate == becomes
    assert len(data) / 2 == pytest.approx(becomes, rel=0.01)


def test_channels_are_mixed_down(tmp_path: Path) -> None:
    left = tone(0.5, 16_000)
    path = write_wav(tmp_path / "a.wav", np.stack([left, np.zeros_like(left)], axis=1), 16_000, 2)
    mixed = np.frombuffer(read(path)[1], np.int16)
    assert len(mixed) == len(left)
    assert np.abs(mixed).max() == pytest.approx(4000, rel=0.01)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.flac", "flac"), ("a.mp3", "mp3"), ("a.mka", "libopus"), ("a.m4a", "aac")]
)
def test_compressed_files(tmp_path: Path, name: str, codec: str) -> None:
    samples = tone(1.5, 16_000)
    try:
        path = write(tmp_path / name, codec, samples, 16_000)
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this PyAV cannot write {codec}")
    with open_audio(str(path)) as source:
        assert source.duration == pytest.approx(1.5, abs=0.1)
        data = np.frombuffer(b"".join(source.chunks(20)), np.int16)
    rate = source.format.sample_rate
    assert len(data) / rate == pytest.approx(1.5, abs=0.15)
    assert np.sqrt(np.mean(data[rate // 4 : rate].astype(float) ** 2)) == pytest.approx(8000 / math.sqrt(2), rel=0.1)


def test_file_that_changes_its_rate_on_the_way(tmp_path: Path) -> None:
    first = write(tmp_path / "a.mp3", "mp3", tone(1.0, 16_000), 16_000).read_bytes()
    second = write(tmp_path / "b.mp3", "mp3", tone(1.0, 44_100), 44_100).read_bytes()
    (tmp_path / "c.mp3").write_bytes(first + second)
    audio, data = read(tmp_path / "c.mp3")
    assert len(data) / 2 / audio.sample_rate == pytest.approx(2.0, abs=0.25)


def test_chunks_are_of_the_length_asked_for(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(0.25, 16_000), 16_000)
    with open_audio(str(path)) as source:
        assert source.duration == pytest.approx(0.25)
        assert [len(chunk) for chunk in source.chunks(100)] == [3200, 3200, 1600]


def test_reading_is_incremental(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(300, 16_000), 16_000)  # 9.6 MB
    tracemalloc.start()
    try:
        with open_audio(str(path)) as source:
            assert sum(len(chunk) for chunk in source.chunks(100)) == 300 * 32_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_raw_file_is_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(range(256)) * 10 + b"x")
    audio = AudioFormat(Encoding.MULAW, 8_000, 2)
    assert read(path, raw=audio) == (audio, bytes(range(256)) * 10)
    with open_audio(str(path), raw=audio) as source:
        assert source.duration == pytest.approx(0.16, abs=0.001)
        assert [len(chunk) for chunk in source.chunks(100)] == [1600, 960]


class FakeStdin:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def fileno(self) -> int:
        return self.descriptor


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes bytes the standard input, as a pipe fed by a thread."""
    opened: list[int] = []
    threads: list[threading.Thread] = []

    def feed(data: bytes) -> None:
        reading, writing = os.pipe()

        def write_all() -> None:
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(data)

        opened.append(reading)
        threads.append(threading.Thread(target=write_all))
        threads[-1].start()
        monkeypatch.setattr(files.sys, "stdin", FakeStdin(reading))  # type: ignore[attr-defined]

    yield feed
    for thread in threads:
        thread.join()
    for descriptor in opened:
        os.close(descriptor)


def test_stdin_is_raw_by_default(stdin: Any) -> None:
    samples = tone(1.0, 16_000).tobytes()
    stdin(samples)
    assert read("-") == (AudioFormat(Encoding.PCM_S16LE), samples)


def test_stdin_of_a_declared_format(stdin: Any) -> None:
    audio = AudioFormat(Encoding.PCM_F32LE, 48_000, 2)
    stdin(b"RIFF" + b"\0" * 20)
    assert read("-", raw=audio) == (audio, b"RIFF" + b"\0" * 20)


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.flac", "flac"), ("a.mp3", "mp3")])
def test_stdin_may_be_a_file(tmp_path: Path, stdin: Any, name: str, codec: str) -> None:
    path = write(tmp_path / name, codec, tone(1.0, 22_050), 22_050)
    stdin(path.read_bytes())
    audio, data = read("-")
    assert audio == AudioFormat(Encoding.PCM_S16LE, 22_050)
    assert len(data) / 2 == pytest.approx(22_050, abs=2_400)


def test_empty_stdin_is_no_audio(stdin: Any) -> None:
    stdin(b"")
    assert read("-") == (AudioFormat(Encoding.PCM_S16LE), b"")


def wav_bytes(**changes: bytes) -> bytes:
    """A WAV of half a second with some header fields replaced."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(tone(0.5, 16_000).tobytes())
    data = bytearray(buffer.getvalue())
    for field, value in changes.items():
        at = {"channels": 22, "rate": 24, "bits": 34, "size": 40, "format": 20}[field]
        data[at : at + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    "size", [b"\xff\xff\xff\xff", b"\xff\xff\xff\x0f", b"\x00\x00\x00\x00", struct.pack("<I", 32_000)]
)
def test_wav_that_lies_about_its_length_is_read_to_its_end(tmp_path: Path, size: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(size=size))
    assert len(read(path)[1]) == 16_000


def test_truncated_files_give_what_they_hold(tmp_path: Path) -> None:
    for name, codec in [("a.flac", "flac"), ("a.mp3", "mp3")]:
        path = write(tmp_path / name, codec, tone(3.0, 16_000), 16_000)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert 20_000 < len(read(path)[1]) < 80_000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an audio file"),
        (b"words, not sound\n" * 500, "not an audio file"),
        (b"RIFF", "not an audio file"),
        (b"\0" * 100_000, "not an audio file"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n", "not an audio file"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "not an audio file"),
        (wav_bytes(rate=b"\0\0\0\0"), "a.wav"),
        (wav_bytes(rate=b"\1\0\0\0"), "not plausible"),
        (wav_bytes(rate=b"\xff\xff\xff\x7f"), "not plausible"),
        (wav_bytes(channels=b"\0\0"), "not plausible"),
        (wav_bytes(channels=b"\xff\xff"), "a.wav"),
        (wav_bytes(format=b"\x99\x99"), "a.wav"),
    ],
)
def test_what_is_not_audio_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(AudioFileError, match=reason) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_random_bytes_are_refused_or_read(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    generator = np.random.default_rng(7)  # a failure is repeatable
    for magic in (
        b"",
        b"RIFF",
        b"fLaC",
        b"OggS\0\2",
        b"ID3\4\0\0\0\0\0\0\xff\xfb\x90\x64",
        b"\xff\xf1",
        b"caff\0\1",
    ):
        for size in (10, 1_000, 60_000):
            path.write_bytes(magic + generator.bytes(size))
            with contextlib.suppress(AudioFileError):
                read(path)


def test_damaged_headers_are_refused_or_read(tmp_path: Path) -> None:
    good = write(tmp_path / "good.flac", "flac", tone(0.5, 16_000), 16_000).read_bytes()
    path = tmp_path / "bad.flac"
    generator = np.random.default_rng(8)
    for _ in range(60):
        data = bytearray(good)
        for at in generator.integers(0, min(len(data), 200), 6):
            data[at] = generator.integers(0, 256)
        path.write_bytes(data)
        with contextlib.suppress(AudioFileError):
            read(path)


def test_picture_holds_no_audio(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        out.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        out.mux(stream.encode(None))
    with pytest.raises(AudioFileError, match="holds no audio"):
        read(path)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match="No such file"):
        open_audio(str(tmp_path / "missing.wav"))
    with pytest.raises(AudioFileError, match="is a directory"):
        open_audio(str(tmp_path))
    with pytest.raises(AudioFileError, match="null"):
        open_audio("a\0b")
    with pytest.raises(AudioFileError):
        open_audio("http://127.0.0.1:1/a.wav")


@pytest.mark.parametrize("name", ["malformed-bad.wav", "malformed-evil.wav"])
def test_malformed_recordings_are_refused(name: str) -> None:
    path = RECORDINGS / name
    if not path.exists():
        pytest.skip("the shared recordings are not here")
    with pytest.raises(AudioFileError, match="not an audio file"):
        read(path)


async def test_read_ahead(tmp_path: Path) -> None:
    samples = tone(5.0, 16_000)
    source = open_audio(str(write_wav(tmp_path / "a.wav", samples, 16_000)))
    assert b"".join([chunk async for chunk in read_ahead(source, 100)]) == samples.tobytes()
    assert not reader_threads()


async def test_read_ahead_raises_what_the_reader_raised(tmp_path: Path) -> None:
    source = open_audio(str(write_wav(tmp_path / "a.wav", tone(0.1, 16_000), 16_000)))
    source.chunks = broken_chunks  # type: ignore[method-assign]
    chunks = read_ahead(source, 100)
    assert await anext(chunks) == b"ab"
    with pytest.raises(AudioFileError, match="broken"):
        await anext(chunks)
    assert not reader_threads()


def broken_chunks(milliseconds: int) -> Any:
    yield b"ab"
    raise AudioFileError("broken")


async def test_read_ahead_reads_no_further_than_it_must(tmp_path: Path) -> None:
    source = open_audio(str(write_wav(tmp_path / "a.wav", tone(60.0, 16_000), 16_000)))
    whole, count = source.chunks, 0

    def counting(milliseconds: int) -> Any:
        nonlocal count
        for chunk in whole(milliseconds):
            count += 1
            yield chunk

    source.chunks = counting  # type: ignore[method-assign]
    async with contextlib.aclosing(read_ahead(source, 100)) as chunks:
        await anext(chunks)
        await asyncio.sleep(0.2)
        assert 1 < count <= files.READ_AHEAD_CHUNKS + 2
    assert not reader_threads()


async def test_closing_does_not_wait_for_a_silent_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(files.sys, "stdin", FakeStdin(reading))  # type: ignore[attr-defined]
    async with contextlib.aclosing(read_ahead(open_audio("-", AudioFormat(Encoding.PCM_S16LE)), 100)) as chunks:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(chunks), 0.05)
    os.close(writing)
    for thread in reader_threads():
        thread.join()
    os.close(reading)


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "audio-reader"]
