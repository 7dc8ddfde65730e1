"""A store that is a folder of this machine, or of a file server that several machines have mounted."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from bridge.errors import BridgeError
from bridge.uploads.blobs import (
    BLOCK_BYTES,
    MARGIN_BYTES,
    BlobExistsError,
    BlobStore,
    Entry,
    NoBlobError,
    Readable,
    check_name,
)

FULL_SECONDS: Final = 60.0
"""After which somebody who found the disk full may try again."""
_TEMP: Final = ".temp"
"""The folder of what is not whole yet. It is on the same file system, so that a rename can move it to its place."""


class FolderStore(BlobStore):
    """Each blob is a file. It is written elsewhere, forced to the disk, and then put to its place in one step."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root
        self._temp = root / _TEMP

    @contextlib.asynccontextmanager
    async def fetch(self, name: str) -> AsyncIterator[Path]:
        """The file itself; while it is open, deleting it takes only its name."""
        path = self._path(check_name(name))
        await self._run(lambda _: self._read(name, 0, 0))
        yield path

    def _open(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)  # recordings are nobody else's business
        self._temp.mkdir(mode=0o700, exist_ok=True)
        probe = self._temp / secrets.token_hex(16)
        probe.touch(mode=0o600)
        probe.unlink()

    def _put(self, name: str, file: Readable, *, new: bool) -> None:
        path = self._path(name)
        if new and path.exists():
            raise BlobExistsError(name)
        self._reserve(0)
        temp = self._temp / secrets.token_hex(16)
        try:
            with os.fdopen(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as sink:
                while block := file.read(BLOCK_BYTES):
                    sink.write(block)
                sink.flush()
                os.fsync(sink.fileno())
            _in_place(temp, path, new=new)
        finally:
            temp.unlink(missing_ok=True)
        _sync(path.parent)

    def _read(self, name: str, start: int, size: int) -> bytes:
        try:
            with self._path(name).open("rb") as file:
                file.seek(start)
                return file.read(size)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NoBlobError(name) from None

    def _entries(self, folder: str) -> list[Entry]:
        return [
            Entry(path.relative_to(self._root).as_posix(), found.st_size, found.st_mtime)
            for path, found in _files(self._path(folder))
        ]

    def _folders(self, folder: str) -> list[str]:
        try:
            with os.scandir(self._path(folder)) as found:
                return [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []

    def _delete(self, name: str) -> None:
        path = self._path(name)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else is in it, or it is gone
            if path.parent != self._root:
                path.parent.rmdir()

    def _delete_all(self, folder: str) -> None:
        doomed = self._temp / secrets.token_hex(16)
        try:
            self._path(folder).rename(doomed)  # all of it goes at once, even if this process is killed in the middle
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    def _reserve(self, size: int) -> None:
        free = shutil.disk_usage(self._root).free
        if free - size < MARGIN_BYTES:
            raise BridgeError("store_unavailable", "the disk for uploads is full", retry_after=FULL_SECONDS)

    def _sweep(self, age: float) -> int:
        swept = 0
        with os.scandir(self._temp) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime < age:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        Path(entry.path).unlink()
                    swept += 1
        return swept

    def _translated(self, exc: Exception) -> BridgeError | None:
        if not isinstance(exc, OSError):
            return None
        return BridgeError("store_unavailable", f"the folder for uploads cannot be used ({exc.strerror})")

    def _path(self, name: str) -> Path:
        return self._root / name


def _in_place(temp: Path, path: Path, *, new: bool) -> None:
    for attempt in (1, 2):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            if new:
                os.link(temp, path)  # unlike a rename, it fails where there is one
            else:
                temp.replace(path)
        except FileExistsError:
            raise BlobExistsError(path.name) from None
        except FileNotFoundError:
            if attempt == 2:  # the first time, somebody has deleted the folder since it was made
                raise
        else:
            return


def _sync(folder: Path) -> None:
    """Make a new name last, too."""
    with contextlib.suppress(FileNotFoundError):  # deleted since, and all in it
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except FileNotFoundError:
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _files(path)
            continue
        with contextlib.suppress(FileNotFoundError):
            yield path, entry.stat(follow_symlinks=False)
