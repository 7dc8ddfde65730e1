"""MP4's boxes before FFmpeg sees them: only what audio needs, and no count that its bytes do not bear out."""

from __future__ import annotations

import struct
import time

import pytest

from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.mp4 import Mp4Filter
from bridge.errors import BridgeError
from tests.audio.decoding import RATE, cut_evenly, decoded
from tests.audio.encoding import contained

MP4 = AudioFormat(Encoding.MP4)


def box(name: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", len(body) + 8, name) + body


def run(count: int, *, flags: int = 0) -> bytes:
    return box(b"trun", struct.pack(">II", flags, count))


def fragment(*runs: bytes) -> bytes:
    return box(b"moof", box(b"mfhd", bytes(8)), box(b"traf", box(b"tfhd", bytes(8)), *runs))


def table(*, samples: int, size: int = 0, times: int = 0, in_chunk: int = 0) -> bytes:
    return box(
        b"moov",
        box(
            b"trak",
            box(
                b"mdia",
                box(
                    b"minf",
                    box(
                        b"stbl",
                        box(b"stsz", struct.pack(">III", 0, size, samples)),
                        box(b"stts", struct.pack(">IIII", 0, 1, times, 1_024)),
                        box(b"stsc", struct.pack(">IIIII", 0, 1, 1, in_chunk, 1)),
                    ),
                ),
            ),
        ),
    )


def test_what_a_recorder_writes_passes() -> None:
    data = contained(Encoding.MP4)
    filter_ = Mp4Filter()
    passed = b"".join(filter_.filter(piece) for piece in cut_evenly(data, 77))
    assert len(passed) == len(data) - len(data) % 1 or data.startswith(passed[:100])
    assert passed[: data.index(b"moov")] == data[: data.index(b"moov")]
    assert passed.count(b"trun") == data.count(b"trun")
    assert b"dinf" in data
    assert b"dinf" not in passed, "it can name other files"


@pytest.mark.parametrize(
    "index",
    [
        fragment(run(0x00FF_FFFF)),
        fragment(run(0xFFFF_FFFF)),
        fragment(run(1_000, flags=0x100)),
        fragment(*[run(60)] * 200),
        box(b"moof", box(b"traf", box(b"trun", b"\0"))),
        table(samples=0xFFFF_FFFF, size=1),
        table(samples=1_000),
        table(samples=10, size=5, times=0xFFFF_FFFF),
        table(samples=10, size=5, in_chunk=0x7FFF_FFFF),
        box(b"moov", struct.pack(">I4s", 4, b"trak")),
        box(b"moov", struct.pack(">I4s", 400, b"trak")),
        struct.pack(">I4s", 0x7FFF_FFFF, b"moov") + bytes(100),
        struct.pack(">I4s", 7, b"mdat") + bytes(100),
        struct.pack(">I4sQ", 1, b"moov", 2**40) + bytes(100),
    ],
)
def test_counts_and_sizes_that_are_not_believed(index: bytes) -> None:
    begun = time.process_time()
    with pytest.raises(BridgeError, match="broken box") as caught:
        decoded(MP4, box(b"ftyp", b"isom", bytes(4)), *cut_evenly(index, 50), bytes(64))
    assert caught.value.code == "undecodable_audio"
    assert time.process_time() - begun < 0.5


def test_boxes_that_are_not_needed_become_free() -> None:
    filter_ = Mp4Filter()
    data = (
        box(b"uuid", bytes(40))
        + box(b"moov", box(b"udta", bytes(20)), box(b"mvhd", bytes(100)))
        + box(b"sidx", bytes(9))
    )
    passed = filter_.filter(data + bytes(16))
    assert passed.startswith(box(b"free", bytes(40)))
    assert b"udta" not in passed
    assert b"mvhd" in passed
    assert b"sidx" not in passed


def test_sound_of_any_length_passes() -> None:
    """A box without an end, and one of 64 bits."""
    filter_ = Mp4Filter()
    filter_.filter(box(b"moov", box(b"mvhd", bytes(100))))
    long = struct.pack(">I4sQ", 1, b"mdat", 16 + 1_000) + bytes(1_000)
    assert filter_.filter(long) == long
    endless = struct.pack(">I4s", 0, b"mdat") + bytes(20)
    assert filter_.filter(endless) == endless
    assert filter_.filter(bytes(5)) == bytes(5)


def test_an_index_in_front_is_enough(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file that was made for the web, not a stream."""
    import av
    import numpy as np

    from tests.audio.encoding import speech

    path = tmp_path_factory.mktemp("mp4") / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("aac", rate=16_000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        samples = np.ascontiguousarray(speech(16_000)[: 1_024 * 40]).reshape(1, -1)
        resampler = av.AudioResampler("fltp", "mono", 16_000, frame_size=1_024)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 16_000
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    got = decoded(MP4, *cut_evenly(path.read_bytes(), 500))
    assert len(got) == pytest.approx(1_024 * 40, abs=1_100)
    assert len(got) > 2 * RATE
