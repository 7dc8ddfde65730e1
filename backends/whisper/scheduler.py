"""One queue for all streams: windows become batches, batches go to worker threads, answers come back.

A request passes two stages, each on threads of its own (`workers.py`): its features are made, then it is decoded
together with others. Whose turn it is stands in `batching.py`, what happens when there is too much to do in
`pressure.py`. All state belongs to the event loop, so nothing is locked.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from backends.base import BackendError
from backends.whisper.batching import Batch, Batcher
from backends.whisper.fairness import Share
from backends.whisper.jobs import Job, Lane, Request, State
from backends.whisper.metrics import WhisperMetrics
from backends.whisper.pressure import Pressure
from backends.whisper.window import Kind
from backends.whisper.workers import Outcome, Workers

__all__ = ["Decoder", "Lane", "Plan", "Replaced", "Request", "Scheduler", "out_of_memory"]

log = logging.getLogger(__name__)

CLOSE_SECONDS: Final = 5.0
"""How long what is being decoded may go on after `close`."""
REPORT_SECONDS: Final = 10.0
"""Between two reports of the decoder's failures."""

_OUT_OF_MEMORY: Final = ("out of memory", "out_of_memory", "alloc_failed", "bad_alloc", "failed to allocate")
"""What CTranslate2 and CUDA's libraries say, in lower case."""

RequestT = TypeVar("RequestT", bound=Request)
PreparedT = TypeVar("PreparedT")
AnswerT = TypeVar("AnswerT")
RequestT_contra = TypeVar("RequestT_contra", bound=Request, contravariant=True)
AnswerT_co = TypeVar("AnswerT_co", covariant=True)


class Replaced(Exception):  # noqa: N818 - an end like asyncio's CancelledError, not an error
    """A newer window of the same stream took this partial's place before it began."""


class Decoder(Protocol[RequestT_contra, PreparedT, AnswerT_co]):
    """What the scheduler drives: the model.

    `prepare` and `decode` are called on several threads at once. `decode` may be called again with the same `prepared`,
    so it leaves it as it is. Their `BackendError`s reach whoever asked; anything else becomes one.
    """

    def prepare(self, request: RequestT_contra, /) -> PreparedT:
        """Make a request's features. Blocks, on a thread."""

    def key(self, request: RequestT_contra, /) -> Hashable:
        """Requests with equal keys may share a batch. On the event loop: must be cheap."""

    def decode(self, batch: Sequence[PreparedT], /) -> Sequence[AnswerT_co]:
        """Answer to each of the batch, in its order. Blocks, on a thread; the GIL should be free meanwhile."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How windows are put to the model: so many threads that decode, each at most so many windows at once.

    A request waits at most `max_wait_seconds` for others to share its batch. `reason` is a sentence that says what was
    picked and why.
    """

    workers: int
    max_batch: int
    max_wait_seconds: float
    feature_threads: int
    reason: str

    def __post_init__(self) -> None:
        if min(self.workers, self.max_batch, self.feature_threads) < 1 or self.max_wait_seconds < 0:
            raise ValueError(f"not a plan: {self}")


