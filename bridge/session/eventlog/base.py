"""The event log: each session's lasting events, and how far it has come.

What a session tells its clients it writes down first, so that a server that is killed leaves nothing behind that the
log does not know, and nobody hears of anything that another server would tell otherwise.

A session has one owner, the server that runs it. Whoever resumes it claims it: the `epoch` goes up, and what the owner
before still writes is refused (a fencing token, after Kleppmann, "How to do distributed locking").

Times are seconds since 1970 by the log's clock, unless they are times of a session.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from bridge.protocols.events import (
    Closed,
    Error,
    LastingEvent,
    ServerEvent,
    SpeechEnded,
    SpeechStarted,
    Start,
)
from bridge.protocols.events import (
    Final as FinalEvent,
)
from bridge.protocols.events import (
    Warning as WarningEvent,
)

PAGE: Final = 256
"""Events that are read at once at most."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a session has come: what another server has to know to go on.

    `final`: for each channel, the seconds of the session before which everything is final. `received`: frames at the
    client's rate. `header_bytes`: what the client sent before its first sample, a file's header. `raw`: whether audio
    that was to say itself what it is turned out to be raw samples.
    """

    final: tuple[float, ...]
    received: int = 0
    header_bytes: int = 0
    raw: bool = False


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session as the log knows it. `start` is as it was accepted, `language` what it came to.

    `touched`: when its owner last wrote or was last known to live. `seq`: the last event. `ended` and `code`: when and
    why it was closed. `token_digest`: SHA-256 of the resume token; empty where it cannot be resumed.
    """

    session_id: str
    token_digest: bytes
    start: Start
    language: str
    backend: str
    protocol: str
    owner: str
    created: float
    progress: Progress
    touched: float = 0.0
    epoch: int = 1
    seq: int = 0
    ended: float | None = None
    code: str | None = None

    @property
    def raw(self) -> bool:
        """Whether its audio is raw samples, as declared or as it turned out."""
        return self.start.audio.encoding.width is not None or self.progress.raw

    @property
    def finalized(self) -> int:
        """Frames at the client's rate before which every channel is final."""
        return int(min(self.progress.final, default=0.0) * self.start.audio.sample_rate + 1e-6)


@dataclass(frozen=True, slots=True)
class Entry:
    """What one session has to be written: the events that follow those before, and how far it is with them.

    Events that the log has already (by their numbers) are skipped: an entry may be written twice, where the first try
    broke off without an answer. A `Closed` among them ends the session.
    """

    session_id: str
    epoch: int
    events: tuple[LastingEvent, ...]
    progress: Progress
    backend: str


class Outcome(enum.Enum):
    """What became of an entry."""

    WRITTEN = "written"
    SUPERSEDED = "superseded"
    """Another server has claimed the session: this one has no say any more."""
    DELETED = "deleted"
    """Somebody had the session deleted."""
    MISSING = "missing"
    """The log knows nothing of it: it has lost its data, or the entry leaves a gap behind what it has."""


class LogUnavailableError(Exception):
    """The log cannot be reached now, or not be written; the sentence is for the operator's log."""


class SessionExistsError(Exception):
    """There is a session of this name."""


class EventLog(ABC):
    """All methods belong to one event loop, may be cancelled, and give up after a limit of their own.

    Each raises `LogUnavailableError` where the log cannot be reached. `node` is the name of this server's life: another
    one at each start.
    """

    shared: bool = False
    """Whether several servers write to it, so that `follow` tells of sessions of others."""

    forgetful: bool = False
    """Whether it may come back without its data, so that its servers had better remember more themselves."""

    def __init__(self, node: str, retention_seconds: float) -> None:
        self.node = node
        self.retention_seconds = retention_seconds

    @abstractmethod
    async def open(self) -> None:
        """Make it usable. Called once, before anything else."""

    @abstractmethod
    async def close(self) -> None:
        """Give everything back; waits for what is being written."""

    @abstractmethod
    async def create(self, record: SessionRecord, *, replace: bool = False) -> None:
        """A new session, or one that the log has lost; `record.touched` is the log's own business.

        `replace`: one of this name, with its events (or its tombstone), is forgotten for it. A record may begin with
        any `seq`: its first event has the next number.

        Raises:
            SessionExistsError: there is one of this name, ended or not.
        """

    @abstractmethod
    async def write(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Write what several sessions have, durably against a killed process; an outcome for each, in order."""

    @abstractmethod
    async def read(self, session_id: str) -> SessionRecord | None:
        """The session; None if it is not known, or deleted."""

    @abstractmethod
    async def events(self, session_id: str, from_seq: int, limit: int = PAGE) -> list[LastingEvent]:
        """Its events from this number on, in order, at most `limit`."""

    @abstractmethod
    async def claim(self, session_id: str) -> SessionRecord | None:
        """Make this node the owner. The record with its new epoch; None if it is not known."""

    @abstractmethod
    async def release(self, session_id: str, epoch: int) -> None:
        """The owner gives the session up without an end: whoever comes may go on. Nothing if it was superseded."""

    @abstractmethod
    async def delete(self, session_id: str) -> bool:
        """Forget the session at once; what its owner still writes is answered with `DELETED`. Whether it was known."""

    @abstractmethod
    async def beat(self) -> None:
        """This node lives: counts as `touched` for every session that it owns and has not released or ended."""

    @abstractmethod
    async def sweep(self) -> int:
        """Forget sessions that nobody has touched for `retention_seconds`; returns how many."""

    # Several servers

    @abstractmethod
    async def announce(self, session_id: str, events: Sequence[ServerEvent]) -> None:
        """Tell other servers' receivers of passing events (partials, acks), if there are any; may be lost."""

    def heard_elsewhere(self, session_id: str) -> bool:  # noqa: ARG002 - who knows more says more
        """Whether somebody might hear what is announced of this session now."""
        return self.shared

    def follow(self, session_id: str) -> AsyncGenerator[list[ServerEvent]]:
        """What the session's owner writes and announces, from now on. Ends when closed.

        An empty list says that something may have been missed (at the beginning, and after the log was away): read
        `events`. Only of a log that is `shared`.
        """
        raise NotImplementedError("this log is one server's own")

    @abstractmethod
    async def set_receivers(self, session_id: str, count: int) -> None:
        """This node has so many receivers of the session now; forgotten when the node no longer beats."""

    @abstractmethod
    async def receivers(self, session_id: str) -> int:
        """Receivers of the session at other nodes."""


# How events are written

_EVENTS: Final[dict[str, type[LastingEvent]]] = {
    "speech_started": SpeechStarted,
    "speech_ended": SpeechEnded,
    "final": FinalEvent,
    "warning": WarningEvent,
    "error": Error,
    "closed": Closed,
}
_NAMES: Final = {kind: name for name, kind in _EVENTS.items()}
_encoder: Final = msgspec.json.Encoder()
_decoders: Final[dict[str, msgspec.json.Decoder[Any]]] = {n: msgspec.json.Decoder(t) for n, t in _EVENTS.items()}


def encode_event(event: LastingEvent) -> tuple[str, bytes]:
    """Its kind, and the event as JSON."""
    return _NAMES[type(event)], _encoder.encode(event)


def decode_event(kind: str, data: bytes) -> LastingEvent:
    """The event.

    Raises:
        LogUnavailableError: the log holds something else.
    """
    try:
        event: LastingEvent = _decoders[kind].decode(data)
    except (KeyError, msgspec.MsgspecError) as exc:
        raise LogUnavailableError(f"an event of the log cannot be understood: {exc}") from exc
    return event
