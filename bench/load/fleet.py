"""Several generators as one: started, listened to, ended together."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Final

import msgspec

from bench.load.plan import MAX_PROCESSES, Plan, PlanError
from bench.load.results import Seen, together

LINE_BYTES: Final = 1 << 22
"""What one line of a generator holds, at most."""


def check_processes(plan: Plan, processes: int) -> None:
    """Whether so many can share the plan.

    Raises:
        PlanError: they cannot.
    """
    if not 1 <= processes <= min(MAX_PROCESSES, plan.sessions):
        raise PlanError(f"processes: 1 to {MAX_PROCESSES}, and not more than sessions")


async def play(plan: Plan, processes: int = 1, told: Callable[[Seen], None] = lambda _: None) -> Seen:
    """Play the plan by so many processes. `told` hears from each of them, `Plan.every` seconds.

    Raises:
        PlanError: too many processes.
        RuntimeError: one of them failed; what it said stands on standard error.
    """
    check_processes(plan, processes)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_one(plan.share(number, processes), told), name=f"generator-{number}")
                for number in range(processes)
            ]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return together(task.result() for task in tasks)


async def _one(plan: Plan, told: Callable[[Seen], None]) -> Seen:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.load.generator",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES,
    )
    assert process.stdin is not None  # noqa: S101 - as asked for above
    assert process.stdout is not None  # noqa: S101
    decoder = msgspec.json.Decoder(Seen)
    whole = Seen()
    try:
        process.stdin.write(msgspec.json.encode(plan))
        process.stdin.close()
        async for line in process.stdout:
            seen = decoder.decode(line)
            seen.generator = plan.first
            told(seen)
            whole.merge(seen)
            whole.open = seen.open  # the one figure that is no sum
        if await process.wait():
            raise RuntimeError(f"a load generator failed with exit code {process.returncode}")
        return whole
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
