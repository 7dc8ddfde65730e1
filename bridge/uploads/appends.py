"""Uploads that grow at their end, as the tus protocol has them: what has come of a request is kept if it breaks off."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Final

from bridge.errors import BridgeError
from bridge.uploads.blobs import BlobExistsError
from bridge.uploads.chunks import MAX_PIECES
from bridge.uploads.finisher import Finisher
from bridge.uploads.models import Intake, Meta, Status
from bridge.uploads.registry import Registry, Upload
from bridge.uploads.states import of_done, of_open

PIECE_BYTES: Final = 1_048_576
"""That are kept in memory of one request, and written at once. A server that dies loses no more of it."""


class GrowingUploads:
    """One server's. `keep_seconds`: how long an upload is kept that nobody goes on with."""

    def __init__(
        self, registry: Registry, finisher: Finisher, intake: Intake, *, max_bytes: int, keep_seconds: float
    ) -> None:
        self._registry = registry
        self._shelf = registry.shelf
        self._finisher = finisher
        self._intake = intake
        self.max_bytes = max_bytes
        self._keep_seconds = keep_seconds

    async def create(self, owner: str, length: int | None, fields: Mapping[str, str]) -> Status:
        """Begin an upload of this length; None: it is said later.

        Raises:
            BridgeError: `too_large`, `bad_request`, `at_capacity`, `quota_exceeded` or `store_unavailable`.
        """
        self._check_length(length)
        self._intake.check_fields(fields)
        meta = Meta(
            kind="tus",
            name=secrets.token_hex(16),
            owner=owner,
            nonce=secrets.token_hex(16),
            created=time.time(),
            fields=dict(fields),
            length=length,
        )
        async with self._registry.use("tus", owner, meta.name) as upload, upload.lock:
            await self._shelf.blobs.reserve(length or 0)
            await self._registry.begin(upload, meta)
            return of_open(upload, meta, self._keep_seconds)

    async def status(self, owner: str, name: str, *, exact: bool) -> Status:
        """How the upload stands. One that is whole is finished, if that was left undone.

        `exact`: a request that still appends to it is ended before, so that the answer holds.

        Raises:
            BridgeError: `unknown_upload`, `at_capacity` or `store_unavailable`.
        """
        async with self._registry.use("tus", owner, name) as upload:
            if exact:
                async with upload.turn():
                    await self._registry.refresh(upload)
            else:
                await self._registry.refresh(upload)
            return await self._stands(upload, patient=True)

    async def append(
        self, owner: str, name: str, offset: int, chunks: AsyncIterator[bytes], *, length: int | None = None
    ) -> Status:
        """Go on at this offset. `length`: of the whole file, where it was not said before.

        What has come is kept when `chunks` fail or this is cancelled. The append that completes the upload finishes it;
        what only keeps it from its end for now is no error.

        Raises:
            BridgeError: `upload_conflict` (it does not stand at this offset, or another request took over),
                `unknown_upload`, `too_large`, `bad_request`, `at_capacity`, `store_unavailable`, why the file was
                refused, or what `chunks` raise.
        """
        async with self._registry.use("tus", owner, name) as upload:
            async with upload.turn():
                meta = await self._at(upload, offset, length)
                try:
                    async with asyncio.timeout(None) as upload.appending:
                        await self._take(upload, meta, offset, chunks)
                except TimeoutError:
                    if upload.appending is None or not upload.appending.expired():
                        raise
                    raise BridgeError("upload_conflict", "another request goes on with this upload") from None
                finally:
                    upload.appending = None
            return await self._stands(upload, patient=False)

    async def room(self, owner: str, name: str, offset: int, length: int | None = None) -> int:
        """How many bytes the upload can take at this offset. Asked before any of them is read.

        Raises:
            BridgeError: `upload_conflict`, `unknown_upload`, `at_capacity` or `store_unavailable`.
        """
        async with self._registry.use("tus", owner, name) as upload:
            if upload.meta is None or upload.size != offset:
                async with upload.turn():
                    await self._registry.refresh(upload)
            meta = _standing_at(upload, offset)
            known = meta.length if meta.length is not None else length
            return max(0, (self.max_bytes if known is None else known) - offset)

    async def _at(self, upload: Upload, offset: int, length: int | None) -> Meta:
        """The upload at this offset, its length said."""
        if upload.meta is None or upload.size != offset:
            await self._registry.refresh(upload)
        meta = _standing_at(upload, offset)
        if length is not None and length != meta.length:
            if meta.length is not None:
                raise BridgeError("upload_conflict", f"Upload-Length: it was said to be {meta.length}")
            self._check_length(length)
            if length < offset:
                raise BridgeError("upload_conflict", f"Upload-Length: {offset} bytes have come already")
            meta = dataclasses.replace(meta, length=length)
            await self._shelf.replace(upload.key, meta)
            upload.meta = meta
        if len(upload.pieces.sizes) >= MAX_PIECES:
            raise BridgeError("bad_request", f"the upload came in {MAX_PIECES} pieces already; send larger ones")
        return meta

    async def _take(self, upload: Upload, meta: Meta, offset: int, chunks: AsyncIterator[bytes]) -> None:
        whole = self.max_bytes if meta.length is None else meta.length
        buffer = bytearray()
        try:
            async for chunk in chunks:
                if offset + len(buffer) + len(chunk) > whole:
                    raise BridgeError("too_large", f"the upload was to have {whole} bytes at most")
                buffer += chunk
                while len(buffer) >= PIECE_BYTES:
                    offset = await self._write(upload, meta, offset, buffer)
        finally:  # whatever ended it
            while buffer:
                offset = await self._write(upload, meta, offset, buffer)

    async def _write(self, upload: Upload, meta: Meta, offset: int, buffer: bytearray) -> int:
        """Keep the first piece of the buffer; where the upload stands then."""
        piece = bytes(buffer[:PIECE_BYTES])
        del buffer[:PIECE_BYTES]
        try:
            await self._shelf.add(upload.key, meta, offset, io.BytesIO(piece))
        except BlobExistsError:
            buffer.clear()
            raise BridgeError("upload_conflict", "another request goes on with this upload") from None
        except BaseException:
            buffer.clear()  # what follows would leave a gap
            raise
        if upload.meta is None or upload.meta.nonce != meta.nonce:
            buffer.clear()
            raise BridgeError("unknown_upload")
        upload.pieces.sizes[offset] = len(piece)
        upload.pieces.touched = time.time()
        return offset + len(piece)

    async def _stands(self, upload: Upload, *, patient: bool) -> Status:
        if upload.done is None and upload.meta is not None:
            status = of_open(upload, upload.meta, self._keep_seconds)
            if status.size != status.length:
                return status
            try:
                await self._finisher.finish(upload)
            except BridgeError as exc:
                if exc.code == "unknown_upload":
                    raise
                return status  # it is done when somebody asks again, or the sweeper comes by
        if upload.done is None:
            raise BridgeError("unknown_upload")
        if upload.done.code is not None and not patient:
            raise BridgeError(upload.done.code, upload.done.message)
        return of_done(upload.done, self._keep_seconds)

    def _check_length(self, length: int | None) -> None:
        if length is not None and length > self.max_bytes:
            raise BridgeError("too_large", f"Upload-Length: should be at most {self.max_bytes}")


def _standing_at(upload: Upload, offset: int) -> Meta:
    """The upload, if it is open and this is where it stands."""
    if upload.meta is None and upload.done is None:
        raise BridgeError("unknown_upload")
    stands = upload.size if upload.done is None else upload.done.size
    if offset != stands:
        raise BridgeError("upload_conflict", f"Upload-Offset: the upload stands at {stands}")
    if upload.meta is None:
        raise BridgeError("upload_conflict", "the upload is complete")
    return upload.meta
