"""A chaos run: clients that talk all the time, faults at random moments, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.chaos import faulty, proxy
from bench.chaos.faulty import Command, tell
from bench.chaos.proxy import Proxy
from bench.chaos.recordings import Recording
from bench.chaos.supervisor import HOST, Supervisor
from bench.chaos.talk import Heard, talk
from bench.process import resident_mb

SERVER_KINDS: Final = ("kill", "terminate", "pause")
DOWN_SECONDS: Final = (0.0, 1.5)
"""How long a server that was killed or stopped stays away before it is started again."""
PAUSE_SECONDS: Final = (0.5, 2.0)
FIRST_SECONDS: Final = 2.0
"""The server is left alone for so long after a restart: a machine that dies every second serves nobody."""


@dataclass(frozen=True)
class Plan:
    """What is to break, and how often: mean seconds between two faults of one client, and of the server."""

    faults: int
    seed: int
    client_seconds: float = 5.0
    server_seconds: float = 12.0
    link_kinds: Sequence[str] = proxy.KINDS
    engine_kinds: Sequence[str] = faulty.KINDS
    server_kinds: Sequence[str] = SERVER_KINDS


@dataclass(frozen=True)
class Struck:
    """One fault, and the sessions that it hit."""

    kind: str
    at: float
    sessions: tuple[Heard, ...]


@dataclass
class Client:
    """One after the other, it says what it has to say, through a proxy of its own."""

    proxy: Proxy
    rng: random.Random
    current: Heard | None = None

    @property
    def url(self) -> str:
        """The way through the proxy."""
        return f"ws://{HOST}:{self.proxy.address[1]}/v1/stream"


@dataclass
class Chaos:
    """A run against one server. `references` holds the transcript of each recording."""

    server: Supervisor
    control: Path
    plan: Plan
    recordings: Sequence[Recording]
    references: Mapping[str, str]
    struck: list[Struck] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    memory: float = 0.0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.plan.seed)
        self._enough = asyncio.Event()
        self._clients: list[Client] = []

    async def run(self, clients: int) -> None:
        """Everything, until there were enough faults and every session is over."""
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                rng = random.Random(self._rng.random())
                self._clients.append(
                    Client(await stack.enter_async_context(Proxy.to(HOST, self.server.port, rng)), rng)
                )
            for client in self._clients:
                tasks.create_task(self._talk(client))
                tasks.create_task(self._break_client(client))
            tasks.create_task(self._break_server())
        self.memory = resident_mb(self.server.pid)

    @property
    def resumes(self) -> int:
        """Connections beyond the first of each session."""
        return sum(client.proxy.connections for client in self._clients) - len(self.heard)

    async def _talk(self, client: Client) -> None:
        def opened(heard: Heard) -> None:
            client.current = heard

        while not self._enough.is_set():
            self.heard.append(await talk(client.url, client.rng.choice(self.recordings), opened))
            client.current = None

    # Faults

    async def _break_client(self, client: Client) -> None:
        kinds = [*self.plan.link_kinds, *self.plan.engine_kinds]
        while kinds and await self._pause(client.rng.expovariate(1 / self.plan.client_seconds)):
            if (heard := client.current) is None:
                continue
            kind = client.rng.choice(kinds)
            if kind in self.plan.link_kinds:
                at = await client.proxy.strike(kind)
            else:
                at = time.monotonic()
                if not await tell(self.control, Command(kind, None if kind == "down" else heard.session_id)):
                    continue  # it has no stream just now, or the server is away
            if at is not None:
                self._note(kind, at, self._talking if kind == "down" else [heard])

    async def _break_server(self) -> None:
        kinds = self.plan.server_kinds
        while kinds and await self._pause(FIRST_SECONDS + self._rng.expovariate(1 / self.plan.server_seconds)):
            kind, at, hit = self._rng.choice(kinds), time.monotonic(), self._talking
            if kind == "pause":
                await self.server.pause(self._rng.uniform(*PAUSE_SECONDS))
            else:
                await (self.server.kill() if kind == "kill" else self.server.terminate())
                await asyncio.sleep(self._rng.uniform(*DOWN_SECONDS))
                await self.server.start()
            self._note(kind, at, hit)

    @property
    def _talking(self) -> list[Heard]:
        return [client.current for client in self._clients if client.current is not None]

    async def _pause(self, seconds: float) -> bool:
        """Wait; whether more is to be broken."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._enough.wait(), seconds)
        return not self._enough.is_set()

    def _note(self, kind: str, at: float, sessions: Sequence[Heard]) -> None:
        self.struck.append(Struck(kind, at, tuple(sessions)))
        if len(self.struck) >= self.plan.faults:
            self._enough.set()

    # What came of it

    def differences(self) -> list[str]:
        """What is not as it would be without faults."""
        found = []
        for heard in self.heard:
            faults = [f"{s.kind} at {s.at - heard.began:.2f} s" for s in self.struck if heard in s.sessions]
            found += [
                f"{heard.session_id} ({heard.recording.name}; {', '.join(faults) or 'no fault'}): {sentence}"
                for sentence in heard.differences(self.references[heard.recording.name])
            ]
        return found + [f"the server's log: {line[:2_000]}" for line in self.server.surprises]

    def silences(self) -> dict[str, dict[str, float]]:
        """For each kind of fault, how often it struck and the longest silences that a client saw, in seconds."""
        table: dict[str, dict[str, float]] = {}
        for kind in sorted({s.kind for s in self.struck}):
            strokes = [s for s in self.struck if s.kind == kind]
            seen = [heard.silences(s.at) for s in strokes for heard in s.sessions]
            table[kind] = {"count": len(strokes)} | _table(seen)
        return table


