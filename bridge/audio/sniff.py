"""What audio is by its first bytes.

Containers begin with a magic of their own. MP3 and ADTS have only sync words, which samples may look like: several
frames must follow each other exactly. Whatever begins otherwise is samples, and is known to be at the first byte that
no magic has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bridge.audio.formats import Encoding
from bridge.audio.mpeg import adts_frame_size, mp3_frame_size
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
    for encoding, frame_size in ((Encoding.MP3, mp3_frame_size), (Encoding.AAC, adts_frame_size)):
        frames, at = 0, 0
        while frames < CONSISTENT_FRAMES and (size := frame_size(head, at)) and _alike(head, at):
            frames, at = frames + 1, at + size
        if frames == CONSISTENT_FRAMES or (whole and frames and at == len(head)):
            return encoding
        undecided |= frame_size(head, at) is None and frames < CONSISTENT_FRAMES
    return None if undecided and not whole else Encoding.PCM_S16LE


def _alike(head: bytes, at: int) -> bool:
    """Whether the header there says the same as the first of version, layer, rate and (ADTS) profile."""
    return head[at + 1] == head[1] and head[at + 2] & 0x0C == head[2] & 0x0C


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
