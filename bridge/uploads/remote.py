"""A store behind an address that fsspec knows: S3, Google's, Azure's, whatever keeps objects for many machines.

An object must be there whole or not at all, as object stores have it. Where the store can refuse to replace an object
(S3, Google, Azure, memory), of two that write a new name at once one is refused; elsewhere the later one may win.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import fsspec  # type: ignore[import-untyped]  # it has neither hints nor stubs

from bridge.errors import BridgeError
from bridge.uploads.blobs import BLOCK_BYTES, BlobExistsError, BlobStore, Entry, NoBlobError, Readable, check_name
from bridge.uploads.copies import make_copy, sweep_copies

WHOLE_BYTES: Final = 16 * 1_048_576
"""What is no larger is written in one request; the rest in parts of this size, each held in memory."""
_TIMES: Final = ("LastModified", "last_modified", "mtime", "updated", "created")
"""What the kinds of stores call the time of an object."""

log = logging.getLogger(__name__)


class RemoteStore(BlobStore):
    """Objects below an address, as `s3://BUCKET/PREFIX`. Keys and passwords are read where fsspec reads them.

    Raises:
        ValueError: fsspec does not know this kind of address.
        ImportError: it does, and a package is missing; the text names it.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        try:
            # A listing that is remembered would not show what other servers have written.
            self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ValueError:
            raise ValueError(
                "the value given is not allowed: it should be a folder, or an address of fsspec's"
            ) from None
        self._root: str = root.rstrip("/")

    @contextlib.asynccontextmanager
    async def fetch(self, name: str) -> AsyncIterator[Path]:
        """A copy in a temporary file."""
        copy = await self._run(lambda _: make_copy())
        try:
            await self.copy_to(name, copy.write)
            await self._run(lambda _: copy.flush())
            yield Path(copy.name)
        finally:
            await asyncio.to_thread(copy.close)  # freeing gigabytes takes its time

    def _open(self) -> None:
        self._fs.exists(f"{self._root}/probe")
        sweep_copies()  # of the life before this one

    def _put(self, name: str, file: Readable, *, new: bool) -> None:
        path = self._path(name)
        if new and self._fs.exists(path):
            raise BlobExistsError(name)
        first = bytearray()
        while len(first) <= WHOLE_BYTES and (block := file.read(BLOCK_BYTES)):
            first += block
        try:
            if len(first) <= WHOLE_BYTES:
                self._fs.pipe_file(path, bytes(first), mode="create" if new else "overwrite")
            else:
                self._put_parts(path, first, file, new=new)
        except FileExistsError:
            raise BlobExistsError(name) from None

    def _put_parts(self, path: str, first: bytearray, file: Readable, *, new: bool) -> None:
        sink = self._fs.open(path, "xb" if new else "wb", block_size=WHOLE_BYTES)
        try:
            sink.write(first)
            while block := file.read(BLOCK_BYTES):
                sink.write(block)
        except BaseException:
            sink.discard()  # closing it would make an object of what there is
            sink.closed = True
            raise
        sink.close()

    def _read(self, name: str, start: int, size: int) -> bytes:
        try:
            return bytes(self._fs.cat_file(self._path(name), start=start, end=start + size))
        except FileNotFoundError:
            raise NoBlobError(name) from None

    def _entries(self, folder: str) -> list[Entry]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(self._path(folder), detail=True)
        except FileNotFoundError:
            return []
        skipped = len(self._fs._strip_protocol(self._root)) + 1  # noqa: SLF001 - how fsspec writes its names
        return [Entry(path[skipped:], info["size"], _modified(info)) for path, info in found.items()]

    def _folders(self, folder: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return []
        return [info["name"].rstrip("/").rpartition("/")[2] for info in found if info["type"] == "directory"]

    def _delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def _delete_all(self, folder: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(folder), recursive=True)

    def _reserve(self, size: int) -> None:
        """Object stores have no end."""

    def _sweep(self, age: float) -> int:  # noqa: ARG002 - whether a copy is in use is known
        return sweep_copies()  # what is broken off never becomes an object

    def _translated(self, exc: Exception) -> BridgeError | None:
        # Every kind of store has its own exceptions, and some of them are no OSError.
        log.warning("the store of uploads failed (%s: %s)", type(exc).__name__, exc)
        return BridgeError("store_unavailable")

    def _path(self, name: str) -> str:
        return f"{self._root}/{check_name(name)}"


def _modified(info: Mapping[str, Any]) -> float | None:
    for key in _TIMES:
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None
