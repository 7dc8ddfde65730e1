"""What clients and sessions say to each other, whatever the wire protocol.

Codecs turn bytes into client events and server events into bytes; sessions know only these. The legal order is

    client:  Start (Audio | Flush)* Stop
    server:  Ready (SpeechStarted | SpeechEnded | Partial | Final | Ack | Warning | Error)* Closed

Times are seconds on the session's clock (0 is the first sample of the session); `received` and `finalized` count
sample frames at the client's own rate. `channel` is None unless each channel is recognized by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backends.base import Word
from bridge.audio.formats import AudioFormat


@dataclass(frozen=True, slots=True)
class Start:
    """Opens the session. `language` None means the server's default, `backends.base.DETECT` whichever is spoken.

    `separate`: each channel is recognized by itself. `vad`, `endpointing`, `denoise`: what the session chooses of
    voice activity detection and noise suppression; None leaves it to the server. `endpointing` holds those fields of
    `bridge.audio.vad.segmenter.Endpointing` that are chosen.
    """

    audio: AudioFormat = AudioFormat()
    language: str | None = None
    partials: bool = True
    words: bool = True
    phrases: tuple[str, ...] = ()
    separate: bool = False
    vad: bool | None = None
    endpointing: Mapping[str, float] | None = None
    denoise: bool | None = None

    @property
    def lanes(self) -> int:
        """How many recognitions the session takes."""
        return self.audio.channels if self.separate else 1


@dataclass(frozen=True, slots=True)
class Audio:
    """A stretch of audio in the declared format; need not hold whole frames."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Flush:
    """Finalize what was said so far; the session goes on."""


@dataclass(frozen=True, slots=True)
class Stop:
    """No more audio: finalize every word, then close."""


ClientEvent = Start | Audio | Flush | Stop


@dataclass(frozen=True, slots=True)
class Ready:
    """The session is open. Addressed to one connection, so it carries no sequence number."""

    session_id: str
    backend: str
    language: str
    audio: AudioFormat
    partials: bool
    max_session_seconds: float
    idle_seconds: float
    max_message_bytes: int


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Speech was heard, from `start` on."""

    seq: int
    start: float
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """The speech that was told of is over; it ended at `end`."""

    seq: int
    end: float
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class Partial:
    """The hypothesis for speech that is still going on; replaced by the next partial or final.

    Carries no sequence number: a client that reads slowly is given only the newest one.
    """

    text: str
    start: float
    end: float
    stability: float | None = None
    words: tuple[Word, ...] = ()
    channel: int | None = None
    committed: int | None = None
    """Characters of the text, from its beginning, that no later result of the backend stream changes; None: unknown."""


@dataclass(frozen=True, slots=True)
class Final:
    """The text of record for `start` to `end`; never taken back."""

    seq: int
    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()
    confidence: float | None = None
    language: str | None = None
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class Ack:
    """How far the bridge has come: frames that reached it, and frames that need never be sent again."""

    received: int
    finalized: int


@dataclass(frozen=True, slots=True)
class Warning:  # noqa: A001 - the protocol's own noun
    """Something the client's developer should know; the session goes on. Codes: docs/protocol.md."""

    seq: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Error:
    """A code of `bridge.errors.ERRORS`. When it is fatal, `Closed` follows.

    `seq` is None for an error that answers one connection's message and is no part of the session.
    """

    seq: int | None
    code: str
    message: str
    fatal: bool
    retryable: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """The last event. `code` is a code of `bridge.errors.ERRORS`, `stopped` after an orderly end."""

    seq: int
    code: str
    received: int
    finalized: int
    duration: float


ServerEvent = Ready | SpeechStarted | SpeechEnded | Partial | Final | Ack | Warning | Error | Closed
