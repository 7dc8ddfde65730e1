"""What an emulator has seen, for tests and for its log."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

KEPT: Final = 10_000
"""Ended streams and configs that are remembered."""


@dataclass(frozen=True, slots=True)
class EndedStream:
    """One stream that is over. `status`: a gRPC status name; `requests`: messages taken, the config included."""

    number: int
    api: str
    status: str
    audio_seconds: float
    requests: int


@dataclass(slots=True)
class Stats:
    """Counters of the whole server; they go on over `kill` and `start`."""

    opened: int = 0
    """Streams, those without a config included."""
    open: int = 0
    peak: int = 0
    """Most streams open at once."""
    largest_audio: int = 0
    """Bytes of the longest audio message."""
    ended: deque[EndedStream] = field(default_factory=lambda: deque(maxlen=KEPT))
    configs: deque[Any] = field(default_factory=lambda: deque(maxlen=KEPT))
    """First messages, as they came (raw protobuf)."""
    peers: Counter[str] = field(default_factory=Counter)
    """Open streams of each connection."""
    peak_connections: int = 0
    _waiting: set[asyncio.Event] = field(default_factory=set)

    @property
    def connections(self) -> int:
        """Connections with an open stream."""
        return len(self.peers)

    def begin(self, peer: str) -> int:
        """Count a stream; its number, from 0."""
        self.opened += 1
        self.open += 1
        self.peak = max(self.peak, self.open)
        self.peers[peer] += 1
        self.peak_connections = max(self.peak_connections, self.connections)
        self.changed()
        return self.opened - 1

    def end(self, peer: str, stream: EndedStream) -> None:
        """A stream that was counted is over."""
        self.open -= 1
        self.peers[peer] -= 1
        if not self.peers[peer]:
            del self.peers[peer]
        self.ended.append(stream)
        self.changed()

    def changed(self) -> None:
        """Wake those who wait."""
        for event in self._waiting:
            event.set()

    async def until(self, condition: Callable[[Stats], bool], seconds: float = 5.0) -> None:
        """Wait until the condition holds; looked at whenever a stream begins, is configured or ends.

        Raises:
            TimeoutError: it did not within so many seconds.
        """
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            async with asyncio.timeout(seconds):
                while not condition(self):
                    event.clear()
                    await event.wait()
        finally:
            self._waiting.discard(event)
