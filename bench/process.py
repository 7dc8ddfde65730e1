"""Processes of the bridge that a benchmark starts, and what they cost."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_STOP_SECONDS: Final = 30


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with these settings and no others."""
    return {k: v for k, v in os.environ.items() if not k.startswith("STT_")} | dict(settings)


def announced(name: str, line: str) -> str | None:
    """What a line of the banner says of `name` (`stream`, `endpoint`); None if it speaks of something else."""
    found = re.fullmatch(rf"\s*{name}\s+(\S+)\s*", line)
    return found[1] if found else None


@contextlib.contextmanager
def started(
    command: list[str], name: str, settings: Mapping[str, str], *, module: str = "bridge"
) -> Iterator[tuple[int, str]]:
    """A process of the bridge (of another module), its id, what its banner says of `name`; stopped at the end.

    Raises:
        SystemExit: it did not start; the text has what it said.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *command], env=environment(settings), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None  # noqa: S101 - as asked for above
    said: collections.deque[str] = collections.deque(maxlen=20)
    try:
        for line in process.stderr:
            if address := announced(name, line):
                # Read on, or a server that complains a lot would wait for somebody to do so.
                threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
                yield process.pid, address
                return
            said.append(line)
        process.stderr.close()
        name = command[0] if command else module
        raise SystemExit(f"{name} did not start (exit code {process.wait()})\n{''.join(said)}".rstrip())
    finally:
        stop(process)


def stop(process: subprocess.Popen[Any]) -> None:
    """Have it end in order, and wait for that; kill it where it does not."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_STOP_SECONDS)


def _drain(log: IO[str]) -> None:
    with log:
        while log.read(65_536):
            pass


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all its threads so far, to the nanosecond where the system knows it."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # Linux's clock_getcpuclockid(3), which Python does not show
    except OSError:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_mb(pid: int, which: str = "VmRSS") -> float:
    """Resident memory of a process; `which` VmHWM for its peak."""
    line = next(ln for ln in Path(f"/proc/{pid}/status").read_text().splitlines() if ln.startswith(which))
    return int(line.split()[1]) / 1024


def threads_of(pid: int) -> int:
    """Threads of a process, those that native libraries start included."""
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


def fds_of(pid: int) -> int:
    """Open file descriptors of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def children_of(pid: int) -> list[int]:
    """The processes that it has started and that still run."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
