"""Bodies over a real socket: how large, how slow and how many they may be, and what a form may hold."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, Request
from hypothesis import given
from hypothesis import strategies as st

from bridge.api import bodies as module
from bridge.api import forms
from bridge.api.bodies import MEMORY_BYTES, Bodies, Spooled
from bridge.api.forms import FormReader, shown_name
from bridge.errors import BridgeError
from tests.api.served import served
from tests.wire import LIMIT, Wire, eventually, get

LARGEST = 4 * MEMORY_BYTES
BOUNDARY = b"fence"


def describe(file: Spooled) -> dict[str, Any]:
    """What arrived."""
    data = file.file.read()
    return {"name": file.name, "size": file.size, "read": len(data), "sha": hashlib.sha256(data).hexdigest()}


def router(bodies: Bodies) -> APIRouter:
    routes = APIRouter()

    @routes.post("/file")
    async def file(request: Request) -> dict[str, Any]:
        async with bodies.file(request) as spooled:
            on_disk = not isinstance(spooled.content, bytes)
            return describe(spooled) | {"on_disk": on_disk}

    @routes.post("/form")
    async def form(request: Request) -> dict[str, Any]:
        async with bodies.form(request) as fields:
            sent = fields.file("file")
            return {
                "model": fields.get("model"),
                "kinds": fields.all("kinds"),
                "file": None if sent is None else describe(sent),
            }

    @routes.post("/small")
    async def small(request: Request) -> int:
        return len(await bodies.read(request, 1_000))

    return routes


@pytest.fixture
def bodies() -> Bodies:
    return Bodies(max_bytes=LARGEST, max_bodies=3)


@pytest.fixture
async def url(bodies: Bodies) -> AsyncIterator[str]:
    async with served(router(bodies)) as address:
        yield address
    assert bodies.count == 0, "every body was given back"
    await bodies.close()


def head(path: str, length: int | None, *more: str) -> bytes:
    """A request's head; without a length it is chunked."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", size, *more, "", ""]).encode()


def in_chunks(data: bytes, size: int = 100_000) -> bytes:
    """As `Transfer-Encoding: chunked` sends it."""
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def part(name: str, value: bytes, *more: str) -> bytes:
    """One part of a form, with its fence before it."""
    disposition = "; ".join([f'Content-Disposition: form-data; name="{name}"', *more])
    return b"--" + BOUNDARY + b"\r\n" + disposition.encode() + b"\r\n\r\n" + value + b"\r\n"


END = b"--" + BOUNDARY + b"--\r\n"
MULTIPART = f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}"


async def test_a_file_arrives_whole_in_memory_or_on_disk(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for size in (0, 1, MEMORY_BYTES, MEMORY_BYTES + 1, LARGEST):
        data = os.urandom(size)
        for chunked in (False, True):
            async with Wire.open(url) as wire:
                await wire.send(head("/file", None if chunked else size) + (in_chunks(data) if chunked else data))
                outcome = await wire.response()
            assert outcome.status == 200, outcome
            arrived = json.loads(outcome.body)
            assert arrived["sha"] == hashlib.sha256(data).hexdigest()
            assert arrived["size"] == arrived["read"] == size
            assert arrived["on_disk"] == (size > MEMORY_BYTES)
    assert not os.listdir(tmp_path)  # noqa: PTH208 - an ordinary folder


async def test_a_body_that_says_it_is_too_large_is_not_asked_for(url: str) -> None:
    async with Wire.open(url) as wire:
        await wire.send(head("/file", LARGEST + 1, "Expect: 100-continue"))
        outcome = await wire.response()
    assert outcome.status == 413
    assert outcome.error["code"] == "too_large"


async def test_a_body_is_asked_for_when_it_is_read(url: str) -> None:
    async with Wire.open(url) as wire:
        await wire.send(head("/file", 4, "Expect: 100-continue"))
        assert (await wire.response()).status == 100
        await wire.send(b"data")
        assert (await wire.response()).status == 200


async def test_a_body_that_becomes_too_large_is_refused(url: str) -> None:
    for path, size in (("/file", LARGEST), ("/small", 1_000)):
        async with Wire.open(url) as wire:
            with contextlib.suppress(OSError):
                await wire.send(head(path, None) + in_chunks(bytes(size + 1)))
            outcome = await wire.response()
        assert outcome.status == 413
        assert outcome.error["code"] == "too_large"


async def test_only_so_many_at_once(url: str, bodies: Bodies) -> None:
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire.open(url)) for _ in range(3)]
        for wire in wires:
            await wire.send(head("/file", 8) + b"half")
        await eventually(lambda: bodies.count == 3)
        refused = await get(f"{url}/file", method="POST", body=b"more")
        assert (refused.status, refused.json["error"]["code"]) == (503, "at_capacity")
        assert refused.headers["retry-after"] == "1"
        await wires[0].send(b"half")
        assert (await wires[0].response()).status == 200
        assert (await get(f"{url}/file", method="POST", body=b"more")).status == 200
        for wire in wires[1:]:
            await wire.send(b"half")
            assert (await wire.response()).status == 200


