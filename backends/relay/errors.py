"""What the other server's refusals and failures mean here: its codes to `BackendError`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from backends.base import BackendError, Fault
from bridge.client import ClientError, SessionError

_LONGEST: Final = 300
"""Characters of the other server's own text that are passed on."""


@dataclass(frozen=True, slots=True)
class _Meaning:
    code: str
    fault: Fault = Fault.ENGINE
    retryable: bool = True


_AWAY: Final = _Meaning("unavailable")
_LOST: Final = _Meaning("session_lost")
_REJECTED: Final = _Meaning("rejected", Fault.CLIENT, retryable=False)
_USED_UP: Final = _Meaning("overloaded", Fault.CLIENT)  # by this caller: others' sessions are none the worse for it
_ENDED: Final = _Meaning("stream_limit")  # a healthy server ends it so: no failure of its own
_MISCONFIGURED: Final = _Meaning("misconfigured", Fault.OPERATOR, retryable=False)

_MEANINGS: Final[Mapping[str, _Meaning]] = {
    "at_capacity": _Meaning("overloaded"),
    "quota_exceeded": _Meaning("overloaded"),
    "rate_limited": _Meaning("overloaded"),
    "not_ready": _AWAY,
    "shutting_down": _AWAY,
    "log_unavailable": _AWAY,
    "internal": _Meaning("internal"),
    "backend_failed": _Meaning("backend_failed"),
    "backend_stalled": _Meaning("stalled"),
    "backend_misconfigured": _MISCONFIGURED,
    "unsupported_language": _Meaning("language", Fault.CLIENT, retryable=False),
    "backend_rejected": _REJECTED,
    "unauthorized": _Meaning("unauthenticated", Fault.OPERATOR, retryable=False),
    "forbidden": _Meaning("denied", Fault.OPERATOR, retryable=False),
    "forbidden_origin": _Meaning("denied", Fault.OPERATOR, retryable=False),
    "not_found": _MISCONFIGURED,
    # Nobody's fault; what comes is heard in the next session.
    "idle_timeout": _ENDED,
    "session_too_long": _ENDED,
    # The session cannot be gone on with: another one is given what is not final.
    "unknown_session": _LOST,
    "session_expired": _LOST,
    "wrong_token": _LOST,
    "session_taken": _LOST,
    "taken_over": _LOST,
    "deleted": _LOST,
    "sender_gone": _LOST,
    "offset_ahead": _LOST,
    "offset_behind": _LOST,
    "seq_ahead": _LOST,
    "seq_behind": _LOST,
    "slow_receiver": _LOST,
    # What this side sends is not what that side takes.
    "bad_start": _MISCONFIGURED,
    "unsupported_audio": _MISCONFIGURED,
    "bad_message": _MISCONFIGURED,
    "unknown_type": _MISCONFIGURED,
    "bad_order": _MISCONFIGURED,
}


def translate(error: ClientError, *, caller: bool = False) -> BackendError:
    """The `BackendError` for whatever the client library raised; to be raised `from` it.

    `caller`: the key was the caller's own, so that it is theirs to change.
    """
    if not isinstance(error, SessionError):
        return _error(_AWAY, str(error))
    meaning = _MEANINGS.get(error.code) or _Meaning(f"remote_{error.code}"[:40], retryable=error.retryable)
    if caller and meaning.code in ("unauthenticated", "denied"):
        return _error(_REJECTED, f"the server behind this one does not let you in: {error.message}")
    if caller and error.code in ("quota_exceeded", "rate_limited"):
        return _error(_USED_UP, f"the server behind this one lets you do no more now: {error.message}")
    if meaning.fault is Fault.CLIENT:
        return _error(meaning, error.message)
    return _error(meaning, f"the server behind says {error.code}: {error.message}")


def _error(meaning: _Meaning, text: str) -> BackendError:
    return BackendError(text[:_LONGEST], code=meaning.code, fault=meaning.fault, retryable=meaning.retryable)
