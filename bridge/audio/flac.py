"""Native FLAC (RFC 9639) cut into its frames.

FFmpeg's own parser looks ten frames ahead before it believes one, which delays live audio by a second. Here a frame
ends where the next header begins: whole (its CRC-8 is right), of the same kind, and of a number that comes soon.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import av
from av.audio.codeccontext import AudioCodecContext

from bridge.audio.codec import CodedPacket, Found, Lost, Turn, create_context
from bridge.errors import BridgeError

MAGIC: Final = b"fLaC"
STREAMINFO_BYTES: Final = 34
LONGEST_HEADER: Final = 16
LONGEST_FRAME: Final = 2**21 + 2**16
"""Bytes: 65,535 frames of eight channels of 32 bits, not compressed."""
LONGEST_GAP: Final = 1_000
"""Frames that may be missing before a header: with a larger number it is no header, only bytes that look like one."""
TURN_CANDIDATES: Final = 512
"""Places that are looked at in one turn because they begin like a header."""

_BLOCK_SIZES: Final = (0, 192, 576, 1_152, 2_304, 4_608, 0, 0, *(256 << code for code in range(8)))


def _crc8_of(value: int) -> int:
    for _ in range(8):
        value = value << 1 ^ 0x107 if value & 0x80 else value << 1
    return value


_CRC8: Final = bytes(_crc8_of(value) for value in range(256))
"""Polynomial x^8 + x^2 + x + 1."""


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What is needed of a frame's header. `number` counts frames, or samples where `variable`."""

    kind: tuple[int, int, int]
    variable: bool
    block_size: int
    number: int

    @property
    def next_number(self) -> int:
        """What the following frame says."""
        return self.number + (self.block_size if self.variable else 1)

    def may_follow(self, before: FrameHeader) -> bool:
        """Whether it is the header of a frame soon after that one."""
        gap = LONGEST_GAP * before.block_size if self.variable else LONGEST_GAP
        return self.kind == before.kind and before.next_number <= self.number < before.next_number + gap


def parse_header(data: bytes | bytearray) -> FrameHeader | None:  # noqa: PLR0911 - each rule stands alone
    """The header at the beginning of these bytes (RFC 9639, 9.1); None if there is no whole one."""
    if len(data) < 6 or data[0] != 0xFF or data[1] & 0xFE != 0xF8 or data[3] & 1:
        return None
    size_code, rate_code, channels = data[2] >> 4, data[2] & 15, data[3] >> 4
    if not size_code or rate_code == 15 or channels > 10:
        return None
    ones = 8 - (~data[4] & 0xFF).bit_length()  # the number is written as UTF-8 would, in up to seven bytes
    if ones in {1, 8}:
        return None
    at = 4 + max(1, ones)
    number = data[4] & (0x7F >> ones)
    for byte in data[5:at]:
        if byte & 0xC0 != 0x80:
            return None
        number = number << 6 | byte & 0x3F
    extra = {6: 1, 7: 2}.get(size_code, 0)
    block_size = int.from_bytes(data[at : at + extra], "big") + 1 if extra else _BLOCK_SIZES[size_code]
    at += extra + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if at >= len(data):
        return None
    crc = 0
    for byte in data[:at]:
        crc = _CRC8[crc ^ byte]
    if crc != data[at]:
        return None
    kind = (rate_code, 2 if channels > 7 else channels + 1, data[3] & 0x0E)
    return FrameHeader(kind, bool(data[1] & 1), block_size, number)


def flac_context(info: bytes) -> AudioCodecContext:
    """A decoder for the stream that this STREAMINFO describes.

    Raises:
        BridgeError: `undecodable_audio`: there is none.
    """
    if len(info) != STREAMINFO_BYTES:
        raise BridgeError("undecodable_audio", "the FLAC audio does not begin with its stream information")
    rate, channels = int.from_bytes(info[10:13], "big") >> 4, (info[12] >> 1 & 7) + 1
    context = create_context("flac", rate, channels, info)
    # Otherwise a damaged frame is noise.
    context.options = {"err_detect": "crccheck+explode"}
    return context


