"""An upload desk on each kind of store."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.uploads.blobs import BlobStore
from bridge.uploads.desk import UploadDesk
from bridge.uploads.urls import open_blobs
from tests.uploads.fakes import Intake, at_desk


@pytest.fixture(params=["folder", "memory"])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlobStore]:
    where = str(tmp_path / "blobs") if request.param == "folder" else f"memory://{secrets.token_hex(8)}"
    store = open_blobs(where)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def intake() -> Intake:
    return Intake()


@pytest.fixture
async def desk(blobs: BlobStore, intake: Intake) -> AsyncIterator[UploadDesk]:
    async with at_desk(blobs, intake) as desk:
        yield desk
