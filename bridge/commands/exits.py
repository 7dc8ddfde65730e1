"""What a shell learns from the commands: exit codes, and messages on standard error."""

from __future__ import annotations

import enum
import sys
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
