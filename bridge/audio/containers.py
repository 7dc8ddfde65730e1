"""Containers by FFmpeg's demuxers, as their bytes arrive: WebM and MP4.

A demuxer pulls: it calls `read` and expects to be given bytes. A client pushes. So the demuxer runs on a stack of its
own (a greenlet), and a `read` without bytes leaves that stack until there are some. No thread, nothing asked twice, and
no byte held back. FFmpeg never sees a seekable file, an address or a name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import av
import av.container
import greenlet

from bridge.audio.codec import DECODERS, CodedPacket, Found, Lost, Turn, reason
from bridge.audio.formats import Encoding
from bridge.audio.mp4 import Mp4Filter
from bridge.audio.packets import amr_context
from bridge.errors import BridgeError

DEMUXERS: Final = {
    Encoding.WEBM: "matroska",
    Encoding.MP4: "mov",
}
"""FFmpeg's names. No other demuxer can be reached: several of them open files and addresses."""

READ_BYTES: Final = 4_096
"""What FFmpeg asks for at a time."""
TURN_BYTES: Final = 65_536
"""Bytes a demuxer is given in one turn: it may find nothing in them that is sound."""
MAX_TRACKS: Final = 64
SHORTEST_GAP: Final = 0.05
"""Seconds between two packets that are filled with silence; times in WebM are rounded to milliseconds."""
LONGEST_PAUSE: Final = 0.45
"""Seconds in which an encoder may say nothing of a pause (discontinuous transmission): Opus speaks up after 0.4."""
LONGEST_GAP: Final = 10.0
"""A larger one is a clock that jumps."""

_OPTIONS: Final = {
    # Nothing is probed: the format is given, and what waits for more bytes would delay the words.
    "probesize": "32",
    "analyzeduration": "0",
    "codec_whitelist": ",".join(DECODERS),
    "format_whitelist": "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2",
    "protocol_whitelist": "none",  # a list without any: an empty one would allow all
    "max_streams": str(MAX_TRACKS),
    "indexmem": "65536",  # bytes: nobody seeks
}


class ContainerReader:
    """The packets of a container's first track of audio."""

    def __init__(self, encoding: Encoding) -> None:
        self._feed = _Feed()
        self._stack: greenlet.greenlet | None = greenlet.greenlet(_demux)
        self._start: tuple[_Feed, Encoding] | tuple[()] = (self._feed, encoding)
        self._hungry = True  # it waits for bytes, and has no packet in what it was given
        self._filter = Mp4Filter() if encoding is Encoding.MP4 else None
        self._unfiltered = b""
        self._damaged = 0  # places that the filter told of, and have been passed on

    def push(self, data: bytes) -> None:
        """Take in one message."""
        if self._filter is None:
            self._feed.push(data)
        else:
            self._unfiltered += data

    def finish(self) -> None:
        """No more will be pushed."""
        self._feed.finished = True

    def next(self) -> Found:
        """The next packet.

        Raises:
            BridgeError: `undecodable_audio`.
        """
        if self._filter is not None and self._unfiltered:
            data, self._unfiltered = self._unfiltered, b""
            self._feed.push(self._filter.filter(data))
        if self._filter is not None and self._damaged < self._filter.damaged:
            self._damaged += 1
            return Lost(0.0)  # the clock of what follows says how much
        if self._hungry and not self._feed.ready:
            return None
        self._feed.allowance = TURN_BYTES
        found = self._switch()
        self._hungry = found is None
        return found

    def close(self) -> None:
        """Have FFmpeg see the end of the file, and give everything back."""
        self._feed.release()
        if self._stack is not None:
            if self._stack:  # it has begun, and is not at its end
                self._switch()
            self._stack = None

    def _switch(self) -> Found:
        stack, arguments = self._stack, self._start
        if stack is None:
            return None
        self._start = ()
        stack.parent = greenlet.getcurrent()
        try:
            found: Found = stack.switch(*arguments)
        except BaseException:
            self._stack = None
            raise
        if stack.dead:
            self._stack = None
        return found


class _Feed:
    """The file that FFmpeg reads: it knows no end until the client says so.

    It must not know the demuxer's stack: a greenlet in a cycle of references is never collected.
    """

    def __init__(self) -> None:
        self.finished = False
        self.released = False
        self.allowance = 0
        self._data = b""
        self._at = 0

    @property
    def ready(self) -> bool:
        """Whether a read would not have to wait."""
        return self.finished or self._at < len(self._data)

    def push(self, data: bytes) -> None:
        self._data = self._data[self._at :] + data
        self._at = 0

    def release(self) -> None:
        """Nothing is wanted any more."""
        self.released = self.finished = True
        self._data, self._at = b"", 0

    def read(self, size: int) -> bytes:
        """Called by FFmpeg on the demuxer's stack."""
        while not self.ready:
            self.leave(None)
        if self.allowance <= 0:
            self.leave(Turn.OVER)
        part = self._data[self._at : self._at + size]
        self._at += len(part)
        self.allowance -= len(part)
        return part

    def leave(self, found: Found) -> None:
        """Switch to the caller. An exception must not go through FFmpeg: it sees the end of the file instead."""
        if self.released:
            return
        caller = greenlet.getcurrent().parent
        try:
            if caller is not None:
                caller.switch(found)
        except BaseException:  # noqa: BLE001 - GreenletExit: the stack is taken down because nobody knows it any more
            self.release()


def _demux(feed: _Feed, encoding: Encoding) -> None:
    """The body of the demuxer's stack."""
    try:
        with av.open(
            feed,
            mode="r",
            format=DEMUXERS[encoding],
            options=_OPTIONS,
            metadata_errors="replace",
            buffer_size=READ_BYTES,
        ) as container:
            for found in _packets(container):
                feed.leave(found)
                if feed.released:
                    return
    except (av.FFmpegError, OSError, ValueError) as exc:
        if not feed.released:
            raise BridgeError(
                "undecodable_audio", f"the {encoding.value} audio cannot be decoded: {reason(exc)}"
            ) from None


def _packets(container: av.container.InputContainer) -> Iterator[CodedPacket | Lost]:
    unknown = []
    for stream in container.streams.audio:
        context = getattr(stream, "codec_context", None)
        if context is None or context.name not in DECODERS:
            unknown.append("unknown" if context is None else context.name)
            continue
        if context.name in {"amrnb", "amrwb"}:
            context = amr_context(wide=context.name == "amrwb")
        context.thread_count = 1
        end: float | None = None  # of the packet before, in seconds
        for packet in container.demux(stream):
            if not packet.size:  # it would end the decoder
                continue
            if packet.pts is not None and packet.time_base:
                start = float(packet.pts * packet.time_base)
                if end is not None and SHORTEST_GAP <= start - end <= LONGEST_GAP:
                    yield Lost(start - end, is_damage=start - end > LONGEST_PAUSE)
                end = start + float(packet.duration * packet.time_base) if packet.duration else None
            yield CodedPacket(packet, context)
        return
    raise ValueError(f"it holds no audio (tracks of audio in other codecs: {', '.join(unknown[:5]) or 'none'})")
