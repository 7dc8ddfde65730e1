"""The load of `bench.http`, and what it reads out of a server's moments."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.parser import BytesParser

import pytest

from bench.http import SECONDS, cases
from bench.http_load import run
from bench.http_parts import OTHERS, Sampler
from bridge.audio.formats import AudioFormat
from bridge.transports import http_protocol
from tests.audio.decoding import decoded

Answer = Callable[[bytes], bytes]


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[int]:
    """A server on this port that answers each request, which is 100 bytes long, in two pieces."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readexactly(100):
                given = answer(request)
                writer.write(given[:25])
                await asyncio.sleep(0.001)
                writer.write(given[25:])
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.parametrize(("status", "failed"), [(b"200 OK", False), (b"429 Too Many Requests", True)])
async def test_every_answer_counts(status: bytes, failed: bool) -> None:
    async with answering(lambda _: b"HTTP/1.1 %s\r\nContent-Length: 4\r\n\r\ntext" % status) as port:
        load = await run(port, b"x" * 100, connections=3, seconds=0.2)
    assert load.requests >= 3
    assert load.failed == (load.requests if failed else 0)
    assert load.example == "text"
    assert load.latency_ms["p50"] >= 1


async def test_a_server_that_hangs_up_is_a_failure() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    load = await run(server.sockets[0].getsockname()[1], b"x" * 100, connections=2, seconds=5)
    server.close()
    assert (load.requests, load.failed) == (0, 2)


def test_each_case_is_a_whole_request_with_five_seconds() -> None:
    made = list(cases())
    assert len({case.name for case in made}) == 4
    for case in made:
        head, _, body = case.request("/bare").partition(b"\r\n\r\n")
        assert head.startswith(b"POST /bare HTTP/1.1\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        if "form" in case.name:
            form = BytesParser().parsebytes(f"Content-Type: {case.content_type}\r\n\r\n".encode() + body)
            file = [part.get_payload(decode=True) for part in form.walk()][-1]
            assert isinstance(file, bytes)
            body = file
        assert len(decoded(AudioFormat(), body)) / 16_000 == SECONDS


def test_a_moment_counts_for_the_innermost_part() -> None:
    sampler = Sampler()
    sampler.look(0, sys._getframe())
    assert sampler.report() == {OTHERS: 100.0}
    code = compile("def inner(look, frame): look(0, frame())", http_protocol.__file__, "exec")
    space: dict[str, Callable[[object, object], None]] = {}
    exec(code, space)
    space["inner"](sampler.look, sys._getframe)
    assert sampler.report() == {OTHERS: 50.0, "uvicorn": 50.0}
