"""Everything about jobs in one process: its life cycle."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Final

from bridge.background import for_ever
from bridge.jobs.desk import JobDesk
from bridge.jobs.store import JobStore, StoreUnavailableError
from bridge.jobs.webhooks import Webhooks
from bridge.jobs.worker import Worker
from bridge.observe.metrics import JobMetrics

log = logging.getLogger(__name__)

COUNT_SECONDS: Final = 5.0
"""Between two looks at how many jobs there are."""
SWEEP_COUNTS: Final = 12
"""Looks between two sweeps."""


@dataclass(slots=True)
class JobService:
    """A server's, or a worker's: there the desk has nobody at it."""

    store: JobStore
    desk: JobDesk
    worker: Worker
    webhooks: Webhooks
    metrics: JobMetrics
    _keeping: asyncio.Task[None] | None = field(default=None, init=False)

    async def open(self) -> None:
        """Take jobs.

        Raises:
            StoreUnavailableError: the store cannot be opened.
        """
        await self.store.open()
        self.webhooks.start()
        self._keeping = for_ever(self._keep, "jobs-keep")

    def start(self) -> None:
        """Work on them: the engine is loaded."""
        self.worker.start()

    async def stop(self) -> None:
        """Work on none any more: others may go on with them at once. Safe to be called again."""
        await self.worker.stop()

    async def close(self) -> None:
        """Give everything back."""
        await self.worker.stop()
        await self.webhooks.stop()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        await self.store.close()

    async def _keep(self) -> None:
        """Count for the metrics, and forget what is old."""
        looks = 0
        while True:
            try:
                self.metrics.counted({state.value: count for state, count in (await self.store.counts()).items()})
                if looks % SWEEP_COUNTS == 0 and (swept := await self.store.sweep()):
                    log.info("%d old jobs forgotten", swept)
            except StoreUnavailableError as exc:
                log.warning("jobs: %s", exc)
            looks += 1
            await asyncio.sleep(COUNT_SECONDS)
