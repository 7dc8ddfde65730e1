"""Coded audio without a container: Opus packets, AMR's frames, G.722."""

from __future__ import annotations

import struct
from collections import deque
from typing import Final

import av
from av.audio.codeccontext import AudioCodecContext

from bridge.audio.codec import CodedPacket, Found, Lost, create_context
from bridge.audio.formats import MAX_CHANNELS
from bridge.errors import BridgeError

AMR_MAGIC: Final = {False: b"#!AMR\n", True: b"#!AMR-WB\n"}
AMR_FRAME_SIZES: Final = {
    False: (13, 14, 16, 18, 20, 21, 27, 32, 6, 0, 0, 0, 0, 0, 0, 1),
    True: (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 0, 0, 0, 0, 1, 1),
}
"""Bytes of a frame with its header, by type (RFC 4867, 5.3; 3GPP TS 26.101 and 26.201); 0: there is no such type."""

G722_PACKET: Final = 4_000
"""Bytes; half a second."""

OPUS_RATE: Final = 48_000
OPUS_HEAD: Final = b"OpusHead"
ANDROID_HEAD: Final = b"AOPUSHDR"
"""Before the header and its length (64 bits), in the codec-specific data of Android 10 and later (MediaCodec's
documentation, "Opus")."""
LONGEST_PRE_SKIP: Final = 1_000_000_000
"""Nanoseconds, 64 bits: older versions send the pre-skip and the pre-roll as buffers of their own."""


class AmrReader:
    """AMR, narrow or wide band: the storage format with or without its magic, so one frame after the other."""

    def __init__(self, *, wide: bool) -> None:
        self._magic = AMR_MAGIC[wide]
        self._sizes = AMR_FRAME_SIZES[wide]
        self._context = amr_context(wide=wide)
        self._data = b""
        self._at = 0
        self._begun = False
        self._lost = False  # what is read now is no frame

    def push(self, data: bytes) -> None:
        """Take in one message."""
        self._data = self._data[self._at :] + data
        self._at = 0

    def finish(self) -> None:
        """An incomplete last frame is dropped."""
        self._begun = True

    def next(self) -> Found:
        """The next frame.

        Raises:
            BridgeError: `unsupported_audio` for several channels.
        """
        if not self._begun and not self._begin():
            return None
        while self._at < len(self._data):
            size = self._sizes[self._data[self._at] >> 3 & 15]
            if not size:
                self._at += 1
                if not self._lost:
                    self._lost = True
                    return Lost()
                continue
            if self._at + size > len(self._data):
                return None
            self._lost = False
            frame = self._data[self._at : self._at + size]
            self._at += size
            return CodedPacket(av.Packet(frame), self._context)
        return None

    def close(self) -> None:
        """Forget what is held."""
        self._data, self._at = b"", 0

    def _begin(self) -> bool:
        """Step over the magic; False while there may be one."""
        head = self._data[: len(self._magic)]
        if head == self._magic:
            self._at = len(head)
        elif head.startswith(b"#!AMR") and len(head) > 5:
            raise BridgeError(
                "unsupported_audio", "AMR of this kind is not supported: one channel, and the declared band"
            )
        elif self._magic.startswith(head):
            return False
        self._begun = True
        return True


def amr_context(*, wide: bool) -> AudioCodecContext:
    """OpenCORE's decoders know comfort noise, in which telephones send every pause; FFmpeg's own do not."""
    names = ("libopencore_amrwb", "amrwb") if wide else ("libopencore_amrnb", "amrnb")
    name = next(name for name in names if name in av.codecs_available)
    return create_context(name, 16_000 if wide else 8_000, 1)


class G722Reader:
    """ITU-T G.722 at 64 kbit/s: no frames, a byte is two samples at 16 kHz."""

    def __init__(self) -> None:
        self._context = create_context("g722", 16_000, 1)
        self._data = b""

    def push(self, data: bytes) -> None:
        """Take in one message."""
        self._data += data

    def finish(self) -> None:
        """Nothing is held back."""

    def next(self) -> Found:
        """The next half second, or what there is."""
        part, self._data = self._data[:G722_PACKET], self._data[G722_PACKET:]
        return CodedPacket(av.Packet(part), self._context) if part else None

    def close(self) -> None:
        """Forget what is held."""
        self._data = b""


class OpusReader:
    """Opus packets, each a message.

    An empty message stands for a packet that was lost. Codec-specific data may come first, as Android's MediaCodec
    gives it: OpusHead, alone or wrapped. Its pre-skip is left out of the sound then.
    """

    def __init__(self, channels: int) -> None:
        self._channels = min(2, channels)
        self._packets: deque[bytes] = deque()
        self._context: AudioCodecContext | None = None
        self._head = b""

    def push(self, data: bytes) -> None:
        """Take in one packet."""
        self._packets.append(data)

    def finish(self) -> None:
        """Nothing is held back."""

    def next(self) -> Found:
        """The next packet.

        Raises:
            BridgeError: `undecodable_audio` for a header that is none.
        """
        while self._packets:
            packet = self._packets.popleft()
            if self._context is None and self._is_header(packet):
                continue
            if self._context is None:
                self._context = self._open()
            if not packet:
                return Lost()
            return CodedPacket(av.Packet(packet), self._context)
        return None

    def close(self) -> None:
        """Forget what is held."""
        self._packets.clear()
        self._context = None

    def _is_header(self, packet: bytes) -> bool:
        if packet.startswith(ANDROID_HEAD):
            packet = packet[len(ANDROID_HEAD) + 8 :]
        if packet.startswith(OPUS_HEAD):
            self._head = packet
            return True
        return bool(self._head) and len(packet) == 8 and struct.unpack("<Q", packet)[0] <= LONGEST_PRE_SKIP

    def _open(self) -> AudioCodecContext:
        return opus_context(self._head) if self._head else create_context("opus", OPUS_RATE, self._channels)


def opus_context(head: bytes) -> AudioCodecContext:
    """A decoder for what this OpusHead describes (RFC 7845, 5.1); it leaves out the pre-skip.

    Raises:
        BridgeError: `undecodable_audio`: it is broken.
    """
    if len(head) < 19 or head[8] > 15 or not 1 <= head[9] <= MAX_CHANNELS or (head[18] and len(head) < 21 + head[9]):
        raise BridgeError("undecodable_audio", "the header of the Opus audio is broken")
    return create_context("opus", OPUS_RATE, head[9], head[: 21 + head[9]] if head[18] else head[:19])
