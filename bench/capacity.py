"""How many concurrent real-time sessions each contender carries: `python -m bench.capacity`.

It carries so many if none was refused, none dropped and no frame lost, and p99 of what it adds (from sending audio to
the first partial that covers it) is within the limit. The number is doubled while it does, then halved in between to
5 %. A step in which the load generator itself was late says nothing about the server: the search ends there, and what
was carried before is less than what the server can.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from bench.load.plan import MAX_SESSIONS, PlanError
from bench.machine import machine
from bench.measured import Run, measure
from bench.targets.contenders import Contender, chosen
from bench.targets.peers import PeerUnavailableError

EXACT: Final = 1.05
"""Between what is carried and what is not, at the end."""
UNTIMED: Final = ("bare", "bare-base64", "wyoming", "whisperlivekit")
"""No partial of theirs says what audio it covers."""


@dataclass(slots=True)
class Capacity:
    """What a contender carries. `bound`: what ended the search; empty if it was the contender."""

    contender: str
    sessions: int = 0
    bound: str = ""
    steps: list[Run] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{'at least ' if self.bound else ''}{self.sessions} sessions{f' ({self.bound})' if self.bound else ''}"


def faults(run: Run, limit_ms: float) -> list[str]:
    """Why the contender did not carry the load; empty if it did."""
    found = list(run.collapsed)
    p99 = run.latency_ms.get("p99")
    if p99 is None:
        found.append("no latency was seen")
    elif p99 > limit_ms:
        found.append(f"p99 {p99:.1f} ms")
    return found


def search(name: str, once: Callable[[int], Run], *, limit_ms: float, least: int, most: int) -> Capacity:
    """Double, then bisect. Each step is printed."""
    found = Capacity(name)
    failed = most + 1
    sessions = min(least, most)
    while sessions:
        run = once(sessions)
        found.steps.append(run)
        wrong = faults(run, limit_ms)
        print(f"{name}: {sessions} sessions: {_said(run)}: {'; '.join(wrong) or 'carried'}", flush=True)
        if run.late:
            found.bound = f"the load generator was late with {sessions}"
            break
        if wrong:
            failed = sessions
        else:
            found.sessions = sessions
        if found.sessions == most:
            found.bound = "more were not tried"
        sessions = _next(found.sessions, failed, most)
    return found


def _next(carried: int, failed: int, most: int) -> int:
    """What is tried next; 0: nothing."""
    if failed > most:
        return min(2 * carried, most) if carried < most else 0
    return (carried + failed) // 2 if failed > max(carried * EXACT, carried + 1) else 0


def _said(run: Run) -> str:
    p99 = run.latency_ms.get("p99")
    cpu = "-" if run.cpu_percent is None else f"{run.cpu_percent:.0f} %"
    return f"p99 {'-' if p99 is None else f'{p99:.1f}'} ms, CPU {cpu}, lag p99 {run.lag_ms.get('p99', 0.0):.1f} ms"


def ratios_text(capacities: Sequence[Capacity]) -> str:
    """Each beside the first; the sign says where one of the two could have carried more."""
    first, *others = capacities
    lines = []
    for other in others:
        what = f"{first.contender} / {other.contender}"
        if not (first.sessions and other.sessions) or (first.bound and other.bound):
            lines.append(f"{what}: -")
            continue
        sign = "at least " if first.bound else "at most " if other.bound else ""
        lines.append(f"{what}: {sign}{first.sessions / other.sessions:.2f}")
    return "\n".join(lines)


def main() -> int:
    """Run and print; exit code 1 if the first contender carried nothing."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    parser.add_argument("--contenders", type=chosen, default=chosen("bridge,naive"), help="default: bridge,naive")
    parser.add_argument("--limit-ms", type=float, default=50, help="of what is added at p99 (default: 50)")
    parser.add_argument("--seconds", type=float, default=15, help="that all sessions are open (default: 15)")
    parser.add_argument("--least", type=int, default=125, help="sessions to begin with (default: 125)")
    parser.add_argument("--most", type=int, default=4_000, help="sessions, at most (default: 4000)")
    parser.add_argument("--processes", type=int, default=1, help="of the bridge (default: 1)")
    parser.add_argument("--generators", type=int, default=1, help="processes of the load generator (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all steps there")
    args = parser.parse_args()
    if not 1 <= args.least <= args.most <= MAX_SESSIONS:
        parser.error(f"--least and --most: 1 to {MAX_SESSIONS}")
    if untimed := [contender.name for contender in args.contenders if contender.name in UNTIMED]:
        parser.error(f"{', '.join(untimed)}: nothing tells what audio its partials cover, so there is no latency")
    where = machine()

    def once(contender: Contender, sessions: int) -> Run:
        generators = min(args.generators, sessions)
        return measure(
            contender, sessions=sessions, seconds=args.seconds, generators=generators, processes=args.processes
        )

    found: list[Capacity] = []
    for contender in args.contenders:
        try:
            found.append(
                search(
                    contender.name,
                    lambda sessions, contender=contender: once(contender, sessions),  # type: ignore[misc]
                    limit_ms=args.limit_ms,
                    least=args.least,
                    most=args.most,
                )
            )
        except PlanError as exc:
            parser.error(str(exc))
        except PeerUnavailableError as exc:
            print(f"{contender.name}: not run: {exc}")
    for one in found:
        print(f"{one.contender:15} {one}")
    if len(found) > 1:
        print(ratios_text(found))
    if args.json:
        receipt = {
            "limit_ms": args.limit_ms,
            "seconds": args.seconds,
            "processes": args.processes,
            "generators": args.generators,
            "capacities": [asdict(one) for one in found],
            "machine": where,
        }
        args.json.write_text(json.dumps(receipt, indent=1) + "\n")
    return int(not found or not found[0].sessions)


if __name__ == "__main__":
    sys.exit(main())
