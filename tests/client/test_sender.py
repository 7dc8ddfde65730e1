"""The sending client on a single connection, against a real WebSocket server that says what the test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from bench.chaos.supervisor import free_port
from bridge.client import Client, ConnectError, ConnectionLost, SessionError, connect
from bridge.protocols import native
from bridge.protocols.native import StartMessage

READY = {
    "type": "ready",
    "protocol": 1,
    "session_id": "s1",
    "backend": "canned",
    "language": "en-US",
    "encoding": "pcm_s16le",
    "sample_rate": 16000,
    "channels": 1,
    "partials": True,
    "limits": {"session_seconds": 60, "idle_seconds": 10, "message_bytes": 4096},
}
PARTIAL = {"type": "partial", "text": "hel", "start": 0.0, "end": 0.5}
FINAL = {
    "type": "final",
    "seq": 2,
    "text": "hello",
    "start": 0.0,
    "end": 1.0,
    "words": [{"text": "hello", "start": 0.1, "end": 0.9}],
}
CLOSED = {"type": "closed", "seq": 3, "code": "stopped", "received": 16, "finalized": 16, "duration": 0.001}

Handler = Callable[[ServerConnection], Awaitable[None]]
Hook = Callable[[ServerConnection, Request], Response | None]


@contextlib.asynccontextmanager
async def serving(handler: Handler, hook: Hook | None = None) -> AsyncIterator[str]:
    async with serve(handler, "127.0.0.1", 0, process_request=hook, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}/v1/stream"


async def say(connection: ServerConnection, *messages: dict[str, Any]) -> None:
    for message in messages:
        await connection.send(json.dumps(message))


async def until_stop(connection: ServerConnection) -> bytes:
    """The audio up to `stop`."""
    audio = bytearray()
    async for message in connection:
        if isinstance(message, bytes):
            audio += message
        elif json.loads(message)["type"] == "stop":
            break
    return bytes(audio)


async def collect(client: Client, into: list[native.ServerMessage] | None = None) -> list[native.ServerMessage]:
    """Every message; `into` holds what came before an exception."""
    messages = [] if into is None else into
    async for message in client:
        messages.append(message)
    return messages


async def test_a_session() -> None:
    seen: dict[str, Any] = {}

    async def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen["headers"] = connection.request.headers
        seen["start"] = json.loads(await connection.recv())
        await say(connection, READY, PARTIAL)
        seen["audio"] = await until_stop(connection)
        await say(connection, {"type": "ack", "received": 16, "finalized": 0}, FINAL, CLOSED)

    async with serving(handler) as url:
        start = StartMessage(sample_rate=8000, language="de-DE", phrases=("a b", "c"))
        async with connect(url, start, api_key="sesame") as client:
            assert client.ready.session_id == "s1"
            assert client.ready.limits.message_bytes == 4096
            await client.send(b"ab" * 8)
            await client.send(b"cd" * 5000)
            await client.stop()
            messages = await collect(client)
    assert seen["start"] == {
        "type": "start",
        "sample_rate": 8000,
        "language": "de-DE",
        "phrases": ["a b", "c"],
        "resume": True,
    }
    assert seen["headers"]["Authorization"] == "Bearer sesame"
    assert "Sec-WebSocket-Extensions" not in seen["headers"]
    assert seen["audio"] == b"ab" * 8 + b"cd" * 5000
    assert client.sent == 10_016
    assert messages == [
        native.PartialMessage("hel", 0.0, 0.5),
        native.AckMessage(16, 0),
        native.FinalMessage(2, "hello", 0.0, 1.0, (native.WordObject("hello", 0.1, 0.9),)),
        native.ClosedMessage("stopped", 16, 16, 0.001, 3),
    ]
    assert client.closed == messages[-1]


async def test_audio_is_cut_to_the_servers_largest_message() -> None:
    sizes: list[int] = []

    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        await say(connection, READY)
        async for message in connection:
            if isinstance(message, str):
                break
            sizes.append(len(message))
        await say(connection, CLOSED)

    async with serving(handler) as url, connect(url) as client:
        await client.send(bytes(10_000))
        await client.stop()
        await collect(client)
    assert sizes == [4096, 4096, 1808]


async def test_flush() -> None:
    types: list[str] = []

    async def handler(connection: ServerConnection) -> None:
        async for message in connection:
            types.append(json.loads(message)["type"])
            await say(connection, *{"start": [READY], "flush": [FINAL], "stop": [CLOSED]}[types[-1]])

    async with serving(handler) as url, connect(url) as client:
        await client.flush()
        assert isinstance(await anext(aiter(client)), native.FinalMessage)
        await client.stop()
        assert len(await collect(client)) == 1
    assert types == ["start", "flush", "stop"]


async def test_iterating_again_after_the_end_gives_nothing() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        await say(connection, READY, CLOSED)

    async with serving(handler) as url, connect(url) as client:
        assert len(await collect(client)) == 1
        assert await collect(client) == []


async def test_messages_of_a_newer_protocol_are_ignored() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        await say(connection, READY, {"type": "applause", "loud": True}, FINAL | {"mood": "glad"}, CLOSED)

    async with serving(handler) as url, connect(url) as client:
        assert [type(message).__name__ for message in await collect(client)] == ["FinalMessage", "ClosedMessage"]


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [(401, "unauthorized", False), (403, "forbidden_origin", False), (503, "at_capacity", True), (503, "new", True)],
)
async def test_refusal_before_the_upgrade(status: int, code: str, retryable: bool) -> None:
    def hook(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(http.HTTPStatus(status), json.dumps({"error": {"code": code, "message": "No."}}))

    async def handler(connection: ServerConnection) -> None:
        raise AssertionError

    async with serving(handler, hook) as url:
        with pytest.raises(SessionError) as caught:
            async with connect(url):
                raise AssertionError
    assert (caught.value.code, caught.value.message, caught.value.retryable) == (code, "No.", retryable)
    assert str(caught.value) == f"No. ({code})"


async def test_something_else_listens_there() -> None:
    def hook(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(http.HTTPStatus.NOT_FOUND, "<html>Not found</html>")

    async def handler(connection: ServerConnection) -> None:
        raise AssertionError

    async with serving(handler, hook) as url:
        with pytest.raises(ConnectError, match="HTTP status 404"):
            async with connect(url):
                raise AssertionError


async def test_nothing_listens_there() -> None:
    with pytest.raises(ConnectError, match="connection refused"):
        async with connect(f"ws://127.0.0.1:{free_port()}/v1/stream"):
            raise AssertionError


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "nonsense", "ws://", "ws://host.invalid./"])
async def test_bad_addresses(url: str) -> None:
    with pytest.raises(ConnectError):
        async with connect(url):
            raise AssertionError


async def test_a_server_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(ConnectError, match=r"no answer within 0\.1 s"):
            async with connect(f"ws://127.0.0.1:{port}/", open_seconds=0.1):
                raise AssertionError


async def test_a_server_that_does_not_get_ready() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async with serving(handler) as url:
        with pytest.raises(ConnectError, match="did not get ready"):
            async with connect(url, open_seconds=0.1):
                raise AssertionError


@pytest.mark.parametrize("first", ["[]", "}", '{"type":"ack","received":0,"finalized":0}', '{"type":"new"}'])
async def test_a_server_that_begins_with_something_else(first: str) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send(first)
        await connection.wait_closed()

    async with serving(handler) as url:
        with pytest.raises(ConnectError):
            async with connect(url):
                raise AssertionError


async def test_start_is_refused() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        error = {"code": "unsupported_language", "message": "No xx.", "fatal": True, "retryable": False}
        await say(connection, {"type": "error", **error}, CLOSED | {"code": "unsupported_language"})

    async with serving(handler) as url:
        with pytest.raises(SessionError, match=r"No xx\. \(unsupported_language\)"):
            async with connect(url):
                raise AssertionError


async def test_fatal_error_is_raised_after_the_last_message() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        error = {"code": "backend_failed", "message": "It broke.", "fatal": True, "retryable": True, "seq": 1}
        await say(connection, READY, {"type": "error", **error}, FINAL, CLOSED | {"code": "backend_failed"})

    seen: list[native.ServerMessage] = []
    async with serving(handler) as url, connect(url) as client:
        with pytest.raises(SessionError) as caught:
            await collect(client, seen)
    assert [type(message).__name__ for message in seen] == ["ErrorMessage", "FinalMessage", "ClosedMessage"]
    assert (caught.value.code, caught.value.retryable) == ("backend_failed", True)


async def test_error_that_is_not_fatal_hurts_nothing() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        error = {"code": "bad_message", "message": "Eh?", "fatal": False, "retryable": False}
        await say(connection, READY, {"type": "error", **error}, FINAL, CLOSED)

    async with serving(handler) as url, connect(url) as client:
        assert len(await collect(client)) == 3


async def test_server_that_shuts_down() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        await say(connection, READY, FINAL, CLOSED | {"code": "shutting_down"})

    async with serving(handler) as url, connect(url) as client:
        with pytest.raises(SessionError) as caught:
            await collect(client)
    assert (caught.value.code, caught.value.retryable) == ("shutting_down", True)
    assert client.closed is not None


@pytest.mark.parametrize(
    ("last", "message"), [("close", "code 1011: oh dear"), ("abort", "broke off"), ("rubbish", "no message")]
)
async def test_connection_lost(last: str, message: str) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        await say(connection, READY, FINAL)
        if last == "close":
            await connection.close(1011, "oh dear")
        elif last == "abort":
            await asyncio.sleep(0.05)
            connection.transport.abort()
        else:
            await connection.send("{")
            await connection.wait_closed()

    seen: list[native.ServerMessage] = []
    async with serving(handler) as url, connect(url) as client:
        with pytest.raises(ConnectionLost, match=message):
            await collect(client, seen)
        assert len(seen) == 1
        if last != "rubbish":
            with pytest.raises(ConnectionLost):
                await client.send(b"\0\0")
            with pytest.raises(ConnectionLost):
                await client.stop()


async def test_a_server_that_reads_nothing_holds_the_sender_back() -> None:
    release = asyncio.Event()

    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        await say(connection, READY)
        connection.transport.pause_reading()
        await release.wait()
        connection.transport.resume_reading()
        await until_stop(connection)
        await say(connection, CLOSED)

    total = 16_000_000
    async with serving(handler) as url, connect(url) as client:

        async def send() -> None:
            while client.sent < total:
                await client.send(bytes(4000))
            await client.stop()

        sender = asyncio.create_task(send())
        held = -1
        while held != client.sent:
            held = client.sent
            await asyncio.sleep(0.2)
        assert held < 8_000_000
        release.set()
        await collect(client)
        await sender
    assert client.sent == total


async def test_cancelling_closes_the_connection() -> None:
    gone = asyncio.Event()

    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        await say(connection, READY)
        await connection.wait_closed()
        gone.set()

    async with serving(handler) as url:
        entered = asyncio.Event()

        async def use() -> None:
            async with connect(url) as client:
                entered.set()
                await collect(client)

        task = asyncio.create_task(use())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 5)


async def test_cancelled_wait_loses_no_message() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        await say(connection, READY)
        await until_stop(connection)
        await say(connection, FINAL, CLOSED)

    async with serving(handler) as url, connect(url) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(aiter(client)), 0.05)
        await client.stop()
        assert len(await collect(client)) == 2
