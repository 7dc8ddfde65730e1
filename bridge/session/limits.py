"""What bounds one session, and whom it tells what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What bounds one session; seconds unless named otherwise. `bridge.settings` says what each is for."""

    session_seconds: float = 14_400
    idle_seconds: float = 60
    queue_seconds: float = 5
    replay_seconds: float = 90
    ack_seconds: float = 1
    stall_seconds: float = 30
    stop_seconds: float = 120
    reopen_seconds: float = 60
    outbox_events: int = 256
    message_bytes: int = 1_048_576


class SessionObserver(Protocol):
    """What a session tells its metrics; every method is cheap and never raises."""

    def audio(self, seconds: float) -> None:
        """So much audio was received."""

    def given(self, backend: str, seconds: float) -> None:
        """A backend stream ended that was given so much audio."""

    def partial(self, backend: str, latency: float, *, first: bool) -> None:
        """A partial left, so long after the audio that it covers had arrived; `first` of its utterance."""

    def final(self, backend: str, latency: float) -> None:
        """A final left, so long after the audio that it covers had arrived."""

    def backend_error(self, backend: str, code: str) -> None:
        """A backend stream failed."""

    def moved(self, left: str, taken: str) -> None:
        """Another backend went on in the place of the one that failed."""

    def queued(self, seconds: float) -> None:
        """So much audio waits for the backend, seen when a final or partial comes."""
