"""What is known of an upload. Times are seconds since 1970, sizes are bytes.

open -> complete            its pieces are joined, and the file is a job's, or waits for one
   `--> refused             what came is no audio, or too much of it
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

Kind = Literal["chunks", "tus"]
"""How its pieces are numbered: one after another, or by the offset of their first byte."""

SHORT_DIGEST: Final = 16
"""Hexadecimal digits of a SHA-256 that tell a chunk from another one that its sender sent by mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What an upload was begun with. `name` is its own among those of its owner and kind.

    `nonce` (32 hexadecimal digits) tells it from one of the same name before it, and is its job's name later.
    `fields`: options as their names and values came. `length`: None if it is not known yet.
    """

    kind: Kind
    name: str
    owner: str
    nonce: str
    created: float
    fields: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None

    @property
    def blob(self) -> str:
        """Where the whole file lies when it is complete."""
        return f"files/{self.nonce}"

    @property
    def file_name(self) -> str:
        """What its owner calls the file."""
        return self.fields.get("filename") or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How an upload ended, at the time `at`. `code` and `message`: why it was refused.

    `pieces` are the numbers of its chunks with the first digits of their SHA-256; empty for tus.
    """

    meta: Meta
    at: float
    size: int
    sha256: str
    job: str | None = None
    code: str | None = None
    message: str | None = None
    pieces: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How an upload stands, for its owner.

    `received` counts its pieces, `size` their bytes. `missing` are the first chunks that are not there, below the last
    or the highest one, of `missing_count`. `expires`: when it will be deleted if nothing more comes.
    """

    name: str
    state: Literal["open", "complete", "refused"]
    received: int
    size: int
    expires: float
    missing: tuple[int, ...] = ()
    missing_count: int = 0
    last: int | None = None
    length: int | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    sha256: str | None = None
    job: str | None = None
    code: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A file that has come whole. `job_id` is the name of its job: however often it is handed on, there is one."""

    owner: str
    blob: str
    size: int
    sha256: str
    name: str
    fields: Mapping[str, str]
    job_id: str


class Intake(Protocol):
    """What becomes of whole files."""

    def check_fields(self, fields: Mapping[str, str]) -> None:
        """Look at options before anything is uploaded.

        Raises:
            BridgeError: `bad_request`, naming the field.
        """

    async def check(self, path: Path, name: str, fields: Mapping[str, str]) -> None:
        """Look whether a file is audio, by its content.

        Raises:
            BridgeError: why it is not taken; `retryable` where that says nothing of the file.
        """

    async def take(self, whole: Whole) -> str:
        """Make a job of it; its name. The same `job_id` again is the same job.

        Raises:
            BridgeError
        """

    async def needs(self, blob: str) -> bool:
        """Whether a job that has not ended is about this file.

        Raises:
            BridgeError: nobody can tell.
        """


def key_of(kind: Kind, owner: str, name: str) -> str:
    """What an upload is called in the store: nothing of it is a client's word. It begins with `owner_key`."""
    digest = hashlib.sha256(f"{kind}\0{owner}\0{name}".encode()).hexdigest()[:32]
    return f"{owner_key(owner)}-{digest}"


def owner_key(owner: str) -> str:
    """What the names of this owner's uploads begin with."""
    return hashlib.sha256(owner.encode()).hexdigest()[:16]


_meta: Final = msgspec.json.Decoder(Meta)
_done: Final = msgspec.json.Decoder(Done)


def encode(value: Meta | Done) -> bytes:
    """As the store keeps it."""
    return msgspec.json.encode(value)


def decode_meta(data: bytes) -> Meta:
    """What `encode` wrote."""
    return _meta.decode(data)


def decode_done(data: bytes) -> Done:
    """What `encode` wrote."""
    return _done.decode(data)
