"""How workers on other machines hear of a job: a Redis stream with a consumer group, by taskiq.

A message reaches one worker that has nothing to do. It is a bell and no more: which job is begun, and by whom, the
store decides. So a message that comes twice does no harm, and for one that is lost, or was taken by a worker that died,
workers look now and then all the same. taskiq's own receiver is not used: it swallows cancellation, and messages are
taken back from dead workers only when new ones come.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from taskiq.exceptions import TaskiqError
from taskiq.kicker import AsyncKicker
from taskiq_redis import RedisStreamBroker

from bridge.jobs.redis_scripts import PREFIX

log = logging.getLogger(__name__)

GROUP: Final = "workers"
TASK: Final = "stt_bridge.job"
BLOCK_MILLISECONDS: Final = 10_000
"""For which one read of the stream waits."""
MESSAGES: Final = 10_000
"""That the stream keeps, about; workers look for the jobs of those that it forgets."""
SEND_SECONDS: Final = 2.0
AGAIN_SECONDS: Final = 1.0
"""After which the stream is read again when that failed."""
GONE_MILLISECONDS: Final = 3_600_000
"""A consumer that has read nothing for so long is no more."""


class Courier:
    """The stream of one backend's jobs. `lease_seconds`: what a worker has not acknowledged by then goes to another."""

    def __init__(self, url: str, backend: str, lease_seconds: float) -> None:
        self._stream = f"{PREFIX}s:{backend}"
        self._consumer = secrets.token_hex(8)
        self._broker = RedisStreamBroker(
            url,
            queue_name=self._stream,
            consumer_group_name=GROUP,
            consumer_name=self._consumer,
            consumer_id="0",  # the default, `$`, forgets what was sent before the first worker came
            xread_block=BLOCK_MILLISECONDS,
            xread_count=1,  # a message that waits here keeps others from hearing of it
            maxlen=MESSAGES,
            idle_timeout=round(lease_seconds * 1_000),
            unacknowledged_lock_timeout=lease_seconds,  # the default is for ever
            max_connection_pool_size=4,
            socket_connect_timeout=SEND_SECONDS,
            socket_timeout=None,  # a read waits longer than redis-py's default
            # Once, at once, for a connection that broke while nobody looked.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )

        self._kicker: AsyncKicker[[str], None] = AsyncKicker(TASK, self._broker, {})

    async def send(self, job_id: str) -> None:
        """Tell one worker. Where that fails it is said in the log; some worker finds the job all the same."""
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._kicker.with_task_id(job_id).kiq(job_id)
        except (TaskiqError, RedisError, OSError) as exc:  # a TimeoutError is an OSError
            log.warning("workers are not told of a job: %s", exc or "Redis does not answer", extra={"job": job_id})

    async def follow(self, wanted: Callable[[], Awaitable[object]], heard: Callable[[], None]) -> None:
        """Call `heard` for each message, for ever. The next is asked for when `wanted` returns."""
        while True:
            try:
                await self._broker.startup()
                await self._forget_others()
                messages = self._broker.listen()
                while True:
                    await wanted()
                    message = await anext(messages)
                    heard()
                    await message.ack()  # type: ignore[misc] # it may be awaited: the broker's own are coroutines
            except (RedisError, OSError) as exc:
                log.warning("the stream of jobs cannot be read: %s", exc or "Redis does not answer")
            except (KeyError, TypeError) as exc:  # cut from the stream while it waited (Redis 6.2), or somebody else's
                log.warning("a message in the stream of jobs is none (%s)", type(exc).__name__)
            await asyncio.sleep(AGAIN_SECONDS)

    async def close(self) -> None:
        """No more messages come here."""
        try:
            async with asyncio.timeout(SEND_SECONDS), Redis(connection_pool=self._broker.connection_pool) as redis:
                await redis.xgroup_delconsumer(self._stream, GROUP, self._consumer)
        except (RedisError, OSError) as exc:
            log.info("the stream of jobs was not left in order: %s", exc or "Redis does not answer")
        await self._broker.shutdown()

    async def _forget_others(self) -> None:
        """Consumers that are gone: each life of a worker is one."""
        async with Redis(connection_pool=self._broker.connection_pool) as redis:
            for consumer in await redis.xinfo_consumers(self._stream, GROUP):
                if consumer["idle"] > GONE_MILLISECONDS:
                    await redis.xgroup_delconsumer(self._stream, GROUP, consumer["name"])
