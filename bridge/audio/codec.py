"""FFmpeg's decoders: packets in, sound out. A damaged packet becomes silence of its length."""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import av
import numpy as np
import numpy.typing as npt
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame

from bridge.audio.formats import MAX_CHANNELS
from bridge.audio.sound import (
    HIGHEST_RATE,
    LOWEST_RATE,
    NOTHING,
    Float32,
    Int16,
    Notice,
    Sound,
    bounded,
    piece_frames,
    silence,
)
from bridge.errors import BridgeError

DECODERS: Final = (
    "aac",
    "alac",
    "amrnb",
    "amrwb",
    "flac",
    "mp3",
    "mp3float",
    "opus",
    "pcm_alaw",
    "pcm_f32le",
    "pcm_mulaw",
    "pcm_s16be",
    "pcm_s16le",
    "pcm_s24le",
    "pcm_s32le",
    "pcm_u8",
    "vorbis",
)
"""FFmpeg's names. What is recorded for recognizers uses these; every other decoder is only one more to attack."""

TURN_PACKETS: Final = 64
"""Packets that are decoded in one turn at most, should none of them give sound."""
LONGEST_DAMAGE: Final = 1.0
"""Seconds of silence that a packet's declared length may become."""


FRUITLESS_END: Final = 16_384
"""The same at the end, after which it is told: room for tags and indexes."""
FRUITLESS_BYTES: Final = 16 * 2**20
"""Bytes in a row without a sound after which there is none to be expected: room for a picture of the album's."""


class Turn(Enum):
    """What a reader says when it has no packet yet."""

    OVER = "there is more, but enough was done at once"


@dataclass(frozen=True, slots=True)
class Lost:
    """What a reader says where something is missing or damaged."""

    seconds: float | None = None
    """At most so much; None: as much as the last packet."""
    until: int | None = None
    """The frame of this decoder's sound up to which it is missing, where that is known."""
    is_damage: bool = True
    """Not where an encoder leaves out pauses."""


class CodedPacket(NamedTuple):
    """A packet, never an empty one."""

    packet: av.Packet[Any]
    context: AudioCodecContext
    until: int | None = None
    """Frames of this decoder's sound after which the audio ends, where the container says so."""


Found: TypeAlias = CodedPacket | Lost | Turn | None
"""What a reader says; None: no packet until the next push."""


class PacketReader(Protocol):
    """Cuts a stream of bytes into the packets of one codec. Raises `BridgeError` only."""

    def push(self, data: bytes) -> None:
        """Take in one message."""

    def finish(self) -> None:
        """No more will be pushed."""

    def next(self) -> Found:
        """The next packet."""

    def close(self) -> None:
        """Give everything back; may be called twice."""


