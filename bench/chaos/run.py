"""A chaos run: clients that talk all the time, faults at random moments, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bench.chaos import faulty, proxy
from bench.chaos.faulty import Command
from bench.chaos.nodes import Nodes
from bench.chaos.proxy import Proxy
from bench.chaos.recordings import Recording
from bench.chaos.supervisor import HOST, Supervisor
from bench.chaos.talk import Heard, listen, talk
from bench.process import resident_mb

SERVER_KINDS: Final = ("kill", "terminate", "pause")
REDIS_KINDS: Final = ("redis_stop", "redis_kill", "redis_pause")
AWAY: Final = "the event log is away"
"""What a server may say of it."""
REDIS_SECONDS: Final = (0.5, 10.0)
DOWN_SECONDS: Final = (0.0, 1.5)
"""How long a server that was killed or stopped stays away before it is started again."""
LISTENERS: Final = 0.2
"""Share of broken connections that are receivers'."""
ALONE_SECONDS: Final = 6.0
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


class Deck:
    """Kinds in random order, each as often as the others."""

    def __init__(self, kinds: Sequence[str], rng: random.Random) -> None:
        self._kinds = tuple(kinds)
        self._rng = rng
        self._left: list[str] = []

    def draw(self) -> str:
        """The next one."""
        if not self._left:
            self._left = self._rng.sample(self._kinds, len(self._kinds))
        return self._left.pop()


@dataclass
class Client:
    """One after the other, it says what it has to say, through a proxy of its own."""

    proxy: Proxy
    listening: Proxy
    """The way of those who listen to it."""
    rng: random.Random
    current: Heard | None = None


def _url(port: int) -> str:
    return f"ws://{HOST}:{port}/v1/stream"


