"""The scheduler: order, batches, replacement, failures and ends in virtual time; then with real threads."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import random
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.base import BackendError, Fault
from backends.whisper.metrics import WhisperMetrics
from backends.whisper.scheduler import Lane, Plan, Replaced, Scheduler
from backends.whisper.window import Kind
from tests.backends.whisper import virtual
from tests.backends.whisper.virtual import VirtualWorkers, spend

FINAL, PARTIAL = Kind.FINAL, Kind.PARTIAL


@dataclass(frozen=True, eq=False)
class Ask:
    """A request; its answer is its name."""

    name: str
    kind: Kind = FINAL
    group: Hashable = None
    seconds: float = 5.0


@dataclass
class Fake:
    """A decoder in virtual time that writes down what it is given."""

    base: float = 0.1
    each: float = 0.0
    features: float = 0.0
    trouble: Callable[[list[Ask]], None] = lambda batch: None
    batches: list[list[str]] = field(default_factory=list)
    prepared: list[str] = field(default_factory=list)

    def prepare(self, request: Ask) -> tuple[Ask]:
        spend(self.features)
        self.prepared.append(request.name)
        return (request,)

    def key(self, request: Ask) -> Hashable:
        return request.group

    def decode(self, batch: Sequence[tuple[Ask]]) -> list[str]:
        asks = [ask for (ask,) in batch]
        self.batches.append([ask.name for ask in asks])
        spend(self.base + self.each * len(asks))
        self.trouble(asks)
        return [f"heard {ask.name}" for ask in asks]


Fakes = Scheduler[Ask, tuple[Ask], str]


@contextlib.asynccontextmanager
async def scheduling(
    decoder: Any,
    workers: int = 1,
    most: int = 1,
    wait: float = 0.0,
    features: int = 4,
    real: bool = False,
    **options: Any,
) -> AsyncIterator[Fakes]:
    """A scheduler, in virtual time unless it is to have real threads."""
    if not real:
        options["workers"] = VirtualWorkers
    scheduler: Fakes = Scheduler(decoder, Plan(workers, most, wait, features, "because of the test"), **options)
    await scheduler.start()
    try:
        yield scheduler
    finally:
        await scheduler.close()


async def soon(scheduler: Fakes, lane: Lane, *asks: Ask) -> list[asyncio.Task[str]]:
    """These are asked for, one after the other, in this turn of the loop."""
    tasks = [asyncio.create_task(scheduler.decode(lane, ask)) for ask in asks]
    await asyncio.sleep(0)
    return tasks


def now() -> float:
    return asyncio.get_running_loop().time()


async def ends(tasks: Sequence[asyncio.Task[str]]) -> list[Any]:
    """How they end: an answer, an error's code, or the exception's type."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [r.code if isinstance(r, BackendError) else type(r) if isinstance(r, BaseException) else r for r in results]


# Order and batches


def test_finals_first_then_age() -> None:
    async def main() -> None:
        async with scheduling(fake := Fake()) as scheduler:
            with contextlib.ExitStack() as stack:
                lanes = [stack.enter_context(scheduler.lane()) for _ in range(5)]
                tasks = await soon(scheduler, lanes[0], Ask("running"))
                for lane, kind in zip(lanes[1:], (PARTIAL, PARTIAL, FINAL, FINAL), strict=True):
                    await asyncio.sleep(0.01)
                    tasks += await soon(scheduler, lane, Ask(f"{kind.name} {lanes.index(lane)}", kind))
                await asyncio.gather(*tasks)
        assert [name for (name,) in fake.batches] == ["running", "FINAL 3", "FINAL 4", "PARTIAL 1", "PARTIAL 2"]

    virtual.run(main())


def test_features_are_made_in_the_same_order() -> None:
    async def main() -> None:
        async with scheduling(fake := Fake(features=0.01), features=1) as scheduler:
            with scheduler.lane() as one, scheduler.lane() as two, scheduler.lane() as three:
                tasks = await soon(scheduler, one, Ask("first", PARTIAL))
                await asyncio.sleep(0.001)
                tasks += await soon(scheduler, two, Ask("partial", PARTIAL))
                tasks += await soon(scheduler, three, Ask("final"))
                await asyncio.gather(*tasks)
        assert fake.prepared == ["first", "final", "partial"]

    virtual.run(main())


def test_features_of_partials_are_not_made_far_ahead_of_need() -> None:
    async def main() -> None:
        async with scheduling(fake := Fake(base=100.0), most=2) as scheduler:
            with contextlib.ExitStack() as stack:
                lanes = [stack.enter_context(scheduler.lane()) for _ in range(40)]
                tasks = [t for n, lane in enumerate(lanes) for t in await soon(scheduler, lane, Ask(str(n), PARTIAL))]
                await asyncio.sleep(1)
                assert len(fake.prepared) == 2 + 4  # one batch runs, and two are ready
                for lane in lanes:
                    tasks += await soon(scheduler, lane, Ask("final"))
                await asyncio.sleep(1)
                assert fake.prepared.count("final") == 40
                for task in tasks:
                    task.cancel()

    virtual.run(main())


