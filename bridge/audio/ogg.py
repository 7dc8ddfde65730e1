"""Ogg (RFC 3533) with Opus, Vorbis or FLAC, as its bytes arrive.

FFmpeg's demuxer waits for whole pages, which recorders fill for up to a second, loses a whole page for one wrong bit,
and gives up where a chained stream changes its channels. Here a packet is given out as soon as it is complete; a page
with a wrong checksum is told of, and its packets are tried.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from typing import Final, Protocol

import av
from av.audio.codeccontext import AudioCodecContext

from bridge.audio.codec import CodedPacket, Found, Lost, Turn, create_context
from bridge.audio.flac import flac_context
from bridge.audio.packets import OPUS_HEAD, OPUS_RATE, opus_context
from bridge.errors import BridgeError

MAGIC: Final = b"OggS"
_HEADER: Final = struct.Struct("<4sBBqIIIB")
_CONTINUED, _FIRST, _LAST = 1, 2, 4
TURN_STEPS: Final = 256
"""Pages and pieces of packets that are stepped over in one turn, should none of them be sound."""
TRIMMED_PACKETS: Final = 8
"""Packets at the end of which the last page may take something back: a page that takes more is wrongly marked."""
LONGEST_LOSS: Final = 10.0
"""Seconds of silence in place of missing pages."""
LONGEST_HEADER: Final = 4_096
"""Bytes of the packet on a link's first page; every codec's is far shorter."""
LATEST_START: Final = 2.0
"""Seconds at the end of the first page of sound; a clock that shows more there began before the stream."""

_REVERSED: Final = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


class PageChecksum:
    """Ogg's CRC-32: zlib's polynomial with the bits the other way round, starting at 0."""

    def __init__(self) -> None:
        self._register = 0xFFFF_FFFF

    def add(self, data: bytes | bytearray) -> None:
        """Take in the next bytes of the page; in its header the checksum itself counts as zeros."""
        self._register = zlib.crc32(data.translate(_REVERSED), self._register)

    @property
    def value(self) -> int:
        """The checksum of what was taken in."""
        return int(f"{self._register ^ 0xFFFF_FFFF:032b}"[::-1], 2)


class Track(Protocol):
    """One logical stream's packets."""

    rate: int
    """Of its granule positions, in Hz."""
    lead: int
    """Granules before the sound begins."""

    def take(self, packet: bytes) -> AudioCodecContext | None:
        """The decoder of this packet; None for a header."""


class _Opus:
    """RFC 7845: OpusHead, OpusTags, then packets."""

    def __init__(self, head: bytes) -> None:
        self._context = opus_context(head)
        self.rate, self.lead = OPUS_RATE, int.from_bytes(head[10:12], "little")

    def take(self, packet: bytes) -> AudioCodecContext | None:
        return None if packet.startswith((OPUS_HEAD, b"OpusTags")) else self._context