@dataclass
class Chaos:
    """A run against all servers. `references` holds the transcript of each recording."""

    nodes: Nodes
    plan: Plan
    recordings: Sequence[Recording]
    references: Mapping[str, str]
    struck: list[Struck] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    """What senders were told,"""
    followed: list[Heard] = field(default_factory=list)
    """and what receivers of the same sessions were."""
    memory: float = 0.0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.plan.seed)
        self._enough = asyncio.Event()
        self._clients: list[Client] = []
        self._deck = Deck([*self.plan.link_kinds, *self.plan.engine_kinds], self._rng)

    async def run(self, clients: int) -> None:
        """Everything, until there were enough faults and every session is over."""
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                rng = random.Random(self._rng.random())
                way, back = [await stack.enter_async_context(Proxy.to(HOST, self.nodes.ports, rng)) for _ in range(2)]
                self._clients.append(Client(way, back, rng))
            for client in self._clients:
                tasks.create_task(self._talk(client))
                tasks.create_task(self._break_client(client))
            tasks.create_task(self._break_server())
        self.memory = max(resident_mb(node.server.pid) for node in self.nodes.all)

    @property
    def resumes(self) -> int:
        """Connections beyond the first of each session."""
        return sum(client.proxy.connections for client in self._clients) - len(self.heard)

    async def _talk(self, client: Client) -> None:
        async with asyncio.TaskGroup() as listeners:
            while not self._enough.is_set():
                listening: list[asyncio.Task[Heard]] = []

                def opened(heard: Heard, tasks: list[asyncio.Task[Heard]] = listening) -> None:
                    client.current = heard
                    tasks.append(listeners.create_task(listen(_url(client.listening.address[1]), heard)))

                url = _url(client.proxy.address[1])
                self.heard.append(await talk(url, client.rng.choice(self.recordings), opened))
                client.current = None
                self.followed += [await task for task in listening]

    # Faults

    async def _break_client(self, client: Client) -> None:
        kinds = [*self.plan.link_kinds, *self.plan.engine_kinds]
        while kinds and await self._pause(client.rng.expovariate(1 / self.plan.client_seconds)):
            if (heard := client.current) is None:
                continue
            kind = self._deck.draw()
            if kind in self.plan.link_kinds and client.rng.random() < LISTENERS:
                at = await client.listening.strike(kind)
                kind, heard = f"receiver_{kind}", None
            elif kind in self.plan.link_kinds:
                at = await client.proxy.strike(kind)
            else:
                at = time.monotonic()
                if not await self.nodes.tell(Command(kind, None if kind == "down" else heard.session_id)):
                    continue  # it has no stream just now, or the server is away
            if at is not None:
                self._note(kind, at, self._talking if kind == "down" else [heard] if heard else [])

    async def _break_server(self) -> None:
        deck = Deck([*self.plan.server_kinds, *(REDIS_KINDS if self.nodes.redis else ())], self._rng)
        while self.plan.server_kinds and await self._pause(
            FIRST_SECONDS + self._rng.expovariate(1 / self.plan.server_seconds)
        ):
            kind, at, hit = deck.draw(), time.monotonic(), self._talking
            if kind in REDIS_KINDS:
                await self._break_redis(kind)
            else:
                await self._break_node(kind, self._rng.choice(self.nodes.all).server)
            self._note(kind, at, hit)

    async def _break_node(self, kind: str, server: Supervisor) -> None:
        if kind == "pause":
            await server.pause(self._rng.uniform(*PAUSE_SECONDS))
            return
        await (server.kill() if kind == "kill" else server.terminate())
        await asyncio.sleep(self._rng.uniform(*DOWN_SECONDS))
        await server.start()

    async def _break_redis(self, kind: str) -> None:
        redis = self.nodes.redis
        if redis is None:
            raise RuntimeError("no Redis")
        seconds = self._rng.uniform(*REDIS_SECONDS)
        if kind == "redis_pause":
            await redis.pause(seconds)
            return
        await redis.stop(signal.SIGKILL if kind == "redis_kill" else signal.SIGTERM)
        await asyncio.sleep(seconds)
        await redis.start()

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
        for heard in [*self.heard, *self.followed]:
            found += [
                f"{self._described(heard)}: {sentence}"
                for sentence in heard.differences(self.references[heard.recording.name])
            ]
        lines = [line for line in self.nodes.surprises if self.nodes.redis is None or AWAY not in line]
        return found + [f"a server's log: {line[:2_000]}" for line in lines]

    def worst(self, count: int = 3) -> list[str]:
        """The longest times that senders' clients heard nothing, and what had struck them."""
        gaps = [(b - a, a, heard) for heard in self.heard for a, b in itertools.pairwise([heard.began, *heard.told])]
        return [
            f"{gap:.2f} s from {a - heard.began:.2f} s on of {self._described(heard)}"
            for gap, a, heard in sorted(gaps, key=lambda g: -g[0])[:count]
        ]

    def _described(self, heard: Heard) -> str:
        faults = [f"{s.kind} at {s.at - heard.began:.2f} s" for s in self.struck if heard in s.sessions]
        who = "" if heard in self.heard else "a receiver of "
        seconds = f"{heard.recording.seconds:.1f} s"
        return f"{who}{heard.session_id} ({heard.recording.name}, {seconds}; {', '.join(faults) or 'no fault'})"

    def silences(self) -> dict[str, dict[str, float]]:
        """For each kind of fault, how often it struck and the longest silences that a client saw, in seconds.

        Of faults that came alone to a session (`alone` times): in the middle of another outage they would be told apart
        by nobody.
        """
        table: dict[str, dict[str, float]] = {}
        for kind in sorted({s.kind for s in self.struck}):
            strokes = [s for s in self.struck if s.kind == kind]
            seen = [heard.silences(s.at) for s in strokes for heard in s.sessions if self._alone(s, heard)]
            table[kind] = {"count": len(strokes), "alone": len(seen)} | (_table(seen) if seen else {})
        return table

    def _alone(self, stroke: Struck, heard: Heard) -> bool:
        """Whether nothing else struck the session for a while before and after."""
        others = (s for s in self.struck if s is not stroke and heard in s.sessions)
        return all(abs(s.at - stroke.at) > ALONE_SECONDS for s in others)


def _table(silences: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The median and the longest, of any message and of lasting ones."""
    every, lasting = [s[0] for s in silences], [s[1] for s in silences]
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


def counted(chaos: Chaos) -> dict[str, Any]:
    """Figures of the run."""
    warnings: Counter[str] = Counter()
    for heard in chaos.heard:
        warnings.update(heard.warnings)
    return {
        "faults": len(chaos.struck),
        "sessions": len(chaos.heard),
        "receivers": len(chaos.followed),
        "audio_seconds": round(sum(h.recording.seconds for h in chaos.heard)),
        "finals": sum(len(h.finals) for h in chaos.heard),
        "words": sum(len(h.text.split()) for h in chaos.heard),
        "lasting_messages": sum(len(h.seqs) for h in chaos.heard),
        "resumes": chaos.resumes,
        "server_starts": sum(node.server.starts for node in chaos.nodes.all),
        "server_mb": round(chaos.memory, 1),
        "latest_final_seconds": round(max((h.late for h in chaos.heard), default=0.0), 2),
        "warnings": dict(warnings),
    }
