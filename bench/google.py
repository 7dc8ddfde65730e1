"""What the bridge costs above Google's bare clients: added latency and CPU, measured in the same run.

`python -m bench.google` plays real-time sessions of 100 ms frames to the emulator's echo, which answers each message
at once: by a bare `SpeechAsyncClient` and a bare threaded `SpeechClient`, by the bridge's sessions on `google` and
`google-threads`, and, if asked for, by the whole server (`server-async`, `server-threads`: over WebSocket, with
`bench.load` as its client). Each runs in a process of its own, one after the other, for several rounds; a session is
compared with the bare client of the same round, so that what else the machine does hits both. Figures are medians
of the rounds. The exit code is 1 if a frame was not answered.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from bench.machine import machine
from bench.process import cpu_seconds, resident_mb, started, threads_of

SESSIONS: Final = (1, 50, 200)
CONTENDERS: Final = ("bare-async", "bridge-async", "bare-threads", "bridge-threads")
SERVERS: Final = {"server-async": "google", "server-threads": "google-threads"}
"""The whole server, and its backend."""
BARE: Final = {
    "bridge-async": "bare-async",
    "server-async": "bare-async",
    "bridge-threads": "bare-threads",
    "server-threads": "bare-threads",
}
_PACKAGES: Final = ("google-cloud-speech", "google-api-core", "grpcio", "proto-plus", "protobuf", "uvloop")
_MANY: Final = 10_000_000

Run = dict[str, Any]
"""`bench.google_load.Run` as JSON."""


def main() -> int:
    """Run all and print; see the module for the exit code."""
    args = _arguments()
    runs: list[Run] = []
    with emulator() as endpoint:
        for number in range(args.rounds):
            for sessions in args.sessions:
                # Every second round in the other order: what comes first meets the same machine as what comes last.
                for contender in args.contenders if number % 2 == 0 else reversed(args.contenders):
                    run = one_run(contender, endpoint, sessions, args.seconds)
                    runs.append({"round": number} | run)
                    print(_progress(runs[-1]), file=sys.stderr, flush=True)
    summary = summarize(runs)
    if args.json:
        print(json.dumps({"machine": machine(_PACKAGES), "summary": summary, "runs": runs}, indent=1))
    else:
        print_table(summary)
    return 1 if any(run["lost_frames"] for run in runs) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.google", description=__doc__)
    parser.add_argument("--sessions", type=int, nargs="+", default=SESSIONS, metavar="N")
    parser.add_argument("--seconds", type=float, default=10, help="of each run, after a warm-up of two")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--contenders", nargs="+", default=CONTENDERS, choices=(*CONTENDERS, *SERVERS, "nothing"), metavar="NAME"
    )
    parser.add_argument("--json", action="store_true", help="every run and the machine, as JSON")
    args = parser.parse_args()
    if not all(1 <= n <= 2_000 for n in args.sessions) or not 1 <= args.seconds <= 60 or args.rounds < 1:
        parser.error("sessions: 1 to 2000, seconds: 1 to 60 (no final comes: all is held for a replay), rounds: from 1")
    return args


# Processes


@contextlib.contextmanager
def emulator() -> Iterator[str]:
    """The emulator in mode echo, without quotas; its `host:port`."""
    limits = ["--max-streams", str(_MANY), "--requests-per-minute", str(_MANY), "--pace-seconds", "0"]
    command = ["emulate-google", "--mode", "echo", "--port", "0", "--log-level", "warning", *limits]
    with started(command, "endpoint", {}) as (_, endpoint):
        yield endpoint


def one_run(contender: str, endpoint: str, sessions: int, seconds: float) -> Run:
    """One run of one contender, in a process of its own."""
    if contender in SERVERS:
        return server_run(contender, endpoint, sessions, seconds)
    options = [f"--endpoint={endpoint}", f"--sessions={sessions}", f"--seconds={seconds}"]
    return _output("bench.google_contender", contender, *options)


def server_run(contender: str, endpoint: str, sessions: int, seconds: float) -> Run:
    """One run of the whole server; without a warm-up, because its load process opens and closes the sessions."""
    env = {
        "STT_GOOGLE_ENDPOINT": f"http://{endpoint}",
        "STT_GOOGLE_MAX_STREAMS": str(_MANY),
        "STT_GOOGLE_REQUESTS_PER_MINUTE": str(_MANY),
        "STT_THREADS": str(sessions),
        "STT_MAX_SESSIONS": str(sessions),
        "STT_MAX_CONNECTIONS": str(sessions + 16),
    }
    serve = ["serve", "--backend", SERVERS[contender], "--port", "0", "--log-level", "warning"]
    with started(serve, "stream", env) as (pid, url):
        cpu, began = cpu_seconds(pid), time.monotonic()
        options = [f"--url={url}", f"--sessions={sessions}", f"--seconds={seconds}", "--ramp=1"]
        load = _output("bench.load", *options)
        cpu, wall = cpu_seconds(pid) - cpu, time.monotonic() - began
        return {
            "contender": contender,
            "sessions": sessions,
            "seconds": seconds,
            "frames": load["frames"],
            "lost_frames": load["frames"] - load["partials"] + load["lost_frames"],
            "cpu_percent": round(100 * cpu / wall, 2),
            "cpu_us_per_frame": round(1e6 * cpu / load["frames"], 1),
            "latency_ms": load["latency_ms"],
            "lag_ms": load["generator_lag_ms"],
            "rss_mb": round(resident_mb(pid), 1),
            "threads": threads_of(pid),
            "load_average": os.getloadavg()[0],
        }


def _output(module: str, *options: str) -> Run:
    result = subprocess.run(
        [sys.executable, "-m", module, *options], stdout=subprocess.PIPE, text=True, check=False, timeout=300
    )
    if not result.stdout:
        raise SystemExit(f"{module} {' '.join(options)} failed (exit code {result.returncode})")
    report: Run = json.loads(result.stdout)
    return report


# Figures


def summarize(runs: list[Run]) -> list[Run]:
    """For each number of sessions and contender, the medians of its rounds; against its bare client, round by round."""
    rows = []
    for sessions, contender in dict.fromkeys((run["sessions"], run["contender"]) for run in sorted(runs, key=_place)):
        own = [run for run in runs if (run["sessions"], run["contender"]) == (sessions, contender)]
        row: Run = {"sessions": sessions, "contender": contender, "rounds": len(own)}
        for key in ("cpu_percent", "cpu_us_per_frame", "rss_mb", "threads", "load_average"):
            row[key] = round(statistics.median(run[key] for run in own), 2)
        row["cpu_us_range"] = [f(run["cpu_us_per_frame"] for run in own) for f in (min, max)]
        row["latency_ms"] = _medians([run["latency_ms"] for run in own])
        row["lost_frames"] = sum(run["lost_frames"] for run in own)
        bare = {
            run["round"]: run for run in runs if (run["sessions"], run["contender"]) == (sessions, BARE.get(contender))
        }
        if bare:
            pairs = [(run, bare[run["round"]]) for run in own]
            ratios = [run["cpu_us_per_frame"] / base["cpu_us_per_frame"] for run, base in pairs]
            row["cpu_ratio"] = round(statistics.median(ratios), 2)
            row["added_ms"] = _medians([_less(run["latency_ms"], base["latency_ms"]) for run, base in pairs])
        rows.append(row)
    return rows


def _place(run: Run) -> tuple[int, int]:
    order = [
        "nothing",
        "bare-async",
        "bridge-async",
        "server-async",
        "bare-threads",
        "bridge-threads",
        "server-threads",
    ]
    return run["sessions"], order.index(run["contender"])


def _medians(latencies: list[dict[str, float]]) -> dict[str, float]:
    keys = latencies[0].keys() if all(latencies) else ()
    return {key: round(statistics.median(each[key] for each in latencies), 2) for key in keys}


def _less(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {key: one[key] - other[key] for key in one.keys() & other.keys()}


def print_table(summary: list[Run]) -> None:
    """For people. CPU is one core's; a ratio and what is added are against the bare client."""
    print(
        f"{'sessions':>8} {'contender':<15} {'CPU %':>6} {'us/frame':>8} {'(range)':>11} {'ratio':>5} "
        f"{'p50 ms':>7} {'p95':>6} {'p99':>6} {'max':>6} {'+p50':>6} {'+p99':>6} "
        f"{'MB':>5} {'thr':>4} {'lost':>4} {'load':>5}"
    )
    for row in summary:
        latency, added = row["latency_ms"], row.get("added_ms", {})
        low, high = row["cpu_us_range"]
        cells = [
            f"{row['sessions']:>8} {row['contender']:<15} {row['cpu_percent']:>6.1f} {row['cpu_us_per_frame']:>8.0f}",
            f"{f'{low:.0f}-{high:.0f}':>11} {_cell(row.get('cpu_ratio'), 5)}",
            f"{_cell(latency.get('p50'), 7)} {_cell(latency.get('p95'), 6, 1)} {_cell(latency.get('p99'), 6, 1)}",
            f"{_cell(latency.get('max'), 6, 0)} {_cell(added.get('p50'), 6)} {_cell(added.get('p99'), 6, 1)}",
            f"{row['rss_mb']:>5.0f} {row['threads']:>4.0f} {row['lost_frames']:>4} {row['load_average']:>5.1f}",
        ]
        print(" ".join(cells))
    about = machine(_PACKAGES)
    print(f"Python {about['python']}, {about['cpus']} CPUs, {about['versions']}")


def _cell(value: float | None, width: int, digits: int = 2) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"


def _progress(run: Run) -> str:
    return (
        f"round {run['round'] + 1}: {run['sessions']} x {run['contender']}: {run['cpu_us_per_frame']:.0f} us a frame, "
        f"p50 {run['latency_ms'].get('p50', 0):.2f} ms, p99 {run['latency_ms'].get('p99', 0):.1f} ms, "
        f"lost {run['lost_frames']}, load {run['load_average']:.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
