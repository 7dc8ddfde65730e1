"""What the bridge costs beside others under the same load: `python -m bench.overhead`, or `make bench`.

All contenders get recorded speech in real time over as many sessions, in turns (A B C, A B C, …), each started anew.
Their engines cost nothing: the scripted one, or a stand-in for a peer's model. Printed are the medians of the rounds,
and the CPU time of a frame (100 ms of audio) as ratios within each round, which a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from bench.load.plan import PlanError
from bench.machine import machine
from bench.measured import Run, measure
from bench.targets.contenders import CONTENDERS, Contender, chosen
from bench.targets.peers import PeerUnavailableError

AGAINST: Final = {"bridge": "bare", "bridge-base64": "bare-base64"}
"""What each is compared with; all others with the bridge."""
COLUMNS: Final[Mapping[str, Callable[[Run], float | None]]] = {
    "us/frame": lambda run: run.cpu_us_per_frame,
    "CPU %": lambda run: run.cpu_percent,
    "partial p50": lambda run: run.latency_ms.get("p50"),
    "partial p95": lambda run: run.latency_ms.get("p95"),
    "partial p99": lambda run: run.latency_ms.get("p99"),
    "final p50": lambda run: run.final_ms.get("p50"),
    "final p99": lambda run: run.final_ms.get("p99"),
    "opening p50": lambda run: run.opening_ms.get("p50"),
    "opening p99": lambda run: run.opening_ms.get("p99"),
    "KB/session": lambda run: run.memory_kb_per_session,
    "threads/session": lambda run: run.threads_per_session,
    "lag p99": lambda run: run.lag_ms.get("p99"),
    "completed": lambda run: run.completed,
    "dropped": lambda run: run.refused + run.dropped,
    "lost": lambda run: run.lost_frames,
}
"""Milliseconds but for the first two: `partial` from sending audio to the first partial that covers it, `final` to
the final that ends there, `opening` from connecting to the permission to send, `lag` how late the generator was.
"""


@dataclass(frozen=True, slots=True)
class Ratio:
    """CPU per frame of one by that of another, over the rounds in which both carried the load; None: there is none."""

    contender: str
    against: str
    rounds: int = 0
    median: float | None = None
    least: float | None = None
    most: float | None = None
    at_least: bool = False
    """Whether the contender had no CPU time left: what it did not get done is not counted."""


@dataclass(slots=True)
class Overhead:
    """All rounds: the runs of each contender, and why others could not be run."""

    runs: dict[str, list[Run]]
    absent: dict[str, str]

    def ratios(self) -> list[Ratio]:
        """In the order of the contenders."""
        pairs = ((name, AGAINST.get(name, "bridge")) for name in self.runs if not name.startswith("bare"))
        return [ratio(self.runs[name], self.runs[other]) for name, other in pairs if other in self.runs]


def ratio(runs: Sequence[Run], others: Sequence[Run]) -> Ratio:
    """Round by round."""
    pairs = [
        (run, run.cpu_us_per_frame / other.cpu_us_per_frame)
        for run, other in zip(runs, others, strict=True)
        if run.cpu_us_per_frame and other.cpu_us_per_frame and not (run.collapsed or other.collapsed or other.full)
    ]
    found = Ratio(runs[0].contender, others[0].contender)
    if not pairs:
        return found
    values = [round(value, 3) for _, value in pairs]
    return Ratio(
        found.contender,
        found.against,
        len(values),
        round(statistics.median(values), 3),
        min(values),
        max(values),
        any(run.full for run, _ in pairs),
    )


def compare(contenders: Sequence[Contender], rounds: int, once: Callable[[Contender], Run]) -> Overhead:
    """All rounds. A contender that cannot be installed or started is left out of those that follow."""
    found = Overhead({contender.name: [] for contender in contenders}, {})
    for number in range(rounds):
        for contender in contenders:
            if contender.name in found.absent:
                continue
            try:
                run = once(contender)
            except (PeerUnavailableError, RuntimeError, TimeoutError) as exc:
                found.absent[contender.name] = str(exc) or type(exc).__name__
                del found.runs[contender.name]
                continue
            found.runs[contender.name].append(run)
            cost = "-" if run.cpu_us_per_frame is None else f"{run.cpu_us_per_frame:.1f} us/frame"
            print(
                f"round {number + 1}: {run.contender}: {'; '.join(run.collapsed) or cost}", file=sys.stderr, flush=True
            )
    return found


def table(found: Overhead) -> str:
    """The medians, and what is to be said of the contenders."""
    lines = ["  ".join([f"{'contender':15}", *COLUMNS])]
    notes: list[str] = []
    for name, runs in found.runs.items():
        cells = [f"{_median([value(run) for run in runs]):>{len(title)}}" for title, value in COLUMNS.items()]
        lines.append("  ".join([f"{name:15}", *cells]))
        for number, run in enumerate(runs, 1):
            if run.collapsed:
                notes.append(f"{name}, round {number}: collapsed: {'; '.join(run.collapsed)}{_reasons(run)}")
            if run.full:
                notes.append(f"{name}, round {number}: no CPU time left; a frame cost it more than this")
            if run.late:
                notes.append(f"{name}, round {number}: the load generator was late, p99 {run.lag_ms['p99']:.0f} ms")
    notes += [f"{name}: not run: {reason}" for name, reason in found.absent.items()]
    return "\n".join([*lines, *notes])


def ratios_text(ratios: Sequence[Ratio]) -> str:
    """A line for each pair."""
    lines = []
    for one in ratios:
        what = f"{one.contender} / {one.against}"
        if one.median is None:
            lines.append(f"{what:30} -")
        else:
            sign = "at least " if one.at_least else ""
            lines.append(f"{what:30} {sign}{one.median:.2f} ({one.least:.2f} to {one.most:.2f}, {one.rounds} rounds)")
    return "\n".join(lines)


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.4g}" if known else "-"


def _reasons(run: Run) -> str:
    return "".join(f"; {count} x {reason}" for reason, count in run.failures.items())


def main() -> int:
    """Run and print; exit code 1 if the bridge did not carry the load."""
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.add_argument("--sessions", type=int, default=200, help="open at once (default: 200)")
    parser.add_argument("--seconds", type=float, default=15, help="that all of them are open (default: 15)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default: 3)")
    parser.add_argument("--contenders", type=chosen, default=list(CONTENDERS.values()), help=", ".join(CONTENDERS))
    parser.add_argument("--generators", type=int, default=1, help="processes of the load generator (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds: at least 1")
    where = machine()
    try:
        found = compare(
            args.contenders,
            args.rounds,
            lambda contender: measure(
                contender, sessions=args.sessions, seconds=args.seconds, generators=args.generators
            ),
        )
    except PlanError as exc:
        parser.error(str(exc))
    ratios = found.ratios()
    print(table(found))
    print("\nCPU time of a frame, in ratios:")
    print(ratios_text(ratios))
    if args.json:
        receipt = {
            "sessions": args.sessions,
            "seconds": args.seconds,
            "rounds": args.rounds,
            "runs": {name: [asdict(run) for run in runs] for name, runs in found.runs.items()},
            "absent": found.absent,
            "ratios": [asdict(one) for one in ratios],
            "machine": where,
        }
        args.json.write_text(json.dumps(receipt, indent=1) + "\n")
    return int(any(run.collapsed for name in AGAINST for run in found.runs.get(name, ())))


if __name__ == "__main__":
    sys.exit(main())
