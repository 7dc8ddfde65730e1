"""Errors as OpenAI's clients read them, on the routes that are OpenAI's."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from bridge.api.refusals import EVERYWHERE
from bridge.errors import ERRORS, BridgeError

PATHS: Final = ("/v1/audio/transcriptions", "/v1/models")

_CODES: Final = {
    "unauthorized": "invalid_api_key",
    "unknown_backend": "model_not_found",
    "rate_limited": "rate_limit_exceeded",
    "quota_exceeded": "insufficient_quota",
    "bad_request": "invalid_value",
}
"""OpenAI's word for a code, where it has one."""
_PARAMS: Final = {
    "unknown_backend": "model",
    "unsupported_language": "language",
    "unsupported_audio": "file",
    "undecodable_audio": "file",
    "audio_too_long": "file",
    "too_large": "file",
}
_STATUSES: Final = {415: 400, 422: 400}
"""OpenAI says 400 of a file that cannot be read."""


class OpenAIError(BaseModel):
    """What went wrong. `param` is the field that it is about, if it is about one."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorBody(BaseModel):
    """The body of every answer of these routes that is an error."""

    error: OpenAIError


class BadFieldError(BridgeError):
    """A field of a request is wrong, and the client is told which one."""

    def __init__(self, param: str, message: str, code: str = "bad_request") -> None:
        super().__init__(code, message)
        self.param = param


def speaks_openai(path: str) -> bool:
    """Whether the errors of this path are in OpenAI's shape."""
    return path in PATHS or path.startswith("/v1/models/")


def openai_error(error: BridgeError) -> tuple[int, dict[str, Any]]:
    """Status and body."""
    param = getattr(error, "param", None) or _PARAMS.get(error.code)
    status = _STATUSES.get(error.row.status, error.row.status)
    return status, openai_body(status, str(error), _CODES.get(error.code, error.code), param)


def openai_body(status: int, message: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def openai_refusals(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may refuse so, or with what any route may answer: with an example for each."""
    statuses: dict[int | str, dict[str, Any]] = {}
    for code in (*EVERYWHERE, *codes):
        error = BridgeError(code)
        status, body = openai_error(error)
        entry = statuses.setdefault(status, {"model": OpenAIErrorBody, "description": "", "content": {}})
        meaning = f"`{body['error']['code']}`: {ERRORS[code].meaning}"
        if meaning not in entry["description"]:
            entry["description"] = f"{entry['description']} {meaning}".strip()
        examples = entry["content"].setdefault("application/json", {}).setdefault("examples", {})
        examples[body["error"]["code"]] = {"value": body}
    return statuses
