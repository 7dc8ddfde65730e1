"""What both stores of jobs owe, each on the real thing."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Final

import pytest

from bridge.jobs.changes import stop_of
from bridge.jobs.models import Job, Notice, Outcome, Progress, State, Terms, decode_segments
from bridge.jobs.redis_scripts import PREFIX
from bridge.jobs.sqlite_store import SqliteJobStore
from bridge.jobs.store import JobConflictError, JobStore, Rules, StoreFullError, StoreUnavailableError
from tests.jobs.conftest import Open
from tests.jobs.samples import BACKEND, name, spoken, terms

SHORT: Final = Rules(lease_seconds=0.2, attempts=2)


async def claimed(store: JobStore, backend: str = BACKEND) -> Job:
    job = await store.claim(backend)
    assert job is not None
    return job


async def seen(store: JobStore, job_id: str) -> Job:
    job = await store.get(job_id)
    assert job is not None
    return job


async def submitted(store: JobStore, asked: Terms | None = None) -> Job:
    return await store.submit(name(), terms() if asked is None else asked)


# Handing in


async def test_a_job_is_what_was_asked_for(open_store: Open) -> None:
    store, asked = await open_store(), terms(webhook="https://a.example/hook")
    job_id = name()
    job = await store.submit(job_id, asked)
    assert job == Job(id=job_id, terms=asked)
    assert await (await open_store()).get(job_id) == job
    assert await store.get(name()) is None
    assert await store.result(job_id) is None
    assert await store.needs(asked.order.blob)
    assert not await store.needs("files/another")


async def test_the_same_name_again_is_the_same_job(open_store: Open) -> None:
    store, asked = await open_store(), terms(fingerprint="f")
    job_id = name()
    await store.submit(job_id, asked)
    again = dataclasses.replace(asked, created=asked.created + 5)
    assert (await store.submit(job_id, again)).terms == asked
    job = await claimed(store)
    await store.finish(job, spoken(), Progress(seconds=1.5))
    assert (await store.submit(job_id, again)).state is State.SUCCEEDED
    assert await store.claim(BACKEND) is None


@pytest.mark.parametrize("other", [terms("key-2", fingerprint="f"), terms(fingerprint="g")])
async def test_a_name_that_is_taken(open_store: Open, other: Terms) -> None:
    store, job_id = await open_store(), name()
    await store.submit(job_id, terms(fingerprint="f"))
    with pytest.raises(JobConflictError):
        await store.submit(job_id, other)


async def test_no_more_than_the_rules_allow_wait(open_store: Open) -> None:
    store = await open_store(Rules(waiting=3))
    ids = [name() for _ in range(3)]
    for job_id in ids:
        await store.submit(job_id, terms())
    with pytest.raises(StoreFullError):
        await submitted(store)
    assert (await store.submit(ids[0], terms())).id == ids[0], "it is there already"
    await claimed(store)
    await submitted(store)


async def test_pages_are_an_owners_newest_first(open_store: Open) -> None:
    store = await open_store()
    ids = [(await submitted(store, terms("me"))).id for _ in range(7)]
    await submitted(store, terms("somebody else"))
    for _ in range(2):
        await store.finish(await claimed(store), spoken(), Progress())
    assert [job.id for job in await store.page("me", None, None, 3)] == ids[:3:-1]
    assert [job.id for job in await store.page("me", None, ids[4], 3)] == ids[3:0:-1]
    assert [job.id for job in await store.page("me", None, ids[1], 3)] == ids[:1]
    assert [job.id for job in await store.page("me", State.SUCCEEDED, None, 10)] == ids[1::-1]
    assert [job.id for job in await store.page("me", State.SUCCEEDED, ids[1], 10)] == ids[:1]
    assert await store.page("nobody", None, None, 10) == []


# Working


async def test_each_job_is_begun_by_one_only(open_store: Open) -> None:
    store, other = await open_store(), await open_store()
    ids = [(await submitted(store)).id for _ in range(20)]
    found = await asyncio.gather(*(s.claim(BACKEND) for s in (store, other) for _ in range(12)))
    jobs = [job for job in found if job is not None]
    assert sorted(job.id for job in jobs) == sorted(ids)
    assert {(job.state, job.attempt) for job in jobs} == {(State.RUNNING, 1)}
    assert await store.claim(BACKEND) is None


async def test_the_oldest_is_begun_first(open_store: Open) -> None:
    store = await open_store()
    ids = [(await submitted(store)).id for _ in range(5)]
    assert [(await claimed(store)).id for _ in ids] == ids


async def test_a_job_is_for_workers_with_its_backend(open_store: Open) -> None:
    store = await open_store()
    job = await submitted(store, terms(backend="whisper"))
    assert await store.claim(BACKEND) is None
    assert await store.next_claim(BACKEND) is None
    assert (await claimed(store, "whisper")).id == job.id


async def test_progress_is_told_and_renews_the_lease(open_store: Open) -> None:
    store = await open_store(Rules(lease_seconds=1))
    await submitted(store)
    job = await claimed(store)
    for seconds in range(1, 5):
        await asyncio.sleep(0.3)
        assert await store.beat(job, Progress(seconds=seconds, total=8, engine="scripted", language="en-US"))
        assert await store.claim(BACKEND) is None
    now = await seen(store, job.id)
    assert (now.seconds, now.total, now.engine, now.language, now.percent) == (4, 8, "scripted", "en-US", 50)
    assert now.version > job.version
    assert now.started is not None


async def test_a_finished_job_has_its_result(open_store: Open) -> None:
    store = await open_store()
    job = await submitted(store)
    running = await claimed(store)
    assert await store.finish(running, spoken("words"), Progress(seconds=1.5, total=1.5, engine="e", language="de"))
    done = await seen(await open_store(), job.id)
    assert (done.state, done.percent, done.seconds, done.engine, done.language) == (
        State.SUCCEEDED,
        100,
        1.5,
        "e",
        "de",
    )
    assert done.finished is not None
    assert done.started is not None
    assert done.finished >= done.started
    result = await store.result(job.id)
    assert result is not None
    assert decode_segments(result) == spoken("words").segments
    assert not await store.needs(job.order.blob)
    assert await store.next_claim(BACKEND) is None


async def test_a_failed_job_says_why(open_store: Open) -> None:
    store = await open_store()
    job = await submitted(store)
    outcome = Outcome(code="undecodable_audio", message="no audio in it")
    assert await store.finish(await claimed(store), outcome, Progress())
    done = await seen(store, job.id)
    assert (done.state, done.code, done.message) == (State.FAILED, "undecodable_audio", "no audio in it")
    assert await store.result(job.id) is None


async def test_what_is_said_twice_counts_once(open_store: Open) -> None:
    """The first answer was lost on the way."""
    store = await open_store()
    job = await submitted(store, terms(webhook="https://a.example"))
    running = await claimed(store)
    for _ in range(2):
        assert await store.finish(running, spoken(), Progress())
    assert (await store.counts())[State.SUCCEEDED] == 1
    assert (await seen(store, job.id)).notice is Notice.PENDING


async def test_a_worker_that_is_gone_is_replaced_and_has_no_say(open_store: Open) -> None:
    store = await open_store(SHORT)
    job = await submitted(store)
    lost = await claimed(store)
    assert await store.claim(BACKEND) is None
    left = await store.next_claim(BACKEND)
    assert left is not None
    assert 0 < left <= 0.2
    await asyncio.sleep(0.25)
    second = await claimed(store)
    assert (second.id, second.attempt, second.lost) == (job.id, 2, 1)
    assert not await store.beat(lost, Progress(seconds=99))
    assert not await store.put_back(lost)
    assert not await store.finish(lost, spoken("of the first"), Progress())
    assert await store.finish(second, spoken("of the second"), Progress())
    assert not await store.finish(lost, spoken("of the first"), Progress())
    result = await store.result(job.id)
    assert result is not None
    assert decode_segments(result)[0].text == "of the second"


async def test_a_late_worker_may_finish_while_nobody_else_has_begun(open_store: Open) -> None:
    store = await open_store(SHORT)
    await submitted(store)
    job = await claimed(store)
    await asyncio.sleep(0.25)
    assert await store.finish(job, spoken(), Progress())


async def test_workers_that_die_too_often(open_store: Open) -> None:
    store = await open_store(SHORT)
    job = await submitted(store, terms(webhook="https://a.example"))
    for attempt in range(1, 4):
        assert (await claimed(store)).attempt == attempt
        await asyncio.sleep(0.25)
    assert await store.claim(BACKEND) is None
    failed = await seen(store, job.id)
    assert (failed.state, failed.code, failed.lost) == (State.FAILED, "worker_lost", 3)
    assert failed.notice is Notice.PENDING
    assert not await store.needs(job.order.blob)


async def test_a_job_that_is_put_back(open_store: Open) -> None:
    """At once and before the others by a worker that stops; after a while where its engine failed."""
    store = await open_store(SHORT)
    first, second = await submitted(store), await submitted(store)
    assert await store.put_back(await claimed(store))
    again = await claimed(store)
    assert (again.id, again.attempt, again.lost, again.failures) == (first.id, 2, 0, 0)
    assert await store.put_back(again, 0.3, failed=True)
    assert (await seen(store, first.id)).state is State.QUEUED
    assert (await claimed(store)).id == second.id
    assert await store.claim(BACKEND) is None
    await asyncio.sleep(0.35)
    last = {job.id: job for job in [await claimed(store), await claimed(store)]}[first.id]
    assert (last.attempt, last.failures, last.lost) == (3, 1, 0)


# Calling off


async def test_a_waiting_job_is_cancelled(open_store: Open) -> None:
    store = await open_store()
    job = await submitted(store)
    cancelled = await store.cancel(job.id)
    assert cancelled is not None
    assert cancelled.state is State.CANCELLED
    assert await store.claim(BACKEND) is None
    assert not await store.needs(job.order.blob)
    assert await store.cancel(name()) is None


async def test_a_running_job_is_cancelled_and_its_worker_hears_of_it(open_store: Open) -> None:
    store, other = await open_store(), await open_store()
    job = await submitted(store)
    running = await claimed(other)
    with other.changes.watch(stop_of(job.id)) as bell:
        await asyncio.sleep(0.1)  # until it listens
        await store.cancel(job.id)
        assert await bell.changed(2 if other.shared else 0.1) is other.shared
    assert not await other.beat(running, Progress())
    assert not await other.finish(running, spoken(), Progress())
    assert (await seen(store, job.id)).state is State.CANCELLED
    assert await store.result(job.id) is None


async def test_an_ended_job_stays_as_it_ended_and_can_be_deleted(open_store: Open) -> None:
    store = await open_store()
    job = await submitted(store)
    assert not await store.delete(job.id), "it has not ended"
    await store.finish(await claimed(store), spoken(), Progress())
    kept = await store.cancel(job.id)
    assert kept is not None
    assert kept.state is State.SUCCEEDED
    assert await store.delete(job.id)
    assert not await store.delete(job.id)
    assert await store.get(job.id) is None
    assert await store.result(job.id) is None
    assert await store.page("key-1", None, None, 10) == []
    assert set((await store.counts()).values()) == {0}


# Telling


async def test_whoever_wants_to_hear_of_the_end_is_told(open_store: Open) -> None:
    store = await open_store()
    asked = [await submitted(store, terms(webhook=hook)) for hook in ("https://a.example", None)]
    assert await store.next_notice() is None
    for _ in asked:
        await store.finish(await claimed(store), spoken(), Progress())
    assert await store.next_notice() == 0
    job = await store.claim_notice(0.2)
    assert job is not None
    assert (job.id, job.notices) == (asked[0].id, 1)
    assert await store.claim_notice(0.2) is None, "somebody tells"
    await asyncio.sleep(0.25)
    again = await store.claim_notice(30)
    assert again is not None, "who was to tell is gone"
    assert again.notices == 2
    await store.settle_notice(job, delivered=False, retry=None)
    assert (await seen(store, job.id)).notice is Notice.PENDING, "it has no say any more"
    await store.settle_notice(again, delivered=False, retry=0.1)
    left = await store.next_notice()
    assert left is not None
    assert 0 < left <= 0.1
    await asyncio.sleep(0.15)
    third = await store.claim_notice(30)
    assert third is not None
    await store.settle_notice(third, delivered=True, retry=None)
    assert (await seen(store, job.id)).notice is Notice.DELIVERED
    assert await store.next_notice() is None


async def test_a_notice_that_is_given_up(open_store: Open) -> None:
    store = await open_store()
    job = await submitted(store, terms(webhook="https://a.example"))
    await store.cancel(job.id)
    told = await store.claim_notice(30)
    assert told is not None
    await store.settle_notice(told, delivered=False, retry=None)
    assert (await seen(store, job.id)).notice is Notice.GIVEN_UP
    assert await store.next_notice() is None


# Watching and keeping


async def test_watchers_hear_of_each_change(open_store: Open) -> None:
    store, other = await open_store(), await open_store()
    job = await submitted(store)
    await asyncio.sleep(0.1)
    for watcher in [store, *([other] if store.shared else [])]:
        with watcher.changes.watch(job.id) as bell:
            running = await claimed(store)
            assert await bell.changed(2)
            await store.put_back(running)
            assert await bell.changed(2)


async def test_what_ended_long_ago_is_forgotten(open_store: Open) -> None:
    store = await open_store(Rules(retention_seconds=0.3))
    old = [await submitted(store) for _ in range(3)]
    for _ in old:
        await store.finish(await claimed(store), spoken(), Progress())
    waiting = await submitted(store)
    assert await store.sweep() == 0
    await asyncio.sleep(0.35)
    await store.finish(await claimed(store), spoken(), Progress())
    assert await store.sweep() == 3
    assert [job.id for job in await store.page("key-1", None, None, 10)] == [waiting.id]
    assert await store.result(old[0].id) is None
    assert (await store.counts())[State.SUCCEEDED] == 1


async def test_counts_are_by_state(open_store: Open) -> None:
    store = await open_store(SHORT)
    jobs = [await submitted(store) for _ in range(6)]
    await store.cancel(jobs[5].id)
    await store.finish(await claimed(store), spoken(), Progress())
    await store.finish(await claimed(store), Outcome(code="internal"), Progress())
    await claimed(store)
    await store.put_back(await claimed(store))
    wanted = {
        State.QUEUED: 2,
        State.RUNNING: 1,
        State.SUCCEEDED: 1,
        State.FAILED: 1,
        State.CANCELLED: 1,
    }
    assert await store.counts() == wanted


async def test_a_job_that_cannot_be_understood_keeps_no_other_from_being_done(open_store: Open) -> None:
    """Of a newer version's, for example."""
    store = await open_store(Rules(lease_seconds=0.05, attempts=1))
    odd, plain = name(), name()
    for job_id in (odd, plain):
        await store.submit(job_id, terms(webhook="https://a.example/"))
    if isinstance(store, SqliteJobStore):
        await store._database.do(lambda db: db.execute("UPDATE jobs SET terms = '{}' WHERE id = ?", (odd,)))
    else:
        await store._redis.redis.hset(f"{PREFIX}j:{odd}", "terms", "{}")  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailableError, match="cannot be understood"):
        await store.claim(BACKEND)
    job = await store.claim(BACKEND)
    assert job is not None
    assert job.id == plain
    assert await store.finish(job, spoken(), Progress())
    await asyncio.sleep(0.1)
    with pytest.raises(StoreUnavailableError):
        await store.claim(BACKEND)
    await asyncio.sleep(0.1)
    assert await store.claim(BACKEND) is None
    assert (await store.counts())[State.FAILED] == 1
    assert await store.claim_notice(60) == await store.get(plain)
    with pytest.raises(StoreUnavailableError):
        await store.claim_notice(60)
    assert await store.claim_notice(60) is None


async def test_a_job_of_a_clock_that_is_ahead_waits_for_nobody(open_store: Open) -> None:
    """Not when it is handed in, nor when it is put back, nor when its worker was lost."""
    store = await open_store(Rules(lease_seconds=0.05))
    await store.submit(name(), dataclasses.replace(terms(), created=time.time() + 3_600))
    job = await store.claim(BACKEND)
    assert job is not None
    assert await store.put_back(job)
    assert await store.claim(BACKEND) is not None
    await asyncio.sleep(0.1)  # the lease runs out
    again = await store.claim(BACKEND)
    assert again is not None
    assert (again.attempt, again.lost) == (3, 1)
