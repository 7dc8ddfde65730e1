"""What HTTP connections do beside uvicorn: packets of an answer, in their order, and bodies that are not copied."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import types
from typing import Any

import pytest
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from bridge.transports.http_protocol import JOINED_BYTES, Crowd, _Answer, _Ending, _Pieces
from tests.api.served import served
from tests.wire import LIMIT, Wire, eventually, get

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


class Transport:
    """Notes what is written to it, each time."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.packets.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def connection() -> tuple[Any, Transport]:
    transport = Transport()
    loop = asyncio.get_running_loop()
    return types.SimpleNamespace(transport=transport, loop=loop, hang_up=transport.close), transport


async def test_a_short_answer_is_one_packet() -> None:
    protocol, transport = connection()
    answer = _Answer(protocol)
    answer.write(INTERIM)
    answer.write(HEAD)
    answer.write(b"body")
    assert transport.packets == [INTERIM, HEAD + b"body"]
    await asyncio.sleep(0)
    assert len(transport.packets) == 2


async def test_a_head_does_not_wait_for_a_body_that_comes_later() -> None:
    protocol, transport = connection()
    answer = _Answer(protocol)
    answer.write(HEAD)
    assert transport.packets == []
    await asyncio.sleep(0)
    assert transport.packets == [HEAD]
    answer.write(b"body")
    assert transport.packets == [HEAD, b"body"]


async def test_a_long_body_is_not_copied() -> None:
    protocol, transport = connection()
    answer = _Answer(protocol)
    body = bytes(JOINED_BYTES + 1)
    answer.write(HEAD)
    answer.write(body)
    assert transport.packets == [HEAD, body]
    assert transport.packets[1] is body


@pytest.mark.parametrize("kind", [_Answer, _Ending])
async def test_closing_sends_the_head_first_and_a_closed_connection_gets_none(kind: type[_Answer]) -> None:
    protocol, transport = connection()
    answer = kind(protocol)
    answer.write(HEAD)
    answer.close()
    assert (transport.packets, transport.closed) == ([HEAD], True)

    protocol, transport = connection()
    answer = kind(protocol)
    answer.write(HEAD)
    transport.close()
    await asyncio.sleep(0)
    assert transport.packets == []


def test_a_body_of_one_piece_is_that_piece() -> None:
    pieces: Any = _Pieces()
    assert (len(pieces), bytes(pieces)) == (0, b"")
    piece = bytes(100_000)
    pieces += piece
    assert bytes(pieces) is piece
    pieces += b"more"
    assert (len(pieces), bytes(pieces)) == (100_004, piece + b"more")


def routes(go_on: asyncio.Event) -> APIRouter:
    router = APIRouter()

    @router.get("/later")
    async def later() -> Response:
        async def body() -> Any:
            await asyncio.wait_for(go_on.wait(), LIMIT)
            yield b"late"

        return StreamingResponse(body())

    @router.post("/wait")
    async def wait(request: Request) -> int:
        await asyncio.wait_for(go_on.wait(), LIMIT)
        return len(await request.body())

    @router.get("/short")
    async def short() -> str:
        return "short"

    return router


async def test_over_a_socket_the_head_comes_before_a_body_that_waits() -> None:
    go_on = asyncio.Event()
    async with served(routes(go_on)) as url, Wire.open(url) as wire:
        await wire.send(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n")
        loop = asyncio.get_running_loop()
        head = await asyncio.wait_for(loop.sock_recv(wire.sock, 65_536), LIMIT)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"late" not in head
        go_on.set()
        assert b"late" in await asyncio.wait_for(loop.sock_recv(wire.sock, 65_536), LIMIT)


POST = b"POST /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + bytes(1_000)


async def test_a_crowd_is_refused_by_its_heads_and_others_are_not() -> None:
    go_on = asyncio.Event()
    refused = 0

    def count() -> None:
        nonlocal refused
        refused += 1

    crowd = Crowd(2, count)
    async with served(routes(go_on), crowd=crowd) as url, contextlib.AsyncExitStack() as stack:
        waiting = [await stack.enter_async_context(Wire.open(url)) for _ in range(2)]
        for wire in waiting:
            await wire.send(POST)
        await eventually(lambda: crowd.full)
        for _ in range(3):
            async with Wire.open(url) as wire:
                await wire.send(POST)
                outcome = await wire.response()
            assert (outcome.status, outcome.error["code"]) == (503, "at_capacity")
            assert outcome.headers["retry-after"] == "1"
        assert refused == 3
        assert (await get(f"{url}/short")).status == 200, "a request without a body is no part of it"
        go_on.set()
        for wire in waiting:
            assert (await wire.response()).status == 200
        assert not crowd.requests
        async with Wire.open(url) as wire:
            await wire.send(POST)
            assert (await wire.response()).status == 200


async def test_who_hangs_up_is_no_longer_of_the_crowd() -> None:
    crowd = Crowd(1)
    async with served(routes(asyncio.Event()), crowd=crowd) as url:
        async with Wire.open(url) as wire:
            await wire.send(POST[:-1])
            await eventually(lambda: crowd.full)
        await eventually(lambda: not crowd.requests)


@pytest.mark.parametrize(
    "request_",
    [b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n", POST[:-1].replace(b"/wait", b"/nothing")],
    ids=["answered", "refused before its body is here"],
)
async def test_what_served_a_connection_is_freed_with_it(request_: bytes) -> None:
    """And not by the collector, which comes late to what has lived for a while: a flood would fill the memory."""
    async with served(routes(asyncio.Event())) as url:
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                async with Wire.open(url) as wire:
                    await wire.send(request_)
                    await wire.response()
            await eventually(lambda: not any(isinstance(o, RequestResponseCycle) for o in gc.get_objects()))
        finally:
            gc.enable()