class Scheduler(Generic[RequestT, PreparedT, AnswerT]):
    """Decodes the windows of all streams. For the event loop that `start` was called on.

    `final_seconds` is the promise: how long finals take, at the 95th percentile. What a thread has not done after
    `decode_limit_seconds` is given up. `workers` makes the threads; tests bring others.
    """

    def __init__(
        self,
        decoder: Decoder[RequestT, PreparedT, AnswerT],
        plan: Plan,
        metrics: WhisperMetrics | None = None,
        *,
        final_seconds: float = 1.0,
        decode_limit_seconds: float = 60.0,
        workers: type[Workers[Any, Any]] = Workers,
    ) -> None:
        self._decoder = decoder
        self._plan = plan
        self._metrics = metrics or WhisperMetrics()
        hire = functools.partial(
            workers, limit_seconds=decode_limit_seconds, changed=self._schedule, died=self._metrics.died
        )
        self._preparing: Workers[Any, PreparedT] = hire("whisper-features", plan.feature_threads, decoder.prepare)
        self._decoding: Workers[Sequence[PreparedT], Sequence[AnswerT]] = hire(
            "whisper-decode", plan.workers, decoder.decode
        )
        self._pressure = Pressure(final_seconds, plan.workers)
        self._raw: dict[Job, None] = {}
        self._ready = Batcher(plan.max_batch, plan.max_wait_seconds)
        self._lanes: set[Lane] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._scheduled: asyncio.Handle | None = None
        self._due: asyncio.TimerHandle | None = None
        self._failures = 0
        self._reported = -math.inf

    async def start(self) -> None:
        """Start the threads, once.

        Raises:
            BackendError: `unavailable`; the system gives no threads.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._preparing.start()
            self._decoding.start()
        except BackendError:
            await self.close()
            raise
        self._metrics.plan(asdict(self._plan), lambda: self.partial_stretch)
        log.info("how whisper decodes: %s", self._plan.reason)

    async def close(self) -> bool:
        """Fail what waits, let what is being decoded end within a few seconds, and end the threads.

        Returns whether all of them have ended: False means that one still hangs inside the decoder.
        """
        self._closed = True
        for handle in (self._scheduled, self._due):
            if handle is not None:
                handle.cancel()
        for job in [job for lane in self._lanes for job in lane.jobs if job.waits]:
            self._fail(job, closed())
        ended = await asyncio.gather(self._preparing.close(CLOSE_SECONDS), self._decoding.close(CLOSE_SECONDS))
        return all(ended)

    @contextlib.contextmanager
    def lane(self) -> Iterator[Lane]:
        """One stream's lane. Leaving it cancels who waits there, and what is decoded for it goes nowhere."""
        now = self._time()
        # It begins like the one that has used least: a client gains nothing by opening a new stream.
        lane = Lane(Share(min((lane.share.used(now) for lane in self._lanes if lane.jobs), default=0.0), now))
        self._lanes.add(lane)
        try:
            yield lane
        finally:
            lane.open = False
            self._lanes.discard(lane)
            for job in list(lane.jobs):
                self._forget(job)
                job.future.cancel()

    async def decode(self, lane: Lane, request: RequestT) -> AnswerT:
        """Decode a window. A partial that still waits in this lane gives way to it; a final never does.

        May be cancelled: then the request is withdrawn.

        Raises:
            Replaced: a newer window of this lane came before this partial was begun.
            BackendError: the decoder's own; or `overloaded` (it does not fit into memory even alone), `failed`
                (anything else that was raised), `worker_died`, `stalled` (no answer in time), `unavailable` (closed),
                which are all retryable.
        """
        now = self._time()
        if not lane.open:
            raise RuntimeError("the lane was left")
        if self._closed:
            raise closed()
        if self._hangs:
            raise _stalled()
        future: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        job = Job(lane, request, self._decoder.key(request), now, future)
        for other in [other for other in lane.jobs if other.kind is Kind.PARTIAL and other.waits]:
            if job.kind is Kind.PARTIAL:
                job.since = other.since
            self._replace(other, now)
        lane.jobs[job] = None
        self._raw[job] = None
        self._schedule()
        try:
            return await future
        finally:
            self._forget(job)
            if future.done() and not future.cancelled():
                future.exception()  # whoever was cancelled at the same moment does not ask for it

    @property
    def partial_stretch(self) -> float:
        """Factor on the time between two partials of a stream: 1, and up to 8 under pressure."""
        return 1.0 if self._closed or self._loop is None else self._pressure.stretch(self._loop.time())

    def refusal(self) -> str | None:
        """Why one more stream would break the promise for finals; None: it is welcome."""
        if self._closed or self._loop is None:
            return "the engine is closed"
        if self._hangs:
            return "every thread of the engine hangs"
        now = self._loop.time()
        overdue = sum(
            job.kind is Kind.FINAL and self._pressure.late(now - job.asked, now - job.asked) and job.live(now)
            for job in (*self._raw, *self._ready)
        )
        return self._pressure.refusal(now, overdue)

    # What follows is called on the loop.

    def _time(self) -> float:
        if self._loop is None:
            raise RuntimeError("the scheduler was not started")
        return self._loop.time()

    @property
    def _hangs(self) -> bool:
        return not (self._decoding.capacity and self._preparing.capacity)

    def _schedule(self) -> None:
        """Look for work once this turn of the loop is over: requests that come together share a batch."""
        if self._scheduled is None and not self._closed and self._loop is not None:
            self._scheduled = self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._scheduled = None
        if self._hangs:
            for job in [*self._raw, *self._ready]:
                self._fail(job, _stalled())
        else:
            self._prepare(self._time())
            self._decode(self._time())

    def _prepare(self, now: float) -> None:
        """The first stage. Partials' features are not made far ahead: under pressure most would be for nothing."""
        ahead = 2 * self._plan.workers * self._plan.max_batch - sum(job.kind is Kind.PARTIAL for job in self._ready)
        while self._preparing.idle:
            wanted = [job for job in self._raw if job.kind is Kind.FINAL or ahead > 0]
            if not wanted:
                return
            job = min(wanted, key=lambda job: job.turn(now))
            ahead -= job.kind is Kind.PARTIAL
            del self._raw[job]
            job.state = State.PREPARING
            self._preparing.run(job.request, functools.partial(self._prepared, job))

    def _prepared(self, job: Job, outcome: Outcome[PreparedT]) -> None:
        self._schedule()
        if job.state is not State.PREPARING:
            return
        if outcome.error is None:
            job.prepared = outcome.value
            self._make_ready(job)
        else:
            self._fail(job, _translated(outcome.error))

    def _make_ready(self, job: Job) -> None:
        job.state = State.READY
        self._ready.add(job)

    def _decode(self, now: float) -> None:
        """The second stage."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        while self._decoding.idle and self._ready:
            batch = self._ready.take(now, len(self._lanes))
            if batch is None:
                if (due := self._ready.due()) < math.inf:
                    self._due = asyncio.get_running_loop().call_at(due, self._schedule)
                return
            for job in batch.jobs:
                job.state = State.RUNNING
                if not job.taken:
                    job.taken = True
                    self._metrics.waited(job.kind, now - job.asked)
                    self._waited(job, now)
            ended = functools.partial(self._decoded, batch, self._pressure.begin(now), now)
            self._decoding.run([job.prepared for job in batch.jobs], ended)

    def _decoded(self, batch: Batch, run: int, begun: float, outcome: Outcome[Sequence[AnswerT]]) -> None:
        now = self._time()
        took = now - begun
        jobs = batch.jobs
        self._schedule()
        self._pressure.end(run, now)
        self._ready.ended(batch, took, now)
        for job in jobs:
            job.lane.share.use(took / len(jobs), now)
        answers, error = outcome.value or (), outcome.error
        if error is None and len(answers) != len(jobs):
            error = RuntimeError(f"{len(answers)} answers to {len(jobs)} windows")
        if error is not None:
            self._mend(batch, error, now)
            return
        self._metrics.decoded(batch.kind, len(jobs), outcome.seconds, sum(job.request.seconds for job in jobs))
        for job, answer in zip(jobs, answers, strict=True):
            if job.state is State.RUNNING:
                self._answer(job, answer, took, now)

    def _answer(self, job: Job, answer: AnswerT, took: float, now: float) -> None:
        if job.kind is Kind.FINAL:
            if job.live(now):
                self._pressure.answered(now - job.asked, now - job.asked - took, now)
            job.lane.share.hear(job.request.seconds, now)
        self._forget(job)
        if not job.future.done():
            job.future.set_result(answer)

    def _mend(self, batch: Batch, error: Exception, now: float) -> None:
        """A batch failed: have it decoded in smaller parts, where that may help."""
        size = len(batch.jobs)
        most = 0
        if out_of_memory(error):
            most = size // 2
            limit = self._ready.halve(size, now)
            if size > 1:
                log.warning("%d windows did not fit into memory; for now at most %d go together", size, limit)
            else:
                self._report(error, now)
        elif not isinstance(error, BackendError):
            most = 1 if size > 1 else 0
            self._report(error, now)
        for job in batch.jobs:
            if job.state is not State.RUNNING:
                continue
            if not most or self._closed:
                self._fail(job, _translated(error))
            elif job.kind is Kind.PARTIAL and next(reversed(job.lane.jobs)) is not job:
                self._replace(job, now)  # while it ran it could not be
            else:
                job.most = most
                self._make_ready(job)

    def _report(self, error: Exception, now: float) -> None:
        """Not each of them: a model that always fails does so many times a second."""
        self._failures += 1
        if now - self._reported >= REPORT_SECONDS:
            log.error("decoding failed, %d times since the last report", self._failures, exc_info=error)
            self._failures, self._reported = 0, now

    # How a job ends.

    def _waited(self, job: Job, now: float) -> None:
        if job.live(now):
            self._pressure.waited(job.kind, now - job.since, now)

    def _replace(self, job: Job, now: float) -> None:
        self._metrics.dropped()
        if not job.taken:
            self._waited(job, now)
        self._forget(job)
        if not job.future.done():
            job.future.set_exception(Replaced())

    def _fail(self, job: Job, error: BackendError) -> None:
        self._metrics.failed(error.code, job.kind)
        self._forget(job)
        if not job.future.done():
            job.future.set_exception(error)

    def _forget(self, job: Job) -> None:
        job.state = State.OVER
        job.prepared = None
        self._raw.pop(job, None)
        self._ready.discard(job)
        job.lane.jobs.pop(job, None)


def out_of_memory(error: Exception) -> bool:
    """Whether an exception says that the memory did not suffice, CTranslate2's of a GPU among them."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in said for sign in _OUT_OF_MEMORY)
    )


def _translated(cause: Exception) -> BackendError:
    """A new error for each who gets one: it is raised in several tasks, and each adds its own traceback."""
    if isinstance(cause, BackendError):
        error = BackendError(str(cause), code=cause.code, fault=cause.fault, retryable=cause.retryable)
    elif out_of_memory(cause):
        error = BackendError("the memory is full", code="overloaded", retryable=True)
    else:
        error = BackendError(f"the model failed ({type(cause).__name__})", retryable=True)
    error.__cause__ = cause
    return error


def closed() -> BackendError:
    """What a stream is told that outlives the engine."""
    return BackendError("the engine was closed", code="unavailable", retryable=True)


def _stalled() -> BackendError:
    return BackendError("every thread of the engine hangs", code="stalled", retryable=True)
