"""What a store promises, on each kind: a folder of real files, and an address of fsspec's (in memory)."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.errors import BridgeError
from bridge.uploads import folder
from bridge.uploads.blobs import BLOCK_BYTES, BlobExistsError, BlobStore, NoBlobError
from bridge.uploads.remote import WHOLE_BYTES
from bridge.uploads.urls import MissingPackageError, open_blobs
from tests.wire import LIMIT

SIZES = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 7]


@pytest.fixture(params=["folder", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlobStore]:
    where = str(tmp_path / "blobs") if request.param == "folder" else f"memory://{secrets.token_hex(8)}/store"
    store = open_blobs(where)
    await store.open()
    yield store
    await store.close()


class Endless:
    """A file that is read until somebody is told to stop."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.reads = 0
        self.busy = False

    def read(self, size: int, /) -> bytes:
        self.busy = True
        self.begun.set()
        self.reads += 1
        time.sleep(0.05)
        self.busy = False
        return b"x" * 1_024


@pytest.mark.parametrize("size", SIZES)
async def test_what_is_put_is_there(store: BlobStore, size: int) -> None:
    data = os.urandom(size)
    blob = await store.put("files/a", io.BytesIO(data))
    assert (blob.name, blob.size, blob.sha256) == ("files/a", size, hashlib.sha256(data).hexdigest())
    found = bytearray()
    await store.copy_to("files/a", found.extend)
    assert found == data
    async with store.fetch("files/a") as path:
        assert path.read_bytes() == data
    assert await store.read("files/a", 5) == data[:5]
    [entry] = await store.entries("files")
    assert (entry.name, entry.size) == ("files/a", size)
    assert entry.modified is not None
    assert abs(entry.modified - time.time()) < 60


async def test_a_large_blob_goes_in_parts(store: BlobStore) -> None:
    data = os.urandom(WHOLE_BYTES + 3)
    blob = await store.put("files/large", io.BytesIO(data), new=True)
    assert blob.sha256 == hashlib.sha256(data).hexdigest()
    assert await store.same("files/large", io.BytesIO(data))
    with pytest.raises(BlobExistsError):
        await store.put("files/large", io.BytesIO(b"other"), new=True)


async def test_a_new_one_replaces_unless_it_has_to_be_new(store: BlobStore) -> None:
    await store.put("files/a", io.BytesIO(b"one"), new=True)
    with pytest.raises(BlobExistsError):
        await store.put("files/a", io.BytesIO(b"two"), new=True)
    assert await store.read("files/a") == b"one"
    await store.put("files/a", io.BytesIO(b"three"))
    assert await store.read("files/a") == b"three"


async def test_of_many_at_once_one_is_new(store: BlobStore) -> None:
    """`memory://` cannot tell, as no store without conditional writes can; what it holds is one of them, whole."""
    results = await asyncio.gather(
        *(store.put("files/a", io.BytesIO(bytes([n]) * 1_000), new=True) for n in range(20)), return_exceptions=True
    )
    if isinstance(store, folder.FolderStore):
        assert sum(not isinstance(result, BlobExistsError) for result in results) == 1
    data = await store.read("files/a")
    assert data == data[:1] * 1_000


async def test_whether_a_file_is_the_same(store: BlobStore) -> None:
    data = os.urandom(BLOCK_BYTES + 10)
    await store.put("files/a", io.BytesIO(data))
    assert await store.same("files/a", io.BytesIO(data))
    for other in (data[:-1], data + b"x", b"", bytes([data[0] ^ 1]) + data[1:], data[:-1] + bytes([data[-1] ^ 1])):
        assert not await store.same("files/a", io.BytesIO(other))


async def test_what_is_not_there(store: BlobStore) -> None:
    with pytest.raises(NoBlobError):
        await store.read("files/none")
    with pytest.raises(NoBlobError):
        await store.copy_to("files/none", bytearray().extend)
    with pytest.raises(NoBlobError):
        async with store.fetch("files/none"):
            pytest.fail("there is none")
    with pytest.raises(NoBlobError):
        await store.same("files/none", io.BytesIO())
    assert await store.entries("files") == []
    assert await store.folders("files") == []
    await store.delete("files/none")
    await store.delete_all("files")


