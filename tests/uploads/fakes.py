"""What the tests of uploads share: an intake that remembers what it was given, and files to send."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from bridge.errors import BridgeError
from bridge.uploads.blobs import BlobStore
from bridge.uploads.desk import UploadDesk
from bridge.uploads.models import Whole

KEEP = 3_600.0


class Memory:
    """A chunk that lies in memory."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)
        self.size = len(data)


class Intake:
    """Takes every file that does not begin with `BAD`, and keeps what it was given."""

    def __init__(self) -> None:
        self.jobs: dict[str, Whole] = {}
        self.taken = 0
        self.checked: list[bytes] = []
        self.needed: set[str] = set()
        self.fault: BridgeError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def check_fields(self, fields: Mapping[str, str]) -> None:
        if fields.get("language") == "bad":
            raise BridgeError("bad_request", "language: bad")

    async def check(self, path: Path, name: str, fields: Mapping[str, str]) -> None:
        data = await asyncio.to_thread(path.read_bytes)
        self.checked.append(data)
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        if data.startswith(b"BAD"):
            raise BridgeError("undecodable_audio", "this is no audio")

    async def take(self, whole: Whole) -> str:
        self.taken += 1
        known = self.jobs.setdefault(whole.job_id, whole)
        assert known == whole
        self.needed.add(whole.blob)
        return whole.job_id

    async def needs(self, blob: str) -> bool:
        return blob in self.needed


@contextlib.asynccontextmanager
async def at_desk(
    blobs: BlobStore,
    intake: Intake,
    *,
    max_bytes: int = 10_000_000,
    max_uploads: int = 100,
    owner_uploads: int = 50,
    keep_seconds: float = KEEP,
) -> AsyncIterator[UploadDesk]:
    """A desk that does not sweep by itself."""
    desk = UploadDesk(
        blobs,
        intake,
        max_bytes=max_bytes,
        max_uploads=max_uploads,
        owner_uploads=owner_uploads,
        keep_seconds=keep_seconds,
    )
    try:
        yield desk
    finally:
        await desk.close()


async def stored(blobs: BlobStore, name: str) -> bytes:
    """All of a blob."""
    found = bytearray()
    await blobs.copy_to(name, found.extend)
    return bytes(found)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
