"""The bridge for hours, sessions ending and beginning all the time: does it grow? `python -m bench.soak --hours 0.5`.

A sample each minute: what the server holds, and what the sessions of that minute saw. Over the second half of the run,
memory, threads, descriptors (without those of the open sessions) and tasks must be flat: growth by least squares, less
two standard errors, within `LIMITS`. The exit code is 1 if something is not, or if a session failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.footprint import Footprint, Watched, watched
from bench.load.fleet import play
from bench.load.plan import Plan, PlanError
from bench.load.results import Seen
from bench.machine import machine
from bench.plot import PlotError, check
from bench.trend import Limit, Trend, trend

LEAST_SAMPLES: Final = 8
MOST_HOURS: Final = 20.0
SESSION_SECONDS: Final = 20.0
LIMITS: Final = {
    "rss_mb": Limit(once=3, per_hour=4),
    "threads": Limit(once=2, per_hour=0),
    "idle_fds": Limit(once=4, per_hour=1),
    "tasks": Limit(once=10, per_hour=2),
}
"""What each may grow by, over the second half: allocators and pools fill up late, caches are bounded."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One stretch of time, told at its end; `at` in seconds from the start, latencies in milliseconds."""

    at: float
    rss_mb: float
    threads: int
    tasks: int
    fds: int
    open: int
    """Sessions."""
    cpu_percent: float
    frames: int
    completed: int
    failed: int
    latency_ms: dict[str, float]
    final_ms: dict[str, float]
    opening_ms: dict[str, float]
    lag_ms: dict[str, float]

    @property
    def idle_fds(self) -> int:
        """Descriptors that are not connections of sessions."""
        return self.fds - self.open


@dataclass(frozen=True, slots=True)
class Soak:
    """A whole run."""

    samples: list[Sample]
    seen: Seen
    trends: dict[str, Trend]

    @property
    def flat(self) -> bool:
        return all(one.flat for one in self.trends.values())

    @property
    def sound(self) -> bool:
        """Flat, and no session failed."""
        return self.flat and not (self.seen.refused or self.seen.dropped or self.seen.lost_frames)


def sample(began: float, before: tuple[float, Footprint], now: Footprint, seen: Seen) -> Sample:
    """What happened since `before`, a time and what was held then."""
    at, then = before
    return Sample(
        at=round(seen.at - began, 1),
        rss_mb=now.rss_mb,
        threads=now.threads,
        tasks=now.tasks,
        fds=now.fds,
        open=seen.open,
        cpu_percent=round(100 * (now.cpu_seconds - then.cpu_seconds) / (seen.at - at), 1),
        frames=seen.frames,
        completed=seen.completed,
        failed=seen.refused + seen.dropped,
        latency_ms=seen.partial.milliseconds(),
        final_ms=seen.final.milliseconds(),
        opening_ms=seen.opening.milliseconds(),
        lag_ms=seen.lag.milliseconds(),
    )


