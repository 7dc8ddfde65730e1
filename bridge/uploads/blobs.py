"""Where bytes lie under a name: whole files until they are transcribed, and the pieces of those that are on their way.

Nothing here knows what an upload or a job is. Names are ours, never a client's: parts of small letters, digits, `-` and
`.`, with `/` between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from bridge.errors import BridgeError

THREADS: Final = 8
"""Files that one server reads or writes at once; the others wait. A disk is no faster with more."""
BLOCK_BYTES: Final = 1_048_576
"""Read and written at a time."""
MARGIN_BYTES: Final = 256 * 1_048_576
"""Of the disk that is left to others: whoever would use it is refused."""

_NAME: Final = re.compile(r"(?!.{201})[a-z0-9][a-z0-9.-]*(/[a-z0-9][a-z0-9.-]*)*")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Blob:
    """What was written: its length in bytes, and its SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a listing. `modified`: when it was written, in seconds since 1970, if the store knows."""

    name: str
    size: int
    modified: float | None


class NoBlobError(LookupError):
    """There is nothing of this name, or no longer."""


class BlobExistsError(Exception):
    """There is something of this name already, which stays as it is."""


class Readable(Protocol):
    """What a blob's bytes are taken from."""

    def read(self, size: int, /) -> bytes: ...  # noqa: D102 - as a file's


class SeekableFile(Readable, Protocol):
    """What can be read again."""

    def seek(self, offset: int, /) -> int: ...  # noqa: D102 - as a file's


class BlobStore(ABC):
    """Whole or not there: whatever happens to this process, nobody sees half of what was written.

    What `put` has returned is there after a crash. Several servers may share a store. All work is done by threads of
    the store's own; cancelling an operation ends it after the block it is at, and not before nobody reads the caller's
    file any more. Every operation raises `BridgeError`: `store_unavailable` where the store fails or has no room.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")
        self._closed = False

    async def open(self) -> None:
        """Make sure that it can be used.

        Raises:
            BridgeError: `store_unavailable`.
        """
        await self._run(lambda _: self._open())

    async def close(self) -> None:
        """Give its threads back; what they are at is finished."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown)

    async def put(self, name: str, file: Readable, *, new: bool = False) -> Blob:
        """Write all that is left to read of `file` (blocking; read by another thread) under this name.

        What was there is replaced; with `new` it stays.

        Raises:
            BlobExistsError: `new`, and there is one. Of several that try at once, one wins.
        """
        check_name(name)
        digest = _Digest(file)
        await self._run(lambda stop: self._put(name, _Stoppable(digest, stop), new=new))
        return Blob(name, digest.size, digest.hexdigest())

    async def read(self, name: str, limit: int = BLOCK_BYTES) -> bytes:
        """A small blob, or its first bytes.

        Raises:
            NoBlobError
        """
        check_name(name)
        return await self._run(lambda _: self._read(name, 0, limit))

    async def copy_to(self, name: str, sink: Callable[[bytes], object]) -> None:
        """Give all of it to `sink`, block by block, in another thread.

        Raises:
            NoBlobError
        """
        check_name(name)

        def copy(stop: threading.Event) -> None:
            for block in self._blocks(name, stop):
                sink(block)

        await self._run(copy)

    async def same(self, name: str, file: Readable) -> bool:
        """Whether all that is left to read of `file` is what the blob holds, byte for byte.

        Raises:
            NoBlobError
        """
        check_name(name)

        def compare(stop: threading.Event) -> bool:
            return all(_filled(file, len(block)) == block for block in self._blocks(name, stop)) and not file.read(1)

        return await self._run(compare)

    @abstractmethod
    def fetch(self, name: str) -> AbstractAsyncContextManager[Path]:
        """The blob as a file on this machine, to be read while the context lasts. Never to be written.

        Raises:
            NoBlobError
        """

    async def entries(self, folder: str) -> list[Entry]:
        """All that lies below this folder, by name; it may lag behind nothing that this process has written."""
        check_name(folder)
        found = await self._run(lambda _: self._entries(folder))
        return sorted(found, key=lambda entry: entry.name)

    async def folders(self, folder: str) -> list[str]:
        """The names of the folders in this folder, without what stands before them."""
        check_name(folder)
        return sorted(await self._run(lambda _: self._folders(folder)))

    async def delete(self, name: str) -> None:
        """Delete it, if it is there."""
        check_name(name)
        await self._run(lambda _: self._delete(name))

    async def delete_all(self, folder: str) -> None:
        """Delete the folder and all below it, if there is any. Cut short, it may leave a part."""
        check_name(folder)
        await self._run(lambda _: self._delete_all(folder))

    async def reserve(self, size: int) -> None:
        """Make sure that there is room for so many bytes now. Nothing is set aside.

        Raises:
            BridgeError: `store_unavailable`.
        """
        await self._run(lambda _: self._reserve(size))

    async def sweep(self, age: float) -> int:
        """Delete what broken-off writes have left for longer than `age` seconds; how many there were."""
        return await self._run(lambda _: self._sweep(age))

    def joined(self, names: Iterable[str]) -> Joined:
        """These blobs one after another, for `put`."""
        return Joined(self._read, names)

    def _blocks(self, name: str, stop: threading.Event) -> Iterator[bytes]:
        at = 0
        while block := self._read(name, at, BLOCK_BYTES):
            if stop.is_set():
                raise InterruptedError
            yield block
            at += len(block)

    # What a kind of store does, each in a thread

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _put(self, name: str, file: Readable, *, new: bool) -> None: ...

    @abstractmethod
    def _read(self, name: str, start: int, size: int) -> bytes: ...

    @abstractmethod
    def _entries(self, folder: str) -> list[Entry]: ...

    @abstractmethod
    def _folders(self, folder: str) -> list[str]: ...

    @abstractmethod
    def _delete(self, name: str) -> None: ...

    @abstractmethod
    def _delete_all(self, folder: str) -> None: ...

    @abstractmethod
    def _reserve(self, size: int) -> None: ...

    @abstractmethod
    def _sweep(self, age: float) -> int: ...

    @abstractmethod
    def _translated(self, exc: Exception) -> BridgeError | None:
        """The store's own fault as `store_unavailable`; None: it is no fault of the store."""

    async def _run(self, work: Callable[[threading.Event], T]) -> T:
        """Work in a thread. It is told to stop when the caller is cancelled, and waited for."""
        stop = threading.Event()
        if self._closed:
            raise BridgeError("shutting_down")
        thread = self._threads.submit(work, stop)
        doing = asyncio.wrap_future(thread)
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            stop.set()
            if not thread.cancel():  # it has begun
                await _settled(doing)
            raise
        except (BridgeError, NoBlobError, BlobExistsError):
            raise
        except Exception as exc:
            translated = self._translated(exc)
            if translated is None:
                raise
            raise translated from exc


