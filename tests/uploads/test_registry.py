"""What a server knows of an upload while the store is being asked, and how much it keeps in mind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.uploads import registry
from bridge.uploads.blobs import BlobStore
from bridge.uploads.models import Meta
from bridge.uploads.registry import Registry
from bridge.uploads.shelf import Pieces, Shelf
from bridge.uploads.urls import open_blobs
from tests.uploads.fakes import Intake, at_desk
from tests.uploads.test_chunks import ME, send
from tests.wire import LIMIT


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[BlobStore]:
    store = open_blobs(str(tmp_path))
    await store.open()
    yield store
    await store.close()


class Slow:
    """The listing of an upload's pieces, whose answer takes its time once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.listed = asyncio.Event()
        self.answer = asyncio.Event()
        original = Shelf.pieces

        async def pieces(shelf: Shelf, key: str, meta: Meta) -> Pieces | None:
            found = await original(shelf, key, meta)
            if not self.listed.is_set():
                self.listed.set()
                await asyncio.wait_for(self.answer.wait(), LIMIT)
            return found

        monkeypatch.setattr(Shelf, "pieces", pieces)


async def test_a_chunk_that_comes_while_the_others_are_listed(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_desk(blobs, Intake()) as desk:
        await send(desk, 0)
        slow = Slow(monkeypatch)
        asking = asyncio.create_task(desk.chunked.status(ME, "up"))
        await asyncio.wait_for(slow.listed.wait(), LIMIT)
        await send(desk, 1)
        slow.answer.set()
        assert (await asking).received == 2
        assert (await send(desk, 2)).received == 3


async def test_an_upload_that_ends_while_its_chunks_are_listed(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_desk(blobs, Intake()) as desk:
        await send(desk, 0, b"x", last=1)
        slow = Slow(monkeypatch)
        asking = asyncio.create_task(desk.chunked.status(ME, "up"))
        await asyncio.wait_for(slow.listed.wait(), LIMIT)
        done = await send(desk, 1, b"y", last=1)
        slow.answer.set()
        assert (await asking).job == done.job is not None


async def test_one_that_another_server_ends_meanwhile(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    intake = Intake()
    async with at_desk(blobs, intake) as one, at_desk(blobs, intake) as two:
        await send(one, 0, b"x", last=1)
        await send(two, 0, b"x", last=1)
        original = Shelf.pieces

        async def ended(shelf: Shelf, key: str, meta: Meta) -> Pieces | None:
            monkeypatch.setattr(Shelf, "pieces", original)
            await send(two, 1, b"y", last=1)
            return await original(shelf, key, meta)

        monkeypatch.setattr(Shelf, "pieces", ended)
        assert (await one.chunked.status(ME, "up")).state == "complete"


async def test_only_so_many_are_kept_in_mind(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REMEMBERED", 3)
    known = Registry(Shelf(blobs), max_uploads=100, owner_uploads=100)
    async with known.use("chunks", ME, "in-use") as upload:
        for number in range(10):
            async with known.use("chunks", ME, f"up-{number}"):
                pass
        assert len(known._known) == 3
        async with known.use("chunks", ME, "in-use") as again:
            assert again is upload
