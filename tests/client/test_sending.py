"""What the client keeps of its audio, how much of it is on its way, and where flushes and `stop` stand in it."""

from __future__ import annotations

import asyncio
import time

import pytest

from bridge.client import (
    ConnectionLost,
    Interrupted,
    Reconnect,
    Resumed,
    SessionError,
    connect,
    sender,
)
from bridge.protocols import native
from tests.client import fake
from tests.client.fake import LAG, WORD, FakeServer, Plan
from tests.client.talk import QUICK, START, assert_whole, noise, talk


async def test_coded_audio_that_is_not_kept_any_more() -> None:
    """Another server wants it from its first byte; the one that held the session would not have."""
    small = Reconnect(base_seconds=0.001, ring_bytes=16 * WORD)
    for restart in (False, True):
        server = FakeServer(Plan(after_audio=30 * WORD, restart=restart), encoding="flac")
        async with server.serving():
            if restart:
                with pytest.raises(SessionError, match="what was kept begins with byte") as caught:
                    await talk(server, noise(40), reconnect=small)
                assert caught.value.code == "offset_ahead"
            else:
                seen, _ = await talk(server, noise(40), reconnect=small)
                assert_whole(server, noise(40), seen)


async def test_audio_is_not_given_to_a_connection_that_was_cut() -> None:
    """Else it would count as sent, and coded audio is forgotten some time after that."""
    server = FakeServer(encoding="flac")
    async with server.serving(), connect(server.url, START, reconnect=QUICK) as client:
        await client.send(noise(1))
        await asyncio.sleep(0.05)
        assert client._connection is not None
        before = client._cursor
        await client.send(noise(30))  # wakes the writer, which runs before anybody tells it of the cut
        client._connection.abort()
        for _ in range(3):
            await asyncio.sleep(0)
        assert client._cursor == before
        await client.stop()
        assert [message async for message in client]
    assert bytes(server.audio) == noise(1) + noise(30)


async def test_a_session_that_has_ended_wants_no_audio() -> None:
    """Its last messages are to be had, though the audio is no longer there."""
    small = Reconnect(base_seconds=0.001, ring_bytes=16 * WORD)
    over = Plan(ready={"resume_token": None, "received_bytes": 0})
    server = FakeServer(Plan(after_stop=True), over, encoding="flac")
    async with server.serving():
        seen, told = await talk(server, noise(40), reconnect=small)
    assert_whole(server, noise(40), seen)
    assert server.got == 40 * WORD
    assert len(told) == 2


async def test_nor_one_that_ended_before_all_was_sent() -> None:
    server = FakeServer(Plan(after_audio=10 * WORD), Plan(ready={"resume_token": None}))

    def tell(event: Interrupted | Resumed) -> None:
        if isinstance(event, Interrupted):
            server.log(type="closed", code="session_too_long", received=0, finalized=0, duration=0)

    chosen = Reconnect(base_seconds=0.001, window_seconds=0.5)
    async with server.serving(), connect(server.url, START, reconnect=chosen, on_reconnect=tell) as client:
        await client.send(noise(30))
        with pytest.raises(SessionError, match="session_too_long"):
            _ = [message async for message in client]
        await asyncio.sleep(0.05)
    assert server.got == 10 * WORD


async def test_send_fails_when_the_session_is_over() -> None:
    """Also where it waits for room."""
    server = FakeServer(Plan(after_audio=2 * WORD), Plan(refuse="wrong_token"))
    chosen = Reconnect(base_seconds=0.5, ring_seconds=0.5)
    async with server.serving(), connect(server.url, START, reconnect=chosen) as client:
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionLost):
                while True:
                    await client.send(noise(1))
        with pytest.raises(ConnectionLost):
            await client.stop()
        with pytest.raises(SessionError, match="wrong_token"):
            _ = [message async for message in client]