def _table(silences: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The median and the longest, of any message and of lasting ones."""
    every, lasting = [s[0] for s in silences], [s[1] for s in silences]
    if not every:
        return {}
    return {
        "median": round(statistics.median(every), 2),
        "longest": round(max(every), 2),
        "lasting_median": round(statistics.median(lasting), 2),
        "lasting_longest": round(max(lasting), 2),
    }


def undisturbed(heard: Sequence[Heard]) -> dict[str, float]:
    """The silences of sessions without faults, for comparison: speech has pauses."""
    return _table([h.silences(h.began + second) for h in heard for second in range(int(h.recording.seconds))])


async def references(url: str, recordings: Sequence[Recording], at_once: int) -> list[Heard]:
    """Each recording without any fault."""
    gate = asyncio.Semaphore(at_once)

    async def one(recording: Recording) -> Heard:
        async with gate:
            return await talk(url, recording)

    return await asyncio.gather(*(one(r) for r in recordings))


@contextlib.asynccontextmanager
async def serving(engine: str, folder: Path, settings: Mapping[str, str]) -> AsyncGenerator[tuple[Supervisor, Path]]:
    """A server on the engine `faulty` with `engine` inside, and the socket of its commands."""
    control = folder / "control"
    env = {
        **faulty.installed(folder / "plugin"),
        "STT_BACKEND": "faulty",
        "STT_FAULTY_ENGINE": engine,
        "STT_FAULTY_CONTROL": str(control),
        "STT_SCRIPTED_MODE": "markers",
        "STT_STALL_SECONDS": "3",
        **settings,
    }
    async with Supervisor.running(env, folder / "server.log") as server:
        yield server, control


def counted(chaos: Chaos) -> dict[str, Any]:
    """Figures of the run."""
    warnings: Counter[str] = Counter()
    for heard in chaos.heard:
        warnings.update(heard.warnings)
    return {
        "faults": len(chaos.struck),
        "sessions": len(chaos.heard),
        "audio_seconds": round(sum(h.recording.seconds for h in chaos.heard)),
        "finals": sum(len(h.finals) for h in chaos.heard),
        "words": sum(len(h.text.split()) for h in chaos.heard),
        "lasting_messages": sum(len(h.seqs) for h in chaos.heard),
        "resumes": chaos.resumes,
        "server_starts": chaos.server.starts,
        "server_mb": round(chaos.memory, 1),
        "latest_final_seconds": round(max((h.late for h in chaos.heard), default=0.0), 2),
        "warnings": dict(warnings),
    }
