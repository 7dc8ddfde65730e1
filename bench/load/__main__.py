"""`python -m bench.load`: sessions against a server that runs already; the report as JSON on standard output.

The exit code is 1 if a session was refused or dropped. `stt-bridge bench` is the same for people.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from bench.load.dialects import DIALECTS
from bench.load.fleet import play
from bench.load.plan import Plan, PlanError
from bench.load.report import report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a plan holds."""
    parser.add_argument("--sessions", type=int, default=100, help="open at once (default: 100)")
    parser.add_argument("--seconds", type=float, default=20, help="audio of each session (default: 20)")
    parser.add_argument("--ramp", type=float, default=5, help="seconds over which sessions are opened (default: 5)")
    parser.add_argument("--jitter", type=float, default=0.02, help="seconds that a frame is late at most")
    parser.add_argument("--think", type=float, default=1, help="silence between pieces of speech, on average")
    parser.add_argument("--hold", type=float, default=0, help="seconds that a session is open before its audio comes")
    parser.add_argument("--lasting", type=float, default=0, help="open sessions anew for so many seconds")
    parser.add_argument("--protocol", choices=DIALECTS, default="native", help="what is spoken (default: native)")
    parser.add_argument("--processes", type=int, default=1, help="load generators (default: 1)")
    parser.add_argument("--remote", action="store_true", help="allow a server on another machine: it must be yours")


def plan_of(args: argparse.Namespace, url: str) -> Plan:
    """The plan that the arguments describe.

    Raises:
        PlanError: out of bounds.
    """
    return Plan(
        url=url,
        dialect=args.protocol,
        sessions=args.sessions,
        seconds=args.seconds,
        ramp=args.ramp,
        jitter=args.jitter,
        think=args.think,
        hold=args.hold,
        lasting=args.lasting,
        remote=args.remote,
    )


def main() -> int:
    """Play, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--url", default="ws://127.0.0.1:8000/v1/stream")
    add_arguments(parser)
    args = parser.parse_args()
    try:
        plan = plan_of(args, args.url)
        seen = asyncio.run(play(plan, args.processes))
    except PlanError as exc:
        parser.error(str(exc))
    print(json.dumps(report(plan, seen), indent=1))
    return 1 if seen.refused or seen.dropped else 0


if __name__ == "__main__":
    sys.exit(main())
