"""Receivers over connections that break, against a server that says what the test tells it to."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from bridge.client import ConnectError, ConnectionLost, Reconnect, SessionError, receive
from bridge.protocols import native
from tests.client.test_sender import say, serving

QUICK = Reconnect(base_seconds=0.001, most_seconds=0.01)
Json = dict[str, Any]


def joined(last_seq: int, state: str = "live") -> Json:
    return {"type": "joined", "protocol": 1, "session_id": "s", "state": state, "last_seq": last_seq}


def final(seq: int) -> Json:
    return {"type": "final", "seq": seq, "text": f"w{seq}", "start": 0, "end": 1}


def closed(seq: int | None, code: str = "stopped") -> Json:
    message = {"type": "closed", "code": code, "received": 0, "finalized": 0, "duration": 0}
    return message if seq is None else message | {"seq": seq}


class Script:
    """What is said on each connection; then it is cut."""

    def __init__(self, *talks: list[Json]) -> None:
        self.talks = list(talks)
        self.starts: list[Json] = []

    async def __call__(self, connection: ServerConnection) -> None:
        self.starts.append(json.loads(await connection.recv()))
        await say(connection, *(self.talks.pop(0) if self.talks else [joined(0)]))
        await asyncio.sleep(0.01)
        connection.transport.abort()


async def heard(script: Script, *, from_seq: int | None = None, reconnect: Reconnect | None = QUICK) -> list[int]:
    async with serving(script) as url, receive(url, "s", from_seq=from_seq, reconnect=reconnect) as receiver:
        return [m.seq async for m in receiver if isinstance(m, native.FinalMessage | native.ClosedMessage) and m.seq]


async def test_what_follows() -> None:
    script = Script([joined(7), final(8), final(9)], [joined(9)], [joined(11), final(10), final(11), closed(12)])
    assert await heard(script) == [8, 9, 10, 11, 12]
    assert [start.get("from_seq") for start in script.starts] == [None, 10, 10]
    assert script.starts[0] == {"type": "start", "role": "receiver", "session_id": "s"}


async def test_from_the_beginning() -> None:
    script = Script([joined(3), final(1)], [joined(3), final(2), final(2), final(1), final(3), closed(4)])
    assert await heard(script, from_seq=1) == [1, 2, 3, 4]
    assert [start["from_seq"] for start in script.starts] == [1, 2]


async def test_a_session_that_has_ended() -> None:
    assert await heard(Script([joined(5, "ended"), closed(5)])) == [5]


async def test_a_session_that_ends_between_two_connections() -> None:
    """Its `closed` counts as said before the first one, and comes with none."""
    script = Script([joined(5, "held")], [joined(5, "ended")], [joined(5, "ended"), closed(5)])
    assert await heard(script) == [5]
    assert [start.get("from_seq") for start in script.starts] == [None, 6, 5]


async def test_a_gap_is_asked_for() -> None:
    script = Script([joined(1), final(3)], [joined(3), final(2), final(3), closed(4)])
    assert await heard(script) == [2, 3, 4]


async def test_slow_receivers_come_back() -> None:
    script = Script([joined(0), final(1), closed(None, "slow_receiver")], [joined(1), final(2), closed(3)])
    assert await heard(script) == [1, 2, 3]


@pytest.mark.parametrize("code", ["sender_gone", "deleted"])
async def test_an_end_that_is_none_of_the_senders(code: str) -> None:
    with pytest.raises(SessionError) as caught:
        await heard(Script([joined(0), final(1), closed(2, code)]))
    assert caught.value.code == code


async def test_nobody_comes_back_without_reconnect() -> None:
    with pytest.raises(ConnectionLost):
        await heard(Script([joined(0), final(1)]), reconnect=None)


async def test_given_up() -> None:
    script = Script([joined(0), final(1)], *[[joined(1)]] * 500)
    with pytest.raises(ConnectionLost, match="resumed for 1 s without getting any further"):
        await heard(script, reconnect=Reconnect(base_seconds=0.001, most_seconds=0.01, give_up_seconds=0.2))


async def test_something_else_than_joined() -> None:
    with pytest.raises(ConnectError, match="instead of `joined`"):
        await heard(Script([final(1)]))
