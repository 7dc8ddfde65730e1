"""What passes between servers by way of Redis: the events that a session's owner publishes, and who follows them.

Publishing may be lost, which is why nothing depends on it: whoever follows is told when it may have missed something,
and reads the log.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from bridge.protocols.events import ServerEvent
from bridge.session.eventlog.base import LogUnavailableError
from bridge.session.eventlog.codec import decode_lines
from bridge.session.eventlog.follower import Follower

log = logging.getLogger(__name__)

PING_SECONDS: Final = 5.0
"""After so much silence the connection is tried; it is dead when it is silent for as long again."""
BACKOFF_BASE: Final = 0.05
BACKOFF_CAP: Final = 1.0
"""Seconds between tries to connect again, with full jitter."""
CONNECT_SECONDS: Final = 1.0
ANNOUNCEMENTS: Final = 1_024
"""Messages that wait to be published; the oldest makes room."""
PUBLISHED_AT_ONCE: Final = 128
QUIET_SECONDS: Final = 1.0
"""Nothing is announced for so long after it was heard by nobody, or Redis was away."""
QUIET_SESSIONS: Final = 4_096


class Subscriber:
    """A node's one connection that listens, for every session that somebody here follows. Reconnects by itself."""

    def __init__(self, pool: BlockingConnectionPool) -> None:
        self._pool = pool
        self._followers: dict[bytes, set[Follower]] = {}
        self._live: set[bytes] = set()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def close(self) -> None:
        """End everything that is followed."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._wake_all()

    async def follow(self, channel: str) -> AsyncGenerator[list[ServerEvent]]:
        """See `EventLog.follow`."""
        name = channel.encode()
        follower = Follower()
        if self._closed:
            return
        self._followers.setdefault(name, set()).add(follower)
        if name in self._live:
            follower.miss()
        self._changed.set()
        if self._task is None:
            # For all of them: no work of the one who came first, whose trace it would log.
            self._task = asyncio.create_task(self._run(), name="event-log-subscriber", context=contextvars.Context())
            self._task.add_done_callback(lambda _: self._wake_all())
        try:
            while not self._closed:
                if (events := follower.take()) is not None:
                    yield events
                elif self._task.done():
                    raise LogUnavailableError("the event log's subscriber broke") from self._task.exception()
                else:
                    await follower.wake.wait()
        finally:
            there = self._followers[name]
            there.discard(follower)
            if not there:
                del self._followers[name]
                self._changed.set()

    def _wake_all(self) -> None:
        for followers in self._followers.values():
            for follower in followers:
                follower.wake.set()

    # The task

    async def _run(self) -> None:
        failures = 0
        while True:
            connection = self._pool.connection_class(**self._pool.connection_kwargs)
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await connection.connect()  # type: ignore[no-untyped-call, unused-ignore]
                failures = 0
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._subscribe(connection), name="event-log-subscribe")
                    group.create_task(self._listen(connection), name="event-log-listen")
            except* (RedisError, OSError) as caught:  # a TimeoutError is an OSError
                if not failures:
                    log.info("the event log's publishing is away: %s", caught.exceptions[0])
            finally:
                self._live.clear()
                await connection.disconnect(nowait=True)
            failures = min(failures + 1, 16)
            await asyncio.sleep(random.uniform(0, min(BACKOFF_CAP, BACKOFF_BASE * 2**failures)))  # noqa: S311

    async def _subscribe(self, connection: AbstractConnection) -> None:
        """Keep the connection's subscriptions those that are wanted."""
        there: set[bytes] = set()
        self._changed.set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            wanted = set(self._followers)
            if gone := there - wanted:
                self._live -= gone
                await connection.send_command("UNSUBSCRIBE", *gone)
            if new := wanted - there:
                await connection.send_command("SUBSCRIBE", *new)
            there = wanted

    async def _listen(self, connection: AbstractConnection) -> None:
        asked = False
        while True:
            answer = await connection.read_response(timeout=PING_SECONDS)
            if answer is not None:
                asked = False
                self._take(answer)
            elif asked:
                raise TimeoutError("it does not answer")
            else:
                asked = True
                await connection.send_command("PING")

    def _take(self, answer: Any) -> None:
        """One message: [kind, channel, what]; a PING's answer, [pong, ''], or PONG before the first subscription."""
        if not isinstance(answer, list) or len(answer) != 3:
            return
        kind, channel, data = answer
        followers = self._followers.get(channel, set())
        if kind == b"subscribe":
            if followers:
                self._live.add(channel)
            for follower in followers:
                follower.miss()
        elif kind == b"message":
            try:
                events = decode_lines(data)
            except LogUnavailableError as exc:
                log.warning("what another server tells is not understood: %s", exc)
                events = None
            for follower in followers:
                follower.miss() if events is None else follower.put(events)


class Announcer:
    """Publishes passing events, from a bounded queue, for sessions that somebody follows."""

    def __init__(self, client: Redis, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._waiting: deque[tuple[str, bytes]] = deque(maxlen=ANNOUNCEMENTS)
        self._quiet: dict[str, float] = {}
        self._away = -math.inf
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """What waits is dropped."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def heard(self, channel: str, following: int) -> None:
        """So many heard what was published there."""
        self._quiet.pop(channel, None)
        if not following:
            if len(self._quiet) >= QUIET_SESSIONS:  # the oldest is over first
                del self._quiet[next(iter(self._quiet))]
            self._quiet[channel] = self._clock() + QUIET_SECONDS

    def put(self, channel: str, message: Callable[[], bytes]) -> None:
        """Publish what `message` makes, unless nobody would hear it. Never waits, never raises for an outage."""
        now = self._clock()
        if now < self._away or now < self._quiet.get(channel, -math.inf):
            return
        self._waiting.append((channel, message()))
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="event-log-announcer", context=contextvars.Context())

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), PUBLISHED_AT_ONCE))]
                try:
                    async with asyncio.timeout(CONNECT_SECONDS), self._client.pipeline(transaction=False) as pipe:
                        for channel, message in batch:
                            pipe.publish(channel, message)
                        following = await pipe.execute()
                except (RedisError, OSError) as exc:
                    log.debug("passing events were not announced: %s", exc)
                    self._waiting.clear()
                    self._away = self._clock() + QUIET_SECONDS
                else:
                    for (channel, _), count in zip(batch, following, strict=True):
                        self.heard(channel, count)
