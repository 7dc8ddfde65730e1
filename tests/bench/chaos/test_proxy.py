"""The proxy breaks connections in the way it says, and in no other."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator

import pytest

from bench.chaos import proxy
from bench.chaos.proxy import Proxy

LIMIT = 5.0


class Upstream:
    """Echoes what it gets, and notes how each connection ended."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.ends: asyncio.Queue[str] = asyncio.Queue()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                self.received += data
                writer.write(data)
            await self.ends.put("end")
        except ConnectionResetError:
            await self.ends.put("reset")
        finally:
            writer.close()

    async def end(self) -> str:
        async with asyncio.timeout(LIMIT):
            return await self.ends.get()


@pytest.fixture
async def upstream() -> AsyncGenerator[tuple[Upstream, int]]:
    echo = Upstream()
    server = await asyncio.start_server(echo.accept, "127.0.0.1", 0)
    async with server:
        yield echo, server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def through(port: int, seed: int = 1) -> AsyncGenerator[tuple[Proxy, asyncio.StreamReader, asyncio.StreamWriter]]:
    async with Proxy.to("127.0.0.1", [port], random.Random(seed)) as proxy, asyncio.timeout(LIMIT):
        reader, writer = await asyncio.open_connection(*proxy.address)
        try:
            yield proxy, reader, writer
        finally:
            writer.close()


async def ends(reader: asyncio.StreamReader) -> str:
    """How the connection ends for the client."""
    try:
        while await reader.read(65_536):
            pass
    except ConnectionResetError:
        return "reset"
    return "end"


async def test_without_a_fault_every_byte_passes_both_ways_and_ends_are_passed_on(
    upstream: tuple[Upstream, int],
) -> None:
    echo, port = upstream
    sent = random.Random(3).randbytes(1_000_000)
    async with through(port) as (proxy, reader, writer):
        reading = asyncio.create_task(reader.read(-1))
        writer.write(sent)
        writer.write_eof()
        assert await reading == sent
        assert proxy.connections == 1
    assert await echo.end() == "end"


@pytest.mark.parametrize(
    ("kind", "client", "server"), [("fin", "end", "end"), ("reset", "reset", "reset"), ("freeze", "reset", "reset")]
)
async def test_both_sides_see_the_connection_break(
    kind: str, client: str, server: str, upstream: tuple[Upstream, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "HOLD_SECONDS", (0.1, 0.1))
    echo, port = upstream
    async with through(port) as (way, reader, writer):
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        at = await way.strike(kind)
        assert at is not None
        assert await ends(reader) == client
        assert await echo.end() == server
        assert await way.strike(kind) is None  # it is broken already


@pytest.mark.parametrize("seed", range(6))
async def test_a_message_is_cut_in_two(seed: int, upstream: tuple[Upstream, int]) -> None:
    echo, port = upstream
    async with through(port, seed) as (way, reader, writer):
        writer.write(b"whole")
        assert await reader.readexactly(5) == b"whole"
        striking = asyncio.create_task(way.strike("mid_frame"))
        await asyncio.sleep(0)
        writer.write(b"x" * 1_000)
        assert await striking is not None
        got = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while data := await reader.read(65_536):
                got += data
        await echo.end()
        up = len(echo.received) - 5  # cut on the way there, or else on the way back
        assert 0 <= up < 1_000 or (up == 1_000 and len(got) < 1_000)


async def test_a_half_open_connection_is_reset_for_the_client_first(
    upstream: tuple[Upstream, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "HOLD_SECONDS", (0.5, 0.5))
    echo, port = upstream
    async with through(port) as (way, reader, writer):
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        striking = asyncio.create_task(way.strike("half_open"))
        assert await ends(reader) == "reset"
        assert echo.ends.empty()
        other, writing = await asyncio.open_connection(*way.address)  # the next one works while the old one stands
        writing.write(b"after")
        assert await other.readexactly(5) == b"after"
        assert echo.ends.empty()
        await striking
        assert await echo.end() == "reset"
        writing.close()


async def test_a_client_of_a_server_that_is_away_is_reset() -> None:
    unused = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = unused.sockets[0].getsockname()[1]
    unused.close()
    await unused.wait_closed()
    async with through(port) as (way, reader, _):
        assert await ends(reader) == "reset"
        assert way.connections == 0
        assert await way.strike("fin") is None


async def test_a_client_comes_to_any_server_that_is_not_down(upstream: tuple[Upstream, int]) -> None:
    unused = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    down = unused.sockets[0].getsockname()[1]
    unused.close()
    await unused.wait_closed()
    async with Proxy.to("127.0.0.1", [down, upstream[1]], random.Random(1)) as way, asyncio.timeout(LIMIT):
        for _ in range(8):
            reader, writer = await asyncio.open_connection(*way.address)
            writer.write(b"here")
            assert await reader.readexactly(4) == b"here"
            writer.close()
