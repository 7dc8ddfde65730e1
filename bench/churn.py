"""Connections that come and go, and connections that wait: does the bridge give back what they took?

`python -m bench.churn --connections 10000 --minute 60` opens so many short sessions evenly over a minute.
`python -m bench.churn --idle 5000 --hold 30` opens 5,000, sends nothing until each has waited for so long, then speaks.

All that is done twice. Threads, descriptors and tasks must be back to what they were before; memory, which allocators
give back late or never, may be hardly more after the second time than after the first. The exit code is 1 if they are
not within `REST_SECONDS`, or if a session failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.footprint import Footprint, Watched, watched
from bench.load.fleet import play
from bench.load.plan import MAX_SESSIONS, Plan, PlanError
from bench.load.results import Seen, together
from bench.machine import machine
from bench.measured import RAMP_RATE

BACK: Final = {"threads": 2, "fds": 4, "tasks": 4}
"""How many more there may be afterwards."""
BACK_MB: Final = 8.0
"""Of resident memory, from the first time to the second: 0.8 KB of each of 10,000 connections."""
ROUNDS: Final = 2
REST_SECONDS: Final = 15.0
"""In which the server may close what its clients have left."""
SHORT_SECONDS: Final = 0.3
"""Of audio, in a session that only comes and goes."""
SPEECH_SECONDS: Final = 3.0
"""Of audio, in a session that has waited."""
MOST_HOLD: Final = 55.0
"""The bridge ends sessions that send nothing for a minute."""


@dataclass(frozen=True, slots=True)
class Churn:
    """What came of it; footprints in rest but for `most`, the most of each that was seen. `seen`: all rounds."""

    before: Footprint
    most: Footprint
    first: Footprint
    """After the first round."""
    after: Footprint
    seen: Seen
    most_open: int
    idle_cpu_percent: float | None
    """Of a core, while all were open and none sent; None if there was no such second."""

    @property
    def left(self) -> list[str]:
        """What was not given back."""
        found = [
            f"{getattr(self.after, name) - getattr(self.before, name)} {name} more than before"
            for name, allowed in BACK.items()
            if getattr(self.after, name) - getattr(self.before, name) > allowed
        ]
        grown = self.after.rss_mb - self.first.rss_mb
        return [*found, f"{grown:.1f} MB more than the first time"] if grown > BACK_MB else found


def churn(server: Watched, plan: Plan) -> Churn:
    """Play the plan again and again, and look at the server all the time."""
    asyncio.run(play(Plan(url=server.url, sessions=2, seconds=SHORT_SECONDS, ramp=0)))  # what the first ones load
    before = rest(server, None)
    looks: list[tuple[Seen, Footprint]] = []
    rounds: list[tuple[Seen, Footprint]] = []
    for _ in range(ROUNDS):
        seen = asyncio.run(play(plan, told=lambda seen: looks.append((seen, server.look()))))
        rounds.append((seen, rest(server, before)))
    most = Footprint(
        max(look.rss_mb for _, look in looks),
        max(look.threads for _, look in looks),
        max(look.fds for _, look in looks),
        max(look.tasks for _, look in looks),
        looks[-1][1].cpu_seconds,
    )
    return Churn(
        before,
        most,
        rounds[0][1],
        rounds[-1][1],
        together(seen for seen, _ in rounds),
        max(seen.open for seen, _ in looks),
        idle_cpu_percent(looks, plan.sessions),
    )


def rest(server: Watched, before: Footprint | None) -> Footprint:
    """What the server holds when it is back to `before`, or (None) no longer changes; in any case after a while."""
    until = time.monotonic() + REST_SECONDS
    last = server.look()
    while time.monotonic() < until:
        time.sleep(0.5)  # nothing tells of another process's descriptors
        now = server.look()
        if before is None:
            if (now.fds, now.tasks, now.threads) == (last.fds, last.tasks, last.threads):
                return now
        elif all(getattr(now, name) <= getattr(before, name) + allowed for name, allowed in BACK.items()):
            return now
        last = now
    return last


def idle_cpu_percent(looks: Sequence[tuple[Seen, Footprint]], sessions: int) -> float | None:
    """Over the first reports between which all sessions were open and silent."""
    silent: list[tuple[Seen, Footprint]] = []
    for seen, look in looks:
        if seen.open == sessions and not seen.frames:
            silent.append((seen, look))
        elif silent:
            break
    if len(silent) < 2:
        return None
    (begin, used), (end, later) = silent[0], silent[-1]
    return round(100 * (later.cpu_seconds - used.cpu_seconds) / (end.at - begin.at), 1)


def plan_of(url: str, args: argparse.Namespace) -> Plan:
    """What is played.

    Raises:
        PlanError: out of bounds.
    """
    if not args.idle:
        ramp = max(0.0, args.minute - 1)  # the last ones have ended, too, when it is over
        return Plan(url=url, sessions=args.connections, seconds=SHORT_SECONDS, ramp=ramp)
    ramp = args.idle / RAMP_RATE
    if not ramp + 3 < args.hold <= MOST_HOLD:
        raise PlanError(f"--hold: longer than opening takes ({ramp + 3:.0f} s), at most {MOST_HOLD:.0f} s")
    return Plan(url=url, sessions=args.idle, seconds=SPEECH_SECONDS, ramp=ramp, hold=args.hold)


def text(done: Churn) -> str:
    """For people."""
    seen = done.seen
    lines = [
        f"{name:10}  {one.rss_mb:7.1f} MB  {one.threads:4} threads  {one.fds:6} fds  {one.tasks:6} tasks"
        for name, one in (
            ("before", done.before),
            ("most", done.most),
            ("first time", done.first),
            ("after", done.after),
        )
    ]
    lines.append(
        f"{seen.completed} sessions, {done.most_open} at once at most; {seen.refused} refused, {seen.dropped} dropped, "
        f"{seen.lost_frames} frames lost {seen.failures or ''}".rstrip()
    )
    lines.append(f"opening, ms: {seen.opening.milliseconds()}; generator's lag, ms: {seen.lag.milliseconds()}")
    if done.idle_cpu_percent is not None:
        held = 1024 * (done.most.rss_mb - done.before.rss_mb) / done.most_open
        lines.append(f"while all waited: CPU {done.idle_cpu_percent} %; at most {held:.1f} KB a session")
    return "\n".join([*lines, *(f"NOT GIVEN BACK: {what}" for what in done.left)])


def receipt(done: Churn, plan: Plan, where: dict[str, Any]) -> dict[str, Any]:
    """For the results' folder."""
    seen = done.seen
    return {
        "rounds": ROUNDS,
        "sessions": plan.sessions,
        "seconds": plan.seconds,
        "ramp": plan.ramp,
        "hold": plan.hold,
        "completed": seen.completed,
        "refused": seen.refused,
        "dropped": seen.dropped,
        "lost_frames": seen.lost_frames,
        "failures": seen.failures,
        "most_open": done.most_open,
        "idle_cpu_percent": done.idle_cpu_percent,
        "opening_ms": seen.opening.milliseconds(),
        "generator_lag_ms": seen.lag.milliseconds(),
        "before": asdict(done.before),
        "most": asdict(done.most),
        "after_first": asdict(done.first),
        "after": asdict(done.after),
        "left": done.left,
        "machine": where,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write the receipt."""
    parser = argparse.ArgumentParser(prog="python -m bench.churn", description=__doc__)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--connections", type=int, default=10_000, help="that come and go (default: 10000)")
    kind.add_argument("--idle", type=int, default=0, help="sessions that wait, instead")
    parser.add_argument("--minute", type=float, default=60, help="seconds in which they come and go (default: 60)")
    parser.add_argument("--hold", type=float, default=30, help="seconds that each idle session waits (default: 30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the receipt there")
    args = parser.parse_args(argv)
    if not (1 <= args.connections <= MAX_SESSIONS and 0 <= args.idle <= MAX_SESSIONS):
        parser.error(f"--connections, --idle: at most {MAX_SESSIONS}")
    where = machine()
    with watched() as server:
        try:
            plan = plan_of(server.url, args)
        except PlanError as exc:
            parser.error(str(exc))
        done = churn(server, plan)
    print(text(done))
    if args.json:
        args.json.write_text(json.dumps(receipt(done, plan, where), indent=1) + "\n")
    whole = done.seen.completed == ROUNDS * plan.sessions and not done.seen.lost_frames
    return 0 if whole and not done.left else 1


if __name__ == "__main__":
    sys.exit(main())