async def _settled(doing: asyncio.Future[T]) -> None:
    """Wait until a thread has let go, however often the wait is cancelled: it is a block away. How it ended is lost."""
    while not doing.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({doing})
    doing.exception()


def check_name(name: str) -> str:
    """The same.

    Raises:
        ValueError: no name of ours: a fault of this server, or somebody's attempt to leave the store.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"{name[:80]!r} is no blob's name")
    return name


class Joined:
    """A file of several blobs, read block by block (blocking). `digests` are their SHA-256, as they have been read.

    It raises `NoBlobError` where one of them is not there.
    """

    def __init__(self, read: Callable[[str, int, int], bytes], names: Iterable[str]) -> None:
        self._read = read
        self._names = iter(names)
        self._name = next(self._names, None)
        self._at = 0
        self._sha256 = hashlib.sha256()
        self.digests: list[str] = []

    def read(self, size: int, /) -> bytes:
        """The next bytes; none at the end of the last blob."""
        while self._name is not None:
            if block := self._read(self._name, self._at, size):
                self._at += len(block)
                self._sha256.update(block)
                return block
            self.digests.append(self._sha256.hexdigest())
            self._name, self._at, self._sha256 = next(self._names, None), 0, hashlib.sha256()
        return b""


class _Stoppable:
    """A file that ends with an exception when its reader is told to stop."""

    def __init__(self, file: Readable, stop: threading.Event) -> None:
        self._file = file
        self._stop = stop

    def read(self, size: int, /) -> bytes:
        if self._stop.is_set():
            raise InterruptedError
        return self._file.read(size)


class _Digest:
    """A file that counts and hashes what is read of it."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.size = 0

    def read(self, size: int, /) -> bytes:
        block = self._file.read(size)
        self._sha256.update(block)
        self.size += len(block)
        return block

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def _filled(file: Readable, size: int) -> bytes:
    """So many bytes, or what is left: a file may give less than it was asked for."""
    found = bytearray()
    while len(found) < size and (block := file.read(size - len(found))):
        found += block
    return bytes(found)
