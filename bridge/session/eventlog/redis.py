"""The event log in Redis (6.2 or later), for several servers: any of them may go on with a session of another.

A stream for each session, beside a hash with its record; scripts keep both in step (see `redis_scripts`). What is
written survives the death of any server, and that of Redis as far as Redis writes to its disk (`appendonly yes`). If it
comes back without its data, the owners of live sessions write them anew.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final, TypeVar

from bridge.cluster.client import Call, RedisClient
from bridge.protocols.events import Closed, LastingEvent, ServerEvent
from bridge.session.eventlog import redis_scripts as scripts
from bridge.session.eventlog.base import (
    PAGE,
    Entry,
    EventLog,
    LogUnavailableError,
    Outcome,
    SessionExistsError,
    SessionRecord,
    decode_event,
    encode_event,
)
from bridge.session.eventlog.codec import decode_progress, decode_start, encode, encode_lines
from bridge.session.eventlog.redis_passing import Announcer, Subscriber

log = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 0.9
"""That a caller waits at most: less than the second for which a session waits for its events to be written."""
CONNECTIONS: Final = 8
"""At once; who finds none free waits within the same time."""
TOUCHED_AT_ONCE: Final = 256
"""Sessions of one round trip of a beat."""
TOMBSTONE_SECONDS: Final = 86_400.0
"""A deleted session's id is kept at least so long: its owner may be silent for hours before it writes again."""
LAST_SEQ: Final = (1 << 63) - 1
"""No event has a greater number."""
NODE_SECONDS: Final = 30
"""A node that has not beaten for so long has no receivers."""

T = TypeVar("T")


