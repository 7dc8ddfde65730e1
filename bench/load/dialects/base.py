"""What the load generator says in a protocol, and what it understands: sans I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from bench.load import wire


@dataclass(frozen=True, slots=True)
class Say:
    """To be written back at once."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """Audio may be sent. `backend`: who recognizes, if the server says so."""

    backend: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Words. `end`: seconds of audio that they cover; None where the protocol tells none."""

    text: str
    end: float | None
    final: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """The session is over, in order or not. `received`: samples that the server says it got, if it says so.

    `reason`: the server's word for why, if it has one.
    """

    ok: bool
    received: int | None = None
    reason: str = ""


Heard = Say | Opened | Text | Ended


class Dialect(ABC):
    """One session's part of a conversation."""

    name: ClassVar[str]
    words: ClassVar[bool] = True
    """Whether servers of this kind say any."""

    @abstractmethod
    def hello(self, host: str, port: int, path: str, key: str = "") -> bytes:
        """The first bytes on the connection, with an API key where the server wants one."""

    @classmethod
    @abstractmethod
    def audio(cls, pcm: bytes) -> bytes:
        """The bytes of one frame of PCM16LE mono at 16 kHz; made once, and shared by all sessions."""

    @abstractmethod
    def finish(self) -> bytes:
        """No more audio comes."""

    @abstractmethod
    def receive(self, data: bytes) -> list[Heard]:
        """What the server's bytes say."""


class WebSocketDialect(Dialect):
    """One that begins with an upgrade."""

    def __init__(self) -> None:
        self._reader = wire.Reader()

    def hello(self, host: str, port: int, path: str, key: str = "") -> bytes:
        """The upgrade."""
        return wire.upgrade(host, port, path, key)
