"""`stt-bridge bench`: recorded speech over many sessions in real time, and how a server carries it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.load.arguments import add_arguments
from bridge.commands.exits import Exit, complain, epilog, exit_code
from bridge.commands.stream import stream_url

if TYPE_CHECKING:
    from bench.load.plan import Plan
    from bench.load.report import Report
    from bench.load.results import Seen
    from bench.load.server import Cost

ANYWHERE: Final = "ws://127.0.0.1:1/"
"""In place of the address of a server that has not been started."""
LINES: Final = 6
"""Told while it runs, where nobody looks at a terminal."""

_EPILOG: Final = f"""\
Exit code 1 also says that a session was refused or dropped. Latencies are on the audio's own clock: from sending a
sample to the text that covers it. Put only servers under load that are yours.

{epilog(Exit.OK, Exit.FAILED, Exit.USAGE, Exit.UNREADABLE, Exit.INTERRUPTED)}

examples:
  stt-bridge bench --sessions 4
  stt-bridge bench --backend scripted --sessions 500 --processes 2 --json run.json --plot run.svg
  stt-bridge bench --url ws://127.0.0.1:8000 --sessions 50 --seconds 60
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "bench",
        help="put a server under load and measure it",
        description="Play recorded speech in real time over many sessions; tell how many a server carries, how late "
        "its texts are and how wrong. Without --url it starts a server of its own, and tells what that costs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", help="a server that runs already: ws://HOST:PORT/PATH, or tcp://HOST:PORT")
    parser.add_argument("--backend", metavar="NAME", help="the engine of a server of its own (STT_BACKEND)")
    parser.add_argument("--api-key", metavar="KEY", help="API key (default: the variable STT_API_KEY)")
    add_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them: a name that ends in .svg or .png")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure. Returns the exit code."""
    from bench.load.plan import PlanError
    from bench.load.speech import SpeechError
    from bench.plot import PlotError

    found = Exit.OK

    def work() -> None:
        nonlocal found
        _check(args)
        found = _measure(args)

    try:
        return exit_code(work) or found
    except (PlanError, PlotError) as exc:
        complain(exc)
        return Exit.USAGE
    except SpeechError as exc:
        complain(exc)
        return Exit.UNREADABLE
    except (RuntimeError, SystemExit) as exc:  # a generator failed, and has said why; the server did not start
        complain(exc)
        return Exit.FAILED


def _check(args: argparse.Namespace) -> None:
    """Refuse now what would fail when all has been measured."""
    from bench.load.fleet import check_processes
    from bench.load.plan import PlanError
    from bench.load.speech import SAMPLES, manifest
    from bench.plot import check

    if args.url is not None and args.backend is not None:
        raise PlanError("--backend is for a server of its own: leave --url away, or --backend")
    if args.url is None and not _is_ours(args.protocol):
        raise PlanError(f"a server that speaks {args.protocol} must run already: name it by --url")
    check_processes(_plan(args, args.url or ANYWHERE), args.processes)
    if args.plot is not None:
        check(args.plot)
    for path in (args.json, args.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise PlanError(f"there is no folder for {path}")
    manifest(Path(args.audio) if args.audio else SAMPLES)


def _is_ours(protocol: str) -> bool:
    return protocol in {"native", "native-base64"}


def _measure(args: argparse.Namespace) -> Exit:
    from bench.load.report import report
    from bench.load.text import lines, warning
    from bench.machine import machine

    with contextlib.ExitStack() as stack:
        cost = None
        if args.url is not None:
            plan = _plan(args, args.url)
        else:
            plan, cost = stack.enter_context(_own_server(args))
        here = machine()  # as it is before the load
        progress = Progress(plan, cost)
        seen = asyncio.run(_play(plan, args.processes, progress))
        server = cost.told(seen.frames, progress.most) if cost is not None else None
    told = report(plan, seen) | {"open_at_once": progress.most, "server": server, "machine": here}
    sys.stdout.write("\n".join(lines(told)) + "\n")
    if (doubt := warning(told)) is not None:
        complain(f"warning: {doubt}")
    _keep(args, told)
    return Exit.OK if seen.completed and not seen.refused and not seen.dropped else Exit.FAILED


def _plan(args: argparse.Namespace, url: str) -> Plan:
    """What is to be played, against a server that may want a key."""
    from bench.load.plan import plan_of

    key = args.api_key or ("" if url.startswith("tcp:") else os.environ.get("STT_API_KEY")) or ""
    return plan_of(args, stream_url(url) if _is_ours(args.protocol) else url, key)


@contextlib.contextmanager
def _own_server(args: argparse.Namespace) -> Iterator[tuple[Plan, Cost | None]]:
    """A server for this run, the plan for it, and what will tell its cost."""
    from bench.load.fleet import play
    from bench.load.plan import plan_of
    from bench.load.server import Cost, serving, settings, warm_up

    variables = settings(args.sessions, args.hold, args.seconds, args.backend)
    sys.stderr.write("starting a server\n")
    sys.stderr.flush()
    with serving(variables) as (pid, url):
        plan = plan_of(args, url)
        asyncio.run(play(warm_up(plan)))
        yield plan, Cost.of(pid)


async def _play(plan: Plan, processes: int, progress: Progress) -> Seen:
    from bench.load.fleet import play

    with progress:
        return await play(plan, processes, progress.take)


def _keep(args: argparse.Namespace, told: Report) -> None:
    from bench.plot import plot

    if args.json is not None:
        args.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.plot is not None:
        plot([told], args.plot)


class Progress:
    """Says on standard error how far a run is: in place on a terminal, in a few lines elsewhere."""

    def __init__(self, plan: Plan, cost: Cost | None) -> None:
        from rich.console import Console

        self.most = 0
        """Sessions that were open at once."""
        self._length = max(plan.ramp + plan.hold + plan.seconds, plan.lasting)
        self._cost = cost
        self._open: dict[int, int] = {}
        self._counts = dict.fromkeys(("completed", "refused", "dropped"), 0)
        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("connecting") if self._console.is_terminal else None
        self._said = 0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = asyncio.get_running_loop().time()
        if self._status is not None:
            self._status.start()

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def take(self, seen: Seen) -> None:
        """One generator's news."""
        self._open[seen.generator] = seen.open
        self.most = max(self.most, sum(self._open.values()))
        for name in self._counts:
            self._counts[name] += getattr(seen, name)
        if self._cost is not None and seen.generator == 0:
            self._cost.look()
        passed = asyncio.get_running_loop().time() - self._began
        counts = ", ".join(f"{count} {name}" for name, count in self._counts.items())
        line = f"{passed:.0f} s of {self._length:.0f}: {sum(self._open.values())} sessions open, {counts}"
        if self._status is not None:
            self._status.update(line)
        elif passed * LINES >= self._length * (self._said + 1) and seen.generator == 0:
            self._said = int(passed * LINES / self._length)
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
