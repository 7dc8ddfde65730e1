"""Workers: what becomes of a job, whatever happens to its file, its engine, its store or its worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from bridge.errors import BridgeError
from bridge.jobs import worker as worker_module
from bridge.jobs.models import Job, JobOptions, Outcome, Progress, State, decode_segments
from bridge.jobs.sqlite_store import SqliteJobStore
from bridge.jobs.store import Rules, StoreUnavailableError
from bridge.observe.metrics import Metrics
from bridge.uploads.blobs import BlobStore, NoBlobError
from bridge.uploads.urls import open_blobs
from tests.jobs.samples import BACKEND, name
from tests.jobs.workers import LIMIT, FakeBatch, ended, handed_in, running, until, worker, working
from tests.wire import metric


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "BACKOFF_SECONDS", 0.02)
    monkeypatch.setattr(worker_module, "AWAY_SECONDS", 0.02)
    monkeypatch.setattr(worker_module, "PROGRESS_SECONDS", 0.05)


class Troubled(SqliteJobStore):
    """Does not answer as often as it is told, to some questions."""

    def __init__(self, rules: Rules) -> None:
        super().__init__(None, rules)
        self.away: dict[str, int] = {}

    def _fail(self, question: str) -> None:
        if self.away.get(question, 0):
            self.away[question] -= 1
            raise StoreUnavailableError(f"{question}: away")

    async def claim(self, backend: str) -> Job | None:
        self._fail("claim")
        return await super().claim(backend)

    async def beat(self, job: Job, progress: Progress) -> bool:
        self._fail("beat")
        return await super().beat(job, progress)

    async def finish(self, job: Job, outcome: Outcome, progress: Progress) -> bool:
        self._fail("finish")
        return await super().finish(job, outcome, progress)


@pytest.fixture
async def store() -> AsyncIterator[Troubled]:
    store = Troubled(Rules(lease_seconds=0.4))
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[BlobStore]:
    blobs = open_blobs(str(tmp_path / "files"))
    await blobs.open()
    yield blobs
    await blobs.close()


async def text_of(store: SqliteJobStore, job: Job) -> str:
    result = await store.result(job.id)
    assert result is not None
    return " ".join(segment.text for segment in decode_segments(result))


async def test_a_job_is_done(store: Troubled, blobs: BlobStore) -> None:
    batch, metrics = FakeBatch(), Metrics()
    options = JobOptions(language="de", phrases=("a", "b"), model="x")
    async with working(worker(store, blobs, batch, metrics)):
        job = await handed_in(store, blobs, "what was said", options=options)
        done = await ended(store, job)
    assert (done.state, done.seconds, done.total, done.engine, done.language, done.attempt) == (
        State.SUCCEEDED,
        2.0,
        2.0,
        BACKEND,
        "en-US",
        1,
    )
    assert await text_of(store, job) == "what was said"
    assert batch.asked["backend"] == "x"
    assert batch.asked["account"].subject == "me"
    with pytest.raises(NoBlobError):
        await blobs.read(job.order.blob)
    assert metric(generate_latest(metrics.registry), "stt_job_attempts_total", why="first") == 1


async def test_jobs_that_wait_already_are_begun(store: Troubled, blobs: BlobStore) -> None:
    jobs = [await handed_in(store, blobs, f"text {i}") for i in range(7)]
    batch = FakeBatch()
    async with working(worker(store, blobs, batch, slots=3)):
        for number, job in enumerate(jobs):
            await ended(store, job)
            assert await text_of(store, job) == f"text {number}"
    assert batch.most <= 3


async def test_no_more_at_once_than_there_are_slots(store: Troubled, blobs: BlobStore) -> None:
    batch = FakeBatch()
    batch.gate.clear()
    jobs = [await handed_in(store, blobs) for _ in range(5)]
    async with working(worker(store, blobs, batch, slots=2)):
        await running(store, jobs[1])
        await asyncio.sleep(0.1)
        assert batch.most == 2
        assert (await store.counts())[State.QUEUED] == 3
        batch.gate.set()
        for job in jobs:
            await ended(store, job)
    assert batch.most == 2


async def test_a_bad_file_fails_once(store: Troubled, blobs: BlobStore) -> None:
    batch = FakeBatch([BridgeError("undecodable_audio", "a.wav: broken")])
    async with working(worker(store, blobs, batch)):
        failed = await ended(store, await handed_in(store, blobs))
    assert (failed.state, failed.code, failed.message, failed.attempt) == (
        State.FAILED,
        "undecodable_audio",
        "a.wav: broken",
        1,
    )
    assert not await blobs.entries("files")


async def test_an_engine_that_fails_is_tried_again(store: Troubled, blobs: BlobStore) -> None:
    batch = FakeBatch([BridgeError("backend_failed"), BridgeError("backend_stalled")])
    async with working(worker(store, blobs, batch)):
        done = await ended(store, await handed_in(store, blobs))
    assert (done.state, done.attempt, done.failures, done.lost) == (State.SUCCEEDED, 3, 2, 0)


@pytest.mark.parametrize(
    ("fault", "code"), [(BridgeError("backend_failed"), "backend_failed"), (KeyError(), "internal")]
)
async def test_not_for_ever(fault: Exception, code: str, store: Troubled, blobs: BlobStore) -> None:
    batch = FakeBatch([fault] * 10)
    async with working(worker(store, blobs, batch)):
        failed = await ended(store, await handed_in(store, blobs))
    assert (failed.state, failed.code, failed.attempt) == (State.FAILED, code, worker_module.FAILURES)


async def test_a_model_that_is_not_there(store: Troubled, blobs: BlobStore) -> None:
    async with working(worker(store, blobs, FakeBatch())):
        failed = await ended(store, await handed_in(store, blobs, options=JobOptions(model="unknown")))
    assert (failed.code, failed.attempt) == ("unknown_backend", 1)


async def test_a_file_that_is_gone(store: Troubled, blobs: BlobStore) -> None:
    job = await handed_in(store, blobs)
    await blobs.delete(job.order.blob)
    async with working(worker(store, blobs, FakeBatch())):
        failed = await ended(store, job)
    assert (failed.state, failed.code, failed.attempt) == (State.FAILED, "internal", worker_module.FAILURES)
    assert failed.message == "the file is no longer there"


async def test_a_file_that_another_worker_finds(store: Troubled, blobs: BlobStore) -> None:
    """A worker that looks elsewhere for files ends no job at once."""
    job = await handed_in(store, blobs)
    away = open_blobs(f"memory://{name()}")
    async with working(worker(store, away, FakeBatch())):
        await until(store, job, lambda now: now.failures > 0)
    async with working(worker(store, blobs, FakeBatch())):
        assert (await ended(store, job)).state is State.SUCCEEDED
    await away.close()


@pytest.mark.parametrize("code", ["store_unavailable", "at_capacity"])
async def test_files_that_are_away_for_long_and_engines_that_are_full_fail_no_job(
    code: str, store: Troubled, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "FILES_SECONDS", 0.01)
    batch = FakeBatch([BridgeError(code) for _ in range(2 * worker_module.FAILURES)])
    async with working(worker(store, blobs, batch)):
        done = await ended(store, await handed_in(store, blobs))
    assert (done.state, done.failures, done.lost) == (State.SUCCEEDED, 0, 0)


async def test_progress_is_told_while_it_runs(store: Troubled, blobs: BlobStore) -> None:
    batch = FakeBatch()
    batch.gate.clear()
    async with working(worker(store, blobs, batch)):
        job = await handed_in(store, blobs)
        now = await until(store, job, lambda job: job.seconds > 0)
        assert (now.seconds, now.total, now.percent, now.engine) == (0.5, 2.0, 25.0, BACKEND)
        batch.gate.set()
        await ended(store, job)


async def test_a_long_job_keeps_its_lease(store: Troubled, blobs: BlobStore) -> None:
    batch = FakeBatch()
    batch.gate.clear()
    async with working(worker(store, blobs, batch), worker(store, blobs, batch)):
        job = await handed_in(store, blobs)
        await running(store, job)
        await asyncio.sleep(3 * store.rules.lease_seconds)
        batch.gate.set()
        done = await ended(store, job)
    assert (done.attempt, done.lost) == (1, 0)


async def test_a_job_that_is_called_off_stops(store: Troubled, blobs: BlobStore) -> None:
    batch = FakeBatch()
    batch.gate.clear()
    async with working(worker(store, blobs, batch)):
        job = await handed_in(store, blobs)
        await running(store, job)
        await store.cancel(job.id)
        async with asyncio.timeout(LIMIT):
            while batch.open_now:
                await asyncio.sleep(0.01)
        another = await handed_in(store, blobs)
        batch.gate.set()
        assert (await ended(store, another)).state is State.SUCCEEDED
    assert (await ended(store, job)).state is State.CANCELLED


async def test_a_worker_that_stops_gives_its_jobs_back_at_once(store: Troubled, blobs: BlobStore) -> None:
    slow, quick = FakeBatch(), FakeBatch()
    slow.gate.clear()
    first = worker(store, blobs, slow)
    async with working(first):
        job = await handed_in(store, blobs)
        await running(store, job)
        await first.stop()
        assert slow.open_now == 0
        assert (await until(store, job, lambda job: job.state is State.QUEUED)).lost == 0
        async with working(worker(store, blobs, quick)):
            done = await ended(store, job)
    assert (done.state, done.attempt, done.lost, done.failures) == (State.SUCCEEDED, 2, 0, 0)


@pytest.mark.parametrize("step", ["finish", "delete"])
async def test_a_worker_that_stops_says_first_what_is_done(
    step: str, store: Troubled, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stop comes while it writes the result down, or deletes the file."""
    owner: object = store if step == "finish" else blobs
    real, begun, gate, metrics = getattr(owner, step), asyncio.Event(), asyncio.Event(), Metrics()

    async def slow(*given: object) -> object:
        begun.set()
        await gate.wait()
        return await real(*given)

    monkeypatch.setattr(owner, step, slow)
    stopped = worker(store, blobs, FakeBatch(), metrics)
    async with working(stopped):
        job = await handed_in(store, blobs)
        async with asyncio.timeout(LIMIT):
            await begun.wait()
        stopping = asyncio.create_task(stopped.stop())
        await asyncio.sleep(0.05)
        gate.set()
        await stopping
    assert (await ended(store, job)).state is State.SUCCEEDED
    assert not await blobs.entries("files")
    assert metric(generate_latest(metrics.registry), "stt_job_seconds_count", state="succeeded") == 1


