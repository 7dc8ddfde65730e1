"""Deletes what nobody goes on with, and finishes what was left undone. Several servers may sweep one store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from bridge.errors import BridgeError
from bridge.uploads.models import Intake, Meta
from bridge.uploads.registry import Registry

log = logging.getLogger(__name__)

ROUNDS: Final = 4
"""Sweeps in the time that an upload is kept: none lies there for much longer."""
LEAST_SECONDS: Final = 15.0
MOST_SECONDS: Final = 3_600.0
"""Between two sweeps."""
LEFTOVER_SECONDS: Final = 3_600.0
"""After which what was half written, or half deleted, is nobody's any more: no write of one object takes so long."""
LEFT_UNDONE_SECONDS: Final = 60.0
"""After which a whole upload is finished here: the server that received it is gone, or was busy."""


class Sweeper:
    """One server's. `look_after` finishes an upload if it is whole."""

    def __init__(
        self,
        registry: Registry,
        intake: Intake,
        look_after: Callable[[Meta], Awaitable[object]],
        *,
        keep_seconds: float,
    ) -> None:
        self._registry = registry
        self._shelf = registry.shelf
        self._look_after = look_after
        self._intake = intake
        self._keep_seconds = keep_seconds

    async def run(self) -> None:
        """Sweep at once, and then for ever, until it is cancelled."""
        pause = min(max(self._keep_seconds / ROUNDS, LEAST_SECONDS), MOST_SECONDS)
        while True:
            try:
                await self.sweep(time.time())
            except BridgeError as exc:
                log.warning("uploads cannot be swept now: %s", exc)
            except Exception:
                log.exception("uploads cannot be swept")  # one odd object must not keep all others for ever
            await asyncio.sleep(pause)

    async def sweep(self, now: float) -> None:
        """Once.

        Raises:
            BridgeError: the store, or who knows what is needed, cannot be reached; another time.
        """
        await self._shelf.blobs.sweep(LEFTOVER_SECONDS)
        for key in await self._shelf.keys():
            await self._look(key, now)
        needed = await self._endings(now)
        for entry in await self._shelf.files():
            age = now - (entry.modified or now)
            if (
                age >= max(self._keep_seconds, LEFTOVER_SECONDS)
                and entry.name not in needed
                and not await self._intake.needs(entry.name)
            ):
                log.info("a file that no job needs is deleted", extra={"bytes": entry.size})
                await self._shelf.blobs.delete(entry.name)

    async def _look(self, key: str, now: float) -> None:
        if self._registry.in_use(key):
            return
        meta = await self._shelf.meta(key)
        contents = await self._shelf.contents(key)
        if self._registry.in_use(key):  # since
            return
        touched = max((entry.modified or 0.0 for entry in contents), default=0.0)
        if meta is None:
            if contents and now - (touched or now) >= LEFTOVER_SECONDS:
                await self._shelf.clear(key)
            return
        idle = now - max(touched, meta.created)
        if idle >= self._keep_seconds:
            await self._drop(key, meta, len(contents))
        elif idle >= LEFT_UNDONE_SECONDS:
            with contextlib.suppress(BridgeError):  # it was logged, or the upload is gone
                await self._look_after(meta)

    async def _drop(self, key: str, meta: Meta, objects: int) -> None:
        log.info("an abandoned upload is deleted", extra={"kind": meta.kind, "objects": objects})
        await self._shelf.clear(key)
        self._registry.forget(key)

    async def _endings(self, now: float) -> set[str]:
        """Forget uploads that ended long ago; the files of the others, which somebody may still make jobs of."""
        needed = set()
        for entry in await self._shelf.endings():
            key = entry.name.rpartition("/")[2]
            done = await self._shelf.done(key)
            if done is None:
                continue
            if now - done.at < self._keep_seconds:
                needed.add(done.meta.blob)
                continue
            await self._shelf.forget(key)
            self._registry.forget(key)
            if done.job is None and not await self._intake.needs(done.meta.blob):
                await self._shelf.blobs.delete(done.meta.blob)
        return needed
