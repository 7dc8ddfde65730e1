"""Whole files of strangers as PCM16 mono: known by their content, decoded apart from the server, within limits.

WAV as nearly all recorders write it, and raw samples, are read here: that takes no decoder, only care. Everything else
is decoded by FFmpeg in a process of its own (`media_pool`), which a hostile file may hang, crash or fill without
anybody else's noticing. Nothing here blocks the event loop, and memory does not depend on a file's length.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import stat
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, TypeAlias, TypeVar

from bridge.audio import media_wire as wire
from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.media_pool import CHILDREN, Child, ChildError, Children
from bridge.audio.plain import HEAD_BYTES, Plain, PlainConverter, raw_samples, wav_samples
from bridge.audio.wavheader import strip_wav_header
from bridge.errors import BridgeError

log = logging.getLogger(__name__)

File: TypeAlias = "Path | IO[bytes] | bytes"
"""A name, an open file (with a descriptor, or not larger than `WHOLE_BYTES`), or what stands in it."""

WHOLE_BYTES: Final = 2**20
"""An open file up to this size is read at once, where the caller is: it lies in memory, or in the system's cache."""
BLOCK_BYTES: Final = 2**18
"""Read and converted in one turn of a thread; some 20 milliseconds of work at most."""
CHUNK_SECONDS: Final = wire.CHUNK_MS / 1_000
WHOLE_CHUNK_SECONDS: Final = 8.0
"""The same where the audio lies in memory as it is wanted: each piece costs a turn of its reader."""
DISK_SECONDS: Final = 5.0
"""A read of a disk that was cancelled is waited for so long."""
THREADS: Final = 4
"""They read disks."""
NAME_CHARACTERS: Final = 120
"""Of a file's name in sentences."""

_BY_CONTENT: Final = frozenset(
    {Encoding.AUTO, Encoding.OGG, Encoding.WEBM, Encoding.FLAC, Encoding.MP3, Encoding.AAC, Encoding.MP4, Encoding.WAV}
    | {Encoding.AMR_NB, Encoding.AMR_WB}
)
"""What is declared for these adds nothing to what the file says of itself."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What a file is. Names are FFmpeg's."""

    format_name: str
    codec: str
    sample_rate: int
    channels: int
    duration: float | None
    """Seconds, as far as the file tells: a hint."""


class Media:
    """One file that is being read. `chunks` can be used once."""

    def __init__(self, rate: int, duration: float | None, chunks: AsyncGenerator[bytes]) -> None:
        self.format = AudioFormat(Encoding.PCM_S16LE, rate)
        self.duration = duration
        """Seconds, as far as that is known before reading: a hint, for a progress bar."""
        self._chunks = chunks

    def chunks(self) -> AsyncIterator[bytes]:
        """The audio in pieces of some seconds, the last one shorter.

        Raises:
            BridgeError: `undecodable_audio` or `audio_too_long`; what was readable has been yielded.
        """
        return self._chunks


