"""What keeps a session from ending well. The texts are sentences for people.

ClientError
  ConnectError      no session came about: no server, no WebSocket, no answer in time
  ConnectionLost    the session broke off without `closed`, and could not be resumed
  SessionError      the server says so, with a code of `bridge.errors`: a refusal or a session that failed
"""

from __future__ import annotations

from bridge.errors import ERRORS
from bridge.protocols.native import ClosedMessage, ErrorMessage


class ClientError(Exception):
    """What keeps a session from ending well; the text is a sentence for people."""


class ConnectError(ClientError):
    """No session came about."""


class ConnectionLost(ClientError):  # noqa: N818 - it says what happened
    """The connection ended before the server had said `closed`."""


class ProtocolFault(ConnectionLost):
    """The connection was given up because what the server sent on it cannot be relied on."""


class SessionError(ClientError):
    """The server's own word: it refused the session or ended it with an error.

    `retryable` says that the same request may succeed later.
    """

    def __init__(self, code: str, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


def is_retryable(code: str, *, unknown: bool = False) -> bool:
    """Whether the same request may succeed later; `unknown` is the answer for a code of a newer server."""
    row = ERRORS.get(code)
    return unknown if row is None else row.retryable


def ended(closed: ClosedMessage, error: ErrorMessage | None) -> SessionError:
    """Why a session ended: by its last message, in the words of its fatal error if there was one."""
    if error is not None:
        return SessionError(closed.code, error.message, retryable=error.retryable)
    row = ERRORS.get(closed.code)
    meaning = row.meaning if row else "The server ended the session."
    return SessionError(closed.code, meaning, retryable=is_retryable(closed.code))
