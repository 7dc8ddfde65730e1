"""Where jobs are kept: the authority on each job's state.

A worker claims a job with a lease and renews it while it works. A lease that runs out means that the worker is gone:
the job may be claimed again, its `attempt` goes up, and what the worker before still says is refused (a fencing token).
So a job may be worked on twice, but it gets one result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from bridge.jobs.changes import Changes
from bridge.jobs.models import Job, Notice, Outcome, Progress, State, Terms, decode_terms

LOST: Final = "worker_lost"
"""The code of a job whose workers died once too often."""
LOST_MESSAGE: Final = "every worker that began this job ended before it was done"


class StoreUnavailableError(Exception):
    """The store cannot be reached now, or not be written; the sentence is for the operator's log."""


class JobConflictError(Exception):
    """There is a job of this name that was asked for otherwise."""


class StoreFullError(Exception):
    """So many jobs wait that no more is taken."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What all of a store's users agree on.

    `lease_seconds`: a worker that says nothing for so long is gone. `attempts`: times that a job is begun again after
    its worker died. `waiting`: jobs that wait at most. `retention_seconds`: how long an ended job is kept.
    """

    lease_seconds: float = 15.0
    attempts: int = 10
    waiting: int = 10_000
    retention_seconds: float = 604_800.0


class JobStore(ABC):
    """All methods belong to one event loop, may be cancelled, and give up after a limit of their own.

    Each raises `StoreUnavailableError` where the store cannot be reached. `changes` rings for what happens in this
    process, and in others if the store is `shared`; whoever waits looks now and then all the same.
    """

    shared: bool = False
    """Whether `changes` hears of what other processes do."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.changes = Changes()

    @abstractmethod
    async def open(self) -> None:
        """Make it usable. Called once, before anything else."""

    @abstractmethod
    async def close(self) -> None:
        """Give everything back."""

    # For whoever asks for a transcript

    @abstractmethod
    async def submit(self, job_id: str, terms: Terms) -> Job:
        """A new job, or the one of this name and owner. What is answered survives the death of this process.

        Raises:
            JobConflictError: the one of this name is somebody else's, or has another fingerprint.
            StoreFullError: `Rules.waiting` jobs wait.
        """

    @abstractmethod
    async def get(self, job_id: str) -> Job | None:
        """The job as it stands; None if there is none, or no longer."""

    @abstractmethod
    async def result(self, job_id: str) -> bytes | None:
        """Its segments, encoded; None if it has not succeeded."""

    @abstractmethod
    async def page(self, owner: str, state: State | None, after: str | None, limit: int) -> list[Job]:
        """The owner's jobs, the newest first, from behind the job `after`."""

    @abstractmethod
    async def cancel(self, job_id: str) -> Job | None:
        """End a job that has not ended; as it stands then. Its worker has no say from now on."""

    @abstractmethod
    async def delete(self, job_id: str) -> bool:
        """Forget an ended job with its result; whether there was one."""

    @abstractmethod
    async def needs(self, blob: str) -> bool:
        """Whether a job that has not ended is about this file."""

    # For workers

    @abstractmethod
    async def claim(self, backend: str) -> Job | None:
        """Begin the oldest job that may be begun, on a lease.

        First those whose lease ran out are put back, or failed where that has happened too often.
        """

    @abstractmethod
    async def beat(self, job: Job, progress: Progress) -> bool:
        """Renew the lease of this attempt and say how far it is. False: it has no say any more."""

    @abstractmethod
    async def finish(self, job: Job, outcome: Outcome, progress: Progress) -> bool:
        """End the job by this attempt. False: it has no say any more, and nothing changed."""

    @abstractmethod
    async def put_back(self, job: Job, seconds: float = 0.0, *, failed: bool = False) -> bool:
        """This attempt is given up; another may begin after so long. `failed`: it counts as a failure of the engine."""

    @abstractmethod
    async def next_claim(self, backend: str) -> float | None:
        """Seconds until a job may be begun or a lease runs out; None: nothing is known of."""

    @abstractmethod
    async def follow(self, backend: str, wanted: Callable[[], Awaitable[object]]) -> None:
        """Ring `changes` for jobs that others hand in, for as long as there may be any.

        `wanted` returns when a worker here has nothing to do; until then, others are told.
        """

    # Webhooks

    @abstractmethod
    async def claim_notice(self, seconds: float) -> Job | None:
        """An ended job whose owner is to be told now; nobody else is given it for so long."""

    @abstractmethod
    async def settle_notice(self, job: Job, *, delivered: bool, retry: float | None) -> None:
        """What became of it: delivered, to be tried again after so long, or given up (`retry` None)."""

    @abstractmethod
    async def next_notice(self) -> float | None:
        """Seconds until somebody is to be told; None: nobody."""

    # Housekeeping

    @abstractmethod
    async def sweep(self) -> int:
        """Forget what ended longer ago than the retention; how many."""

    @abstractmethod
    async def counts(self) -> Mapping[State, int]:
        """Jobs in each state."""


def job_of(row: Mapping[str, Any]) -> Job:
    """The job of a store's row: a value for each field, the terms encoded.

    Raises:
        StoreUnavailableError: the store holds something else.
    """
    try:
        terms, state, notice = decode_terms(row["terms"]), State(row["state"]), Notice(row.get("notice", "none"))
        return Job(**{**row, "terms": terms, "state": state, "notice": notice})
    except (msgspec.MsgspecError, ValueError, TypeError) as exc:
        raise StoreUnavailableError(f"a job of the store cannot be understood: {exc}") from exc
