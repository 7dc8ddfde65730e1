"""Copies of remote files on this machine, none of which outlives its process for long.

Each is locked by whoever made it, so that one of a process that was killed can be told from one that is in use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO, Final

PREFIX: Final = "stt-bridge-copy-"


def make_copy() -> IO[bytes]:
    """An empty file, in the folder for temporary files; it goes when it is closed."""
    while True:
        copy = tempfile.NamedTemporaryFile(prefix=PREFIX)  # noqa: SIM115 - its user closes it
        fcntl.flock(copy, fcntl.LOCK_EX)
        if os.fstat(copy.fileno()).st_nlink:
            return copy
        with contextlib.suppress(FileNotFoundError):  # somebody swept it before it was locked
            copy.close()


def sweep_copies() -> int:
    """Delete those of processes that are no more; how many."""
    swept = 0
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, gone, or not ours
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                swept += 1
            finally:
                os.close(handle)
    return swept
