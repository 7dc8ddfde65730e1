"""Uploads as JSON, for both ways in which they come."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal

from pydantic import BaseModel

from bridge.uploads.models import Status

FIELDS: Final = (
    "language",
    "model",
    "prompt",
    "phrases",
    "encoding",
    "sample_rate",
    "channels",
    "webhook",
    "webhook_result",
    "job",
    "first_seq",
    "filename",
)
"""Options that may come with an upload; what they mean stands with jobs. `job=false`: none is made of it."""


class UploadJob(BaseModel):
    """The job that the file became."""

    id: str
    url: str


class UploadError(BaseModel):
    """Why it was refused."""

    code: str
    message: str


class UploadDescription(BaseModel):
    """How an upload stands. `bytes` and `received` (pieces) are what has come.

    `state`: it is `open`, `complete` (its file has a `sha256`, and mostly a job), or `refused` (it has an `error`).
    `missing` names the first chunks that are not there, below the `last` one or the highest yet, of `missing_count`.
    `length`: of the whole file, as far as known. `expires`: when it is deleted if nothing more comes, or forgotten.
    """

    id: str
    state: Literal["open", "complete", "refused"]
    complete: bool
    received: int
    bytes: int
    missing: list[int]
    missing_count: int
    last: int | None
    length: int | None
    expires: str
    sha256: str | None
    job: UploadJob | None
    error: UploadError | None


class ChunkedDescription(UploadDescription):
    """The same of an upload in chunks. `session_id` is its `id`, `task_id` its job's."""

    session_id: str
    task_id: str | None


EXAMPLE: Final[dict[str, object]] = {
    "id": "talk-1",
    "state": "complete",
    "complete": True,
    "received": 4,
    "bytes": 72_596,
    "missing": [],
    "missing_count": 0,
    "last": 3,
    "length": 72_596,
    "expires": "2026-11-22T16:10:06Z",
    "sha256": "97ca91d7a3c7fe23f0d75d43b8db74ea9a8015ad8be40878db26b2015791984b",
    "job": {"id": "ec79a5576c9c75164ed612f3ccd28729", "url": "/v1/jobs/ec79a5576c9c75164ed612f3ccd28729"},
    "error": None,
}
EXAMPLE_CHUNKED: Final = EXAMPLE | {"session_id": "talk-1", "task_id": "ec79a5576c9c75164ed612f3ccd28729"}


def example(shown: object) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers so."""
    return {200: {"content": {"application/json": {"example": shown}}}}


def job_url(job: str) -> str:
    """Where a job is asked about."""
    return f"/v1/jobs/{job}"


def describe(status: Status) -> UploadDescription:
    """The upload as JSON."""
    return UploadDescription(
        id=status.name,
        state=status.state,
        complete=status.state == "complete",
        received=status.received,
        bytes=status.size,
        missing=list(status.missing),
        missing_count=status.missing_count,
        last=status.last,
        length=status.length,
        expires=datetime.fromtimestamp(status.expires, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        sha256=status.sha256,
        job=None if status.job is None else UploadJob(id=status.job, url=job_url(status.job)),
        error=None if status.code is None else UploadError(code=status.code, message=status.message or ""),
    )


def describe_chunked(status: Status) -> ChunkedDescription:
    """One that came in chunks."""
    return ChunkedDescription(**describe(status).model_dump(), session_id=status.name, task_id=status.job)