async def test_a_full_ring_waits_for_the_server_and_not_for_finals() -> None:
    small = Reconnect(base_seconds=0.001, ring_seconds=0.5)
    server = FakeServer()
    async with server.serving(), connect(server.url, START, reconnect=small) as client:
        for at in range(0, 40 * WORD, WORD):  # nothing is ever final of the last two words
            await client.send(noise(40)[at : at + WORD])
            assert client._ring.held <= 5 * WORD
        await client.stop()
        seen = [message async for message in client]
    assert_whole(server, noise(40), seen)
    assert LAG < 5 * WORD


async def test_a_full_ring_whose_audio_had_arrived_when_the_connection_broke() -> None:
    """Nothing is left to be sent, so that no ack comes: `ready` has told."""
    small = Reconnect(base_seconds=0.001, ring_seconds=0.5)
    server = FakeServer(Plan(acks=False, after_audio=5 * WORD))
    audio = noise(20)
    async with server.serving():
        seen, told = await talk(server, audio, reconnect=small)
    assert_whole(server, audio, seen)
    assert len(told) == 2


async def test_send_goes_on_without_a_connection_until_the_ring_is_full() -> None:
    server = FakeServer(Plan(after_audio=2 * WORD), *[Plan(mute=True)] * 50)
    audio = noise(30)
    chosen = Reconnect(base_seconds=0.001, most_seconds=0.01, ring_seconds=2)
    lost, resumed = asyncio.Event(), asyncio.Event()

    def tell(event: Interrupted | Resumed) -> None:
        (lost if isinstance(event, Interrupted) else resumed).set()

    async with (
        server.serving(),
        connect(server.url, START, reconnect=chosen, on_reconnect=tell, open_seconds=0.05) as client,
    ):
        await client.send(audio[: 3 * WORD])
        await lost.wait()
        before = client.sent
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                for at in range(before, len(audio), WORD):
                    await client.send(audio[at : at + WORD])
        assert not resumed.is_set()
        assert 20 * WORD <= client.sent <= 23 * WORD
        server.plans.clear()
        for at in range(client.sent, len(audio), WORD):
            await client.send(audio[at : at + WORD])
        await client.stop()
        seen = [message async for message in client]
    assert_whole(server, audio, seen)


async def test_a_position_inside_of_a_packet() -> None:
    packets = [bytes([i]) * 40 for i in range(20)]
    server = FakeServer(Plan(after_audio=400), Plan(ready={"received_bytes": 390}), encoding="opus")
    async with server.serving(), connect(server.url, START, reconnect=QUICK) as client:
        for packet in packets:
            await client.send(packet)
        await client.stop()
        _ = [message async for message in client]
    assert server.packets == packets[:10] + packets[9:]


# Flow control


async def test_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "ACK_PATIENCE_SECONDS", 0.3)
    server = FakeServer(Plan(acks=False))
    chosen = Reconnect(window_seconds=0.9)
    async with server.serving(), connect(server.url, START, reconnect=chosen) as client:
        await client.send(noise(40))
        await asyncio.sleep(0.15)
        assert server.got == 9 * WORD, "0.9 s of audio are on their way"
        await asyncio.sleep(0.4)
        assert server.got == 40 * WORD, "who never acks does not hold the client back for ever"
        await client.stop()
        seen = [message async for message in client]
    assert_whole(server, noise(40), seen)