async def test_deleting(store: BlobStore) -> None:
    for name in ("up/a/1", "up/a/2", "up/a/deep/3", "up/b/1"):
        await store.put(name, io.BytesIO(b"x"))
    assert await store.folders("up") == ["a", "b"]
    assert [entry.name for entry in await store.entries("up")] == ["up/a/1", "up/a/2", "up/a/deep/3", "up/b/1"]
    await store.delete("up/a/1")
    assert [entry.name for entry in await store.entries("up/a")] == ["up/a/2", "up/a/deep/3"]
    await store.delete_all("up/a")
    assert await store.folders("up") == ["b"]
    await store.delete("up/b/1")
    assert await store.folders("up") == []
    await store.put("up/b/1", io.BytesIO(b"again"))
    assert await store.read("up/b/1") == b"again"


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../a", "a/../b", "a//b", "a/", "A", "a b", ".temp/a", "a\0", "x" * 201]
)
async def test_names_that_lead_elsewhere(store: BlobStore, name: str) -> None:
    for operation in (store.read, store.delete, store.delete_all, store.entries):
        with pytest.raises(ValueError, match="no blob's name"):
            await operation(name)
    with pytest.raises(ValueError, match="no blob's name"):
        await store.put(name, io.BytesIO(b"x"))


async def test_who_is_cancelled_leaves_nothing_and_nobody_reads_on(store: BlobStore) -> None:
    if not isinstance(store, folder.FolderStore):
        pytest.skip("a store in memory takes in all before it writes")
    file = Endless()
    putting = asyncio.create_task(store.put("files/a", file))
    await asyncio.to_thread(file.begun.wait, LIMIT)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert not file.busy, "its caller may close it now"
    reads = file.reads
    await asyncio.sleep(0.2)
    assert file.reads == reads
    assert await store.entries("files") == []
    assert await store.sweep(0) == 0, "its temporary file is gone"


async def test_a_file_that_fails_leaves_nothing(store: BlobStore) -> None:
    class Broken(Endless):
        def read(self, size: int, /) -> bytes:
            if self.reads == WHOLE_BYTES // 65_536 + 2:
                raise ZeroDivisionError
            self.reads += 1
            return bytes(65_536)

    with pytest.raises((ZeroDivisionError, BridgeError)):
        await store.put("files/a", Broken(), new=True)
    if isinstance(store, folder.FolderStore):  # in memory, an object is seen from its first byte
        assert await store.entries("files") == []


async def test_a_closed_store_refuses(store: BlobStore) -> None:
    await store.close()
    with pytest.raises(BridgeError) as refused:
        await store.read("files/a")
    assert refused.value.code == "shutting_down"


async def test_a_full_disk_is_not_filled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_blobs(str(tmp_path / "blobs"))
    await store.open()
    await store.reserve(1)
    monkeypatch.setattr(folder, "MARGIN_BYTES", 2**62)
    for refused in (store.reserve(1), store.put("files/a", io.BytesIO(b"x"))):
        with pytest.raises(BridgeError) as full:
            await refused
        assert full.value.code == "store_unavailable"
        assert str(tmp_path) not in str(full.value)
    await store.close()


async def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = open_blobs(str(tmp_path / "file" / "blobs"))
    with pytest.raises(BridgeError) as refused:
        await store.open()
    assert refused.value.code == "store_unavailable"
    await store.close()


async def test_files_are_private_and_leftovers_are_swept(tmp_path: Path) -> None:
    root = tmp_path / "blobs"
    store = open_blobs(root.as_uri())
    await store.open()
    await store.put("files/a", io.BytesIO(b"x"))
    for path in (root, root / ".temp", root / "files", root / "files" / "a"):
        assert path.stat().st_mode & 0o077 == 0, path
    (root / ".temp" / "left").write_bytes(b"half")
    (root / ".temp" / "dir").mkdir()
    (root / ".temp" / "dir" / "x").touch()
    assert await store.sweep(3_600) == 0
    assert await store.sweep(0) == 2
    assert list((root / ".temp").iterdir()) == []
    assert await store.read("files/a") == b"x"
    await store.close()


def test_addresses(tmp_path: Path) -> None:
    assert isinstance(open_blobs(None, {"XDG_STATE_HOME": str(tmp_path)}), folder.FolderStore)
    assert isinstance(open_blobs("relative/folder"), folder.FolderStore)
    with pytest.raises(ValueError, match="an address of fsspec's") as refused:
        open_blobs("nonsense://user:secret@host")
    assert "secret" not in str(refused.value)
    with pytest.raises(MissingPackageError, match="pip install"):
        open_blobs("s3://bucket/prefix")
