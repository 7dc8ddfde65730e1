"""The command `stt-bridge`. What each subcommand does stands in `bridge/commands`, imported when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import bridge
from bridge.commands import backends, bench, demo, emulate_google, serve, stream, token, transcribe, worker
from bridge.commands.exits import Exit


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="stt-bridge",
        description="Live audio in, transcripts out: a server between a microphone and a speech recogniser.",
    )
    parser.add_argument("--version", action="version", version=f"stt-bridge {bridge.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (serve, worker, stream, transcribe, token, backends, demo, bench, emulate_google):
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. `--help` and wrong usage raise `SystemExit`, as argparse does."""
    args = make_parser().parse_args(argv)
    try:
        code = int(args.run(args))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does. Nothing may complain, the interpreter's exit included.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.BROKEN_PIPE
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return code