def test_a_batch_has_one_key_and_takes_finals_before_partials() -> None:
    async def main() -> None:
        async with scheduling(fake := Fake(), most=3) as scheduler:
            with contextlib.ExitStack() as stack:

                def lane() -> Lane:
                    return stack.enter_context(scheduler.lane())

                tasks = await soon(scheduler, lane(), Ask("running"))
                await asyncio.sleep(0.01)
                for name, kind, group in (
                    ("a", PARTIAL, 1),
                    ("b", FINAL, 2),
                    ("c", PARTIAL, 2),
                    ("d", FINAL, 1),
                    ("e", PARTIAL, 2),
                    ("f", FINAL, 2),
                ):
                    await asyncio.sleep(0.001)
                    tasks += await soon(scheduler, lane(), Ask(name, kind, group))
                await asyncio.gather(*tasks)
        assert fake.batches == [["running"], ["b", "f", "c"], ["d", "a"], ["e"]]

    virtual.run(main())


def test_a_batch_waits_for_company_but_not_long() -> None:
    async def main() -> None:
        async with scheduling(fake := Fake(), most=4, wait=0.05) as scheduler:
            with scheduler.lane() as one, scheduler.lane() as two, scheduler.lane():
                first = await soon(scheduler, one, Ask("one"))
                await asyncio.sleep(0.04)
                await asyncio.gather(*first, *await soon(scheduler, two, Ask("two")))
                assert fake.batches == [["one", "two"]]
                assert now() == pytest.approx(0.05 + 0.1)

    virtual.run(main())


@pytest.mark.parametrize("lanes", [1, 4])
def test_no_wait_where_nobody_is_left_to_come(lanes: int) -> None:
    async def main() -> None:
        async with scheduling(fake := Fake(), most=4, wait=0.05) as scheduler:
            with contextlib.ExitStack() as stack:
                tasks = [
                    task
                    for n in range(lanes)
                    for task in await soon(scheduler, stack.enter_context(scheduler.lane()), Ask(str(n)))
                ]
                await asyncio.gather(*tasks)
                assert now() == pytest.approx(0.1)
        assert [len(batch) for batch in fake.batches] == [lanes]

    virtual.run(main())


def test_the_oldest_ends_the_wait_whoever_comes_first() -> None:
    """A queue that goes on changing its head is not kept from ever sending one."""

    async def main() -> None:
        async with scheduling(fake := Fake(), most=2, wait=0.05) as scheduler:
            with contextlib.ExitStack() as stack:
                stack.enter_context(scheduler.lane())
                tasks = await soon(scheduler, stack.enter_context(scheduler.lane()), Ask("partial", PARTIAL, "own"))
                for n in range(10):
                    await asyncio.sleep(0.01)
                    tasks += await soon(scheduler, stack.enter_context(scheduler.lane()), Ask(f"final {n}", FINAL, n))
                assert fake.batches == [["final 0"]]
                await asyncio.gather(*tasks)

    virtual.run(main())


def test_workers_decode_side_by_side() -> None:
    async def main() -> None:
        async with scheduling(Fake(), workers=3) as scheduler:
            with scheduler.lane() as lane:
                await asyncio.gather(*await soon(scheduler, lane, *(Ask(str(n)) for n in range(6))))
                assert now() == pytest.approx(0.2)

    virtual.run(main())


# One lane


def test_a_newer_window_takes_the_place_of_a_partial_that_waits() -> None:
    async def main() -> None:
        metrics = WhisperMetrics()
        async with scheduling(fake := Fake(), metrics=metrics) as scheduler:
            with scheduler.lane() as lane, scheduler.lane() as other:
                tasks = await soon(scheduler, other, Ask("running"))
                await asyncio.sleep(0.01)
                tasks += await soon(scheduler, lane, Ask("1", PARTIAL), Ask("2", PARTIAL), Ask("3"), Ask("4", PARTIAL))
                assert await ends(tasks) == ["heard running", Replaced, Replaced, "heard 3", "heard 4"]
        assert fake.batches == [["running"], ["3"], ["4"]]
        assert metrics._dropped._value.get() == 2

    virtual.run(main())


def test_a_partial_that_is_replaced_costs_no_features() -> None:
    async def main() -> None:
        async with scheduling(fake := Fake(features=0.01), features=1) as scheduler:
            with scheduler.lane() as lane:
                tasks = await soon(scheduler, lane, Ask("1", PARTIAL))
                await asyncio.sleep(0.001)
                tasks += await soon(scheduler, lane, Ask("2", PARTIAL), Ask("3", PARTIAL))
                assert await ends(tasks) == [Replaced, Replaced, "heard 3"]
        assert fake.prepared == ["1", "3"]  # the first had begun

    virtual.run(main())


def test_a_partial_inherits_the_place_of_the_one_it_replaces() -> None:
    async def main() -> None:
        async with scheduling(fake := Fake(base=1.0)) as scheduler:
            with scheduler.lane() as lane, scheduler.lane() as other:
                tasks = await soon(scheduler, other, Ask("running"))
                await asyncio.sleep(0.1)
                tasks += await soon(scheduler, lane, Ask("old", PARTIAL))
                await asyncio.sleep(0.1)
                with scheduler.lane() as third:
                    tasks += await soon(scheduler, third, Ask("between", PARTIAL))
                    await asyncio.sleep(0.1)
                    tasks += await soon(scheduler, lane, Ask("new", PARTIAL))
                    await asyncio.gather(*tasks, return_exceptions=True)
        assert fake.batches == [["running"], ["new"], ["between"]]

    virtual.run(main())


def test_streams_whose_partials_never_come_in_time_take_turns() -> None:
    """Each asks anew before its turn could come, and there is time for a twentieth of what they ask for."""

    async def main() -> None:
        async with scheduling(Fake(base=0.5)) as scheduler:
            done = [0] * 20

            async def stream(n: int) -> None:
                async def ask() -> None:
                    with contextlib.suppress(Replaced):
                        await scheduler.decode(lane, Ask("partial", PARTIAL))
                        done[n] += 1

                with scheduler.lane() as lane:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(400):
                            group.create_task(ask())
                            await asyncio.sleep(0.5)

            await asyncio.gather(*map(stream, range(20)))
            assert scheduler.partial_stretch == 8.0
            assert sum(done) >= 400
            assert max(done) - min(done) <= 2

    virtual.run(main())


