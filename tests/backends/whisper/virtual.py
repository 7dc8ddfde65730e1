"""Virtual time: a loop whose clock jumps to the next timer, and workers that take time on it and no threads."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from backends.base import BackendError
from backends.whisper.workers import Outcome, Workers

T = TypeVar("T")

_spent: list[float] = []


def run(main: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result, at once."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def spend(seconds: float) -> None:
    """Called from work that `VirtualWorkers` does: it takes so long."""
    _spent.append(seconds)


class _Selector(selectors.SelectSelector):
    """Nothing is waited for but timers."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits, and no timer runs"
        self.loop.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Begins at 0 s."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


class VirtualWorkers(Workers[Any, Any]):
    """The work is done at once; its end is told when it would have ended."""

    def __init__(self, name: str, count: int, work: Callable[[Any], Any], **options: Any) -> None:
        super().__init__(name, count, work, **options)
        self.free = count
        self.running: dict[object, Callable[[Outcome[Any]], None]] = {}

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()

    @property
    def idle(self) -> int:
        return 0 if self._closing else self.free

    @property
    def capacity(self) -> int:
        return 0 if self._closing else self._count

    def run(self, task: Any, ended: Callable[[Outcome[Any]], None]) -> None:
        assert self.free > 0
        self.free -= 1
        value, error = None, None
        _spent.clear()
        try:
            value = self._work(task)
        except Exception as exc:  # noqa: BLE001 - as the real ones do
            error = exc
        seconds = sum(_spent)
        token = object()
        self.running[token] = ended
        self._loop.call_later(seconds, self._over, token, Outcome(value, error, seconds))

    def _over(self, token: object, outcome: Outcome[Any]) -> None:
        ended = self.running.pop(token, None)
        if ended is not None:
            self.free += 1
            ended(outcome)

    async def close(self, limit_seconds: float) -> bool:
        self._closing = True
        until = asyncio.get_running_loop().time() + limit_seconds
        while self.running and self._loop.time() < until:
            await asyncio.sleep(0.01)
        left: Mapping[object, Callable[[Outcome[Any]], None]] = dict(self.running)
        for token in left:
            self._over(token, Outcome(None, BackendError("closed", code="unavailable", retryable=True), 0.0))
        return not left