async def test_a_result_that_nobody_hears_holds_up_no_stop(
    store: Troubled, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "STOP_SECONDS", 0.05)
    store.away = {"finish": 1_000_000}
    stopped = worker(store, blobs, FakeBatch())
    async with working(stopped):
        job = await handed_in(store, blobs)
        async with asyncio.timeout(LIMIT):
            while store.away["finish"] == 1_000_000:
                await asyncio.sleep(0.01)
            await stopped.stop()
    assert (await until(store, job, lambda job: job.state is State.QUEUED)).lost == 0


async def test_who_was_stopped_before_it_began_begins_nothing(store: Troubled, blobs: BlobStore) -> None:
    """A server that is told to stop while its engine loads."""
    job = await handed_in(store, blobs)
    early = worker(store, blobs, FakeBatch())
    await early.stop()
    async with working(early):
        await asyncio.sleep(0.1)
        waiting = await store.get(job.id)
    assert waiting is not None
    assert (waiting.state, waiting.attempt) == (State.QUEUED, 0)


async def test_a_session_that_the_server_ends_is_no_failure(store: Troubled, blobs: BlobStore) -> None:
    batch = FakeBatch([BridgeError("shutting_down")])
    async with working(worker(store, blobs, batch)):
        done = await ended(store, await handed_in(store, blobs))
    assert (done.state, done.attempt, done.failures) == (State.SUCCEEDED, 2, 0)


