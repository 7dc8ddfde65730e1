"""Makes a file of an upload's pieces, has it looked at, and hands it on. Each step may be done again after a crash."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from bridge.errors import BridgeError
from bridge.uploads.blobs import Blob, NoBlobError
from bridge.uploads.models import SHORT_DIGEST, Done, Intake, Meta, Whole
from bridge.uploads.registry import Registry, Upload
from bridge.uploads.shelf import piece_name

log = logging.getLogger(__name__)

JOINED_AT_ONCE: Final = 2
"""A disk is no faster with more, and others want to use it, too."""
FINISH_SECONDS: Final = 900.0
"""For a file to be joined, looked at and handed on, those before it included."""


class Finisher:
    """One server's. Other servers may finish the same upload at the same time: it comes to the same."""

    def __init__(self, registry: Registry, intake: Intake, *, max_bytes: int) -> None:
        self._registry = registry
        self._shelf = registry.shelf
        self._intake = intake
        self._max_bytes = max_bytes
        self._places = asyncio.Semaphore(JOINED_AT_ONCE)
        self._tasks: dict[str, asyncio.Task[Done]] = {}

    async def finish(self, upload: Upload) -> Done:
        """How the upload ends; all its pieces are there. A client that does not wait for it changes nothing.

        Raises:
            BridgeError: it has not ended, and may be finished later.
        """
        if upload.done is not None:
            return upload.done
        task = self._tasks.get(upload.key)
        if task is None:
            task = asyncio.create_task(self._within_limit(upload), name=f"finish-{upload.key[-8:]}")
            self._tasks[upload.key] = task
            task.add_done_callback(lambda task: self._ended(upload.key, task))
        return await asyncio.shield(task)

    def busy(self, key: str) -> bool:
        """Whether the upload is being finished."""
        return key in self._tasks

    async def close(self) -> None:
        """Break off what is going on; it is done again when somebody asks for it."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _ended(self, key: str, task: asyncio.Task[Done]) -> None:
        del self._tasks[key]
        if task.cancelled():
            return
        if (exc := task.exception()) is not None:
            known = isinstance(exc, BridgeError)
            log.warning("an upload cannot be finished now (%s)", exc, exc_info=None if known else exc)

    async def _within_limit(self, upload: Upload) -> Done:
        upload.users += 1  # so that nobody forgets it
        try:
            async with asyncio.timeout(FINISH_SECONDS), self._places:
                done = await self._finish(upload)
        except TimeoutError:
            raise BridgeError("store_unavailable", "it takes too long to join the file", retry_after=60) from None
        finally:
            upload.users -= 1
        self._registry.ended(upload, done)
        return done

    async def _finish(self, upload: Upload) -> Done:
        if (before := await self._before(upload)) is not None:
            return before
        meta = upload.meta
        if meta is None:
            raise BridgeError("unknown_upload")
        if upload.size > self._max_bytes:  # several servers took pieces at the same time
            return await self._refused(upload, meta, BridgeError("too_large"))
        began = time.monotonic()
        try:
            blob, digests = await self._join(upload, meta)
        except NoBlobError:  # a piece is gone
            return await self._elsewhere(upload)
        try:
            async with self._shelf.blobs.fetch(blob.name) as path:
                await self._intake.check(path, meta.file_name, meta.fields)
        except NoBlobError:  # another server has handed it on, and its job is done; or is about to say so
            return await self._elsewhere(upload, "store_unavailable")
        except BridgeError as exc:
            if exc.row.fault != "client" or exc.row.retryable:
                raise
            await self._shelf.blobs.delete(blob.name)
            return await self._refused(upload, meta, exc)
        job = None
        if wants_job(meta):
            job = await self._intake.take(whole(meta, blob.size, blob.sha256))
        done = Done(meta=meta, at=time.time(), size=blob.size, sha256=blob.sha256, job=job, pieces=digests)
        await self._shelf.settle(upload.key, done)
        log.info(
            "upload complete",
            extra={
                "bytes": blob.size,
                "pieces": len(upload.pieces.sizes),
                "ms": round(1_000 * (time.monotonic() - began)),
                "job": job,
            },
        )
        return done

    async def _before(self, upload: Upload) -> Done | None:
        """How it has ended, if it has."""
        await self._registry.refresh(upload)
        if upload.done is not None or upload.meta is None:
            return upload.done
        done = await self._shelf.done(upload.key)
        if done is None or done.meta.nonce != upload.meta.nonce:
            return None
        await self._shelf.clear(upload.key)  # whoever finished it died before that
        return done  # its job may be done and deleted since, and is not made again

    async def _elsewhere(self, upload: Upload, code: str = "unknown_upload") -> Done:
        """Another server has finished the upload; `code` if it has not, or deleted it."""
        await self._registry.refresh(upload)
        if upload.done is None:
            raise BridgeError(code)
        return upload.done

    async def _join(self, upload: Upload, meta: Meta) -> tuple[Blob, dict[int, str]]:
        blobs = self._shelf.blobs
        numbers = sorted(upload.pieces.sizes)
        await blobs.reserve(upload.size)
        joined = blobs.joined([piece_name(upload.key, meta, number) for number in numbers])
        blob = await blobs.put(meta.blob, joined)
        if meta.kind == "tus":
            return blob, {}
        short = (digest[:SHORT_DIGEST] for digest in joined.digests)
        return blob, dict(zip(numbers, short, strict=True))

    async def _refused(self, upload: Upload, meta: Meta, exc: BridgeError) -> Done:
        log.info("upload refused", extra={"code": exc.code, "bytes": upload.size})
        done = Done(meta=meta, at=time.time(), size=upload.size, sha256="", code=exc.code, message=str(exc))
        await self._shelf.settle(upload.key, done)
        return done


def wants_job(meta: Meta) -> bool:
    """Whether its owner wants it transcribed when it is whole, and has not said `job=false`."""
    return meta.fields.get("job", "true").strip().lower() not in {"false", "0", "no", "off"}


def whole(meta: Meta, size: int, sha256: str) -> Whole:
    """The file of a complete upload."""
    return Whole(
        owner=meta.owner,
        blob=meta.blob,
        size=size,
        sha256=sha256,
        name=meta.file_name,
        fields=meta.fields,
        job_id=meta.nonce,
    )