class MediaDecoder:
    """Reads one server's files. `most` is how many are decoded in processes at once; others wait."""

    def __init__(self, *, max_bytes: int, max_seconds: float, most: int = CHILDREN) -> None:
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._children = Children(most)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="media")
        self._closed = False

    async def open(self) -> None:
        """Nothing runs before the first file that needs it: it would cost those who only stream."""

    async def close(self) -> None:
        """End every process. Files that are being read break off with `shutting_down`."""
        self._closed = True
        await self._children.close()
        self._threads.shutdown(wait=False)

    def at_once(
        self, file: File, name: str, seconds: float, *, raw: AudioFormat | None = None
    ) -> tuple[AudioFormat, memoryview] | None:
        """The samples of a plain file of at most so many seconds that is in memory, if they are wanted as they stand.

        None of any other file: `read` that.

        Raises:
            BridgeError: as `read`.
        """
        if not isinstance(file, bytes):
            return None
        name = shortened(name)
        self._limited(len(file), name)
        plain = self._plain(file[:HEAD_BYTES], len(file), name, raw)
        if plain is None or not plain.ready or plain.duration > seconds:
            return None
        self._check_plain(plain, name)
        return AudioFormat(Encoding.PCM_S16LE, plain.rate), memoryview(file)[plain.start : plain.start + plain.size]

    @contextlib.asynccontextmanager
    async def read(self, file: File, name: str, *, raw: AudioFormat | None = None) -> AsyncIterator[Media]:
        """The audio of a file while the context lasts. An open file is the caller's, and left at any position.

        With `raw` the content is raw audio in that format, whatever it looks like. May be cancelled at any time, and
        left before the end; nothing stays behind.

        Raises:
            BridgeError: `unsupported_audio`, `undecodable_audio`, `audio_too_long`, `too_large`, `at_capacity`,
                `shutting_down`.
            OSError: there is no such file.
        """
        name = shortened(name)
        async with self._opened(file, name) as content:
            plain = self._plain(await self._head(content), content.size, name, raw)
            if plain is not None:
                self._check_plain(plain, name)
                chunks = self._read_plain(content, plain)
                async with contextlib.aclosing(chunks):
                    yield Media(plain.rate, plain.duration, chunks)
                return
            demuxer = "g722" if raw is not None and raw.encoding is Encoding.G722 else None
            async with self._decoding(content, wire.Job(name, self._max_seconds, demuxer)) as (child, info):
                chunks = _decoded(child, name)
                async with contextlib.aclosing(chunks):
                    yield Media(info.rate, info.duration, chunks)

    async def probe(self, file: File, name: str) -> MediaInfo:
        """What a file is, by its content; the first of its sound was decoded.

        Raises:
            BridgeError: as `read`.
        """
        name = shortened(name)
        async with self._opened(file, name) as content:
            plain = self._plain(await self._head(content), content.size, name, None)
            if plain is not None:
                self._check_plain(plain, name)
                audio = plain.audio
                codec = f"pcm_{audio.encoding.value.removeprefix('pcm_')}"
                return MediaInfo("wav", codec, audio.sample_rate, audio.channels, plain.duration)
            async with self._decoding(content, wire.Job(name, self._max_seconds, probe=True)) as (child, info):
                await child.next()
        return MediaInfo(info.container, info.codec, info.sample_rate, info.channels, info.duration)

    @contextlib.asynccontextmanager
    async def _opened(self, file: File, name: str) -> AsyncIterator[_Content]:
        if isinstance(file, Path):
            # What is no file but a pipe would keep the thread until somebody writes to it.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
            opened: list[int] = []  # not returned: who is cancelled meanwhile must close it, too
            try:
                await self._run(lambda: opened.append(os.open(file, flags)))
                status = os.fstat(opened[0])
                if not stat.S_ISREG(status.st_mode):
                    raise BridgeError("unsupported_audio", f"{name}: is not a file")
                self._limited(status.st_size, name)
                yield _Content(status.st_size, fd=opened[0])
            finally:
                for fd in opened:
                    os.close(fd)
            return
        if isinstance(file, bytes):
            self._limited(len(file), name)
            yield _Content(len(file), data=file)
            return
        size = file.seek(0, io.SEEK_END) or file.tell()
        self._limited(size, name)
        if size <= WHOLE_BYTES:
            file.seek(0)
            yield _Content(size, data=file.read())
        else:
            yield _Content(size, fd=await self._run(file.fileno))

    def _limited(self, size: int, name: str) -> None:
        if size > self._max_bytes:
            raise BridgeError("too_large", f"{name}: larger than the {self._max_bytes} bytes that a file may have")

    async def _head(self, content: _Content) -> bytes:
        if content.data is not None:
            return content.data[:HEAD_BYTES]
        return await self._run(lambda: content.read(0, HEAD_BYTES))

    def _plain(self, head: bytes, size: int, name: str, raw: AudioFormat | None) -> Plain | None:
        """Where the samples lie in a plain file of this size that begins so; None if it takes FFmpeg to read it."""
        if raw is None or raw.encoding in _BY_CONTENT:
            return wav_samples(head, size)
        if raw.encoding is Encoding.OPUS:
            raise BridgeError("unsupported_audio", f"{name}: bare Opus packets have no ends in a file; put them in Ogg")
        if raw.encoding.width is None:
            return None
        return raw_samples(raw, len(head) - len(strip_wav_header(head, raw)), size)

    def _check_plain(self, plain: Plain, name: str) -> None:
        if not plain.size:
            raise BridgeError("undecodable_audio", f"{name}: holds no audio")
        if plain.duration > self._max_seconds:
            raise BridgeError("audio_too_long", wire.too_long(name, self._max_seconds))

    async def _read_plain(self, content: _Content, plain: Plain) -> AsyncGenerator[bytes]:
        if plain.ready and content.data is not None:
            end, step = plain.start + plain.size, int(plain.rate * WHOLE_CHUNK_SECONDS) * 2
            for at in range(plain.start, end, step):
                yield content.data[at : min(at + step, end)]
            return
        chunk = int(plain.rate * CHUNK_SECONDS) * 2
        pending = bytearray()
        blocks = _blocks(content, plain)
        while (block := await self._run(lambda: next(blocks, None))) is not None:
            pending += block
            while len(pending) >= chunk:
                yield bytes(pending[:chunk])
                del pending[:chunk]
        if pending:
            yield bytes(pending)

    @contextlib.asynccontextmanager
    async def _decoding(self, content: _Content, job: wire.Job) -> AsyncIterator[tuple[Child, wire.Info]]:
        with content.descriptor() as fd:
            async with contextlib.AsyncExitStack() as stack:
                child = await stack.enter_async_context(self._children.lend())
                with _blaming(job.name):
                    try:
                        info = await child.begin(job, fd)
                    except ChildError:
                        if child.files == 1:
                            raise
                        # It may have died of what the files before it left: this one has a process of its own.
                        await stack.aclose()
                        child = await stack.enter_async_context(self._children.lend(new=True))
                        info = await child.begin(job, fd)
                yield child, info

    async def _run(self, work: Callable[[], T]) -> T:
        """On a thread. Cancelled or not, it has ended then: it works on a descriptor that is closed next."""
        if self._closed:
            raise BridgeError("shutting_down")
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future], timeout=DISK_SECONDS)
            raise


