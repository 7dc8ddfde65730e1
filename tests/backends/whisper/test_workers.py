"""Workers, with real threads: how they end, die, hang and are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from backends.base import BackendError
from backends.whisper import workers as module
from backends.whisper.workers import MOST_ABANDONED, Outcome, Workers

Work = Callable[[Any], Any]


class Heard:
    """What a pool tells of itself."""

    def __init__(self) -> None:
        self.changes = 0
        self.deaths = 0

    def changed(self) -> None:
        self.changes += 1

    def died(self) -> None:
        self.deaths += 1


@contextlib.asynccontextmanager
async def pool(
    work: Work, count: int = 1, limit_seconds: float = 60.0, heard: Heard | None = None
) -> AsyncIterator[Workers[Any, Any]]:
    heard = heard or Heard()
    workers: Workers[Any, Any] = Workers(
        "test-worker", count, work, limit_seconds=limit_seconds, changed=heard.changed, died=heard.died
    )
    workers.start()
    try:
        yield workers
    finally:
        await workers.close(1.0)


def given(workers: Workers[Any, Any], task: Any) -> asyncio.Future[Outcome[Any]]:
    """How a task ends; fails the test if it ends twice."""
    future: asyncio.Future[Outcome[Any]] = asyncio.get_running_loop().create_future()
    workers.run(task, future.set_result)
    return future


def code(outcome: Outcome[Any]) -> str:
    assert isinstance(outcome.error, BackendError)
    assert outcome.error.retryable
    return outcome.error.code


def alive() -> int:
    return sum(thread.name.startswith("test-worker") for thread in threading.enumerate())


def throw(thread: int, exception: type[BaseException]) -> None:
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(exception)) == 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def slowly(task: Any) -> Any:
    time.sleep(0.05)
    return task


class Gate:
    """Work that waits, in Python code, until it may go on."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.idents: list[int] = []

    def __call__(self, task: Any) -> Any:
        self.idents.append(threading.get_ident())
        while not self.open.is_set():
            time.sleep(0.001)
        return task

    async def reached(self, count: int = 1) -> None:
        await until(lambda: len(self.idents) >= count)


async def test_tasks_are_done_and_timed() -> None:
    async with pool(slowly, 2) as workers:
        assert (workers.idle, workers.capacity) == (2, 2)
        tasks = [given(workers, 1), given(workers, 2)]
        assert (workers.idle, workers.capacity) == (0, 2)
        outcomes = await asyncio.gather(*tasks)
        assert [(o.value, o.error) for o in outcomes] == [(1, None), (2, None)]
        assert all(0.05 <= o.seconds < 1 for o in outcomes)
        assert workers.idle == 2
    assert alive() == 0
    assert (workers.idle, workers.capacity) == (0, 0)


