"""The Redis log: outages of every kind, several nodes, what passes between them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import time
from collections.abc import AsyncIterator

import pytest

from bridge.protocols.events import Ack, Partial, ServerEvent
from bridge.session.eventlog import redis_passing
from bridge.session.eventlog.base import EventLog, LogUnavailableError, Outcome
from bridge.session.eventlog.follower import BACKLOG
from bridge.session.eventlog.redis import ANSWER_SECONDS, CONNECTIONS, RedisLog
from tests.redis import RedisServer
from tests.session.eventlog.samples import LIMIT, Open, closed, eventually, final, finals, name, record, write


async def written(log: EventLog, session: str, seq: int) -> Outcome:
    """Once the log is back."""
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                return await write(log, session, final(seq))
            except LogUnavailableError:
                await asyncio.sleep(0.05)


async def unavailable(log: EventLog, session: str) -> None:
    """Every method says so, soon, also when all are called at once."""
    began = time.monotonic()
    answers = await asyncio.gather(
        write(log, session, final(1)),
        log.read(session),
        log.events(session, 1),
        log.claim(session),
        log.release(session, 1),
        log.delete(session),
        log.create(record(session)),
        log.set_receivers(session, 1),
        log.receivers(session),
        log.beat(),
        log.open(),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [LogUnavailableError] * len(answers)
    assert time.monotonic() - began < ANSWER_SECONDS + 0.5


# Outages


async def test_stopped_and_started(redis: RedisServer, open_logs: Open) -> None:
    session = name()
    log = await open_logs(redis.url)
    await log.create(record(session))
    await write(log, session, *finals(1, 3))
    redis.stop()
    with pytest.raises(LogUnavailableError, match=r"redis://127\.0\.0\.1"):
        await write(log, session, final(4))
    redis.start()
    assert await written(log, session, 4) is Outcome.WRITTEN, "the scripts are sent anew"
    assert await log.events(session, 1) == list(finals(1, 4))


async def test_killed_redis_keeps_what_was_written(redis: RedisServer, open_logs: Open) -> None:
    session = name()
    log = await open_logs(redis.url)
    await log.create(record(session))
    for seq in range(1, 30):
        await write(log, session, final(seq))
    redis.kill()
    redis.start()
    assert await log.events(session, 1) == list(finals(1, 29))


async def test_restarted_empty(redis: RedisServer, open_logs: Open) -> None:
    session = name()
    log = await open_logs(redis.url)
    await log.create(record(session))
    await write(log, session, *finals(1, 3))
    redis.stop()
    redis.forget()
    redis.start()
    assert await written(log, session, 4) is Outcome.MISSING
    await log.beat()
    await log.create(record(session, seq=3), replace=True)
    assert await write(log, session, final(4)) is Outcome.WRITTEN
    assert await log.events(session, 1) == [final(4)]


async def test_redis_that_hangs(redis: RedisServer, open_logs: Open) -> None:
    """Nobody waits long, no connection is lost for good, and what Redis does late does no harm."""
    session = name()
    log = await open_logs(redis.url)
    await log.create(record(session))
    await write(log, session, final(1))
    redis.pause()
    began = time.monotonic()
    tried = await asyncio.gather(
        *(write(log, session, final(2)) for _ in range(3 * CONNECTIONS)), return_exceptions=True
    )
    assert all(isinstance(answer, LogUnavailableError) for answer in tried)
    assert time.monotonic() - began < ANSWER_SECONDS + 0.5
    redis.go_on()
    assert await written(log, session, 2) is Outcome.WRITTEN
    assert await asyncio.gather(*(write(log, session, final(seq)) for seq in range(3, 20)))
    await asyncio.gather(*(log.read(session) for _ in range(5 * CONNECTIONS)))
    assert await written(log, session, 3) is Outcome.WRITTEN
    found = [event.seq for event in await log.events(session, 1)]
    assert found == list(range(1, len(found) + 1))


async def test_what_is_done_late_changes_nothing(shared_redis: RedisServer, open_logs: Open) -> None:
    """Commands that Redis took while it hung, after others that their sender sent when it had given them up."""
    session = name()
    log = await open_logs(shared_redis.url)
    assert isinstance(log, RedisLog)
    calls: list[tuple[object, object]] = []
    run = log._redis.run

    async def spy(commands: object) -> list[object]:
        calls.append((commands, None))
        return await run(commands)  # type: ignore[arg-type]

    log._redis.run = spy  # type: ignore[method-assign, assignment]
    await log.create(record(session), replace=True)
    await write(log, session, final(1))
    await write(log, session)
    await write(log, session, *finals(2, 3))
    now = await log.read(session)
    assert now is not None
    for late, _ in calls[:3]:
        await run(late)  # type: ignore[arg-type]
    assert await log.read(session) == now
    assert await log.events(session, 1) == list(finals(1, 3))


async def test_a_cancelled_caller_ends(shared_redis: RedisServer, open_logs: Open) -> None:
    """At whatever moment: redis-py's own timeouts lose a cancellation now and then (`asyncio.wait_for` before 3.12)."""
    session = name()
    log = await open_logs(shared_redis.url)
    await log.create(record(session))

    async def journal() -> None:
        while True:
            await log.write([])
            await write(log, session)

    for attempt in range(100):
        task = asyncio.create_task(journal())
        await asyncio.sleep(attempt * 0.000_05)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=1)
        assert done, "it has not heard of it"
        assert task.cancelled()


