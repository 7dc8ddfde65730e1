"""What the caller may do to a client, and what the client leaves behind."""

from __future__ import annotations

import asyncio
import time

import pytest
from websockets.protocol import State

from bridge.client import (
    Client,
    ConnectionLost,
    Interrupted,
    Reconnect,
    Resumed,
    connect,
    mailbox,
)
from bridge.client.connection import CLOSE_SECONDS
from tests.client.fake import WORD, FakeServer, Plan
from tests.client.talk import QUICK, START, assert_whole, noise, talk


async def test_a_caller_who_reads_late_misses_nothing() -> None:
    server = FakeServer(*[Plan(after_audio=30 * WORD)] * 3)
    async with server.serving(), connect(server.url, START, reconnect=QUICK) as client:
        await client.send(noise(200))
        await client.stop()
        await asyncio.sleep(0.3)
        seen = [message async for message in client]
    assert_whole(server, noise(200), seen)


async def test_who_does_not_read_is_not_kept_from_a_living_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is heard of the server because nobody listens."""
    monkeypatch.setattr(mailbox, "MAX_LASTING", 2)
    server = FakeServer()
    chosen = Reconnect(silence_seconds=0.1, base_seconds=0.001)
    async with server.serving(), connect(server.url, START, reconnect=chosen) as client:
        await client.send(noise(100))
        await asyncio.sleep(0.6)
        await client.stop()
        seen = [message async for message in client]
    assert_whole(server, noise(100), seen)
    assert client.reconnects == 0


@pytest.mark.parametrize("news", [Interrupted, Resumed])
async def test_what_the_callback_raises_ends_the_session(news: type[Interrupted | Resumed]) -> None:
    def tell(event: Interrupted | Resumed) -> None:
        if isinstance(event, news):
            raise KeyError("oh dear")

    server = FakeServer(Plan(after_audio=WORD))
    async with server.serving(), connect(server.url, START, on_reconnect=tell) as client:
        await client.send(noise(3))
        with pytest.raises(KeyError):
            _ = [message async for message in client]
        with pytest.raises(ConnectionLost):
            await client.send(b"\0\0")
        last = client._connection
    assert last is None or last._websocket.state is State.CLOSED


@pytest.mark.parametrize("after", [0, 0.001, 0.003, 0.01, 0.02, 0.05, 0.1])
async def test_cancelled_at_any_point_it_leaves_nothing_behind(after: float) -> None:
    plans = [Plan(after_audio=2 * WORD), Plan(drop=True), Plan(mute=True), Plan(http=503), Plan(after_audio=WORD)]
    server = FakeServer(*plans)
    before = asyncio.all_tasks()

    async def use() -> None:
        async with connect(server.url, START, reconnect=QUICK, open_seconds=0.02) as client:
            while True:
                await client.send(noise(1))
                await asyncio.sleep(0)

    async with server.serving():
        task = asyncio.create_task(use())
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, ConnectionLost)):
            async with asyncio.timeout(5):
                await task
        left = {t for t in asyncio.all_tasks() - before if t.get_name().startswith("client")}
        assert left == set()


async def test_cancelled_twice_it_does_not_wait_for_a_handshake() -> None:
    server = FakeServer(Plan(after_audio=0, cut="freeze"))
    async with server.serving():
        entered = asyncio.Event()
        used: list[Client] = []

        async def use() -> None:
            async with connect(server.url, START) as client:
                used.append(client)
                await client.send(noise(1))
                await asyncio.sleep(0.05)
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(use())
        await entered.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < CLOSE_SECONDS / 2
        await asyncio.sleep(0.01)
        connection = used[0]._connection
        assert connection is not None
        assert connection._websocket.state is State.CLOSED
        server.release.set()


async def test_whoever_leaves_early_does_not_wait_for_what_is_unread() -> None:
    """The server's close frame lies behind more messages than are taken off the socket unasked."""
    server = FakeServer()
    async with server.serving():
        async with connect(server.url, START) as client:
            client._mailbox.put = asyncio.Event().wait  # type: ignore[assignment,method-assign] # nobody reads any more
            await client.send(noise(400))
            await asyncio.sleep(0.2)
            assert client._connection is not None
            assert client._connection._websocket.recv_messages.paused
            began = time.monotonic()
        assert time.monotonic() - began < CLOSE_SECONDS / 2
        assert server.stopped


async def test_a_dead_server_is_noticed() -> None:
    """The socket stays open and nothing comes any more: a frozen host, a cable that was pulled."""
    server = FakeServer(Plan(after_audio=5 * WORD, cut="freeze"))
    async with server.serving():
        seen, told = await talk(server, noise(12), reconnect=Reconnect(silence_seconds=0.3, base_seconds=0.001))
        server.release.set()
    assert_whole(server, noise(12), seen)
    assert isinstance(told[0], Interrupted)
    assert "nothing was heard" in told[0].reason
