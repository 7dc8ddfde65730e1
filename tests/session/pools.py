"""Engines of any kind by name, for tests of pools."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from backends.base import BackendError, RecognitionConfig, Result
from backends.scripted import (
    Script,
    ScriptedBackend,
    ScriptedFault,
    ScriptedOptions,
    ScriptedThreadsBackend,
)
from bridge.session.engine import Engine
from bridge.session.failover import EnginePool
from bridge.session.limits import SessionLimits
from tests.session.harness import (
    FunctionEngine,
    markers,
)

QUICK = SessionLimits(stall_seconds=0.4, stop_seconds=10, reopen_seconds=2)
NEVER = ScriptedFault(1e9, "end")


class Own:
    """Of a scripted engine: its faults belong to its own streams, whatever others a session opened before."""

    opened = 0

    def _player(self, config: RecognitionConfig) -> Any:
        config = dataclasses.replace(config, attempt=self.opened)
        self.opened += 1
        return super()._player(config)  # type: ignore[misc]


class Scripted(Own, ScriptedBackend):
    """On the event loop."""


class ScriptedThreads(Own, ScriptedThreadsBackend):
    """On a thread."""


def engine(name: str, backend: Any) -> Engine:
    """An engine of this name."""
    made = Engine(backend, threads=4)
    made.name = name
    return made


def scripted(name: str, *faults: ScriptedFault, kind: Any = Scripted) -> Engine:
    """The marker engine, whose streams meet these faults in turn."""
    return engine(name, kind(ScriptedOptions(mode="markers"), Script(faults=faults)))


def function(name: str, body: Any = None, **capabilities: Any) -> Engine:
    """An engine with these capabilities; without a body, it hears markers."""
    return engine(name, FunctionEngine(body or markers().recognize, **capabilities))


def failing(code: str = "unavailable", **how: Any) -> Any:
    """The body of an engine that fails at once."""

    async def body(_: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _chunk in audio:
            raise BackendError("it is down", code=code, **{"retryable": True, **how})
        yield Result("", True, 0, 0)

    return body


async def loaded(*engines: Engine, **pool: Any) -> EnginePool:
    """The pool of these, ready."""
    made = EnginePool(*engines, **pool)
    await made.load()
    return made
