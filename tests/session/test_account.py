"""On whose behalf a session runs, as a backend is told: each stream anew, since a token may expire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest

from backends.base import BackendError, RecognitionConfig, Result
from bridge.observe.metrics import Metrics
from bridge.observe.trace import Tracing, parse
from bridge.protocols.events import Ready, Resume, Start
from bridge.session.account import Account
from bridge.session.engine import Engine
from bridge.session.failover import EnginePool
from bridge.session.keeper import Keeper
from bridge.session.limits import SessionLimits
from bridge.session.live import Sender
from bridge.session.manager import SessionManager
from bridge.session.reception import Reception
from tests.session.harness import FunctionEngine

ALICE = Account("key-alice", "alice-secret")


async def failing_once(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
    """The first stream fails with its first audio."""
    samples = 0
    async for chunk in audio:
        samples += len(chunk) // 2
        if not config.attempt:
            raise BackendError("gone", code="unavailable", retryable=True)
    yield Result("", True, 0, samples / config.sample_rate)


class Served:
    """Sessions of one engine that notes what it is asked for."""

    def __init__(self, body: Any = failing_once) -> None:
        self.engine = FunctionEngine(body)
        pool = EnginePool(Engine(self.engine))
        self.manager = SessionManager(pool, SessionLimits(), Metrics(), max_sessions=2, language="en-US")
        self.keeper = Keeper(self.manager, None, node="n", resume_seconds=60, wait_seconds=60)
        self.reception = Reception(self.keeper)

    async def __aenter__(self) -> Self:
        await self.manager.load()
        await self.keeper.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.keeper.drain(1)
        await self.keeper.close()
        await self.manager.close()

    async def asked(self, count: int) -> list[str | None]:
        """The credentials of the first so many streams."""
        async with asyncio.timeout(5):
            while len(self.engine.configs) < count:
                await asyncio.sleep(0.01)
        return [config.credential for config in self.engine.configs]


async def token_of(sender: Sender) -> str:
    (ready,) = await anext(aiter(sender.feed))
    assert isinstance(ready, Ready)
    assert ready.resume_token is not None
    return ready.resume_token


async def test_a_stream_is_opened_with_the_credential_of_who_sends_now() -> None:
    async with Served() as served:
        async with served.reception.sender(Start(), "native", ALICE) as sender:
            assert isinstance(sender, Sender)
            token, name = await token_of(sender), sender.session.id
            assert await served.asked(1) == ["alice-secret"]
        again = Account("key-alice", "alice-fresh")
        async with served.reception.sender(Resume(name, token), "native", again) as sender:
            assert isinstance(sender, Sender)
            sender.session.feed(bytes(3_200))
            assert await served.asked(2) == ["alice-secret", "alice-fresh"]
            assert sender.session.account == again
            sender.session.stop()


@pytest.mark.parametrize("back", [Account("key-bob", "bob-secret"), Account()])
async def test_whoever_resumes_a_session_does_not_become_its_owner(back: Account) -> None:
    async with Served() as served:
        async with served.reception.sender(Start(), "native", ALICE) as sender:
            assert isinstance(sender, Sender)
            token, name = await token_of(sender), sender.session.id
        async with served.reception.sender(Resume(name, token), "native", back) as sender:
            assert isinstance(sender, Sender)
            assert sender.session.account == Account("key-alice", back.credential or "alice-secret")


@pytest.mark.parametrize("store", [True, False])
async def test_what_else_a_stream_is_told(store: bool) -> None:
    parent = parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    async with Served() as served:
        trace = Tracing().begin("request", parent)
        async with served.reception.sender(Start(store=store), "native"):
            await served.asked(1)
    (config,) = served.engine.configs
    assert (config.store, config.credential) == (store, None)
    assert config.traceparent is not None
    assert config.traceparent.split("-")[1] == trace.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_credential_is_shown_nowhere() -> None:
    assert "secret" not in repr(ALICE)
    assert "secret" not in repr(RecognitionConfig(credential="alice-secret"))