class _Vorbis:
    """Vorbis I, A.2: three headers, all of which the decoder must have, then packets."""

    def __init__(self, head: bytes) -> None:
        if len(head) != 30:
            raise BridgeError("undecodable_audio", "the header of the Vorbis audio is broken")
        self.rate, self.lead = int.from_bytes(head[12:16], "little"), 0
        self._channels = head[11]
        self._headers: list[bytes] = []
        self._context: AudioCodecContext | None = None

    def take(self, packet: bytes) -> AudioCodecContext | None:
        if packet[:1] in {b"\1", b"\3", b"\5"} and packet[1:7] == b"vorbis":
            self._headers.append(packet)
            if len(self._headers) == 3:
                lengths = b"".join(
                    b"\xff" * (len(part) // 255) + bytes([len(part) % 255]) for part in self._headers[:2]
                )
                extradata = b"\2" + lengths + b"".join(self._headers)
                self._context = create_context("vorbis", self.rate, self._channels, extradata)
            return None
        return self._context


class _Flac:
    """The mapping of RFC 9639, 10.1: stream information in the first packet, then other metadata, then frames."""

    def __init__(self, head: bytes) -> None:
        self._context = flac_context(head[17:51])
        self.rate, self.lead = self._context.sample_rate, 0

    def take(self, packet: bytes) -> AudioCodecContext | None:
        return self._context if packet[:1] == b"\xff" else None


_TRACKS: Final = ((OPUS_HEAD, _Opus), (b"\1vorbis", _Vorbis), (b"\x7fFLAC", _Flac))


class OggReader:
    """The packets of the first stream of sound in each link of a chain. Holds at most one incomplete packet."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ready: deque[Found] = deque()
        # The link that is heard:
        self._track: Track | None = None
        self._serial: int | None = None
        self._begun = False  # a page has come that is not its first
        self._sequence = 0  # of the page that should come next
        self._granule = self._page_granules = 0
        self._until: int | None = None  # where its sound ends, in frames
        self._from_start: bool | None = None  # whether its clock began with the sound; None: not known yet
        self._disturbed = False  # something was missing: the next good page's clock says how much
        self._packet = bytearray()
        self._headless = False  # the beginning of the packet is lost
        # The page that is being read:
        self._parts: deque[tuple[int, bool]] = deque()  # bytes, and whether a packet ends there
        self._ours = False
        self._page_end = 0  # its granule position
        self._sum = PageChecksum()
        self._stated_sum = 0

    def push(self, data: bytes) -> None:
        """Take in one message."""
        self._data += data

    def finish(self) -> None:
        """An incomplete packet is dropped."""

    def close(self) -> None:
        """Forget what is held."""
        for held in (self._data, self._ready, self._packet, self._parts):
            held.clear()
        self._track = None

    def next(self) -> Found:
        """The next packet.

        Raises:
            BridgeError: `undecodable_audio` for a broken header of a codec.
        """
        for _ in range(TURN_STEPS):
            if self._ready:
                return self._ready.popleft()
            if not (self._part() if self._parts else self._page()):
                return None
        return Turn.OVER

    def _page(self) -> bool:
        """Step into the next page; False while its header is incomplete."""
        data = self._data
        start = data.find(MAGIC)
        if start < 0:
            del data[: max(0, len(data) - 3)]
            return False
        del data[:start]
        if len(data) < _HEADER.size or len(data) < _HEADER.size + data[26]:
            return False
        _, version, flags, granule, serial, sequence, stated_sum, segments = _HEADER.unpack_from(data)
        if version or flags > 7:
            del data[:1]
            return True
        size = _HEADER.size + segments
        if flags & _FIRST and self._begun:  # a wrong bit must not end the link that is heard
            whole = size + sum(data[_HEADER.size : size])
            short = whole - size <= LONGEST_HEADER
            if short and len(data) < whole:
                return False
            if not short or _checksum(data[:whole]) != stated_sum:
                del data[:1]
                return True
        self._parts = _parts(data[_HEADER.size : size])
        self._sum, self._stated_sum, self._page_end = PageChecksum(), stated_sum, granule
        self._sum.add(data[:22] + bytes(4) + data[26:size])
        del data[:size]
        self._ours = self._is_ours(flags, serial)
        if self._ours:
            self._place(flags, granule, sequence)
            if not self._parts:
                self._end_page()
        return True

    def _is_ours(self, flags: int, serial: int) -> bool:
        """Whether the page belongs to the stream that is heard, or may begin it."""
        if not flags & _FIRST:
            self._begun |= serial == self._serial
            return serial == self._serial
        if self._begun:  # all first pages stand at the beginning of a link: here is the next one
            self._track, self._begun = None, False
        if self._track is not None:
            return False
        self._serial, self._until = serial, None
        self._granule = self._page_granules = 0
        self._sequence = 0
        self._from_start, self._disturbed = None, False
        self._packet.clear()
        return True

    def _place(self, flags: int, granule: int, sequence: int) -> None:
        """Find out what is missing before this page, and where the sound ends if it is the last."""
        missing, self._sequence = sequence - self._sequence, sequence + 1
        if missing > 0 and self._track is not None and self._page_granules:
            # How long this page is will be known at its end: let it be as long as the last one.
            seconds = min(LONGEST_LOSS, missing * self._page_granules / self._track.rate)
            until = granule - self._page_granules - self._track.lead if granule > 0 else None
            self._ready.append(Lost(seconds, until))
            self._disturbed = True
        if missing or bool(flags & _CONTINUED) != bool(self._packet):
            self._headless = bool(flags & _CONTINUED)
            self._packet.clear()
        if granule > 0:
            self._page_granules, self._granule = max(0, granule - self._granule), granule
        ended = bool(flags & _LAST) and granule > 0 and self._track is not None
        self._until = max(0, granule - self._track.lead) if ended and self._track is not None else None

    def _part(self) -> bool:
        """Take the next piece of a packet; False while it is incomplete."""
        size, whole = self._parts[0]
        if not self._ours:
            step = min(size, len(self._data))
            del self._data[:step]
            self._parts[0] = (size - step, whole)
            if step == size:
                self._parts.popleft()
            return step == size
        inside = self._data.find(MAGIC, 0, size + len(MAGIC) - 1)
        if len(self._data) < (size if inside < 0 else inside + _HEADER.size):
            return False
        if inside >= 0 and _HEADER.unpack_from(self._data, inside)[4] == self._serial:
            self._break_off(inside)
            return True
        if len(self._data) < size:
            return False
        self._parts.popleft()
        piece = self._data[:size]
        del self._data[:size]
        self._sum.add(piece)
        self._assemble(piece, whole=whole)
        if not self._parts:
            self._end_page()
        return True

    def _assemble(self, piece: bytearray, *, whole: bool) -> None:
        if not self._headless:
            self._packet += piece
        if whole:
            if not self._headless:
                self._take(bytes(self._packet))
            self._packet.clear()
            self._headless = False

    def _break_off(self, size: int) -> None:
        """The next page begins inside of this one, which is shorter than it says."""
        del self._data[:size]
        self._parts.clear()
        self._packet.clear()
        self._headless = False
        self._ready.append(Lost(0.0))
        self._disturbed = True

    def _end_page(self) -> None:
        """Check the page, and set the sound right by its clock if something was missing before."""
        if self._sum.value != self._stated_sum:
            self._ready.append(Lost(0.0))
            self._disturbed = True
        elif self._track is not None and self._page_end > 0:
            end = self._page_end - self._track.lead
            if self._from_start is None:
                self._from_start = end <= LATEST_START * self._track.rate
            if self._disturbed and self._from_start:
                self._ready.append(Lost(LONGEST_LOSS, end, is_damage=False))
            self._disturbed = False

    def _take(self, packet: bytes) -> None:
        if self._track is None:
            kind = next((kind for magic, kind in _TRACKS if packet.startswith(magic)), None)
            if kind is None:
                self._serial = None  # no sound, or none that is known
                return
            self._track = kind(packet)
        context = self._track.take(packet)
        if context is not None and packet:
            last = sum(whole for _, whole in self._parts) < TRIMMED_PACKETS
            self._ready.append(CodedPacket(av.Packet(packet), context, self._until if last else None))


def _checksum(page: bytes | bytearray) -> int:
    """What the checksum of a whole page should be."""
    checksum = PageChecksum()
    checksum.add(page[:22] + bytes(4) + page[26:])
    return checksum.value


def _parts(table: bytes | bytearray) -> deque[tuple[int, bool]]:
    """The page's pieces of packets by its table of segments."""
    parts: deque[tuple[int, bool]] = deque()
    size = 0
    for lace in table:
        size += lace
        if lace < 255:
            parts.append((size, True))
            size = 0
    if size or (table and table[-1] == 255):
        parts.append((size, False))
    return parts
