"""Uploads that grow: requests that break off, come back too early, or come to another server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from bridge.errors import BridgeError
from bridge.uploads.appends import PIECE_BYTES
from bridge.uploads.blobs import BlobStore, Readable
from bridge.uploads.desk import UploadDesk
from bridge.uploads.models import Status
from tests.uploads.fakes import Intake, at_desk, sha256, stored
from tests.uploads.test_chunks import refuses
from tests.wire import LIMIT

ME = "key-me"


class Body:
    """A request's body: what it brings, and how it ends. Without an end it goes on for ever."""

    def __init__(self, data: bytes, size: int = 65_536, end: BaseException | None = None, *, ends: bool = True) -> None:
        self._chunks = [data[at : at + size] for at in range(0, len(data), size)]
        self._end = end
        self._ends = ends
        self.read = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk
        self.read.set()
        if not self._ends:
            await asyncio.Event().wait()
        if self._end is not None:
            raise self._end


def body(data: bytes) -> AsyncIterator[bytes]:
    return aiter(Body(data))


async def assert_arrived(status: Status, blobs: BlobStore, intake: Intake, file: bytes) -> None:
    assert (status.state, status.size, status.sha256) == ("complete", len(file), sha256(file))
    assert status.job is not None
    assert await stored(blobs, intake.jobs[status.job].blob) == file
    assert await blobs.folders("uploads") == []


async def test_in_one_request(desk: UploadDesk, blobs: BlobStore, intake: Intake) -> None:
    data = os.urandom(3 * PIECE_BYTES + 17)
    begun = await desk.growing.create(ME, len(data), {"filename": "talk.flac"})
    assert (begun.state, begun.size, begun.length) == ("open", 0, len(data))
    status = await desk.growing.append(ME, begun.name, 0, body(data))
    await assert_arrived(status, blobs, intake, data)
    assert intake.jobs[status.job or ""].name == "talk.flac"


async def test_in_many_small_ones(desk: UploadDesk, blobs: BlobStore, intake: Intake) -> None:
    data = os.urandom(1_000)
    begun = await desk.growing.create(ME, None, {})
    assert begun.length is None
    for at in range(0, 1_000, 100):
        length = 1_000 if at == 500 else None
        status = await desk.growing.append(ME, begun.name, at, body(data[at : at + 100]), length=length)
        assert status.size == at + 100
        assert status.length == (1_000 if at >= 500 else None)
    await assert_arrived(status, blobs, intake, data)
    with refuses("upload_conflict"):
        await desk.growing.append(ME, begun.name, 1_000, body(b"x"))
    assert (await desk.growing.status(ME, begun.name, exact=True)).size == 1_000


@pytest.mark.parametrize("end", [BridgeError("body_timeout"), asyncio.CancelledError(), RuntimeError("odd")])
async def test_what_came_before_a_break_is_kept(
    desk: UploadDesk, blobs: BlobStore, intake: Intake, end: BaseException
) -> None:
    data = os.urandom(PIECE_BYTES + 1_000)
    begun = await desk.growing.create(ME, len(data), {})
    with pytest.raises(type(end)):
        await desk.growing.append(ME, begun.name, 0, aiter(Body(data[:-1], end=end)))
    assert (await desk.growing.status(ME, begun.name, exact=True)).size == len(data) - 1
    status = await desk.growing.append(ME, begun.name, len(data) - 1, body(data[-1:]))
    await assert_arrived(status, blobs, intake, data)


async def test_a_request_that_hangs_gives_way(desk: UploadDesk, blobs: BlobStore, intake: Intake) -> None:
    """Its client has come back over another connection; the server has not noticed that the first one is dead."""
    data = os.urandom(2_000)
    begun = await desk.growing.create(ME, len(data), {})
    hanging = Body(data[:700], ends=False)
    first = asyncio.create_task(desk.growing.append(ME, begun.name, 0, aiter(hanging)))
    async with asyncio.timeout(LIMIT):
        await hanging.read.wait()
        status = await desk.growing.status(ME, begun.name, exact=True)
        assert status.size == 700
        with refuses("upload_conflict"):
            await first
        again = Body(data[700:900], ends=False)
        second = asyncio.create_task(desk.growing.append(ME, begun.name, 700, aiter(again)))
        await again.read.wait()
        with refuses("upload_conflict"):  # it does not know what the second one brought
            await desk.growing.append(ME, begun.name, 700, body(data[700:]))
        with refuses("upload_conflict"):
            await second
        status = await desk.growing.append(ME, begun.name, 900, body(data[900:]))
    await assert_arrived(status, blobs, intake, data)


