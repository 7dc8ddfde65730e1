"""What of an MP4 (ISO 14496-12) FFmpeg is shown: the boxes that audio needs, with numbers that their bytes bear out.

FFmpeg's demuxer believes a count before it has seen what is counted: four bytes can make it fill gigabytes. And it
knows hundreds of boxes that no recorder of speech writes. So boxes that are not needed are renamed to `free`, in place,
and the counts in the others are checked.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final

from bridge.errors import BridgeError

LARGEST_INDEX: Final = 16 * 2**20
"""Bytes of a `moov` or `moof`, which are held until they are whole."""
MOST_ALIKE: Final = 65_536
"""Samples of one size that a file may count without listing them: twenty minutes of AMR."""
BYTES_OF_A_SAMPLE: Final = 4
"""At least, over all, with its row in the index: FFmpeg remembers every sample of all fragments."""

_TOP: Final = frozenset({b"ftyp", b"styp", b"moov", b"moof", b"mdat"})
_INDEXES: Final = frozenset({b"moov", b"moof"})
_ALSO_TOP: Final = frozenset(
    {b"free", b"skip", b"wide", b"sidx", b"ssix", b"emsg", b"prft", b"mfra", b"meta", b"uuid", b"udta", b"pdin"}
)
"""What stands beside them, and is not needed. Any other name is taken for damage, once sound has come."""
_IN_FRAGMENT: Final = frozenset({b"mfhd", b"traf", b"meta", b"pssh", b"uuid", b"free", b"skip"})
_FRAGMENT: Final = re.compile(rb"moof....mfhd", re.DOTALL)
_FRAGMENT_BYTES: Final = 12
_CHILDREN: Final = {
    b"moov": frozenset({b"mvhd", b"trak", b"mvex"}),
    b"trak": frozenset({b"tkhd", b"edts", b"mdia"}),
    b"edts": frozenset({b"elst"}),
    b"mdia": frozenset({b"mdhd", b"hdlr", b"minf"}),
    b"minf": frozenset({b"smhd", b"stbl"}),  # not `dinf`, which can name other files
    b"stbl": frozenset({b"stsd", b"stts", b"stsc", b"stsz", b"stco", b"co64"}),
    b"mvex": frozenset({b"trex"}),
    b"moof": frozenset({b"mfhd", b"traf"}),
    b"traf": frozenset({b"tfhd", b"tfdt", b"trun"}),
}
_RUN_FIELDS: Final = 0x0F00
"""Flags of `trun` for what each sample has of its own, 32 bits each."""


class Mp4Filter:
    """Passes boxes on as they arrive; an index once it is whole.

    After damage in a fragmented file it goes on with the next fragment.
    """

    def __init__(self) -> None:
        self.damaged = 0
        """Places where fragments were lost, so far."""
        self._indexed = self._fragmented = False  # `moov` has come, a fragment has come
        self._lost = False  # looking for the next fragment
        self._held = bytearray()
        self._passing: int | None = 0  # bytes of a box that are passed on as they are; None: all that come
        self._taken = 0  # bytes so far
        self._samples = 0  # counted in fragments so far

    def filter(self, data: bytes) -> bytes:
        """What may be passed on of these bytes and what was held before.

        Raises:
            BridgeError: `undecodable_audio`: sizes or counts are broken, or not believed.
        """
        self._taken += len(data)
        self._held += data
        passed = bytearray()
        while self._held:
            if self._passing is None or self._passing:
                size = len(self._held) if self._passing is None else min(self._passing, len(self._held))
                passed += self._held[:size]
                del self._held[:size]
                if self._passing is not None:
                    self._passing -= size
                continue
            if self._lost:
                passed += self._skip_to_fragment()
                if self._lost:
                    break
            if not self._box():
                break
        return bytes(passed)

    def _lose(self, name: bytes) -> bool:
        """Here is no box that can be: where fragments have come, another will."""
        if not self._fragmented:
            raise _broken(name)
        self.damaged += 1
        self._lost = True
        return True

    def _skip_to_fragment(self) -> bytes:
        """Step to the next fragment. What is stepped over becomes a box that says nothing: places in the file count."""
        found = _FRAGMENT.search(self._held, 5)  # not the one that was broken
        step = found.start() - 4 if found else max(0, len(self._held) - 4 - _FRAGMENT_BYTES)
        self._lost = found is None
        if not found and step < 8:
            return b""
        del self._held[:step]
        return struct.pack(">I4s", step, b"free") + bytes(step - 8) if step >= 8 else b""

    def _box(self) -> bool:
        """Look at the next box; False while too little of it has come."""
        if len(self._held) < 16:
            return False
        size, name = struct.unpack_from(">I4s", self._held)
        header = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", self._held, 8)
            header = 16
        broken = 0 < size < header or (name in _INDEXES and size > LARGEST_INDEX)
        if broken or (self._fragmented and (size == 0 or name not in _TOP | _ALSO_TOP)):
            return self._lose(name)
        if name == b"mdat" and not self._indexed and size != header:
            raise BridgeError(
                "undecodable_audio",
                "the mp4 audio has its index at its end, so it cannot be heard as it comes; "
                'write it in fragments, or with its index in front ("faststart")',
            )
        if name not in _TOP:
            self._held[4:8] = b"free"
        if name in _INDEXES and size:
            return self._whole_index(name, header, size)
        self._passing = size or None
        return True

    def _whole_index(self, name: bytes, header: int, size: int) -> bool:
        """Pass an index on, once it is whole; False while it is not."""
        if len(self._held) < size:
            return self._lose(name) if name == b"moof" and not self._may_be_fragment(header) else False
        try:
            self._index(name, header, size)
        except BridgeError:
            return self._lose(name)
        self._indexed = True
        self._fragmented |= name == b"moof"
        self._passing = size
        return True

    def _may_be_fragment(self, at: int) -> bool:
        """Whether what has come of a fragment holds what fragments hold: a wrong size would be waited for in vain."""
        while at + 8 <= len(self._held):
            size, name = struct.unpack_from(">I4s", self._held, at)
            if size < 8 or name not in _IN_FRAGMENT:
                return False
            at += size
        return True

    def _index(self, name: bytes, start: int, end: int) -> None:
        """Rename and check what is in a box that holds boxes."""
        boxes = list(_boxes(self._held, start, end))
        for at, child, body, child_end in boxes:
            if child not in _CHILDREN[name]:
                self._held[at + 4 : at + 8] = b"free"
            elif child in _CHILDREN:
                self._index(child, body, child_end)
            elif child == b"trun":
                self._run(body, child_end)
        if name == b"stbl":
            self._table({child: (body, child_end) for _, child, body, child_end in boxes})

    def _run(self, body: int, end: int) -> None:
        if end - body < 8:
            raise _broken(b"trun")
        flags, count = struct.unpack_from(">II", self._held, body)
        self._samples += count
        listed = 4 * (flags & _RUN_FIELDS).bit_count() * count
        if listed > end - body or self._samples > self._taken // BYTES_OF_A_SAMPLE + 16:
            raise _broken(b"trun")

    def _table(self, found: dict[bytes, tuple[int, int]]) -> None:
        """A file's own index: as many samples in each of its tables."""
        samples = 0
        if b"stsz" in found:
            body, end = found[b"stsz"]
            size, samples = struct.unpack_from(">II", self._held[body + 4 : min(end, body + 12)].ljust(8, b"\0"))
            if samples > (MOST_ALIKE if size else (end - body) // 4):
                raise _broken(b"stsz")
        for name, width, field in ((b"stts", 8, 0), (b"stsc", 12, 4)):
            if name in found:
                body, end = found[name]
                rows = self._held[body + 8 : end]
                counted = (
                    struct.unpack_from(">I", rows, at + field)[0] for at in range(0, len(rows) - width + 1, width)
                )
                if (sum(counted) if name == b"stts" else max(counted, default=0)) > samples:
                    raise _broken(name)


def _boxes(data: bytearray, start: int, end: int) -> Iterator[tuple[int, bytes, int, int]]:
    """Where each box begins, its name, and where its content begins and ends."""
    at = start
    while at + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, at)
        if not 8 <= size <= end - at:  # long sizes are for what is long
            raise _broken(name)
        yield at, name, at + 8, at + size
        at += size


def _broken(name: bytes) -> BridgeError:
    return BridgeError("undecodable_audio", f"the mp4 audio has a broken box: {name.decode('latin-1')!r}")
