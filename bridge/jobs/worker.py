"""Who works on jobs: claims one, sends its file through a session, and says what came of it.

A worker may be killed at any moment: its lease runs out, and another begins again. It may be wrong about being alive,
too: the store refuses what it says then. Stopped in order it puts its jobs back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final, TypeVar

from bridge.background import for_ever
from bridge.errors import BridgeError
from bridge.jobs.changes import stop_of
from bridge.jobs.models import Job, Outcome, Progress
from bridge.jobs.store import JobStore, StoreUnavailableError
from bridge.observe.metrics import JobMetrics
from bridge.observe.trace import Tracing
from bridge.protocols.events import Start
from bridge.session.account import Account
from bridge.session.batch import Batch, Run
from bridge.transcript import Segment
from bridge.uploads.blobs import BlobStore, NoBlobError

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
"""Between looks for jobs of which nobody told this worker."""
LEAST_SECONDS: Final = 0.05
AWAY_SECONDS: Final = 1.0
"""Between tries while the store is away."""
FILES_SECONDS: Final = 5.0
"""Before a job is begun again that had to wait: the store of its file was away, or engine or decoders were full."""
PROGRESS_SECONDS: Final = 1.0
"""Between two words about how far a job is."""
BEATS: Final = 4
"""Renewals within one lease, at least."""
WAITS: Final = ("store_unavailable", "at_capacity")
"""No fault of the job: it waits for as long as that lasts."""
FAILURES: Final = 8
"""Attempts that a job may fail through no fault of its file: an engine has some five minutes to come to."""
BACKOFF_SECONDS: Final = 60.0
STOP_SECONDS: Final = 3.0
"""For what a worker that stops has still to say: which jobs it puts back, what came of those that are done."""

PUT_BACK: Final = "put_back"
GONE: Final = "gone"
T = TypeVar("T")


class Worker:
    """Works on `slots` jobs at once, of those that were handed in for `backend`.

    `models`: the backend of a model's name (None: the best that is well); raises `BridgeError` for one that is unknown.
    """

    def __init__(
        self,
        store: JobStore,
        blobs: BlobStore,
        batch: Batch,
        backend: str,
        slots: int,
        reports: JobMetrics,
        tracing: Tracing,
        models: Callable[[str | None], str | None],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._batch = batch
        self._backend = backend
        self._slots = slots
        self._reports = reports
        self._tracing = tracing
        self._models = models
        self._busy: set[asyncio.Task[None]] = set()
        self._free = asyncio.Event()
        self._free.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def start(self) -> None:
        """Begin to work. To be called once, when there is an engine; does nothing if it was stopped before."""
        if self._slots and not self._stopped:
            self._tasks = {
                for_ever(self._claim_all, "jobs"),
                for_ever(lambda: self._store.follow(self._backend, self._free.wait), "jobs-follow"),
            }

    async def stop(self) -> None:
        """Begin nothing more, and put back what is not done: others may go on at once."""
        self._stopped = True
        for task in (*self._tasks, *self._busy):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._busy, return_exceptions=True)

    @property
    def busy(self) -> int:
        """Jobs that it works on now."""
        return len(self._busy)

    # Finding jobs

    async def _claim_all(self) -> None:
        while True:
            await self._free.wait()
            job = await self._next()
            task = asyncio.create_task(self._attempt(job), name=f"job-{job.id}")
            self._busy.add(task)
            task.add_done_callback(self._done)
            if len(self._busy) >= self._slots:
                self._free.clear()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._busy.discard(task)
        self._free.set()
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("a job was left to its lease", exc_info=exc)

    async def _next(self) -> Job:
        """The next job, claimed."""
        changes = self._store.changes
        away = False
        while True:
            try:
                job = await self._claim()
                wait = await self._store.next_claim(self._backend) if job is None else 0.0
            except StoreUnavailableError as exc:
                if not away:
                    log.warning("jobs: %s", exc)
                away, job, wait = True, None, AWAY_SECONDS
            else:
                away = False
            if job is not None:
                return job
            await changes.work(max(LEAST_SECONDS, min(LOOK_SECONDS, LOOK_SECONDS if wait is None else wait)))

    async def _claim(self) -> Job | None:
        """Cancelled, it puts back at once what it may have got."""
        claiming = asyncio.ensure_future(self._store.claim(self._backend))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            await _within(STOP_SECONDS, self._return(claiming))
            raise

    async def _return(self, claiming: asyncio.Future[Job | None]) -> None:
        if (job := await claiming) is not None:
            await self._store.put_back(job)

    # One attempt

    async def _attempt(self, job: Job) -> None:
        began = time.monotonic()
        self._reports.began(attempt=job.attempt, lost=job.lost)
        attributes: dict[str, str | int] = {"stt.job.id": job.id, "stt.job.attempt": job.attempt}
        how = PUT_BACK
        with self._tracing.scope("job", parent=job.terms.traceparent, subject=job.owner, attributes=attributes):
            log.info("job begun", extra={"job": job.id, "attempt": job.attempt, "lost": job.lost})
            try:
                how = await self._work(job)
            finally:
                seconds = time.monotonic() - began
                self._reports.ended(how, seconds)
                log.info("job %s", how, extra={"job": job.id, "attempt": job.attempt, "seconds": round(seconds, 3)})

    async def _work(self, job: Job) -> str:
        """How the attempt ended."""
        attempt = _Attempt(self._store, job)
        work = asyncio.create_task(self._transcribe(job, attempt), name=f"transcribe-{job.id}")
        lease = asyncio.create_task(attempt.hold(), name=f"lease-{job.id}")
        try:
            await asyncio.wait({work, lease}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                lease.result()
                return GONE  # called off, or others go on with it
            return await _to_its_end(self._settle(job, attempt, work.result()))
        except asyncio.CancelledError:
            await _within(STOP_SECONDS, self._store.put_back(job))
            raise
        finally:
            work.cancel()
            lease.cancel()
            await asyncio.gather(work, lease, return_exceptions=True)

    async def _settle(self, job: Job, attempt: _Attempt, outcome: Outcome | BridgeError) -> str:
        """Say what came of it, as soon as the store hears."""
        if isinstance(outcome, BridgeError):
            if outcome.code == "shutting_down":
                held = await _insist(lambda: self._store.put_back(job))
                return PUT_BACK if held else GONE
            if outcome.code in WAITS:
                log.warning("a job cannot be gone on with now: %s", outcome, extra={"job": job.id})
                held = await _insist(lambda: self._store.put_back(job, FILES_SECONDS))
                return PUT_BACK if held else GONE
            if outcome.row.fault in ("server", "engine") and job.failures + 1 < FAILURES:
                delay = _backoff(job.failures)
                log.warning("job failed, is tried again in %.1f s: %s", delay, outcome, extra={"code": outcome.code})
                held = await _insist(lambda: self._store.put_back(job, delay, failed=True))
                return PUT_BACK if held else GONE
            outcome = Outcome(code=outcome.code, message=str(outcome))
        ending: Outcome = outcome
        if not await _insist(lambda: self._store.finish(job, ending, attempt.progress)):
            return GONE
        try:
            await self._blobs.delete(job.order.blob)
        except BridgeError as exc:
            log.warning("a job's file is left over: %s", exc, extra={"job": job.id})  # the sweeper finds it
        return ending.state.value

    async def _transcribe(self, job: Job, attempt: _Attempt) -> Outcome | BridgeError:
        """Its file to its end, or why not."""
        options = job.order.options
        start = Start(language=options.language, partials=False, phrases=options.phrases)
        try:
            async with (
                self._blobs.fetch(job.order.blob) as path,
                self._batch.open(
                    path,
                    job.order.name,
                    start,
                    "job",
                    raw=options.audio,
                    backend=self._models(options.model),
                    patience=math.inf,
                    account=Account(job.owner),
                    checked=False,  # the door has asked for the quota when the job was handed in
                ) as run,
            ):
                attempt.run = run
                segments = [Segment.of(final) async for final in run.finals()]
                attempt.note()
        except NoBlobError:
            # Or not here: a worker that was set up to look elsewhere must not end the jobs of those that find them.
            return BridgeError("internal", "the file is no longer there")
        except BridgeError as exc:
            return exc
        except Exception:
            log.exception("job failed", extra={"job": job.id})
            return BridgeError("internal")
        finally:
            attempt.run = None
        return Outcome(segments=tuple(segments))


class _Attempt:
    """What holds the lease, and knows how far the work is."""

    def __init__(self, store: JobStore, job: Job) -> None:
        self.run: Run | None = None
        self.progress = Progress()
        self._store = store
        self._job = job

    def note(self) -> None:
        """Remember how far it is."""
        if (run := self.run) is not None:
            self.progress = Progress(
                seconds=round(run.seconds, 3),
                total=None if run.total is None else round(run.total, 3),
                engine=run.backend,
                language=run.language,
            )

    async def hold(self) -> None:
        """Renew the lease and tell of progress, for as long as this attempt has a say."""
        clock = asyncio.get_running_loop().time
        renewal = self._store.rules.lease_seconds / BEATS
        told, said = self.progress, clock()
        with self._store.changes.watch(stop_of(self._job.id)) as bell:
            while True:
                called_off = await bell.changed(min(PROGRESS_SECONDS, renewal))
                self.note()
                if self.progress == told and clock() - said < renewal and not called_off:
                    continue
                try:
                    if not await self._store.beat(self._job, self.progress):
                        return
                except StoreUnavailableError as exc:
                    log.warning("jobs: %s", exc, extra={"job": self._job.id})
                    continue
                told, said = self.progress, clock()


async def _insist(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until the store answers."""
    while True:
        try:
            return await ask()
        except StoreUnavailableError as exc:
            log.warning("jobs: %s", exc)
        await asyncio.sleep(AWAY_SECONDS)


async def _to_its_end(last: Coroutine[None, None, T]) -> T:
    """What is done is said, and its file deleted, though the worker stops meanwhile; within a limit."""
    saying = asyncio.ensure_future(last)
    try:
        return await asyncio.shield(saying)
    except asyncio.CancelledError:
        await _within(STOP_SECONDS, saying)
        return saying.result()  # raises CancelledError if that was too long


async def _within(seconds: float, last: Awaitable[object]) -> None:
    """A last word, within a limit; where it is not heard, the lease runs out."""
    with contextlib.suppress(StoreUnavailableError, TimeoutError):
        async with asyncio.timeout(seconds):
            await last


def _backoff(failures: int) -> float:
    """Seconds before the next attempt, longer each time, with jitter: an engine that failed many jobs meets few."""
    return float(min(BACKOFF_SECONDS, 5 * 3.0**failures) * random.uniform(0.5, 1.0))  # noqa: S311 - it need not be hard to guess
