"""What is deleted, when, and what is not."""

from __future__ import annotations

import asyncio
import io
import secrets
import time

import pytest

from bridge.errors import BridgeError
from bridge.uploads.blobs import BlobStore
from bridge.uploads.sweeper import LEFT_UNDONE_SECONDS, LEFTOVER_SECONDS
from tests.uploads.fakes import KEEP, Intake, at_desk
from tests.uploads.test_appends import Body, body
from tests.uploads.test_chunks import ME, refuses, send
from tests.wire import LIMIT

LATER = KEEP + 60
"""Long enough after now for everything to be over."""


async def names(blobs: BlobStore) -> list[str]:
    return [entry.name for folder in ("uploads", "done", "files") for entry in await blobs.entries(folder)]


async def test_what_nobody_goes_on_with(blobs: BlobStore) -> None:
    intake = Intake()
    async with at_desk(blobs, intake) as desk:
        await send(desk, 0)
        begun = await desk.growing.create(ME, 100, {})
        await desk.growing.append(ME, begun.name, 0, body(b"some"))
        before = await names(blobs)
        await desk.sweeper.sweep(time.time() + KEEP - 60)
        assert await names(blobs) == before
        await desk.sweeper.sweep(time.time() + LATER)
        assert await names(blobs) == []
        with refuses("unknown_upload"):
            await desk.chunked.status(ME, "up")
        with refuses("unknown_upload"):
            await desk.growing.status(ME, begun.name, exact=True)


async def test_what_is_in_use_stays(blobs: BlobStore) -> None:
    async with at_desk(blobs, Intake()) as desk:
        begun = await desk.growing.create(ME, 100, {})
        coming = Body(b"x", ends=False)
        appending = asyncio.create_task(desk.growing.append(ME, begun.name, 0, aiter(coming)))
        await asyncio.wait_for(coming.read.wait(), LIMIT)
        await desk.sweeper.sweep(time.time() + LATER)
        assert (await desk.growing.status(ME, begun.name, exact=True)).size == 1
        with refuses("upload_conflict"):
            await appending


async def test_endings_are_forgotten_and_files_stay_while_a_job_needs_them(blobs: BlobStore) -> None:
    intake = Intake()
    async with at_desk(blobs, intake) as desk:
        done = await send(desk, 0, b"all", last=0)
        left = await send(desk, 0, b"all", last=0, name="no-job", job="false")
        assert (done.job is None, left.job is None) == (False, True)
        assert len(await blobs.entries("files")) == 2
        await desk.sweeper.sweep(time.time() + KEEP - 60)
        assert len(await blobs.entries("files")) == 2
        await desk.sweeper.sweep(time.time() + LATER)
        assert [entry.name for entry in await blobs.entries("files")] == [f"files/{done.job}"]
        assert await blobs.entries("done") == []
        with refuses("unknown_upload"):
            await desk.chunked.status(ME, "up")
        intake.needed.clear()
        await desk.sweeper.sweep(time.time() + LATER)
        assert await names(blobs) == []


async def test_leftovers(blobs: BlobStore) -> None:
    """A blob without a job, pieces without an upload."""
    async with at_desk(blobs, Intake()) as desk:
        await blobs.put(f"files/{secrets.token_hex(16)}", io.BytesIO(b"x"))
        await blobs.put("uploads/key/nonce/p/0000000000000000", io.BytesIO(b"x"))
        await desk.sweeper.sweep(time.time())
        assert len(await names(blobs)) == 2
        await desk.sweeper.sweep(time.time() + LEFTOVER_SECONDS + LATER)
        assert await names(blobs) == []


async def test_what_was_left_undone_is_finished(blobs: BlobStore) -> None:
    intake = Intake()
    async with at_desk(blobs, intake) as desk:
        intake.fault = BridgeError("at_capacity")
        begun = await desk.growing.create(ME, 3, {})
        await desk.growing.append(ME, begun.name, 0, body(b"all"))
        with refuses("at_capacity"):
            await send(desk, 1, b"x", last=1, first_seq="1")
        await send(desk, 0, b"x", last=1, name="open")
        intake.fault = None
    async with at_desk(blobs, intake) as desk:
        await desk.sweeper.sweep(time.time())
        assert intake.jobs == {}
        await desk.sweeper.sweep(time.time() + LEFT_UNDONE_SECONDS + 1)
        assert len(intake.jobs) == 2
        assert (await desk.chunked.status(ME, "open")).state == "open"


async def test_it_sweeps_by_itself_and_goes_on_after_a_fault(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_desk(blobs, Intake()) as desk:
        swept = asyncio.Event()
        faults: list[Exception] = [BridgeError("store_unavailable"), RuntimeError("odd")]

        async def sweep(now: float) -> None:
            if faults:
                raise faults.pop()
            swept.set()

        monkeypatch.setattr(desk.sweeper, "sweep", sweep)
        monkeypatch.setattr("bridge.uploads.sweeper.LEAST_SECONDS", 0.01)
        monkeypatch.setattr("bridge.uploads.sweeper.MOST_SECONDS", 0.01)
        await desk.open()
        await asyncio.wait_for(swept.wait(), LIMIT)
    assert "uploads cannot be swept" in caplog.text
