"""The server as a process: how it stops, and how it refuses to start."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from pathlib import Path

import pytest

from backends.scripted import marker_audio
from tests.conftest import Spawn
from tests.wire import PATH, Wire, engine_env, get, http_get, markers, poll, upgrade

MARKERS = engine_env()
SESSIONS = 4
BYE = (1001, "shutting_down")


def cut_words(count: int) -> tuple[bytes, list[str]]:
    """Audio that ends within a word, and its transcript."""
    return marker_audio(count)[: -9_600 - 4_800], [*markers(count - 1), f"w{count - 1}~"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_in_mid_speech_every_client_gets_its_last_words(spawn: Spawn, number: signal.Signals) -> None:
    server = spawn(MARKERS)
    audio, words = cut_words(5)
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire.stream(server.url, start={})) for _ in range(SESSIONS)]
        for wire in wires:
            await wire.until("ready")
            await wire.audio(audio)
        for wire in wires:
            await wire.until("final", 4)  # the fifth word is going on
        began = time.monotonic()
        server.signal(number)
        outcomes = await asyncio.gather(*(wire.finish() for wire in wires))
        assert await server.exited() == 0
        assert time.monotonic() - began < 4
    for outcome in outcomes:
        assert outcome.words == words
        assert outcome.messages[-1]["code"] == "shutting_down"
        assert outcome.messages[-1]["finalized"] == outcome.messages[-1]["received"] == len(audio) // 2
        assert (outcome.close, outcome.reason) == BYE
    server.assert_no_traceback()


async def test_clients_that_go_on_sending_lose_nothing_of_what_they_are_told(spawn: Spawn) -> None:
    """With audio unread in its buffers, a socket that is closed at once resets, and takes the last words with it."""
    server = spawn(MARKERS)
    async with Wire.stream(server.url, start={}) as wire:
        await wire.until("ready")
        over = asyncio.Event()

        async def speak() -> None:
            with contextlib.suppress(OSError):
                for word in range(100_000):
                    await wire.audio(marker_audio(1, first=word % 30_000))
                    if over.is_set():
                        return
                    await asyncio.sleep(0.001)

        speaking = asyncio.create_task(speak())
        await wire.until("final", 5)
        server.signal(signal.SIGTERM)
        outcome = await wire.finish()
        over.set()
        await speaking
        assert await server.exited() == 0
    whole = [word for word in outcome.words if not word.endswith("~")]
    assert whole == markers(len(whole))
    assert outcome.words[: len(whole)] == whole  # only the very last one may have been cut
    assert outcome.messages[-1]["finalized"] == outcome.messages[-1]["received"]
    assert (outcome.close, outcome.reason) == BYE
    server.assert_no_traceback()


async def test_meanwhile_new_sessions_are_refused(spawn: Spawn, tmp_path: Path) -> None:
    """A stalled backend holds the shutdown up, so that there is a meanwhile."""
    stalled = engine_env(tmp_path, script={"faults": [{"at": 0, "kind": "stall"}]})
    server = spawn(stalled | {"STT_SHUTDOWN_SECONDS": "2"})
    async with Wire.stream(server.url, start={}) as held:
        await held.until("ready")
        await held.audio(marker_audio(2))
        async with Wire.stream(server.url) as early:  # connected before, started after
            server.signal(signal.SIGTERM)
            await asyncio.to_thread(poll, lambda: http_get(f"{server.url}/readyz").status == 503)
            ready = await get(f"{server.url}/readyz")
            assert (ready.json["ready"], ready.json["code"]) == (False, "shutting_down")
            assert (await get(f"{server.url}/healthz")).status == 200
            async with Wire.stream(server.url) as late:
                assert late.outcome.status == 503
                assert late.outcome.error["code"] == "shutting_down"
            await early.say({"type": "start"})
            refused = await early.finish()
            assert refused.codes == ["shutting_down"]
            assert (refused.close, refused.reason) == BYE
        began = time.monotonic()
        told = (await held.finish()).messages[-1]  # nothing could be finalized, and it is said so
        assert (told["type"], told["code"], told["finalized"]) == ("closed", "shutting_down", 0)
        assert told["received"] > 0
        assert await server.exited(4) == 0
        assert time.monotonic() - began < 4
    server.assert_no_traceback()


async def test_a_client_that_does_not_read_holds_up_nothing(spawn: Spawn, tmp_path: Path) -> None:
    results = [
        {"at": 0.001 * i, "text": "x" * 2_000, "final": True, "start": 0, "end": 0.001 * i} for i in range(1, 4_000)
    ]
    many = engine_env(tmp_path, mode="script", script={"results": results})
    server = spawn(many | {"STT_SHUTDOWN_SECONDS": "1", "STT_OUTBOX_EVENTS": "60000", "STT_SEND_SECONDS": "60"})
    async with (
        Wire.stream(server.url, start={}, rcvbuf=4_096) as deaf,
        Wire.stream(server.url, start={}) as other,
    ):
        await deaf.audio(bytes(32_000 * 4))
        await other.until("ready")
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        outcome = await other.finish()
        assert (outcome.messages[-1]["code"], outcome.close) == ("shutting_down", 1001)
        assert await server.exited(6) == 0
        assert time.monotonic() - began < 5  # the setting, and two seconds for uvicorn's own end
    server.assert_no_traceback()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_it_at_once(spawn: Spawn, tmp_path: Path, number: signal.Signals) -> None:
    stalled = engine_env(tmp_path, script={"faults": [{"at": 0, "kind": "stall"}]})
    server = spawn(stalled | {"STT_SHUTDOWN_SECONDS": "60"})
    async with Wire.stream(server.url, start={}) as wire:
        await wire.until("ready")
        await wire.audio(marker_audio(2))
        server.signal(number)
        await asyncio.to_thread(poll, lambda: http_get(f"{server.url}/readyz").status == 503)
        began = time.monotonic()
        server.signal(number)
        outcome = await wire.finish()
        assert await server.exited(4) == 0
        assert time.monotonic() - began < 2.5
    assert outcome.ended
    server.assert_no_traceback()


@pytest.mark.slow
async def test_an_open_request_and_an_idle_connection_hold_up_nothing(spawn: Spawn) -> None:
    server = spawn(MARKERS)
    async with Wire.open(server.url) as idle, Wire.open(server.url) as half, Wire.stream(server.url) as unstarted:
        await half.send(upgrade()[:20])
        assert unstarted.outcome.status == 101
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert await server.exited(4) == 0
        assert time.monotonic() - began < 3
        await asyncio.gather(idle.finish(), half.finish())
        assert (await unstarted.finish()).ended
    server.assert_no_traceback()


# It does not start


def refusal(spawn: Spawn, env: dict[str, str], *args: str) -> tuple[int, str]:
    """The exit code and what it said."""
    server = spawn(env, *args, ready=False)
    code = server.exit_code(20)
    server.assert_no_traceback()
    return code, server.log


@pytest.mark.parametrize(
    ("env", "sentences"),
    [
        ({"STT_IDLE_SECONDS": "soon"}, ["STT_IDLE_SECONDS", "'soon'"]),
        ({"STT_PORT": "70000", "STT_LOG_LEVEL": "loud"}, ["STT_LOG_LEVEL", "'loud'", "'debug', 'info'"]),
        ({"STT_BACKEND": "oracle"}, ["STT_BACKEND", "'oracle'", "scripted"]),
        ({"STT_SCRIPTED_MODE": "opera"}, ["STT_SCRIPTED_MODE", "'opera'"]),
        ({"STT_TLS_CERT": "cert.pem"}, ["STT_TLS_CERT", "STT_TLS_KEY"]),
    ],
)
def test_bad_settings(spawn: Spawn, env: dict[str, str], sentences: list[str]) -> None:
    code, said = refusal(spawn, env)
    assert code == 2
    assert said.startswith("stt-bridge: ")
    assert all(sentence in said for sentence in sentences)


def test_a_bad_script_of_the_backend(spawn: Spawn, tmp_path: Path) -> None:
    code, said = refusal(spawn, {"STT_SCRIPTED_SCRIPT": str(tmp_path / "none.json")})
    assert code == 1
    assert "backend scripted cannot be loaded" in said


def test_the_port_is_taken(spawn: Spawn) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = refusal(spawn, {}, "--port", str(port))
    assert code == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in said


def test_other_machines_need_a_key(spawn: Spawn) -> None:
    code, said = refusal(spawn, {}, "--host", "0.0.0.0")
    assert code == 2
    assert "STT_HOST" in said
    assert "STT_API_KEYS" in said
    assert "--insecure" in said


@pytest.mark.parametrize(("env", "args"), [({}, ["--insecure"]), ({"STT_API_KEYS": "sesame"}, [])])
def test_unless_it_is_told_or_has_one(spawn: Spawn, env: dict[str, str], args: list[str]) -> None:
    server = spawn(env, "--host", "0.0.0.0", *args)
    port = server.url.rsplit(":", 1)[1]
    assert http_get(f"http://127.0.0.1:{port}/healthz").status == 200
    assert ("--api-key KEY" in server.log) == bool(env)
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0


# What it says of its clients


@pytest.mark.parametrize("style", ["json", "text"])
async def test_no_log_line_holds_a_key_or_a_word(spawn: Spawn, style: str) -> None:
    env = MARKERS | {"STT_API_KEYS": "k3y-of-the-house", "STT_LOG_LEVEL": "debug", "STT_LOG_FORMAT": style}
    server = spawn(env)
    path = f"{PATH}?token=k3y-of-the-house&phrases=secretphrase"
    for wrong in ("not-the-k3y", "k3y-of-the-housf"):
        async with Wire.stream(server.url, f"{PATH}?api_key={wrong}") as refused:
            assert refused.outcome.status == 401
    async with Wire.stream(server.url, PATH, {"Sec-WebSocket-Protocol": "bearer, k3y-of-the-house"}) as wire:
        await wire.say({"type": "start", "phrases": ["secretphrase"]})
        await wire.until("ready")
        await wire.say({"type": "secretphrase"})
        await wire.until("error")
    async with Wire.stream(server.url, path) as wire:
        await wire.audio(marker_audio(3, first=777))
        await wire.say({"type": "stop"})
        assert (await wire.finish()).words == markers(3, 777)
    assert (await get(f"{server.url}/metrics", {"X-API-Key": "k3y-of-the-house"})).status == 200
    server.signal(signal.SIGTERM)
    assert await server.exited() == 0
    assert "session closed" in server.log
    for secret in ("k3y-of", "not-the-k3y", "w777", "secretphrase", "w778"):
        assert secret not in server.log, [line for line in server.log.splitlines() if secret in line][:1]
