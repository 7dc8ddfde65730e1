"""What a run is asked to do, and the bounds of that."""

from __future__ import annotations

import argparse
from typing import Final
from urllib.parse import urlsplit

import msgspec

FRAME_SECONDS: Final = 0.1
RATE: Final = 16_000
"""Hz, of PCM16 mono."""
FRAME_SAMPLES: Final = round(FRAME_SECONDS * RATE)
FRAME_BYTES: Final = 2 * FRAME_SAMPLES

MAX_SESSIONS: Final = 20_000
MAX_SECONDS: Final = 86_400
MAX_PROCESSES: Final = 16
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_PORTS: Final = {"ws": 80, "tcp": 0}


class PlanError(ValueError):
    """The plan is out of bounds; the text says how."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A run; durations in seconds.

    `sessions` are open at once, begun evenly over `ramp`, each of so many `seconds` of audio. `jitter`: how much later
    than due a frame is sent at most, as by a network. `think`: silence between two pieces of speech, on average.
    `hold`: how long a session is open before it is sent audio. `lasting`: begin sessions anew, where others have ended,
    for so long (0: each is played once). `every`: how often what was seen is told of. `first`: the number of the first
    session, where several generators share the load.
    """

    url: str
    dialect: str = "native"
    sessions: int = 1
    seconds: float = 20.0
    ramp: float = 5.0
    jitter: float = 0.02
    think: float = 1.0
    hold: float = 0.0
    lasting: float = 0.0
    every: float = 1.0
    first: int = 0
    seed: int = 1
    audio: str = ""
    """A folder of speech with a manifest; the project's own samples if it is empty."""
    key: str = ""
    """The server's API key. Part of no report and no message."""
    remote: bool = False
    """Whether another machine may be put under load."""

    def __post_init__(self) -> None:
        bounds = {
            "sessions": (self.sessions, 1, MAX_SESSIONS),
            "seconds": (self.seconds, FRAME_SECONDS, MAX_SECONDS),
            "ramp": (self.ramp, 0, MAX_SECONDS),
            "jitter": (self.jitter, 0, FRAME_SECONDS),
            "think": (self.think, 0, 60),
            "hold": (self.hold, 0, MAX_SECONDS),
            "lasting": (self.lasting, 0, MAX_SECONDS),
            "every": (self.every, 0.1, 3_600),
        }
        for name, (value, least, most) in bounds.items():
            if not least <= value <= most:
                raise PlanError(f"{name}: {least:g} to {most:g}, not {value:g}")
        scheme = urlsplit(self.url).scheme
        _ = self.address
        if self.key and (scheme != "ws" or not self.key.isascii() or not self.key.isprintable()):
            raise PlanError("an API key goes into a WebSocket's request, and is of printable ASCII characters")
        if not self.remote and self.address[0] not in LOOPBACK:
            raise PlanError("only a server on this machine may be put under load, unless it is said to be meant")

    @property
    def address(self) -> tuple[str, int, str]:
        """Host, port and path."""
        parts = urlsplit(self.url)
        try:
            port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError:
            port = 0
        if parts.scheme not in _PORTS or not parts.hostname or not port:
            raise PlanError("the address must be ws://HOST:PORT/PATH or tcp://HOST:PORT")
        return parts.hostname, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def share(self, number: int, of: int) -> Plan:
        """What one of several generators does of it."""
        count = self.sessions * (number + 1) // of - self.sessions * number // of
        first = self.sessions * number // of
        return msgspec.structs.replace(self, sessions=count, first=first, seed=self.seed + number)


def plan_of(args: argparse.Namespace, url: str, key: str = "") -> Plan:
    """The plan that the arguments of `bench.load.arguments` describe.

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
        audio=args.audio,
        key=key,
        remote=args.remote,
    )