async def test_a_store_that_fails_leaves_no_gap(
    desk: UploadDesk, blobs: BlobStore, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows a piece that could not be kept is not kept in its place."""
    data = os.urandom(5 * PIECE_BYTES + 5)
    begun = await desk.growing.create(ME, len(data), {})
    original = blobs._put
    writes = 0

    def put(name: str, file: Readable, *, new: bool) -> None:
        nonlocal writes
        writes += 1
        if writes == 2:
            raise OSError(5, "Input/output error")
        original(name, file, new=new)

    monkeypatch.setattr(blobs, "_put", put)
    with refuses("store_unavailable"):
        await desk.growing.append(ME, begun.name, 0, aiter(Body(data, size=3 * PIECE_BYTES)))
    at = (await desk.growing.status(ME, begun.name, exact=True)).size
    assert at == PIECE_BYTES
    status = await desk.growing.append(ME, begun.name, at, body(data[at:]))
    await assert_arrived(status, blobs, intake, data)


async def test_offsets_that_are_wrong(desk: UploadDesk) -> None:
    begun = await desk.growing.create(ME, 100, {})
    await desk.growing.append(ME, begun.name, 0, body(b"x" * 10))
    for offset in (0, 9, 11, 100):
        with refuses("upload_conflict"):
            await desk.growing.append(ME, begun.name, offset, body(b"y"))
        with refuses("upload_conflict"):
            await desk.growing.room(ME, begun.name, offset)
    assert await desk.growing.room(ME, begun.name, 10) == 90


async def test_lengths_that_are_wrong(blobs: BlobStore, intake: Intake) -> None:
    async with at_desk(blobs, intake, max_bytes=100) as desk:
        with refuses("too_large"):
            await desk.growing.create(ME, 101, {})
        begun = await desk.growing.create(ME, None, {})
        with refuses("too_large"):
            await desk.growing.append(ME, begun.name, 0, body(b"x"), length=101)
        await desk.growing.append(ME, begun.name, 0, body(b"x" * 10))
        with refuses("upload_conflict"):
            await desk.growing.append(ME, begun.name, 10, body(b"x"), length=9)
        await desk.growing.append(ME, begun.name, 10, body(b"x"), length=20)
        with refuses("upload_conflict"):
            await desk.growing.append(ME, begun.name, 11, body(b"x"), length=21)
        with refuses("too_large"):
            await desk.growing.append(ME, begun.name, 11, body(b"x" * 10))
        assert (await desk.growing.status(ME, begun.name, exact=True)).size == 11
        assert await desk.growing.room(ME, begun.name, 11) == 9


async def test_two_servers(blobs: BlobStore, intake: Intake) -> None:
    data = os.urandom(3_000)
    async with at_desk(blobs, intake) as one, at_desk(blobs, intake) as two:
        begun = await one.growing.create(ME, len(data), {})
        await one.growing.append(ME, begun.name, 0, body(data[:1_000]))
        await two.growing.append(ME, begun.name, 1_000, body(data[1_000:2_000]))
        with refuses("upload_conflict"):
            await one.growing.append(ME, begun.name, 1_000, body(b"other"))
        await two.growing.append(ME, begun.name, 2_000, body(b""))
        assert await one.growing.room(ME, begun.name, 2_000) == 1_000
        assert (await one.growing.status(ME, begun.name, exact=True)).size == 2_000
        done = await one.growing.append(ME, begun.name, 2_000, body(data[2_000:]))
        await assert_arrived(done, blobs, intake, data)
        assert (await two.growing.status(ME, begun.name, exact=True)).job == done.job
        with refuses("unknown_upload"):
            await two.growing.status("key-other", begun.name, exact=True)
        await two.drop("tus", ME, begun.name)
        with refuses("unknown_upload"):
            await one.growing.status(ME, begun.name, exact=True)


async def test_no_audio(desk: UploadDesk, blobs: BlobStore) -> None:
    begun = await desk.growing.create(ME, 6, {})
    with refuses("undecodable_audio"):
        await desk.growing.append(ME, begun.name, 0, body(b"BAD!!!"))
    status = await desk.growing.status(ME, begun.name, exact=True)
    assert (status.state, status.code) == ("refused", "undecodable_audio")
    assert await blobs.entries("files") == []


async def test_what_cannot_be_finished_now_is_finished_when_somebody_asks(
    desk: UploadDesk, blobs: BlobStore, intake: Intake
) -> None:
    intake.fault = BridgeError("at_capacity")
    begun = await desk.growing.create(ME, 3, {})
    status = await desk.growing.append(ME, begun.name, 0, body(b"all"))
    assert (status.state, status.size) == ("open", 3)
    intake.fault = None
    await assert_arrived(await desk.growing.status(ME, begun.name, exact=False), blobs, intake, b"all")


async def test_giving_up_while_it_comes(desk: UploadDesk, blobs: BlobStore) -> None:
    begun = await desk.growing.create(ME, 100, {})
    hanging = Body(b"x" * 10, ends=False)
    appending = asyncio.create_task(desk.growing.append(ME, begun.name, 0, aiter(hanging)))
    await hanging.read.wait()
    await desk.drop("tus", ME, begun.name)
    with pytest.raises(BridgeError):
        await appending
    assert await blobs.entries("uploads") == []
    with refuses("unknown_upload"):
        await desk.growing.append(ME, begun.name, 10, body(b"x"))