async def test_the_window_widens_for_a_fast_server() -> None:
    server = FakeServer(Plan(acks=False))
    async with server.serving(), connect(server.url, START, reconnect=Reconnect(window_seconds=1)) as client:
        await client.send(noise(80))
        for received, got in ((0, 10), (10, 30), (30, 70), (31, 70), (65, 80)):
            client._heed(native.AckMessage(received * WORD // 2, 0))
            await asyncio.sleep(0.05)
            assert server.got == got * WORD


@pytest.mark.parametrize("coded", [False, True])
async def test_what_auto_means(coded: bool) -> None:
    server = FakeServer(encoding="auto")
    audio = (b"fLaC" if coded else b"\0\0\0\0") + noise(20)[4:]
    async with server.serving(), connect(server.url, reconnect=QUICK) as client:
        for at in range(0, len(audio), 3):
            await client.send(audio[at : at + 3])
        await client.flush()
        await client.stop()
        seen = [message async for message in client]
        assert client._ring.start == (0 if coded else len(audio))
    assert_whole(server, audio, seen)


async def test_the_window_counts_from_what_the_next_server_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "LAG", 100 * WORD)
    server = FakeServer(Plan(after_audio=150 * WORD, restart=True), Plan(acks=False))
    resumed = asyncio.Event()

    def tell(event: Interrupted | Resumed) -> None:
        if isinstance(event, Resumed):
            assert event.again_bytes >= 100 * WORD
            resumed.set()

    chosen = Reconnect(window_seconds=1, base_seconds=0.001)
    async with server.serving(), connect(server.url, START, reconnect=chosen, on_reconnect=tell) as client:
        await client.send(noise(200))
        await resumed.wait()
        before = server.got
        await asyncio.sleep(0.3)
        assert server.got - before == 10 * WORD


async def test_acks_open_the_window() -> None:
    server = FakeServer()
    began = time.monotonic()
    async with server.serving():
        seen, _ = await talk(server, noise(600), reconnect=Reconnect(window_seconds=0.5, ring_seconds=10))
    assert_whole(server, noise(600), seen)
    assert time.monotonic() - began < sender.ACK_PATIENCE_SECONDS, "it waited for nothing"


async def test_little_is_sent_again() -> None:
    server = FakeServer(Plan(after_audio=300 * WORD, cut="reset"))
    async with server.serving():
        _, told = await talk(server, noise(400), reconnect=Reconnect(window_seconds=1))
    assert isinstance(told[1], Resumed)
    assert told[1].again_bytes <= 20 * WORD


# Flush and stop


async def test_a_flush_is_repeated_where_it_was_asked_for() -> None:
    server = FakeServer(Plan(after_audio=5 * WORD))
    async with server.serving():
        seen, _ = await talk(server, noise(20), flushes=(3 * WORD, 5 * WORD, 9 * WORD))
    assert_whole(server, noise(20), seen)
    assert server.said == [
        ("flush", 3 * WORD),
        ("flush", 5 * WORD),
        ("flush", 9 * WORD),
        ("stop", 20 * WORD),
    ]


async def test_to_flush_twice_is_to_flush_once() -> None:
    server = FakeServer()
    async with server.serving(), connect(server.url, START) as client:
        await client.flush()
        await client.flush()
        await client.send(noise(1))
        await client.flush()
        await client.stop()
        assert [message async for message in client]
    assert server.said == [("flush", 0), ("flush", WORD), ("stop", WORD)]


async def test_a_flush_that_lies_behind_is_not_repeated() -> None:
    """The server has the audio after it, so it has got the flush."""
    server = FakeServer(Plan(after_audio=5 * WORD, acks=False), Plan(acks=False))
    async with server.serving():
        await talk(server, noise(9), flushes=(3 * WORD,))
    assert server.said == [("flush", 3 * WORD), ("stop", 9 * WORD)]


async def test_an_answered_flush_is_forgotten() -> None:
    server = FakeServer()
    async with server.serving(), connect(server.url, START) as client:
        for _ in range(5):
            await client.send(noise(1))
            await client.flush()
            async for message in client:
                if isinstance(message, native.AckMessage) and message.finalized * 2 == client.sent:
                    break
        assert client._flushes == []
        await client.stop()
        assert [message async for message in client]


async def test_nothing_follows_stop() -> None:
    server = FakeServer()
    async with server.serving(), connect(server.url, START) as client:
        await client.stop()
        with pytest.raises(RuntimeError):
            await client.send(b"\0\0")