def test_finals_replace_nothing_but_partials() -> None:
    async def main() -> None:
        async with scheduling(fake := Fake()) as scheduler:
            with scheduler.lane() as lane:
                tasks = await soon(scheduler, lane, Ask("1"), Ask("2"), Ask("3"))
                await ends(tasks)
                running = await soon(scheduler, lane, Ask("partial", PARTIAL))
                await asyncio.sleep(0.05)
                assert await ends([*running, *await soon(scheduler, lane, Ask("4"))]) == ["heard partial", "heard 4"]
        assert fake.batches == [["1"], ["2"], ["3"], ["partial"], ["4"]]

    virtual.run(main())


def test_a_lanes_partial_waits_for_its_last_one_and_finals_for_nobody() -> None:
    async def main() -> None:
        async with scheduling(fake := Fake(), workers=3) as scheduler:
            with scheduler.lane() as lane:
                tasks = await soon(scheduler, lane, Ask("1", PARTIAL))
                await asyncio.sleep(0.01)
                tasks += await soon(scheduler, lane, Ask("2", PARTIAL))
                await asyncio.sleep(0.01)
                assert fake.batches == [["1"]]
                tasks += await soon(scheduler, lane, Ask("3", PARTIAL))
                await asyncio.sleep(0.1)
                assert fake.batches == [["1"], ["3"]]
                tasks += await soon(scheduler, lane, Ask("4"))
                await asyncio.sleep(0.01)
                assert fake.batches == [["1"], ["3"], ["4"]]
                tasks[3].cancel()  # the thread is at it all the same
                tasks += await soon(scheduler, lane, Ask("5", PARTIAL))
                await asyncio.sleep(0.08)
                assert len(fake.batches) == 3
                assert await ends(tasks) == ["heard 1", Replaced, "heard 3", asyncio.CancelledError, "heard 5"]

    virtual.run(main())


def test_lanes_replace_only_their_own() -> None:
    async def main() -> None:
        async with scheduling(Fake()) as scheduler:
            with scheduler.lane() as one, scheduler.lane() as two:
                tasks = [*await soon(scheduler, one, Ask("1", PARTIAL)), *await soon(scheduler, two, Ask("2", PARTIAL))]
                assert await ends(tasks) == ["heard 1", "heard 2"]

    virtual.run(main())


def test_who_is_cancelled_is_not_decoded() -> None:
    async def main() -> None:
        async with scheduling(fake := Fake()) as scheduler:
            with scheduler.lane() as lane:
                tasks = await soon(scheduler, lane, Ask("1"), Ask("2"), Ask("3"))
                await asyncio.sleep(0.01)
                tasks[0].cancel()  # in the middle of it: its answer goes nowhere
                tasks[1].cancel()
                assert await ends(tasks) == [asyncio.CancelledError, asyncio.CancelledError, "heard 3"]
                assert not lane.jobs
        assert fake.batches == [["1"], ["3"]]

    virtual.run(main())


def test_leaving_a_lane_ends_whatever_is_in_it() -> None:
    async def main() -> None:
        async with scheduling(fake := Fake()) as scheduler:
            with scheduler.lane() as other:
                with scheduler.lane() as lane:
                    tasks = await soon(scheduler, lane, Ask("1"), Ask("2"))
                    await asyncio.sleep(0.01)
                tasks += await soon(scheduler, other, Ask("3"))
                assert await ends(tasks) == [asyncio.CancelledError, asyncio.CancelledError, "heard 3"]
                with pytest.raises(RuntimeError, match="left"):
                    await scheduler.decode(lane, Ask("4"))
        assert fake.batches == [["1"], ["3"]]

    virtual.run(main())


# Failures