async def _decoded(child: Child, name: str) -> AsyncGenerator[bytes]:
    with _blaming(name):
        while (chunk := await child.next()) is not None:
            yield chunk


@contextlib.contextmanager
def _blaming(name: str) -> Iterator[None]:
    """A process that is lost over a file is the file's fault."""
    try:
        yield
    except ChildError as exc:
        log.warning("a process was lost over a file that it decoded: %s", exc)
        raise BridgeError("undecodable_audio", f"{name}: decoding it failed, or takes too much") from exc


@dataclass(frozen=True, slots=True)
class _Content:
    """The bytes of a file, in memory or behind a descriptor."""

    size: int
    data: bytes | None = None
    fd: int = -1

    def read(self, at: int, size: int) -> bytes:
        """Blocks on the disk."""
        if self.data is not None:
            return self.data[at : at + size]
        return os.pread(self.fd, size, at)

    @contextlib.contextmanager
    def descriptor(self) -> Iterator[int]:
        """A descriptor of it, to be handed on."""
        if self.data is None:
            yield self.fd
            return
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("media", os.MFD_CLOEXEC)
            try:
                os.write(fd, self.data)
                yield fd
            finally:
                os.close(fd)
            return
        with tempfile.TemporaryFile() as file:
            file.write(self.data)
            file.flush()
            yield file.fileno()


def _blocks(content: _Content, plain: Plain) -> Iterator[bytes]:
    """The samples as PCM16 mono, some at a time."""
    converter = None if plain.ready else PlainConverter(plain)
    step = max(1, BLOCK_BYTES // plain.audio.frame_bytes) * plain.audio.frame_bytes
    at, end = plain.start, plain.start + plain.size
    while at < end:
        data = content.read(at, min(step, end - at))
        data = data[: len(data) - len(data) % plain.audio.frame_bytes]
        if not data:
            break  # it became shorter meanwhile
        at += len(data)
        yield data if converter is None else converter.convert(data)
    if converter is not None:
        yield converter.tail()


def shortened(name: str) -> str:
    """A file's name as sentences have it: printable, and not long."""
    if len(name) <= NAME_CHARACTERS and name.isprintable():
        return name or "the file"
    shown = "".join(c if c.isprintable() else "�" for c in name[:NAME_CHARACTERS])
    return shown + "…" if len(name) > NAME_CHARACTERS else shown
