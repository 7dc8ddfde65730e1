"""Jobs in Redis, for any number of servers and workers.

What is answered survives the death of any of them, and that of Redis as far as Redis writes to its disk (`appendonly
yes`; `appendfsync always` for its power failures, too). Scripts do each step (`redis_scripts`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from bridge.background import for_ever
from bridge.cluster.client import RedisClient
from bridge.cluster.script import Script
from bridge.jobs import redis_scripts as scripts
from bridge.jobs.delivery import Courier
from bridge.jobs.models import Job, Notice, Outcome, Progress, State, Terms, encode
from bridge.jobs.redis_scripts import PREFIX
from bridge.jobs.store import (
    LOST,
    LOST_MESSAGE,
    JobConflictError,
    JobStore,
    Rules,
    StoreFullError,
    StoreUnavailableError,
    job_of,
)

log = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 5.0
CONNECTIONS: Final = 16
SWEEP_JOBS: Final = 100
PAGE: Final = 100
"""Jobs that are read at once while a page is put together."""
AGAIN_SECONDS: Final = 1.0
"""After which the connection that hears of changes is made again."""
PING_SECONDS: Final = 5.0

_TEXTS: Final = frozenset({"id", "state", "engine", "language", "code", "message", "notice"})
_COUNTS: Final = frozenset({"version", "attempt", "lost", "failures", "notices"})
_NUMBERS: Final = frozenset({"started", "finished", "seconds", "total"})


class RedisJobStore(JobStore):
    """`url` as `RedisClient` knows it. Where Redis goes away, it may be used again when Redis is back."""

    shared = True

    def __init__(self, url: str, rules: Rules) -> None:
        super().__init__(rules)
        self.url = url
        self._redis = RedisClient(
            url, "the store of jobs", StoreUnavailableError, answer_seconds=ANSWER_SECONDS, connections=CONNECTIONS
        )
        self._listening: asyncio.Task[None] | None = None
        self._couriers: dict[str, Courier] = {}

    async def open(self) -> None:
        """See `JobStore`.

        Raises:
            StoreUnavailableError: Redis cannot be reached, or refuses this client.
        """
        await self._redis.check_memory("jobs")
        self._listening = for_ever(self._listen, "job-changes")

    async def close(self) -> None:
        """See `JobStore`."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        for courier in self._couriers.values():
            await courier.close()
        await self._redis.close()

    async def _listen(self) -> None:
        """Ring for what others do, for as long as the store is open."""
        client: Redis = self._redis.redis
        while True:
            try:
                async with client.pubsub() as channel:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        await channel.subscribe(f"{PREFIX}changes")
                    while True:
                        async with asyncio.timeout(2 * PING_SECONDS):
                            message = await channel.get_message(timeout=PING_SECONDS)
                            if message is None:
                                await channel.ping()
                                continue
                        if message["type"] == "subscribe":  # also when redis-py has connected again by itself
                            self.changes.ring_all()  # what came before is not told
                        elif message["type"] == "message":
                            self.changes.ring(message["data"].decode())
            except (RedisError, OSError) as exc:  # a TimeoutError is an OSError
                log.warning("%s: changes are not heard: %s", self._redis.name, exc or "no answer")
            await asyncio.sleep(AGAIN_SECONDS)

    async def _call(self, script: Script, *args: Any) -> Any:
        return await self._redis.call(script, [PREFIX], args)

    # For whoever asks for a transcript

    async def submit(self, job_id: str, terms: Terms) -> Job:
        """See `JobStore`."""
        order = terms.order
        told = int(order.webhook is not None)
        became, found = await self._call(
            scripts.SUBMIT,
            job_id,
            order.owner,
            terms.backend,
            order.blob,
            order.fingerprint,
            told,
            repr(terms.created),
            encode(terms),
            self.rules.waiting,
        )
        if became == b"conflict":
            raise JobConflictError(job_id)
        if became == b"full":
            raise StoreFullError
        job = _job_of_pairs(found)
        if job is None:
            raise StoreUnavailableError("a job is gone in the moment in which it was made")
        if became == b"new":
            await self._courier(terms.backend).send(job_id)
        return job

    async def get(self, job_id: str) -> Job | None:
        """See `JobStore`."""
        return _job(await self._redis.ask(self._redis.redis.hgetall(f"{PREFIX}j:{job_id}")))

    async def result(self, job_id: str) -> bytes | None:
        """See `JobStore`."""
        found: bytes | None = await self._redis.ask(self._redis.redis.get(f"{PREFIX}r:{job_id}"))
        return found

    async def page(self, owner: str, state: State | None, after: str | None, limit: int) -> list[Job]:
        """See `JobStore`. Reads on until enough are in the wanted state."""
        key, redis = f"{PREFIX}o:{owner}", self._redis.redis
        begin = 0
        if after is not None:
            rank = await self._redis.ask(redis.zrevrank(key, after))
            if rank is None:
                return []
            begin = rank + 1
        jobs: list[Job] = []
        while len(jobs) < limit:
            names = await self._redis.ask(redis.zrevrange(key, begin, begin + PAGE - 1))
            if not names:
                break
            begin += PAGE
            async with redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hgetall(f"{PREFIX}j:{name.decode()}")
                found = [_job(row) for row in await self._redis.ask(pipe.execute())]
            jobs += [job for job in found if job is not None and state in (None, job.state)]
        return jobs[:limit]

    async def cancel(self, job_id: str) -> Job | None:
        """See `JobStore`."""
        job = _job_of_pairs(await self._call(scripts.CANCEL, job_id))
        self.changes.offer_notice()
        return job

    async def delete(self, job_id: str) -> bool:
        """See `JobStore`."""
        return bool(await self._call(scripts.DELETE, job_id))

    async def needs(self, blob: str) -> bool:
        """See `JobStore`."""
        return bool(await self._redis.ask(self._redis.redis.hexists(f"{PREFIX}b", blob)))

    # For workers

    async def claim(self, backend: str) -> Job | None:
        """See `JobStore`."""
        rules = self.rules
        return _job_of_pairs(
            await self._call(scripts.CLAIM, backend, rules.lease_seconds, rules.attempts, LOST, LOST_MESSAGE)
        )

    async def beat(self, job: Job, progress: Progress) -> bool:
        """See `JobStore`."""
        fields = _fields(progress)
        return bool(await self._call(scripts.BEAT, job.id, job.attempt, self.rules.lease_seconds, *fields))

    async def finish(self, job: Job, outcome: Outcome, progress: Progress) -> bool:
        """See `JobStore`."""
        result = b"" if outcome.segments is None else await asyncio.to_thread(encode, outcome.segments)
        fields = _fields(progress)
        if outcome.code is not None:
            fields += ["code", outcome.code, "message", outcome.message or ""]
        there = int(outcome.segments is not None)
        args = [job.id, job.attempt, outcome.state, there, result, *fields]
        finished = bool(await self._call(scripts.FINISH, *args))
        self.changes.offer_notice()
        return finished

    async def put_back(self, job: Job, seconds: float = 0.0, *, failed: bool = False) -> bool:
        """See `JobStore`."""
        held = bool(await self._call(scripts.PUT_BACK, job.id, job.attempt, seconds, int(failed)))
        if held and not seconds:
            await self._courier(job.terms.backend).send(job.id)
        self.changes.offer_work()  # at least to look when the next is due
        return held

    async def next_claim(self, backend: str) -> float | None:
        """See `JobStore`."""
        return _seconds(await self._call(scripts.UNTIL, f"q:{backend}", f"l:{backend}"))

    async def follow(self, backend: str, wanted: Callable[[], Awaitable[object]]) -> None:
        """See `JobStore`."""
        await self._courier(backend).follow(wanted, self.changes.offer_work)

    def _courier(self, backend: str) -> Courier:
        if (courier := self._couriers.get(backend)) is None:
            courier = self._couriers[backend] = Courier(self.url, backend, self.rules.lease_seconds)
        return courier

    # Webhooks

    async def claim_notice(self, seconds: float) -> Job | None:
        """See `JobStore`."""
        return _job_of_pairs(await self._call(scripts.CLAIM_NOTICE, seconds))

    async def settle_notice(self, job: Job, *, delivered: bool, retry: float | None) -> None:
        """See `JobStore`."""
        notice = Notice.settled(delivered=delivered, retry=retry)
        await self._call(scripts.SETTLE_NOTICE, job.id, job.notices, notice, retry or 0)

    async def next_notice(self) -> float | None:
        """See `JobStore`."""
        return _seconds(await self._call(scripts.UNTIL, "n"))

    # Housekeeping

    async def sweep(self) -> int:
        """See `JobStore`. In small steps: nobody else is served during one."""
        swept = 0
        while some := await self._call(scripts.SWEEP, self.rules.retention_seconds, SWEEP_JOBS):
            swept += some
        return swept

    async def counts(self) -> Mapping[State, int]:
        """See `JobStore`."""
        found = await self._redis.ask(self._redis.redis.hgetall(f"{PREFIX}c"))
        return {state: int(found.get(state.encode(), 0)) for state in State}


def _fields(progress: Progress) -> list[Any]:
    fields: dict[str, Any] = {"seconds": repr(progress.seconds)}
    if progress.total is not None:
        fields["total"] = repr(progress.total)
    if progress.engine is not None:
        fields["engine"] = progress.engine
    if progress.language is not None:
        fields["language"] = progress.language
    return list(itertools.chain.from_iterable(fields.items()))


def _seconds(answer: bytes) -> float | None:
    return float(answer) if answer else None


def _job_of_pairs(found: list[bytes]) -> Job | None:
    return _job(dict(zip(found[::2], found[1::2], strict=True)))


def _job(found: Mapping[bytes, bytes]) -> Job | None:
    if not found:
        return None
    row: dict[str, Any] = {"terms": found.get(b"terms", b"")}
    try:
        for key, value in found.items():
            name = key.decode()
            if name in _TEXTS:
                row[name] = value.decode()
            elif name in _COUNTS:
                row[name] = int(value)
            elif name in _NUMBERS:
                row[name] = float(value)
    except ValueError as exc:
        raise StoreUnavailableError(f"a job of the store cannot be understood: {exc}") from exc
    return job_of(row)