_SYNC: Final = re.compile(rb"\xff[\xf8\xf9]")


class FlacReader:
    """The frames of one stream. Holds an incomplete frame: at most `LONGEST_FRAME`."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._finished = False
        self._skip = len(MAGIC)  # bytes that are of no interest
        self._in_header = True
        self._context: AudioCodecContext | None = None
        self._header: FrameHeader | None = None  # of the frame at the beginning of the data
        self._searched = 0  # bytes in which it does not end
        self._missing = 0  # frames between the last one and it

    def push(self, data: bytes) -> None:
        """Take in one message."""
        self._data += data

    def finish(self) -> None:
        """No more will be pushed: what is held is the last frame."""
        self._finished = True

    def close(self) -> None:
        """Forget what is held."""
        self._data.clear()
        self._context = None

    def next(self) -> Found:
        """The next frame.

        Raises:
            BridgeError: `undecodable_audio` for a broken header.
        """
        while self._in_header:
            if not self._skipped() or not self._block():
                return None
        if not self._skipped() or self._context is None:
            return None
        if self._missing:
            self._missing -= 1
            return Lost()
        if self._header is None:
            return self._synchronize(self._context)
        return self._frame(self._context, self._header)

    def _skipped(self) -> bool:
        step = min(self._skip, len(self._data))
        del self._data[:step]
        self._skip -= step
        return not self._skip

    def _block(self) -> bool:
        """Step over one block of metadata; False while its header is incomplete."""
        if len(self._data) < 4:
            return False
        kind, size = self._data[0] & 0x7F, int.from_bytes(self._data[1:4], "big")
        if self._context is None:
            if kind or size != STREAMINFO_BYTES:
                raise BridgeError("undecodable_audio", "the FLAC audio does not begin with its stream information")
            if len(self._data) < 4 + size:
                return False
            self._context = flac_context(bytes(self._data[4 : 4 + size]))
        self._in_header = not self._data[0] & 0x80
        self._skip = 4 + size
        return True

    def _synchronize(self, context: AudioCodecContext) -> Found:
        """Go to the first header."""
        for _ in range(TURN_CANDIDATES):
            found = _SYNC.search(self._data)
            if found is None:
                del self._data[:-1]
                return None
            del self._data[: found.start()]
            if len(self._data) < LONGEST_HEADER and not self._finished:
                return None
            self._header = parse_header(self._data[:LONGEST_HEADER])
            if self._header is not None:
                self._searched = LONGEST_HEADER // 2
                return self._frame(context, self._header)
            del self._data[:2]
        return Turn.OVER

    def _frame(self, context: AudioCodecContext, header: FrameHeader) -> Found:
        """The frame at the beginning of the data, once its end is seen."""
        for _ in range(TURN_CANDIDATES):
            found = _SYNC.search(self._data, self._searched)
            if found is None:
                self._searched = max(self._searched, len(self._data) - 1)
                break
            self._searched = end = found.start()
            if len(self._data) - end < LONGEST_HEADER and not self._finished:
                break
            following = parse_header(self._data[end : end + LONGEST_HEADER])
            if following is not None and following.may_follow(header):
                return CodedPacket(self._cut(end, following), context)
            self._searched += 2
        else:
            return Turn.OVER
        if self._finished and self._data:
            return CodedPacket(self._cut(len(self._data), None), context)
        if len(self._data) > LONGEST_FRAME:
            self._cut(len(self._data), None)
            return Lost()
        return None

    def _cut(self, end: int, following: FrameHeader | None) -> av.Packet[Any]:
        """Take the frame out."""
        packet = av.Packet(bytes(self._data[:end]))
        del self._data[:end]
        if following is not None and self._header is not None:
            unit = self._header.block_size if following.variable else 1
            self._missing = (following.number - self._header.next_number) // unit
        self._header = following
        self._searched = LONGEST_HEADER // 2
        return packet
