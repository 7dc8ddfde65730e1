"""Speech in every format that a client may send, written by PyAV; and what FFmpeg itself makes of a file."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import io
import struct
from fractions import Fraction
from typing import Final

import av
import numpy as np
import numpy.typing as npt
import soxr

from bridge.audio.codec import CodedPacket
from bridge.audio.flac import FlacReader
from bridge.audio.formats import Encoding
from bridge.audio.ogg import PageChecksum
from tests.speech import SAMPLES, pcm

Samples = npt.NDArray[np.int16]

CONTAINERS: Final = {
    # PyAV's format, codec, options of the container
    Encoding.OGG: ("ogg", "libopus", {}),
    Encoding.WEBM: ("webm", "libopus", {"live": "1", "cluster_time_limit": "200"}),
    Encoding.MP4: ("mp4", "aac", {"movflags": "frag_every_frame+empty_moov+default_base_moof"}),
    Encoding.MP3: ("mp3", "libmp3lame", {"write_xing": "0", "id3v2_version": "0"}),
    Encoding.AAC: ("adts", "aac", {}),
    Encoding.FLAC: ("flac", "flac", {}),
    Encoding.WAV: ("wav", "pcm_s16le", {}),
}
"""As live encoders write them."""

OPUS_RATE: Final = 48_000


@functools.cache
def speech(rate: int, seconds: float = 3.0, channels: int = 1) -> Samples:
    """The start of a sample at that rate, a row for each frame; a second channel is another part of it."""
    whole = np.frombuffer(pcm(SAMPLES / "demo.flac"), "<i2")
    lanes = []
    for channel in range(channels):
        part = whole[channel * 32_000 :][: round(seconds * 16_000)].astype(np.float32) / 32_768
        resampled = part if rate == 16_000 else soxr.resample(part, 16_000, rate)
        lanes.append(np.clip(np.rint(resampled * 32_767), -32_768, 32_767).astype("<i2"))
    return np.stack(lanes, axis=1)


def ogg_flac(samples: Samples, rate: int) -> bytes:
    """FLAC in Ogg, a frame on each page: PyAV cannot write it."""
    flac = contain(Encoding.FLAC, samples, rate)
    reader = FlacReader()
    reader.push(flac)
    reader.finish()
    packets = [b"\x7fFLAC\1\0\0\1fLaC" + flac[4:42], b"\x84\0\0\x28\x20\0\0\0" + bytes(36)]
    while isinstance(found := reader.next(), CodedPacket):
        packets.append(bytes(found.packet))
    pages = []
    for number, packet in enumerate(packets):
        flags = 2 if not number else 4 if number + 1 == len(packets) else 0
        lacing = b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
        granule = min(len(samples), max(0, number - 1) * 1_152) if number > 1 else 0
        head = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, 77, number, 0, len(lacing)) + lacing
        checksum = PageChecksum()
        checksum.add(head + packet)
        pages.append(head[:22] + checksum.value.to_bytes(4, "little") + head[26:] + packet)
    return b"".join(pages)


def _frames(samples: Samples, rate: int, stream_format: str, size: int) -> list[av.AudioFrame]:
    layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
    source = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), format="s16", layout=layout)
    source.sample_rate = rate
    resampler = av.AudioResampler(stream_format, layout, rate, frame_size=size)
    return [frame for frame in [*resampler.resample(source), *resampler.resample(None)] if frame is not None]


@functools.cache
def _contained(encoding: Encoding, rate: int, seconds: float, channels: int, codec: str | None) -> bytes:
    return contain(encoding, speech(rate, seconds, channels), rate, codec)


def contained(
    encoding: Encoding, rate: int = 16_000, seconds: float = 3.0, channels: int = 1, codec: str | None = None
) -> bytes:
    """Speech in that container, with its usual codec or another."""
    return _contained(encoding, rate, seconds, channels, codec)


def contain(encoding: Encoding, samples: Samples, rate: int, codec: str | None = None, bit_rate: int = 0) -> bytes:
    """These samples in that container."""
    name, usual, options = CONTAINERS[encoding]
    target = _Sink()
    with av.open(target, "w", format=name, options=options) as out:
        layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
        stream = out.add_stream(codec or usual, rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        if bit_rate:
            stream.bit_rate = bit_rate
        stream.codec_context.options = {"strict": "experimental"}  # Vorbis
        stream.codec_context.open()
        for frame in _frames(samples, rate, stream.format.name, stream.frame_size or 1_024):
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return target.getvalue()


class _Sink(io.BytesIO):
    """A live stream cannot go back to write its length."""

    def seekable(self) -> bool:
        return False


def packets(
    codec: str, samples: Samples, rate: int, *, bit_rate: int = 0, options: dict[str, str] | None = None
) -> list[bytes]:
    """These samples coded, without a container."""
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.AudioCodecContext)
    context.sample_rate = rate
    context.layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
    context.format = "s16"
    context.time_base = Fraction(1, rate)
    if bit_rate:
        context.bit_rate = bit_rate
    context.options = options or {}
    context.open()
    coded = []
    for frame in _frames(samples, rate, "s16", context.frame_size or 320):
        coded += [bytes(packet) for packet in context.encode(frame)]
    return coded + [bytes(packet) for packet in context.encode(None)]


def opus_packets(
    samples: Samples, rate: int = OPUS_RATE, milliseconds: float = 20, bit_rate: int = 24_000
) -> list[bytes]:
    """As a telephone's encoder gives them."""
    options = {"application": "voip", "frame_duration": str(milliseconds)}
    return packets("libopus", samples, rate, bit_rate=bit_rate, options=options)


def amr_nb(samples: Samples, bit_rate: int = 12_200) -> bytes:
    """AMR's storage format, without its magic."""
    return b"".join(packets("libopencore_amrnb", samples, 8_000, bit_rate=bit_rate))


def g722(samples: Samples) -> bytes:
    """64 kbit/s."""
    return b"".join(packets("g722", samples, 16_000))


def whole(data: bytes, *, rate: int = 16_000, layout: str = "mono") -> Samples:
    """What FFmpeg makes of the whole file, with its own ways to find out what it is, at that rate."""
    pieces = []
    with av.open(io.BytesIO(data), "r") as container:
        resampler = av.AudioResampler("s16", layout, rate)
        for frame in container.decode(audio=0):
            frame.pts = None
            pieces += [out.to_ndarray().reshape(-1) for out in resampler.resample(frame)]
        pieces += [out.to_ndarray().reshape(-1) for out in resampler.resample(None)]
    return np.concatenate(pieces)


def amr_wb(samples: Samples, mode: int = 2) -> bytes | None:
    """AMR wide band's storage format, without its magic; None where there is no encoder.

    PyAV has none. Debian's package libvo-amrwbenc0 is a library of its own.
    """
    name = ctypes.util.find_library("vo-amrwbenc")
    if name is None:
        return None
    library = ctypes.CDLL(name)
    library.E_IF_init.restype = ctypes.c_void_p
    encoder = ctypes.c_void_p(library.E_IF_init())
    coded = b""
    for at in range(0, len(samples) - 319, 320):
        frame = np.ascontiguousarray(samples[at : at + 320, 0], "<i2").tobytes()
        target = ctypes.create_string_buffer(64)
        size = library.E_IF_encode(encoder, mode, frame, target, 0)
        coded += target.raw[:size]
    library.E_IF_exit(encoder)
    return coded
