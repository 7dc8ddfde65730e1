"""The desk: what whoever watches a job sees while its store comes and goes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bridge.errors import BridgeError
from bridge.jobs import desk as desk_module
from bridge.jobs.desk import JobDesk
from bridge.jobs.models import Job
from bridge.jobs.sqlite_store import SqliteJobStore
from bridge.jobs.store import Rules, StoreUnavailableError
from bridge.uploads.urls import open_blobs
from tests.jobs.samples import name, terms


class Away(SqliteJobStore):
    """Not there as long as it is told."""

    away = False

    async def get(self, job_id: str) -> Job | None:
        if self.away:
            raise StoreUnavailableError("away")
        return await super().get(job_id)


async def test_watchers_wait_for_a_store_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "AWAY_SECONDS", 0.02)
    store, blobs = Away(None, Rules()), open_blobs(str(tmp_path))
    await store.open()
    desk = JobDesk(store, blobs, "scripted")
    job = await store.submit(name(), terms())
    watching = desk.watch(job.id)
    assert await anext(watching) == job
    store.away = True
    coming = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0.1)
    assert not coming.done()
    await store.cancel(job.id)
    store.away = False
    assert (await coming).state == "cancelled"
    assert await anext(watching, None) is None
    store.away = True
    with pytest.raises(BridgeError) as caught:
        await anext(desk.watch(job.id))
    assert caught.value.code == "store_unavailable"
    await store.close()
    await blobs.close()
