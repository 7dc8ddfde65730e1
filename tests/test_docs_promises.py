"""What docs/protocol.md promises in prose, on a real server, with a client that shares no code with it."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from bridge.app import serving
from bridge.errors import ERRORS
from bridge.settings import Settings

SECOND = bytes(32_000)  # PCM16 mono at 16 kHz
Messages = list[dict[str, Any]]


@contextlib.asynccontextmanager
async def server(**variables: str) -> AsyncIterator[str]:
    env = {"STT_BACKEND": "scripted", **{f"STT_{name}": value for name, value in variables.items()}}
    async with serving(Settings.load(env, env_file=None, port=0), env) as url:
        yield url.replace("http", "ws") + "/v1/stream"


async def say(socket: ClientConnection, **message: Any) -> None:
    await socket.send(json.dumps(message))


async def rest(socket: ClientConnection) -> Messages:
    """Everything up to the close frame, which must agree with `closed`."""
    messages: Messages = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            messages.append(json.loads(await socket.recv()))
    code = messages[-1]["code"]
    assert messages[-1]["type"] == "closed"
    assert (socket.close_code, socket.close_reason) == (ERRORS[code].close, code)
    return messages


async def until(socket: ClientConnection, kind: str) -> Messages:
    messages: Messages = []
    while not messages or messages[-1]["type"] != kind:
        messages.append(json.loads(await socket.recv()))
    return messages


def of(messages: Messages, kind: str) -> Messages:
    return [message for message in messages if message["type"] == kind]


async def test_a_whole_session() -> None:
    async with server() as url, connect(url) as socket:
        await say(socket, type="start")
        for _ in range(8):
            await socket.send(SECOND[:16_000])
        await say(socket, type="stop")
        messages = await rest(socket)
    assert messages[0]["type"] == "ready"
    assert [m["text"] for m in of(messages, "final")] == ["one two three four five six", "one two"]
    numbers = [m["seq"] for m in messages if "seq" in m]
    assert numbers == list(range(1, len(numbers) + 1))
    assert not any("seq" in m for m in messages if m["type"] in ("ready", "partial", "ack"))
    kinds = [m["type"] for m in messages if m["type"] not in ("ack", "partial")]
    assert kinds == ["ready", *["speech_started", "speech_ended", "final"] * 2, "closed"]
    acks = [(m["received"], m["finalized"]) for m in of(messages, "ack")]
    assert acks == sorted(acks)
    assert all(finalized <= received for received, finalized in acks)
    assert messages[-1] | {"seq": 0} == {
        "type": "closed",
        "seq": 0,
        "code": "stopped",
        "received": 64_000,
        "finalized": 64_000,
        "duration": 4.0,
    }


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
async def test_flush_is_answered_by_an_ack(rate: int) -> None:
    async with server() as url, connect(url) as socket:
        await say(socket, type="start", sample_rate=rate)
        await socket.send(bytes(2 * rate + 2 * (rate // 20)))  # 50 ms more, for the resampler to keep
        await say(socket, type="flush")
        messages = await until(socket, "final")
        assert messages[-1]["text"] == "one two"
        finalized = 0
        while finalized < rate:
            finalized = (await until(socket, "ack"))[-1]["finalized"]
        await socket.send(bytes(2 * rate))
        await say(socket, type="stop")
        await rest(socket)


async def test_start_by_query_string() -> None:
    async with server() as url, connect(url + "?sample_rate=8000&encoding=mulaw&partials=false&x=y") as socket:
        ready = json.loads(await socket.recv())
        assert (ready["type"], ready["sample_rate"], ready["encoding"]) == ("ready", 8_000, "mulaw")
        await say(socket, type="start")
        await socket.send(bytes(8_000))
        await say(socket, type="stop")
        messages = await rest(socket)
    (error,) = of(messages, "error")
    assert (error["code"], error["fatal"]) == ("bad_order", False)
    assert "seq" not in error
    assert not of(messages, "partial")
    assert messages[-1]["code"] == "stopped"


async def test_the_earliest_android_clients() -> None:
    async with server() as url, connect(url) as socket:
        await say(socket, content=base64.b64encode(SECOND).decode(), audio_id="a-1")
        partial = (await until(socket, "partial"))[-1]
        assert partial["audio_id"] == "a-1"
        await say(socket, type="stop")
        messages = await rest(socket)
    assert [m["audio_id"] for m in of(messages, "final")] == ["a-1"]


async def test_audio_may_come_before_ready_and_cut_anywhere() -> None:
    async with server(SCRIPTED_MODE="markers") as url, connect(url) as socket:
        await say(socket, type="start")
        audio = struct.pack("<h", 1_000) * 4_800 + bytes(16_000)
        for at in range(0, len(audio), 777):
            await socket.send(audio[at : at + 777])
        await say(socket, type="stop")
        messages = await rest(socket)
    assert [m["text"] for m in of(messages, "final")] == ["w0"]


def header(rate: int) -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return b"RIFF\0\0\0\0WAVE" + form + b"data\0\0\0\0"


async def test_a_wav_header_is_skipped() -> None:
    async with server() as url, connect(url) as socket:
        await say(socket, type="start", encoding="pcm_s16le")
        await socket.send(header(16_000) + SECOND)
        await say(socket, type="stop")
        messages = await rest(socket)
    assert [m["code"] for m in of(messages, "warning")] == ["wav_header"]
    assert messages[-1]["received"] == 16_000


async def test_a_wav_header_that_contradicts() -> None:
    async with server() as url, connect(url) as socket:
        await say(socket, type="start", encoding="pcm_s16le", sample_rate=8_000)
        await socket.send(header(16_000) + SECOND)
        messages = await rest(socket)
    (error,) = of(messages, "error")
    assert (error["code"], error["fatal"]) == ("unsupported_audio", True)
    assert error["seq"] > 0
    assert messages[-1]["code"] == "unsupported_audio"


async def test_ends_that_are_no_errors_come_with_closed_alone() -> None:
    async with server(IDLE_SECONDS="0.2") as url, connect(url) as socket:
        await say(socket, type="start")
        await socket.send(SECOND)
        messages = await rest(socket)
    assert messages[-1]["code"] == "idle_timeout"
    assert messages[-1]["finalized"] == 16_000
    assert not of(messages, "error")
    async with server(MAX_SESSION_SECONDS="0.2") as url, connect(url) as socket:
        await say(socket, type="start")
        assert (await rest(socket))[-1]["code"] == "session_too_long"


async def test_a_refusal_after_the_upgrade() -> None:
    async with server(START_SECONDS="0.1") as url, connect(url) as socket:
        messages = await rest(socket)
    assert [m["type"] for m in messages] == ["error", "closed"]
    assert messages[-1]["code"] == "start_timeout"


async def test_too_many_bad_messages() -> None:
    async with server(MAX_BAD_MESSAGES="3") as url, connect(url) as socket:
        await say(socket, type="start")
        for _ in range(5):
            await socket.send("{}")
        messages = await rest(socket)
    assert [m["code"] for m in of(messages, "error")] == ["bad_message"] * 3 + ["too_many_errors"]
    assert messages[-1]["code"] == "too_many_errors"


async def test_a_message_over_the_limit() -> None:
    async with server(MAX_MESSAGE_BYTES="2048") as url, connect(url) as socket:
        await say(socket, type="start")
        ready = json.loads(await socket.recv())
        assert ready["limits"] == {"session_seconds": 14_400.0, "idle_seconds": 60.0, "message_bytes": 2_048}
        await socket.send(bytes(2_049))
        with pytest.raises(ConnectionClosed):
            await until(socket, "closed")
        assert socket.close_code == 1009


async def test_keys_and_refusals_before_the_upgrade() -> None:
    async with server(API_KEYS="k1,k2") as url:
        with pytest.raises(InvalidStatus) as caught:
            await connect(url)
        assert caught.value.response.status_code == 401
        assert json.loads(caught.value.response.body or b"")["error"]["code"] == "unauthorized"
        for name, value in (("Authorization", "Token k2"), ("X-API-Key", "k1")):
            async with connect(url, additional_headers={name: value}):
                pass
        async with connect(url + "?api_key=k1"):
            pass
        async with connect(url, subprotocols=[Subprotocol("bearer"), Subprotocol("k1")]) as socket:
            assert socket.subprotocol == "bearer"
    async with server() as url:
        with pytest.raises(InvalidStatus) as caught:
            await connect(url, additional_headers={"Origin": "https://elsewhere.example"})
        assert caught.value.response.status_code == 403
        with pytest.raises(InvalidStatus) as caught:
            await connect(url + "/nowhere")
        assert caught.value.response.status_code == 404
