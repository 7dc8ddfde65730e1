"""`python -m bench.load`: sessions against a server that runs already; the report as JSON on standard output.

The variable STT_API_KEY holds the key of a server that wants one. The exit code is 1 if a session was refused or
dropped. `stt-bridge bench` is the same for people.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys

from bench.load.arguments import add_arguments
from bench.load.fleet import play
from bench.load.plan import PlanError, plan_of
from bench.load.report import report


def main() -> int:
    """Play, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--url", default="ws://127.0.0.1:8000/v1/stream")
    add_arguments(parser)
    args = parser.parse_args()
    try:
        plan = plan_of(args, args.url, os.environ.get("STT_API_KEY", ""))
        seen = asyncio.run(play(plan, args.processes))
    except PlanError as exc:
        parser.error(str(exc))
    print(json.dumps(report(plan, seen), indent=1))
    return 1 if seen.refused or seen.dropped else 0


if __name__ == "__main__":
    sys.exit(main())