async def test_half_open_requests_give_way_the_slowest_first(
    url: str, bodies: Bodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GIVES_WAY_SECONDS", 0.2)
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire.open(url)) for _ in range(3)]
        for sent, wire in zip((100_000, 10, 100_000), wires, strict=True):
            await wire.send(head("/file", 200_000) + bytes(sent))
        await eventually(lambda: bodies.count == 3)
        await asyncio.sleep(0.3)
        assert (await get(f"{url}/file", method="POST", body=b"more")).status == 200
        outcome = await wires[1].response()
        assert (outcome.status, outcome.error["code"]) == (408, "body_timeout")
        assert bodies.count == 2


async def test_silence_and_dripping_end_a_body(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.3)
    began = asyncio.get_running_loop().time()
    async with Wire.open(url) as silent, Wire.open(url) as dripping:
        await silent.send(head("/file", 10) + b"half")
        await dripping.send(head("/file", 10_000))

        async def drip() -> None:
            with contextlib.suppress(OSError):
                while True:
                    await dripping.send(b"x")
                    await asyncio.sleep(0.02)

        drops = asyncio.create_task(drip())
        for wire in (silent, dripping):
            outcome = await wire.response()
            assert (outcome.status, outcome.error["code"]) == (408, "body_timeout")
        drops.cancel()
    assert asyncio.get_running_loop().time() - began < 2


async def test_a_slow_body_may_take_its_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.3)
    async with Wire.open(url) as wire:
        await wire.send(head("/file", 3_000))
        for _ in range(6):
            await wire.send(bytes(500))
            await asyncio.sleep(0.1)
        assert (await wire.response()).status == 200


async def test_a_client_that_goes_away_leaves_nothing(url: str, bodies: Bodies) -> None:
    for sent in (b"", bytes(2 * MEMORY_BYTES)):
        async with Wire.open(url) as wire:
            await wire.send(head("/file", LARGEST) + sent)
            await eventually(lambda: bodies.count == 1)
        await eventually(lambda: bodies.count == 0)


