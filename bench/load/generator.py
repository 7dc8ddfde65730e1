"""One process of the load generator: plays a plan, says every second on standard output what it saw since, as JSON."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from bench.load.dialects import DIALECTS
from bench.load.plan import FRAME_BYTES, Plan
from bench.load.results import Seen
from bench.load.session import Session
from bench.load.speech import Utterance, clips, on_the_wire, part, said

TICK: Final = 0.002
"""Seconds between looks at who is to send: a timer for each frame would cost more than the frame."""
PATIENCE: Final = 60.0
"""Seconds that a session may take to connect, and then to open and to end beside its audio."""
CONNECTING: Final = 256
"""Connections that are opened at once: as many as any server takes in."""


class Wheel:
    """Calls sessions when it is time for them to send, up to a tick late."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, list[Session]] = {}
        self._turned = int(time.perf_counter() / TICK)
        self._handle: asyncio.TimerHandle | None = None

    def later(self, when: float, session: Session) -> None:
        """Have it send at this time of `time.perf_counter`."""
        slot = max(self._turned + 1, int(when / TICK) + 1)
        self._slots.setdefault(slot, []).append(session)
        if self._handle is None:
            self._handle = self._loop.call_later(TICK, self._turn)

    def _turn(self) -> None:
        self._handle = None
        now = int(time.perf_counter() / TICK)
        while self._turned < now:
            self._turned += 1
            for session in self._slots.pop(self._turned, ()):
                session.send()
        if self._slots and self._handle is None:
            self._handle = self._loop.call_later(TICK, self._turn)


class Generator:
    """Plays the plan. `told` is called with what was seen since the last time."""

    def __init__(self, plan: Plan, told: Callable[[Seen], None]) -> None:
        self._plan = plan
        self._told = told
        self._seen = Seen()
        self._loop = asyncio.get_running_loop()
        self._wheel = Wheel(self._loop)
        self._dialect = DIALECTS[plan.dialect]
        self._clips = clips(Path(plan.audio)) if plan.audio else clips()
        self._frames = [[self._dialect.audio(frame) for frame in clip.frames] for clip in self._clips]
        self._silence = self._dialect.audio(bytes(FRAME_BYTES))
        self._connecting = asyncio.Semaphore(CONNECTING)
        self._cpu = time.process_time()

    async def run(self) -> None:
        """All sessions, to their end: each has its limits, so the run has."""
        plan = self._plan
        telling = self._loop.create_task(self._tell_regularly(), name="tell")
        try:
            async with asyncio.TaskGroup() as group:
                began = self._loop.time()
                for i in range(plan.sessions):
                    await asyncio.sleep(began + plan.ramp * i / plan.sessions - self._loop.time())
                    group.create_task(self._slot(plan.first + i, began), name=f"slot-{i}")
        finally:
            telling.cancel()
            self._tell()

    async def _slot(self, number: int, began: float) -> None:
        """One session, or as many one after the other as there is time for."""
        rng = random.Random(self._plan.seed * 1_000_003 + number)
        until = began + self._plan.lasting
        while True:
            await self._session(rng)
            if self._loop.time() + self._plan.seconds > until:
                return
            await asyncio.sleep(rng.uniform(0, 2 * self._plan.think))

    async def _session(self, rng: random.Random) -> None:
        plan = self._plan
        spoken = part(self._clips, plan.seconds, plan.think, rng)
        frames = on_the_wire(self._silence, self._frames, spoken)
        session = await self._connected(frames, said(self._clips, spoken))
        if session is None:
            return
        await asyncio.wait([session.ended], timeout=plan.hold + plan.seconds + PATIENCE)
        if not session.ended.done():
            session.abort("it did not end in time")
            await session.ended

    async def _connected(self, frames: list[bytes], utterances: list[Utterance]) -> Session | None:
        """A session whose connection is there; None where there is none, which is counted."""
        plan = self._plan
        host, port, _ = plan.address
        try:
            async with asyncio.timeout(PATIENCE), self._connecting:
                session = Session(  # made here: it measures from now on
                    self._dialect(),
                    plan.address,
                    frames,
                    utterances,
                    lambda: self._seen,
                    self._wheel.later,
                    jitter=plan.jitter,
                    hold=plan.hold,
                    key=plan.key,
                )
                await self._loop.create_connection(lambda: session, host, port)
        except TimeoutError:
            reason = "it did not connect in time"
        except OSError as exc:
            reason = os.strerror(exc.errno) if exc.errno else str(exc)  # the loop's own words name the address
        else:
            return session
        self._seen.refused += 1
        self._seen.fail(reason)
        return None

    async def _tell_regularly(self) -> None:
        due = self._loop.time()
        while True:
            due += self._plan.every
            await asyncio.sleep(due - self._loop.time())
            self._tell()

    def _tell(self) -> None:
        seen, self._seen = self._seen, Seen()
        self._seen.open = seen.open
        seen.at = time.monotonic()
        cpu = time.process_time()
        seen.cpu_seconds, self._cpu = cpu - self._cpu, cpu
        self._told(seen)


def main() -> None:
    """Read a plan from standard input, play it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, and it ends this one
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    encoder = msgspec.json.Encoder()

    def told(seen: Seen) -> None:
        sys.stdout.buffer.write(encoder.encode(seen) + b"\n")
        sys.stdout.buffer.flush()

    async def play() -> None:
        generator = Generator(plan, told)
        gc.freeze()  # nothing here makes cycles, and a collection would hold up every session
        gc.disable()
        await generator.run()

    uvloop.run(play())


if __name__ == "__main__":
    main()
