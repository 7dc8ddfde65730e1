"""The resuming client against the real server: sockets that are cut, a server that is killed, one that is stopped.

The scripted engine reads words from the audio itself (`backends.markers`): what is lost or doubled shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.markers import marker_audio
from bench.chaos.supervisor import free_port
from bridge.client import Client, Interrupted, Receiver, Reconnect, Resumed, SessionError, connect, receive
from bridge.protocols import native
from bridge.protocols.native import StartMessage
from tests import wire

QUICK = Reconnect(base_seconds=0.02, most_seconds=0.2)
START = StartMessage(encoding="pcm_s16le")
CHUNK = 3_200
LASTING = (
    native.SpeechStartedMessage,
    native.SpeechEndedMessage,
    native.FinalMessage,
    native.WarningMessage,
    native.ErrorMessage,
    native.ClosedMessage,
)


def ws(url: str) -> str:
    return f"ws{url.removeprefix('http')}/v1/stream"


async def speak(client: Client, audio: bytes, *, pace: float = 0.01) -> None:
    for at in range(0, len(audio), CHUNK):
        await client.send(audio[at : at + CHUNK])
        await asyncio.sleep(pace)
    await client.stop()


async def hear(client: Client | Receiver, into: list[native.ServerMessage]) -> None:
    async for message in client:
        into.append(message)  # noqa: PERF401 - also what came before an exception


def assert_whole(seen: list[native.ServerMessage], words: int) -> None:
    numbers = [message.seq for message in seen if isinstance(message, LASTING) and message.seq is not None]
    assert numbers == list(range(1, len(numbers) + 1))
    heard = " ".join(message.text for message in seen if isinstance(message, native.FinalMessage)).split()
    assert heard == wire.markers(words)
    assert isinstance(seen[-1], native.ClosedMessage)
    assert seen[-1].finalized == seen[-1].received


def cut(client: Client | Receiver) -> None:
    if client._connection is not None and client.closed is None:
        client._connection.abort()


@contextlib.asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[str]:
    async with wire.serve(event_log=f"sqlite:{tmp_path / 'log.db'}") as url:
        yield ws(url)


@pytest.mark.parametrize("start", [START, StartMessage()], ids=["declared", "auto"])
async def test_sockets_that_are_cut(tmp_path: Path, start: StartMessage) -> None:
    words = 12
    seen: list[native.ServerMessage] = []
    told: list[Interrupted | Resumed] = []
    async with (
        serving(tmp_path) as url,
        connect(url, start, reconnect=QUICK, on_reconnect=told.append) as client,
        asyncio.timeout(30),
        asyncio.TaskGroup() as group,
    ):
        group.create_task(speak(client, marker_audio(words)))
        hearing = group.create_task(hear(client, seen))
        while not hearing.done():
            await asyncio.sleep(0.15)
            cut(client)
    assert_whole(seen, words)
    assert client.reconnects >= 3
    assert told.count(Interrupted("the connection broke off")) >= 3


async def test_coded_audio(tmp_path: Path) -> None:
    """A WAV file is audio that says itself what it is: kept whole, and gone on with where this server has it."""
    words = 8
    audio = marker_audio(words)
    wav = (
        b"RIFF" + (36 + len(audio)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
        + b"\1\0\1\0" + (16_000).to_bytes(4, "little") + (32_000).to_bytes(4, "little") + b"\2\0\x10\0"
        + b"data" + len(audio).to_bytes(4, "little") + audio
    )  # fmt: skip
    seen: list[native.ServerMessage] = []
    async with serving(tmp_path) as url, connect(url, reconnect=QUICK) as client:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(speak(client, wav))
            hearing = group.create_task(hear(client, seen))
            while not hearing.done():
                await asyncio.sleep(0.2)
                cut(client)
        assert client._frame_bytes == 0
    assert_whole(seen, words)


async def test_a_server_that_is_killed_and_started_again(tmp_path: Path) -> None:
    await _outlives(tmp_path, signal.SIGKILL, START)


async def test_a_server_that_is_killed_under_undeclared_samples(tmp_path: Path) -> None:
    await _outlives(tmp_path, signal.SIGKILL, StartMessage())


async def test_a_server_that_is_stopped_and_started_again(tmp_path: Path) -> None:
    await _outlives(tmp_path, signal.SIGTERM, START)


async def _outlives(tmp_path: Path, number: signal.Signals, start: StartMessage) -> None:
    words = 16
    port = free_port()
    env = wire.engine_env() | {"STT_EVENT_LOG": f"sqlite:{tmp_path / 'log.db'}"}
    seen: list[native.ServerMessage] = []
    audience: list[native.ServerMessage] = []
    with contextlib.ExitStack() as servers:

        def spawn() -> wire.Process:
            return servers.enter_context(wire.spawned(tmp_path, env, "--port", str(port)))

        server = await asyncio.to_thread(spawn)
        url = ws(server.url)
        async with (
            connect(url, start, reconnect=QUICK) as client,
            receive(url, client.ready.session_id, from_seq=1, reconnect=QUICK) as receiver,
            asyncio.timeout(40),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(speak(client, marker_audio(words), pace=0.05))
            group.create_task(hear(client, seen))
            group.create_task(hear(receiver, audience))
            await asyncio.sleep(1.5)
            server.signal(number)
            await server.exited()
            server = await asyncio.to_thread(spawn)
    assert client.reconnects >= 1
    assert receiver.reconnects >= 1
    assert_whole(seen, words)
    assert [m for m in audience if isinstance(m, LASTING)] == [m for m in seen if isinstance(m, LASTING)]
    server.assert_no_traceback()


async def test_who_leaves_is_not_waited_for(tmp_path: Path) -> None:
    async with wire.serve(event_log=f"sqlite:{tmp_path / 'log.db'}") as base:
        url = ws(base)
        async with connect(url, START) as client:
            await client.send(marker_audio(2))
        async with receive(url, client.ready.session_id, from_seq=1) as receiver:
            seen: list[native.ServerMessage] = []
            async with asyncio.timeout(10):
                await hear(receiver, seen)
    assert isinstance(seen[-1], native.ClosedMessage)


async def test_wrong_and_late(tmp_path: Path) -> None:
    async with serving(tmp_path) as url:
        with pytest.raises(SessionError) as caught:
            async with connect(url, StartMessage(session_id="x" * 20, resume_token="guess", from_seq=1)):
                raise AssertionError
        assert caught.value.code == "unknown_session"
        async with connect(url, START, reconnect=QUICK) as client:
            client.ready = native.ReadyMessage(
                **{name: getattr(client.ready, name) for name in client.ready.__struct_fields__}
                | {"resume_token": "guess"}
            )
            cut(client)
            with pytest.raises(SessionError, match="wrong_token"):
                await hear(client, [])


async def test_receivers_join_early_and_late_and_lose_their_connections(tmp_path: Path) -> None:
    words = 10
    seen: list[native.ServerMessage] = []
    early: list[native.ServerMessage] = []
    late: list[native.ServerMessage] = []
    after: list[native.ServerMessage] = []
    name = "a-name-of-our-own-1234"
    async with serving(tmp_path) as url, receive(url, name, from_seq=1, partials=False, reconnect=QUICK) as first:
        assert first.joined.state == "waiting"
        async with (
            connect(url, StartMessage(encoding="pcm_s16le", session_id=name), reconnect=QUICK) as client,
            asyncio.timeout(30),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(speak(client, marker_audio(words)))
            hearing = group.create_task(hear(client, seen))
            group.create_task(hear(first, early))
            await asyncio.sleep(0.5)
            async with receive(url, name, from_seq=1, reconnect=QUICK) as second:
                group.create_task(hear(second, late))
                while not hearing.done():
                    await asyncio.sleep(0.2)
                    cut(first)
                    cut(second)
                while first.closed is None or second.closed is None:
                    await asyncio.sleep(0.02)
        async with receive(url, name, reconnect=QUICK) as last:
            await hear(last, after)
    assert_whole(seen, words)
    lasting = [m for m in seen if isinstance(m, LASTING)]
    assert [m for m in early if isinstance(m, LASTING)] == lasting
    assert [m for m in late if isinstance(m, LASTING)] == lasting
    assert after == lasting[-1:]
    assert not any(isinstance(m, native.PartialMessage | native.AckMessage) for m in early)
