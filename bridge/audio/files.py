"""Audio files and raw streams as chunks of a known format, read as they are used, in bounded memory.

A file in any container and codec that FFmpeg knows becomes PCM16 mono at the file's own rate. Raw audio, from
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
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import av
import av.container
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.stream import Discard

from bridge.audio.codec import reason
from bridge.audio.formats import MIN_RATE, AudioFormat, Encoding
from bridge.audio.sniff import sniff
from bridge.audio.sound import HIGHEST_RATE, LOWEST_RATE

STDIN: Final = "-"
HIGHEST_SENT_RATE: Final = 48_000
"""A file of a higher rate is resampled to this: no engine hears more, and it would only cost the network."""

READ_AHEAD_CHUNKS: Final = 16
"""Chunks that `read_ahead` holds ready: enough to hide the disk."""

READER_JOIN_SECONDS: Final = 0.2
"""A reader that is told to end does so within one chunk, unless it waits for standard input."""

DEMUXERS: Final = (
    "aac",
    "ac3",
    "aiff",
    "amr",
    "ape",
    "asf",
    "au",
    "avi",
    "caf",
    "dsf",
    "eac3",
    "flac",
    "flv",
    "g722",
    "loas",
    "matroska",
    "webm",
    "mov",
    "mp4",
    "m4a",
    "3gp",
    "3g2",
    "mj2",
    "mp3",
    "mpc",
    "mpc8",
    "mpeg",
    "mpegts",
    "nistsphere",
    "ogg",
    "tak",
    "tta",
    "voc",
    "w64",
    "wav",
    "wv",
)
"""FFmpeg's names of what files are taken. Those that open other files or addresses (playlists, `concat`), and those
that are no audio (text, pictures), cannot be reached.
"""

DECODERS: Final = (
    *("aac", "aac_latm", "ac3", "adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "adpcm_swf", "adpcm_yamaha", "alac"),
    *("amrnb", "amrwb", "ape", "dsd_lsbf", "dsd_lsbf_planar", "dsd_msbf", "dsd_msbf_planar", "eac3", "flac", "g722"),
    *("g726", "g726le", "gsm", "gsm_ms", "mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "mpc7", "mpc8"),
    *("nellymoser", "opus", "shorten", "speex", "tak", "tta", "vorbis", "wavpack", "wmalossless", "wmapro", "wmav1"),
    *("wmav2", "wmavoice"),
    *("evrc", "g723_1", "g729", "ilbc", "qcelp", "truespeech"),  # what telephones and their exchanges record
)
"""FFmpeg's names of codecs besides linear ones: what recordings use, and nothing of what only games do."""

MAX_STREAMS: Final = 64
"""More tracks than that are an attack; FFmpeg allows a thousand."""

_LINEAR: Final = frozenset(name for name in av.codecs_available if name.startswith("pcm_"))

_OPTIONS: Final = {
    "codec_whitelist": ",".join((*DECODERS, *sorted(_LINEAR))),  # of what looks into the file; a picture's are not run
    "format_whitelist": ",".join(DEMUXERS),
    "protocol_whitelist": "none",  # a list without any: an empty one would allow all
    "max_streams": str(MAX_STREAMS),
}

_SNIFF_BYTES: Final = 12
_OTHER_MAGIC: Final = (b"RIFF", b"FORM", b"caff", b".snd", b"#!AMR")
"""Of files that cannot be streamed, so that `sniff` does not know them."""


class AudioFileError(Exception):
    """The file cannot be read as audio; the text is a sentence that names the file and says why.

    `code` is the name in `bridge.errors` under which a client hears of it.
    """

    def __init__(self, text: str, code: str = "undecodable_audio") -> None:
        super().__init__(text)
        self.code = code


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


class Readable(Protocol):
    """What is asked of a file: at most so many bytes, none at its end."""

    def read(self, size: int, /) -> bytes | None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


def _open(stream: Readable, name: str, raw: AudioFormat | None, *, size: int | None) -> AudioSource:
    if raw is not None:
        return _RawSource(stream, name, raw, size)
    try:
        return DecodedSource(stream, name)
    except BaseException:
        stream.close()
        raise


class _Closing(ABC):
    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _RawSource(_Closing):
    def __init__(self, stream: Readable, name: str, audio: AudioFormat, size: int | None) -> None:
        self.name = name
        self.format = audio
        self.duration = None if size is None else size / audio.frame_bytes / audio.sample_rate
        self._stream = stream

    def chunks(self, milliseconds: int) -> Iterator[bytes]:
        size = _chunk_bytes(self.format, milliseconds)
        try:
            while chunk := _read_exactly(self._stream, size):
                if whole := chunk[: len(chunk) - len(chunk) % self.format.frame_bytes]:
                    yield whole
        except OSError as exc:
            raise AudioFileError(f"{self.name}: {exc.strerror or exc}") from None

    def close(self) -> None:
        self._stream.close()


