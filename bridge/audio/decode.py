"""Declared or sniffed audio to PCM16 lanes at the engine's rate, as it streams."""

from __future__ import annotations

from typing import Final

from bridge.audio.codec import CodedSound, PacketReader
from bridge.audio.containers import DEMUXERS, ContainerReader
from bridge.audio.flac import FlacReader
from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.lanes import Lanes, LaneWriter
from bridge.audio.mpeg import FrameReader, adts_frame_size, mp3_frame_size
from bridge.audio.ogg import OggReader
from bridge.audio.packets import AmrReader, G722Reader, OpusReader
from bridge.audio.samples import RawSamples
from bridge.audio.sniff import SniffedSource
from bridge.audio.sound import Notice, SoundSource
from bridge.audio.wav import WavSource
from bridge.errors import BridgeError

__all__ = ["Lanes", "StreamDecoder"]

_UNMISTAKABLE: Final = {Encoding.OGG, Encoding.WEBM, Encoding.FLAC, Encoding.MP4, Encoding.WAV}
"""Containers that have a magic: audio that begins otherwise is something else."""


def _unheard(code: str, sentence: str) -> None:
    """Nobody listens."""


class StreamDecoder:
    """Decodes one stream on the caller's thread.

    Push a message, then read until there is nothing more; only then push the next. After `finish`, read to the end.
    What waits is held as it came: sound is made as it is read, so that a small message that decodes to hours costs
    neither memory nor a long turn.

    With one lane all channels are mixed down; with more, each channel is a lane.
    """

    __slots__ = (
        "_frames",
        "_lanes",
        "_ready_bytes",
        "_source",
        "_tail",
        "_unit",
        "raw",
    )

    def __init__(self, audio: AudioFormat, target_rate: int, *, lanes: int = 1, notice: Notice = _unheard) -> None:
        self._frames = 0.0
        self._unit = audio.sample_rate
        # What the engine wants as it stands is only cut: the bytes of a second of it; 0: it has to be made into that.
        ready = lanes == 1 and audio == AudioFormat(Encoding.PCM_S16LE, target_rate)
        self._ready_bytes = 2 * target_rate if ready else 0
        self._lanes = LaneWriter(target_rate, lanes)
        self.raw = audio.encoding.width is not None
        """Whether it is raw samples, as declared or as it turned out."""
        self._source: SoundSource | None = self._source_of(audio, notice)
        self._tail = False  # the resampler's rest is wanted, once nothing is left to read

    @property
    def frames(self) -> int:
        """Position up to which audio was read, in frames at the declared rate."""
        return round(self._frames)

    def passes(self, data: bytes) -> bool:
        """Whether a message is what `read` would return for it, as it stands; then it counts as read.

        So it is with nearly every message of nearly every client: whole samples as the engine wants them.
        """
        source = self._source
        if not 0 < len(data) <= self._ready_bytes or len(data) % 2 or not isinstance(source, RawSamples):
            return False
        if not source.empty:
            return False
        self._frames += len(data) // 2
        return True

    def push(self, data: bytes) -> None:
        """Take in one message."""
        if self._source is not None:
            self._source.push(data)

    def flush(self) -> None:
        """Have the resampler's tail read, too: a word is whole where the engine is to finalize it.

        The resampler begins anew after it: call it where speech pauses, not for every message.
        """
        self._tail = True

    def finish(self) -> None:
        """No more will be pushed. An incomplete last frame is dropped: it is no sample."""
        self._tail = True
        if self._source is not None:
            self._source.finish()

    def read(self) -> Lanes | None:
        """The next audio: at most a second of it, and a few milliseconds of work. None: nothing more for now.

        It may be empty where there was work and nothing to hear.

        Raises:
            BridgeError: `undecodable_audio` or `unsupported_audio`; the decoder is closed.
        """
        if self._source is None:
            return None
        if self._ready_bytes and isinstance(self._source, RawSamples):
            pcm = self._source.read_bytes(self._ready_bytes)
            self._frames += len(pcm) // 2
            return (pcm,) if pcm else None
        try:
            sound = self._source.read()
            if sound is not None:
                if not len(sound.samples):
                    return self._lanes.empty
                self._frames += len(sound.samples) * self._unit / sound.rate
                return self._lanes.write(sound)
        except BridgeError:
            self.close()
            raise
        if not self._tail:
            return None
        self._tail = False
        tail = self._lanes.tail()
        return tail if tail[0] else None

    def _source_of(self, audio: AudioFormat, notice: Notice) -> SoundSource:
        """The decoder of audio that is declared so."""
        declared = audio.encoding
        if declared not in _UNMISTAKABLE and declared is not Encoding.AUTO:
            return _decoder(declared, audio, notice)

        def choose(found: Encoding) -> SoundSource:
            if declared is not Encoding.AUTO and found is not declared:
                like = f"begins like {found.value}" if found.width is None else f"does not begin like {declared.value}"
                raise BridgeError("undecodable_audio", f"the audio was declared as {declared.value}, but {like}")
            self.raw = found.width is not None
            return _decoder(found, audio, notice)

        return SniffedSource(choose)

    def close(self) -> None:
        """Give everything back. What was not read is lost; may be called at any time, twice too."""
        self._lanes.close()
        if self._source is not None:
            self._source.close()
            self._source = None


def _decoder(encoding: Encoding, audio: AudioFormat, notice: Notice) -> SoundSource:
    """The decoder of audio that is so."""
    reader: PacketReader
    match encoding:
        case Encoding.WAV:
            return WavSource()
        case Encoding.OPUS:
            reader = OpusReader(audio.channels)
        case Encoding.OGG:
            reader = OggReader()
        case Encoding.AAC:
            reader = FrameReader("aac", adts_frame_size)
        case Encoding.MP3:
            reader = FrameReader("mp3float", mp3_frame_size)
        case Encoding.FLAC:
            reader = FlacReader()
        case Encoding.G722:
            reader = G722Reader()
        case Encoding.AMR_NB | Encoding.AMR_WB:
            reader = AmrReader(wide=encoding is Encoding.AMR_WB)
        case _ if encoding in DEMUXERS:
            reader = ContainerReader(encoding)
        case _:
            return RawSamples(encoding, audio.sample_rate, audio.channels)
    return CodedSound(reader, encoding.value, notice)