class RedisLog(EventLog):
    """`url`: `redis://[[USER]:PASSWORD@]HOST[:PORT][/NUMBER]`, `rediss://…` or `unix://PATH`.

    Also where `open` has failed, it may be used: it connects when Redis is there.
    """

    shared = True
    forgetful = True

    def __init__(self, url: str, node: str, retention_seconds: float) -> None:
        super().__init__(node, retention_seconds)
        self._retention = str(max(1, round(retention_seconds * 1_000)))
        self._redis = RedisClient(
            url, "the event log", LogUnavailableError, answer_seconds=ANSWER_SECONDS, connections=CONNECTIONS
        )
        self._orders = itertools.count(1)
        self._owned: dict[str, int] = {}
        """The epoch of each session that this node must keep alive."""
        self._receivers: dict[str, int] = {}
        self._subscriber = Subscriber(self._redis.pool)
        self._announcer: Announcer | None = None

    # Opening and closing

    async def open(self) -> None:
        """See `EventLog`.

        Raises:
            LogUnavailableError: Redis cannot be reached, or refuses this client.
        """
        loop = asyncio.get_running_loop()
        self._announcer = Announcer(self._redis.redis, loop.time)
        await self._redis.check_memory("sessions")

    async def close(self) -> None:
        """See `EventLog`."""
        await self._subscriber.close()
        if self._announcer is not None:
            await self._announcer.close()
        await self._redis.close()

    # A session's life

    async def create(self, record: SessionRecord, *, replace: bool = False) -> None:
        """See `EventLog`. One that goes on in a later epoch than the record's is not replaced."""
        fields: dict[str, Any] = {
            "token_digest": record.token_digest,
            "start": encode(record.start),
            "language": record.language,
            "backend": record.backend,
            "protocol": record.protocol,
            "created": repr(record.created),
            "progress": encode(record.progress),
            "seq": record.seq,
        }
        if record.ended is not None:
            fields |= {"ended": repr(record.ended), "code": record.code or ""}
        args = [self.node, record.epoch, next(self._orders), self._retention, int(replace)]
        if not await self._redis.call(
            scripts.CREATE, _keys(record.session_id, "hedr"), args + list(itertools.chain.from_iterable(fields.items()))
        ):
            raise SessionExistsError(record.session_id)
        if record.ended is None:
            self._owned[record.session_id] = record.epoch

    async def write(self, entries: Sequence[Entry]) -> list[Outcome]:
        """See `EventLog`; one round trip for all, each entry by itself whole or not at all."""
        calls: list[Call] = []
        for entry in entries:
            code = ""
            args: list[Any] = [entry.epoch, next(self._orders), self._retention, encode(entry.progress), entry.backend]
            events: list[Any] = []
            for event in entry.events:
                if event.seq is not None:
                    events += [event.seq, *encode_event(event)]
                    code = event.code if isinstance(event, Closed) else code
            calls.append((scripts.WRITE, _keys(entry.session_id, "hedc"), [self.node, *args, code, *events]))
        outcomes = []
        for entry, (answer, following) in zip(entries, await self._redis.run(calls), strict=True):
            outcome = Outcome(answer.decode())
            outcomes.append(outcome)
            if outcome is not Outcome.WRITTEN or any(isinstance(event, Closed) for event in entry.events):
                self._owned.pop(entry.session_id, None)
            if outcome is Outcome.WRITTEN and entry.events and self._announcer is not None:
                self._announcer.heard(_key(entry.session_id, "c"), following)
        return outcomes

    async def read(self, session_id: str) -> SessionRecord | None:
        """The session; None if it is not known, or deleted."""
        found = await self._redis.ask(self._redis.redis.hgetall(_key(session_id, "h")))
        return _record(session_id, found)

    async def events(self, session_id: str, from_seq: int, limit: int = PAGE) -> list[LastingEvent]:
        """Its events from this number on, in order, at most `limit`."""
        first = f"{min(max(0, from_seq), LAST_SEQ)}-0"
        found = await self._redis.ask(self._redis.redis.xrange(_key(session_id, "e"), min=first, max="+", count=limit))
        return [decode_event(fields[b"k"].decode(), fields[b"d"]) for _, fields in found]

    async def claim(self, session_id: str) -> SessionRecord | None:
        """Make this node the owner, unless the session has ended: then the record is as it was."""
        args = [self.node, next(self._orders), self._retention]
        found = await self._redis.call(scripts.CLAIM, _keys(session_id, "he"), args)
        record = _record(session_id, dict(zip(found[::2], found[1::2], strict=True)))
        if record is not None and record.ended is None:
            self._owned[session_id] = record.epoch
        return record

    async def release(self, session_id: str, epoch: int) -> None:
        """Nobody owns the session from now on, `owner` is empty; its time to be resumed begins."""
        await self._redis.call(scripts.TOUCH, _keys(session_id, "he"), [self.node, epoch, self._retention, 1])
        self._owned.pop(session_id, None)

    async def delete(self, session_id: str) -> bool:
        """See `EventLog`."""
        kept = max(self.retention_seconds, TOMBSTONE_SECONDS)
        known = await self._redis.call(scripts.DELETE, _keys(session_id, "hedr"), [round(kept * 1_000)])
        self._owned.pop(session_id, None)
        return bool(known)

    async def beat(self) -> None:
        """See `EventLog`. Every ten seconds or so: `NODE_SECONDS` without one, and its receivers are forgotten."""
        for some in _chunks(list(self._owned.items())):
            calls = [(scripts.TOUCH, _keys(s, "he"), [self.node, epoch, self._retention, 0]) for s, epoch in some]
            for (session_id, epoch), alive in zip(some, await self._redis.run(calls), strict=True):
                if not alive and self._owned.get(session_id) == epoch:
                    del self._owned[session_id]
        for some in _chunks(list(self._receivers.items())):
            await self._redis.run([self._say_receivers(session_id, count) for session_id, count in some])

    async def sweep(self) -> int:
        """Nothing: Redis forgets by itself."""
        return 0

    # Several servers

    async def announce(self, session_id: str, events: Sequence[ServerEvent]) -> None:
        """See `EventLog`. Never waits; says nothing while nobody follows, or Redis is away."""
        if self._announcer is not None:
            self._announcer.put(_key(session_id, "c"), lambda: encode_lines(events))

    def follow(self, session_id: str) -> AsyncGenerator[list[ServerEvent]]:
        """See `EventLog`. An event may come twice, where its owner had to write it twice."""
        return self._subscriber.follow(_key(session_id, "c"))

    async def set_receivers(self, session_id: str, count: int) -> None:
        """See `EventLog`. Said again at each beat, so that it is right at last even where this fails."""
        if count:
            self._receivers[session_id] = count
        else:
            self._receivers.pop(session_id, None)
        await self._redis.run([self._say_receivers(session_id, count)])

    def _say_receivers(self, session_id: str, count: int) -> Call:
        return scripts.SET_RECEIVERS, _keys(session_id, "r"), [self.node, count, NODE_SECONDS]

    async def receivers(self, session_id: str) -> int:
        """Receivers of the session at other nodes."""
        return int(await self._redis.call(scripts.RECEIVERS, _keys(session_id, "r"), [self.node, NODE_SECONDS]))


def _key(session_id: str, which: str) -> str:
    return f"{{stt:{session_id}}}:{which}"


def _keys(session_id: str, which: str) -> list[str]:
    return [_key(session_id, letter) for letter in which]


def _chunks(items: list[T]) -> list[list[T]]:
    return [items[i : i + TOUCHED_AT_ONCE] for i in range(0, len(items), TOUCHED_AT_ONCE)]


def _record(session_id: str, found: dict[bytes, bytes]) -> SessionRecord | None:
    if not found:
        return None
    ended = found.get(b"ended")
    return SessionRecord(
        session_id=session_id,
        token_digest=found[b"token_digest"],
        start=decode_start(found[b"start"]),
        language=found[b"language"].decode(),
        backend=found[b"backend"].decode(),
        protocol=found[b"protocol"].decode(),
        owner=found[b"owner"].decode(),
        created=float(found[b"created"]),
        progress=decode_progress(found[b"progress"]),
        touched=float(found[b"touched"]),
        epoch=int(found[b"epoch"]),
        seq=int(found[b"seq"]),
        ended=None if ended is None else float(ended),
        code=None if ended is None else found[b"code"].decode(),
    )
