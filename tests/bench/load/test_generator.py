"""The generator in this process, against servers that take it in, refuse it, hang up or say nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from bench.load import generator
from bench.load.generator import Generator, Wheel
from bench.load.plan import Plan
from bench.load.results import Seen, together
from bench.load.session import Session

Handler = Callable[[ServerConnection], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handler: Handler, *, status: int | None = None) -> AsyncIterator[str]:
    """A server's address; with a status, it refuses everybody."""

    def refuse(connection: ServerConnection, _: Request) -> Response | None:
        return connection.respond(status, "no\n") if status else None

    async with serve(handler, "127.0.0.1", 0, process_request=refuse, compression=None) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"


async def take(connection: ServerConnection) -> None:
    async for _ in connection:
        pass


async def played(url: str, **options: object) -> Seen:
    seen: list[Seen] = []
    plan = {"dialect": "silent", "sessions": 3, "seconds": 0.3, "ramp": 0.1, "jitter": 0.0, "think": 0.0} | options
    await Generator(Plan(url=url, **plan), seen.append).run()  # type: ignore[arg-type]  # of the fields' own types
    assert sum(one.open for one in seen[-1:]) == 0
    return together(seen)


async def test_each_session_is_played_once() -> None:
    async with serving(take) as url:
        seen = await played(url)
    assert (seen.completed, seen.refused, seen.dropped, seen.frames, seen.failures) == (3, 0, 0, 9, {})
    assert (seen.opening.count, seen.lag.count) == (3, 9)
    assert seen.words_said == 0  # nobody listened


async def test_frames_leave_on_the_audio_s_clock() -> None:
    came: list[float] = []

    async def note(connection: ServerConnection) -> None:
        came.extend([asyncio.get_running_loop().time() async for _ in connection])

    async with serving(note) as url:
        await played(url, sessions=1, seconds=1.0)
    assert len(came) == 10
    assert came[-1] - came[0] == pytest.approx(0.9, abs=0.15)


async def test_sessions_are_opened_anew_while_it_lasts() -> None:
    async with serving(take) as url:
        seen = await played(url, sessions=2, seconds=0.2, ramp=0, lasting=1.5)
    assert 4 <= seen.completed <= 14
    assert seen.frames == 2 * seen.completed


async def test_a_hold_comes_before_the_audio() -> None:
    first: list[float] = []

    async def note(connection: ServerConnection) -> None:
        opened = asyncio.get_running_loop().time()
        await connection.recv()
        first.append(asyncio.get_running_loop().time() - opened)
        await take(connection)

    async with serving(note) as url:
        seen = await played(url, sessions=1, hold=0.4)
    assert seen.completed == 1
    assert first[0] >= 0.39


async def test_a_refusal_is_counted_with_its_reason() -> None:
    async with serving(take, status=503) as url:
        seen = await played(url)
    assert (seen.completed, seen.refused, seen.dropped) == (0, 3, 0)
    assert seen.failures == {"HTTP/1.1 503 Service Unavailable": 3}


async def test_a_key_opens_a_guarded_server() -> None:
    keys: list[str | None] = []

    async def note(connection: ServerConnection) -> None:
        keys.append(connection.request.headers.get("Authorization") if connection.request else None)
        await take(connection)

    async with serving(note) as url:
        await played(url, sessions=1, key="sesame")
    assert keys == ["Bearer sesame"]


async def test_a_server_that_is_not_there_refuses() -> None:
    async with serving(take) as url:
        pass
    seen = await played(url)
    assert (seen.refused, seen.dropped) == (3, 0)
    assert seen.failures == {"Connection refused": 3}


async def test_a_connection_that_is_cut_is_dropped() -> None:
    async def cut(connection: ServerConnection) -> None:
        await connection.recv()
        connection.transport.abort()

    async with serving(cut) as url:
        seen = await played(url)
    assert (seen.completed, seen.refused, seen.dropped) == (0, 0, 3)
    assert sum(seen.failures.values()) == 3


async def test_a_server_that_closes_early_is_no_success() -> None:
    async def close(connection: ServerConnection) -> None:
        await connection.recv()

    async with serving(close) as url:
        seen = await played(url)
    assert (seen.completed, seen.dropped) == (0, 3)
    assert seen.failures == {"ended before its audio did": 3}


async def test_a_server_that_hangs_is_counted_and_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "PATIENCE", 0.3)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client has gone
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        seen = await played(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", ramp=0)
    assert (seen.completed, seen.refused, seen.dropped) == (0, 3, 0)
    assert seen.failures == {"it did not end in time": 3}


class Sender:
    """Stands where a session does, and notes when it is called."""

    def __init__(self) -> None:
        self.called: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def send(self) -> None:
        self.called.set_result(time.perf_counter())


async def test_the_wheel_calls_nobody_early_and_nobody_much_too_late() -> None:
    wheel = Wheel(asyncio.get_running_loop())
    now = time.perf_counter()
    due = [now + offset for offset in (0.2, 0.05, 0.0, -1.0, 0.0501, 0.051)]
    senders = [Sender() for _ in due]
    for when, sender in zip(due, senders, strict=True):
        wheel.later(when, _session(sender))
    called = [await sender.called for sender in senders]
    for when, at in zip(due, called, strict=True):
        assert max(when, now) <= at < max(when, now) + 0.1


def _session(sender: Sender) -> Session:
    return sender  # type: ignore[return-value]  # the wheel knows of `send` alone
