"""Server-sent events over a real socket: what is sent, when the answer begins, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable

import pytest
from fastapi import APIRouter, Request, Response

from bridge.api.presence import present
from bridge.api.sse import OPEN, Event, EventStream
from bridge.errors import BridgeError
from bridge.transports import http_protocol
from tests.api.served import served
from tests.wire import LIMIT, Answer, Wire, get

REQUEST = b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n"

Source = Callable[[], AsyncGenerator[Event]]


def failed(error: BridgeError) -> Event:
    return Event(json.dumps({"code": error.code}), "error")


def router(source: Source, keep_alive_seconds: float = 15) -> APIRouter:
    routes = APIRouter()

    @routes.get("/events", response_class=Response)
    async def events() -> Response:
        return EventStream(source(), failed, keep_alive_seconds=keep_alive_seconds)

    return routes


async def answered(source: Source) -> Answer:
    async with served(router(source)) as url:
        return await get(f"{url}/events")


class Watched:
    """A source that says when it has been closed."""

    def __init__(self, *first: Event) -> None:
        self.first = first
        self.begun = asyncio.Event()
        self.closed = asyncio.Event()
        self.given = 0

    async def wait(self) -> AsyncGenerator[Event]:
        """The first events, then nothing for ever."""
        try:
            for event in self.first:
                yield event
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def flood(self) -> AsyncGenerator[Event]:
        """More than any buffer holds."""
        try:
            while True:
                self.given += 1
                yield Event("x" * 65_536)
        finally:
            self.closed.set()


@pytest.mark.parametrize(
    ("event", "sent"),
    [
        (Event("a"), b"data: a\n\n"),
        (Event("größer"), "data: größer\n\n".encode()),
        (Event("a\nb\r\nc\rd"), b"data: a\ndata: b\ndata: c\ndata: d\n\n"),
        (Event("", "state", "7"), b"event: state\nid: 7\ndata: \n\n"),
        (Event("x", "a\nb", "1\r\n2\x00"), b"event: a b\nid: 1  2 \ndata: x\n\n"),
        (Event("\ud800"), b"data: ?\n\n"),
    ],
)
def test_what_an_event_looks_like(event: Event, sent: bytes) -> None:
    assert event.encode() == sent


async def test_events_one_after_the_other_and_the_end() -> None:
    async def source() -> AsyncGenerator[Event]:
        yield Event("1", id="1")
        yield OPEN
        yield Event("2", "last")

    answer = await answered(source)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.body == b"id: 1\ndata: 1\n\nevent: last\ndata: 2\n\n"


async def test_no_events_at_all() -> None:
    async def source() -> AsyncGenerator[Event]:
        nothing: list[Event] = []
        for event in nothing:
            yield event

    assert (await answered(source)).body == b""


async def test_an_error_before_the_first_event_is_answered_as_any_other() -> None:
    async def source() -> AsyncGenerator[Event]:
        for code in ("unknown_job",):
            raise BridgeError(code)
        yield OPEN

    answer = await answered(source)
    assert (answer.status, answer.json["error"]["code"]) == (404, "unknown_job")


async def test_an_error_later_is_the_last_event() -> None:
    async def source() -> AsyncGenerator[Event]:
        yield OPEN
        raise BridgeError("backend_failed")

    answer = await answered(source)
    assert (answer.status, answer.body) == (200, b'event: error\ndata: {"code": "backend_failed"}\n\n')


async def test_comments_while_nothing_comes() -> None:
    source = Watched(Event("1"))
    async with served(router(source.wait, 0.05)) as url, Wire.open(url) as wire:
        await wire.send(REQUEST)
        received = b""
        async with asyncio.timeout(LIMIT):
            while received.count(b": \n\n") < 3:
                received += await asyncio.get_running_loop().sock_recv(wire.sock, 4_096)
        assert b"data: 1\n\n" in received
        assert not source.closed.is_set()


async def test_a_client_that_hangs_up_closes_the_source() -> None:
    source = Watched(OPEN)
    async with served(router(source.wait)) as url:
        async with Wire.open(url) as wire:
            await wire.send(REQUEST)
            await asyncio.wait_for(source.begun.wait(), LIMIT)
        await asyncio.wait_for(source.closed.wait(), LIMIT)


async def test_a_client_that_reads_nothing_stops_the_source_and_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "RESPONSE_SECONDS", 0.3)
    source = Watched()
    async with served(router(source.flood)) as url, Wire.open(url, rcvbuf=4_096) as wire:
        await wire.send(REQUEST)
        await asyncio.wait_for(source.closed.wait(), LIMIT)
        assert source.given < 200, "a few megabytes: what the kernel holds"


async def test_the_end_of_the_server_closes_the_source() -> None:
    source = Watched(OPEN)
    async with served(router(source.wait)) as url, Wire.open(url) as wire:
        await wire.send(REQUEST)
        await asyncio.wait_for(source.begun.wait(), LIMIT)
    await asyncio.wait_for(source.closed.wait(), LIMIT)


async def test_work_ends_when_its_client_hangs_up() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()
    codes = []
    routes = APIRouter()

    @routes.get("/events")
    async def work(request: Request) -> int:
        try:
            async with present(request):
                begun.set()
                await asyncio.Event().wait()
        except BridgeError as exc:
            codes.append(exc.code)
            ended.set()
            raise
        return 1

    @routes.get("/quick")
    async def quick(request: Request) -> int:
        async with present(request):
            return 2

    async with served(routes) as url:
        async with Wire.open(url) as wire:
            await wire.send(REQUEST)
            await asyncio.wait_for(begun.wait(), LIMIT)
        await asyncio.wait_for(ended.wait(), LIMIT)
        assert codes == ["body_timeout"]
        assert (await get(f"{url}/quick")).body == b"2"
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "client-gone"]


async def test_what_times_out_in_the_work_is_no_client_that_left() -> None:
    async def receive() -> dict[str, str]:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    with pytest.raises(TimeoutError, match="of the work"):
        async with present(Request({"type": "http"}, receive)):
            raise TimeoutError("of the work")