def codes(metrics: WhisperMetrics) -> dict[tuple[str, str], float]:
    """Windows that failed, by code and kind."""
    samples = [sample for family in metrics._failed.collect() for sample in family.samples]
    return {
        (sample.labels["code"], sample.labels["kind"]): sample.value
        for sample in samples
        if sample.name.endswith("_total")
    }


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA failed with error out of memory"),
        RuntimeError("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA_ERROR_OUT_OF_MEMORY"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_what_does_not_fit_into_memory_is_decoded_in_halves(error: Exception) -> None:
    def trouble(batch: list[Ask]) -> None:
        if len(batch) > 3:
            raise error

    async def main() -> None:
        async with scheduling(fake := Fake(trouble=trouble), most=12, features=12) as scheduler:
            with scheduler.lane() as lane:

                async def sizes(asks: int = 12) -> list[int]:
                    fake.batches.clear()
                    tasks = await soon(scheduler, lane, *(Ask(str(n)) for n in range(asks)))
                    assert await ends(tasks) == [f"heard {n}" for n in range(asks)]
                    return [len(batch) for batch in fake.batches]

                assert await sizes() == [12, 6, 3, 3, 3, 3]
                assert await sizes() == [3, 3, 3, 3]
                await asyncio.sleep(59.5 - now())
                assert await sizes() == [3, 3, 3, 3]
                await asyncio.sleep(61 - now())
                assert await sizes() == [6, 3, 3, 3, 3]  # it was tried again, once

    virtual.run(main())


def test_batches_grow_back_once_there_is_memory() -> None:
    full = [True]

    def trouble(batch: list[Ask]) -> None:
        if full[0] and len(batch) > 2:
            raise MemoryError

    async def main() -> None:
        async with scheduling(fake := Fake(trouble=trouble), most=8, features=8) as scheduler:
            with scheduler.lane() as lane:
                for at, largest in ((0, 2), (50, 2), (62, 4), (122, 8), (500, 8)):
                    await asyncio.sleep(at - now())
                    await ends(await soon(scheduler, lane, *(Ask(str(n)) for n in range(8))))
                    assert len(fake.batches[-1]) == largest, at
                    full[0] = False

    virtual.run(main())


def test_a_window_that_does_not_even_fit_alone_is_refused() -> None:
    def trouble(batch: list[Ask]) -> None:
        if any(ask.name == "huge" for ask in batch):
            raise MemoryError

    async def main() -> None:
        metrics = WhisperMetrics()
        async with scheduling(fake := Fake(trouble=trouble), most=4, metrics=metrics) as scheduler:
            with scheduler.lane() as lane:
                tasks = await soon(scheduler, lane, Ask("1"), Ask("huge"), Ask("2"), Ask("3"))
                results = await asyncio.gather(*tasks, return_exceptions=True)
        huge = results.pop(1)
        assert results == ["heard 1", "heard 2", "heard 3"]
        assert isinstance(huge, BackendError)
        assert (huge.code, huge.retryable) == ("overloaded", True)
        assert isinstance(huge.__cause__, MemoryError)
        assert len(fake.batches) == 5  # 4, 2 and 2, 1 and 1
        assert codes(metrics) == {("overloaded", "final"): 1}

    virtual.run(main())


def test_one_bad_window_hurts_nobody_else() -> None:
    def trouble(batch: list[Ask]) -> None:
        if any(ask.name == "bad" for ask in batch):
            raise ValueError("what the model says of it")

    async def main() -> None:
        async with scheduling(fake := Fake(trouble=trouble), most=8) as scheduler:
            with scheduler.lane() as lane:
                results: list[Any] = await asyncio.gather(
                    *await soon(scheduler, lane, Ask("1"), Ask("bad"), Ask("2")), return_exceptions=True
                )
        assert (results[0], results[2]) == ("heard 1", "heard 2")
        assert isinstance(results[1], BackendError)
        assert (results[1].code, results[1].retryable, results[1].fault) == ("failed", True, Fault.ENGINE)
        assert "what the model says" not in str(results[1])  # it may be about somebody's words
        assert fake.batches == [["1", "bad", "2"], ["1"], ["bad"], ["2"]]

    virtual.run(main())


def test_the_decoders_own_errors_pass() -> None:
    def trouble(batch: list[Ask]) -> None:
        raise BackendError("no such language", code="rejected", fault=Fault.CLIENT)

    async def main() -> None:
        async with scheduling(fake := Fake(trouble=trouble), most=2) as scheduler:
            with scheduler.lane() as lane:
                tasks = await soon(scheduler, lane, Ask("1"), Ask("2"))
                results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        assert [(str(e), e.code, e.fault, e.retryable) for e in results] == [
            ("no such language", "rejected", Fault.CLIENT, False)
        ] * 2
        assert results[0] is not results[1]
        assert fake.batches == [["1", "2"]]

    virtual.run(main())


def test_features_that_cannot_be_made() -> None:
    class Picky(Fake):
        def prepare(self, request: Ask) -> tuple[Ask]:
            if request.name == "memory":
                raise MemoryError
            if request.name == "own":
                raise BackendError("too long", code="rejected")
            if request.name == "bad":
                raise ZeroDivisionError
            return super().prepare(request)

    async def main() -> None:
        async with scheduling(Picky()) as scheduler:
            with scheduler.lane() as lane:
                tasks = await soon(scheduler, lane, *map(Ask, ("memory", "own", "bad", "good")))
                assert await ends(tasks) == ["overloaded", "rejected", "failed", "heard good"]

    virtual.run(main())


def test_a_decoder_that_miscounts() -> None:
    class Short(Fake):
        def decode(self, batch: Sequence[tuple[Ask]]) -> list[str]:
            return super().decode(batch)[: 1 if len(batch) > 1 else None]

    async def main() -> None:
        async with scheduling(Short(), most=3) as scheduler:
            with scheduler.lane() as lane:
                assert await ends(await soon(scheduler, lane, Ask("1"), Ask("2"))) == ["heard 1", "heard 2"]

    virtual.run(main())


def test_a_partial_whose_batch_failed_gives_way_to_a_newer_one() -> None:
    def trouble(batch: list[Ask]) -> None:
        if len(batch) > 1:
            raise ValueError

    async def main() -> None:
        async with scheduling(fake := Fake(trouble=trouble), most=2, wait=0.01) as scheduler:
            with scheduler.lane() as one, scheduler.lane() as two:
                tasks = [*await soon(scheduler, one, Ask("1", PARTIAL)), *await soon(scheduler, two, Ask("2", PARTIAL))]
                await asyncio.sleep(0.05)
                tasks += await soon(scheduler, one, Ask("3", PARTIAL))
                assert await ends(tasks) == [Replaced, "heard 2", "heard 3"]
        assert ["1"] not in fake.batches

    virtual.run(main())


def test_who_is_cancelled_at_the_moment_of_the_end_is_cancelled() -> None:
    async def main() -> None:
        async with scheduling(Fake()) as scheduler:
            with scheduler.lane() as lane:
                (answered,) = await soon(scheduler, lane, Ask("1"))
                await asyncio.sleep(0.05)
                asyncio.get_running_loop().call_at(0.1, answered.cancel)  # in the same turn, but first
                assert await ends([answered]) == [asyncio.CancelledError]
                assert now() == pytest.approx(0.1)

                running, replaced = await soon(scheduler, lane, Ask("2"), Ask("3", PARTIAL))
                newer = asyncio.create_task(scheduler.decode(lane, Ask("4", PARTIAL)))
                replaced.cancel()
                assert await ends([running, replaced, newer]) == ["heard 2", asyncio.CancelledError, "heard 4"]

                running, failed = await soon(scheduler, lane, Ask("5"), Ask("6"))
                await asyncio.sleep(0.05)
                failed.cancel()
                await scheduler.close()
                assert await ends([running, failed]) == ["heard 5", asyncio.CancelledError]

    virtual.run(main())


def test_an_error_for_somebody_who_is_cancelled_at_that_moment_is_no_news() -> None:
    async def main() -> None:
        news: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: news.append(context))
        async with scheduling(Fake()) as scheduler:
            with scheduler.lane() as lane:
                (task,) = await soon(scheduler, lane, Ask("1"))
                for job in list(lane.jobs):
                    job.future.set_exception(BackendError("nobody asks"))
                del job
                task.cancel()
                assert await ends([task]) == [asyncio.CancelledError]
        gc.collect()
        assert not news

    virtual.run(main())


