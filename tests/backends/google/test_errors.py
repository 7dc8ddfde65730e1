"""Every status, and every text that gives one another meaning: the codes of the contract."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.api_core import exceptions as api_exceptions
from google.auth import exceptions as auth_exceptions

from backends.base import BackendError, Fault
from backends.google.errors import MASKED, from_code, from_status, translate

S = grpc.StatusCode
API: Any = api_exceptions  # their constructors have no types
AUTH: Any = auth_exceptions
RETRY = (Fault.ENGINE, True)
CLIENT = (Fault.CLIENT, False)
OPERATOR = (Fault.OPERATOR, False)
PLUGIN = "Getting metadata from plugin failed with error: "


@pytest.mark.parametrize(
    ("status", "text", "code", "fate"),
    [
        (S.UNAVAILABLE, "The service is currently unavailable.", "unavailable", RETRY),
        (S.OUT_OF_RANGE, "Exceeded maximum allowed stream duration of 305 seconds.", "stream_limit", RETRY),
        (S.ABORTED, "Max duration of 5 minutes reached for stream.", "stream_limit", RETRY),
        (
            S.OUT_OF_RANGE,
            "Audio Timeout Error: Long duration elapsed without audio. Audio should be sent close to real time.",
            "audio_timeout",
            RETRY,
        ),
        (S.ABORTED, "Stream timed out after receiving no more client requests.", "audio_timeout", RETRY),
        (
            S.OUT_OF_RANGE,
            "Audio data is being streamed too fast. Please stream audio data approximately at real time.",
            "pace",
            RETRY,
        ),
        (S.ABORTED, "something else", "aborted", RETRY),
        (S.INTERNAL, "Internal error encountered.", "internal", RETRY),
        (S.INTERNAL, MASKED, "unknown_status", RETRY),
        (S.UNKNOWN, "", "unknown", RETRY),
        (S.CANCELLED, "The operation was cancelled.", "cancelled", RETRY),
        (S.DEADLINE_EXCEEDED, "Deadline Exceeded", "deadline", RETRY),
        (S.DATA_LOSS, "lost", "data_loss", RETRY),
        (S.RESOURCE_EXHAUSTED, "Resource has been exhausted (e.g. check quota).", "overloaded", RETRY),
        (S.INVALID_ARGUMENT, "Malordered Data Received. Expected audio_content none was set.", "rejected", CLIENT),
        (S.INVALID_ARGUMENT, 'The language "tlh" is not supported by the model "long".', "language", CLIENT),
        (
            S.INVALID_ARGUMENT,
            "Multiple language recognition is only available in the following locations: eu, global, us.",
            "misconfigured",
            OPERATOR,
        ),
        (
            S.INVALID_ARGUMENT,
            "Expected resource location to be global, but found eu in resource name.",
            "misconfigured",
            OPERATOR,
        ),
        (
            S.INVALID_ARGUMENT,
            'The model "chirp_2" does not exist in the location named "global".',
            "misconfigured",
            OPERATOR,
        ),
        (S.PERMISSION_DENIED, "The caller does not have permission", "denied", OPERATOR),
        (S.UNAUTHENTICATED, "Request had invalid authentication credentials.", "unauthenticated", OPERATOR),
        (S.NOT_FOUND, "Unable to find Recognizer.", "misconfigured", OPERATOR),
        (S.FAILED_PRECONDITION, "disabled", "misconfigured", OPERATOR),
        (S.UNIMPLEMENTED, "Method not found!", "misconfigured", OPERATOR),
        (S.UNAVAILABLE, PLUGIN + "('invalid_grant: Bad Request', {'error': ''})", "unauthenticated", OPERATOR),
        (S.UNAVAILABLE, PLUGIN + "Reauthentication is needed.", "unauthenticated", OPERATOR),
        (S.UNAVAILABLE, PLUGIN + "HTTPSConnectionPool: Max retries exceeded", "unavailable", RETRY),
        (S.ALREADY_EXISTS, "", "failed", RETRY),
    ],
)
def test_statuses(status: grpc.StatusCode, text: str, code: str, fate: tuple[Fault, bool]) -> None:
    error = from_status(status, text)
    assert (error.code, (error.fault, error.retryable)) == (code, fate)
    if error.fault is Fault.CLIENT:
        assert str(error) == text  # the client is shown Google's own sentence


def test_texts_are_cut() -> None:
    assert len(str(from_status(S.INVALID_ARGUMENT, "x" * 5_000))) == 300
    assert len(str(from_status(S.UNAVAILABLE, "x" * 5_000))) < 330


def test_no_text_at_all() -> None:
    assert str(from_status(S.INVALID_ARGUMENT, None)) == "Google refuses the request"
    assert str(from_status(S.UNAVAILABLE, None)) == "UNAVAILABLE"


def test_the_same_http_number_is_not_the_same_status() -> None:
    """OUT_OF_RANGE and INVALID_ARGUMENT are both 400 to api-core."""
    limit = API.OutOfRange("Exceeded maximum allowed stream duration of 305 seconds.")
    refused = API.InvalidArgument("bad config")
    assert limit.code == refused.code
    assert translate(limit).code == "stream_limit"
    assert translate(refused).code == "rejected"


@pytest.mark.parametrize(
    ("raised", "code", "fate"),
    [
        (AUTH.RefreshError("invalid_grant"), "unauthenticated", OPERATOR),
        (AUTH.RefreshError("503", retryable=True), "unavailable", RETRY),
        (AUTH.TransportError("no route"), "unavailable", RETRY),
        (AUTH.DefaultCredentialsError("none"), "unauthenticated", OPERATOR),
        (asyncio.CancelledError(), "cancelled", RETRY),
        (ZeroDivisionError(), "failed", RETRY),
    ],
)
def test_other_exceptions(raised: BaseException, code: str, fate: tuple[Fault, bool]) -> None:
    error = translate(raised)
    assert (error.code, (error.fault, error.retryable)) == (code, fate)


def test_a_backend_error_stays_itself() -> None:
    error = BackendError("x")
    assert translate(error) is error


def test_a_status_inside_of_a_response() -> None:
    assert from_code(8, "quota").code == "overloaded"
    assert from_code(999, "").code == "unknown"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Invalid recognition 'config': bad language code.", "language"),
        ("Invalid language code: xx", "language"),
        ("Unsupported language: xx", "language"),
        ('The language "xx-XX" is not supported by the model "long" in the location named "global".', "language"),
        ("Request contains an invalid argument: unsupported field language_hints", "rejected"),
        ("Only one alternative language code is allowed.", "rejected"),
        ("Recognizer not found for language", "rejected"),
    ],
)
def test_only_what_is_wrong_with_a_language_is_called_so(text: str, code: str) -> None:
    error = from_status(S.INVALID_ARGUMENT, text)
    assert (error.code, (error.fault, error.retryable), str(error)) == (code, CLIENT, text)


def test_a_client_is_not_told_the_name_of_the_project() -> None:
    phrases = "projects/acme-prod-7/locations/eu/phraseSets/vip"
    for quote in ("{}", "'{}'", '"{}"', "{}, {}"):
        error = from_status(S.INVALID_ARGUMENT, f"Bad phrase set {quote.format(phrases, phrases)} in the request")
        assert error.fault is Fault.CLIENT
        assert str(error) == f"Bad phrase set {quote.format('projects/…', 'projects/…')} in the request"
    assert phrases in str(from_status(S.PERMISSION_DENIED, f"Denied on {phrases}"))  # the operator is