async def test_a_disk_that_is_full(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DISK_MARGIN", 2**60)
    answer = await get(f"{url}/file", method="POST", body=bytes(LARGEST))
    assert (answer.status, answer.json["error"]["code"]) == (503, "store_unavailable")
    assert (await get(f"{url}/file", method="POST", body=bytes(MEMORY_BYTES))).status == 200


async def test_a_form(url: str) -> None:
    data = os.urandom(2 * MEMORY_BYTES)
    form = (
        part("model", "größer".encode())
        + part("kinds[]", b"word")
        + part("file", data, 'filename="C:\\\\x\\..\\talk \\"1\\".wav"')
        + part("kinds", b"segment")
        + END
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
    answer = await get(f"{url}/form", headers, method="POST", body=form)
    assert answer.status == 200, answer
    assert answer.json["model"] == "größer"
    assert answer.json["kinds"] == ["word", "segment"]
    assert answer.json["file"]["sha"] == hashlib.sha256(data).hexdigest()
    assert answer.json["file"]["name"] == 'talk "1".wav'


async def test_a_form_without_files(url: str) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await get(f"{url}/form", headers, method="POST", body=b"model=a%20b&kinds[]=1&kinds[]=2&empty=")
    assert answer.json == {"model": "a b", "kinds": ["1", "2"], "file": None}
    many = "&".join(f"a{i}=1" for i in range(forms.PARTS + 1)).encode()
    for body in (many, b"model=\xff"):
        refused = await get(f"{url}/form", headers, method="POST", body=body)
        assert (refused.status, refused.json["error"]["code"]) == (400, "bad_request")


def file_part(name: str = "file", value: bytes = b"x") -> bytes:
    return part(name, value, 'filename="a.wav"')


REFUSED = [
    b"",
    b"no form at all",
    part("model", b"x"),
    file_part()[:-1],
    file_part() + file_part() + END,
    b"".join(file_part(f"file{i}") for i in range(forms.FILES + 1)) + END,
    b"".join(part(f"a{i}", b"1") for i in range(forms.PARTS + 1)) + END,
    part("model", b"x" * (forms.FIELD_BYTES + 1)) + END,
    b"".join(part(f"a{i}", b"x" * 60_000) for i in range(20)) + END,
    part("model", b"\xff") + END,
    b"--fence\r\nContent-Disposition: attachment\r\n\r\nx\r\n" + END,
    b"--fence\r\nContent-Type: text/plain\r\n\r\nx\r\n" + END,
    b"--fence\r\nX: " + b"y" * 10_000 + b"\r\n\r\nx\r\n" + END,
    b"--fence\r\n" + b"X: y\r\n" * 100 + b"\r\nx\r\n" + END,
]


async def test_forms_that_are_refused(url: str) -> None:
    for body in REFUSED:
        async with Wire.open(url) as wire:
            await wire.send(head("/form", len(body), MULTIPART))
            with contextlib.suppress(OSError):
                await wire.send(body)
            outcome = await wire.response()
        assert (outcome.status, outcome.error["code"]) == (400, "bad_request"), (body[:80], outcome)


async def test_bodies_that_are_no_forms_are_refused(url: str) -> None:
    multipart = "multipart/form-data"
    for kind in ("", "text/plain", multipart, f"{multipart}; boundary=", "multipart/mixed; boundary=a"):
        answer = await get(f"{url}/form", {"Content-Type": kind}, method="POST", body=b"x")
        assert (answer.status, answer.json["error"]["code"]) == (400, "bad_request")


async def test_a_file_in_a_form_that_is_too_large(url: str) -> None:
    body = file_part(value=bytes(LARGEST + 1)) + END
    async with Wire.open(url) as wire:
        with contextlib.suppress(OSError):
            await wire.send(head("/form", len(body), MULTIPART) + body)
        outcome = await wire.response()
    assert (outcome.status, outcome.error["code"]) == (413, "too_large")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
async def test_a_form_may_be_cut_anywhere(bodies: Bodies, size: int) -> None:
    data = b"\r\n--fenc\r\n--fencE\r\r\n\n--" * 3 + b"\r\n"
    body = part("model", b"") + file_part(value=data) + part("kinds", b"\r\n--fenc") + END + b"what follows"
    reader = FormReader(BOUNDARY, lambda name: Spooled(bodies, name), LARGEST)
    for at in range(0, len(body), size):
        await reader.take(body[at : at + size])
    form = await reader.finish()
    assert form.get("model") == ""
    assert form.get("kinds") == "\r\n--fenc"
    file = form.file("file")
    assert file is not None
    with file.file:
        assert file.file.read() == data


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("talk.wav", "talk.wav"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\secret.wav", "secret.wav"),
        ("a/b/", "audio"),
        ("", "audio"),
        ("a\x00b\nc\u202e.wav", "abc.wav"),
        ("x" * 500 + ".wav", "x" * 196 + ".wav"),
    ],
)
def test_names_of_files(given: str, shown: str) -> None:
    assert shown_name(given) == shown


async def test_a_body_that_is_dropped_while_it_is_written_is_closed_after_it(
    bodies: Bodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled request waits for the thread that writes: nobody closes its file meanwhile."""
    begun, go_on, order = asyncio.Event(), asyncio.Event(), []
    loop = asyncio.get_running_loop()
    append: Callable[..., None] = Spooled._append

    def slow(*args: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(LIMIT)
        append(*args)
        order.append("written")

    monkeypatch.setattr(Spooled, "_append", slow)

    async def receive() -> None:
        spooled = Spooled(bodies, "a")
        try:
            await spooled.write(bytes(2 * MEMORY_BYTES))
        finally:
            await spooled.close()
            order.append("closed")

    task = asyncio.create_task(receive())
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert order == ["written", "closed"]
    await bodies.close()


async def test_a_refusal_is_a_bridge_error(bodies: Bodies) -> None:
    with pytest.raises(BridgeError, match="Boundary"):
        await FormReader(b"x" * 1_000, lambda name: Spooled(bodies, name), LARGEST).take(b"--x")


async def test_a_body_that_is_open_when_the_server_ends_is_closed_all_the_same(bodies: Bodies) -> None:
    large, small = Spooled(bodies, "large"), Spooled(bodies, "small")
    await large.write(bytes(2 * MEMORY_BYTES))
    await small.write(b"x")
    await bodies.close()
    with pytest.raises(BridgeError, match="stopping"):
        await large.write(bytes(MEMORY_BYTES))
    file = large.file
    for spooled in (large, small):
        await spooled.close()
    assert file.closed
    assert small.content == b""


PIECES = st.sampled_from(
    [
        *(
            b"--fence",
            b"--fences",
            b"\r\n",
            b"--",
            b'name="',
            b'"',
            b"; filename=",
            b"\\",
            b"%22",
            b"a",
            b":",
            b"\xc3\xa4",
        ),
        *(
            b"\r\nContent-Disposition: form-data; name=",
            b"\r\ncontent-type: TEXT/plain",
            b"X-Other: 1\r\n",
            b"audio/wav",
        ),
    ]
)
PARTS_OF_FORMS = st.builds(
    lambda name, file, kind, value: part(name, value, *file, *kind),
    st.sampled_from(["a", "file", "ä", "a[]", "a%22b", ""]),
    st.sampled_from([(), ('filename="a.wav"',), ('filename=""',), ('filename="C:\\\\a.wav"',), ("filename=a",)]),
    st.sampled_from([(), ("x=1",)]),
    st.lists(PIECES, max_size=4).map(b"".join),
)
FORMS = st.builds(
    lambda parts, more, end: b"".join(parts) + more + end,
    st.lists(PARTS_OF_FORMS, max_size=4),
    st.lists(PIECES, max_size=3).map(b"".join),
    st.sampled_from([END, END[:-2], b"", END + b"and more"]),
)


async def read_form(bodies: Bodies, pieces: list[bytes]) -> Any:
    """What is in a form that comes so; or how it is refused."""
    opened: list[Spooled] = []
    reader = FormReader(BOUNDARY, lambda name: opened.append(Spooled(bodies, name)) or opened[-1], LARGEST)  # type: ignore[func-returns-value]
    try:
        for piece in pieces:
            await reader.take(piece)
        form = await reader.finish()
    except BridgeError as exc:
        return exc.code
    finally:
        files = [(file.name, file.content) for file in opened]
        for file in opened:
            await file.close()
    return form._fields, sorted(form._files), files


@given(FORMS)
def test_a_form_that_is_all_here_is_read_as_the_parser_reads_it(form: bytes) -> None:
    async def both() -> None:
        bodies = Bodies(max_bytes=LARGEST, max_bodies=3)
        whole = await read_form(bodies, [form])
        # The first piece alone is no whole form, so that the parser has all of it.
        assert whole == await read_form(bodies, [form[:1], form[1:]])
        await bodies.close()

    asyncio.run(both())


def test_what_clients_write_is_usual() -> None:
    fields = part("model", b"whisper-1") + part("empty", b"")
    file = part("file", b"\r\n--fenc", 'filename="a b.wav"\r\nContent-Type: audio/wav')
    parts = forms.usual_parts(fields + file + END, BOUNDARY)
    assert parts is not None
    assert [head.groups() for head, _ in parts] == [
        (b"model", None, None),
        (b"empty", None, None),
        (b"file", b"a b.wav", b"audio/wav"),
    ]
    assert forms.usual_parts(fields, BOUNDARY) is None, "its end is not here"


async def test_a_body_that_drips_takes_no_more_memory_than_it_has_bytes(bodies: Bodies) -> None:
    spooled = Spooled(bodies, "drops")
    tracemalloc.start()
    try:
        for number in range(100_000):
            await spooled.write(bytes([number & 255]))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 3 * spooled.size
    await spooled.finish()
    assert spooled.content == spooled.file.read() == bytes(number & 255 for number in range(100_000))
    await spooled.close()
    await bodies.close()
