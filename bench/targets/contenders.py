"""All that can be put under the same load, by name: how it is started, and what the load generator speaks to it."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bench.process import children_of, started
from bench.targets.peers import started_peer

MANY: Final = {"STT_MAX_SESSIONS": "20000", "STT_MAX_CONNECTIONS": "20000"}
"""All other settings of the bridge are as they come."""


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs. `pids`: the processes that take audio, its own first."""

    pids: tuple[int, ...]
    url: str


@dataclass(frozen=True, slots=True)
class Contender:
    """`module`: of this project, run with `options`; empty for a peer, which `name` then names."""

    name: str
    dialect: str
    module: str = ""
    options: tuple[str, ...] = ()
    ours: bool = False
    """Whether it is the bridge, which may have several processes."""

    @contextlib.contextmanager
    def started(self, processes: int = 1) -> Iterator[Server]:
        """It, on a free port of the loopback; stopped at the end. Only the bridge takes more than one process.

        Raises:
            PeerUnavailableError: it cannot be installed.
            RuntimeError, TimeoutError, SystemExit: it did not start.
        """
        if not self.module:
            with started_peer(self.name) as (pid, url):
                yield Server((pid,), url)
            return
        options = [*self.options, "--processes", str(processes)] if processes > 1 and self.ours else [*self.options]
        with tempfile.TemporaryDirectory() as state:  # an event log of its own, not the user's
            settings = MANY | {"XDG_STATE_HOME": state}
            with started(options, "stream", settings, module=self.module) as (pid, url):
                yield Server((pid, *(children_of(pid) if processes > 1 else ())), url)


def bridge(backend: str = "scripted", module: str = "bridge", *first: str) -> Contender:
    """The bridge on another backend, or run by another module, which has its own arguments before the bridge's."""
    options = (*first, "serve", "--backend", backend, "--port", "0", "--log-level", "warning")
    return Contender("bridge", "native", module, options, ours=True)


_BRIDGE: Final = bridge()

CONTENDERS: Final = {
    contender.name: contender
    for contender in (
        _BRIDGE,
        Contender("bridge-base64", "native-base64", _BRIDGE.module, _BRIDGE.options, ours=True),
        Contender("bare", "silent", "bench.targets.bare"),
        Contender("bare-base64", "silent-base64", "bench.targets.bare", ("--base64",)),
        Contender("naive", "native", "bench.targets.naive"),
        Contender("whisper-live", "whisper-live"),
        Contender("whisperlivekit", "whisperlivekit"),
        Contender("wyoming", "wyoming"),
    )
}


def chosen(names: str) -> list[Contender]:
    """Those named, by commas: a type of argparse's.

    Raises:
        argparse.ArgumentTypeError: there is no such contender; the message says which there are.
    """
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in CONTENDERS]:
        raise argparse.ArgumentTypeError(f"no contender {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    return [CONTENDERS[name] for name in dict.fromkeys(wanted)]
