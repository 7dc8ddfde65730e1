"""What a job is: what was asked for, how it stands, what came of it. Times are seconds since 1970.

queued -> running -> succeeded | failed
   ^---------'                              the worker stops, dies, or its engine fails: another attempt
queued | running -> cancelled
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

import msgspec

from bridge.audio.formats import AudioFormat
from bridge.errors import BridgeError
from bridge.transcript import Segment

MAX_PHRASES: Final = 500
MAX_PHRASE_CHARS: Final = 100
MAX_LANGUAGE_CHARS: Final = 35
MAX_MODEL_CHARS: Final = 300
MAX_URL_CHARS: Final = 2_000
ID: Final = re.compile(r"[0-9a-f]{32}")
"""A job's name: 128 bits."""

_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off", ""})


class State(enum.StrEnum):
    """How a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing happens to it any more."""
        return self not in (State.QUEUED, State.RUNNING)


class Notice(enum.StrEnum):
    """What became of a job's webhook. `NONE`: nobody is to be told, or not yet."""

    NONE = "none"
    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"

    @classmethod
    def settled(cls, *, delivered: bool, retry: float | None) -> Notice:
        """After one try: it was delivered, is tried again after so long, or never (None)."""
        if delivered:
            return cls.DELIVERED
        return cls.GIVEN_UP if retry is None else cls.PENDING


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How the file is to be transcribed.

    `language` None: the server's default. `model`: a backend by its name, None for the preferred one. `audio`: what
    the samples are where the file does not say so itself. `webhook_result`: whether the webhook carries the transcript.
    """

    language: str | None = None
    phrases: tuple[str, ...] = ()
    model: str | None = None
    audio: AudioFormat | None = None
    webhook_result: bool = False

    @classmethod
    def parse(cls, fields: Mapping[str, str]) -> Self:
        """From fields of a form or of tus' metadata; those of other names are not looked at.

        `phrases` are separated by commas or lines; `prompt` is another name for them. `encoding`, `sample_rate` and
        `channels` describe raw samples, as for `/v1/stream`.

        Raises:
            BridgeError: `bad_request`, naming the field, or `unsupported_audio`.
        """
        return cls(
            language=_short(fields, "language", MAX_LANGUAGE_CHARS),
            phrases=_phrases(fields.get("phrases") or fields.get("prompt") or ""),
            model=_short(fields, "model", MAX_MODEL_CHARS),
            audio=_audio(fields),
            webhook_result=_flag(fields, "webhook_result"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A file to be transcribed. `blob` is its name in the `BlobStore`, `name` what its owner calls it.

    `id`: the same one again (of the same owner) means the same job, however it stands; None: a new one.
    `fingerprint`: where an `id` comes again with another one, that is a contradiction.
    """

    owner: str
    blob: str
    size: int
    sha256: str
    name: str
    options: JobOptions = JobOptions()
    webhook: str | None = field(default=None, repr=False)  # it may hold a secret
    id: str | None = None
    fingerprint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What is settled when a job is accepted. `backend` is the server's setting: workers with the same one take it.

    `loopback`: its webhook may go to the machine itself. Workers cannot know: they need no keys.
    """

    order: NewJob
    backend: str
    created: float
    traceparent: str | None = None
    loopback: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it stands now.

    `attempt` counts how often it was begun, and is the fencing token: only the newest attempt has a say. `lost` of
    these ended with their worker, `failures` with a fault of the engine. `seconds` of `total` seconds of audio (None:
    not known) are done. `engine` and `language`: what recognizes it. `code` and `message`: why it failed. `version`
    goes up with each change.
    """

    id: str
    terms: Terms
    state: State = State.QUEUED
    version: int = 1
    attempt: int = 0
    lost: int = 0
    failures: int = 0
    started: float | None = None
    finished: float | None = None
    seconds: float = 0.0
    total: float | None = None
    engine: str | None = None
    language: str | None = None
    code: str | None = None
    message: str | None = None
    notice: Notice = Notice.NONE
    notices: int = 0

    @property
    def order(self) -> NewJob:
        """What was asked for."""
        return self.terms.order

    @property
    def owner(self) -> str:
        """Whose it is."""
        return self.terms.order.owner

    @property
    def percent(self) -> float | None:
        """How far it is; None where the length of the audio is not known."""
        if self.state is State.SUCCEEDED:
            return 100.0
        if self.total is None or self.total <= 0:
            return None
        return round(min(99.9, 100 * self.seconds / self.total), 1)  # 100 is said when the result is there


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an attempt is, in seconds of audio."""

    seconds: float = 0.0
    total: float | None = None
    engine: str | None = None
    language: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job ends: with `segments`, or with a code and a sentence for its owner."""

    segments: tuple[Segment, ...] | None = None
    code: str | None = None
    message: str | None = None

    @property
    def state(self) -> State:
        """`SUCCEEDED` or `FAILED`."""
        return State.FAILED if self.segments is None else State.SUCCEEDED


_terms: Final = msgspec.json.Decoder(Terms)
_segments: Final = msgspec.json.Decoder(tuple[Segment, ...])


def encode(value: Terms | tuple[Segment, ...]) -> bytes:
    """As the stores keep it."""
    return msgspec.json.encode(value)


def decode_terms(data: bytes) -> Terms:
    """What `encode` wrote."""
    return _terms.decode(data)


def decode_segments(data: bytes) -> tuple[Segment, ...]:
    """What `encode` wrote. Takes its time for hours of speech."""
    return _segments.decode(data)


# Fields of a form


def _short(fields: Mapping[str, str], name: str, most: int) -> str | None:
    value = fields.get(name, "").strip()
    if len(value) > most or not value.isprintable():
        raise BridgeError("bad_request", f"{name}: should be at most {most} printable characters")
    return value or None


def _phrases(text: str) -> tuple[str, ...]:
    found = tuple(phrase for part in re.split(r"[,\n]", text) if (phrase := part.strip()))
    if len(found) > MAX_PHRASES or any(len(phrase) > MAX_PHRASE_CHARS for phrase in found):
        raise BridgeError(
            "bad_request", f"phrases: should be at most {MAX_PHRASES} of at most {MAX_PHRASE_CHARS} characters"
        )
    return found


def _flag(fields: Mapping[str, str], name: str) -> bool:
    value = fields.get(name, "").strip().lower()
    if value not in _TRUE | _FALSE:
        raise BridgeError("bad_request", f"{name}: should be true or false")
    return value in _TRUE


def _audio(fields: Mapping[str, str]) -> AudioFormat | None:
    if not fields.get("encoding"):
        return None
    return AudioFormat.parse(fields["encoding"], _number(fields, "sample_rate", 16_000), _number(fields, "channels", 1))


def _number(fields: Mapping[str, str], name: str, default: int) -> int:
    value = fields.get(name, "").strip()
    if not value:
        return default
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise BridgeError("bad_request", f"{name}: should be a whole number")
    return int(value)
