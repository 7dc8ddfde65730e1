"""The room protocol over the whole road: one sender, its screens, and what `close` promises."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from backends.scripted import marker_audio
from tests.wire import LIMIT, get, markers, serve

WORDS = 12
PCM = marker_audio(WORDS)
FLOATS = (np.frombuffer(PCM, "<i2") / 32_768).astype("<f4").tobytes()


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with serve(event_log="sqlite::memory:") as address:
        yield address


@contextlib.asynccontextmanager
async def room(url: str, name: str, mode: str, query: str = "") -> AsyncIterator[ClientConnection]:
    address = f"{url.replace('http', 'ws', 1)}/ws/asr/{name}?mode={mode}{query}"
    async with asyncio.timeout(LIMIT), connect(address, proxy=None) as socket:
        yield socket


async def heard(socket: ClientConnection) -> tuple[list[dict[str, Any]], int | None]:
    """Everything up to the end, and the close code."""
    messages = []
    try:
        while True:
            messages.append(json.loads(await socket.recv()))
    except ConnectionClosed:
        return messages, socket.close_code


def words(messages: list[dict[str, Any]]) -> list[str]:
    return [word for message in messages for word in message["asr"].split()]


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize("size", [6_400, 1_021, 6_402])
async def test_everybody_has_every_word_before_the_end(url: str, size: int) -> None:
    """Messages of 1,021 and 6,402 bytes cut samples in two."""
    async with (
        room(url, "hall", "receiver") as early,
        room(url, "hall", "sender") as sender,
        room(url, "hall", "receiver") as second,
        asyncio.TaskGroup() as group,
    ):
        ends = [group.create_task(heard(socket)) for socket in (sender, early, second)]
        for piece in pieces(FLOATS, size):
            await sender.send(piece)
        await sender.send(" Close\n")
    for end in ends:
        messages, code = end.result()
        assert words(messages) == markers(WORDS)
        assert all(set(message) == {"asr", "spk"} and message["spk"] is None for message in messages)
        assert code == 1000


@pytest.mark.parametrize("by", ["query", "setting"])
async def test_int16(by: str) -> None:
    settings: dict[str, Any] = {"asr_room_encoding": "pcm_s16le"} if by == "setting" else {}
    query = "&encoding=pcm_s16le" if by == "query" else ""
    async with serve(event_log="off", **settings) as url, room(url, "r", "sender", query) as sender:
        for piece in pieces(PCM, 3_201):
            await sender.send(piece)
        await sender.send("close")
        assert words((await heard(sender))[0]) == markers(WORDS)


async def test_partials_by_query(url: str) -> None:
    async with (
        room(url, "hall", "sender") as sender,
        room(url, "hall", "receiver", "&partials=true") as curious,
        room(url, "hall", "receiver") as plain,
        asyncio.TaskGroup() as group,
    ):
        ends = [group.create_task(heard(socket)) for socket in (curious, plain)]
        for piece in pieces(FLOATS, 6_400):
            await sender.send(piece)
            await asyncio.sleep(0)
        await sender.send("close")
    with_partials, without = (end.result()[0] for end in ends)
    assert words([m for m in with_partials if "partial" not in m]) == markers(WORDS)
    assert words(without) == markers(WORDS)
    assert not any("partial" in message for message in without)


async def test_a_second_sender_is_refused(url: str) -> None:
    async with room(url, "hall", "sender") as sender:
        async with room(url, "hall", "sender") as second:
            messages, code = await heard(second)
        assert [message["error"]["code"] for message in messages] == ["session_taken"]
        assert code == 4409
        await sender.send(FLOATS)
        await sender.send("close")
        assert words((await heard(sender))[0]) == markers(WORDS)  # the first one is not hurt


async def test_the_room_is_used_again(url: str) -> None:
    for _ in range(3):
        async with room(url, "hall", "sender") as sender:
            await sender.send(FLOATS)
            await sender.send("close")
            assert words((await heard(sender))[0]) == markers(WORDS)
    transcript = await get(f"{url}/v1/sessions/hall/transcript?format=txt")
    assert transcript.body.decode().split() == markers(WORDS)


async def test_a_sender_that_is_gone_leaves_its_place(url: str) -> None:
    """Nobody has a token to come back with, so the session does not wait."""
    async with room(url, "hall", "sender") as sender:
        await sender.send(FLOATS[:40_000])
    async with asyncio.timeout(LIMIT):
        while (await get(f"{url}/v1/sessions/hall")).json["state"] != "ended":
            await asyncio.sleep(0.02)
    async with room(url, "hall", "sender") as sender:
        await sender.send(FLOATS)
        await sender.send("close")
        assert words((await heard(sender))[0]) == markers(WORDS)


async def test_a_receiver_cannot_end_the_session(url: str) -> None:
    async with room(url, "hall", "sender") as sender, room(url, "hall", "receiver") as receiver:
        await receiver.send(b"audio")
        await receiver.send("stop")
        await receiver.send("close")
        messages, code = await heard(receiver)
        assert [message["error"]["code"] for message in messages] == ["bad_order", "bad_message"]
        assert code == 1000
        await sender.send(FLOATS)
        await sender.send("close")
        assert words((await heard(sender))[0]) == markers(WORDS)


async def test_other_text_hurts_nothing(url: str) -> None:
    async with room(url, "hall", "sender") as sender:
        await sender.send("hello")
        await sender.send(FLOATS)
        await sender.send("close")
        (refused, *rest), code = await heard(sender)
        assert refused["error"]["code"] == "bad_message"
        assert (words(rest), code) == (markers(WORDS), 1000)


async def test_late_receivers_ask_for_all(url: str) -> None:
    async with room(url, "hall", "sender") as sender:
        await sender.send(FLOATS)
        await sender.send("close")
        await heard(sender)
    async with room(url, "hall", "receiver", "&from_seq=1") as late:
        messages, code = await heard(late)
    assert (words(messages), code) == (markers(WORDS), 1000)


@pytest.mark.parametrize(
    ("name", "mode", "query"),
    [
        ("hall", "", ""),
        ("hall", "both", ""),
        ("hall", "sender", "&encoding=mp3"),
        ("ha%20ll", "sender", ""),
        ("", "sender", ""),
        ("x" * 129, "receiver", ""),
    ],
)
async def test_requests_that_are_wrong(url: str, name: str, mode: str, query: str) -> None:
    async with room(url, name, mode, query) as socket:
        messages, code = await heard(socket)
    assert [message["error"]["code"] for message in messages] == ["bad_start"]
    assert code == 4400


async def test_a_room_does_not_replace_another_protocol_s_session(url: str) -> None:
    """Whoever may only send would else delete what somebody said."""
    name = "a-name-of-16-chars"
    address = f"{url.replace('http', 'ws', 1)}/v1/stream?encoding=pcm_s16le&session_id={name}"
    async with asyncio.timeout(LIMIT), connect(address, proxy=None) as native:
        await native.send(PCM)
        await native.send('{"type":"stop"}')
        await heard(native)
    async with room(url, name, "sender") as sender:
        messages, code = await heard(sender)
    assert [message["error"]["code"] for message in messages] == ["session_taken"]
    assert code == 4409
    transcript = await get(f"{url}/v1/sessions/{name}/transcript?format=txt")
    assert transcript.body.decode().split() == markers(WORDS)


async def test_samples_that_are_no_numbers(url: str) -> None:
    async with room(url, "hall", "sender") as sender:
        await sender.send(struct.pack("<6f", float("nan"), float("inf"), -float("inf"), 1e30, -2.0, 0.0))
        await sender.send("close")
        messages, code = await heard(sender)
    assert ([m for m in messages if "error" in m], code) == ([], 1000)


async def test_the_room_is_used_again_after_a_deletion(url: str) -> None:
    for _ in range(2):
        async with room(url, "hall", "sender") as sender:
            await sender.send(FLOATS)
            await sender.send("close")
            assert words((await heard(sender))[0]) == markers(WORDS)
        transcript = await get(f"{url}/v1/sessions/hall/transcript?format=txt")
        assert transcript.body.decode().split() == markers(WORDS)
        assert (await get(f"{url}/v1/sessions/hall", method="DELETE")).status == 204
        assert (await get(f"{url}/v1/sessions/hall")).status == 404
