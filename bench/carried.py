"""How many sessions one server process carries: a server on the scripted engine, and a load process against it.

`python -m bench.carried --sessions 1000 --seconds 30` prints the load report with the server's own CPU and memory
beside it: CPU microseconds per received frame, resident memory per session.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

_BANNER: Final = re.compile(r"stream\s+(ws://\S+)")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_mb(pid: int, which: str = "VmRSS") -> float:
    """Resident memory of a process; `which` VmHWM for its peak."""
    line = next(ln for ln in Path(f"/proc/{pid}/status").read_text().splitlines() if ln.startswith(which))
    return int(line.split()[1]) / 1024


def threads_of(pid: int) -> int:
    """Threads of a process, those that native libraries start included."""
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


def start_server() -> tuple[subprocess.Popen[str], str]:
    """A server on the scripted engine and its stream address."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("STT_")}
    server = subprocess.Popen(
        [sys.executable, "-m", "bridge", "serve", "--backend", "scripted", "--port", "0", "--log-level", "warning"],
        env=env | {"STT_MAX_SESSIONS": "20000", "STT_MAX_CONNECTIONS": "20000"},
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in server.stderr or ():
        if match := _BANNER.search(line):
            return server, match[1]
    server.wait()
    raise SystemExit(f"the server did not start (exit code {server.returncode})")


def main() -> int:
    """Run and print; the exit code is the load generator's."""
    parser = argparse.ArgumentParser(prog="python -m bench.carried", description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--ramp", type=float, default=10)
    args = parser.parse_args()
    server, url = start_server()
    try:
        memory, cpu, began = resident_mb(server.pid), cpu_seconds(server.pid), time.monotonic()
        load = subprocess.run(
            [sys.executable, "-m", "bench.load", "--url", url]
            + [f"--{name}={value}" for name, value in vars(args).items()],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        wall, cpu = time.monotonic() - began, cpu_seconds(server.pid) - cpu
        peak = resident_mb(server.pid, "VmHWM")
    finally:
        server.terminate()
        server.wait(timeout=30)
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