@pytest.mark.parametrize(("error", "code"), [(ValueError(), "failed"), (MemoryError(), "overloaded")])
def test_a_model_that_always_fails_does_not_flood_the_log(
    caplog: pytest.LogCaptureFixture, error: Exception, code: str
) -> None:
    def trouble(batch: list[Ask]) -> None:
        raise error

    async def main() -> None:
        async with scheduling(Fake(trouble=trouble)) as scheduler:
            with scheduler.lane() as lane:
                while now() < 25:
                    assert await ends(await soon(scheduler, lane, Ask("1"))) == [code]
        assert len(caplog.records) == 3
        assert "decoding failed, 100 times" in caplog.text

    virtual.run(main())


def test_close_fails_what_waits_and_lets_what_runs_end() -> None:
    async def main() -> None:
        async with scheduling(Fake(base=1.0)) as scheduler:
            with scheduler.lane() as lane:
                tasks = await soon(scheduler, lane, Ask("1"), Ask("2"), Ask("3", PARTIAL))
                await asyncio.sleep(0.5)
                await scheduler.close()
                assert await ends(tasks) == ["heard 1", "unavailable", "unavailable"]
                assert await ends(await soon(scheduler, lane, Ask("4"))) == ["unavailable"]
                assert (scheduler.partial_stretch, scheduler.refusal()) == (1.0, "the engine is closed")
            await scheduler.close()

    virtual.run(main())


def test_close_waits_only_so_long() -> None:
    async def main() -> None:
        async with scheduling(Fake(base=60.0)) as scheduler:
            with scheduler.lane() as lane:
                tasks = await soon(scheduler, lane, Ask("1"))
                await asyncio.sleep(0.5)
                await scheduler.close()
                assert await ends(tasks) == ["unavailable"]
                assert now() < 6

    virtual.run(main())


def test_before_start() -> None:
    async def main() -> None:
        scheduler: Fakes = Scheduler(Fake(), Plan(1, 1, 0.0, 1, ""), workers=VirtualWorkers)
        assert (scheduler.partial_stretch, scheduler.refusal()) == (1.0, "the engine is closed")
        with pytest.raises(RuntimeError, match="not started"), scheduler.lane():
            pass
        await scheduler.close()

    virtual.run(main())


async def test_a_system_that_gives_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if "decode" in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    scheduler: Fakes = Scheduler(Fake(), Plan(1, 1, 0.0, 1, ""))
    with pytest.raises(BackendError) as caught:
        await scheduler.start()
    assert (caught.value.code, caught.value.retryable) == ("unavailable", True)
    assert not threads()


@pytest.mark.parametrize("numbers", [(0, 1, 0.0, 1), (1, 0, 0.0, 1), (1, 1, -0.1, 1), (1, 1, 0.0, 0)])
def test_plans_are_checked(numbers: tuple[int, int, float, int]) -> None:
    with pytest.raises(ValueError, match="not a plan"):
        Plan(*numbers, "reason")


# Under load, in virtual time


@dataclass
class Speaker:
    """A live stream: speaks for `speech` seconds, asks for a final, pauses; partials meanwhile."""

    scheduler: Fakes
    chance: random.Random
    until: float
    speed: float = 1.0
    interval: float = 0.5
    seconds: list[float] = field(default_factory=list)
    partials: list[bool] = field(default_factory=list)

    async def live(self) -> None:
        with self.scheduler.lane() as lane:
            await asyncio.sleep(self.chance.uniform(0, 3) / self.speed)
            while now() < self.until:
                speech = self.chance.uniform(1.0, 5.0)
                asking = asyncio.create_task(self.ask(lane))
                await asyncio.sleep(speech / self.speed)
                asking.cancel()
                began = now()
                await self.scheduler.decode(lane, Ask("final", seconds=speech + 0.7))
                self.seconds.append(now() - began)
                await asyncio.sleep(self.chance.uniform(0.3, 1.5) / self.speed)

    async def ask(self, lane: Lane) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(self.interval * self.scheduler.partial_stretch / self.speed)
                group.create_task(self.partial(lane))

    async def partial(self, lane: Lane) -> None:
        try:
            await self.scheduler.decode(lane, Ask("partial", PARTIAL, PARTIAL))
            self.partials.append(True)
        except Replaced:
            self.partials.append(False)