async def test_who_was_believed_dead_has_no_say(store: Troubled, blobs: BlobStore) -> None:
    """Its lease runs out while the store does not hear it; another one has the job done meanwhile."""
    slow, quick = FakeBatch(), FakeBatch()
    slow.gate.clear()
    metrics = Metrics()
    late = worker(store, blobs, slow, metrics, slots=1)
    async with working(late):
        job = await handed_in(store, blobs, "once")
        await running(store, job)
        store.away["beat"] = 1_000_000
        async with working(worker(store, blobs, quick)):
            done = await ended(store, job)
        slow.gate.set()
        async with asyncio.timeout(LIMIT):
            while late.busy:
                await asyncio.sleep(0.01)
        again = await store.get(job.id)
    assert (done.state, done.attempt, done.lost) == (State.SUCCEEDED, 2, 1)
    assert again == done
    ends = {
        s.labels["state"]: s.value
        for m in metrics.registry.collect()
        for s in m.samples
        if s.name == "stt_job_seconds_count"
    }
    assert ends == {"gone": 1}


async def test_results_are_not_lost_while_the_store_is_away(store: Troubled, blobs: BlobStore) -> None:
    store.away = {"claim": 3, "finish": 5}
    async with working(worker(store, blobs, FakeBatch())):
        job = await handed_in(store, blobs, "kept")
        done = await ended(store, job)
    assert (done.state, done.attempt) == (State.SUCCEEDED, 1)
    assert await text_of(store, job) == "kept"


async def test_stopping_while_it_claims_leaves_nothing_on_a_lease(store: Troubled, blobs: BlobStore) -> None:
    for _ in range(20):
        job = await handed_in(store, blobs)
        batch = FakeBatch()
        batch.gate.clear()
        stopped = worker(store, blobs, batch)
        stopped.start()
        for _ in range(3):
            await asyncio.sleep(0)
        await stopped.stop()
        now = await store.get(job.id)
        assert now is not None
        assert now.state is State.QUEUED
        await store.cancel(job.id)
