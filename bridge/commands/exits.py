"""What a shell learns from the commands: exit codes, and messages on standard error."""

from __future__ import annotations

import asyncio
import enum
import sys
from collections.abc import Callable
from typing import Final


class Exit(enum.IntEnum):
    """Exit codes of the client commands."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_CONNECTION = 3
    UNREADABLE = 4
    INTERRUPTED = 130
    """128 + SIGINT, as shells say it."""
    BROKEN_PIPE = 141
    """128 + SIGPIPE: whoever read our output has gone."""


_MEANINGS: Final = {
    Exit.OK: "success",
    Exit.FAILED: "the recognition failed, or the connection was lost",
    Exit.USAGE: "wrong usage or settings",
    Exit.NO_CONNECTION: "cannot connect to the server",
    Exit.UNREADABLE: "the audio cannot be read",
    Exit.INTERRUPTED: "interrupted",
}


def epilog(*codes: Exit) -> str:
    """The lines of a command's help that describe these exit codes."""
    return "\n".join(["exit codes:", *(f"  {code.value:<4}{_MEANINGS[code]}" for code in codes)])


def complain(sentence: object) -> None:
    """Say on standard error what went wrong."""
    sys.stderr.write(f"stt-bridge: {sentence}\n")
    sys.stderr.flush()


def exit_code(work: Callable[[], None]) -> Exit:
    """Do a command's work; the exit code for how it ended, with a sentence about what a user can act on.

    What is none of the project's own exceptions passes: it is a mistake of the code.
    """
    try:
        work()
    except asyncio.CancelledError:
        return Exit.INTERRUPTED
    except Exception as exc:
        code = _code_for(exc)
        if code is None:
            raise
        complain(exc)
        return code
    return Exit.OK


def _code_for(exc: Exception) -> Exit | None:
    # Imported only after a failure: a command waits for no package that it does not use.
    from backends.base import BackendError
    from bridge.audio.files import AudioFileError
    from bridge.client import ClientError, ConnectError
    from bridge.errors import BridgeError
    from bridge.settings import SettingsError

    match exc:
        case BridgeError() | SettingsError():
            return Exit.USAGE
        case AudioFileError():
            return Exit.UNREADABLE
        case ConnectError():
            return Exit.NO_CONNECTION
        case BackendError() | ClientError():
            return Exit.FAILED
        case _:
            return None
