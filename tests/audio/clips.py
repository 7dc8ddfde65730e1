"""Whole files for the tests of `bridge.audio.media`: good ones as PyAV writes them, and hostile ones made by hand."""

from __future__ import annotations

import math
import struct
import tempfile
from pathlib import Path
from typing import IO, Final

import av
import av.container
import numpy as np
import numpy.typing as npt
import pytest

from bridge.audio.media import WHOLE_CHUNK_SECONDS, MediaDecoder
from bridge.errors import BridgeError
from tests.audio.encoding import Samples, speech

RATE: Final = 16_000


def tone(seconds: float, rate: int = RATE) -> Samples:
    """A row for each frame."""
    wave = 8_000 * np.sin(2 * math.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return wave.astype("<i2").reshape(-1, 1)


def clip(
    container: str,
    codec: str,
    samples: Samples | None = None,
    rate: int = RATE,
    *,
    film: bool = False,
    tracks: int = 1,
    options: dict[str, str] | None = None,
) -> bytes:
    """These samples, or some speech, in a file; skips the test where this PyAV has no encoder for it."""
    sound = speech(rate, 1.5) if samples is None else samples
    with tempfile.NamedTemporaryFile() as file:  # a name: the index of some is written anew in the end
        try:
            with av.open(file.name, "w", format=container, options=options or {}) as out:
                _write(out, codec, sound, rate, film=film, tracks=tracks)
        except av.codec.codec.UnknownCodecError:
            pytest.skip(f"this PyAV cannot write {codec}")
        return Path(file.name).read_bytes()


def _write(
    out: av.container.OutputContainer, codec: str, sound: Samples, rate: int, *, film: bool, tracks: int
) -> None:
    layout = {1: "mono", 2: "stereo"}[sound.shape[1]]
    streams = [out.add_stream(codec, rate=rate, layout=layout) for _ in range(tracks)]
    if film:
        picture = out.add_stream("mpeg4", rate=10)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
    else:
        picture = None
    source = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound).reshape(1, -1), "s16", layout)
    source.sample_rate = rate
    for stream in streams:
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = 96_000
        resampler = av.AudioResampler(stream.format.name, layout, rate, frame_size=stream.frame_size or 1_024)
        for piece in (*resampler.resample(source), *resampler.resample(None)):
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    if picture is not None:
        for number in range(15):
            frame = av.VideoFrame.from_ndarray(np.full((72, 64), 16 * number, np.uint8), "yuv420p")
            out.mux(picture.encode(frame))
        out.mux(picture.encode(None))


def wav(
    data: bytes,
    *,
    claimed: int | None = None,
    channels: int = 1,
    rate: int = RATE,
    bits: int = 16,
    tag: int = 1,
    align: int | None = None,
    before: bytes = b"",
) -> bytes:
    """A WAV file that says what it is told to say. `before`: chunks in front of the samples."""
    align = channels * bits // 8 if align is None else align
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, rate, rate * align & 0xFFFF_FFFF, align, bits)
    size = len(data) if claimed is None else claimed
    body = b"WAVE" + form + before + struct.pack("<4sI", b"data", size) + data
    return struct.pack("<4sI", b"RIFF", min(0xFFFF_FFFF, len(body))) + body


def flac_bomb(hours: float) -> bytes:
    """Silence at 8 kHz, 13 bytes for each 8 seconds, whose header does not say how long it is."""
    block = 65_535
    info = struct.pack(">HH6xQ16x", block, block, 8_000 << 44 | 15 << 36)  # mono, 16 bits, any number of samples
    return b"fLaC\x80\0\0\x22" + info + b"".join(_silence(n, block) for n in range(int(hours * 3_600 * 8_000 / block)))


def _silence(number: int, block: int) -> bytes:
    """A frame of the number, of one value for all its samples (RFC 9639, 9)."""
    head = b"\xff\xf8\x74\x08" + chr(number).encode() + struct.pack(">H", block - 1)
    frame = head + bytes([_crc(head, 8, 0x07)]) + bytes(3)
    return frame + struct.pack(">H", _crc(frame, 16, 0x8005))


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    value = 0
    for byte in data:
        value ^= byte << bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> bits - 1 & 1 else 0)
        value &= (1 << bits) - 1
    return value


def spooled(data: bytes, memory: int = 2**20) -> IO[bytes]:
    """As a request's body is kept."""
    file = tempfile.SpooledTemporaryFile(memory)  # noqa: SIM115 - the caller's, and gone with the test
    file.write(data)
    return file


async def hear(decoder: MediaDecoder, data: bytes, name: str = "a.wav") -> tuple[int, npt.NDArray[np.int16]]:
    """The rate and the samples of a file, as a request's body."""
    with spooled(data) as file:
        async with decoder.read(file, name) as media:
            pieces = [chunk async for chunk in media.chunks()]
    longest = 2 * media.format.sample_rate * WHOLE_CHUNK_SECONDS
    assert all(0 < len(piece) <= longest for piece in pieces)
    return media.format.sample_rate, np.frombuffer(b"".join(pieces), "<i2")


async def outcome(decoder: MediaDecoder, data: bytes) -> tuple[str, int]:
    """The code of the file's refusal, or `heard`; and how many samples came."""
    samples = 0
    try:
        with spooled(data) as file:
            async with decoder.read(file, "a") as media:
                async for chunk in media.chunks():
                    samples += len(chunk) // 2
    except BridgeError as exc:
        return exc.code, samples
    return "heard", samples


def loudness(samples: npt.NDArray[np.int16]) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(samples.astype(float) ** 2)))
