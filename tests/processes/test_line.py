"""The line between two processes: whole messages, bounds, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator

import pytest

from bridge.processes.line import (
    FRAME_BYTES,
    HEADER_BYTES,
    WAITING_BYTES,
    Line,
    Message,
    Papers,
    Post,
    Present,
    Ready,
    Stop,
)
from tests.wire import LIMIT


@contextlib.asynccontextmanager
async def lines() -> AsyncIterator[tuple[Line, Line]]:
    here, there = [await Line.over(end) for end in socket.socketpair()]
    try:
        async with asyncio.timeout(LIMIT):
            yield here, there
    finally:
        await here.close()
        await there.close()


async def test_every_message_comes_as_it_was() -> None:
    messages: list[Message] = [
        Papers(b"{}", {"STT_X": "grüß"}, 2),
        Ready("http://127.0.0.1:1"),
        Present(frozenset({1, 64})),
        Present(frozenset()),
        Stop(),
        Stop(at_once=True),
        Post("topic", b"\x00\xff" * 500_000, 2, 1),
    ]
    async with lines() as (here, there):
        for message in messages:
            here.say(message)
        assert [await there.hear() for _ in messages] == messages


async def test_what_is_not_read_is_bounded_and_orders_still_come() -> None:
    post = Post("topic", bytes(100_000))
    async with lines() as (here, there):
        for _ in range(4 * WAITING_BYTES // len(post.body)):
            here.say(post)
        here.say(Stop())
        heard = 0
        while await there.hear() == post:
            heard += 1
        assert WAITING_BYTES <= heard * len(post.body) <= 2 * WAITING_BYTES


async def test_what_is_too_large_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    async with lines() as (here, there):
        with caplog.at_level(logging.ERROR):
            here.say(Post("topic", bytes(FRAME_BYTES)))
        here.say(Stop())
        assert await there.hear() == Stop()
    assert "is left out" in caplog.text


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x00",
        (10).to_bytes(HEADER_BYTES) + b"short",
        (3).to_bytes(HEADER_BYTES) + b"\xc1\xc1\xc1",
        (FRAME_BYTES + 1).to_bytes(HEADER_BYTES),
    ],
)
async def test_what_cannot_be_understood_is_an_end(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    line = await Line.over(ours)
    with theirs:
        theirs.sendall(sent)
    async with asyncio.timeout(LIMIT):
        with pytest.raises(EOFError):
            await line.hear()
        line.say(Stop())  # to nobody
        await line.close()
        line.say(Stop())
