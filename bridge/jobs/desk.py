"""Where jobs are handed in, asked about and called off. `Caller.owns` says by whom."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Final

from bridge.errors import BridgeError
from bridge.jobs.models import ID, Job, NewJob, State, Terms
from bridge.jobs.store import JobConflictError, JobStore, StoreFullError, StoreUnavailableError
from bridge.observe import trace
from bridge.uploads.blobs import BlobStore

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
"""Whoever watches a job looks that often, also where nobody says that it changed."""
AWAY_SECONDS: Final = 1.0
"""The same while the store does not answer."""
FULL_SECONDS: Final = 30.0
"""After which somebody whose job was not taken may ask again."""


class JobDesk:
    """One server's. `backend` is its setting `STT_BACKEND`: a job is for workers with the same one.

    `loopback`: webhooks may go to the machine itself.
    """

    def __init__(self, store: JobStore, blobs: BlobStore, backend: str, *, loopback: bool = False) -> None:
        self._store = store
        self._blobs = blobs
        self._backend = backend
        self._loopback = loopback

    async def submit(self, new: NewJob) -> Job:
        """Accept a job: from now on it is not lost. The same `id` again is the same job.

        The file lies in the store of blobs already; it belongs to the job then. Where this fails, it is nobody's, or
        the job's all the same (`needs`).

        Raises:
            BridgeError: `upload_conflict`, `at_capacity` or `store_unavailable`.
        """
        job_id = secrets.token_hex(16) if new.id is None else new.id
        terms = Terms(
            order=new,
            backend=self._backend,
            created=time.time(),
            traceparent=trace.traceparent(),
            loopback=self._loopback,
        )
        with _translated():
            job = await self._store.submit(job_id, terms)
        log.info("job accepted", extra={"job": job.id, "backend": job.terms.backend})
        return job

    async def get(self, job_id: str) -> Job:
        """The job as it stands.

        Raises:
            BridgeError: `unknown_job` or `store_unavailable`.
        """
        with _translated():
            job = await self._store.get(job_id) if ID.fullmatch(job_id) else None
        if job is None:
            raise BridgeError("unknown_job")
        return job

    async def result(self, job: Job) -> bytes:
        """The segments of a job, encoded (`models.decode_segments`).

        Raises:
            BridgeError: `job_unfinished`, `cancelled`, `job_failed`, `unknown_job` or `store_unavailable`.
        """
        match job.state:
            case State.FAILED:
                raise BridgeError("job_failed", f"{job.code}: {job.message}")
            case State.CANCELLED:
                raise BridgeError("cancelled")
            case State.SUCCEEDED:
                with _translated():
                    found = await self._store.result(job.id)
                if found is None:
                    raise BridgeError("unknown_job")
                return found
            case _:
                raise BridgeError("job_unfinished", retry_after=1)

    async def page(self, owner: str, state: State | None, after: str | None, limit: int) -> list[Job]:
        """The owner's jobs, the newest first, from behind the job `after`.

        Raises:
            BridgeError: `bad_request` (there is no such job to begin behind) or `store_unavailable`.
        """
        with _translated():
            if after is not None:
                known = await self._store.get(after) if ID.fullmatch(after) else None
                if known is None or known.owner != owner:
                    raise BridgeError("bad_request", "after: there is no such job, or no longer")
            return await self._store.page(owner, state, after, limit)

    async def cancel(self, job: Job) -> Job | None:
        """End a job that has not ended: as it stands then. Forget one that has: None.

        Raises:
            BridgeError: `unknown_job` or `store_unavailable`.
        """
        with _translated():
            if job.state.ended:
                if not await self._store.delete(job.id):
                    raise BridgeError("unknown_job")
                return None
            ended = await self._store.cancel(job.id)
        if ended is None:
            raise BridgeError("unknown_job")
        if ended.state is State.CANCELLED:
            log.info("job cancelled", extra={"job": job.id})
            await self._blobs.delete(job.order.blob)
        return ended

    async def watch(self, job_id: str) -> AsyncGenerator[Job]:
        """The job as it stands, and again at each change, until it has ended. Some changes may come as one.

        While the store is away, nothing comes.

        Raises:
            BridgeError: `unknown_job` (also where it is deleted meanwhile), or at first `store_unavailable`.
        """
        version = 0
        with self._store.changes.watch(job_id) as bell:
            while True:
                try:
                    job = await self.get(job_id)
                except BridgeError as exc:
                    if exc.code != "store_unavailable" or not version:
                        raise
                    await bell.changed(AWAY_SECONDS)
                    continue
                if job.version > version:
                    version = job.version
                    yield job
                if job.state.ended:
                    return
                await bell.changed(LOOK_SECONDS)

    async def needs(self, blob: str) -> bool:
        """Whether a job that has not ended is about this file.

        Raises:
            BridgeError: `store_unavailable`.
        """
        with _translated():
            return await self._store.needs(blob)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """What clients are told of the store's errors; its own sentence is for the log."""
    try:
        yield
    except StoreUnavailableError as exc:
        log.warning("jobs: %s", exc)
        raise BridgeError("store_unavailable", retry_after=1) from exc
    except JobConflictError as exc:
        raise BridgeError("upload_conflict", "there is a job of this name that was asked for otherwise") from exc
    except StoreFullError as exc:
        raise BridgeError("at_capacity", "too many jobs wait; try again later", retry_after=FULL_SECONDS) from exc
