"""Several processes on one port, over real sockets: whichever a connection lands on, nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from backends.markers import marker_audio
from tests import wire
from tests.api.test_jobs import done, handed_in, said
from tests.conftest import Spawn
from tests.test_asr_room import FLOATS, heard, room, words
from tests.test_resume import AUDIO, PCM, WORDS, finished, last, papers, whole
from tests.wire import Outcome, Process, Wire, engine_env, eventually, get, http_get, markers, metric, poll

PAIR: Final = engine_env() | {"STT_PROCESSES": "2", "STT_VAD": "off"}
TRIES: Final = 40
"""Connections until one has landed on a certain process of two: all of them elsewhere is once in a million million."""
WORD: Final = len(AUDIO) // WORDS


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Two processes that tests share which do them no harm."""
    with wire.spawned(tmp_path_factory.mktemp("pair"), PAIR) as server:
        yield server
        server.assert_no_traceback()


def children(server: Process) -> dict[int, int]:
    """The number and the id of each process that serves."""
    found = {}
    for pid in map(int, Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"--member" in words:
            found[int(words[words.index(b"--member") + 1])] = pid
    return found


def alive(pid: int) -> bool:
    """Whether it runs: what nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def kill(pid: int) -> None:
    """End it, and wait until it is gone with all its sockets: it could still take a connection, and reset it."""
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not alive(pid))


def lines(server: Process, message: str) -> list[wire.Json]:
    """What the log has of this message."""
    found = [json.loads(line) for line in server.log.splitlines() if line.startswith("{") and line.endswith("}")]
    return [line for line in found if line["message"] == message]


def home(server: Process, session_id: str) -> int:
    """The process that the session was last opened in."""
    process: int = [line for line in lines(server, "session opened") if line["session"] == session_id][-1]["process"]
    return process


@contextlib.asynccontextmanager
async def everywhere(server: Process, least: int = 1) -> AsyncIterator[dict[Wire, int]]:
    """Sessions, at least so many in each process, and where they are."""
    async with contextlib.AsyncExitStack() as stack:
        wires: dict[Wire, int] = {}
        while min(list(wires.values()).count(number) for number in (1, 2)) < least:
            assert len(wires) < TRIES
            wire = await stack.enter_async_context(Wire.stream(server.url, start=PCM))
            wires[wire] = home(server, (await wire.until("ready"))["session_id"])
        yield wires


def one_in(wires: dict[Wire, int], number: int) -> Wire:
    return next(wire for wire, process in wires.items() if process == number)


async def test_both_serve_and_one_answers_for_both(pair: Process) -> None:
    before = metric((await get(f"{pair.url}/metrics")).body, "stt_sessions_total")
    async with everywhere(pair, 2) as wires:
        figures = (await get(f"{pair.url}/metrics")).body
        for number in (1, 2):
            open_there = list(wires.values()).count(number)
            assert metric(figures, "stt_sessions_open", process=str(number)) == open_there
            assert metric(figures, "stt_process_up", process=str(number)) == 1
        assert figures.count(b"# TYPE stt_sessions_open gauge") == 1
        for wire in wires:
            await wire.audio(AUDIO)
            await wire.say({"type": "stop"})
        for outcome in await asyncio.gather(*(wire.finish() for wire in wires)):
            assert whole(outcome) == markers(WORDS)
    await eventually(lambda: metric(http_get(f"{pair.url}/metrics").body, "stt_sessions_total") == before + len(wires))


def test_it_is_one_server(pair: Process) -> None:
    assert pair.log.count("STT Bridge is ready") == 1
    assert sorted(children(pair)) == [1, 2]
    assert http_get(f"{pair.url}/readyz").status == 200


@pytest.mark.parametrize("how", ["held", "live"])
async def test_a_sender_goes_on_at_another_process(pair: Process, how: str) -> None:
    """There and back, to a process that has the session still, and no say in it any more."""
    outcomes: list[Outcome] = []
    async with contextlib.AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire.stream(pair.url, start=PCM))
        ready = await wire.until("ready")
        homes = [home(pair, ready["session_id"])]
        sent = 0
        for words in (6, 10, 14):
            await wire.audio(AUDIO[sent : words * WORD])
            await wire.until("final")
            here = homes[-1]
            for _ in range(TRIES):
                if how == "held":
                    wire.reset()
                outcomes.append(wire.outcome)
                start = papers(ready, from_seq=max(map(last, outcomes)) + 1)
                wire = await stack.enter_async_context(Wire.stream(pair.url, start=start))
                again = await wire.until("ready")
                assert again["resumed"]
                sent = again["received_bytes"]
                homes.append(home(pair, ready["session_id"]))
                if homes[-1] != here:
                    break
            assert homes[-1] != here
        await wire.audio(AUDIO[sent:])
        await wire.say({"type": "stop"})
        outcomes.append(await wire.finish())
        heard = await get(f"{pair.url}/v1/sessions/{ready['session_id']}/transcript?format=json")
    assert whole(*outcomes) == markers(WORDS)
    assert outcomes[-1].messages[-1]["code"] == "stopped"
    assert heard.json["text"].split() == markers(WORDS)


async def test_receivers_hear_everything_wherever_they_are(spawn: Spawn) -> None:
    """Early and late ones, while the sender moves, and the process that has the session is killed."""
    server = spawn(PAIR)
    name = "a-session-of-two-processes"

    def receivers() -> list[float]:
        figures = http_get(f"{server.url}/metrics").body
        return [metric(figures, "stt_receivers", process=number) for number in "12"]

    async with contextlib.AsyncExitStack() as stack:

        async def join_everywhere(least: int, state: str) -> list[Wire]:
            joined: list[Wire] = []
            while min(await asyncio.to_thread(receivers)) < least:
                assert len(joined) < TRIES
                start = {"role": "receiver", "session_id": name, "from_seq": 1}
                joined.append(await stack.enter_async_context(Wire.stream(server.url, start=start)))
                assert (await joined[-1].until("joined"))["state"] == state
            return joined

        heard = await join_everywhere(1, "waiting")
        wire = await stack.enter_async_context(Wire.stream(server.url, start=PCM | {"session_id": name}))
        await wire.until("ready")
        partials = [asyncio.create_task(other.until("partial")) for other in heard]
        sent = 0
        while not all(task.done() for task in partials):  # what passes may pass unheard: it goes on until all heard it
            assert sent < 10 * WORD
            await wire.audio(AUDIO[sent : sent + 3_200])
            sent += 3_200
            await asyncio.sleep(0.05)
        for task in partials:
            await task
        await wire.audio(AUDIO[sent : 10 * WORD])
        await wire.until("final", 3)
        heard += await join_everywhere(2, "live")
        outcomes = [wire.outcome]
        await kill(children(server)[home(server, name)])
        await wire.finish()
        outcomes.append(await finished(server.url, wire.outcome))
        assert whole(*outcomes) == markers(WORDS)
        for other in heard:
            outcome = await other.finish()
            if not outcome.of("closed"):  # it was at the process that was killed
                start = {"role": "receiver", "session_id": name, "from_seq": last(outcome) + 1}
                again = await stack.enter_async_context(Wire.stream(server.url, start=start))
                assert whole(outcome, await again.finish()) == markers(WORDS)
            else:
                assert whole(outcome) == markers(WORDS)
                assert outcome.messages[-1]["code"] == "stopped"
    server.assert_no_traceback()


async def test_a_room_has_one_sender_whoever_is_asked(pair: Process) -> None:
    """In its protocol a name may be used again once its session is over, and here it is not."""
    async with room(pair.url, "the-hall", "sender") as sender:
        await sender.send(FLOATS[: len(FLOATS) // 2])
        async with asyncio.timeout(wire.LIMIT):
            await sender.recv()
        for _ in range(12):
            async with room(pair.url, "the-hall", "sender") as second:
                messages, _code = await heard(second)
            assert [message["error"]["code"] for message in messages] == ["session_taken"]
        await sender.send(FLOATS[len(FLOATS) // 2 :])
        await sender.send("close")
        said_after, _code = await heard(sender)
    assert words([m for m in said_after if "partial" not in m])[-1] == markers(12)[-1]


async def test_a_job_is_done_once_whoever_is_asked(pair: Process) -> None:
    async with httpx.AsyncClient(base_url=pair.url, timeout=wire.LIMIT, trust_env=False) as client:
        jobs = [(await handed_in(client, 2))["id"] for _ in range(8)]
        for job in jobs:
            assert (await done(client, job))["state"] == "succeeded"
            async with httpx.AsyncClient(base_url=pair.url, trust_env=False) as another:
                answer = await another.get(f"/v1/jobs/{job}")
            assert answer.json()["result"]["text"] == said(2)
    begun = [line["job"] for line in lines(pair, "job begun")]
    assert sorted(begun) == sorted(jobs)


async def test_one_that_is_killed_is_replaced_and_its_senders_go_on(spawn: Spawn) -> None:
    server = spawn(PAIR)
    async with everywhere(server) as wires:
        for wire in wires:
            await wire.audio(AUDIO[: 10 * WORD])
            await wire.until("final", 3)
        ours, others = one_in(wires, 1), one_in(wires, 2)
        before = children(server)
        await kill(before[1])
        assert (await ours.finish()).ended
        await others.audio(AUDIO[10 * WORD :])
        await others.say({"type": "stop"})
        assert whole(await others.finish()) == markers(WORDS)
        assert whole(ours.outcome, await finished(server.url, ours.outcome)) == markers(WORDS)

    def is_whole() -> bool:
        return metric(http_get(f"{server.url}/metrics").body, "stt_process_up") == 2

    await eventually(is_whole)
    after = children(server)
    assert after[2] == before[2]
    assert after[1] != before[1]
    assert "process 1 died (SIGKILL)" in server.log
    assert server.log.count("STT Bridge is ready") == 1
    async with everywhere(server):
        pass  # the new one takes sessions, too


async def test_one_that_is_told_to_stop_drains_and_is_replaced(spawn: Spawn) -> None:
    server = spawn(PAIR)
    async with everywhere(server) as wires:
        before = children(server)
        os.kill(before[2], signal.SIGTERM)
        leaving = await one_in(wires, 2).finish()
        assert leaving.messages[-1]["code"] == "shutting_down"
        await eventually(lambda: children(server).get(2, before[2]) != before[2])
        staying = one_in(wires, 1)
        await staying.audio(AUDIO)
        await staying.say({"type": "stop"})
        assert whole(await staying.finish()) == markers(WORDS)
    assert "died" not in server.log


async def test_a_signal_to_the_parent_drains_them_all(spawn: Spawn) -> None:
    server = spawn(PAIR)
    pids = children(server)
    async with everywhere(server) as wires:
        for wire in wires:
            await wire.audio(AUDIO)
            await wire.until("final", WORDS - 1)
        server.signal(signal.SIGTERM)
        for pid in pids.values():  # as systemd does to all processes of a unit
            os.kill(pid, signal.SIGTERM)
        outcomes = await asyncio.gather(*(wire.finish() for wire in wires))
        assert await server.exited() == 0
    for outcome in outcomes:
        assert whole(outcome) == markers(WORDS)
        assert outcome.messages[-1]["code"] == "shutting_down"
        assert outcome.close == 1001
    assert not any(map(alive, pids.values()))
    server.assert_no_traceback()


async def test_a_second_signal_ends_them_at_once(spawn: Spawn, tmp_path: Path) -> None:
    stalled = engine_env(tmp_path, script={"faults": [{"at": 0, "kind": "stall"}]})
    server = spawn(PAIR | stalled | {"STT_SHUTDOWN_SECONDS": "60"})
    async with Wire.stream(server.url, start={}) as held:
        await held.until("ready")
        await held.audio(marker_audio(2))
        server.signal(signal.SIGTERM)
        await eventually(lambda: len(lines(server, "stopping: sessions are being finished")) == 2)
        server.signal(signal.SIGINT)
        assert await server.exited(4) == 0
        assert (await held.finish()).ended


async def test_without_their_parent_they_end_in_order(spawn: Spawn) -> None:
    server = spawn(PAIR)
    pids = children(server)
    async with everywhere(server) as wires:
        server.process.kill()
        for outcome in await asyncio.gather(*(wire.finish() for wire in wires)):
            assert outcome.messages[-1]["code"] == "shutting_down"
    await eventually(lambda: not any(map(alive, pids.values())))


def test_what_is_wrong_is_said_once(spawn: Spawn, tmp_path: Path) -> None:
    for env, code, sentence in (
        ({"STT_SCRIPTED_MODE": "opera"}, 2, "STT_SCRIPTED_MODE"),
        ({"STT_SCRIPTED_SCRIPT": str(tmp_path / "none.json")}, 1, "cannot be loaded"),
    ):
        server = spawn(PAIR | env, ready=False)
        assert server.exit_code(20) == code
        assert server.log.count(sentence) == 1
        assert "STT Bridge is ready" not in server.log
        server.assert_no_traceback()


@pytest.mark.slow
async def test_who_can_serve_serves_on_until_nobody_can(spawn: Spawn, tmp_path: Path) -> None:
    """The engine cannot be loaded any more: what runs already needs that no more."""
    env = PAIR | engine_env(tmp_path, mode="script", script={})
    server = spawn(env)
    pids = children(server)
    await asyncio.to_thread(Path(env["STT_SCRIPTED_SCRIPT"]).unlink)
    await kill(pids[1])
    await eventually(lambda: "process 1 died (exit code 1)" in server.log)
    assert (await get(f"{server.url}/readyz")).status == 200
    await kill(pids[2])
    assert await server.exited(20) == 1
    assert "cannot be started" in server.log


def test_the_port_is_taken(pair: Process, spawn: Spawn) -> None:
    """Also by another server of several processes, with which the system would have it shared."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port in (str(taken.getsockname()[1]), pair.url.rpartition(":")[2]):
            for more in (PAIR, engine_env()):
                server = spawn(more, "--port", port, ready=False)
                assert server.exit_code(20) == 1
                assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in server.log


def test_a_member_without_a_parent(spawn: Spawn) -> None:
    server = spawn({}, "--member", "1", ready=False)
    assert server.exit_code(20) == 2
    assert "--member is for the processes that `stt-bridge serve` starts" in server.log


def test_it_can_be_stopped_before_it_is_ready(spawn: Spawn) -> None:
    server = spawn(PAIR, ready=False)
    poll(lambda: bool(children(server)), 20)
    server.signal(signal.SIGTERM)
    assert server.exit_code(20) == 0
    server.assert_no_traceback()
