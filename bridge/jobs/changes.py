"""Who waits for something to happen to a job: watchers of one job, and workers for one that may be begun."""

from __future__ import annotations

import asyncio
from typing import Self


def stop_of(job_id: str) -> str:
    """The name of the bell that rings when a job is called off: for who works on it."""
    return f"stop:{job_id}"


class Changes:
    """A bell for each job somebody watches, and one for work. All within one event loop."""

    def __init__(self) -> None:
        self._watched: dict[str, set[asyncio.Event]] = {}
        self._work = asyncio.Event()
        self._notice = asyncio.Event()

    def ring(self, job_id: str) -> None:
        """Something of this job has changed."""
        for event in self._watched.get(job_id, ()):
            event.set()

    def ring_all(self) -> None:
        """Something may have been missed."""
        for events in self._watched.values():
            for event in events:
                event.set()
        self._work.set()
        self._notice.set()

    def offer_work(self) -> None:
        """There may be a job to begin."""
        self._work.set()

    async def work(self, seconds: float) -> None:
        """Wait until there may be one, at most so long."""
        await _within(self._work, seconds)

    def offer_notice(self) -> None:
        """Somebody may have to be told of a job's end."""
        self._notice.set()

    async def notice(self, seconds: float) -> None:
        """Wait until that may be so, at most so long."""
        await _within(self._notice, seconds)

    def watch(self, job_id: str) -> Watch:
        """A bell of one's own for this job, from now on; to be closed."""
        return Watch(self._watched, job_id)


class Watch:
    """One watcher's bell."""

    def __init__(self, watched: dict[str, set[asyncio.Event]], job_id: str) -> None:
        self._watched = watched
        self._job_id = job_id
        self._event = asyncio.Event()
        watched.setdefault(job_id, set()).add(self._event)

    async def changed(self, seconds: float) -> bool:
        """Wait for a change since the last call, at most so long; whether there was one."""
        return await _within(self._event, seconds)

    def close(self) -> None:
        """Nobody waits any more."""
        waiting = self._watched.get(self._job_id)
        if waiting is not None:
            waiting.discard(self._event)
            if not waiting:
                del self._watched[self._job_id]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Wait until it is set, at most so long, and clear it; whether it was."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True
