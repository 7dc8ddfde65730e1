"""Several backends as one: the first that is well takes a session, and the next one goes on when it fails.

An `EnginePool` holds them in the order of preference, each with a circuit breaker. A session gets a `Seat` for each of
its channels; a seat is a place at one engine, and moves to another when that engine fails. Sessions go back to the
preferred engine when they start, never in mid-sentence.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from backends.base import BackendError, Fault
from bridge.errors import BridgeError
from bridge.session import languages
from bridge.session.breaker import Breaker, BreakerRules, BreakerState, Trial
from bridge.session.engine import Engine, State

log = logging.getLogger(__name__)

NO_FAILURE: Final = ("stream_limit",)
"""Codes with which a healthy backend ends a stream."""
OPENNESS: Final[Mapping[BreakerState, int]] = {"closed": 0, "half_open": 1, "open": 2}


def speaks_against_it(error: BackendError) -> bool:
    """Whether the backend has failed with this, and not the request, nor a stream that is as long as one may be."""
    return error.fault is not Fault.CLIENT and error.code not in NO_FAILURE


class Member:
    """One engine of the pool, and its breaker."""

    def __init__(self, engine: Engine, rules: BreakerRules, clock: Callable[[], float]) -> None:
        self.engine = engine
        self.breaker = Breaker(rules, clock, self._tell)

    def _tell(self, state: BreakerState) -> None:
        level = logging.WARNING if state == "open" else logging.INFO
        log.log(level, "breaker is %s", state, extra={"backend": self.engine.name})

    def streams(self) -> int:
        """How many it carries now."""
        return self.engine.streams

    def openness(self) -> int:
        """The breaker's state as a number: 0 closed, 1 half open, 2 open."""
        return OPENNESS[self.breaker.state]

    def takes(self, language: str) -> bool:
        """Whether it is loaded and takes the language."""
        return self.engine.state == "ready" and languages.takes(self.engine.capabilities, language)


