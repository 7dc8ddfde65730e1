"""The uploads that this server has to do with now, and how many there may be."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Final

from bridge.errors import BridgeError
from bridge.uploads.models import Done, Kind, Meta, key_of, owner_key
from bridge.uploads.shelf import Pieces, Shelf

REMEMBERED: Final = 1_024
"""Uploads whose pieces are kept in mind while nobody uses them: the store would have to list them again."""
COUNT_SECONDS: Final = 1.0
"""For which a count of the open uploads holds; what this server begins is added."""
RETRY_SECONDS: Final = 60.0
TURN_SECONDS: Final = 15.0
"""Time for a request to let go of an upload that another one wants."""


class Upload:
    """One upload as far as this server knows it. Other servers may know more: `Registry.refresh` asks the store."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.lock = asyncio.Lock()
        """Of who begins it, changes its options, or appends to it."""
        self.loaded = False
        self.meta: Meta | None = None
        """None: there is none."""
        self.done: Done | None = None
        self.pieces = Pieces()
        self.coming = 0
        """Bytes that are being written to the store."""
        self.turns = 0
        """How often this server has begun, ended or deleted it."""
        self.first: int | None = None
        """The number of the first chunk, once that is certain."""
        self.users = 0
        self.appending: asyncio.Timeout | None = None
        """The request that appends to it; whoever wants it to stop lets it run out."""

    @property
    def size(self) -> int:
        """Bytes that have come."""
        return sum(self.pieces.sizes.values())

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Have the upload alone. A request that appends gives way: its client has most likely gone and come back.

        Raises:
            BridgeError: `at_capacity`.
        """
        if self.appending is not None:
            self.appending.reschedule(asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self.lock.acquire()
        except TimeoutError:
            raise BridgeError("at_capacity", "another request is busy with this upload", retry_after=1) from None
        try:
            yield
        finally:
            self.lock.release()


class Registry:
    """One server's. `max_uploads` may be open in the whole store, `owner_uploads` of them of one owner."""

    def __init__(self, shelf: Shelf, *, max_uploads: int, owner_uploads: int) -> None:
        self.shelf = shelf
        self._max_uploads = max_uploads
        self._owner_uploads = owner_uploads
        self._known: dict[str, Upload] = {}  # the least recently used first
        self._keys: set[str] = set()
        self._counted = float("-inf")
        self._counting = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def use(self, kind: Kind, owner: str, name: str) -> AsyncIterator[Upload]:
        """The upload of this name; one that is neither begun nor done, if there is none.

        Raises:
            BridgeError: `store_unavailable`.
        """
        key = key_of(kind, owner, name)
        upload = self._known.pop(key, None) or Upload(key)
        self._known[key] = upload
        upload.users += 1
        try:
            if not upload.loaded:
                async with upload.lock:
                    if not upload.loaded:
                        await self.refresh(upload)
            yield upload
        finally:
            upload.users -= 1
            self._forget_some()

    def in_use(self, key: str) -> bool:
        """Whether a request has to do with it now."""
        return key in self._known and self._known[key].users > 0

    def forget(self, key: str) -> None:
        """Ask the store again the next time."""
        if key in self._known:
            self._known[key].loaded = False

    async def refresh(self, upload: Upload) -> None:
        """Learn from the store how it stands.

        Raises:
            BridgeError: `store_unavailable`.
        """
        while not await self._refreshed(upload):
            pass  # it was begun, ended or deleted meanwhile, which happens a few times in an upload's life

    async def _refreshed(self, upload: Upload) -> bool:
        turns = upload.turns
        known = upload.pieces
        meta = await self.shelf.meta(upload.key)
        if meta is None:  # asked in this order: an upload that ends meanwhile is found as one or the other
            done = await self.shelf.done(upload.key)
            if upload.turns != turns:
                return False
            upload.meta, upload.done, upload.pieces, upload.first, upload.loaded = None, done, Pieces(), None, True
            return True
        pieces = await self.shelf.pieces(upload.key, meta)
        if pieces is None:
            return False
        same = upload.meta is not None and upload.meta.nonce == meta.nonce
        if same and not known.sizes.keys() <= pieces.sizes.keys() and await self.shelf.meta(upload.key) is None:
            return False  # pieces do not vanish, unless all of them do
        if upload.turns != turns:
            return False
        if same:  # some may have been written since the listing began
            pieces.sizes |= upload.pieces.sizes
            pieces.last = upload.pieces.last if pieces.last is None else pieces.last
        else:
            upload.first = None
        upload.meta, upload.done, upload.pieces, upload.loaded = meta, None, pieces, True
        return True

    async def begin(self, upload: Upload, meta: Meta) -> None:
        """Begin it, unless another server has just done that. Its lock is held.

        Raises:
            BridgeError: `at_capacity`, `quota_exceeded` or `store_unavailable`.
        """
        await self._admit(meta.owner)
        self._keys.add(upload.key)
        try:
            upload.meta = await self.shelf.begin(upload.key, meta)
        except BaseException:
            self._keys.discard(upload.key)
            raise
        upload.turns += 1
        upload.done, upload.pieces, upload.first = None, Pieces(touched=time.time()), None
        if upload.meta is not meta:
            await self.refresh(upload)

    def ended(self, upload: Upload, done: Done | None) -> None:
        """It is done, or deleted: there is room for another one."""
        self._keys.discard(upload.key)
        upload.turns += 1
        upload.meta, upload.done, upload.pieces, upload.first = None, done, Pieces(), None

    async def _admit(self, owner: str) -> None:
        async with self._counting:
            if time.monotonic() - self._counted > COUNT_SECONDS:
                self._keys = set(await self.shelf.keys())
                self._counted = time.monotonic()
        if len(self._keys) >= self._max_uploads:
            raise BridgeError(
                "at_capacity", "as many uploads are open as may be; try again later", retry_after=RETRY_SECONDS
            )
        mine = owner_key(owner)
        if sum(key.startswith(mine) for key in self._keys) >= self._owner_uploads:
            raise BridgeError(
                "quota_exceeded",
                "finish or delete one of your uploads before you begin another",
                retry_after=RETRY_SECONDS,
            )

    def _forget_some(self) -> None:
        if len(self._known) <= REMEMBERED:
            return
        idle = [key for key, upload in self._known.items() if not upload.users]
        for key in idle[: len(self._known) - REMEMBERED]:
            del self._known[key]