def trends(samples: Sequence[Sample]) -> dict[str, Trend]:
    """Of the second half.

    Raises:
        ValueError: too few samples.
    """
    half = samples[len(samples) // 2 :]
    times = [one.at for one in half]
    return {name: trend(times, [float(getattr(one, name)) for one in half], limit) for name, limit in LIMITS.items()}


def soak(server: Watched, plan: Plan, told: Callable[[Sample], None] = lambda _: None) -> Soak:
    """Play the plan, and look at the server whenever its generator reports, up to a session's length before its end."""
    samples: list[Sample] = []
    began = time.monotonic()
    before = (began, server.look())

    def look(seen: Seen) -> None:
        nonlocal before
        now = server.look()
        one = sample(began, before, now, seen)
        before = (seen.at, now)
        if one.at <= plan.lasting - plan.seconds + plan.every / 2:  # behind that, sessions only end
            samples.append(one)
            told(one)

    seen = asyncio.run(play(plan, 1, look))
    return Soak(samples, seen, trends(samples))


def draw(samples: Sequence[Sample], file: Path) -> None:
    """The samples over time, as SVG or PNG by the file's name."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a large package that only figures need

    figure = Figure(figsize=(9, 11), layout="constrained")
    panels: Mapping[str, Mapping[str, Callable[[Sample], float | None]]] = {
        "memory, MB": {"resident": lambda s: s.rss_mb},
        "held": {
            "threads": lambda s: s.threads,
            "tasks": lambda s: s.tasks,
            "file descriptors": lambda s: s.fds,
            "open sessions": lambda s: s.open,
        },
        "audio to partial, ms": {p: lambda s, p=p: s.latency_ms.get(p) for p in ("p50", "p95", "p99")},  # type: ignore[misc]
        "CPU, % of a core": {"server": lambda s: s.cpu_percent},
    }
    for axis, (title, lines) in zip(figure.subplots(len(panels), sharex=True), panels.items(), strict=True):
        for label, value in lines.items():
            axis.plot([s.at / 60 for s in samples], [value(s) for s in samples], label=label)
        axis.set_ylabel(title)
        axis.set_ylim(0, 1.3 * axis.get_ylim()[1])  # from nothing, and room for the legend
        axis.grid(alpha=0.3)
        axis.legend(loc="upper right", ncols=len(lines), fontsize="small")
    axis.set_xlabel("minutes")
    figure.savefig(file)


def receipt(done: Soak, plan: Plan, backend: str, where: dict[str, Any]) -> dict[str, Any]:
    """For the results' folder."""
    return {
        "backend": backend,
        "hours": round((plan.lasting - plan.seconds) / 3_600, 4),
        "sessions": plan.sessions,
        "session_seconds": plan.seconds,
        "completed": done.seen.completed,
        "refused": done.seen.refused,
        "dropped": done.seen.dropped,
        "lost_frames": done.seen.lost_frames,
        "failures": done.seen.failures,
        "flat": done.flat,
        "trends_per_hour": {name: asdict(one) for name, one in done.trends.items()},
        "latency_ms": done.seen.partial.milliseconds(),
        "machine": where,
        "samples": [asdict(one) for one in done.samples],
    }


def _say(one: Sample) -> None:
    p99 = one.latency_ms.get("p99", "-")
    print(
        f"{one.at:8.0f} s  {one.rss_mb:7.1f} MB  {one.threads:3} threads  {one.tasks:5} tasks  {one.fds:5} fds  "
        f"{one.open:5} open  CPU {one.cpu_percent:5.1f} %  p99 {p99} ms  {one.completed} done  {one.failed} failed",
        flush=True,
    )


def _verdict(done: Soak) -> str:
    lines = [
        f"{name:9} {one.per_hour:+9.2f} an hour (standard error {one.error:.2f}); "
        f"{'flat' if one.flat else 'NOT FLAT'}: {one.allowed:.1f} allowed in {one.hours:.2f} h"
        for name, one in done.trends.items()
    ]
    seen = done.seen
    lost = f"{seen.refused} refused, {seen.dropped} dropped, {seen.lost_frames} frames lost"
    return "\n".join([*lines, f"{seen.completed} sessions, {lost} {seen.failures or ''}".rstrip()])


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write the receipt."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--hours", type=float, default=0.5, help=f"at most {MOST_HOURS:g} (default: 0.5)")
    parser.add_argument("--sessions", type=int, default=50, help="at once (default: 50)")
    parser.add_argument("--session-seconds", type=float, default=SESSION_SECONDS, help="audio of each (default: 20)")
    parser.add_argument("--every", type=float, default=60, help="seconds between samples (default: 60)")
    parser.add_argument("--backend", default="scripted")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the receipt there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it there, .svg or .png (needs matplotlib)")
    args = parser.parse_args(argv)
    lasting = 3_600 * args.hours
    if not 0 < args.hours <= MOST_HOURS or lasting < LEAST_SAMPLES * args.every:
        parser.error(f"--hours: at most {MOST_HOURS:g}, and enough for {LEAST_SAMPLES} samples")
    if args.plot:
        try:
            check(args.plot)  # now, not hours later
        except PlotError as exc:
            parser.error(str(exc))
    where = machine()
    with watched(args.backend) as server:
        try:
            plan = Plan(
                url=server.url,
                sessions=args.sessions,
                seconds=args.session_seconds,
                ramp=min(args.session_seconds, lasting / LEAST_SAMPLES),
                lasting=lasting + args.session_seconds,  # so that none runs out before
                every=args.every,
            )
        except PlanError as exc:
            parser.error(str(exc))
        done = soak(server, plan, _say)
    print(_verdict(done))
    if args.json:
        args.json.write_text(json.dumps(receipt(done, plan, args.backend, where), indent=1) + "\n")
    if args.plot:
        draw(done.samples, args.plot)
    return 0 if done.sound else 1


if __name__ == "__main__":
    sys.exit(main())
