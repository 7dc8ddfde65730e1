"""Receivers of a session: before it begins, in the middle, after its end, slow ones and rude ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.conftest import Spawn
from tests.test_resume import AUDIO, HALF, PCM, WORDS, finished, last, papers, whole
from tests.wire import BINARY, Json, Wire, engine_env, eventually, frame, get, http_get, markers, metric, serve

ROOM = "a-room-with-a-name"


def join(session_id: str = ROOM, **more: object) -> Json:
    return {"role": "receiver", "session_id": session_id} | more


async def test_early_late_and_afterwards() -> None:
    async with serve() as url, Wire.stream(url, start=join()) as early:
        assert await early.until("joined") == {
            "type": "joined",
            "protocol": 1,
            "session_id": ROOM,
            "state": "waiting",
            "last_seq": 0,
        }
        async with Wire.stream(url, start=PCM | {"session_id": ROOM}) as wire:
            await wire.until("ready")
            await wire.audio(AUDIO[:HALF])
            await wire.until("final", 3)
            async with (
                Wire.stream(url, start=join(from_seq=1)) as late,
                Wire.stream(url, start=join(partials=False)) as later,
            ):
                assert (await late.until("joined"))["state"] == "live"
                since = (await later.until("joined"))["last_seq"]
                await wire.audio(AUDIO[HALF:])
                await wire.say({"type": "stop"})
                outcomes = [await w.finish() for w in (wire, early, late)]
                rest = await later.finish()
        path = "/v1/stream?role=receiver&from_seq=1&session_id=" + ROOM
        async with Wire.stream(url, path) as afterwards:
            assert (await afterwards.until("joined"))["state"] == "ended"
            outcomes.append(await afterwards.finish())
        async with Wire.stream(url, start=join()) as too_late:
            ended = await too_late.finish()
    for outcome in outcomes:
        assert whole(outcome) == markers(WORDS)
        assert (outcome.messages[-1]["code"], outcome.close) == ("stopped", 1000)
    lasting = [[m for m in outcome.messages if "seq" in m] for outcome in outcomes]
    assert all(others == lasting[0] for others in lasting[1:])
    assert [m["seq"] for m in rest.messages if "seq" in m] == list(range(since + 1, last(rest) + 1))
    assert not rest.of("partial")
    assert not rest.of("ack")
    assert ended.types == ["joined", "closed"]


async def test_a_sender_that_breaks_off_and_comes_back_is_not_felt() -> None:
    async with serve() as url, Wire.stream(url, start=join()) as listening:
        async with Wire.stream(url, start=PCM | {"session_id": ROOM}) as wire:
            ready = await wire.until("ready")
            await wire.audio(AUDIO[:HALF])
            await wire.until("final", 3)
            wire.reset()
        await eventually(lambda: http_get(f"{url}/v1/sessions/{ROOM}").json["state"] == "held")
        async with Wire.stream(url, start=papers(ready)) as again:
            await again.audio(AUDIO[(await again.until("ready"))["received_bytes"] :])
            await again.say({"type": "stop"})
            await again.finish()
        assert whole(await listening.finish()) == markers(WORDS)


async def test_a_receiver_that_never_reads_is_dropped_and_hurts_nobody(tmp_path: Path) -> None:
    count = 800
    results = [
        {"at": 0.01 * i, "text": f"{i} " + "x" * 8_000, "final": True, "start": 0.01 * (i - 1), "end": 0.01 * i}
        for i in range(1, count + 1)
    ]
    numbers = [str(i) for i in range(1, count + 1)]
    async with serve(engine_env(tmp_path, mode="script", script={"results": results}), send_seconds=0.5) as url:
        async with (
            Wire.stream(url, start=join()) as good,
            Wire.stream(url, start=join(), rcvbuf=2_048) as bad,
            Wire.stream(url, start=PCM | {"session_id": ROOM, "words": False}) as wire,
        ):
            await wire.until("ready")
            hearing = asyncio.create_task(good.finish(60))
            told = asyncio.create_task(wire.finish(60))
            for _ in range(count):
                await wire.send(frame(BINARY, bytes(320)))
                await asyncio.sleep(0.002)
            await bad.dropped(20)
            await wire.say({"type": "stop"})
            assert whole(await told)[::2] == numbers
            assert whole(await hearing)[::2] == numbers
        assert metric((await get(f"{url}/metrics")).body, "stt_refused_total", code="slow_receiver") == 1
        # It comes back and has missed nothing.
        async with Wire.stream(url, start=join(from_seq=1)) as again:
            assert whole(await again.finish(60))[::2] == numbers


async def test_what_a_receiver_may_say() -> None:
    async with serve() as url, Wire.stream(url, start=PCM | {"session_id": ROOM}) as wire:
        await wire.until("ready")
        async with Wire.stream(url, start=join()) as listening:
            await listening.until("joined")
            await listening.audio(bytes(3_200))
            await listening.say({"type": "flush"})
            await listening.say({"type": "stop"})
            outcome = await listening.finish()
        assert outcome.codes == ["bad_order", "bad_order"]
        assert (outcome.messages[-1]["code"], outcome.close) == ("stopped", 1000)
        await wire.audio(AUDIO)
        await wire.say({"type": "stop"})
        assert whole(await wire.finish()) == markers(WORDS)


@pytest.mark.parametrize(
    ("start", "code"),
    [
        ({"role": "receiver"}, "bad_start"),
        ({"role": "listener"}, "bad_start"),
        (join("no spaces allowed"), "bad_start"),
        (join(from_seq=2), "seq_ahead"),
        ({"session_id": "short"}, "bad_start"),
        ({"from_seq": 1}, "bad_start"),
        ({"resume_token": "token"}, "bad_start"),
    ],
)
async def test_who_is_not_let_in(start: Json, code: str) -> None:
    async with serve() as url, Wire.stream(url, start=start) as wire:
        assert (await wire.finish()).codes == [code]


async def test_a_name_is_given_once() -> None:
    async with serve() as url, Wire.stream(url, start=PCM | {"session_id": ROOM}) as wire:
        await wire.until("ready")
        for state in ("live", "ended"):
            async with Wire.stream(url, start=PCM | {"session_id": ROOM}) as second:
                assert (await second.finish()).codes == ["session_taken"], state
            if state == "live":
                await wire.audio(AUDIO)
                await wire.say({"type": "stop"})
                assert whole(await wire.finish()) == markers(WORDS)


async def test_nobody_comes() -> None:
    async with serve(wait_seconds=0.2) as url, Wire.stream(url, start=join()) as wire:
        outcome = await wire.finish()
        assert outcome.types == ["joined", "closed"]
        assert outcome.messages[-1]["code"] == "sender_gone"
        assert metric((await get(f"{url}/metrics")).body, "stt_receivers") == 0


async def test_receivers_are_let_go_when_the_server_stops(spawn: Spawn, tmp_path: Path) -> None:
    env = engine_env() | {"STT_EVENT_LOG": f"sqlite:{tmp_path}/log.db"}
    server = spawn(env)
    async with (
        Wire.stream(server.url, start=join()) as waiting,
        Wire.stream(server.url, start=PCM) as wire,
    ):
        ready = await wire.until("ready")
        async with Wire.stream(server.url, start=join(ready["session_id"])) as listening:
            await listening.until("joined")
            await wire.audio(AUDIO[:HALF])
            await wire.until("final", 3)
            server.process.terminate()
            for outcome in [await w.finish() for w in (waiting, wire, listening)]:
                assert outcome.messages[-1]["code"] == "shutting_down"
                assert "seq" not in outcome.messages[-1]
                assert outcome.close == 1001
    await eventually(lambda: server.process.poll() is not None)
    assert server.process.returncode == 0
    server.assert_no_traceback()


async def test_a_session_that_is_deleted_ends_at_once() -> None:
    async with serve() as url, Wire.stream(url, start=join()) as listening:
        async with Wire.stream(url, start=PCM | {"session_id": ROOM}) as wire:
            await wire.until("ready")
            await wire.audio(AUDIO[:HALF])
            await wire.until("final", 3)
            assert (await get(f"{url}/v1/sessions/{ROOM}", method="DELETE")).status == 204
            for outcome in (await wire.finish(), await listening.finish()):
                assert (outcome.messages[-1]["code"], outcome.close) == ("deleted", 4410)
        assert (await get(f"{url}/v1/sessions/{ROOM}")).status == 404


async def test_nobody_can_stand_in_front_of_a_session_that_the_log_has(spawn: Spawn, tmp_path: Path) -> None:
    env = engine_env() | {"STT_EVENT_LOG": f"sqlite:{tmp_path}/log.db"}
    server = spawn(env)
    async with Wire.stream(server.url, start=PCM | {"session_id": ROOM}) as wire:
        await wire.until("ready")
        await wire.audio(AUDIO[:HALF])
        await wire.until("final", 3)
        server.process.kill()
        await wire.finish()
    server = spawn(env)
    async with Wire.stream(server.url, start={"session_id": ROOM, "store": False}) as other:
        assert (await other.finish()).codes == ["session_taken"]
    assert whole(wire.outcome, await finished(server.url, wire.outcome)) == markers(WORDS)


async def test_a_deletion_is_heard_by_who_waits(spawn: Spawn, tmp_path: Path) -> None:
    env = engine_env() | {"STT_EVENT_LOG": f"sqlite:{tmp_path}/log.db"}
    server = spawn(env)
    async with Wire.stream(server.url, start=PCM | {"session_id": ROOM}) as wire:
        await wire.until("ready")
        await wire.audio(AUDIO[:HALF])
        await wire.until("final", 3)
        server.process.kill()
        await wire.finish()
    server = spawn(env)
    async with Wire.stream(server.url, start=join()) as listening:
        assert (await listening.until("joined"))["state"] == "held"
        assert (await get(f"{server.url}/v1/sessions/{ROOM}", method="DELETE")).status == 204
        assert (await listening.finish()).messages[-1]["code"] == "deleted"


async def test_who_has_said_stop_and_left_is_finished_not_suspended(spawn: Spawn, tmp_path: Path) -> None:
    """And its place is not taken before."""
    results = [{"at": 0.1, "text": "word", "final": True, "start": 0, "end": 0.1}]
    env = engine_env(tmp_path, mode="script", script={"results": results, "faults": [{"at": 0.5, "kind": "stall"}]})
    server = spawn(env | {"STT_EVENT_LOG": f"sqlite:{tmp_path}/log.db", "STT_STALL_SECONDS": "1"})
    async with Wire.stream(server.url, start={"session_id": ROOM}) as wire:
        await wire.until("ready")
        await wire.audio(bytes(32_000))
        await wire.say({"type": "stop"})
        await wire.until("final")
    await eventually(lambda: http_get(f"{server.url}/v1/sessions/{ROOM}").json["state"] == "held")
    server.process.terminate()
    await eventually(lambda: server.process.poll() is not None)
    server = spawn(env | {"STT_EVENT_LOG": f"sqlite:{tmp_path}/log.db"})
    state = (await get(f"{server.url}/v1/sessions/{ROOM}")).json
    assert (state["state"], state["code"], state["finalized"]) == ("ended", "stopped", 1.0)
