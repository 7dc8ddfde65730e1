"""What a run is asked for on a command line. Imports nothing heavy: `stt-bridge --help` reads this, too."""

from __future__ import annotations

import argparse
from typing import Final

PROTOCOLS: Final = (
    "native", "native-base64", "silent", "silent-base64", "whisper-live", "whisperlivekit", "wyoming",
)  # fmt: skip
"""The names of `bench.load.dialects`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a plan holds."""
    parser.add_argument("--sessions", type=int, default=100, metavar="N", help="open at once (default: 100)")
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help="audio of each session (default: 20)")
    parser.add_argument(
        "--ramp", type=float, default=5, metavar="S", help="seconds over which sessions are opened (default: 5)"
    )
    parser.add_argument(
        "--jitter", type=float, default=0.02, metavar="S", help="seconds that a frame is late at most (default: 0.02)"
    )
    parser.add_argument(
        "--think", type=float, default=1, metavar="S", help="silence between pieces of speech, on average (default: 1)"
    )
    parser.add_argument(
        "--hold", type=float, default=0, metavar="S", help="seconds that a session is open before its audio comes"
    )
    parser.add_argument("--lasting", type=float, default=0, metavar="S", help="open sessions anew for so many seconds")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="native", help="what is spoken (default: native)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="load generators (default: 1)")
    parser.add_argument(
        "--audio",
        default="",
        metavar="FOLDER",
        help="speech to play: a folder with a manifest.json, as samples/ has one",
    )
    parser.add_argument("--remote", action="store_true", help="allow a server on another machine: it must be yours")
