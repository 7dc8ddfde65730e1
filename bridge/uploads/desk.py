"""All uploads of one server: where they come in, are asked about, given up, and become files."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from bridge.errors import BridgeError
from bridge.uploads.appends import GrowingUploads
from bridge.uploads.blobs import BlobStore
from bridge.uploads.chunks import ChunkedUploads
from bridge.uploads.finisher import Finisher, whole
from bridge.uploads.models import Intake, Kind, Meta, Status, Whole
from bridge.uploads.registry import Registry
from bridge.uploads.shelf import Shelf
from bridge.uploads.sweeper import Sweeper

KINDS: Final[tuple[Kind, ...]] = ("tus", "chunks")
LAST_SECONDS: Final = 60.0
"""Before a file that no job needs is deleted, in which none is made of it any more: no sweeper can ask in between."""


class UploadDesk:
    """Uploads in this store, which others may share. Whole files go to the `intake`.

    `keep_seconds`: how long an upload is kept that nobody goes on with, and how long one that has ended is remembered.
    """

    def __init__(
        self,
        blobs: BlobStore,
        intake: Intake,
        *,
        max_bytes: int,
        max_uploads: int,
        owner_uploads: int,
        keep_seconds: float,
    ) -> None:
        self._registry = Registry(Shelf(blobs), max_uploads=max_uploads, owner_uploads=owner_uploads)
        self._finisher = Finisher(self._registry, intake, max_bytes=max_bytes)
        self.chunked = ChunkedUploads(
            self._registry, self._finisher, intake, max_bytes=max_bytes, keep_seconds=keep_seconds
        )
        self.growing = GrowingUploads(
            self._registry, self._finisher, intake, max_bytes=max_bytes, keep_seconds=keep_seconds
        )
        self.sweeper = Sweeper(self._registry, intake, self._look_after, keep_seconds=keep_seconds)
        self._intake = intake
        self._usable_seconds = keep_seconds - min(LAST_SECONDS, keep_seconds / 10)
        self._sweeping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to sweep. The store of blobs is open."""
        self._sweeping = asyncio.create_task(self.sweeper.run(), name="uploads-sweep")

    async def close(self) -> None:
        """End what goes on by itself. Whatever has been acknowledged is in the store."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await self._finisher.close()

    async def completed(self, owner: str, name: str) -> Whole:
        """The file of a complete upload, by the upload's own name. Its job's name is fixed: it is one job at most.

        Raises:
            BridgeError: `unknown_upload`, `upload_incomplete`, why it was refused, or `store_unavailable`.
        """
        for kind in KINDS:
            async with self._registry.use(kind, owner, name) as upload:
                await self._registry.refresh(upload)
                if (done := upload.done) is not None:
                    if done.code is not None:
                        raise BridgeError(done.code, done.message)
                    if done.job is None and time.time() - done.at > self._usable_seconds:
                        raise BridgeError("unknown_upload")
                    return whole(done.meta, done.size, done.sha256)
                if upload.meta is not None:
                    raise BridgeError("upload_incomplete", "the upload is not complete")
        raise BridgeError("unknown_upload")

    async def drop(self, kind: Kind, owner: str, name: str) -> None:
        """Forget an upload and what has come of it. A job that was made of it goes on.

        Raises:
            BridgeError: `unknown_upload`, `at_capacity` (it is being finished) or `store_unavailable`.
        """
        shelf = self._registry.shelf
        async with self._registry.use(kind, owner, name) as upload, upload.turn():
            if self._finisher.busy(upload.key):
                raise BridgeError("at_capacity", "the upload is being joined; try again in a moment", retry_after=1)
            await self._registry.refresh(upload)
            if upload.meta is None and upload.done is None:
                raise BridgeError("unknown_upload")
            if upload.meta is not None:
                await shelf.clear(upload.key)
            if (done := upload.done) is not None:
                await shelf.forget(upload.key)
                if done.job is None and not await self._intake.needs(done.meta.blob):
                    await shelf.blobs.delete(done.meta.blob)
            self._registry.ended(upload, None)

    async def _look_after(self, meta: Meta) -> Status:
        if meta.kind == "chunks":
            return await self.chunked.status(meta.owner, meta.name)
        return await self.growing.status(meta.owner, meta.name, exact=False)
