"""How many short files a second the bridge transcribes, beside a FastAPI handler that only reads the same bodies.

`python -m bench.http` starts both servers, the bridge on the scripted engine and with the event log off, the handler on
uvicorn as it comes, and loads them in turns from a third process: 5-second files, WAV and FLAC, as a raw body and in a
form. It prints requests per second and latencies of both, CPU time per request (which other processes on the machine
disturb less than rates), the ratio of the rates (the median turn's) and of the CPU times, and where the bridge's time
goes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import wave
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import av

from bench.machine import machine
from bench.process import cpu_seconds, resident_mb, started
from bridge.audio.files import open_audio

SAMPLE: Final = Path(__file__).resolve().parent.parent / "samples" / "demo.flac"
SECONDS: Final = 5.0
RATE: Final = 16_000
SETTINGS: Final = {"STT_MAX_SESSIONS": "2000", "STT_MAX_FILES": "2000", "STT_EVENT_LOG": "off", "STT_VAD": "off"}
SERVE: Final = ["serve", "--backend", "scripted", "--port", "0", "--log-level", "warning"]
BOUNDARY: Final = "a-boundary-of-the-benchmark"
WARM_UP_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Case:
    """One kind of request. The bare handler gets the same body."""

    name: str
    path: str
    content_type: str
    body: bytes

    def request(self, path: str) -> bytes:
        """Its bytes."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\nAccept: application/json\r\n\r\n"
        )
        return head.encode() + self.body


def cases() -> Iterator[Case]:
    """WAV and FLAC, each as a raw body and in a form."""
    samples = _speech()
    for kind, data in (("wav", _wav(samples)), ("flac", _flac(samples))):
        yield Case(f"{kind}, raw body", "/v1/transcribe?format=json", f"audio/{kind}", data)
        form = _form({"model": "whisper-1", "response_format": "json"}, f"speech.{kind}", data)
        yield Case(f"{kind}, form", "/v1/audio/transcriptions", f"multipart/form-data; boundary={BOUNDARY}", form)


def _speech() -> bytes:
    """PCM16 mono."""
    with open_audio(str(SAMPLE)) as source:
        if (source.format.sample_rate, source.format.channels) != (RATE, 1):
            raise SystemExit(f"{SAMPLE} has another format than this benchmark believes")
        pcm = b"".join(source.chunks(1_000))
    size = round(SECONDS * RATE) * 2
    return (pcm * (size // len(pcm) + 1))[:size]


def _wav(samples: bytes) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples)
    return out.getvalue()


def _flac(samples: bytes) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=len(samples) // 2)
        frame.sample_rate = RATE
        frame.planes[0].update(samples)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def _form(fields: Mapping[str, str], name: str, data: bytes) -> bytes:
    parts = [f'name="{field}"\r\n\r\n{value}\r\n'.encode() for field, value in fields.items()]
    parts.append(
        f'name="file"; filename="{name}"\r\nContent-Type: application/octet-stream\r\n\r\n'.encode() + data + b"\r\n"
    )
    begin = f"--{BOUNDARY}\r\nContent-Disposition: form-data; ".encode()
    return b"".join(begin + part for part in parts) + f"--{BOUNDARY}--\r\n".encode()


class Served:
    """A server under load."""

    def __init__(self, name: str, pid: int, url: str) -> None:
        self.name = name
        self.pid = pid
        self._port = urlsplit(url).port or 0
        self.turns: list[dict[str, Any]] = []

    def play(self, request: bytes, connections: int, seconds: float) -> dict[str, Any]:
        """One turn."""
        cpu = cpu_seconds(self.pid)
        options = {"port": self._port, "connections": connections, "seconds": seconds}
        load = subprocess.run(
            [sys.executable, "-m", "bench.http_load", *(f"--{name}={value}" for name, value in options.items())],
            input=request,
            stdout=subprocess.PIPE,
            check=False,
        )
        turn: dict[str, Any] = json.loads(load.stdout)
        if load.returncode:
            raise SystemExit(f"{self.name}: {turn['failed']} requests failed: {turn['example'][:300]}")
        turn["rate"] = turn["requests"] / turn["seconds"]
        turn["cpu_us"] = 1e6 * (cpu_seconds(self.pid) - cpu) / turn["requests"]
        return turn

    def summary(self) -> dict[str, Any]:
        """The median of all turns since the last one."""
        turns, self.turns = self.turns, []
        return {
            "requests_per_second": round(statistics.median(t["rate"] for t in turns)),
            "cpu_us_per_request": round(statistics.median(t["cpu_us"] for t in turns)),
            "latency_ms": {p: statistics.median(t["latency_ms"][p] for t in turns) for p in ("p50", "p99")},
        }


def compare(case: Case, bare: Served, bridge: Served, args: argparse.Namespace) -> dict[str, Any]:
    """Both under the same load, in turns."""
    ratios, cpu_ratios = [], []
    pairs = ((bare, case.request("/bare")), (bridge, case.request(case.path)))
    for served, request in pairs:
        example = served.play(request, args.connections, WARM_UP_SECONDS)["example"]
    for _ in range(args.turns):
        for served, request in pairs:
            served.turns.append(served.play(request, args.connections, args.seconds))
        ratios.append(bridge.turns[-1]["rate"] / bare.turns[-1]["rate"])
        cpu_ratios.append(bare.turns[-1]["cpu_us"] / bridge.turns[-1]["cpu_us"])
    return {
        "case": case.name,
        "body_bytes": len(case.body),
        "answer": example,
        "bare": bare.summary(),
        "bridge": bridge.summary(),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_by_cpu": round(statistics.median(cpu_ratios), 3),
    }


@contextmanager
def _parts(case: Case, args: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Where the time of one kind of request goes; filled in when the context ends."""
    shares: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "parts.json"
        with started([str(out), *SERVE], "http", SETTINGS, module="bench.http_parts") as (pid, url):
            os.kill(pid, signal.SIGUSR1)
            Served("bridge, sampled", pid, url).play(case.request(case.path), args.connections, 2 * args.seconds)
        shares |= json.loads(out.read_text())
    yield shares


def main() -> int:
    """Run and print; exit code 1 if a ratio is below the least one."""
    parser = argparse.ArgumentParser(prog="python -m bench.http", description=__doc__)
    parser.add_argument("--connections", type=int, default=8, help="requests at once")
    parser.add_argument("--seconds", type=float, default=3, help="of a turn")
    parser.add_argument("--turns", type=int, default=5, help="of each server and case")
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    parser.add_argument("--least", type=float, default=0.5, help="ratio to be reached")
    args = parser.parse_args()
    where = machine()
    results = []
    with ExitStack() as stack:
        bare = Served("bare", *stack.enter_context(started([], "http", {}, module="bench.http_bare")))
        bridge = Served("bridge", *stack.enter_context(started(SERVE, "http", SETTINGS)))
        chosen = [case for case in cases() if args.case in case.name]
        before = resident_mb(bridge.pid)
        results = [compare(case, bare, bridge, args) for case in chosen]
        grown = resident_mb(bridge.pid, "VmHWM") - before
    for case, result in zip(chosen, results, strict=True):
        with _parts(case, args) as shares:
            result["percent_of_the_bridge"] = shares
    print(json.dumps({"cases": results, "memory_grown_mb": round(grown, 1), "machine": where}, indent=1))
    return 0 if all(result["ratio"] >= args.least for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
