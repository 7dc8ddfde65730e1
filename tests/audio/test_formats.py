"""What a client may declare."""

from __future__ import annotations

import pytest

from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError

RATE = 16_000


@pytest.mark.parametrize("encoding", Encoding)
def test_every_encoding_is_known_by_its_name(encoding: Encoding) -> None:
    assert AudioFormat.parse(encoding.value, RATE, 1).encoding is encoding


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("LINEAR16", Encoding.PCM_S16LE),
        ("pcm16", Encoding.PCM_S16LE),
        ("s16le", Encoding.PCM_S16LE),
        ("linear32", Encoding.PCM_S32LE),
        ("float32", Encoding.PCM_F32LE),
        ("f32le", Encoding.PCM_F32LE),
        ("ulaw", Encoding.MULAW),
        ("PCMU", Encoding.MULAW),
        ("pcma", Encoding.ALAW),
        ("amr", Encoding.AMR_NB),
        ("AMR-WB", Encoding.AMR_WB),
        ("ogg-opus", Encoding.OGG),
        ("OGG_OPUS", Encoding.OGG),
        ("WEBM_OPUS", Encoding.WEBM),
        ("m4a", Encoding.MP4),
        ("adts", Encoding.AAC),
    ],
)
def test_names_of_encodings(name: str, encoding: Encoding) -> None:
    assert AudioFormat.parse(name, RATE, 1).encoding is encoding


@pytest.mark.parametrize(
    ("encoding", "rate", "channels", "allowed"),
    [
        ("concat", RATE, 1, "auto, pcm_s8, pcm_u8, pcm_s16le"),
        ("pcm_s16le", 7_999, 1, "8000 to 192000"),
        ("pcm_s16le", 192_001, 1, "8000 to 192000"),
        ("pcm_s16le", RATE, 0, "1 to 8"),
        ("pcm_s16le", RATE, 9, "1 to 8"),
    ],
)
def test_formats_that_are_refused(encoding: str, rate: int, channels: int, allowed: str) -> None:
    with pytest.raises(BridgeError, match=allowed) as caught:
        AudioFormat.parse(encoding, rate, channels)
    assert caught.value.code == "unsupported_audio"


@pytest.mark.parametrize(
    ("encoding", "size"),
    [(Encoding.AUTO, 4), (Encoding.PCM_S16BE, 4), (Encoding.PCM_S24LE, 6), (Encoding.MULAW, 2), (Encoding.WEBM, 1)],
)
def test_bytes_of_a_frame(encoding: Encoding, size: int) -> None:
    assert AudioFormat(encoding, RATE, 2).frame_bytes == size
