"""What clients and sessions say to each other, whatever the wire protocol.

Codecs turn bytes into client events and server events into bytes; sessions know only these. The legal order is

    client:  (Start | Resume) (Audio | Flush)* Stop
    server:  Ready (SpeechStarted | SpeechEnded | Partial | Final | Ack | Warning | Error)* Closed

and for who only listens

    client:  Join
    server:  Joined (SpeechStarted | SpeechEnded | Partial | Final | Ack | Warning | Error)* Closed

Times are seconds on the session's clock (0 is the first sample of the session); `received` and `finalized` count
sample frames at the client's own rate. `channel` is None unless each channel is recognized by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from backends.base import Word
from bridge.audio.formats import AudioFormat


@dataclass(frozen=True, slots=True)
class Start:
    """Opens the session. `language` None means the server's default, `backends.base.DETECT` whichever is spoken.

    `separate`: each channel is recognized by itself. `vad`, `endpointing`, `denoise`: what the session chooses of
    voice activity detection and noise suppression; None leaves it to the server. `endpointing` holds those fields of
    `bridge.audio.vad.segmenter.Endpointing` that are chosen.

    `backend`: the one that is wanted, by its name (None: the best that is well); another goes on if it fails.
    `session_id`: the client's own name for the session (None: the server makes one). `store`: whether its events may
    be kept in the event log. `resume`: True if the client comes back when its connection breaks, False if it does not,
    None if it does not say. `reuse`: an ended session of the same name is forgotten for this one.
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
    session_id: str | None = None
    store: bool = True
    resume: bool | None = None
    reuse: bool = False
    backend: str | None = None

    @property
    def lanes(self) -> int:
        """How many recognitions the session takes."""
        return self.audio.channels if self.separate else 1


@dataclass(frozen=True, slots=True)
class Resume:
    """The sender of a session comes back, with the token of its `Ready`.

    `from_seq`: the first lasting event that it wants (None: those to come). `offset`: the frame with which its audio
    goes on (None: with what `Ready.received_bytes` asks for).
    """

    session_id: str
    token: str
    from_seq: int | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Join:
    """Somebody wants to receive a session's events and sends no audio.

    `from_seq`: the first lasting event that is wanted (None: those to come).
    """

    session_id: str
    from_seq: int | None = None
    partials: bool = True


Opening = Start | Resume | Join
"""What a connection may begin with."""


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


ClientEvent = Opening | Audio | Flush | Stop


@dataclass(frozen=True, slots=True)
class Ready:
    """The session is open, or open again. Addressed to one connection, so it carries no sequence number.

    `resume_token` (None: cannot be resumed) and `resume_seconds`: for a sender whose connection breaks. `trace_id`:
    what the server's log calls this connection. `last_seq`: the last lasting event so far. `received_bytes`: how much
    of the client's audio, in the bytes that it sends, is here: it goes on behind that. `received`: the same in frames
    (0 where coded audio is wanted again from its first byte).
    """

    session_id: str
    backend: str
    language: str
    audio: AudioFormat
    partials: bool
    max_session_seconds: float
    idle_seconds: float
    max_message_bytes: int
    resume_token: str | None = None
    resume_seconds: float = 0
    resumed: bool = False
    last_seq: int = 0
    received: int = 0
    received_bytes: int = 0
    finalized: int = 0
    trace_id: str | None = None


Presence = Literal["waiting", "live", "held", "ended"]
"""Whether a session's sender has yet to come, is there, is expected back, or is done."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A receiver's first event. `last_seq`: the last lasting event so far."""

    session_id: str
    state: Presence
    last_seq: int


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
    """The last event. `code` is a code of `bridge.errors.ERRORS`, `stopped` after an orderly end.

    `seq` is None where only this connection ends: the session goes on, here or on another server.
    """

    seq: int | None
    code: str
    received: int
    finalized: int
    duration: float


LastingEvent = SpeechStarted | SpeechEnded | Final | Warning | Error | Closed
"""What carries a sequence number and goes into the event log; an `Error` or `Closed` without a number does not."""

ServerEvent = Ready | Joined | LastingEvent | Partial | Ack