class EnginePool:
    """The engines, the preferred first. `clock`: any steady one, in seconds."""

    def __init__(
        self, *engines: Engine, rules: BreakerRules = BreakerRules(), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rules = rules
        self.clock = clock
        self.members: Sequence[Member] = tuple(Member(engine, rules, clock) for engine in engines)
        self.sample_rate = common_rate(engines)
        for engine in engines:
            engine.sample_rate = self.sample_rate

    @property
    def engines(self) -> Sequence[Engine]:
        """All of them."""
        return tuple(member.engine for member in self.members)

    @property
    def preferred(self) -> Engine:
        """The first of the list, whatever its state."""
        return self.members[0].engine

    @property
    def current(self) -> Engine:
        """Where a new session would go now, if its language and the room there allow it; or whom it has to wait for."""
        if len(self.members) == 1:
            return self.members[0].engine
        usable = [member for member in self.members if member.engine.state != "failed"] or self.members
        if usable[0].engine.state != "ready":
            return usable[0].engine
        ready = [member for member in usable if member.engine.state == "ready"]
        return next((member for member in ready if member.breaker.admits), ready[0]).engine

    @property
    def with_models(self) -> Engine:
        """The first that has models to choose from; the preferred one if none has."""
        return next((engine for engine in self.engines if engine.has_models), self.preferred)

    @property
    def state(self) -> State:
        """`ready` once one is, and no better one still loads."""
        return self.current.state

    @property
    def full(self) -> bool:
        """Whether another session would be refused, whatever its language."""
        return all(engine.full for engine in self._ready)

    @property
    def capacity(self) -> int | None:
        """How many streams all of them carry at once; None if one that is loaded sets no limit."""
        limits = [engine.capacity for engine in self._ready or [self.preferred]]
        return None if None in limits else sum(limit for limit in limits if limit is not None)

    @property
    def progress(self) -> str | None:
        """What loading has come to."""
        return next((engine.progress for engine in self.engines if engine.progress is not None), None)

    @property
    def collectors(self) -> Sequence[Any]:
        """The engines' own metrics."""
        return [collector for engine in self.engines for collector in engine.collectors]

    def serves(self, name: str | None) -> bool:
        """Whether it has an engine of this name that is loaded."""
        return any(engine.name == name for engine in self._ready)

    @property
    def _ready(self) -> list[Engine]:
        return [engine for engine in self.engines if engine.state == "ready"]

    # Their life

    async def load(self) -> None:
        """Load all at once. One that cannot be loaded is left out; sessions may begin when `state` says so.

        Raises:
            BackendError: none can be loaded; this is the preferred one's.
        """
        results = await asyncio.gather(*(self._load(engine) for engine in self.engines))
        if all(results):
            raise next(error for error in results if error is not None)

    async def _load(self, engine: Engine) -> BackendError | None:
        """Load one; returns what went wrong."""
        try:
            await engine.load()
        except BackendError as exc:
            error = exc
        except Exception as exc:
            if len(self.members) == 1:
                raise
            # The contract forbids it, but a plug-in's bug must not cost the others.
            log.exception("backend %s breaks the contract", engine.name)
            error = BackendError(f"{type(exc).__name__} left the backend")
        else:
            return None
        if len(self.members) > 1:
            log.error("backend %s is left out: %s", engine.name, error)
        return error

    async def close(self) -> None:
        """Release all of them. To be called when no session is open."""
        results = await asyncio.gather(*(engine.close() for engine in self.engines), return_exceptions=True)
        for result in results:
            if result is not None:
                raise result

    # Their sessions

    def take_seats(
        self, language: str, count: int = 1, *, backend: str | None = None, spare: float = 0.0
    ) -> Sequence[Seat]:
        """Places for one session of so many channels, all at one engine; each is to be given back.

        A breaker refuses nobody: where all that have room are open, the first of them is taken. `language`: as
        `languages.asked` returned it. `backend`: the one that is wanted; others go on if it fails. `spare`: the share
        of an engine that has to stay free.

        Raises:
            BridgeError: `unknown_backend`, `not_ready`, `unsupported_language` or `at_capacity`.
        """
        member = self._choose(language, count, backend, spare)
        member.engine.take(count)
        return [Seat(self, member, language, spare) for _ in range(count)]

    def _choose(self, language: str, count: int, backend: str | None, spare: float) -> Member:
        wanted = [member for member in self.members if backend in {None, member.engine.name}]
        if not wanted:
            raise BridgeError("unknown_backend")
        ready = {member.engine.name: member for member in wanted if member.engine.state == "ready"}
        if not ready:
            raise BridgeError("not_ready")
        takers = [member for member in ready.values() if member.takes(language)]
        if not takers:
            raise languages.refused(language, {name: member.engine.capabilities for name, member in ready.items()})
        roomy = [member for member in takers if member.engine.refusal(count, spare) is None]
        if not roomy:
            raise BridgeError("at_capacity", takers[0].engine.refusal(count, spare))
        return next((member for member in roomy if member.breaker.admits), roomy[0])


class Seat:
    """One channel's place at an engine. It is moved between two streams, never within one."""

    def __init__(self, pool: EnginePool, member: Member, language: str, spare: float = 0.0) -> None:
        self._pool = pool
        self._member = member
        self._language = language
        self._spare = spare
        # At once: else the sessions that open before this one's first stream would all be the breaker's probe.
        self._trial: Trial | None = member.breaker.begin()
        self._left: dict[Member, float] = {}  # engines that failed this channel, and when
        self._tried: set[Member] = set()  # those that did so since there was progress
        self._hopeless: set[Member] = set()  # those that said that another try is in vain
        self._limited = False  # the last stream was ended for its length, which is no failure
        self._given_back = False

    @property
    def engine(self) -> Engine:
        """Where it is now."""
        return self._member.engine

    def begin(self) -> Trial:
        """A stream begins here; to be told what becomes of it."""
        trial, self._trial = self._trial, None
        return trial or self._member.breaker.begin()

    def failed(self, error: BackendError, *, progress: bool = True) -> Literal["now", "later", "never"]:
        """The engine failed: when is another stream to be opened? `progress`: it had worked since it last failed.

        `now`: the seat was moved to an engine that has not failed this channel lately, nor since there was progress,
        and whose breaker admits it. `later`: there is none, so after a pause; call `move_round` then. `never`: it
        would be in vain.
        """
        if progress:
            self._tried.clear()
        self._limited = error.code in NO_FAILURE
        if not speaks_against_it(error):
            return "later" if error.retryable else "never"
        self._tried.add(self._member)
        now = self._pool.clock()
        self._left[self._member] = now
        if not error.retryable:
            self._hopeless.add(self._member)
        others = self._others()
        for member in others:
            lately = now - self._left.get(member, -math.inf) < self._pool.rules.window_seconds
            if not lately and member not in self._tried and member.breaker.admits:
                self._move(member)
                return "now"
        return "later" if error.retryable or others else "never"

    def move_round(self) -> None:
        """Every engine has failed: have the next try at the one that failed longest ago."""
        candidates = self._others()
        if self._limited or not candidates:
            return
        if self._member not in self._hopeless:
            candidates.append(self._member)
        best = min(candidates, key=lambda m: (not m.breaker.admits, self._left.get(m, -math.inf)))
        if best is not self._member:
            self._move(best)

    def give_back(self) -> None:
        """The channel has ended."""
        if not self._given_back:
            self._given_back = True
            self._leave()

    def _others(self) -> list[Member]:
        """Where it could go: loaded, with room, for its language, and not in vain."""
        return [
            member
            for member in self._pool.members
            if member is not self._member
            and member not in self._hopeless
            and member.takes(self._language)
            and member.engine.refusal(1, self._spare) is None
        ]

    def _move(self, member: Member) -> None:
        member.engine.take(1)
        self._leave()
        self._member = member
        self._trial = member.breaker.begin()

    def _leave(self) -> None:
        if self._trial is not None:
            self._trial.closed()
            self._trial = None
        self.engine.give_back(1)


def common_rate(engines: Sequence[Engine]) -> int:
    """The rate, in Hz, that all of them take, and the first prefers: a session's audio is made once.

    Raises:
        ValueError: there is none; the text names what each takes.
    """
    first, *others = [engine.capabilities.sample_rates for engine in engines]
    for rate in first:
        if all(rate in rates for rates in others):
            return rate
    takes = ", ".join(f"{engine.name}: {' '.join(map(str, engine.capabilities.sample_rates))} Hz" for engine in engines)
    raise ValueError(f"the backends take no sample rate in common ({takes})")
