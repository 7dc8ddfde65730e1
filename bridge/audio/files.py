"""Audio files and raw streams as chunks of a known format, read as they are used, in bounded memory.

A file in a container and codec that `decoded` lists becomes PCM16 mono at the file's own rate. Raw audio, from
standard input or from a file without a header, is passed on as it is: its format is the caller's word.

Everything here blocks, except `read_ahead`, which brings a source to an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import stat
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from bridge.audio.decoded import AudioFileError, Closing, DecodedSource, Readable, chunk_bytes
from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.sniff import sniff

__all__ = ["STDIN", "AudioFileError", "AudioSource", "open_audio", "read_ahead"]

STDIN: Final = "-"
READ_AHEAD_CHUNKS: Final = 16
"""Chunks that `read_ahead` holds ready: enough to hide the disk."""

READER_JOIN_SECONDS: Final = 0.2
"""A reader that is told to end does so within one chunk, unless it waits for standard input."""

_SNIFF_BYTES: Final = 12
_OTHER_MAGIC: Final = (b"RIFF", b"FORM", b"caff", b".snd", b"#!AMR")
"""Of files that cannot be streamed, so that `sniff` does not know them."""


class AudioSource(Protocol):
    """Audio that is read once, from its start to its end."""

    name: str
    format: AudioFormat
    duration: float | None
    """Seconds, as far as that is known before reading: a hint, for a progress bar."""

    def chunks(self, milliseconds: int) -> Iterator[bytes]:
        """The audio in pieces of this length, the last one shorter; whole frames always.

        Raises:
            AudioFileError: when it turns out to be unreadable; what was readable has been yielded.
        """

    def close(self) -> None:
        """Give the file back. Not while another thread reads."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_audio(name: str, raw: AudioFormat | None = None) -> AudioSource:
    """The file of this name, `-` for standard input.

    With `raw` the content is raw audio in that format, whatever it looks like. Without, standard input may be
    a file (known by its first bytes) or raw PCM16 mono at 16 kHz.

    Raises:
        AudioFileError: no such file, or nothing in it that is audio.
    """
    if name == STDIN:
        # Unbuffered: a thread that waits in a buffer's lock would be fatal to an interpreter that exits.
        stream: Readable = io.FileIO(sys.stdin.fileno(), closefd=False)
        name = "standard input"
        if raw is None:
            head = _read_exactly(stream, _SNIFF_BYTES)
            stream = _Prefixed(head, stream)
            if sniff(head, whole=True) is Encoding.PCM_S16LE and not head.startswith(_OTHER_MAGIC):
                raw = AudioFormat(Encoding.PCM_S16LE)
        return _open(stream, name, raw, size=None)
    path = Path(name)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise AudioFileError(f"{name}: is a directory")
        file = io.FileIO(path)
    except OSError as exc:
        raise AudioFileError(f"{name}: {exc.strerror or exc}") from None
    except ValueError as exc:  # a NUL in the name
        raise AudioFileError(f"{name!r}: {exc}") from None
    return _open(file, name, raw, size=status.st_size if stat.S_ISREG(status.st_mode) else None)


async def read_ahead(source: AudioSource, milliseconds: int) -> AsyncGenerator[bytes]:
    """The source's chunks, read on a thread of its own, which closes the source. Close the generator when done.

    The thread is a daemon: one that waits for standard input keeps no process from ending.

    Raises:
        AudioFileError: as `AudioSource.chunks` does.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
    free = threading.Semaphore(READ_AHEAD_CHUNKS)
    done = threading.Event()

    def post(item: bytes | BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def read() -> None:
        try:
            with source:
                for chunk in source.chunks(milliseconds):
                    post(chunk)
                    free.acquire()
                    if done.is_set():
                        return
            post(None)
        except BaseException as exc:  # noqa: BLE001 - raised again where the chunks are awaited
            post(exc)

    reader = threading.Thread(target=read, name="audio-reader", daemon=True)
    reader.start()
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            free.release()
            yield item
    finally:
        done.set()
        free.release()
        reader.join(READER_JOIN_SECONDS)


def _open(stream: Readable, name: str, raw: AudioFormat | None, *, size: int | None) -> AudioSource:
    if raw is not None:
        return _RawSource(stream, name, raw, size)
    try:
        return DecodedSource(stream, name)
    except BaseException:
        stream.close()
        raise


class _RawSource(Closing):
    def __init__(self, stream: Readable, name: str, audio: AudioFormat, size: int | None) -> None:
        self.name = name
        self.format = audio
        self.duration = None if size is None else size / audio.frame_bytes / audio.sample_rate
        self._stream = stream

    def chunks(self, milliseconds: int) -> Iterator[bytes]:
        size = chunk_bytes(self.format, milliseconds)
        try:
            while chunk := _read_exactly(self._stream, size):
                if whole := chunk[: len(chunk) - len(chunk) % self.format.frame_bytes]:
                    yield whole
        except OSError as exc:
            raise AudioFileError(f"{self.name}: {exc.strerror or exc}") from None

    def close(self) -> None:
        self._stream.close()


class _Prefixed:
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, rest: Readable) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int, /) -> bytes | None:
        if self._head:
            head, self._head = self._head[:size], self._head[size:]
            return head
        return self._rest.read(size)

    def close(self) -> None:
        self._rest.close()


def _read_exactly(stream: Readable, size: int) -> bytes:
    """So many bytes, fewer only at the end."""
    parts: list[bytes] = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
