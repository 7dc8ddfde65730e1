"""The event log in an SQLite file that several processes of one server share.

The file has what is lasting. What passes, and that there is something new to be read, the processes tell each other,
those that have receivers of the session. Such a message may be lost: a gap in the numbers shows it, and at each beat
everybody reads the file, and says again how many receivers it has.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from bridge.protocols.events import LastingEvent, ServerEvent
from bridge.session.eventlog.base import Entry, LogUnavailableError, Outcome
from bridge.session.eventlog.codec import decode_lines, encode_lines
from bridge.session.eventlog.follower import Follower
from bridge.session.eventlog.sqlite import SqliteLog

_EVENTS: Final = "events"
_RECEIVERS: Final = "receivers"
_COUNT_BYTES: Final = 4


class Siblings(Protocol):
    """The other processes of this server, by their numbers."""

    @property
    def siblings(self) -> frozenset[int]:
        """Those that serve now."""

    def when_siblings_change(self, tell: Callable[[], None]) -> None:
        """Call this whenever one has come or gone."""

    def on(self, topic: str, handler: Callable[[int, bytes], None]) -> None:
        """Call this with the number of who says something of the topic, and what it says."""

    def post(self, topic: str, body: bytes, to: int = 0) -> None:
        """Tell one, or all of them (0). Never waits, and may be lost."""


class SiblingsLog(SqliteLog):
    """One process's."""

    shared = True

    def __init__(self, path: Path | None, node: str, retention_seconds: float, siblings: Siblings) -> None:
        super().__init__(path, node, retention_seconds)
        self._siblings = siblings
        self._known: frozenset[int] = frozenset()
        self._followers: dict[str, set[Follower]] = {}
        self._here: dict[str, int] = {}
        """Receivers of each session in this process."""
        self._there: dict[str, dict[int, int]] = {}
        """And in the others."""
        siblings.when_siblings_change(self._changed)
        siblings.on(_EVENTS, self._take_events)
        siblings.on(_RECEIVERS, self._take_receivers)

    def heard_elsewhere(self, session_id: str) -> bool:
        """See `EventLog`."""
        return session_id in self._there

    async def write(self, entries: Sequence[Entry]) -> list[Outcome]:
        """See `EventLog`."""
        outcomes = await super().write(entries)
        for entry, outcome in zip(entries, outcomes, strict=True):
            if outcome is Outcome.WRITTEN:
                self._pass_on(entry.session_id, entry.events)
        return outcomes

    async def announce(self, session_id: str, events: Sequence[ServerEvent]) -> None:
        """See `EventLog`."""
        self._pass_on(session_id, events)

    async def follow(self, session_id: str) -> AsyncGenerator[list[ServerEvent]]:
        """See `EventLog`."""
        follower = Follower()
        follower.miss()
        there = self._followers.setdefault(session_id, set())
        there.add(follower)
        try:
            while True:
                if (events := follower.take()) is None:
                    await follower.wake.wait()
                else:
                    yield events
        finally:
            there.discard(follower)
            if not there and self._followers.get(session_id) is there:
                del self._followers[session_id]

    async def set_receivers(self, session_id: str, count: int) -> None:
        """See `EventLog`."""
        if count:
            self._here[session_id] = count
        else:
            self._here.pop(session_id, None)
        self._say_receivers(session_id, count)

    async def receivers(self, session_id: str) -> int:
        """See `EventLog`."""
        return sum(self._there.get(session_id, {}).values())

    async def beat(self) -> None:
        """See `EventLog`."""
        for session_id, count in self._here.items():
            self._say_receivers(session_id, count)
        for session_id in self._followers:
            self._read_again(session_id)
        await super().beat()

    # What processes tell each other

    def _pass_on(self, session_id: str, events: Sequence[LastingEvent] | Sequence[ServerEvent]) -> None:
        there = self._there.get(session_id)
        if there and events:
            body = session_id.encode() + b"\n" + encode_lines(events)
            for process in there:
                self._siblings.post(_EVENTS, body, process)

    def _say_receivers(self, session_id: str, count: int, to: int = 0) -> None:
        self._siblings.post(_RECEIVERS, count.to_bytes(_COUNT_BYTES) + session_id.encode(), to)

    def _take_events(self, _: int, body: bytes) -> None:
        name, _nl, lines = body.partition(b"\n")
        session_id = name.decode()
        try:
            events = decode_lines(lines)
        except LogUnavailableError:
            events = []
        if not events:
            self._read_again(session_id)
        for follower in self._followers.get(session_id, ()) if events else ():
            follower.put(events)

    def _take_receivers(self, sender: int, body: bytes) -> None:
        count, session_id = int.from_bytes(body[:_COUNT_BYTES]), body[_COUNT_BYTES:].decode()
        there = self._there.setdefault(session_id, {})
        if count:
            if sender not in there:  # it has heard nothing of what was written before this moment
                self._siblings.post(_EVENTS, session_id.encode() + b"\n", sender)
            there[sender] = count
        else:
            there.pop(sender, None)
        if not there:
            del self._there[session_id]

    def _read_again(self, session_id: str) -> None:
        for follower in self._followers.get(session_id, ()):
            follower.miss()

    def _changed(self) -> None:
        """Somebody has come or gone: a new one knows nothing, and one that is gone has no receivers."""
        now = self._siblings.siblings
        for session_id, there in list(self._there.items()):
            for process in there.keys() - now:
                del there[process]
            if not there:
                del self._there[session_id]
        for process in now - self._known:
            for session_id, count in self._here.items():
                self._say_receivers(session_id, count, process)
        self._known = now
