"""What audio is by its first bytes.

Containers begin with a magic of their own. MP3 and ADTS have only sync words, which samples may look like: several
frames must follow each other exactly. Whatever begins otherwise is samples, and is known to be at the first byte that
no magic has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bridge.audio.formats import Encoding
from bridge.audio.mpeg import ID3, ID3_HEADER, adts_frame_size, mp3_frame_size, tag_size
from bridge.audio.sound import Sound, SoundSource
from bridge.errors import BridgeError

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

_FOREIGN: Final = (
    ("AIFF", ((0, b"FORM"), (8, b"AIF"))),
    ("AVI", ((0, b"RIFF"), (8, b"AVI "))),
    ("big-endian WAV", ((0, b"RIFX"), (8, b"WAVE"))),
    ("Wave64", ((0, b"riff\x2e\x91\xcf\x11"),)),
    ("CAF", ((0, b"caff\0\1"),)),
    ("Sun's AU", ((0, b".snd\0\0"),)),
    ("WMA", ((0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),)),
    ("WavPack", ((0, b"wvpk"),)),
    ("Monkey's Audio", ((0, b"MAC "),)),
    ("FLV", ((0, b"FLV\1"), (5, b"\0\0\0\x09"))),
)
"""Names of what would be noise if it were taken for samples."""

CONSISTENT_FRAMES: Final = 3
"""Headers in a row that make a stream of MP3 or ADTS."""
MOST_TAGS: Final = 16
"""ID3 tags in a row that are stepped over to see what they belong to."""
LONGEST_TAG: Final = 16 * 2**20
"""Bytes of these."""


def sniff(head: bytes, *, whole: bool = False) -> Encoding | None:
    """The encoding of audio that begins so; `PCM_S16LE` if it is none of the others, None if more bytes must tell.

    With `whole` no more will come.
    """
    undecided = False
    for encoding, parts in (*_MAGIC, *((Encoding.PCM_S16LE, parts) for _, parts in _FOREIGN)):
        match = _begins(head, parts)
        if match:
            return encoding
        undecided |= match is None
    for encoding, frame_size in ((Encoding.MP3, mp3_frame_size), (Encoding.AAC, adts_frame_size)):
        frames, at = 0, 0
        while frames < CONSISTENT_FRAMES and (size := frame_size(head, at)) and _alike(head, at):
            frames, at = frames + 1, at + size
        if frames == CONSISTENT_FRAMES or (whole and frames and at == len(head)):
            return encoding
        undecided |= frame_size(head, at) is None and frames < CONSISTENT_FRAMES
    return None if undecided and not whole else Encoding.PCM_S16LE


def foreign(head: bytes) -> str | None:
    """The name of what begins so and is neither samples nor supported."""
    return next((name for name, parts in _FOREIGN if _begins(head, parts)), None)


def _begins(head: bytes, parts: tuple[tuple[int, bytes], ...]) -> bool | None:
    """Whether all of these stand there; None if more bytes must tell."""
    seen = [(head[at : at + len(magic)], magic) for at, magic in parts]
    if all(found == magic for found, magic in seen):
        return True
    return None if all(magic.startswith(found) for found, magic in seen) else False


def _alike(head: bytes, at: int) -> bool:
    """Whether the header there says the same as the first of version, layer, rate and (ADTS) profile."""
    return head[at + 1] == head[1] and head[at + 2] & 0x0C == head[2] & 0x0C


class SniffedSource:
    """Audio whose encoding its first bytes tell. Holds these, then gives them to the decoder that is made of it.

    An ID3 tag says nothing of what it belongs to: MP3, mostly, but also ADTS and FLAC. It is stepped over.

    `choose` is told the encoding and the first bytes, and may refuse it with a `BridgeError`.
    """

    def __init__(self, choose: Callable[[Encoding], SoundSource]) -> None:
        self._choose = choose
        self._head = b""
        self._tag = b""  # the header of the last one
        self._tags = self._tag_bytes = 0
        self._skip = 0  # bytes of a tag that have not come
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
            if not self._tags_skipped():
                return None
            encoding = sniff(self._head, whole=self._finished)
            if encoding is Encoding.PCM_S16LE and (name := foreign(self._head)):
                raise BridgeError("unsupported_audio", f"the audio begins like {name}, which is not supported")
            if encoding is Encoding.PCM_S16LE and self._tags:
                encoding = Encoding.MP3  # damage, perhaps, between the tag and the first frame
            if encoding is None or not self._head:
                return None
            self._source = self._choose(encoding)
            self._source.push(self._head)
            self._head = b""
            if self._finished:
                self._source.finish()
        return self._source.read()

    def _tags_skipped(self) -> bool:
        """Step over tags; False while one is incomplete."""
        while True:
            step = min(self._skip, len(self._head))
            self._head = self._head[step:]
            self._skip -= step
            if self._finished and self._tags and not self._head:
                self._head, self._skip = self._tag, 0  # nothing but tags
                return True
            if self._skip:
                return False
            if not self._head.startswith(ID3):
                return self._finished or not self._tags or not ID3.startswith(self._head)
            if len(self._head) < ID3_HEADER:
                return self._finished
            size = tag_size(self._head)
            if self._tags == MOST_TAGS or self._tag_bytes + size > LONGEST_TAG:
                return True
            self._tag = self._head[:ID3_HEADER]
            self._tags, self._tag_bytes, self._skip = self._tags + 1, self._tag_bytes + size, size

    def close(self) -> None:
        """Close the decoder; forget what is held."""
        self._head = b""
        if self._source is not None:
            self._source.close()
