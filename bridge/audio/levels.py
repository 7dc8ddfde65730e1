"""What is wrong with a client's audio, seen from its samples: told to its developer as warnings, each once a session.

Clipping, silence and a low level are looked for as long as the session lasts, the format's suspicions (`suspicion.py`,
`pace.py`) in its first seconds. Nothing here changes the audio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.pace import Pace
from bridge.audio.samples import linear
from bridge.audio.sniff import sniff
from bridge.audio.suspicion import Budget, FormatSuspicion

Notice = Callable[[str, str], None]
"""Told a warning's code and its sentence."""

_SILENT_RANGE: Final = 16
"""Range (highest less lowest of 16-bit samples) of silence: -72 dBFS, quieter than any microphone that is open."""
_SILENT_FROM_START: Final = 10.0
"""Seconds of silence after which a microphone that was never heard is probably muted."""
_SILENT_LATER: Final = 30.0
"""The same for one that was heard: people mute themselves, and senders gate pauses."""

_LOW_PEAK: Final = 104
"""-50 dBFS: speech that nowhere is louder has lost most of its bits, and drowns in any noise."""
_LOW_SECONDS: Final = 3.0
"""Seconds of sound well above the background: somebody speaks, or a car goes by far away."""
_ABOVE_FLOOR: Final = 4
_PIECE_SECONDS: Final = 0.1

_LOOK_SECONDS: Final = 1.0
"""Raw audio is looked at in pieces of this length: looking costs by the look, hardly by the sample."""

