"""Whole, plain WebSocket frames, told from all others by a look at their first bytes.

A message of audio is one unfragmented, masked frame. A general parser spends more on it than all that is done with it
afterwards: it is a generator that asks for each part of the frame anew. So these are cut out here, and everything else
(control frames, fragments, large messages, whatever is wrong) goes to the library's parser byte for byte, which judges
it. Frames: RFC 6455, section 5.2.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from websockets.speedups import apply_mask

LARGEST: Final = 0xFFFF
"""Bytes in a plain frame's message, at most: the 16-bit length's limit."""
_MASKED: Final = 0x80
_LENGTH: Final = 0x7F
_MORE_LENGTH: Final = {126: 2, 127: 8}
"""Bytes that hold the length instead."""
_MASK_BYTES: Final = 4
_BINARY: Final = 0x82
_WHOLE: Final = (_BINARY, 0x81)
_FIRST_FRAGMENTS: Final = (0x01, 0x02)
_LAST_FRAGMENT: Final = 0x80


class Kind(IntEnum):
    """What a piece of the stream is."""

    OTHER = 0
    """Bytes for the general parser: they begin and end where a frame does, or go on with one that it has begun."""
    TEXT = 1
    """A whole message, unmasked; not looked at whether it is UTF-8."""
    BINARY = 2


Piece = tuple[Kind, bytes]


class Frames:
    """Splits what a client sends after the handshake. `limit`: bytes of the largest message that is plain.

    A frame that is plain and not whole yet is held; of every other, nothing is.
    """

    __slots__ = (
        "_foreign",
        "_fragmented",
        "_held",
        "_limit",
        "_wanted",
    )

    def __init__(self, limit: int = LARGEST) -> None:
        self._limit = min(limit, LARGEST)
        self._held = bytearray()
        self._wanted = 0  # bytes, without which looking at what is held again is no use
        self._foreign = 0  # bytes to come of a frame that the parser has begun
        self._fragmented = False

    @property
    def held(self) -> int:
        """Bytes that wait for the rest of their frame."""
        return len(self._held)

    def split(self, data: bytes) -> list[Piece]:
        """The pieces that these bytes complete, in order."""
        if self._held:
            self._held += data
            if len(self._held) < self._wanted:
                return []
            data = bytes(self._held)
            self._held.clear()
        pieces: list[Piece] = []
        end = len(data)
        other = 0  # where the bytes for the parser begin
        at = min(self._foreign, end)
        self._foreign -= at
        while at < end:
            head = _head(data, at)
            if head is None:
                self._wanted = 2 if end - at < 2 else _head_bytes(data[at + 1])
                break
            start, until = head
            if self._plain(data, at, until - start):
                if until > end:
                    self._wanted = until - at
                    break
                if other < at:
                    pieces.append((Kind.OTHER, data[other:at]))
                payload = apply_mask(data[start:until], data[start - _MASK_BYTES : start])
                pieces.append((Kind.BINARY if data[at] == _BINARY else Kind.TEXT, payload))
                at = other = until
            else:
                self._foreign = max(0, until - end)
                at = min(until, end)
        if other < at:
            pieces.append((Kind.OTHER, data[other:at]))
        if at < end:
            self._held += data[at:]
        return pieces

    def _plain(self, data: bytes, at: int, size: int) -> bool:
        """Whether the frame that begins here is plain."""
        first = data[at]
        if first in _FIRST_FRAGMENTS:
            self._fragmented = True
        elif first == _LAST_FRAGMENT:
            self._fragmented = False
        elif first in _WHOLE and data[at + 1] & _MASKED:
            return size <= self._limit and not self._fragmented
        return False


def _head_bytes(second: int) -> int:
    """The length of a frame's head, by its second byte."""
    mask = _MASK_BYTES if second & _MASKED else 0
    return 2 + _MORE_LENGTH.get(second & _LENGTH, 0) + mask


def _head(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the payload of the frame that begins here starts and ends; None: the head is not whole."""
    if len(data) < at + 2:
        return None
    second = data[at + 1]
    start = at + _head_bytes(second)
    if len(data) < start:
        return None
    size = second & _LENGTH
    if more := _MORE_LENGTH.get(size):
        size = int.from_bytes(data[at + 2 : at + 2 + more])
    return start, start + size
