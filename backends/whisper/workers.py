"""Threads that do blocking work for the event loop, and are missed when they die or hang.

Not an executor: an executor's thread that dies takes its task with it, unseen, and one that hangs keeps its place for
good. Here the loop knows what each thread was given. All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from backends.base import BackendError

log = logging.getLogger(__name__)

MOST_ABANDONED: Final = 3
"""Threads that hang and have a successor; each holds what it was given, and a place in the model perhaps."""
LOOK_SECONDS: Final = 1.0
"""How often the loop looks after the threads that are busy, at least."""
REHIRE_SECONDS: Final = 1.0
"""How long after a thread could not be started the next try is made."""

Task = TypeVar("Task")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Answer]):
    """How a task ended: with a value or an error, after so many seconds of work."""

    value: Answer | None
    error: Exception | None
    seconds: float


class _Run(Generic[Task, Answer]):
    """A task in hand, until it is answered."""

    __slots__ = ("begun", "ended", "given", "moved", "task")

    def __init__(self, task: Task, ended: Callable[[Outcome[Answer]], None]) -> None:
        self.task = task
        self.ended = ended
        self.given = time.monotonic()
        self.begun = False  # set by the thread: the work may have had effects
        self.moved = False  # to another thread, once


class _Worker(Generic[Task, Answer]):
    """A thread, its inbox (None: end), and what it has in hand."""

    __slots__ = ("inbox", "run", "thread")

    def __init__(self, name: str, work: Callable[[_Worker[Task, Answer]], None]) -> None:
        self.inbox: queue.SimpleQueue[_Run[Task, Answer] | None] = queue.SimpleQueue()
        self.run: _Run[Task, Answer] | None = None
        self.thread = threading.Thread(target=work, args=(self,), name=name, daemon=True)


class Workers(Generic[Task, Answer]):
    """`count` daemon threads that call `work`, which blocks; at most one task each.

    A thread that dies, in whatever way, fails its task with `worker_died` and is replaced; one that has not come back
    after `limit_seconds` fails it with `stalled`, is abandoned and replaced, as long as not too many are. Both are
    retryable. `changed` is called when there may be more or fewer threads, `died` at each death.
    """

    def __init__(
        self,
        name: str,
        count: int,
        work: Callable[[Task], Answer],
        *,
        limit_seconds: float,
        changed: Callable[[], None] = lambda: None,
        died: Callable[[], None] = lambda: None,
    ) -> None:
        self._name = name
        self._count = count
        self._work = work
        self._limit = limit_seconds
        self._changed = changed
        self._died = died
        self._loop: asyncio.AbstractEventLoop
        self._all: set[_Worker[Task, Answer]] = set()  # those that count: neither dead nor abandoned
        self._idle: list[_Worker[Task, Answer]] = []
        self._abandoned: set[_Worker[Task, Answer]] = set()
        self._hired = 0
        self._look: asyncio.TimerHandle | None = None
        self._rehire: asyncio.TimerHandle | None = None
        self._closing = False
        self._gone = asyncio.Event()

    def start(self) -> None:
        """Start the threads.

        Raises:
            BackendError: `unavailable`; the system gives no more threads.
        """
        self._loop = asyncio.get_running_loop()
        self._hire()
        if not self._all:
            raise BackendError("the system starts no more threads", code="unavailable", retryable=True)

    @property
    def idle(self) -> int:
        """Threads that have nothing to do."""
        return 0 if self._closing else len(self._idle)

    @property
    def capacity(self) -> int:
        """Threads that work or could; 0 while every one hangs and no more are started."""
        return 0 if self._closing else len(self._all)

    def run(self, task: Task, ended: Callable[[Outcome[Answer]], None]) -> None:
        """Give an idle thread a task. `ended` is called once, on the loop, never from within this call."""
        self._assign(_Run(task, ended))

    async def close(self, limit_seconds: float) -> bool:
        """Let the threads end their tasks and end; what is not done within the limit fails with `unavailable`.

        Returns whether all of them have ended.
        """
        self._closing = True
        for timer in (self._look, self._rehire):
            if timer is not None:
                timer.cancel()
        for worker in self._all:
            worker.inbox.put(None)
        if self._all:
            self._gone.clear()  # they may have been gone before, and come back
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), limit_seconds)
        for worker in list(self._all):
            self._all.discard(worker)
            self._abandoned.add(worker)
            self._fail(worker, "the engine was closed", "unavailable")
        late = sum(worker.thread.is_alive() for worker in self._abandoned)
        if late:
            log.warning("%s: %d threads are left behind in their work", self._name, late)
        return not late

    def _assign(self, run: _Run[Task, Answer]) -> None:
        while self._idle:
            worker = self._idle.pop()
            if worker.thread.is_alive():
                worker.run = run
                worker.inbox.put(run)
                if self._look is None:
                    self._look = self._loop.call_later(self._pause, self._look_after)
                return
            self._end(worker, None)
        error = BackendError("no thread is left for the work", code="worker_died", retryable=True)
        self._loop.call_soon(run.ended, Outcome(None, error, 0.0))

    def _hire(self) -> None:
        """Have as many threads as there should be, and can."""
        while (
            not self._closing
            and len(self._all) < self._count
            and len(self._all) + len(self._abandoned) < self._count + MOST_ABANDONED
        ):
            self._hired += 1
            worker = _Worker(f"{self._name}-{self._hired}", self._live)
            try:
                worker.thread.start()
            except RuntimeError:
                log.exception("%s: a thread could not be started", self._name)
                if self._rehire is None:
                    self._rehire = self._loop.call_later(REHIRE_SECONDS, self._hire_again)
                return
            self._all.add(worker)
            self._idle.append(worker)

    def _hire_again(self) -> None:
        self._rehire = None
        self._hire()
        self._changed()

    # In the thread.

    def _live(self, worker: _Worker[Task, Answer]) -> None:
        cause: BaseException | None = None
        try:
            while (run := worker.inbox.get()) is not None:
                begun = time.perf_counter()
                value: Answer | None = None
                error: Exception | None = None
                run.begun = True
                try:
                    value = self._work(run.task)
                except Exception as exc:  # noqa: BLE001 - whoever gave the task judges it
                    error = exc
                self._tell(self._ended, worker, run, Outcome(value, error, time.perf_counter() - begun))
                del run, value, error  # an idle thread holds no audio
        except BaseException as exc:  # noqa: BLE001 - an exception thrown into the thread strikes anywhere
            cause = exc
        finally:
            self._tell(self._end, worker, cause)

    def _tell(self, callback: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(callback, *args)

    # On the loop.

    def _ended(self, worker: _Worker[Task, Answer], run: _Run[Task, Answer], outcome: Outcome[Answer]) -> None:
        if worker.run is not run:
            return  # it was given up, and answered, long ago
        worker.run = None
        if not self._closing:
            self._idle.append(worker)
        run.ended(outcome)

    def _end(self, worker: _Worker[Task, Answer], cause: BaseException | None) -> None:
        """A thread has ended: because it should, or died."""
        if worker in self._abandoned:
            self._abandoned.discard(worker)
            log.info("%s: a thread that was given up has come back; %d have not", self._name, len(self._abandoned))
        elif worker not in self._all:
            return
        elif self._closing and worker.run is None:
            self._all.discard(worker)
        else:
            self._all.discard(worker)
            with contextlib.suppress(ValueError):
                self._idle.remove(worker)
            log.error("%s: a thread died", self._name, exc_info=cause)
            self._died()
            self._hire()
            run, worker.run = worker.run, None
            if run is not None and not run.begun and not run.moved and not self._closing:
                run.moved = True
                self._assign(run)
            elif run is not None:
                worker.run = run
                self._fail(worker, "the thread that worked on this died", "worker_died")
        if self._closing:
            worker.thread.join(1.0)  # it has told this with its last breath
        if not self._all:
            self._gone.set()
        self._hire()
        self._changed()

    def _look_after(self) -> None:
        """Find what no thread can tell of itself: that it hangs, or was killed in the middle of its last words."""
        self._look = None
        for worker in [worker for worker in self._all if worker.run is not None]:
            if not worker.thread.is_alive():
                self._end(worker, None)
            elif worker.run is not None and time.monotonic() - worker.run.given > self._limit:
                self._abandon(worker)
        if self._look is None and any(worker.run is not None for worker in self._all):
            self._look = self._loop.call_later(self._pause, self._look_after)

    @property
    def _pause(self) -> float:
        return min(LOOK_SECONDS, self._limit / 4)

    def _abandon(self, worker: _Worker[Task, Answer]) -> None:
        self._all.discard(worker)
        self._abandoned.add(worker)
        worker.inbox.put(None)
        self._hire()
        log.error(
            "%s: a thread has not come back for %.0f s and is given up; %d are, %d work",
            self._name,
            self._limit,
            len(self._abandoned),
            len(self._all),
        )
        self._fail(worker, f"the engine has not answered for {self._limit:.0f} s", "stalled")
        self._changed()

    def _fail(self, worker: _Worker[Task, Answer], text: str, code: str) -> None:
        run, worker.run = worker.run, None
        if run is not None:
            error = BackendError(text, code=code, retryable=True)
            run.ended(Outcome(None, error, time.monotonic() - run.given))