async def test_opening_without_redis(redis: RedisServer) -> None:
    """It says so, and may be used nevertheless: it connects when Redis is there."""
    redis.stop()
    session = name()
    log = RedisLog(redis.url, "here", 60)
    with pytest.raises(LogUnavailableError):
        await log.open()
    redis.start()
    await log.create(record(session))
    await log.announce(session, [Ack(1, 0)])
    assert await write(log, session, final(1)) is Outcome.WRITTEN
    await log.close()


@pytest.mark.parametrize("how", ["stopped", "hanging"])
async def test_every_method_says_that_it_is_away(redis: RedisServer, open_logs: Open, how: str) -> None:
    session = name()
    log = await open_logs(redis.url)
    await log.create(record(session))
    if how == "stopped":
        redis.stop()
    else:
        redis.pause()
    await unavailable(log, session)
    await log.announce(session, [Ack(1, 0)])
    if how == "hanging":
        redis.go_on()


async def test_no_password_in_a_sentence(redis: RedisServer) -> None:
    log = RedisLog(f"redis://user:hunter2@127.0.0.1:{redis.port}", "here", 60)
    with pytest.raises(LogUnavailableError) as caught:
        await log.open()
    assert "hunter2" not in str(caught.value)
    redis.stop()
    with pytest.raises(LogUnavailableError) as caught:
        await log.read("s")
    assert "hunter2" not in str(caught.value)
    await log.close()


async def test_a_warning_where_redis_may_forget(
    redis: RedisServer, open_logs: Open, caplog: pytest.LogCaptureFixture
) -> None:
    log = await open_logs(redis.url)
    assert isinstance(log, RedisLog)
    assert not caplog.records
    await log._redis.redis.config_set("maxmemory", "100mb")
    await log._redis.redis.config_set("maxmemory-policy", "allkeys-lru")
    await open_logs(redis.url)
    assert "maxmemory-policy" in caplog.text


# Expiry


async def test_every_key_expires(redis: RedisServer, open_logs: Open) -> None:
    log = await open_logs(redis.url, retention_seconds=600)
    assert isinstance(log, RedisLog)
    running, gone = name(), name()
    for session in (running, gone):
        await log.create(record(session))
        await write(log, session, final(1))
        await log.set_receivers(session, 2)
    await log.delete(gone)
    await log.set_receivers(gone, 1)
    keys = await log._redis.redis.keys("*")
    assert len(keys) == 5
    for key in keys:
        assert 0 < await log._redis.redis.pttl(key) <= 86_400_000, key
        if str(key).endswith((":h'", ":e'")):
            assert await log._redis.redis.pttl(key) <= 600_000


async def test_a_node_does_not_remember_what_is_no_longer_its_own(redis: RedisServer, open_logs: Open) -> None:
    here, there = await open_logs(redis.url), await open_logs(redis.url, "there")
    assert isinstance(here, RedisLog)
    ended, released, deleted, lost, taken, kept = (name() for _ in range(6))
    for session in (ended, released, deleted, lost, taken, kept):
        await here.create(record(session))
    await write(here, ended, closed(1))
    await here.release(released, 1)
    await here.delete(deleted)
    await there.delete(lost)
    await there.claim(taken)
    await here.beat()
    assert set(here._owned) == {kept}


# Receivers


async def test_receivers_at_other_nodes(redis: RedisServer, open_logs: Open) -> None:
    here, there, third = [await open_logs(redis.url, node) for node in ("here", "there", "third")]
    session = name()
    assert await here.receivers(session) == 0
    await here.set_receivers(session, 1)
    await there.set_receivers(session, 500)
    await third.set_receivers(session, 7)
    assert await here.receivers(session) == 507
    assert await third.receivers(session) == 501
    await there.set_receivers(session, 0)
    assert await here.receivers(session) == 7


