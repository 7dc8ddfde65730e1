"""What another server's codes mean to a session here."""

from __future__ import annotations

import pytest

from backends.base import BackendError, Fault
from backends.relay.errors import translate
from bridge.client import ConnectError, ConnectionLost, SessionError
from bridge.errors import ERRORS


def refused(code: str, message: str = "No.", *, caller: bool = False) -> BackendError:
    return translate(SessionError(code, message, retryable=ERRORS[code].retryable), caller=caller)


@pytest.mark.parametrize(
    ("code", "meant", "fault", "retryable"),
    [
        ("at_capacity", "overloaded", Fault.ENGINE, True),
        ("quota_exceeded", "overloaded", Fault.ENGINE, True),
        ("not_ready", "unavailable", Fault.ENGINE, True),
        ("shutting_down", "unavailable", Fault.ENGINE, True),
        ("backend_failed", "backend_failed", Fault.ENGINE, True),
        ("backend_stalled", "stalled", Fault.ENGINE, True),
        ("unsupported_language", "language", Fault.CLIENT, False),
        ("backend_rejected", "rejected", Fault.CLIENT, False),
        ("unauthorized", "unauthenticated", Fault.OPERATOR, False),
        ("forbidden", "denied", Fault.OPERATOR, False),
        ("backend_misconfigured", "misconfigured", Fault.OPERATOR, False),
        ("bad_start", "misconfigured", Fault.OPERATOR, False),
        ("idle_timeout", "stream_limit", Fault.ENGINE, True),
        ("session_too_long", "stream_limit", Fault.ENGINE, True),
        ("session_expired", "session_lost", Fault.ENGINE, True),
        ("offset_ahead", "session_lost", Fault.ENGINE, True),
        ("too_many_errors", "remote_too_many_errors", Fault.ENGINE, False),
    ],
)
def test_codes(code: str, meant: str, fault: Fault, retryable: bool) -> None:
    error = refused(code)
    assert (error.code, error.fault, error.retryable) == (meant, fault, retryable)


def test_only_the_client_is_told_in_the_other_servers_words() -> None:
    assert str(refused("unsupported_language", "It knows en.")) == "It knows en."
    assert "not_ready" in str(refused("not_ready"))
    assert len(str(refused("backend_rejected", "x" * 9_999))) <= 300


@pytest.mark.parametrize("code", ["unauthorized", "forbidden"])
def test_a_callers_own_key_is_the_callers_to_change(code: str) -> None:
    error = refused(code, caller=True)
    assert (error.code, error.fault, error.retryable) == ("rejected", Fault.CLIENT, False)


@pytest.mark.parametrize("code", ["quota_exceeded", "rate_limited"])
def test_what_a_caller_has_used_up_is_no_failure_of_the_server(code: str) -> None:
    error = refused(code, "Later.", caller=True)
    assert (error.code, error.fault, error.retryable) == ("overloaded", Fault.CLIENT, True)
    assert "Later." in str(error)


def test_a_code_of_a_newer_server() -> None:
    error = translate(SessionError("moon_phase", "It wanes.", retryable=True))
    assert (error.code, error.fault, error.retryable) == ("remote_moon_phase", Fault.ENGINE, True)


@pytest.mark.parametrize("lost", [ConnectError("nothing listens"), ConnectionLost("it broke off")])
def test_no_server(lost: ConnectError | ConnectionLost) -> None:
    error = translate(lost)
    assert (error.code, error.fault, error.retryable) == ("unavailable", Fault.ENGINE, True)