class CodedSound:
    """What a reader's packets sound like.

    Args:
        reader: where packets come from; closed with this.
        name: of the format, for sentences.
        notice: is told of damage: the first time, the tenth, the hundredth.
    """

    def __init__(self, reader: PacketReader, name: str, notice: Notice) -> None:
        self._reader = reader
        self._name = name
        self._notice = notice
        self._context: AudioCodecContext | None = None
        self._pieces = Pieces()
        self._finished = self._heard = False
        self._fruitless = 0  # bytes since the last sound
        self._given = 0  # frames of this decoder's
        self._until: int | None = None
        self._damaged = 0
        self._last: tuple[int, int, int] | None = None  # frames, channels, rate of the last sound
        self._error: BridgeError | None = None

    def push(self, data: bytes) -> None:
        """Take in one message."""
        self._fruitless += len(data)
        self._reader.push(data)

    def finish(self) -> None:
        """No more will be pushed."""
        self._finished = True
        if self._fruitless or self._heard:  # FFmpeg does not take nothing for an answer
            self._reader.finish()

    def close(self) -> None:
        """Give the decoder back."""
        self._reader.close()
        self._context = None
        self._pieces = Pieces()

    def read(self) -> Sound | None:
        """The next piece: of as many packets as make one.

        Raises:
            BridgeError: `undecodable_audio` or `unsupported_audio`, after all that could be decoded.
        """
        worked = True
        if self._error is None:
            try:
                worked = self._gather()
            except BridgeError as exc:
                self._error = exc
                if self._finished and self._heard:  # a recording that breaks off is as good as what it holds
                    self._tell(f"{exc}, after its end had been cut off or damaged")
                    self._error = None
                    self._reader.close()
        if piece := self._pieces.take():
            return piece
        if self._error is not None:
            raise self._error
        return NOTHING if worked else None

    def _gather(self) -> bool:
        """Decode until there is a whole piece; whether there may be more to do."""
        for _ in range(TURN_PACKETS):
            if self._pieces.full:
                return True
            match self._reader.next():
                case Turn.OVER:
                    self._check_fruit()
                    return True
                case None:
                    self._check_fruit()
                    if self._finished:
                        self._end()
                    return False
                case Lost() as lost:
                    self._fill(lost)
                case CodedPacket(packet, context, until):
                    if context is not self._context:
                        self._drain()
                        self._context, self._given = context, 0
                    self._until = until
                    self._decode(packet, context)
        return True

    def _check_fruit(self) -> None:
        if self._fruitless > FRUITLESS_BYTES:
            raise BridgeError(
                "undecodable_audio", f"there was no sound in the last {self._fruitless} bytes of {self._name} audio"
            )

    def _end(self) -> None:
        """After the last packet; once more is harmless."""
        self._drain()
        if self._fruitless and not self._heard:
            raise BridgeError("undecodable_audio", f"no sound was found in the {self._name} audio")
        if self._fruitless > FRUITLESS_END:
            self._tell(f"the last {self._fruitless} bytes of the {self._name} audio held no sound")
        self._fruitless = 0

    def _drain(self) -> None:
        """What the decoder still holds."""
        context, self._context = self._context, None
        if context is not None:
            with contextlib.suppress(av.FFmpegError):  # after its last packet there is nothing that could be lost
                self._hear(context.decode(None))

    def _decode(self, packet: av.Packet[Any], context: AudioCodecContext) -> None:
        try:
            frames = context.decode(packet)
        except av.FFmpegError:
            seconds = float(packet.duration * packet.time_base) if packet.duration and packet.time_base else 0.0
            self._fill(Lost(seconds if 0 < seconds <= LONGEST_DAMAGE else None))
            return
        self._hear(frames)

    def _hear(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            self._fruitless, self._heard = 0, True
            samples = samples_of(frame)
            self._last = (*samples.shape, frame.sample_rate)
            self._put(Sound(samples, frame.sample_rate))

    def _put(self, sound: Sound) -> None:
        if self._until is not None and self._given <= self._until:
            sound = Sound(sound.samples[: self._until - self._given], sound.rate)
        self._given += len(sound.samples)
        self._pieces.put(sound)

    def _fill(self, lost: Lost) -> None:
        """Silence for what is missing, as far as anything was heard."""
        if self._last is not None:
            frames, channels, rate = self._last
            if lost.seconds is not None:
                frames = round(lost.seconds * rate)
            if lost.until is not None:
                frames = min(frames, max(0, lost.until - self._given))
            self._put(silence(frames, channels, rate))
        if not lost.is_damage:
            return
        self._damaged += 1
        if str(self._damaged).rstrip("0") == "1":
            self._tell(f"a piece of the {self._name} audio is damaged or missing ({self._damaged} so far)")

    def _tell(self, sentence: str) -> None:
        self._notice("damaged_audio", sentence)


class Pieces:
    """Sounds in a row, given out in pieces of a good size."""

    def __init__(self) -> None:
        self._sounds: deque[Sound] = deque()
        self._share = 0.0  # of a longest piece that is held

    @property
    def full(self) -> bool:
        """Whether a longest piece is held."""
        return self._share >= 1.0

    def put(self, sound: Sound) -> None:
        """Add at the end."""
        if len(sound.samples):
            self._sounds.append(sound)
            self._share += len(sound.samples) / _limit(sound)

    def take(self) -> Sound | None:
        """The first piece: as much as is of one kind, at most the longest; None if nothing is held."""
        if not self._sounds:
            return None
        first = self._sounds.popleft()
        limit = _limit(first)
        parts = [first.samples[:limit]]
        frames = len(parts[0])
        if frames < len(first.samples):
            self._sounds.appendleft(Sound(first.samples[limit:], first.rate))
        while self._sounds and _same_kind(first, self._sounds[0]) and frames + len(self._sounds[0].samples) <= limit:
            parts.append(self._sounds.popleft().samples)
            frames += len(parts[-1])
        self._share = self._share - frames / limit if self._sounds else 0.0
        samples: Float32 | Int16 = parts[0] if len(parts) == 1 else np.concatenate(parts)  # type: ignore[assignment]
        return Sound(samples, first.rate)


def _limit(sound: Sound) -> int:
    return piece_frames(sound.rate, sound.samples.shape[1])


def _same_kind(one: Sound, other: Sound) -> bool:
    return (
        one.rate == other.rate
        and one.samples.shape[1] == other.samples.shape[1]
        and one.samples.dtype == other.samples.dtype
    )


def check_plausible(rate: int, channels: int) -> None:
    """Refuse what nobody records with.

    Raises:
        BridgeError: `undecodable_audio` for the rate, `unsupported_audio` for the number of channels.
    """
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise BridgeError("undecodable_audio", f"a sample rate of {rate} Hz is not plausible")
    if not 1 <= channels <= MAX_CHANNELS:
        raise BridgeError("unsupported_audio", f"the audio has {channels} channels, at most {MAX_CHANNELS} can be used")


def samples_of(frame: AudioFrame) -> Float32 | Int16:
    """A decoded frame's samples, whichever way FFmpeg lays them out.

    Raises:
        BridgeError: `undecodable_audio` or `unsupported_audio`, as `check_plausible` does.
    """
    channels = frame.layout.nb_channels
    check_plausible(frame.sample_rate, channels)
    samples = _rows(frame, channels)
    match samples.dtype.kind, samples.itemsize:
        case "f", _:
            return bounded(samples)
        case "i", 2:
            return samples
        case "i", 4:
            return samples.astype(np.float32) * np.float32(2**-31)
        case "u", 1:
            return (samples.astype(np.int16) - 128) << 8
    raise BridgeError("undecodable_audio", f"samples of FFmpeg's format {frame.format.name} are not supported")


def _rows(frame: AudioFrame, channels: int) -> npt.NDArray[Any]:
    if channels == 1 and frame.format.name == "fltp":  # what most decoders give for speech, without a copy more
        plane: Any = frame.planes[0]
        return np.frombuffer(plane, np.float32, frame.samples).reshape(-1, 1)
    laid_out: npt.NDArray[Any] = frame.to_ndarray()
    return laid_out.T if frame.format.is_planar else laid_out.reshape(-1, channels)


def create_context(
    name: str, rate: int | None = None, channels: int | None = None, extradata: bytes | None = None
) -> AudioCodecContext:
    """A decoder that no container describes. It works on the caller's thread.

    Rate and channels are left out where packets tell them.

    Raises:
        BridgeError: `undecodable_audio` or `unsupported_audio`, as `check_plausible` does.
        av.codec.codec.UnknownCodecError: this FFmpeg has none of that name.
    """
    check_plausible(LOWEST_RATE if rate is None else rate, 1 if channels is None else channels)
    context = av.CodecContext.create(name, "r")
    if not isinstance(context, AudioCodecContext):
        raise TypeError(f"{name} is no audio codec")
    if rate is not None:
        context.sample_rate = rate
    if channels is not None:
        context.layout = {1: "mono", 2: "stereo"}.get(channels, f"{channels}C")
    context.thread_count = 1
    if extradata is not None:
        context.extradata = extradata
    return context


def reason(exc: BaseException) -> str:
    """The sentence of an FFmpeg error without its number and our file object."""
    text = getattr(exc, "strerror", None) or str(exc)
    return str(text)[:200]
