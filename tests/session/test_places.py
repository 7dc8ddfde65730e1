"""Places: what files leave to who speaks, whose turn it is, and how long anybody waits."""

from __future__ import annotations

import asyncio
import contextlib
import math

import pytest

from backends.scripted import ScriptedBackend, ScriptedOptions
from bridge.errors import BridgeError
from bridge.observe.metrics import Metrics
from bridge.protocols.events import Start
from bridge.session import places
from bridge.session.engine import Engine
from bridge.session.failover import EnginePool
from bridge.session.limits import SessionLimits
from bridge.session.manager import SessionManager
from bridge.session.places import Line, Terms
from tests.wire import LIMIT

FILE = Terms(batch=True)
WAITING = Terms(batch=True, patience=LIMIT)


def managed(max_streams: int | None = None, max_sessions: int = 100) -> SessionManager:
    """On a scripted engine that carries so many streams; not loaded yet."""
    engine = Engine(ScriptedBackend(ScriptedOptions(mode="markers", max_streams=max_streams)))
    return SessionManager(EnginePool(engine), SessionLimits(), Metrics(), max_sessions=max_sessions, language="en-US")


async def loaded(max_streams: int | None = None, max_sessions: int = 100) -> SessionManager:
    manager = managed(max_streams, max_sessions)
    await manager.load()
    return manager


async def taken(manager: SessionManager, stack: contextlib.AsyncExitStack, terms: Terms) -> int:
    """How many places are given on these terms until one is refused."""
    count = 0
    with contextlib.suppress(BridgeError):
        while count < 50:
            await stack.enter_async_context(manager.place(terms=terms))
            count += 1
    return count


@pytest.mark.parametrize(("capacity", "files"), [(1, 1), (2, 1), (3, 2), (4, 3), (8, 6)])
async def test_files_leave_a_quarter_of_an_engine_free(capacity: int, files: int) -> None:
    manager = await loaded(capacity)
    async with contextlib.AsyncExitStack() as stack:
        assert await taken(manager, stack, FILE) == files
        assert await taken(manager, stack, Terms()) == capacity - files
    manager.kept_for_live = 0
    async with contextlib.AsyncExitStack() as stack:
        assert await taken(manager, stack, FILE) == capacity


async def test_files_leave_a_quarter_of_all_sessions_free() -> None:
    manager = await loaded(max_sessions=4)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):  # no session yet: what their files are is still to be found out
            await stack.enter_async_context(manager.place(terms=FILE))
        with pytest.raises(BridgeError, match="later"):
            await stack.enter_async_context(manager.place(terms=FILE))
        await stack.enter_async_context(manager.place())
        with pytest.raises(BridgeError, match="later"):
            await stack.enter_async_context(manager.place())
    async with contextlib.AsyncExitStack() as stack:
        assert await taken(manager, stack, Terms()) == 4, "all were given back"


async def test_a_file_that_is_looked_into_when_the_server_begins_to_stop_keeps_it_from_nothing() -> None:
    manager = await loaded()
    async with manager.place(terms=FILE) as place:
        assert await manager.drain(1)
        with manager.seated(place, Start(), "test") as session:
            assert session.stopping


async def test_whoever_comes_first_is_served_first() -> None:
    manager = await loaded(1)
    order: list[int] = []

    async def file(number: int) -> None:
        async with manager.place(terms=WAITING):
            order.append(number)

    async with manager.place():
        files = [asyncio.create_task(file(number)) for number in range(20)]
        await asyncio.sleep(0.01)
        assert not order
    await asyncio.gather(*files)
    assert order == list(range(20))


async def test_a_turn_of_somebody_who_left_goes_to_the_next() -> None:
    manager = await loaded(1)
    got = asyncio.Event()

    async def file() -> None:
        async with manager.place(terms=WAITING):
            got.set()

    async with manager.place():
        first, second = asyncio.create_task(file()), asyncio.create_task(file())
        await asyncio.sleep(0.01)
    first.cancel()  # its turn has come, and it does not know yet
    await asyncio.wait({first})
    await asyncio.wait_for(second, 1)
    assert got.is_set()


async def test_patience_ends() -> None:
    manager = await loaded(1)
    async with manager.place():
        began = asyncio.get_running_loop().time()
        with pytest.raises(BridgeError) as refused:
            async with manager.place(terms=Terms(batch=True, patience=0.1)):
                pass
        assert refused.value.code == "at_capacity"
        assert 0.09 < asyncio.get_running_loop().time() - began < 1


async def test_what_ends_without_a_word_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "LOOK_AGAIN_SECONDS", 0.05)
    backend = ScriptedBackend(ScriptedOptions(mode="markers"))
    refusing: list[str | None] = ["the quota is used up"]
    monkeypatch.setattr(backend, "refusal", lambda: refusing[0])
    manager = SessionManager(EnginePool(Engine(backend)), SessionLimits(), Metrics(), max_sessions=9, language="en-US")
    await manager.load()

    async def file() -> None:
        async with manager.place(terms=WAITING):
            pass

    task = asyncio.create_task(file())
    await asyncio.sleep(0.02)
    assert not task.done()
    refusing[0] = None
    await asyncio.wait_for(task, 1)


async def test_only_who_waits_for_ever_waits_for_an_engine_that_loads() -> None:
    manager = managed(1)
    with pytest.raises(BridgeError) as refused:
        async with manager.place(terms=WAITING):
            pass
    assert refused.value.code == "not_ready"

    async def job() -> None:
        async with manager.place(terms=Terms(batch=True, patience=math.inf)):
            pass

    task = asyncio.create_task(job())
    await asyncio.sleep(0.01)
    await manager.load()
    await asyncio.wait_for(task, 1)


async def test_the_end_of_the_server_is_told_to_who_waits() -> None:
    manager = await loaded(1)

    async def job() -> None:
        async with manager.place(terms=Terms(batch=True, patience=math.inf)):
            pass

    async with manager.place():
        jobs = [asyncio.create_task(job()) for _ in range(3)]
        await asyncio.sleep(0.01)
        await manager.drain(0.1)
        results = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 1)
    assert [result.code for result in results if isinstance(result, BridgeError)] == ["shutting_down"] * 3


async def test_a_backend_that_there_is_not() -> None:
    manager = await loaded()
    with pytest.raises(BridgeError) as refused:
        async with manager.place(terms=Terms(backend="nobody")):
            pass
    assert refused.value.code == "unknown_backend"


async def test_nobody_stays_in_the_line() -> None:
    line = Line()
    tasks = [asyncio.create_task(line.wait(seconds, again=False)) for seconds in (0.01, 9, 9, 9)]
    await asyncio.sleep(0.05)
    assert tasks[0].done()
    assert len(line) == 3
    tasks[1].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(line) == 2
    line.call_all()
    await asyncio.wait_for(asyncio.gather(*tasks[2:]), 1)
    assert len(line) == 0
