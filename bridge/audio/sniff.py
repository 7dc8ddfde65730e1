"""What audio is by its first bytes.

Containers begin with a magic of their own. MP3 and ADTS have only sync words, which samples may look like: several
frames must follow each other exactly. Whatever begins otherwise is samples, and is known to be at the first byte that
no magic has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bridge.audio.formats import Encoding
from bridge.audio.sound import Sound, SoundSource

_MAGIC: Final = (
    (Encoding.WAV, ((0, b"RIFF"), (8, b"WAVE"))),
    (Encoding.WAV, ((0, b"RF64"), (8, b"WAVE"))),
    (Encoding.OGG, ((0, b"OggS"),)),
    (Encoding.WEBM, ((0, b"\x1aE\xdf\xa3"),)),
    (Encoding.FLAC, ((0, b"fLaC"),)),
    (Encoding.MP3, ((0, b"ID3"),)),
    (Encoding.AMR_NB, ((0, b"#!AMR\n"),)),
    (Encoding.AMR_WB, ((0, b"#!AMR-WB\n"),)),
    # A box of less than 16 MiB: its size comes first.
    (Encoding.MP4, ((0, b"\0"), (4, b"ftyp"))),
    (Encoding.MP4, ((0, b"\0"), (4, b"styp"))),
    (Encoding.MP4, ((0, b"\0"), (4, b"moov"))),
    (Encoding.MP4, ((0, b"\0"), (4, b"moof"))),
)

CONSISTENT_FRAMES: Final = 3
"""Headers in a row that make a stream of MP3 or ADTS."""

# Layer III by version bits (ISO 11172-3, 13818-3): kbit/s by index, Hz by index.
_MP3_KBITS: Final = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_MP3_RATES: Final = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_LONGEST_ADTS: Final = 7 + 2 + 8 * 768
"""Bytes: AAC has at most 6,144 bits for each of eight channels."""


def sniff(head: bytes, *, whole: bool = False) -> Encoding | None:
    """The encoding of audio that begins so; `PCM_S16LE` if it is none of the others, None if more bytes must tell.

    With `whole` no more will come.
    """
    undecided = False
    for encoding, parts in _MAGIC:
        seen = [(head[at : at + len(magic)], magic) for at, magic in parts]
        if all(found == magic for found, magic in seen):
            return encoding
        undecided |= all(magic.startswith(found) for found, magic in seen)
    for encoding, size in ((Encoding.MP3, _mp3_frame), (Encoding.AAC, _adts_frame)):
        frames, at = 0, 0
        while frames < CONSISTENT_FRAMES and (found := size(head, at)):
            frames, at = frames + 1, at + found
        if frames == CONSISTENT_FRAMES or (whole and frames and at == len(head)):
            return encoding
        undecided |= found is None and frames < CONSISTENT_FRAMES
    return None if undecided and not whole else Encoding.PCM_S16LE


def _mp3_frame(data: bytes, at: int) -> int | None:
    """Bytes of the Layer III frame there, of the same kind as the first; 0: there is none; None: too few bytes."""
    header = data[at : at + 4]
    if not header or (len(header) == 1 and header[0] == 0xFF):
        return None
    if header[0] != 0xFF or header[1] & 0xE6 != 0xE2 or header[1] & 0x18 == 0x08:
        return 0
    if len(header) < 4:
        return None
    version = header[1] >> 3 & 3  # 3: MPEG-1, 2: MPEG-2, 0: 2.5
    kbits, rate = _MP3_KBITS[version or 2][header[2] >> 4], header[2] >> 2 & 3
    if not kbits or rate == 3 or header[1] & 0xFE != data[1] & 0xFE or rate != data[2] >> 2 & 3:
        return 0
    return (144_000 if version == 3 else 72_000) * kbits // _MP3_RATES[version][rate] + (header[2] >> 1 & 1)


def _adts_frame(data: bytes, at: int) -> int | None:
    """Bytes of the ADTS frame there (ISO 13818-7, 6.2), of the same kind as the first; 0 and None as above."""
    header = data[at : at + 6]
    if not header or (len(header) == 1 and header[0] == 0xFF):
        return None
    if header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
        return 0
    if len(header) < 6:
        return None
    size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    alike = header[1:3] == data[1:3] and header[3] & 0xC0 == data[3] & 0xC0
    return size if alike and header[2] >> 2 & 15 < 13 and 7 < size <= _LONGEST_ADTS else 0


class SniffedSource:
    """Audio whose encoding its first bytes tell. Holds these, then gives them to the decoder that is made of it.

    `choose` is told the encoding and the first bytes, and may refuse it with a `BridgeError`.
    """

    def __init__(self, choose: Callable[[Encoding], SoundSource]) -> None:
        self._choose = choose
        self._head = b""
        self._finished = False
        self._source: SoundSource | None = None

    def push(self, data: bytes) -> None:
        """Take in one message."""
        if self._source is None:
            self._head += data
        else:
            self._source.push(data)

    def finish(self) -> None:
        """No more will be pushed: what has been seen decides."""
        self._finished = True
        if self._source is not None:
            self._source.finish()

    def read(self) -> Sound | None:
        """The next piece, once the encoding is known."""
        if self._source is None:
            encoding = sniff(self._head, whole=self._finished)
            if encoding is None or not self._head:
                return None
            self._source = self._choose(encoding)
            self._source.push(self._head)
            self._head = b""
            if self._finished:
                self._source.finish()
        return self._source.read()

    def close(self) -> None:
        """Close the decoder; forget what is held."""
        self._head = b""
        if self._source is not None:
            self._source.close()