_CLIPPED_RUN: Final = 3
"""Samples in a row at full scale: a tone at full scale has one or two."""
_CLIPPED_SHARE: Final = 0.005
"""Share of all samples; a cough or a door has less, within these seconds."""
_CLIPPED_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class _Scale:
    """How samples can be looked at without a conversion: the upper 16 bits of wide ones do."""

    type: str
    lowest: float = -32_768
    highest: float = 32_767
    unit: float = 1.0
    """Steps of 16-bit audio in one of these."""
    offset: int = 0
    """Where in the bytes of a sample those are that are looked at."""

    def samples(self, data: bytes, width: int) -> npt.NDArray[Any]:
        """A view of these bytes."""
        if width == np.dtype(self.type).itemsize:
            return np.frombuffer(data, self.type)
        return np.ndarray((len(data) // width,), self.type, data, self.offset, (width,))


_SCALES: Final[Mapping[Encoding, _Scale]] = {
    Encoding.PCM_S8: _Scale("i1", -128, 127, 256),
    Encoding.PCM_U8: _Scale("u1", 0, 255, 256),
    Encoding.PCM_S16LE: _Scale("<i2"),
    Encoding.PCM_S16BE: _Scale(">i2"),
    Encoding.PCM_S24LE: _Scale("<i2", offset=1),
    Encoding.PCM_S24BE: _Scale(">i2"),
    Encoding.PCM_S32LE: _Scale("<i2", offset=2),
    Encoding.PCM_S32BE: _Scale(">i2"),
    Encoding.PCM_F32LE: _Scale("<f4", -1, 1, 32_768),
    Encoding.PCM_F32BE: _Scale(">f4", -1, 1, 32_768),
    Encoding.PCM_F64LE: _Scale("<f8", -1, 1, 32_768),
    Encoding.PCM_F64BE: _Scale(">f8", -1, 1, 32_768),
}
_PCM16: Final = _SCALES[Encoding.PCM_S16LE]
_G711: Final = {encoding: linear(encoding, bytes(range(256))) for encoding in (Encoding.MULAW, Encoding.ALAW)}
_G711_SCALES: Final = {e: _Scale("<i2", int(table.min()), int(table.max())) for e, table in _G711.items()}


def _nobody(code: str, sentence: str) -> None:
    """Is told."""


class SignalMonitor:
    """Watches one session's audio. It costs less than a microsecond a message after the first seconds.

    In those it judges the format, as far as the `budget` that sessions share allows (None: at once).

    `notice` is called from within `received`, `heard` and `finish`, at most once for each code.
    """

    __slots__ = (
        "_audio",
        "_begun",
        "_cut",
        "_head",
        "_levels",
        "_look_bytes",
        "_notice",
        "_pace",
        "_rate",
        "_raw",
        "_sniffing",
        "_suspicion",
        "_told",
        "_unseen",
        "_unseen_bytes",
    )

    def __init__(self, audio: AudioFormat, rate: int, notice: Notice, budget: Budget | None = None) -> None:
        declared = replace(audio, encoding=Encoding.PCM_S16LE) if audio.encoding is Encoding.AUTO else audio
        self._audio = declared
        self._sniffing = audio.encoding is Encoding.AUTO
        self._rate = rate
        self._notice = notice
        self._told: set[str] = set()
        self._begun = False
        self._head = b""  # bytes that may still be a container's, or samples
        self._raw = declared.encoding.width is not None
        self._suspicion = FormatSuspicion(declared, budget)
        self._pace = Pace(declared)
        self._unseen: list[bytes] = []  # messages that were not looked at yet, and their bytes
        self._unseen_bytes = 0
        self._look_bytes = _LOOK_SECONDS * declared.frame_bytes * declared.sample_rate if self._raw else 0
        self._cut = 0  # bytes at the start of the next message that belong to a frame of the one before
        scale = _G711_SCALES.get(declared.encoding) or _SCALES.get(declared.encoding, _PCM16)
        self._levels = (
            Levels(declared.sample_rate, declared.channels, scale, self._tell)
            if self._raw
            else Levels(rate, 1, _PCM16, self._tell)
        )

    def close(self) -> None:
        """Nobody is told of anything any more."""
        self._notice = _nobody
        self._unseen.clear()
        self._levels.close()

    def received(self, data: bytes, now: float) -> None:
        """A message as it came, at so many seconds of any clock that does not jump.

        The samples are wanted from the first one on, without a WAV header.
        """
        if not self._begun and data:
            data = self._head + data
            found = sniff(data, whole=not self._sniffing)
            if found is None:  # as for the decoder, more bytes must tell
                self._head = data
                return
            self._begin(found)
        if not self._raw:
            return
        if not self._pace.done and (finding := self._pace.push(len(data), now)) is not None:
            self._tell(*finding)
        self._unseen.append(data)
        self._unseen_bytes += len(data)
        if self._unseen_bytes >= self._look_bytes:
            self._see(now)

    def finish(self, now: float) -> None:
        """No more audio comes."""
        if self._unseen:
            self._see(now)

    def heard(self, pcm: bytes) -> None:
        """Audio at the engine's rate. It is looked at only where the bytes that came say nothing, being coded."""
        if not self._raw:
            self._levels.hear(np.frombuffer(pcm, "<i2"))

    def _begin(self, found: Encoding) -> None:
        """The audio begins like `found`."""
        self._begun, self._head = True, b""
        if not self._raw or found in {Encoding.PCM_S16LE, Encoding.WAV}:
            self._raw &= not (self._sniffing and found is Encoding.WAV)
        elif not self._sniffing:
            self._suspicion.done = self._pace.done = True
            declared = self._audio.encoding.value
            self._tell(
                "wrong_encoding",
                f"the audio begins like {found.value}, not like samples in {declared}: declare encoding {found.value}, "
                "or send samples",
            )
        else:
            self._raw = False
        if not self._raw:
            self._levels = Levels(self._rate, 1, _PCM16, self._tell)

    def _see(self, now: float) -> None:
        """Look at the messages that wait."""
        data = b"".join(self._unseen)
        self._unseen.clear()
        self._unseen_bytes = 0
        if not self._suspicion.done and (finding := self._suspicion.push(data, now)) is not None:
            self._pace.done = True  # what is wrong explains the number of bytes, too
            self._tell(*finding)
        self._look(data)

    def _look(self, data: bytes) -> None:
        """At the whole frames of so many bytes."""
        frame = self._audio.frame_bytes
        start, self._cut = self._cut, (self._cut - len(data)) % frame
        size = (len(data) - start) // frame * frame
        if size <= 0:
            return
        if size < len(data):
            data = data[start : start + size]
        encoding = self._audio.encoding
        if encoding in _G711:
            self._levels.hear(_G711[encoding][np.frombuffer(data, np.uint8)])
        else:
            self._levels.hear(_SCALES[encoding].samples(data, frame // self._audio.channels))

    def _tell(self, code: str, sentence: str) -> None:
        if code not in self._told:
            self._told.add(code)
            self._notice(code, sentence)


class Levels:
    """Clipping, silence and a low level in one stream of interleaved samples."""

    __slots__ = (
        "_active",
        "_channels",
        "_clipped",
        "_floor",
        "_looked",
        "_low",
        "_scale",
        "_second",
        "_silent",
        "_silent_limit",
        "_tell",
    )

    def __init__(self, rate: int, channels: int, scale: _Scale, tell: Notice) -> None:
        self._scale = scale
        self._channels = channels
        self._second = rate * channels
        self._tell = tell
        self._silent = 0  # samples; the same for all below
        self._silent_limit = _SILENT_FROM_START * self._second
        self._clipped = self._looked = 0
        self._low = True  # nothing was loud so far
        self._floor = float(_LOW_PEAK)
        self._active = 0

    def close(self) -> None:
        """Tell nothing more."""
        self._tell = _nobody

    def hear(self, samples: npt.NDArray[Any]) -> None:
        """The next samples, whole frames."""
        if not len(samples):
            return
        scale = self._scale
        highest, lowest = np.maximum.reduce(samples), np.minimum.reduce(samples)
        span = (float(highest) - float(lowest)) * scale.unit
        if span <= _SILENT_RANGE:
            self._hush(len(samples))
        else:
            self._silent = 0
            self._silent_limit = _SILENT_LATER * self._second
            if self._low:
                self._strain(samples, span)
        if highest >= scale.highest or lowest <= scale.lowest:
            self._clipped += self._count_clipped(samples)
        self._looked += len(samples)
        if self._looked >= _CLIPPED_SECONDS * self._second:
            if self._clipped >= _CLIPPED_SHARE * self._looked:
                self._tell(
                    "clipping",
                    f"{self._clipped / self._looked:.1%} of the samples of some seconds are clipped at full scale: "
                    "turn the microphone's gain down, and amplify nothing in software",
                )
            self._clipped = self._looked = 0

    def _hush(self, samples: int) -> None:
        self._silent += samples
        self._floor = _SILENT_RANGE / 2
        if self._silent >= self._silent_limit:
            self._tell(
                "silence",
                f"nothing but silence for {self._silent / self._second:.0f} s: the microphone is muted, is not the "
                "one that is spoken into, or the application may not use it",
            )

    def _strain(self, samples: npt.NDArray[Any], span: float) -> None:
        """Look for speech that is hardly there, until anything is louder."""
        self._low = not span >= 2 * _LOW_PEAK  # and not where it is not a number
        piece = max(1, int(_PIECE_SECONDS * self._second))
        for at in range(0, len(samples) if self._low else 0, piece):
            part = samples[at : at + piece]
            peak = (float(part.max()) - float(part.min())) * self._scale.unit / 2
            self._floor = min(self._floor, max(peak, _SILENT_RANGE / 2))
            if peak >= _ABOVE_FLOOR * self._floor:
                self._active += len(part)
        if self._low and self._active >= _LOW_SECONDS * self._second:
            self._low = False
            self._tell(
                "low_level",
                "sounds come and go, but nothing reaches -50 dBFS: if it is speech, turn the microphone's gain up, and "
                "check whether samples are scaled to their width",
            )

    def _count_clipped(self, samples: npt.NDArray[Any]) -> int:
        """Samples that end a run at full scale within their channel."""
        channels, count = self._channels, 0
        for full in (samples >= self._scale.highest, samples <= self._scale.lowest):
            run = full
            for _ in range(_CLIPPED_RUN - 1):
                run = run[channels:] & full[: len(run) - channels] if len(run) > channels else run[:0]
            count += int(np.count_nonzero(run))
        return count