async def test_an_error_is_an_outcome_and_no_death() -> None:
    heard = Heard()
    async with pool(lambda n: 1 // n, heard=heard) as workers:
        assert isinstance((await given(workers, 0)).error, ZeroDivisionError)
        assert (await given(workers, 1)).value == 1
    assert heard.deaths == 0


@pytest.mark.parametrize("exception", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_a_thread_that_dies_at_work(exception: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    heard, gate = Heard(), Gate()
    async with pool(gate, heard=heard) as workers:
        task = given(workers, 1)
        await gate.reached()
        throw(gate.idents[0], exception)
        began = time.monotonic()
        assert code(await task) == "worker_died"
        assert time.monotonic() - began < 0.5  # it is told, not found out
        assert (workers.idle, workers.capacity, heard.deaths) == (1, 1, 1)
        gate.open.set()
        assert (await given(workers, 2)).value == 2
    assert [record.levelno for record in caplog.records if "died" in record.message] == [logging.ERROR]


async def test_work_that_ends_its_own_thread() -> None:
    def work(task: Any) -> Any:
        if task == "exit":
            raise SystemExit
        return task

    async with pool(work) as workers:
        for _ in range(5):
            assert code(await given(workers, "exit")) == "worker_died"
            assert (await given(workers, 1)).value == 1


async def test_an_idle_thread_that_is_killed_costs_nothing() -> None:
    heard = Heard()
    async with pool(lambda _: threading.current_thread(), heard=heard) as workers:
        killed = (await given(workers, None)).value
        assert killed is not None
        throw(killed.ident, SystemExit)  # strikes once it is given something
        outcome = await given(workers, None)
        assert outcome.error is None
        assert outcome.value is not killed
        assert heard.deaths == 1


async def test_a_thread_that_cannot_even_tell_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of its last words."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    heard = Heard()

    def work(task: Any) -> Any:
        if task == "exit":
            monkeypatch.setattr(Workers, "_tell", lambda *_: None)
            raise SystemExit
        return task

    async with pool(work, heard=heard) as workers:
        task = given(workers, "exit")
        await until(lambda: alive() == 0)
        monkeypatch.undo()
        assert code(await task) == "worker_died"
        assert (await given(workers, 1)).value == 1
        assert heard.deaths == 1


async def test_a_thread_that_died_idle_and_untold_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pool(lambda task: task) as workers:
        (worker,) = workers._all
        with monkeypatch.context() as patch:
            patch.setattr(Workers, "_tell", lambda *_: None)
            worker.inbox.put(None)
            await until(lambda: alive() == 0)
        assert (await given(workers, 1)).value == 1


async def test_a_task_is_answered_even_where_no_thread_is_left_nor_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with pool(lambda task: task) as workers:
        (worker,) = workers._all
        with monkeypatch.context() as patch:
            patch.setattr(Workers, "_tell", lambda *_: None)
            worker.inbox.put(None)
            await until(lambda: alive() == 0)
            patch.setattr(threading.Thread, "start", refuse)
            assert code(await given(workers, 1)) == "worker_died"
        assert workers.capacity == 0


async def test_a_thread_that_hangs_is_replaced_and_welcome_back(caplog: pytest.LogCaptureFixture) -> None:
    gate, heard = Gate(), Heard()
    async with pool(gate, limit_seconds=0.1, heard=heard) as workers:
        outcome = await given(workers, 1)
        assert code(outcome) == "stalled"
        assert 0.1 < outcome.seconds < 1
        assert (workers.idle, workers.capacity, alive()) == (1, 1, 2)
        gate.open.set()
        assert (await given(workers, 2)).value == 2
        await until(lambda: alive() == 1)
        assert heard.deaths == 0
        assert heard.changes


async def test_only_so_many_that_hang_are_replaced() -> None:
    gate, heard = Gate(), Heard()
    async with pool(gate, limit_seconds=0.05, heard=heard) as workers:
        for _ in range(MOST_ABANDONED + 1):
            assert workers.capacity == 1
            assert code(await given(workers, None)) == "stalled"
        assert (workers.idle, workers.capacity) == (0, 0)
        assert alive() == MOST_ABANDONED + 1
        heard.changes = 0
        gate.open.set()
        await until(lambda: alive() == 1)
        await until(lambda: workers.idle == 1)
        assert heard.changes
        assert (await given(workers, 1)).value == 1


async def test_a_hanging_thread_that_dies_is_no_loss() -> None:
    gate, heard = Gate(), Heard()
    async with pool(gate, limit_seconds=0.05, heard=heard) as workers:
        assert code(await given(workers, None)) == "stalled"
        throw(gate.idents[0], SystemExit)
        await until(lambda: alive() == 1)
        assert (workers.capacity, heard.deaths) == (1, 0)


async def test_close_waits_for_what_runs() -> None:
    async with pool(slowly, 2) as workers:
        tasks = [given(workers, 1), given(workers, 2)]
        assert await workers.close(1.0)
        assert [(await task).value for task in tasks] == [1, 2]
        assert alive() == 0


async def test_close_of_idle_threads_is_quick() -> None:
    async with pool(slowly, 3) as workers:
        began = time.monotonic()
        assert await workers.close(5.0)
        assert time.monotonic() - began < 1


async def test_close_waits_for_what_runs_though_all_threads_were_gone_once() -> None:
    gate = Gate()
    async with pool(gate, limit_seconds=0.05) as workers:
        for _ in range(MOST_ABANDONED + 1):
            assert code(await given(workers, None)) == "stalled"
        assert workers.capacity == 0
        gate.open.set()
        await until(lambda: workers.idle == 1 and alive() == 1)  # every one that hung is through the gate
        gate.open.clear()
        task = given(workers, 1)
        await gate.reached(MOST_ABANDONED + 2)
        asyncio.get_running_loop().call_later(0.02, gate.open.set)
        assert await workers.close(5.0)
        assert (await task).value == 1


async def test_an_idle_thread_holds_nothing_of_its_last_task() -> None:
    class Audio:
        pass

    async with pool(lambda audio: [audio]) as workers:
        audio = Audio()
        seen = weakref.ref(audio)
        assert (await given(workers, audio)).value == [audio]
        del audio
        await until(lambda: seen() is None)


async def test_close_leaves_behind_what_hangs(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    async with pool(gate, 2) as workers:
        task = given(workers, 1)
        await gate.reached()
        began = time.monotonic()
        assert not await workers.close(0.1)
        assert time.monotonic() - began < 1
        assert code(await task) == "unavailable"
        assert "1 threads are left behind" in caplog.text
        gate.open.set()
        await until(lambda: alive() == 0)


async def test_a_thread_that_dies_while_the_pool_closes() -> None:
    gate = Gate()
    async with pool(gate) as workers:
        task = given(workers, 1)
        await gate.reached()
        asyncio.get_running_loop().call_later(0.05, throw, gate.idents[0], SystemExit)
        await workers.close(5.0)
        assert code(await task) == "worker_died"
        assert alive() == 0


async def test_a_system_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module, "REHIRE_SECONDS", 0.02)
    workers: Workers[Any, Any] = Workers("test-worker", 1, lambda task: task, limit_seconds=60)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(BackendError) as caught:
            workers.start()
        assert caught.value.code == "unavailable"
    await until(lambda: workers.idle == 1)
    await workers.close(1.0)

    def work(task: Any) -> Any:
        if task == "exit":
            raise SystemExit
        return task

    heard = Heard()
    async with pool(work, heard=heard) as workers:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            assert code(await given(workers, "exit")) == "worker_died"
            assert workers.capacity == 0
        heard.changes = 0
        await until(lambda: workers.capacity == 1)
        assert heard.changes
        assert (await given(workers, 1)).value == 1


def test_threads_outlive_no_loop() -> None:
    """One that comes back after its loop is gone ends, and says nothing."""
    gate = Gate()

    async def main() -> None:
        async with pool(gate) as workers:
            given(workers, 1)
            await gate.reached()
            await workers.close(0.01)

    asyncio.run(main())
    gate.open.set()
    for thread in threading.enumerate():
        if thread.name.startswith("test-worker"):
            thread.join(5)
    assert alive() == 0
