"""Writes what many sessions have into the event log's tables, in few statements.

SQLite's module gives up the interpreter's lock at every step of a statement, and takes it again. Where the event loop
is busy, each taking costs up to the interpreter's switch interval (5 ms), so a statement for each session and a step
for each row would make a batch of 64 sessions last for a second. Here a batch takes five steps, however large it is:
rows go in and come out as one JSON text.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from bridge.protocols.events import Closed, LastingEvent
from bridge.session.eventlog.base import Entry, Outcome, encode_event
from bridge.session.eventlog.codec import encode
from bridge.session.eventlog.sqlite_tables import PLACES

EVENT_CHARS: Final = 262_144
"""Of events in one statement, about: what gathered while the log was away, or long texts, are not copied as a whole."""

_KNOWN: Final = (
    "SELECT json_group_array(json_array(session_id, id, owner, epoch, seq)) FROM sessions "
    "WHERE session_id IN (SELECT value FROM json_each(?))"
)
_DELETED: Final = (
    "SELECT json_group_array(session_id) FROM deleted WHERE session_id IN (SELECT value FROM json_each(?))"
)
_EVENTS: Final = (
    "INSERT INTO events (place, kind, data) SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), "
    "CAST(json_extract(value, '$[2]') AS BLOB) FROM json_each(?)"
)
_SESSIONS: Final = (
    "UPDATE sessions SET seq = new.seq, progress = CAST(new.progress AS BLOB), backend = new.backend, touched = ?1, "
    "ended = CASE WHEN new.code IS NULL THEN ended ELSE ?1 END, code = coalesce(new.code, sessions.code) "
    "FROM (SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS seq, "
    "json_extract(value, '$[2]') AS progress, json_extract(value, '$[3]') AS backend, "
    "json_extract(value, '$[4]') AS code FROM json_each(?2)) AS new WHERE sessions.id = new.id"
)


class _Known(NamedTuple):
    """A session as the log has it."""

    session_id: str
    id: int
    owner: str
    epoch: int
    seq: int


_encoder: Final = msgspec.json.Encoder()
_known: Final = msgspec.json.Decoder(list[_Known])
_names: Final = msgspec.json.Decoder(list[str])


def write(db: sqlite3.Connection, entries: Sequence[Entry], node: str, now: float) -> list[Outcome]:
    """Write them as `node`, within the transaction that the caller has begun; an outcome for each, in order."""
    names = _json({entry.session_id for entry in entries})
    known = {row.session_id: row for row in _known.decode(db.execute(_KNOWN, (names,)).fetchone()[0])}
    events: list[tuple[int, str, str]] = []
    sessions: dict[int, tuple[int, int, str, str, str | None]] = {}
    outcomes: list[Outcome] = []
    deleted: set[str] | None = None
    for entry in entries:
        row = known.get(entry.session_id)
        if row is None:
            if deleted is None:
                deleted = set(_names.decode(db.execute(_DELETED, (names,)).fetchone()[0]))
            outcomes.append(Outcome.DELETED if entry.session_id in deleted else Outcome.MISSING)
        elif (row.owner, row.epoch) != (node, entry.epoch):
            outcomes.append(Outcome.SUPERSEDED)
        elif (new := _following(entry, row.seq)) is None:
            outcomes.append(Outcome.MISSING)
        else:
            first = row.id * PLACES + row.seq + 1
            for place, event in enumerate(new, first):
                kind, data = encode_event(event)
                events.append((place, kind, data.decode()))
            code = next((event.code for event in reversed(new) if isinstance(event, Closed)), None)
            seq = row.seq + len(new)
            if row.id in sessions:  # it stands in the batch twice
                code = code or sessions[row.id][-1]
            sessions[row.id] = (row.id, seq, encode(entry.progress).decode(), entry.backend, code)
            known[entry.session_id] = row._replace(seq=seq)
            outcomes.append(Outcome.WRITTEN)
    for some in _portions(events):
        db.execute(_EVENTS, (_json(some),))
    if sessions:
        db.execute(_SESSIONS, (now, _json(sessions.values())))
    return outcomes


def _following(entry: Entry, seq: int) -> list[LastingEvent] | None:
    """The entry's events behind the number that the log has; None if they leave a gap."""
    new = {event.seq: event for event in entry.events if event.seq is not None and event.seq > seq}
    return list(new.values()) if list(new) == list(range(seq + 1, seq + 1 + len(new))) else None


def _portions(events: Iterable[tuple[int, str, str]]) -> Iterator[list[tuple[int, str, str]]]:
    some: list[tuple[int, str, str]] = []
    chars = 0
    for event in events:
        some.append(event)
        chars += len(event[2])
        if chars >= EVENT_CHARS:
            yield some
            some, chars = [], 0
    if some:
        yield some


def _json(values: Iterable[Any]) -> str:
    return _encoder.encode(list(values)).decode()
