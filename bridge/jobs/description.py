"""A job as its owner sees it: what HTTP answers and webhooks send."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from bridge.jobs.models import Job, Notice, decode_segments
from bridge.transcript import to_json


def describe(job: Job, result: bytes | None = None) -> dict[str, Any]:
    """As JSON has it; `result` is its transcript as the store keeps it, where that is to be shown."""
    order = job.order
    return {
        "id": job.id,
        "state": job.state.value,
        "progress": {"percent": job.percent, "audio_seconds": job.seconds, "total_seconds": job.total},
        "created": iso(job.terms.created),
        "started": None if job.started is None else iso(job.started),
        "finished": None if job.finished is None else iso(job.finished),
        "attempts": job.attempt,
        "backend": job.engine,
        "language": job.language or order.options.language,
        "source": {
            "name": order.name,
            "bytes": order.size,
            "sha256": order.sha256,
            "duration": job.seconds if job.percent == 100 else job.total,
        },
        "webhook": None if order.webhook is None else {"state": _told(job), "attempts": job.notices},
        "error": None if job.code is None else {"code": job.code, "message": job.message or ""},
        "result": None if result is None else document(result),
    }


def document(result: bytes) -> Any:
    """The transcript as the format `json` has it. Takes its time for hours of speech."""
    return json.loads(to_json(decode_segments(result)))


def iso(seconds: float) -> str:
    """RFC 3339, in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _told(job: Job) -> str:
    return "waiting" if job.notice is Notice.NONE else job.notice.value
