"""Sessions as who asks about them sees them: state, finals, and how one is deleted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from bridge.protocols.events import Final, Presence

_NAME = re.compile(r"[A-Za-z0-9._~-]{1,128}")


def can_be_session(name: str) -> bool:
    """Whether a session can be called so. Nothing else gets as far as a log's queries and keys."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class SessionState:
    """How a session stands.

    `code` and `ended` are None while it goes on; `created` and `ended` are seconds since 1970. `seq`: its last event.
    `received` and `finalized`: seconds of audio. `receivers`: at all nodes. `stored`: whether the event log has it.
    """

    session_id: str
    state: Presence
    code: str | None
    backend: str
    language: str
    protocol: str
    created: float
    ended: float | None
    seq: int
    received: float
    finalized: float
    receivers: int
    stored: bool


class SessionDirectory(Protocol):
    """All sessions that go on or are kept, here or at another node of the same log.

    Each method may be cancelled, and raises `BridgeError` (`log_unavailable`) where the answer lies in a log that
    cannot be reached.
    """

    async def describe(self, session_id: str) -> SessionState | None:
        """Its state; None if it is not known, or no longer."""

    async def finals(self, session_id: str) -> list[Final]:
        """Its finals so far, in order of `seq`; empty if it is not known."""

    async def delete(self, session_id: str) -> bool:
        """Forget it and all it said; one that goes on ends with the code `deleted`. Whether it was known."""
