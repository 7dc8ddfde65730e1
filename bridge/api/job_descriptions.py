"""Jobs as the API's document describes them; `bridge.jobs.description` makes what is answered."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel

Text = str | None


class JobProgress(BaseModel):
    """How far it is; `percent` and `total_seconds` are null where the length of the audio is not known yet."""

    percent: float | None
    audio_seconds: float
    total_seconds: float | None


class JobSource(BaseModel):
    """The file: as its owner calls it, and its length in bytes and in seconds."""

    name: str
    bytes: int
    sha256: str
    duration: float | None


class JobWebhook(BaseModel):
    """Whether the webhook has been delivered, and how often that was tried."""

    state: Literal["waiting", "pending", "delivered", "given_up"]
    attempts: int


class JobError(BaseModel):
    """Why the job failed."""

    code: str
    message: str


class JobDescription(BaseModel):
    """How a job stands. `attempts`: how often it was begun. `result`: the transcript, once it has succeeded."""

    id: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    progress: JobProgress
    created: str
    started: str | None
    finished: str | None
    attempts: int
    backend: str | None
    language: str | None
    source: JobSource
    webhook: JobWebhook | None
    error: JobError | None
    result: dict[str, Any] | None


class JobPage(BaseModel):
    """Some jobs, the newest first, without their results. `next`: give it as `after` for those behind them."""

    jobs: list[JobDescription]
    next: str | None


EXAMPLE: Final[dict[str, Any]] = {
    "id": "5f0c6f0de2a9446c8f6c1f3f6a1f3b52",
    "state": "running",
    "progress": {"percent": 41.5, "audio_seconds": 1494.0, "total_seconds": 3600.0},
    "created": "2026-11-21T15:00:00.000Z",
    "started": "2026-11-21T15:00:00.210Z",
    "finished": None,
    "attempts": 1,
    "backend": "pocketsphinx",
    "language": "en-US",
    "source": {
        "name": "talk.mp3",
        "bytes": 28_800_000,
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "duration": 3600.0,
    },
    "webhook": None,
    "error": None,
    "result": None,
}
DONE: Final[dict[str, Any]] = EXAMPLE | {
    "state": "succeeded",
    "progress": {"percent": 100.0, "audio_seconds": 3600.0, "total_seconds": 3600.0},
    "finished": "2026-11-21T15:06:12.040Z",
    "result": {"text": "hello", "segments": [{"text": "hello", "start": 0.0, "end": 1.2, "words": []}]},
}

OPTIONS: Final[dict[str, Any]] = {
    "upload": {"type": "string", "description": "A completed upload's name, instead of `file`."},
    "language": {"type": "string", "description": "BCP 47 tag, or `auto`; unset: the server's default."},
    "model": {"type": "string", "description": "A name that `/v1/models` lists; unset: the server's default."},
    "phrases": {"type": "string", "description": "Likely phrases, separated by commas or lines."},
    "prompt": {"type": "string", "description": "Another name for `phrases`."},
    "encoding": {"type": "string", "description": "Of raw samples, as for `/v1/stream`."},
    "sample_rate": {"type": "string", "description": "Of raw samples, in Hz."},
    "channels": {"type": "string", "description": "Of raw samples."},
    "webhook": {"type": "string", "description": "A URL that is told, signed, when the job has ended."},
    "webhook_result": {"type": "string", "description": "`true`: that message holds the transcript."},
}
_FORM: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary"}, **OPTIONS},
}
_JSON: Final[dict[str, Any]] = {"type": "object", "properties": OPTIONS, "required": ["upload"]}
BODY: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": _FORM},
        "application/json": {"schema": _JSON, "example": {"upload": "my-upload", "language": "en-US"}},
    },
}
KEY: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "The same key again (of the same caller) means the same job: a request may be repeated safely.",
}
