"""One file in a container, decoded by FFmpeg as it is read: PCM16 mono at the file's own rate. Everything here blocks.

What FFmpeg may run is listed here: the demuxers and codecs of recordings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
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
from bridge.audio.sound import HIGHEST_RATE, LOWEST_RATE

HIGHEST_SENT_RATE: Final = 48_000
"""A file of a higher rate is resampled to this: no engine hears more, and it would only cost the network."""

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


class AudioFileError(Exception):
    """The file cannot be read as audio; the text is a sentence that names the file and says why.

    `code` is the name in `bridge.errors` under which a client hears of it.
    """

    def __init__(self, text: str, code: str = "undecodable_audio") -> None:
        super().__init__(text)
        self.code = code


class Readable(Protocol):
    """What is asked of a file: at most so many bytes, none at its end."""

    def read(self, size: int, /) -> bytes | None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Closing(ABC):
    """What is closed when a context ends."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DecodedSource(Closing):
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
        size = chunk_bytes(self.format, milliseconds)
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


def _samples(resampler: AudioResampler, frame: AudioFrame | None) -> Iterator[bytes]:
    for resampled in resampler.resample(frame):
        if resampled is not None and resampled.samples:
            yield memoryview(resampled.planes[0])[: 2 * resampled.samples].tobytes()  # the plane is padded


def chunk_bytes(audio: AudioFormat, milliseconds: int) -> int:
    """Bytes of whole frames of this length."""
    return max(1, audio.sample_rate * milliseconds // 1000) * audio.frame_bytes


def _duration(container: av.container.InputContainer, audio: AudioStream) -> float | None:
    if audio.duration is not None and audio.time_base is not None:
        seconds = float(audio.duration * audio.time_base)
    elif container.duration is not None:
        seconds = container.duration / av.time_base
    else:
        return None
    return seconds if seconds > 0 else None