async def test_receivers_of_a_node_that_is_gone(
    redis: RedisServer, open_logs: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.session.eventlog.redis.NODE_SECONDS", 1)
    here, there, third = [await open_logs(redis.url, node) for node in ("here", "there", "third")]
    session = name()
    for log in (here, there, third):
        await log.set_receivers(session, 3)

    async def forgotten() -> bool:
        await here.beat()
        await third.beat()
        return await here.receivers(session) == 3

    assert await here.receivers(session) == 6
    await eventually(forgotten)
    assert await third.receivers(session) == 3


# Following


@contextlib.asynccontextmanager
async def following(log: EventLog, session: str) -> AsyncIterator[asyncio.Queue[list[ServerEvent]]]:
    """What a follower hears, from the moment it may rely on it."""
    heard: asyncio.Queue[list[ServerEvent]] = asyncio.Queue()

    async def listen() -> None:
        async with contextlib.aclosing(log.follow(session)) as messages:
            async for message in messages:
                heard.put_nowait(message)

    task = asyncio.create_task(listen())
    assert await soon(heard) == []
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def soon(heard: asyncio.Queue[list[ServerEvent]]) -> list[ServerEvent]:
    async with asyncio.timeout(LIMIT):
        return await heard.get()


async def test_followers_hear_what_is_written_and_announced(redis: RedisServer, open_logs: Open) -> None:
    here, there = await open_logs(redis.url), await open_logs(redis.url, "there")
    session, another = name(), name()
    for each in (session, another):
        await here.create(record(each))
    async with following(there, session) as first, following(there, session) as second, following(here, session) as own:
        await write(here, another, final(1, "not for them"))
        await write(here, session, *finals(1, 2))
        await here.announce(session, [Partial("hel", 0.0, 1.0, 0.5), Ack(9, 8)])
        for heard in (first, second, own):
            assert await soon(heard) == list(finals(1, 2))
            assert await soon(heard) == [Partial("hel", 0.0, 1.0, 0.5), Ack(9, 8)]
        await write(here, session, *finals(1, 2), closed(3))
        assert await soon(first) == [closed(3)]
        assert second.qsize() == 0 or await soon(second) == [closed(3)]


async def test_followers_of_many_sessions_share_one_connection(redis: RedisServer, open_logs: Open) -> None:
    log = await open_logs(redis.url)
    assert isinstance(log, RedisLog)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(50):
            await stack.enter_async_context(following(log, name()))
        subscribers = [client for client in await log._redis.redis.client_list() if int(client["sub"])]
        assert [client["sub"] for client in subscribers] == ["50"]

    async def unsubscribed() -> bool:
        return not [client for client in await log._redis.redis.client_list() if int(client["sub"])]

    await eventually(unsubscribed)
    assert log._subscriber._followers == {}
    assert log._subscriber._live == set()
    async with following(log, name()):
        pass


@pytest.mark.parametrize("how", ["stopped", "killed", "hanging", "cut"])
async def test_followers_come_back(
    redis: RedisServer, open_logs: Open, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(redis_passing, "PING_SECONDS", 0.2)
    log = await open_logs(redis.url)
    assert isinstance(log, RedisLog)
    session = name()
    await log.create(record(session))
    async with following(log, session) as heard:
        await write(log, session, final(1))
        assert await soon(heard) == [final(1)]
        if how == "hanging":
            redis.pause()
            await asyncio.sleep(0.7)
            redis.go_on()
        elif how == "cut":
            await log._redis.redis.client_kill_filter(_type="pubsub")
        else:
            redis.stop(signal.SIGKILL if how == "killed" else signal.SIGTERM)
            redis.start()
        assert await soon(heard) == []
        assert await written(log, session, 2) is Outcome.WRITTEN
        while (message := await soon(heard)) != [final(2)]:
            assert message == [], "reconnected once more"


async def test_who_begins_to_follow_while_redis_is_away(redis: RedisServer, open_logs: Open) -> None:
    """Hears nothing, not even that something was missed, until it is back."""
    log = await open_logs(redis.url)
    assert isinstance(log, RedisLog)
    session = name()
    async with following(log, session) as heard:
        redis.stop()

        async def noticed() -> bool:
            return not log._subscriber._live

        await eventually(noticed)
        async with contextlib.aclosing(log.follow(session)) as late:
            first = asyncio.ensure_future(anext(late))
            await asyncio.sleep(0.1)
            assert not first.done()
            redis.start()
            assert await asyncio.wait_for(first, LIMIT) == []
            assert await soon(heard) == []


async def test_a_quiet_connection_stays(redis: RedisServer, open_logs: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_passing, "PING_SECONDS", 0.05)
    log = await open_logs(redis.url)
    session = name()
    await log.create(record(session))
    async with following(log, session) as heard:
        await asyncio.sleep(0.5)
        await write(log, session, final(1))
        assert await soon(heard) == [final(1)]


async def test_a_follower_that_does_not_read(redis: RedisServer, open_logs: Open) -> None:
    """Its queue is bounded, it is told to read the log, and the others hear everything."""
    log = await open_logs(redis.url)
    session = name()
    await log.create(record(session))
    async with contextlib.aclosing(log.follow(session)) as idle, following(log, session) as heard:
        assert await anext(idle) == []
        last = BACKLOG + 50
        for seq in range(1, last + 1):
            await write(log, session, final(seq))
            assert await soon(heard) == [final(seq)]
        assert await anext(idle) == []
        await write(log, session, final(last + 1))
        assert await anext(idle) == [final(last + 1)]


async def test_closing_ends_what_is_followed(redis: RedisServer) -> None:
    log = RedisLog(redis.url, "here", 60)
    await log.open()
    messages = log.follow(name())
    assert await anext(messages) == []
    waiting = asyncio.create_task(anext(messages, None))
    await asyncio.sleep(0)
    await log.close()
    assert await asyncio.wait_for(waiting, LIMIT) is None
    assert await anext(log.follow(name()), None) is None


async def test_what_is_not_understood_is_read_from_the_log(redis: RedisServer, open_logs: Open) -> None:
    log = await open_logs(redis.url)
    assert isinstance(log, RedisLog)
    session = name()
    async with following(log, session) as heard:
        await log._redis.redis.publish(f"{{stt:{session}}}:c", b"of the future\n{}\n")
        assert await soon(heard) == []
        await log._redis.redis.publish(f"{{stt:{session}}}:c", b'ack\n{"received":"x"}\n')
        assert await soon(heard) == []


# Announcing


async def published(log: RedisLog) -> int:
    stats = await log._redis.redis.info("commandstats")
    return int(stats.get("cmdstat_publish", {}).get("calls", 0))


async def test_nothing_is_announced_to_nobody(redis: RedisServer, open_logs: Open) -> None:
    log = await open_logs(redis.url)
    assert isinstance(log, RedisLog)
    session = name()
    await log.create(record(session))
    await write(log, session, final(1))
    before = await published(log)
    for n in range(50):
        await log.announce(session, [Ack(n, 0)])
        await asyncio.sleep(0)
    await asyncio.sleep(0.2)
    assert await published(log) == before
    async with following(log, session) as heard:

        async def announced() -> bool:
            await log.announce(session, [Ack(99, 0)])
            return not heard.empty()

        await eventually(announced)
        assert await soon(heard) == [Ack(99, 0)]


async def test_announcing_is_bounded_while_redis_hangs(redis: RedisServer, open_logs: Open) -> None:
    log = await open_logs(redis.url)
    assert isinstance(log, RedisLog)
    redis.pause()
    began = time.monotonic()
    for n in range(3 * redis_passing.ANNOUNCEMENTS):
        await log.announce(name(), [Ack(n, 0)])
    assert time.monotonic() - began < ANSWER_SECONDS
    announcer = log._announcer
    assert announcer is not None
    assert len(announcer._waiting) == redis_passing.ANNOUNCEMENTS

    async def dropped() -> bool:
        return not announcer._waiting

    await eventually(dropped)
    redis.go_on()


async def test_the_memory_of_silence_is_bounded(redis: RedisServer, open_logs: Open) -> None:
    log = await open_logs(redis.url)
    assert isinstance(log, RedisLog)
    assert log._announcer is not None
    for n in range(2 * redis_passing.QUIET_SESSIONS):
        log._announcer.heard(f"channel-{n}", 0)
    assert len(log._announcer._quiet) == redis_passing.QUIET_SESSIONS


# Nodes


async def test_a_node_that_was_frozen_is_refused(redis: RedisServer, open_logs: Open) -> None:
    """It writes on after another has gone on with its session, from a connection of before."""
    frozen, other = await open_logs(redis.url, "frozen"), await open_logs(redis.url, "other")
    session = name()
    await frozen.create(record(session))
    await write(frozen, session, *finals(1, 5))
    claimed = await other.claim(session)
    assert claimed is not None
    assert dataclasses.asdict(claimed.progress) == {
        "final": (1.0, 2.5),
        "received": 480,
        "header_bytes": 44,
        "raw": True,
    }
    await write(other, session, final(6), epoch=2)
    assert await write(frozen, session, final(6, "otherwise")) is Outcome.SUPERSEDED
    await frozen.beat()
    await frozen.release(session, 1)
    assert await other.events(session, 6) == [final(6)]
    after = await other.read(session)
    assert after is not None
    assert after.owner == "other"
