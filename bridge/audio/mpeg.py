"""MPEG audio without a container: frames of MP3 and of AAC in ADTS, each of which says how long it is.

FFmpeg's demuxers lose the first frame, or give up at the first damage, where so little is probed that nothing is
delayed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import av

from bridge.audio.codec import CodedPacket, Found, Lost, Turn, create_context

LONGEST_ADTS: Final = 7 + 2 + 8 * 768
"""Bytes: AAC has at most 6,144 bits for each of eight channels."""
TURN_PLACES: Final = 512
"""Places that are looked at in one turn because a frame might begin there."""

# Layer III by version bits (ISO 11172-3, 13818-3): kbit/s by index, Hz by index.
_MP3_KBITS: Final = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_MP3_RATES: Final = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_MP3_TAGS: Final = (b"Xing", b"Info")
"""In a first frame that says how long the file is, and holds no sound."""
ID3: Final = b"ID3"
ID3_HEADER: Final = 10
_END_TAGS: Final = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"3DI")
"""ID3v1, APE and Lyrics3 tags, and the foot of an ID3 tag, behind the last frame: no damage."""

FrameSize = Callable[[bytes | bytearray, int], int | None]
"""Bytes of the frame at a place in the data; 0: none begins there; None: too few bytes to tell."""


def mp3_frame_size(data: bytes | bytearray, at: int = 0) -> int | None:
    """For Layer III (ISO 11172-3, 2.4.1.3), but not of "free format", which no encoder writes."""
    header = data[at : at + 4]
    if not header or (len(header) == 1 and header[0] == 0xFF):
        return None
    if header[0] != 0xFF or header[1] & 0xE6 != 0xE2 or header[1] & 0x18 == 0x08:
        return 0
    if len(header) < 4:
        return None
    version = header[1] >> 3 & 3  # 3: MPEG-1, 2: MPEG-2, 0: 2.5
    kbits, rate = _MP3_KBITS[version or 2][header[2] >> 4], header[2] >> 2 & 3
    if not kbits or rate == 3:
        return 0
    return (144_000 if version == 3 else 72_000) * kbits // _MP3_RATES[version][rate] + (header[2] >> 1 & 1)


def adts_frame_size(data: bytes | bytearray, at: int = 0) -> int | None:
    """For AAC in ADTS (ISO 13818-7, 6.2)."""
    header = data[at : at + 6]
    if not header or (len(header) == 1 and header[0] == 0xFF):
        return None
    if header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
        return 0
    if len(header) < 6:
        return None
    size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    return size if header[2] >> 2 & 15 < 13 and 7 < size <= LONGEST_ADTS else 0


class FrameReader:
    """Frames one after the other. At the start and after damage, only what a second header follows is one."""

    def __init__(self, decoder: str, frame_size: FrameSize) -> None:
        self._context = create_context(decoder)
        self._frame_size = frame_size
        self._data = bytearray()
        self._skip = 0  # bytes of a tag
        self._begun = self._synchronized = self._finished = False

    def push(self, data: bytes) -> None:
        """Take in one message."""
        self._data += data

    def finish(self) -> None:
        """An incomplete last frame is dropped."""
        self._finished = True

    def close(self) -> None:
        """Forget what is held."""
        self._data.clear()

    def next(self) -> Found:
        """The next frame."""
        if not self._tag_skipped():
            return None
        for _ in range(TURN_PLACES):
            size = self._frame_size(self._data, 0)
            if size == 0 and not self._tag_begins():
                if self._lose():
                    return Lost()
                continue
            if not size or size > len(self._data):
                return None
            if not self._synchronized:
                match self._frame_size(self._data, size):
                    case 0:
                        self._lose()
                        continue
                    case None if not self._finished:
                        return None
                self._synchronized = True
            frame = bytes(self._data[:size])
            del self._data[:size]
            first, self._begun = not self._begun, True
            if not first or not any(tag in frame[:40] for tag in _MP3_TAGS):
                return CodedPacket(av.Packet(frame), self._context)
        return Turn.OVER

    def _lose(self) -> bool:
        """Go on to where a frame may begin; whether this is the first time since one did."""
        if self._data.startswith(ID3) and len(self._data) >= ID3_HEADER:
            self._skip = tag_size(self._data)
            self._tag_skipped()
            return False
        lost = self._synchronized and not self._data.startswith(_END_TAGS)
        at = self._data.find(b"\xff", 1)
        del self._data[: at if at > 0 else len(self._data)]
        self._synchronized = False
        return lost

    def _tag_begins(self) -> bool:
        """Whether more bytes must tell if a tag is here."""
        head = bytes(self._data[:12])
        return (
            self._synchronized
            and not self._finished
            and (
                any(tag != head and tag.startswith(head) for tag in (*_END_TAGS, ID3))
                or (head.startswith(ID3) and len(head) < ID3_HEADER)
            )
        )

    def _tag_skipped(self) -> bool:
        """Step over a tag in front of the frames; False while it is incomplete."""
        if not self._begun and not self._skip and self._data[:3] == ID3[: len(self._data)]:
            if len(self._data) < ID3_HEADER:
                return False
            self._skip = tag_size(self._data)
        step = min(self._skip, len(self._data))
        del self._data[:step]
        self._skip -= step
        return not self._skip


def tag_size(data: bytes | bytearray) -> int:
    """Bytes of an ID3 tag with its header (ID3v2.4, 3.1); in its size each byte has seven bits."""
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size
