"""A worker on a recognizer that does what it is told, in place of files that go through an engine."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from bridge.errors import BridgeError
from bridge.jobs.models import Job, NewJob, State, Terms
from bridge.jobs.store import JobStore
from bridge.jobs.worker import Worker
from bridge.observe.metrics import Metrics
from bridge.observe.trace import Tracing
from bridge.protocols.events import Final
from bridge.session.batch import Batch
from bridge.uploads.blobs import BlobStore
from tests.jobs.samples import BACKEND, name

LIMIT = 15.0


@dataclass
class FakeBatch:
    """Each file is `seconds` long; its transcript is what stands in it. `faults`: raised by the first attempts."""

    faults: list[Exception] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    open_now: int = 0
    most: int = 0
    opened: int = 0
    asked: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gate.set()

    @contextlib.asynccontextmanager
    async def open(self, file: Path, *_: Any, **asked: Any) -> AsyncIterator[FakeRun]:
        text = await asyncio.to_thread(file.read_text)
        self.asked = asked
        self.opened += 1
        self.open_now += 1
        self.most = max(self.most, self.open_now)
        try:
            if self.faults:
                raise self.faults.pop(0)
            yield FakeRun(text, self.gate)
        finally:
            self.open_now -= 1


class FakeRun:
    backend, language, total = BACKEND, "en-US", 2.0

    def __init__(self, text: str, gate: asyncio.Event) -> None:
        self.seconds = 0.5
        self._text = text
        self._gate = gate

    async def finals(self) -> AsyncIterator[Final]:
        yield Final(seq=1, text=self._text, start=0.0, end=1.0, words=(), confidence=None, language=None)
        await self._gate.wait()
        self.seconds = 2.0


def worker(
    store: JobStore, blobs: BlobStore, batch: FakeBatch, metrics: Metrics | None = None, slots: int = 2
) -> Worker:
    """Started by the test."""
    jobs = (metrics or Metrics()).jobs

    def models(model: str | None) -> str | None:
        if model == "unknown":
            raise BridgeError("unknown_backend")
        return model

    return Worker(store, blobs, cast("Batch", batch), BACKEND, slots, jobs, Tracing(), models)


@contextlib.asynccontextmanager
async def working(*workers: Worker) -> AsyncIterator[None]:
    for each in workers:
        each.start()
    try:
        yield
    finally:
        for each in workers:
            await each.stop()


async def handed_in(store: JobStore, blobs: BlobStore, text: str = "hello", **order: Any) -> Job:
    """A job about a file that says so."""
    blob = await blobs.put(f"files/{name()}", io.BytesIO(text.encode()))
    new = NewJob(owner="me", blob=blob.name, size=blob.size, sha256=blob.sha256, name="a.wav", **order)
    return await store.submit(name(), Terms(order=new, backend=BACKEND, created=1_000_000.0))


async def until(store: JobStore, job: Job, condition: Callable[[Job], bool]) -> Job:
    """The job as soon as it is so."""
    async with asyncio.timeout(LIMIT):
        with store.changes.watch(job.id) as bell:
            while True:
                now = await store.get(job.id)
                assert now is not None
                if condition(now):
                    return now
                await bell.changed(0.2)


async def ended(store: JobStore, job: Job) -> Job:
    return await until(store, job, lambda now: now.state.ended)


async def running(store: JobStore, job: Job) -> Job:
    return await until(store, job, lambda now: now.state is State.RUNNING)
