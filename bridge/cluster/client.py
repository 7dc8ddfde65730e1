"""A client of Redis (6.2 or later) that answers or fails in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from bridge.cluster.script import Script

log = logging.getLogger(__name__)

Call = tuple[Script, Sequence[str], Sequence[Any]]


class RedisClient:
    """`url`: `redis://[[USER]:PASSWORD@]HOST[:PORT][/NUMBER]`, `rediss://…` or `unix://PATH`.

    Nobody waits longer than `answer_seconds`, also not for one of the `connections`. `unavailable` is the error that
    every failure becomes; `what` is what its sentences call this use of Redis.
    """

    def __init__(
        self, url: str, what: str, unavailable: Callable[[str], Exception], *, answer_seconds: float, connections: int
    ) -> None:
        parts = urlsplit(url)
        self.name = f"{what} {parts.scheme}://{parts.hostname or parts.path}"
        self._unavailable = unavailable
        self._answer_seconds = answer_seconds
        self.pool = BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=answer_seconds,
            socket_connect_timeout=answer_seconds,
            socket_timeout=None,  # `ask` has one for all; with it, redis-py may swallow a cancellation (`wait_for`)
            # Once, at once, for a connection that broke while nobody looked. After that it is the caller's business.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            protocol=2,
        )
        self.redis = Redis(connection_pool=self.pool)

    async def ask(self, answer: Awaitable[Any]) -> Any:
        """What Redis answers."""
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await answer
        except (RedisError, OSError) as exc:  # a TimeoutError is an OSError
            raise self._unavailable(f"{self.name}: {exc or 'it does not answer'}") from exc

    async def call(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """What one script answers."""
        return (await self.run([(script, keys, args)]))[0]

    async def run(self, calls: Sequence[Call]) -> list[Any]:
        """Scripts, in one round trip. All again where one was not known, so doing one twice has to do no harm."""
        answers: list[Any] = await self.ask(self._run(calls))
        return answers

    async def _run(self, calls: Sequence[Call]) -> list[Any]:
        for _ in range(2):
            async with self.redis.pipeline(transaction=False) as pipe:
                for script, keys, args in calls:
                    pipe.evalsha(script.sha, len(keys), *keys, *args)
                answers = await pipe.execute(raise_on_error=False)
            if not any(isinstance(answer, NoScriptError) for answer in answers):
                break
            for script in {script for script, _, _ in calls}:  # Redis has begun anew
                await self.redis.script_load(script.text)
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
        return answers

    async def check_memory(self, what: str) -> None:
        """Whether Redis answers. Says in the log what it may forget when its memory is full."""
        memory = await self.ask(self.redis.info("memory"))
        if memory.get("maxmemory") and memory.get("maxmemory_policy") != "noeviction":
            log.warning(
                "Redis may forget %s when its memory is full: `maxmemory-policy` is %s, should be noeviction",
                what,
                memory.get("maxmemory_policy"),
            )

    async def close(self) -> None:
        """Give the connections back."""
        await self.redis.aclose()
        await self.pool.disconnect()
