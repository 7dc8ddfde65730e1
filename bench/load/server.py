"""A server of this project for one run, and what it costs, its children included. Linux tells; others do not."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.load.plan import Plan
from bench.process import children_of, cpu_seconds, resident_mb, started
from bridge.settings import PREFIX, Settings, environment

KEPT: Final = ("backend", "denoise", "gate", "language", "threads", "vad")
"""Settings of the user's that hold for such a server, beside those of engines: not how the real one is reached."""
SERVE: Final = ["serve", "--host", "127.0.0.1", "--port", "0", "--log-level", "error"]
CLIENT_KEY: Final = "STT_API_KEY"
SPARE: Final = 16
"""Sessions more than are played: an old one may be there while a new one comes."""


def settings(sessions: int, hold: float, seconds: float, backend: str | None) -> dict[str, str]:
    """The variables for a server that is to carry so many sessions.

    Raises:
        SettingsError: the user's are wrong.
    """
    given = environment()
    kept = {PREFIX + name.upper() for name in KEPT}
    own = {PREFIX + name.upper() for name in Settings.model_fields}
    # What is to be as it comes is given as empty: that wins over `.env`, which the server reads, too.
    variables = {n: "" if n in own - kept else v for n, v in given.items() if n.startswith(PREFIX) and n != CLIENT_KEY}
    defaults = Settings.load({}, None)
    variables |= {
        "STT_MAX_SESSIONS": str(max(defaults.max_sessions, sessions + SPARE)),
        "STT_MAX_CONNECTIONS": str(max(defaults.max_connections, 2 * sessions)),
        "STT_IDLE_SECONDS": f"{max(defaults.idle_seconds, hold + 10):g}",
        "STT_MAX_SESSION_SECONDS": f"{max(defaults.max_session_seconds, hold + seconds + 60):g}",
    }
    if backend:
        variables["STT_BACKEND"] = backend
    Settings.load({n: v for n, v in variables.items() if v}, None)
    return variables


@contextlib.contextmanager
def serving(variables: dict[str, str]) -> Iterator[tuple[int, str]]:
    """A server that keeps nothing: its process and the address of its stream."""
    with tempfile.TemporaryDirectory() as state, started(SERVE, "stream", variables | {"XDG_STATE_HOME": state}) as it:
        yield it


def warm_up(plan: Plan) -> Plan:
    """One short session: what a server loads with its first is no cost of sessions."""
    return msgspec.structs.replace(plan, sessions=1, seconds=1.0, ramp=0.0, hold=0.0, lasting=0.0)


class Cost:
    """What a process and its children take from now on. `look` is to be called now and then: memory has no history."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._cpu = self._cpu_seconds()
        self._before = self._most = self._megabytes()

    @classmethod
    def of(cls, pid: int) -> Cost | None:
        """None where the system does not tell."""
        return cls(pid) if Path(f"/proc/{pid}/stat").exists() else None

    def look(self) -> None:
        """See how much memory it takes now."""
        self._most = max(self._most, self._megabytes())

    def told(self, frames: int, sessions: int) -> dict[str, Any]:
        """The figures, for so many frames and so many sessions that were open at once."""
        self.look()
        cpu = self._cpu_seconds() - self._cpu
        return {
            "cpu_seconds": round(cpu, 2),
            "cpu_us_per_frame": round(1e6 * cpu / frames, 1) if frames else None,
            "peak_mb": round(self._most, 1),
            "kb_per_session": round(1_024 * (self._most - self._before) / sessions, 1) if sessions else None,
        }

    def _cpu_seconds(self) -> float:
        return sum(_of_one(_cpu_seconds, pid) for pid in _tree(self._pid))

    def _megabytes(self) -> float:
        """Resident memory of the process, and what its children do not share."""
        _, *children = _tree(self._pid)
        return _of_one(resident_mb, self._pid) + sum(_of_one(_proportional_mb, pid) for pid in children)


def _tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        for child in children_of(pid):
            found += _tree(child)
    return found


def _of_one(figure: Callable[[int], float], pid: int) -> float:
    try:
        return figure(pid)
    except (FileNotFoundError, ProcessLookupError, StopIteration):  # it has just ended
        return 0.0


def _cpu_seconds(pid: int) -> float:
    """With what its children took that have ended (and were waited for)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return cpu_seconds(pid) + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def _proportional_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1_024