def p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def crowd(scheduler: Fakes, count: int, until: float, seed: int = 1, **options: Any) -> list[Speaker]:
    return [Speaker(scheduler, random.Random(seed * 1_000 + n), until, **options) for n in range(count)]


async def speak(*speakers: Speaker) -> None:
    async with asyncio.TaskGroup() as group:
        for speaker in speakers:
            group.create_task(speaker.live())


def test_a_client_with_ten_sessions_worth_does_not_slow_the_others() -> None:
    def others(greedy: int, workers: int, most: int, each: float) -> float:
        async def main() -> float:
            fake = Fake(base=0.08, each=each)
            async with scheduling(fake, workers=workers, most=most, wait=0.01) as scheduler:
                speakers = crowd(scheduler, 10, 200)
                await speak(*speakers, *crowd(scheduler, greedy, 200, seed=2, speed=10.0))
                return p95([s for speaker in speakers for s in speaker.seconds])

        return virtual.run(main())

    for setup in ((2, 1, 0.0), (1, 16, 0.005)):  # a CPU with two workers, a GPU
        alone, beside = others(0, *setup), others(1, *setup)
        assert beside < 1.2 * alone, setup


def test_partials_give_way_before_finals_suffer_and_come_back() -> None:
    async def main() -> None:
        async with scheduling(Fake(base=0.1)) as scheduler:
            stretches: list[float] = []
            refusals: list[str | None] = []

            async def watch() -> None:
                while now() < 260:
                    await asyncio.sleep(1)
                    stretches.append(scheduler.partial_stretch)
                    refusals.append(scheduler.refusal())

            watching = asyncio.create_task(watch())
            # Ten finals a worker carries a second: 20 speakers want 4, and 33 partials.
            loaded = crowd(scheduler, 20, 100)
            await speak(*loaded)
            settled = [s for speaker in loaded for s in speaker.seconds[5:]]
            assert p95(settled) < 1.0
            assert max(stretches) > 3
            assert min(stretches[30:100]) > 1.5
            done = [done for speaker in loaded for done in speaker.partials]
            assert done.count(True) > 200  # the capacity that finals leave
            calm = crowd(scheduler, 2, 260, seed=2)
            await speak(*calm)
            await watching
            assert stretches[-1] < 1.1
            assert not any(refusals[150:])
            assert p95([s for speaker in calm for s in speaker.seconds]) < 0.25

    virtual.run(main())


def test_new_sessions_are_refused_while_finals_are_late_and_no_longer() -> None:
    async def main() -> None:
        async with scheduling(Fake(base=0.25)) as scheduler:
            # Four finals a worker carries a second: 40 speakers want 8.
            load = asyncio.create_task(speak(*crowd(scheduler, 40, 60)))
            await asyncio.sleep(40)
            refusal = scheduler.refusal()
            assert refusal is not None
            assert "took longer than 1 s" in refusal
            await load
            await asyncio.sleep(21)
            assert scheduler.refusal() is None

    virtual.run(main())


def test_who_has_used_much_stands_behind_who_came_later() -> None:
    async def main() -> None:
        async with scheduling(fake := Fake(base=1.0)) as scheduler:
            with scheduler.lane() as greedy, scheduler.lane() as modest:
                await asyncio.gather(*await soon(scheduler, greedy, Ask("1"), Ask("2")))
                tasks = await soon(scheduler, modest, Ask("running"))
                await asyncio.sleep(0.1)
                tasks += await soon(scheduler, greedy, Ask("greedy"))
                await asyncio.sleep(0.5)
                tasks += await soon(scheduler, modest, Ask("modest"))
                await asyncio.gather(*tasks)
                # Who opens another lane is no newcomer among those at work.
                tasks = await soon(scheduler, modest, Ask("running"))
                tasks += await soon(scheduler, greedy, Ask("earlier"))
                with scheduler.lane() as fresh:
                    await asyncio.sleep(0.1)
                    assert fresh.share.used(now()) == pytest.approx(modest.share.used(now()))
                    await asyncio.gather(*tasks)
        assert [name for (name,) in fake.batches[3:5]] == ["modest", "greedy"]

    virtual.run(main())


def test_partials_that_only_ever_wait_are_pressure() -> None:
    async def main() -> None:
        async with scheduling(fake := Fake(base=50.0)) as scheduler:
            with scheduler.lane() as busy, scheduler.lane() as lane:
                tasks = await soon(scheduler, busy, Ask("1"))
                for _ in range(60):
                    tasks += await soon(scheduler, lane, Ask("partial", PARTIAL))
                    await asyncio.sleep(0.4)
                assert len(fake.batches) == 1
                assert scheduler.partial_stretch > 3
            await ends(tasks)

    virtual.run(main())


def test_finals_that_wait_behind_a_batch_without_end_refuse_others() -> None:
    async def main() -> None:
        async with scheduling(Fake(base=50.0)) as scheduler:
            with scheduler.lane() as lane:
                tasks = await soon(scheduler, lane, *map(Ask, "1234"))
                await asyncio.sleep(0.9)
                assert scheduler.refusal() is None
                await asyncio.sleep(0.2)
                assert "3 of the last 3 finals" in (scheduler.refusal() or "")
            await ends(tasks)
            assert scheduler.refusal() is None

    virtual.run(main())