class DecodedSource(_Closing):
    """A file in a container. `demuxer`: FFmpeg's name of it, where the content does not tell.

    The stream is closed with it; not if opening fails.
    """

    def __init__(self, stream: Readable, name: str, demuxer: str | None = None) -> None:
        self.name = name
        self._stream = stream
        try:
            # The open file, not its name: FFmpeg would take some names for addresses of the network.
            container = av.open(stream, mode="r", format=demuxer, options=_OPTIONS, metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as exc:
            raise AudioFileError(
                f"{name}: not an audio file that can be read ({reason(exc)})", "unsupported_audio"
            ) from None
        self._container = container
        try:
            self._audio = self._only_audio(container)
        except BaseException:
            container.close()
            raise
        rate = self._audio.rate
        self.format = AudioFormat(Encoding.PCM_S16LE, 16_000 if rate < MIN_RATE else min(rate, HIGHEST_SENT_RATE))
        self.duration = _duration(container, self._audio)
        self.container_name: str = container.format.name
        self.codec_name: str = self._audio.codec_context.name
        self.channels: int = self._audio.channels
        self.sample_rate: int = rate

    def _only_audio(self, container: av.container.InputContainer) -> AudioStream:
        if not container.streams.audio:
            raise AudioFileError(f"{self.name}: holds no audio")
        audio = container.streams.audio[0]
        context = getattr(audio, "codec_context", None)
        if context is None:
            raise AudioFileError(f"{self.name}: FFmpeg has no decoder for its audio", "unsupported_audio")
        if context.name not in DECODERS and context.name not in _LINEAR:
            raise AudioFileError(f"{self.name}: audio of the codec {context.name} is not decoded", "unsupported_audio")
        if not LOWEST_RATE <= audio.rate <= HIGHEST_RATE:
            raise AudioFileError(f"{self.name}: a sample rate of {audio.rate} Hz is not plausible")
        if audio.channels < 1:
            raise AudioFileError(f"{self.name}: the number of channels is not plausible")
        if not context.is_open:
            context.thread_count = 1
        for stream in container.streams:
            if stream is not audio:
                stream.discard = Discard.all  # a film's pictures need not be read
        return audio

    def counted(self, most: float) -> float | None:
        """Seconds of its packets, read to the end but not decoded; little more than `most` where there are more.

        The source can only be closed after it. None: the packets do not say.
        """
        units = 0
        unit = float(self._audio.time_base or 0)
        try:
            for packet in self._container.demux(self._audio):
                units += packet.duration or 0
                if units * unit > most:
                    break
        except (av.FFmpegError, OSError, ValueError):
            pass  # who reads it hears of that
        return units * unit or None

    def chunks(self, milliseconds: int) -> Iterator[bytes]:
        """As `AudioSource.chunks`."""
        size = _chunk_bytes(self.format, milliseconds)
        pending = bytearray()
        for piece in self._pcm():
            pending += piece
            while len(pending) >= size:
                yield bytes(pending[:size])
                del pending[:size]
        if pending:
            yield bytes(pending)

    def _pcm(self) -> Iterator[bytes]:
        heard = False
        resampler = self._resampler()
        shape: tuple[str, str, int] | None = None
        try:
            for frame in self._frames():
                before, shape = shape, (frame.format.name, frame.layout.name, frame.sample_rate)
                if before not in {None, shape}:  # a chained Ogg file may change its shape on the way
                    yield from _samples(resampler, None)
                    resampler = self._resampler()
                frame.pts = None  # time is the count of samples: a broken clock in the file must not matter
                for piece in _samples(resampler, frame):
                    heard = True
                    yield piece
            if heard:
                yield from _samples(resampler, None)
        except (av.FFmpegError, OSError, ValueError) as exc:
            raise AudioFileError(f"{self.name}: the audio breaks off ({reason(exc)})") from None
        if not heard:
            raise AudioFileError(f"{self.name}: holds no audio that can be decoded")

    def _resampler(self) -> AudioResampler:
        return AudioResampler("s16", "mono", self.format.sample_rate)

    def _frames(self) -> Iterator[AudioFrame]:
        for packet in self._container.demux(self._audio):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue  # one damaged packet costs its own sound, as in every player
            for frame in frames:
                if isinstance(frame, AudioFrame):
                    yield frame

    def close(self) -> None:
        """As `AudioSource.close`."""
        self._container.close()
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


def _samples(resampler: AudioResampler, frame: AudioFrame | None) -> Iterator[bytes]:
    for resampled in resampler.resample(frame):
        if resampled is not None and resampled.samples:
            yield memoryview(resampled.planes[0])[: 2 * resampled.samples].tobytes()  # the plane is padded


def _chunk_bytes(audio: AudioFormat, milliseconds: int) -> int:
    return max(1, audio.sample_rate * milliseconds // 1000) * audio.frame_bytes


def _read_exactly(stream: Readable, size: int) -> bytes:
    """So many bytes, fewer only at the end."""
    parts: list[bytes] = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _duration(container: av.container.InputContainer, audio: AudioStream) -> float | None:
    if audio.duration is not None and audio.time_base is not None:
        seconds = float(audio.duration * audio.time_base)
    elif container.duration is not None:
        seconds = container.duration / av.time_base
    else:
        return None
    return seconds if seconds > 0 else None
