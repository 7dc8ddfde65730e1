"""What an upload's owner is told of it."""

from __future__ import annotations

from typing import Final

from bridge.uploads.models import Done, Meta, Status
from bridge.uploads.registry import Upload

NAMED: Final = 100
"""Missing chunks that are named; `missing_count` says how many there are."""
FIRST: Final = "first_seq"
"""The field that says whether the first chunk is number 0 or 1, where that cannot be seen."""


def of_open(upload: Upload, meta: Meta, keep_seconds: float) -> Status:
    """An upload that has not ended."""
    sizes = upload.pieces.sizes
    absent: list[int] = []
    if meta.kind == "chunks":
        first = upload.first if upload.first is not None else int(meta.fields.get(FIRST) == "1")
        end = upload.pieces.last if upload.pieces.last is not None else max(sizes, default=-1)
        if sum(number <= end for number in sizes) < end + 1 - first:  # some may lie behind the end by mistake
            absent = [number for number in range(first, end + 1) if number not in sizes]
    return Status(
        name=meta.name,
        state="open",
        received=len(sizes),
        size=upload.size,
        expires=max(meta.created, upload.pieces.touched) + keep_seconds,
        missing=tuple(absent[:NAMED]),
        missing_count=len(absent),
        last=upload.pieces.last,
        length=meta.length,
        fields=meta.fields,
    )


def of_done(done: Done, keep_seconds: float) -> Status:
    """One that has."""
    return Status(
        name=done.meta.name,
        state="complete" if done.code is None else "refused",
        received=len(done.pieces),
        size=done.size,
        expires=done.at + keep_seconds,
        last=max(done.pieces, default=None),
        length=done.size if done.code is None else done.meta.length,
        fields=done.meta.fields,
        sha256=done.sha256 or None,
        job=done.job,
        code=done.code,
        message=done.message,
    )