def test_a_file_sent_as_fast_as_it_goes_refuses_nobody() -> None:
    async def main() -> None:
        async with scheduling(Fake(base=0.6)) as scheduler:
            refusals = []

            async def upload() -> None:
                with scheduler.lane() as lane:
                    while now() < 60:
                        await asyncio.gather(*(scheduler.decode(lane, Ask("file", seconds=28)) for _ in range(3)))
                        refusals.append(scheduler.refusal())

            await upload()
            assert refusals[2:] == [None] * len(refusals[2:])

    virtual.run(main())


def test_partials_starve_two_seconds_at_most_and_finals_keep_most_of_the_time() -> None:
    async def main() -> None:
        async with scheduling(fake := Fake(base=0.1)) as scheduler:
            with contextlib.ExitStack() as stack:
                finals = [stack.enter_context(scheduler.lane()) for _ in range(4)]

                async def greedy(lane: Lane) -> None:
                    while now() < 60:
                        await scheduler.decode(lane, Ask("final"))

                waits = []
                async with asyncio.TaskGroup() as group:
                    for lane in finals:
                        group.create_task(greedy(lane))
                    with scheduler.lane() as quiet:
                        while now() < 55:
                            began = now()
                            await scheduler.decode(quiet, Ask("partial", PARTIAL))
                            waits.append(now() - began)
            assert max(waits) <= 2.0 + 0.1 + 0.1 + 1e-6
            assert len(waits) > 20
            names = [name for (name,) in fake.batches]
            assert names.count("partial") < 0.06 * len(names)

    virtual.run(main())


# Whatever happens


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([(1, 1, 0.0), (2, 1, 0.0), (1, 8, 0.02), (3, 4, 0.005)]))
def test_every_request_ends_in_exactly_one_way(seed: int, plan: tuple[int, int, float]) -> None:
    chance = random.Random(seed)
    workers, most, wait = plan

    def trouble(batch: list[Ask]) -> None:
        assert len(batch) <= most
        assert len({ask.group for ask in batch}) == 1
        luck = chance.random()
        if luck < 0.04:
            raise MemoryError
        if luck < 0.08:
            raise ValueError("now and then")
        if luck < 0.1:
            raise BackendError("own", code="worker_died", retryable=True)
        if any("poison" in ask.name for ask in batch):
            raise KeyError("always")

    async def main() -> None:
        ended: dict[str, list[Any]] = {}
        asked = 0
        fake = Fake(base=0.02, each=0.005, features=0.004, trouble=trouble)

        async def request(scheduler: Fakes, lane: Lane, ask: Ask) -> None:
            ways = ended.setdefault(ask.name, [])
            try:
                answer = await scheduler.decode(lane, ask)
                assert answer == f"heard {ask.name}"
                ways.append("answer")
            except Replaced:
                assert ask.kind is PARTIAL
                ways.append("replaced")
            except BackendError as exc:
                ways.append(exc.code)
            except asyncio.CancelledError:
                ways.append("cancelled")

        async with scheduling(fake, workers, most, wait, chance.choice([1, 4])) as scheduler:
            lanes: list[tuple[contextlib.ExitStack, Lane]] = []
            tasks: list[asyncio.Task[None]] = []
            for _ in range(1_000):
                what = chance.random()
                if not lanes or what < 0.03:
                    stack = contextlib.ExitStack()
                    lanes.append((stack, stack.enter_context(scheduler.lane())))
                elif what < 0.05:
                    lanes.pop(chance.randrange(len(lanes)))[0].close()
                elif what < 0.12 and tasks:
                    chance.choice(tasks).cancel()
                elif what < 0.7:
                    name = f"{'poison' if chance.random() < 0.01 else 'ask'} {asked}"
                    kind = chance.choice([FINAL, PARTIAL, PARTIAL])
                    ask = Ask(name, kind, chance.choice([None, 1, 2]), chance.uniform(0.1, 30))
                    asked += 1
                    tasks.append(asyncio.create_task(request(scheduler, chance.choice(lanes)[1], ask)))
                    await asyncio.sleep(0)
                else:
                    await asyncio.sleep(chance.expovariate(50))
                for _, lane in lanes:
                    assert sum(job.waits and job.kind is PARTIAL for job in lane.jobs) <= 1
            if chance.random() < 0.5:
                await scheduler.close()
            await asyncio.gather(*tasks)
            assert all(task.done() for task in tasks)
            assert not any(lane.jobs for _, lane in lanes)
            assert not scheduler._raw
            assert not len(scheduler._ready)
            for stack, _ in lanes:
                stack.close()
        # One that was cancelled before its first step never asked.
        assert all(len(ways) == 1 for ways in ended.values())
        assert {"answer", "replaced", "cancelled"} <= {way for (way,) in ended.values()}
        assert not any(ways == ["answer"] for name, ways in ended.items() if "poison" in name)

    virtual.run(main())


# Real threads


class Threaded:
    """A decoder on real threads: what is called `stop` goes on until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.stopped = threading.Semaphore(0)
        self.idents: list[int] = []

    def prepare(self, request: Ask) -> Ask:
        return request

    def key(self, request: Ask) -> Hashable:
        return request.group

    def decode(self, batch: Sequence[Ask]) -> list[str]:
        if any(ask.name == "stop" for ask in batch):
            self.idents.append(threading.get_ident())
            self.stopped.release()
            while not self.released.is_set():
                time.sleep(0.001)
        return [f"heard {ask.name}" for ask in batch]


def kill(ident: int) -> None:
    """An exception is thrown into the thread."""
    count = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(SystemExit))
    assert count == 1


@pytest.fixture(autouse=True)
def others() -> Iterator[None]:
    """Threads of engines that other tests still hold are not this test's."""
    _others.update(threading.enumerate())
    yield
    _others.clear()


