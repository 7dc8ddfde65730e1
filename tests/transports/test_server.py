"""The server's own limits, without the rest of the bridge."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bridge.transports.server import Server, listen, make_server
from bridge.transports.websocket_protocol import LARGE_SLICE
from tests.wire import BINARY, CONT, PING, TEXT, Wire, frame

Message = dict[str, Any]


@contextlib.asynccontextmanager
async def running(app: Any, **options: Any) -> AsyncIterator[tuple[str, Server]]:
    """The application on a port of its own."""

    async def drain() -> None:
        pass

    settings = {
        "max_message_bytes": 1_048_576,
        "ping_seconds": 30.0,
        "ping_timeout_seconds": 30.0,
        "shutdown_seconds": 1.0,
    }
    server = make_server(app, drain=drain, **settings | options)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve([listener]))
        yield f"http://127.0.0.1:{port}", server
        if server._stopping is None:
            server.stop()


class Sink:
    """An application that takes messages when it is told, and notes them."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.messages: list[Message] = []
        self.over = asyncio.Event()
        self.extensions: dict[str, Any] = {}

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        self.extensions = scope["extensions"]
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            await self.gate.wait()
            message = await receive()
            self.messages.append(message)
            if message["type"] == "websocket.disconnect":
                self.over.set()
                return
            if message.get("text") == "close":
                await send({"type": "websocket.close", "code": 4000, "reason": "asked"})

    @property
    def data(self) -> list[bytes | str]:
        """What came, but for the end."""
        return [m["bytes"] if "bytes" in m else m["text"] for m in self.messages[:-1]]


async def test_messages_in_order_however_they_are_cut() -> None:
    """Small, large, fragmented and empty ones, in one stretch far larger than a slice, and byte by byte."""
    sink = Sink()
    expected = [bytes([i % 256]) * (i % 50) for i in range(6_000)] + [b"x" * 100_000, b"", b"fragments", "text"]
    wire_data = b"".join(frame(BINARY, m) for m in expected[:-2] if isinstance(m, bytes))
    wire_data += frame(BINARY, b"frag", fin=False) + frame(PING, b"!") + frame(CONT, b"", fin=False)
    wire_data += frame(CONT, b"ments") + frame(TEXT, b"te", fin=False) + frame(CONT, b"xt")
    assert len(wire_data) > 4 * LARGE_SLICE
    async with running(sink) as (url, _):
        for piece in (len(wire_data), 997):
            sink.messages.clear()
            sink.over.clear()
            async with Wire.stream(url, "/") as wire:
                for at in range(0, len(wire_data), piece):
                    await wire.send(wire_data[at : at + piece])
                await wire.send(frame(TEXT, b"close"))
                outcome = await wire.finish()
                await sink.over.wait()
            assert sink.data == [*expected, "close"]
            assert outcome.close == 4000


async def test_a_slow_application_slows_the_socket() -> None:
    """What waits in this process stays small, and nothing of it is lost."""
    sink = Sink()
    async with running(sink) as (url, server), Wire.stream(url, "/", sndbuf=65_536) as wire:
        sink.gate.clear()
        total = 40_000
        sending = asyncio.create_task(wire.send(frame(BINARY, bytes(1_000)) * total))
        done, _ = await asyncio.wait({sending}, timeout=0.5)
        assert not done
        protocol: Any = next(iter(server.server_state.connections))
        assert protocol.queue.qsize() <= LARGE_SLICE // 1_000 + 10
        assert len(protocol._backlog) <= 2**18
        sink.gate.set()
        await sending
        await wire.send(frame(TEXT, b"close"))
        assert (await wire.finish()).close == 4000
        assert len(sink.data) == total + 1


async def test_the_closing_handshake_is_found_behind_much_else() -> None:
    sink = Sink()
    async with running(sink) as (url, server), Wire.stream(url, "/") as wire:
        await wire.send(frame(TEXT, b"close") + frame(BINARY, bytes(100)) * 20_000)
        began = asyncio.get_running_loop().time()
        outcome = await wire.finish()
        assert outcome.close == 4000
        assert not outcome.reset
        assert asyncio.get_running_loop().time() - began < 1
        assert not server.server_state.connections


async def test_too_many_connections_of_any_kind() -> None:
    sink = Sink()
    async with running(sink, max_connections=2) as (url, _):
        async with Wire.open(url), Wire.stream(url, "/") as second:
            assert second.outcome.status == 101
            async with Wire.open(url) as third:
                outcome = await third.response()
                assert outcome.status == 503
                assert outcome.error["code"] == "at_capacity"
                assert (await third.finish()).ended
        async with Wire.stream(url, "/") as later:
            assert later.outcome.status == 101


async def test_the_application_can_drop_a_connection() -> None:
    sink = Sink()
    async with running(sink) as (url, _), Wire.stream(url, "/") as wire:
        assert sink.extensions["stt_bridge.line"].write(["{}"])
        sink.extensions["stt_bridge.abort"]()
        assert not sink.extensions["stt_bridge.line"].write(["{}"])
        outcome = await wire.finish()
        assert outcome.reset
        assert outcome.close is None
        await sink.over.wait()


@pytest.mark.parametrize("twice", [False, True])
async def test_stop_does_not_wait_for_an_application_that_hangs(twice: bool) -> None:
    cancelled = asyncio.Event()

    async def hang(scope: Message, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with asyncio.timeout(5):
        async with running(hang) as (url, server), Wire.stream(url, "/") as wire:
            server.stop()
            if twice:
                server.stop()
            outcome = await wire.finish()
            assert outcome.close == 1012
        if not twice:
            assert cancelled.is_set()


async def test_a_refused_upgrade_is_no_error_of_the_servers(caplog: pytest.LogCaptureFixture) -> None:
    async def refusing(scope: Message, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 503, "headers": [(b"content-length", b"2")]})
        await send({"type": "websocket.http.response.body", "body": b"no"})

    async with running(refusing) as (url, _), Wire.stream(url) as wire:
        assert (wire.outcome.status, wire.outcome.body) == (503, b"no")
        await wire.finish()
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
