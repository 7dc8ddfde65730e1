"""Everything breaks, and no word is lost: `python -m bench.chaos --faults 200`.

Clients stream recordings in real time by the client library, each through a proxy that cuts its connection; the
server is killed, stopped and frozen; the engine fails, stalls and ends its streams. In the end every transcript has to
equal the one without faults, every sequence number to come once and in order. Exit code 1 if anything differs.

`--backend markers`: audio whose words are known. `pocketsphinx`: the project's samples, compared to a run without
faults. `--log redis --nodes 2`: clients come to any of the servers, and Redis breaks, too. `--fallback`: a second
engine of the same kind stands beside the first, and takes over when that fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from bench.chaos.nodes import serving
from bench.chaos.recordings import Recording, marker_recordings, sample_recordings
from bench.chaos.run import Chaos, Plan, counted, references, undisturbed
from bench.chaos.supervisor import HOST
from bench.machine import machine

ENGINES = {"markers": "scripted", "pocketsphinx": "pocketsphinx"}


def recordings(args: argparse.Namespace) -> list[Recording]:
    """What is said."""
    if args.backend == "markers":
        return marker_recordings(8, args.seconds, args.seed)
    return sample_recordings(longest=args.seconds)


async def run(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Everything; returns the report."""
    where = machine()
    engine = ENGINES[args.backend]
    settings = {"STT_BACKEND": f"faulty,{engine}", "STT_BREAKER_SECONDS": "2"} if args.fallback else {}
    if engine == "pocketsphinx":
        # On a busy machine a decoder that is slow is none that hangs.
        settings |= {"STT_POCKETSPHINX_STREAMS": "64", "STT_STALL_SECONDS": "8"}
    said = recordings(args)
    shared = args.log == "redis"
    async with serving(engine, folder, settings, count=args.nodes, redis=shared) as nodes:
        plain = await references(f"ws://{HOST}:{nodes.ports[0]}/v1/stream", said, args.streams)
        expected = {h.recording.name: h.recording.expected or h.text for h in plain}
        wrong = [
            f"without faults, {h.recording.name}: {d}" for h in plain for d in h.differences(expected[h.recording.name])
        ]
        plan = Plan(args.faults, args.seed, args.client_seconds, args.server_seconds)
        if args.only:
            plan = Plan(
                *(args.faults, args.seed, args.client_seconds, args.server_seconds),
                *(
                    tuple(k for k in kinds if k in args.only)
                    for kinds in (plan.link_kinds, plan.engine_kinds, plan.server_kinds)
                ),
            )
        chaos = Chaos(nodes, plan, said, expected)
        began = time.monotonic()
        await chaos.run(args.streams)
        wrong += chaos.differences()
        return {
            "backend": args.backend + (" with a fallback" if args.fallback else ""),
            "event_log": args.log,
            "nodes": args.nodes,
            "streams": args.streams,
            "seed": args.seed,
            "wall_seconds": round(time.monotonic() - began, 1),
            **counted(chaos),
            "silences": {"none": undisturbed(plain), **chaos.silences()},
            "worst": chaos.worst(),
            "differences": wrong,
            "machine": where,
        }


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--backend", choices=tuple(ENGINES), default="markers")
    parser.add_argument("--fallback", action="store_true", help="a second engine, for when the first fails")
    parser.add_argument("--streams", type=int, default=4, help="clients at once")
    parser.add_argument("--log", choices=("sqlite", "redis"), default="sqlite", help="the event log")
    parser.add_argument("--nodes", type=int, default=1, help="servers; several need Redis")
    parser.add_argument("--seconds", type=float, default=20, help="of audio in the longest session")
    parser.add_argument("--client-seconds", type=float, default=5, help="mean time between two faults of one client")
    parser.add_argument("--server-seconds", type=float, default=12, help="mean time between two faults of the server")
    parser.add_argument("--only", nargs="*", metavar="KIND", help="no other kinds of faults")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--keep", type=Path, help="folder for the server's log (default: one that is deleted)")
    args = parser.parse_args()
    if args.nodes > 1 and args.log != "redis":
        parser.error("several servers need --log redis")
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(run(args, folder))
    print(json.dumps(report, indent=1))
    return int(bool(report["differences"]))


if __name__ == "__main__":
    sys.exit(main())
