"""What a status of Google's API means: the one table from gRPC statuses to `BackendError`.

Branches on the gRPC status, never on the HTTP number that `google.api_core` adds: OUT_OF_RANGE and INVALID_ARGUMENT
are both 400 there. Where one status has several meanings, a text tells them apart; the texts are Google's own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import GoogleAuthError, TransportError

from backends.base import BackendError, Fault

MASKED: Final = "Internal error from Core"
"""What grpc.aio reports in place of the true status when a write was under way (grpc issue 36066)."""

_LONGEST: Final = 300
"""Characters of Google's own text that are passed on."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """Whose fault a status is, and whether another stream may do better."""

    code: str
    fault: Fault = Fault.ENGINE
    retryable: bool = True


_MISCONFIGURED: Final = Meaning("misconfigured", Fault.OPERATOR, retryable=False)
_UNAUTHENTICATED: Final = Meaning("unauthenticated", Fault.OPERATOR, retryable=False)
_UNAVAILABLE: Final = Meaning("unavailable")

_BY_STATUS: Final[Mapping[grpc.StatusCode, Meaning]] = {
    grpc.StatusCode.UNAVAILABLE: _UNAVAILABLE,
    grpc.StatusCode.OUT_OF_RANGE: Meaning("aborted"),
    grpc.StatusCode.ABORTED: Meaning("aborted"),
    grpc.StatusCode.INTERNAL: Meaning("internal"),
    grpc.StatusCode.UNKNOWN: Meaning("unknown"),
    grpc.StatusCode.CANCELLED: Meaning("cancelled"),
    grpc.StatusCode.DEADLINE_EXCEEDED: Meaning("deadline"),
    grpc.StatusCode.DATA_LOSS: Meaning("data_loss"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: Meaning("overloaded"),
    grpc.StatusCode.INVALID_ARGUMENT: Meaning("rejected", Fault.CLIENT, retryable=False),
    grpc.StatusCode.PERMISSION_DENIED: Meaning("denied", Fault.OPERATOR, retryable=False),
    grpc.StatusCode.UNAUTHENTICATED: _UNAUTHENTICATED,
    grpc.StatusCode.NOT_FOUND: _MISCONFIGURED,
    grpc.StatusCode.FAILED_PRECONDITION: _MISCONFIGURED,
    grpc.StatusCode.UNIMPLEMENTED: _MISCONFIGURED,
}

_ENDINGS: Final = (grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.ABORTED)
_LANGUAGE: Final = re.compile(
    r"(bad|invalid|unsupported|unknown) language|language\b.*(not supported|invalid)", re.IGNORECASE
)
_RESOURCE: Final = re.compile(r"projects/[^\s'\",]+")
"""Names the operator's project, which is nobody else's business."""
_REFUSAL: Final = (grpc.StatusCode.INVALID_ARGUMENT,)

# The first row whose text is found wins over the status alone.
_BY_TEXT: Final[tuple[tuple[tuple[grpc.StatusCode, ...], re.Pattern[str], Meaning], ...]] = (
    (_ENDINGS, re.compile(r"duration of|max(imum)? .*duration", re.IGNORECASE), Meaning("stream_limit")),
    (
        _ENDINGS,
        re.compile(r"audio timeout|no more client requests|without audio", re.IGNORECASE),
        Meaning("audio_timeout"),
    ),
    (_ENDINGS, re.compile(r"too (fast|slow)|real time", re.IGNORECASE), Meaning("pace")),
    (_REFUSAL, re.compile(r"following locations|resource location", re.IGNORECASE), _MISCONFIGURED),
    # Before the location: "The language … is not supported by the model … in the location named …".
    (_REFUSAL, _LANGUAGE, Meaning("language", Fault.CLIENT, retryable=False)),
    (_REFUSAL, re.compile(r"in the location", re.IGNORECASE), _MISCONFIGURED),
    # gRPC reports whatever the credentials' plugin raised as UNAVAILABLE; these will not go away by themselves.
    (
        (grpc.StatusCode.UNAVAILABLE,),
        re.compile(
            r"metadata from plugin failed.*(invalid_|unauthorized|denied|expired|revoked|disabled|reauth)",
            re.IGNORECASE,
        ),
        _UNAUTHENTICATED,
    ),
)


def translate(error: BaseException) -> BackendError:
    """The `BackendError` for whatever the SDK raised; to be raised `from` it."""
    match error:
        case BackendError():
            return error
        case asyncio.CancelledError():  # of a call that nobody cancelled but its channel
            return BackendError("the connection was closed on this side", code="cancelled", retryable=True)
        case GoogleAPICallError():
            return from_status(error.grpc_status_code or grpc.StatusCode.UNKNOWN, error.message)
        case grpc.RpcError():
            call: Any = error  # every error of a call is a grpc.Call, too; the base class does not say so
            return from_status(call.code() or grpc.StatusCode.UNKNOWN, call.details())
        case GoogleAuthError():
            # A refresh fails for a while (the network, the token server), or for good (the key was revoked).
            passing = error.retryable or isinstance(error, TransportError)
            text = f"the credentials cannot be renewed ({type(error).__name__})"
            return _error(_UNAVAILABLE if passing else _UNAUTHENTICATED, text)
    return BackendError(f"{type(error).__name__} in the client library", code="failed", retryable=True)


def from_status(status: grpc.StatusCode, details: str | None) -> BackendError:
    """The `BackendError` for a status and its text."""
    text = " ".join((details or "").split())
    meaning = _BY_STATUS.get(status, Meaning("failed"))
    for statuses, pattern, special in _BY_TEXT:
        if status in statuses and pattern.search(text):
            meaning = special
            break
    if status is grpc.StatusCode.INTERNAL and text == MASKED:
        return _error(Meaning("unknown_status"), "the stream's status was lost")
    if meaning.fault is Fault.CLIENT:  # shown to the client: Google's sentence says best what to change
        return _error(meaning, _RESOURCE.sub("projects/…", text)[:_LONGEST] or "Google refuses the request")
    return _error(meaning, f"{status.name}: {text[:_LONGEST]}" if text else status.name)


def from_code(number: int, details: str) -> BackendError:
    """The same for a `google.rpc.Status` inside a response: the status as a number."""
    statuses = {status.value[0]: status for status in grpc.StatusCode}
    return from_status(statuses.get(number, grpc.StatusCode.UNKNOWN), details)


def _error(meaning: Meaning, text: str) -> BackendError:
    return BackendError(text, code=meaning.code, fault=meaning.fault, retryable=meaning.retryable)
