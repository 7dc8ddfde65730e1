"""The thread that works on an SQLite file, so that the event loop never waits for a disk.

What is written survives the death of the process at any moment (WAL: the operating system has it). What is deleted is
overwritten (`secure_delete`), in the file and, by a checkpoint (`file.clean`), in its WAL: transcripts are personal
data.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from bridge.sqlite.file import Schema, open_file

ANSWER_SECONDS: Final = 5.0
"""That a caller waits at most for anything."""
WAITING: Final = 4
"""Jobs that wait for the thread besides those that go first, which never stand behind more than these."""
T = TypeVar("T")


class Database:
    """One file and its thread; `path` None: in memory, gone with the process."""

    def __init__(self, path: Path | None, schema: Schema, *, thread: str) -> None:
        self.path = path
        self._schema = schema
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=thread)
        self._others = asyncio.Semaphore(WAITING)
        self._open: sqlite3.Connection | None = None

    async def do(self, job: Callable[[sqlite3.Connection], T], *, first: bool = False) -> T:
        """Run a job on the thread; `first`: without standing in line with the others.

        A caller that goes away leaves a job that has begun to its end.

        Raises:
            Schema.unavailable: it is not open, fails, or does not answer in time. The job's own errors pass.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if first:
                    return await self._submit(job)
                async with self._others:
                    return await self._submit(job)
        except TimeoutError as exc:
            raise self._failed("does not answer") from exc

    def _submit(self, job: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._executor, self._translated, job)

    def _translated(self, job: Callable[[sqlite3.Connection], T]) -> T:
        if self._open is None:
            raise self._failed("is not open")
        try:
            return job(self._open)
        except sqlite3.Error as exc:
            raise self._failed(f"fails: {exc}") from exc

    def _failed(self, how: str) -> Exception:
        return self._schema.unavailable(f"{self._schema.name(self.path)} {how}")

    async def open(self) -> None:
        """Make the file, its folder and its tables, where they are not there.

        Raises:
            Schema.unavailable: the file cannot be used; the sentence says what to do.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                self._open = await loop.run_in_executor(self._executor, open_file, self.path, self._schema)
        except TimeoutError as exc:
            raise self._failed("cannot be opened in time") from exc

    async def close(self) -> None:
        """Give everything back; waits for what is being written."""
        try:
            if self._open is not None:
                await self.do(sqlite3.Connection.close, first=True)
        finally:
            self._open = None
            self._executor.shutdown(wait=False, cancel_futures=True)
