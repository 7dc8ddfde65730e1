"""How uploads lie in a store of blobs, so that any server may go on with any of them, and after any crash.

    uploads/KEY/meta               what it was begun with; without it there is no such upload
    uploads/KEY/NONCE/last         the number of the last chunk, once it is known
    uploads/KEY/NONCE/p/NUMBER     a piece: a chunk by its number, or bytes by the offset of the first
    files/NONCE                    the whole file
    done/KEY                       how it ended; then the folder of KEY goes

Each object is written once, whole or not at all; only `meta` may be replaced. What is left of an upload that was
deleted, or of one that nobody finished deleting, has another NONCE and is in nobody's way.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Final

from bridge.uploads.blobs import BlobExistsError, BlobStore, Entry, NoBlobError, Readable
from bridge.uploads.models import Done, Meta, decode_done, decode_meta, encode

OPEN: Final = "uploads"
DONE: Final = "done"
FILES: Final = "files"
LARGEST_RECORD: Final = 16 * 1_048_576
"""Bytes of a `Meta` or `Done`, more than any has."""


@dataclass(slots=True)
class Pieces:
    """What has come of an upload: the size of each piece by its number, and when the newest came.

    `last`: the number of the last chunk, once it is known.
    """

    sizes: dict[int, int] = field(default_factory=dict)
    touched: float = 0.0
    last: int | None = None


class Shelf:
    """The uploads in one store. Every operation raises `BridgeError` as the store's do."""

    def __init__(self, blobs: BlobStore) -> None:
        self.blobs = blobs

    async def begin(self, key: str, meta: Meta) -> Meta:
        """Begin an upload; or what the one that somebody else has begun meanwhile was begun with."""
        while True:
            try:
                await self.blobs.put(f"{OPEN}/{key}/meta", io.BytesIO(encode(meta)), new=True)
            except BlobExistsError:
                if (theirs := await self.meta(key)) is not None:
                    return theirs
                continue  # and deleted again
            return meta

    async def replace(self, key: str, meta: Meta) -> None:
        """Change what is known of an upload."""
        await self.blobs.put(f"{OPEN}/{key}/meta", io.BytesIO(encode(meta)))

    async def meta(self, key: str) -> Meta | None:
        """What an open upload was begun with."""
        try:
            return decode_meta(await self.blobs.read(f"{OPEN}/{key}/meta", LARGEST_RECORD))
        except NoBlobError:
            return None

    async def done(self, key: str) -> Done | None:
        """How an upload ended."""
        try:
            return decode_done(await self.blobs.read(f"{DONE}/{key}", LARGEST_RECORD))
        except NoBlobError:
            return None

    async def settle(self, key: str, done: Done) -> None:
        """The upload has ended."""
        await self.blobs.put(f"{DONE}/{key}", io.BytesIO(encode(done)))
        await self.clear(key)

    async def forget(self, key: str) -> None:
        """As if there had never been an upload that has ended."""
        await self.blobs.delete(f"{DONE}/{key}")

    async def clear(self, key: str) -> None:
        """Give the pieces away. Cut short, it leaves nothing that could be taken for an upload."""
        await self.blobs.delete(f"{OPEN}/{key}/meta")
        await self.blobs.delete_all(f"{OPEN}/{key}")

    async def add(self, key: str, meta: Meta, number: int, piece: Readable) -> None:
        """Keep a piece. When this returns, it is there for good.

        Raises:
            BlobExistsError: there is one of this number.
        """
        await self.blobs.put(piece_name(key, meta, number), piece, new=True)

    async def end(self, key: str, meta: Meta, last: int) -> int | None:
        """Say which chunk is the last; which one is, if somebody has said that before.

        None: the upload was finished or deleted meanwhile.
        """
        try:
            await self.blobs.put(_last_name(key, meta), io.BytesIO(str(last).encode()), new=True)
        except BlobExistsError:
            return await self.last(key, meta)
        return last

    async def pieces(self, key: str, meta: Meta) -> Pieces | None:
        """All that has come. None: it was being deleted meanwhile."""
        found = Pieces()
        folder = f"{OPEN}/{key}/{meta.nonce}"
        for entry in await self.blobs.entries(folder):
            where, _, number = entry.name.removeprefix(f"{folder}/").partition("/")
            if where == "p":
                found.sizes[int(number)] = entry.size
                found.touched = max(found.touched, entry.modified or 0.0)
            elif where == "last":
                found.last = await self.last(key, meta)
                if found.last is None:
                    return None
        return found

    async def last(self, key: str, meta: Meta) -> int | None:
        """The number of the last chunk, if it is known."""
        try:
            return int(await self.blobs.read(_last_name(key, meta)))
        except NoBlobError:
            return None

    async def keys(self) -> list[str]:
        """Of the open uploads."""
        return await self.blobs.folders(OPEN)

    async def contents(self, key: str) -> list[Entry]:
        """All that lies there of an open upload, or of one that was not wholly deleted."""
        return await self.blobs.entries(f"{OPEN}/{key}")

    async def endings(self) -> list[Entry]:
        """The records of uploads that have ended; the last part of a name is the upload's key."""
        return await self.blobs.entries(DONE)

    async def files(self) -> list[Entry]:
        """The whole files."""
        return await self.blobs.entries(FILES)


def _last_name(key: str, meta: Meta) -> str:
    return f"{OPEN}/{key}/{meta.nonce}/last"


def piece_name(key: str, meta: Meta, number: int) -> str:
    """Where a piece lies."""
    return f"{OPEN}/{key}/{meta.nonce}/p/{number:016d}"
