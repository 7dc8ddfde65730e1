"""Uploads in numbered chunks, which may come in any order and more than once. The last one says that it is the last."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import secrets
import time
from collections.abc import Mapping
from typing import Final, Protocol

from bridge.errors import BridgeError
from bridge.uploads.blobs import BLOCK_BYTES, BlobExistsError, NoBlobError, SeekableFile
from bridge.uploads.finisher import Finisher
from bridge.uploads.models import SHORT_DIGEST, Done, Intake, Meta, Status
from bridge.uploads.registry import Registry, Upload
from bridge.uploads.shelf import piece_name
from bridge.uploads.states import FIRST, of_done, of_open

MAX_PIECES: Final = 20_000
"""Of one upload: each is an object of the store, and they are listed together."""
_BEGINNINGS: Final = (b"RIFF", b"RF64", b"fLaC", b"ID3", b"FORM", b"caff", b".snd", b"#!AMR", b"\x1aE\xdf\xa3")
_OGG: Final = b"OggS\x00\x02"  # the first page of a stream, not any


class Sent(Protocol):
    """What came in one request: a file to be read from its beginning, of `size` bytes."""

    @property
    def file(self) -> SeekableFile: ...  # noqa: D102 - see above
    @property
    def size(self) -> int: ...  # noqa: D102


class ChunkedUploads:
    """One server's. `keep_seconds`: how long an upload is kept that nobody goes on with."""

    def __init__(
        self, registry: Registry, finisher: Finisher, intake: Intake, *, max_bytes: int, keep_seconds: float
    ) -> None:
        self._registry = registry
        self._shelf = registry.shelf
        self._finisher = finisher
        self._intake = intake
        self._max_bytes = max_bytes
        self._keep_seconds = keep_seconds

    async def add(
        self, owner: str, name: str, number: int, chunk: Sent, *, is_last: bool, fields: Mapping[str, str]
    ) -> Status:
        """Keep a chunk; when this returns, it is there for good. The one that completes the upload finishes it.

        The same chunk again changes nothing. `fields` of all chunks are put together. It may be cancelled: what was
        written stays.

        Raises:
            BridgeError: `upload_conflict` (another chunk of this number, another end, other options), `too_large`,
                `bad_request`, `at_capacity`, `quota_exceeded`, `store_unavailable`, or why the file was refused.
        """
        if number >= MAX_PIECES:
            raise BridgeError("bad_request", f"seq: should be below {MAX_PIECES}; send larger chunks")
        async with self._registry.use("chunks", owner, name) as upload:
            for attempt in (1, 2):
                if upload.done is not None:
                    return await self._again(upload.done, number, chunk)
                try:
                    meta = await self._begun(upload, owner, name, fields)
                    await self._keep(upload, meta, number, chunk, is_last=is_last)
                    return await self._stands(upload, meta)
                except _GoneError:  # finished, or deleted, by another server
                    if attempt == 2:
                        raise BridgeError("unknown_upload") from None
                    await self._registry.refresh(upload)
        raise AssertionError

    async def status(self, owner: str, name: str) -> Status:
        """How the upload stands. One that has all its chunks is finished, if that was left undone.

        Raises:
            BridgeError: `unknown_upload` or `store_unavailable`.
        """
        async with self._registry.use("chunks", owner, name) as upload:
            await self._registry.refresh(upload)
            if upload.done is not None:
                return of_done(upload.done, self._keep_seconds)
            if upload.meta is None:
                raise BridgeError("unknown_upload")
            return await self._stands(upload, upload.meta, patient=True)

    async def _begun(self, upload: Upload, owner: str, name: str, fields: Mapping[str, str]) -> Meta:
        """The upload's, with these options among its own."""
        meta = upload.meta
        if meta is not None and fields.items() <= meta.fields.items():
            return meta
        async with upload.lock:
            if upload.meta is None:
                self._intake.check_fields(fields)
                meta = Meta(
                    kind="chunks",
                    name=name,
                    owner=owner,
                    nonce=secrets.token_hex(16),
                    created=time.time(),
                    fields=dict(fields),
                )
                await self._registry.begin(upload, meta)
            meta = upload.meta
            if meta is None:
                raise _GoneError
            known = meta.fields
            for field, value in fields.items():
                if known.get(field, value) != value:
                    raise BridgeError("upload_conflict", f"{field}: another chunk of this upload says something else")
            if not fields.keys() <= known.keys():
                merged = {**known, **fields}
                self._intake.check_fields(merged)
                meta = dataclasses.replace(meta, fields=merged)
                await self._shelf.replace(upload.key, meta)
                upload.meta = meta
        return meta

    async def _keep(self, upload: Upload, meta: Meta, number: int, chunk: Sent, *, is_last: bool) -> None:
        if upload.pieces.last is None:
            upload.pieces.last = await self._shelf.last(upload.key, meta)  # another server may have had it
        sizes = upload.pieces.sizes
        _check_end(upload.pieces.last, max(sizes, default=0), number, is_last=is_last)
        if sizes.get(number, chunk.size) != chunk.size:
            raise _other(number)
        if number in sizes:
            await self._compare(upload, meta, number, chunk)
        else:
            await self._write(upload, meta, number, chunk)
        if is_last and upload.pieces.last is None:
            last = await self._shelf.end(upload.key, meta, number)
            if last is None:
                raise _GoneError
            _check_end(last, number, number, is_last=True)
            upload.pieces.last = last

    async def _write(self, upload: Upload, meta: Meta, number: int, chunk: Sent) -> None:
        if upload.size + upload.coming + chunk.size > self._max_bytes:
            raise BridgeError(
                "too_large", f"the chunks of this upload are larger than {self._max_bytes} bytes together"
            )
        upload.coming += chunk.size
        try:
            await asyncio.to_thread(chunk.file.seek, 0)
            await self._shelf.add(upload.key, meta, number, chunk.file)
        except BlobExistsError:
            await self._compare(upload, meta, number, chunk)
        finally:
            upload.coming -= chunk.size
        if upload.meta is None or upload.meta.nonce != meta.nonce:  # finished or deleted meanwhile
            raise _GoneError
        upload.pieces.sizes[number] = chunk.size
        upload.pieces.touched = time.time()

    async def _compare(self, upload: Upload, meta: Meta, number: int, chunk: Sent) -> None:
        await asyncio.to_thread(chunk.file.seek, 0)
        try:
            same = await self._shelf.blobs.same(piece_name(upload.key, meta, number), chunk.file)
        except NoBlobError:
            raise _GoneError from None
        if not same:
            raise _other(number)

    async def _stands(self, upload: Upload, meta: Meta, *, patient: bool = False) -> Status:
        """How it stands, and its end if it is complete. `patient`: what keeps it from its end is no error now."""
        if upload.pieces.last is not None:
            await self._registry.refresh(upload)
            if upload.done is not None:
                return self._outcome(upload.done, patient=patient)
            if upload.meta is None:
                raise _GoneError
            upload.first = upload.first if upload.first is not None else await self._first(upload, meta)
        status = of_open(upload, meta, self._keep_seconds)
        if status.last is None or status.missing:
            return status
        try:
            # One that was on its way when the last one came was looked at before that was known.
            _check_end(status.last, status.last, max(upload.pieces.sizes, default=0), is_last=False)
            done = await self._finisher.finish(upload)
        except BridgeError:
            if patient:
                return status
            raise
        return self._outcome(done, patient=patient)

    def _outcome(self, done: Done, *, patient: bool) -> Status:
        if done.code is not None and not patient:
            raise BridgeError(done.code, done.message)
        return of_done(done, self._keep_seconds)

    async def _first(self, upload: Upload, meta: Meta) -> int | None:
        """Whether the first chunk is number 0 or 1; None: not certain yet, so it is 0.

        Where the sender does not say it, and number 1 begins as files do, it is 1: no other part of a file begins so.
        """
        sizes = upload.pieces.sizes
        if 0 in sizes:
            return 0
        if meta.fields.get(FIRST) == "1":
            return 1
        if meta.fields.get(FIRST) == "0" or 1 not in sizes:
            return None
        try:
            head = await self._shelf.blobs.read(piece_name(upload.key, meta, 1), 16)
        except NoBlobError:
            return None
        return 1 if begins_a_file(head) else None

    async def _again(self, done: Done, number: int, chunk: Sent) -> Status:
        """A chunk of an upload that has ended."""
        if done.code is not None:
            raise BridgeError(done.code, done.message)
        if number not in done.pieces:
            raise BridgeError(
                "upload_conflict", "this upload is complete; delete it, or give the next one another name"
            )
        if await asyncio.to_thread(_short_digest, chunk.file) != done.pieces[number]:
            raise _other(number)
        return of_done(done, self._keep_seconds)


class _GoneError(Exception):
    """The upload is not what this server takes it for: ask the store."""


def begins_a_file(head: bytes) -> bool:
    """Whether these are the first bytes of an audio file of a kind that can be told by four bytes or more."""
    return head.startswith((*_BEGINNINGS, _OGG)) or head[4:8] == b"ftyp"


def _check_end(last: int | None, highest: int, number: int, *, is_last: bool) -> None:
    if last is not None and number > last:
        raise BridgeError("upload_conflict", f"chunk {number} comes after the last one, {last}")
    if is_last and last is not None and number != last:
        raise BridgeError("upload_conflict", f"chunk {last} is the last one, not {number}")
    if is_last and highest > number:
        raise BridgeError("upload_conflict", f"chunk {number} cannot be the last one: {highest} is there")


def _other(number: int) -> BridgeError:
    return BridgeError("upload_conflict", f"chunk {number} is there, and holds something else")


def _short_digest(file: SeekableFile) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()[:SHORT_DIGEST]
