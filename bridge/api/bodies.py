"""Request bodies: read within limits of size, time and number, and kept on disk where they are large.

    async with bodies.file(request) as spooled: …     # the body is the file
    async with bodies.form(request) as form: …        # multipart/form-data

Ask the `Door` first: nothing of a body is asked for before it is read here, so a client that waits for
`100 Continue` sends nothing in vain. Whatever was kept is gone when the context ends, or the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Final, TypeVar

from fastapi import Request
from starlette.types import Message, Receive

from bridge.api.forms import FIELD_BYTES, Form, FormReader, boundary_of, url_encoded
from bridge.errors import BridgeError

log = logging.getLogger(__name__)

T = TypeVar("T")

MEMORY_BYTES: Final = 1_048_576
"""Of one body that is kept in memory: 30 s of PCM16 at 16 kHz. A larger one goes to disk."""
WRITE_BYTES: Final = 262_144
"""That a thread writes at once: few hand-overs, and what waits for one is small."""
DISK_MARGIN: Final = 64 * 1_048_576
"""Bytes that bodies leave free on the disk, for whoever else writes there."""
DISK_THREADS: Final = 4
IDLE_SECONDS: Final = 30.0
"""For the next bytes of a body, and until its mean rate counts."""
SLOWEST: Final = 1_024
"""Bytes a second, in the mean."""
GIVES_WAY_SECONDS: Final = 2.0
GIVES_WAY_RATE: Final = 16_384
"""When as many bodies are open as may be, one that the server has waited for so long gives way to a new one if it comes
slower than this, in bytes a second: half-open requests, however many, keep nobody out."""
RETRY_SECONDS: Final = 1.0
LEAST_LOOK_SECONDS: Final = 0.01
"""Between two looks at how long a client takes: it is waited for that much longer."""


class Spooled:
    """A file that came in a body. It is read from its beginning, while the context lasts that gave it."""

    def __init__(self, bodies: Bodies, name: str) -> None:
        self.name = name
        """What its sender calls it, for messages; never a path of this machine."""
        self.size = 0
        """Bytes."""
        self._bodies = bodies
        self._held: bytes | bytearray = b""  # in memory; of a file that is on disk, what waits for it
        self._file: IO[bytes] | None = None
        self._on_disk = False

    @property
    def content(self) -> IO[bytes] | bytes:
        """All of it: as it is where it is in memory, else as `file`. Once it is whole."""
        if self._file is not None:
            return self._file
        return self._held if isinstance(self._held, bytes) else bytes(self._held)

    @property
    def file(self) -> IO[bytes]:
        """It as a file: in memory, or on disk without a name there. Once it is whole."""
        if self._file is None:
            self._file = io.BytesIO(self._held)
            self._held = b""
        return self._file

    async def write(self, data: bytes) -> None:
        """Append.

        Raises:
            BridgeError: `store_unavailable`.
        """
        self.size += len(data)
        if not self._held:
            self._held = data  # most often there is one piece, which is all
        else:
            if isinstance(self._held, bytes):
                self._held = bytearray(self._held)
            self._held += data
        if self.size > MEMORY_BYTES and (not self._on_disk or len(self._held) >= WRITE_BYTES):
            await self._to_disk()

    async def finish(self) -> None:
        """It is whole: ready to be read.

        Raises:
            BridgeError: `store_unavailable`.
        """
        if self._on_disk and self._held:
            await self._to_disk()

    async def close(self) -> None:
        """Forget it."""
        self._held = b""
        if self._file is None:
            return
        if self._on_disk and not self._bodies.closed:
            await self._bodies.on_disk(self._file.close)  # freeing gigabytes takes its time
        else:
            self._file.close()

    async def _to_disk(self) -> None:
        self._on_disk = True
        data, self._held = self._held, b""
        try:
            await self._bodies.on_disk(lambda: self._append(data))
        except OSError as exc:
            log.error("a request's body cannot be kept: %s", exc)  # noqa: TRY400 - the reason is enough
            raise BridgeError("store_unavailable", "the server has no room for files now", retry_after=60) from None

    def _append(self, data: bytes | bytearray) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - `close` ends it
        self._file.seek(0, io.SEEK_END)
        self._file.write(data)
        self._file.flush()
        self._file.seek(0)
        space = os.fstatvfs(self._file.fileno())
        if space.f_bavail * space.f_frsize < DISK_MARGIN:
            raise OSError(errno.ENOSPC, "the disk is nearly full")


class _Reading:
    """One body that is being read: whom a newcomer may ask to give way, and who takes too long."""

    __slots__ = ("_loop", "_over", "_since", "_task", "_waited", "size")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.size = 0
        self._loop = loop
        self._waited = 0.0  # seconds, for the client, before the present wait
        self._task: asyncio.Task[object] | None = None  # that waits now
        self._since = 0.0  # when that began
        self._over = False

    async def wait(self, receive: Receive) -> Message:
        """The next of the body.

        Raises:
            BridgeError: `body_timeout`: it takes too long, or somebody else needs the place.
        """
        task = self._task = asyncio.current_task()
        cancelling = 0 if task is None else task.cancelling()
        self._since = self._loop.time()
        try:
            return await receive()
        except asyncio.CancelledError:
            if not self._over or task is None or task.uncancel() > cancelling:
                raise  # who waits was cancelled from elsewhere
            raise BridgeError("body_timeout", "the body comes too slowly") from None
        finally:
            self._task = None
            self._waited += self._loop.time() - self._since

    def rate(self, now: float) -> float:
        """Bytes a second that it comes with; infinite if it is too early to say."""
        if self._task is None or self._over:
            return float("inf")
        waited = self._waited + now - self._since
        return self.size / waited if waited >= GIVES_WAY_SECONDS else float("inf")

    def end(self) -> None:
        """Wait no longer."""
        if self._task is not None and not self._over:
            self._over = True
            self._task.cancel()

    def look(self, now: float) -> float:
        """End it if its client takes too long for its next bytes, or has taken too long for all of them.

        Returns after how many seconds to look again.
        """
        left = min(IDLE_SECONDS, max(IDLE_SECONDS, self.size / SLOWEST) - self._waited)
        if self._task is not None:
            left -= now - self._since
            if left <= 0:
                self.end()
        return max(LEAST_LOOK_SECONDS, left)


class Bodies:
    """All of one server's. `max_bytes`: of one file; `max_bodies`: that are open at once, read or worked on."""

    def __init__(self, *, max_bytes: int, max_bodies: int) -> None:
        self.max_bytes = max_bytes
        self.count = 0
        """Open now."""
        self.closed = False
        """Whether no thread works for them any more."""
        self._max_bodies = max_bodies
        self._reading: set[_Reading] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="bodies")

    async def close(self) -> None:
        """To be called at the end. Bodies that are open then, of requests that nobody waits for, can only be closed."""
        self.closed = True
        await asyncio.to_thread(self._disk.shutdown)

    async def on_disk(self, work: Callable[[], T]) -> T:
        """Do blocking work on a thread. Once cancelled it waits all the same: nobody closes a file that is written.

        Raises:
            BridgeError: `shutting_down`.
        """
        if self.closed:
            raise BridgeError("shutting_down")
        future = asyncio.get_running_loop().run_in_executor(self._disk, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            raise

    def stream(
        self, request: Request, limit: int | None = None
    ) -> contextlib.AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The body as it comes, at most `limit` bytes (None: `max_bytes`); nothing of it is kept.

        Raises:
            BridgeError: by the context, `too_large` or `at_capacity`; while it is read also these or `body_timeout`,
                which is a body that broke off, too.
        """
        return _Body(self, request, self.max_bytes if limit is None else limit)

    async def read(self, request: Request, limit: int = 65_536) -> bytes:
        """A small body, whole: JSON.

        Raises:
            BridgeError: as `stream`.
        """
        async with self.stream(request, limit) as chunks:
            return b"".join([chunk async for chunk in chunks])

    def file(self, request: Request, name: str = "audio") -> contextlib.AbstractAsyncContextManager[Spooled]:
        """The body as a file.

        Raises:
            BridgeError: by the context, as `stream`, or `store_unavailable`.
        """
        return _FileBody(_Body(self, request, self.max_bytes), Spooled(self, name))

    def form(self, request: Request) -> contextlib.AbstractAsyncContextManager[Form]:
        """The fields and files of a form, `multipart/form-data` or, without files, `application/x-www-form-urlencoded`.

        Raises:
            BridgeError: by the context, as `file`, or `bad_request`: it is none, or has too many or too large fields.
        """
        return _FormBody(self, request)

    def begin(self, reading: _Reading) -> None:
        """A body is to be read.

        Raises:
            BridgeError: `at_capacity`.
        """
        if self.count >= self._max_bodies:
            now = asyncio.get_running_loop().time()
            slowest = min(self._reading, key=lambda reading: reading.rate(now), default=None)
            if slowest is None or slowest.rate(now) >= GIVES_WAY_RATE:
                raise BridgeError("at_capacity", "as many files as may be are being read", retry_after=RETRY_SECONDS)
            slowest.end()
        self.count += 1
        self._reading.add(reading)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._look)

    def arrived(self, reading: _Reading) -> None:
        """All of it is here: nobody waits for its client any more."""
        self._reading.discard(reading)

    def end(self, reading: _Reading) -> None:
        """It is worked on no more."""
        self.count -= 1
        self._reading.discard(reading)

    def _look(self) -> None:
        """Look after all that are being read. One timer: a body's own would cost as much as its bytes."""
        self._timer = None
        if self._reading:
            loop = asyncio.get_running_loop()
            now = loop.time()
            self._timer = loop.call_later(min(reading.look(now) for reading in self._reading), self._look)


class _Body(contextlib.AbstractAsyncContextManager[AsyncIterator[bytes]]):
    """What `Bodies.stream` gives. No generator: they are felt by short files, of which there are many."""

    def __init__(self, bodies: Bodies, request: Request, limit: int) -> None:
        self._bodies = bodies
        self._request = request
        self._limit = limit
        self._reading = _Reading(asyncio.get_running_loop())
        self._ended = False

    async def __aenter__(self) -> AsyncIterator[bytes]:
        if _declared(self._request) > self._limit:
            raise _too_large(self._limit)
        self._bodies.begin(self._reading)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._bodies.end(self._reading)
        self._ended = True

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        reading = self._reading
        while not self._ended:
            message = await reading.wait(self._request.receive)
            if message["type"] == "http.disconnect":
                raise BridgeError("body_timeout", "the body broke off")
            chunk: bytes = message.get("body", b"")
            reading.size += len(chunk)
            if reading.size > self._limit:
                raise _too_large(self._limit)
            if not message.get("more_body", False):
                self._ended = True
                self._bodies.arrived(reading)
            if chunk:
                return chunk
        raise StopAsyncIteration


class _FileBody(contextlib.AbstractAsyncContextManager[Spooled]):
    """What `Bodies.file` gives."""

    def __init__(self, body: _Body, spooled: Spooled) -> None:
        self._body = body
        self._spooled = spooled

    async def __aenter__(self) -> Spooled:
        chunks = await self._body.__aenter__()
        try:
            async for chunk in chunks:
                await self._spooled.write(chunk)
            await self._spooled.finish()
        except BaseException:
            await self.__aexit__()
            raise
        return self._spooled

    async def __aexit__(self, *_: object) -> None:
        await self._body.__aexit__()
        await self._spooled.close()


class _FormBody(contextlib.AbstractAsyncContextManager[Form]):
    """What `Bodies.form` gives."""

    def __init__(self, bodies: Bodies, request: Request) -> None:
        self._bodies = bodies
        self._request = request
        self._body: _Body | None = None
        self._files: list[Spooled] = []

    async def __aenter__(self) -> Form:
        boundary = boundary_of(self._request.headers.get("content-type", ""))
        if boundary is None:
            return url_encoded(await self._bodies.read(self._request, FIELD_BYTES))
        largest = self._bodies.max_bytes
        reader = FormReader(boundary, self._open, largest)
        body = _Body(self._bodies, self._request, largest + 2 * FIELD_BYTES)
        chunks = await body.__aenter__()
        self._body = body
        try:
            async for chunk in chunks:
                await reader.take(chunk)
            return await reader.finish()
        except BaseException:
            await self.__aexit__()
            raise
        finally:
            reader.close()

    async def __aexit__(self, *_: object) -> None:
        if self._body is not None:
            await self._body.__aexit__()
        async with contextlib.AsyncExitStack() as stack:  # one that cannot be closed does not keep the others open
            for file in self._files:
                stack.push_async_callback(file.close)

    def _open(self, name: str) -> Spooled:
        file = Spooled(self._bodies, name)
        self._files.append(file)
        return file


def _declared(request: Request) -> int:
    """What `Content-Length` says; 0 where it says nothing."""
    value = request.headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdecimal() else 0


def _too_large(limit: int) -> BridgeError:
    return BridgeError("too_large", f"the body is larger than {limit} bytes")
