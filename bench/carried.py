"""How many sessions one server process carries: a server on the scripted engine, and a load process against it.

`python -m bench.carried --sessions 1000 --seconds 30` prints the load report with the server's own CPU and memory
beside it: CPU microseconds per received frame, resident memory per session.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time

from bench.process import cpu_seconds, resident_mb, started


def main() -> int:
    """Run and print; the exit code is the load generator's."""
    parser = argparse.ArgumentParser(prog="python -m bench.carried", description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--ramp", type=float, default=10)
    args = parser.parse_args()
    command = ["serve", "--backend", "scripted", "--port", "0", "--log-level", "warning"]
    with started(command, "stream", {"STT_MAX_SESSIONS": "20000", "STT_MAX_CONNECTIONS": "20000"}) as (pid, url):
        memory, cpu, began = resident_mb(pid), cpu_seconds(pid), time.monotonic()
        load = subprocess.run(
            [sys.executable, "-m", "bench.load", "--url", url]
            + [f"--{name}={value}" for name, value in vars(args).items()],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        wall, cpu = time.monotonic() - began, cpu_seconds(pid) - cpu
        peak = resident_mb(pid, "VmHWM")
    report = json.loads(load.stdout)
    report["server"] = {
        "cpu_percent": round(100 * cpu / wall, 1),
        "cpu_us_per_frame": round(1e6 * cpu / max(1, report["frames"]), 1),
        "memory_mb_before": round(memory, 1),
        "memory_mb_peak": round(peak, 1),
        "memory_kb_per_session": round(1024 * (peak - memory) / args.sessions, 1),
    }
    report["machine"] = {"python": platform.python_version(), "cpus": os.cpu_count(), "load_before": os.getloadavg()[0]}
    print(json.dumps(report, indent=1))
    return load.returncode


if __name__ == "__main__":
    sys.exit(main())
