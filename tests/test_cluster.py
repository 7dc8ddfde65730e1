"""Two servers on one Redis: sessions that move from one to the other, receivers on both, and a Redis that goes away."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.markers import marker_audio
from tests.conftest import Spawn
from tests.redis import RedisServer, redis_server
from tests.test_resume import AUDIO, HALF, PCM, WORDS, finished, last, papers, whole
from tests.wire import Json, Outcome, Process, Wire, engine_env, eventually, get, http_get, markers, metric


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


def start_node(spawn: Spawn, server: RedisServer) -> Process:
    return spawn(engine_env() | {"STT_EVENT_LOG": server.url})


def receiver(session_id: str, **more: object) -> Json:
    return {"role": "receiver", "session_id": session_id} | more


async def test_a_session_goes_on_at_another_server_and_its_receivers_miss_nothing(
    spawn: Spawn, shared: RedisServer
) -> None:
    here, there = (start_node(spawn, shared) for _ in range(2))
    room = "a-session-of-two-servers"
    async with Wire.stream(there.url, start=receiver(room)) as early:
        assert (await early.until("joined"))["state"] == "waiting"
        async with Wire.stream(here.url, start=PCM | {"session_id": room}) as wire:
            await wire.until("ready")
            # Passing events may pass unheard: while nobody follows, and for a second behind that.
            hearing = asyncio.create_task(early.until("partial"))
            sent = 0
            while not hearing.done() and sent < HALF - 3_200:
                await wire.audio(AUDIO[sent : sent + 3_200])
                sent += 3_200
                await asyncio.sleep(0.1)
            await hearing
            await wire.audio(AUDIO[sent:HALF])
            await wire.until("final", 3)
            await early.until("final", 3)
            async with Wire.stream(there.url, start=receiver(room, from_seq=1)) as late:
                assert (await late.until("joined"))["state"] == "live"
                await late.until("final", 3)
                here.process.kill()
                await wire.finish()
                outcome = await finished(there.url, wire.outcome)
                heard = [await early.finish(), await late.finish()]
    assert whole(wire.outcome, outcome) == markers(WORDS)
    for receiving in heard:
        assert whole(receiving) == markers(WORDS)
        assert receiving.messages[-1]["code"] == "stopped"
        assert receiving.close == 1000
    assert not heard[0].of("ack")


async def test_a_server_that_lost_its_session_has_no_say(spawn: Spawn, shared: RedisServer) -> None:
    """Its sender went to another server while it still held the session; then it is told, and adds nothing."""
    here, there = (start_node(spawn, shared) for _ in range(2))
    async with Wire.stream(here.url, start=PCM) as first, Wire.stream(here.url) as listening:
        ready = await first.until("ready")
        await listening.say({"type": "start"} | receiver(ready["session_id"], from_seq=1))
        await first.audio(AUDIO[:HALF])
        await first.until("final", 3)
        async with Wire.stream(there.url, start=papers(ready, from_seq=1)) as second:
            again = await second.until("ready")
            await first.audio(AUDIO[HALF : HALF + 32_000])  # this server believes that it has the session
            gone = await first.finish()
            assert gone.messages[-1]["code"] == "taken_over"
            await second.audio(AUDIO[again["received_bytes"] :])
            await second.say({"type": "stop"})
            outcome = await second.finish()
        receiving = await listening.finish()
    assert whole(outcome) == markers(WORDS)
    assert whole(receiving) == markers(WORDS)
    told = {m["seq"]: m for m in outcome.messages if "seq" in m}
    for message in gone.messages:
        if "seq" in message:
            assert told[message["seq"]] == message


async def test_a_sender_that_comes_back_to_a_server_that_lost_its_session_unawares(
    spawn: Spawn, shared: RedisServer
) -> None:
    """As a load balancer sends it: there and back, before the first server had anything to write."""
    nodes = [start_node(spawn, shared) for _ in range(2)]
    async with Wire.stream(nodes[0].url, start=PCM) as wire:
        ready = await wire.until("ready")
        await wire.audio(AUDIO[:HALF])
        await wire.until("final", 3)
    outcomes = [wire.outcome]
    for turn in (1, 0, 1):
        async with Wire.stream(nodes[turn].url, start=papers(ready, from_seq=max(map(last, outcomes)) + 1)) as wire:
            again = await wire.until("ready")
            assert again["resumed"]
            if turn == 0:  # more is final there than the other one knows of
                await wire.audio(AUDIO[again["received_bytes"] : HALF + 64_000])
                await wire.until("final")
        outcomes.append(wire.outcome)
    former = Outcome(messages=[message for outcome in outcomes for message in outcome.messages])
    outcomes.append(await finished(nodes[0].url, former))
    assert whole(*outcomes) == markers(WORDS)


@pytest.mark.parametrize("emptied", [False, True])
async def test_redis_goes_away_and_comes_back(spawn: Spawn, shared: RedisServer, emptied: bool) -> None:
    """Sessions go on meanwhile, and what was said is in the log afterwards, even if that has lost everything."""
    here, there = (start_node(spawn, shared) for _ in range(2))
    async with Wire.stream(here.url, start=PCM) as wire:
        ready = await wire.until("ready")
        async with Wire.stream(there.url, start=receiver(ready["session_id"], from_seq=1)) as receiving:
            await receiving.until("joined")
            await wire.audio(AUDIO[:HALF])
            await wire.until("final", 3)
            await receiving.until("final", 3)
            await asyncio.to_thread(shared.stop)
            if emptied:
                await asyncio.to_thread(shared.forget)
            await wire.audio(AUDIO[HALF:])
            await wire.until("final", WORDS - 1)
            await eventually(lambda: metric(http_get(f"{here.url}/metrics").body, "stt_event_log_up") == 0)
            # What the log has not, a client may yet be asked for.
            logged = max((m["finalized"] for m in wire.outcome.of("ack")), default=0)
            assert logged < wire.outcome.of("final")[-1]["end"] * 16_000
            async with Wire.stream(here.url, start={}) as newcomer:  # no reason to turn anybody away
                await newcomer.until("ready")
                await newcomer.audio(marker_audio(2))
                await newcomer.say({"type": "stop"})
                assert whole(await newcomer.finish()) == markers(2)
            await asyncio.to_thread(shared.start)
            await wire.say({"type": "stop"})
            outcome = await wire.finish()
            heard = await receiving.finish()
    assert whole(outcome) == markers(WORDS)
    assert outcome.messages[-1]["finalized"] == len(AUDIO) // 2
    assert whole(heard) == markers(WORDS)
    path = f"{there.url}/v1/sessions/{ready['session_id']}"
    await eventually(lambda: http_get(path).json["state"] == "ended")
    assert (await get(f"{path}/transcript?format=json")).json["text"].split() == markers(WORDS)


async def test_who_knows_more_than_the_log_waits_for_the_server_that_told_it(spawn: Spawn, shared: RedisServer) -> None:
    """Redis is back, and the server that had the session meanwhile has not written yet what it said."""
    here, there = (start_node(spawn, shared) for _ in range(2))
    async with Wire.stream(here.url, start=PCM) as wire:
        ready = await wire.until("ready")
        await wire.audio(AUDIO[:HALF])
        await wire.until("final", 10)
        await asyncio.to_thread(shared.stop)
        await wire.audio(AUDIO[HALF : HALF + 64_000])
        await wire.until("final", 12)
        here.signal(signal.SIGSTOP)
        await asyncio.to_thread(shared.start)
    wanted = last(wire.outcome) + 1
    for start in (papers(ready, from_seq=wanted), receiver(ready["session_id"], from_seq=wanted)):
        async with Wire.stream(there.url, start=start) as early:
            refused = (await early.finish()).of("error")[0]
            assert (refused["code"], refused["retryable"]) == ("log_unavailable", True)
    here.signal(signal.SIGCONT)
    path = f"{there.url}/v1/sessions/{ready['session_id']}"
    await eventually(lambda: http_get(path).json["seq"] >= wanted - 1)
    assert whole(wire.outcome, await finished(there.url, wire.outcome)) == markers(WORDS)


async def test_a_redis_that_hangs_holds_nobody_up(spawn: Spawn, shared: RedisServer) -> None:
    here = start_node(spawn, shared)
    async with Wire.stream(here.url, start=PCM) as wire:
        await wire.until("ready")
        await wire.audio(AUDIO[:HALF])
        await wire.until("final", 3)
        await asyncio.to_thread(shared.pause)
        await wire.audio(AUDIO[HALF:])
        await wire.say({"type": "stop"})
        outcome = await wire.finish()
        assert whole(outcome) == markers(WORDS)
        await asyncio.to_thread(shared.go_on)
        await eventually(lambda: metric(http_get(f"{here.url}/metrics").body, "stt_event_log_backlog") == 0)


async def test_presence(spawn: Spawn, shared: RedisServer) -> None:
    here, there = (start_node(spawn, shared) for _ in range(2))
    async with Wire.stream(here.url, start=PCM) as wire:
        ready = await wire.until("ready")
        path = f"{here.url}/v1/sessions/{ready['session_id']}"
        async with (
            Wire.stream(here.url, start=receiver(ready["session_id"])),
            Wire.stream(there.url, start=receiver(ready["session_id"])),
            Wire.stream(there.url, start=receiver(ready["session_id"])),
        ):
            await eventually(lambda: http_get(path).json["receivers"] == 3)
        await eventually(lambda: http_get(path).json["receivers"] == 0)
        assert last(wire.outcome) == 0