_others: set[threading.Thread] = set()


def living() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("whisper-") and thread not in _others]


def threads() -> list[str]:
    return [thread.name for thread in living()]


async def stops(decoder: Threaded, count: int = 1) -> None:
    """So many threads stand still."""
    for _ in range(count):
        assert await asyncio.to_thread(decoder.stopped.acquire, timeout=5)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_many_streams_on_real_threads() -> None:
    async def stream(scheduler: Fakes, n: int) -> None:
        with scheduler.lane() as lane:
            for m in range(30):
                assert await scheduler.decode(lane, Ask(f"{n}.{m}", Kind(m % 2))) == f"heard {n}.{m}"

    async with scheduling(Threaded(), workers=3, most=4, wait=0.001, real=True) as scheduler:
        await asyncio.gather(*(stream(scheduler, n) for n in range(30)))
        assert len(threads()) == 3 + 4
    assert not threads()


async def test_a_thread_that_is_killed_costs_only_its_batch() -> None:
    metrics, decoder = WhisperMetrics(), Threaded()
    async with scheduling(decoder, workers=2, real=True, metrics=metrics) as scheduler:
        with scheduler.lane() as lane, scheduler.lane() as other:
            for _ in range(3):
                (doomed,) = await soon(scheduler, lane, Ask("stop"))
                await stops(decoder)
                kill(decoder.idents.pop())
                with pytest.raises(BackendError) as caught:
                    await doomed
                assert (caught.value.code, caught.value.retryable) == ("worker_died", True)
                assert await ends(await soon(scheduler, other, Ask("1"), Ask("2"))) == ["heard 1", "heard 2"]
        assert scheduler.refusal() is None
    assert metrics._deaths._value.get() == 3
    assert codes(metrics) == {("worker_died", "final"): 3}
    assert not threads()


async def test_a_thread_that_hangs_is_given_up() -> None:
    decoder = Threaded()
    async with scheduling(decoder, real=True, decode_limit_seconds=0.2) as scheduler:
        with scheduler.lane() as lane, scheduler.lane() as other:
            tasks = await soon(scheduler, lane, Ask("stop"))
            await stops(decoder)
            tasks += await soon(scheduler, other, Ask("1"))
            assert await ends(tasks) == ["stalled", "heard 1"]
            decoder.released.set()
            await until(lambda: len([name for name in threads() if "decode" in name]) == 1)
            assert await ends(await soon(scheduler, lane, Ask("2"))) == ["heard 2"]


async def test_when_every_thread_hangs_sessions_are_refused_until_one_comes_back() -> None:
    decoder = Threaded()
    async with scheduling(decoder, real=True, decode_limit_seconds=0.1) as scheduler:
        with scheduler.lane() as lane:
            tasks = await soon(scheduler, lane, *(Ask("stop") for _ in range(5)))
            await stops(decoder, 4)
            assert await ends(tasks) == ["stalled"] * 5  # the last one never began
            assert scheduler.refusal() == "every thread of the engine hangs"
            assert await ends(await soon(scheduler, lane, Ask("1"))) == ["stalled"]
            assert len(decoder.idents) == 4
            decoder.released.set()
            await until(lambda: scheduler.refusal() is None)
            assert await ends(await soon(scheduler, lane, Ask("2"))) == ["heard 2"]


async def test_a_cancelled_request_leaves_its_thread_to_others() -> None:
    decoder = Threaded()
    async with scheduling(decoder, real=True) as scheduler:
        with scheduler.lane() as lane:
            (stopped,) = await soon(scheduler, lane, Ask("stop"))
            await stops(decoder)
        assert await ends([stopped]) == [asyncio.CancelledError]
        decoder.released.set()
        with scheduler.lane() as lane:
            assert await ends(await soon(scheduler, lane, Ask("1"))) == ["heard 1"]


# What kills a thread strikes it anywhere, in a callback of the collector as well: that tells, and goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("policy", ["asyncio", "uvloop"])
def test_threads_that_are_killed_at_random_lose_no_request(policy: str) -> None:
    chance = random.Random(3)
    names: list[str] = []

    class Slow(Threaded):
        def decode(self, batch: Sequence[Ask]) -> list[str]:
            for _ in range(len(batch) + 2):
                time.sleep(0.0005)
            return super().decode(batch)

    async def stream(scheduler: Fakes, n: int) -> None:
        with scheduler.lane() as lane:
            for m in range(25):
                ask = Ask(f"{n}.{m}", Kind(m % 2), group=chance.randrange(2))
                (way,) = await ends(await soon(scheduler, lane, ask))
                names.append(way)
                assert way in {f"heard {ask.name}", "worker_died"}

    async def kills(scheduler: Fakes) -> None:
        while True:
            await asyncio.sleep(0.01)
            with contextlib.suppress(AssertionError):  # it is gone already
                kill(chance.choice(living()).ident or 0)

    async def main() -> None:
        metrics = WhisperMetrics()
        async with scheduling(Slow(), workers=3, most=4, wait=0.001, real=True, metrics=metrics) as scheduler:
            killing = asyncio.create_task(kills(scheduler))
            async with asyncio.timeout(30):
                await asyncio.gather(*(stream(scheduler, n) for n in range(12)))
            killing.cancel()
            assert scheduler._decoding.capacity == 3
            assert scheduler._preparing.capacity == 4
        assert metrics._deaths._value.get() > 3

    factory = None if policy == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert len(names) == 12 * 25
    assert sum(name.startswith("heard") for name in names) > 200
    assert not threads()
