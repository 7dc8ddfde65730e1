"""What may be asked for, and who does which part of it."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from bench.load.arguments import PROTOCOLS, add_arguments
from bench.load.dialects import DIALECTS
from bench.load.plan import Plan, PlanError, plan_of

URL = "ws://127.0.0.1:8000/v1/stream"


def test_the_protocols_of_the_command_line_are_those_there_are() -> None:
    assert tuple(DIALECTS) == PROTOCOLS


def test_arguments_become_a_plan() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["--sessions", "7", "--protocol", "wyoming", "--jitter", "0.05", "--audio", "mine"])
    plan = plan_of(args, "tcp://localhost:10300")
    assert plan == Plan(
        url="tcp://localhost:10300", dialect="wyoming", sessions=7, seconds=20, ramp=5, jitter=0.05, audio="mine"
    )


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (URL, ("127.0.0.1", 8000, "/v1/stream")),
        ("ws://localhost/a?b=c", ("localhost", 80, "/a?b=c")),
        ("ws://[::1]:9", ("::1", 9, "/")),
        ("tcp://127.0.0.1:10300", ("127.0.0.1", 10300, "/")),
    ],
)
def test_an_address(url: str, address: tuple[str, int, str]) -> None:
    assert Plan(url=url).address == address


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:80/", "wss://127.0.0.1/", "tcp://127.0.0.1/", "ws://127.0.0.1:99999/", "ws://", "x"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(PlanError, match="must be ws://HOST:PORT/PATH"):
        Plan(url=url)


def test_another_machine_must_be_meant() -> None:
    with pytest.raises(PlanError, match="only a server on this machine"):
        Plan(url="ws://192.0.2.1/v1/stream")
    assert Plan(url="ws://192.0.2.1/v1/stream", remote=True).address[0] == "192.0.2.1"


@pytest.mark.parametrize(
    "bad",
    [
        {"sessions": 0},
        {"sessions": 20_001},
        {"seconds": 0.05},
        {"seconds": 1e6},
        {"ramp": -1},
        {"jitter": 0.2},
        {"think": 61},
        {"hold": -0.1},
        {"lasting": float("nan")},
        {"every": 0},
    ],
    ids=str,
)
def test_what_is_out_of_bounds_is_named(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(PlanError, match=f"^{name}: "):
        Plan(url=URL, **bad)


@pytest.mark.parametrize("key", ["a\r\nX-Other: b", "schlüssel", "a\x00b"])
def test_a_key_cannot_carry_another_header(key: str) -> None:
    with pytest.raises(PlanError, match="an API key") as caught:
        Plan(url=URL, key=key)
    assert key not in str(caught.value)


def test_a_key_needs_a_web_socket() -> None:
    with pytest.raises(PlanError, match="an API key"):
        Plan(url="tcp://127.0.0.1:10300", dialect="wyoming", key="sesame")


@pytest.mark.parametrize(("sessions", "processes"), [(10, 1), (10, 3), (3, 3), (20_000, 16)])
def test_the_shares_are_the_whole(sessions: int, processes: int) -> None:
    shares = [Plan(url=URL, sessions=sessions).share(number, processes) for number in range(processes)]
    numbers = [n for share in shares for n in range(share.first, share.first + share.sessions)]
    assert numbers == list(range(sessions))
    assert max(s.sessions for s in shares) - min(s.sessions for s in shares) <= 1
    assert len({share.seed for share in shares}) == processes
