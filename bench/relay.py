"""What one hop costs: the same sessions at a node, and at an edge in front of it, in turns.

`python -m bench.relay --sessions 50 --seconds 10` prints, for each way, how long after a frame its partial came and the
CPU that each server spent on a received frame of 100 ms. The node is the scripted engine; all is on this machine, so
the network's own delay is not in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any, Final

from bench.machine import machine
from bench.process import cpu_seconds, started
from bench.targets.contenders import MANY

_SERVE: Final = ["serve", "--port", "0", "--log-level", "warning"]


def _load(url: str, pids: dict[str, int], options: list[str]) -> dict[str, Any]:
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    load = subprocess.run(
        [sys.executable, "-m", "bench.load", "--url", url, *options], stdout=subprocess.PIPE, text=True, check=False
    )
    report = json.loads(load.stdout)
    if report["completed"] != report["sessions"]:
        raise SystemExit(f"sessions were refused or dropped: {load.stdout}")
    return {
        "latency_ms": report["latency_ms"],
        "final_latency_ms": report["final_latency_ms"],
        "opening_ms": report["opening_ms"],
        "generator_lag_ms": report["generator_lag_ms"],
        "cpu_us_per_frame": {
            name: round(1e6 * (cpu_seconds(pid) - before[name]) / report["frames"], 1) for name, pid in pids.items()
        },
    }


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.relay", description=__doc__)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--ramp", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    where = machine()
    options = [f"--{name}={getattr(args, name)}" for name in ("sessions", "seconds", "ramp")]
    with started([*_SERVE, "--backend", "scripted"], "stream", {**MANY, "STT_EVENT_LOG": "off"}) as (node, direct):
        relay = {**MANY, "STT_EVENT_LOG": "off", "STT_RELAY_URL": direct}
        with started([*_SERVE, "--backend", "relay"], "stream", relay) as (edge, through):
            rounds = [
                {
                    "direct": _load(direct, {"node": node}, options),
                    "through the edge": _load(through, {"edge": edge, "node": node}, options),
                }
                for _ in range(args.rounds)
            ]
    print(json.dumps({"sessions": args.sessions, "rounds": rounds, "machine": where}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
