"""How streams end: gRPC statuses with the texts that Google's servers send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import grpc

Code = grpc.StatusCode


@dataclass(frozen=True, slots=True)
class Status:
    """A gRPC status with its text."""

    code: grpc.StatusCode
    text: str = ""


class StreamEnded(Exception):  # noqa: N818 - the end of a stream; of good ones, too
    """Raised inside of a stream to end it with `status`."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"{status.code.name}: {status.text}")
        self.status = status


MALORDERED: Final = Status(
    Code.INVALID_ARGUMENT,
    "Malordered Data Received. Expected audio_content none was set. Send exactly one config, followed by audio data.",
)
TOO_FAST: Final = Status(
    Code.OUT_OF_RANGE,
    "Audio data is being streamed too fast/slow. Please stream audio data approximately at real time.",
)
EXHAUSTED: Final = Status(Code.RESOURCE_EXHAUSTED, "Resource has been exhausted (e.g. check quota).")
UNAUTHENTICATED: Final = Status(Code.UNAUTHENTICATED, "Request had invalid authentication credentials.")
UNAVAILABLE: Final = Status(Code.UNAVAILABLE, "The service is currently unavailable.")
CANCELLED: Final = Status(Code.CANCELLED, "The operation was cancelled.")
INTERNAL: Final = Status(Code.INTERNAL, "Internal error encountered.")

USUAL_TEXTS: Final = {
    status.code: status.text
    for status in (MALORDERED, TOO_FAST, EXHAUSTED, UNAUTHENTICATED, UNAVAILABLE, CANCELLED, INTERNAL)
} | {
    Code.OK: "",
    Code.UNKNOWN: "Unknown Error.",
    Code.DEADLINE_EXCEEDED: "Deadline Exceeded",
    Code.NOT_FOUND: "Requested entity was not found.",
    Code.ALREADY_EXISTS: "Requested entity already exists",
    Code.FAILED_PRECONDITION: "Precondition check failed.",
    Code.ABORTED: "The operation was aborted.",
    Code.UNIMPLEMENTED: "Operation is not implemented, or supported, or enabled.",
    Code.DATA_LOSS: "Unrecoverable data loss or corruption.",
}
"""What a status says where neither the API nor the operator has another text."""


def invalid(text: str) -> Status:
    """A request that is wrong in itself."""
    return Status(Code.INVALID_ARGUMENT, text)


def chunk_too_large(limit: int, size: int) -> Status:
    """A message with more audio than allowed; sizes in bytes. The doubled article is Google's."""
    return invalid(f"Audio chunk can be of a a maximum of {limit} bytes. Received audio of {size} bytes instead.")
