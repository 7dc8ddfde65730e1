"""The client over connections that break at nasty points: every word once, every byte once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

import hypothesis
import hypothesis.strategies as st
import pytest
from websockets.protocol import State

from bridge.client import (
    Client,
    ConnectionLost,
    Interrupted,
    Reconnect,
    Resumed,
    SessionError,
    connect,
    sender,
)
from bridge.client.connection import CLOSE_SECONDS
from bridge.client.lifeline import MAX_FAULTS
from bridge.errors import ERRORS
from bridge.protocols import native
from bridge.protocols.native import StartMessage
from tests.client import fake
from tests.client.fake import LAG, WORD, FakeServer, Plan

QUICK = Reconnect(base_seconds=0.001, most_seconds=0.01)
START = StartMessage(encoding="pcm_s16le", sample_rate=8_000)
LASTING = (native.SpeechStartedMessage, native.FinalMessage, native.ClosedMessage)


def noise(words: int) -> bytes:
    """Audio in which every stretch is told from every other."""
    return random.Random(words).randbytes(words * WORD)


async def talk(
    server: FakeServer,
    audio: bytes,
    *,
    chunk: int = WORD,
    start: StartMessage = START,
    reconnect: Reconnect = QUICK,
    flushes: tuple[int, ...] = (),
) -> tuple[list[native.ServerMessage], list[Interrupted | Resumed]]:
    """Say it all; what the caller saw."""
    told: list[Interrupted | Resumed] = []

    async def speak(client: Client) -> None:
        for at in range(0, len(audio), chunk):
            await client.send(audio[at : at + chunk])
            if at + chunk in flushes:
                await client.flush()
            await asyncio.sleep(0)
        await client.stop()

    before = asyncio.all_tasks()
    async with connect(server.url, start, reconnect=reconnect, on_reconnect=told.append) as client:
        speaking = asyncio.create_task(speak(client))
        try:
            async with asyncio.timeout(20):
                seen = [message async for message in client]
        finally:
            speaking.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionLost):
                await speaking
    assert {task for task in asyncio.all_tasks() - before if task.get_name().startswith("client")} == set()
    return seen, told


def assert_whole(server: FakeServer, audio: bytes, seen: list[native.ServerMessage]) -> None:
    assert bytes(server.audio) == audio
    lasting = [message for message in seen if isinstance(message, LASTING)]
    assert [message.seq for message in lasting] == list(range(1, len(server.events) + 1))
    words = [message.text for message in seen if isinstance(message, native.FinalMessage)]
    assert words == [f"w{i}" for i in range(len(audio) // WORD)]


CUTS = [
    Plan(after_audio=0),
    Plan(after_audio=5 * WORD + 700, cut="reset"),
    Plan(after_audio=5 * WORD, cut="end"),
    Plan(after_audio=5 * WORD, cut="close"),
    Plan(after_audio=5 * WORD, cut="mid-frame"),
    Plan(after_audio=5 * WORD, cut="closed"),
    Plan(after_audio=5 * WORD, cut="rubbish"),
    Plan(after_audio=9 * WORD, cut="gap"),
    Plan(after_messages=4),  # between a final and its ack
    Plan(after_messages=0),
    Plan(after_stop=True),
    Plan(after_stop=True, cut="closed"),
    Plan(repeat=3, after_messages=6),
]


@pytest.mark.parametrize("restart", [False, True], ids=["held", "restarted"])
@pytest.mark.parametrize("plan", CUTS, ids=str)
async def test_a_break(plan: Plan, restart: bool) -> None:
    server = FakeServer(Plan(**{**vars(plan), "restart": restart}))
    audio = noise(20)
    async with server.serving():
        seen, told = await talk(server, audio)
    assert_whole(server, audio, seen)
    assert isinstance(told[0], Interrupted)
    assert isinstance(told[1], Resumed)
    assert len(told) == 2
    resuming = server.starts[1]
    assert {k: resuming[k] for k in ("session_id", "resume_token")} == {
        "session_id": "session-of-the-test",
        "resume_token": "token",
    }


@hypothesis.settings(max_examples=50)
@hypothesis.given(
    plans=st.lists(
        st.builds(
            Plan,
            after_audio=st.none() | st.integers(0, 30 * WORD),
            after_messages=st.none() | st.integers(0, 25),
            after_stop=st.booleans(),
            cut=st.sampled_from(["reset", "end", "close", "mid-frame", "closed"]),
            restart=st.booleans(),
            acks=st.booleans(),
            drop=st.booleans(),
            refuse=st.sampled_from([None, None, None, "at_capacity", "log_unavailable"]),
            http=st.sampled_from([None, None, None, 503]),
            repeat=st.integers(0, 2),
        ),
        max_size=8,
    ),
    chunk=st.integers(1, 4 * WORD),
    words=st.integers(0, 40),
    encoding=st.sampled_from(["pcm_s16le", "flac", "opus"]),
    flushes=st.booleans(),
)
def test_any_breaks(plans: list[Plan], chunk: int, words: int, encoding: str, flushes: bool) -> None:
    """Whatever breaks wherever, the caller sees messages 1 to n, and the server has the bytes that were sent."""
    first = Plan(after_audio=None if not plans else plans[0].after_audio)

    async def run() -> None:
        server = FakeServer(first, *plans, encoding=encoding, resume_seconds=60)
        audio = noise(words)
        chosen = max(chunk, 40)  # a thousand messages are enough
        at = tuple(range(chosen * 3, len(audio), chosen * 7)) if flushes else ()
        async with server.serving():
            seen, _ = await talk(server, audio, chunk=chosen, flushes=at)
        assert_whole(server, audio, seen)
        if encoding == "opus":
            assert server.packets == [audio[i : i + chosen] for i in range(0, len(audio), chosen)]

    asyncio.run(run())


PASSING = sorted({code for code, row in ERRORS.items() if row.fatal and row.retryable} | {"session_taken"})
FOR_GOOD = sorted({code for code, row in ERRORS.items() if row.fatal} - {*PASSING, "stopped"})


@pytest.mark.parametrize("code", PASSING)
async def test_a_server_that_is_not_ready_yet_is_asked_again(code: str) -> None:
    server = FakeServer(Plan(after_audio=5 * WORD), Plan(refuse=code), Plan(http=503), Plan(drop=True))
    async with server.serving():
        seen, told = await talk(server, noise(12))
    assert_whole(server, noise(12), seen)
    assert isinstance(told[1], Resumed)
    assert told[1].attempts == 4


@pytest.mark.parametrize("code", FOR_GOOD)
async def test_a_refusal_for_good(code: str) -> None:
    server = FakeServer(Plan(after_audio=5 * WORD), Plan(refuse=code))
    async with server.serving():
        with pytest.raises(SessionError) as caught:
            await talk(server, noise(12))
    assert caught.value.code == code
    assert len(server.starts) == 2


async def test_taken_over() -> None:
    """Somebody else has resumed the session: to take it back would be a tug of war."""
    server = FakeServer(Plan(after_audio=5 * WORD, cut="closed", code="taken_over"))
    async with server.serving():
        with pytest.raises(SessionError) as caught:
            await talk(server, noise(12))
    assert caught.value.code == "taken_over"
    assert len(server.starts) == 1


async def test_given_up_after_the_time_that_the_server_holds_the_session() -> None:
    server = FakeServer(Plan(after_audio=WORD), *[Plan(drop=True)] * 500, resume_seconds=0.3)
    began = time.monotonic()
    async with server.serving():
        with pytest.raises(ConnectionLost, match=r"could not be resumed within 0\.3 s"):
            await talk(server, noise(12))
    assert 0.25 < time.monotonic() - began < 2


async def test_a_server_that_breaks_at_once_every_time() -> None:
    """It resumes and breaks, and nothing comes of it: that is one outage, not many."""
    server = FakeServer(Plan(after_audio=WORD), *[Plan(after_audio=0)] * 2_000, resume_seconds=0.5)
    async with server.serving():
        with pytest.raises(ConnectionLost, match="without getting any further"):
            await talk(server, noise(12))


async def test_a_gap_that_does_not_go_away() -> None:
    server = FakeServer(Plan(after_messages=2), *[Plan(after_messages=0, cut="gap")] * 10)
    async with server.serving():
        with pytest.raises(ConnectionLost, match="went on with message"):
            await talk(server, noise(12))
    assert len(server.starts) <= MAX_FAULTS + 2


async def test_without_reconnect_nothing_is_tried() -> None:
    server = FakeServer(Plan(after_audio=5 * WORD))
    async with server.serving(), connect(server.url, START, reconnect=None) as client:
        await client.send(noise(8))
        with pytest.raises(ConnectionLost):
            _ = [message async for message in client]
    assert len(server.starts) == 1
    assert "resume" not in server.starts[0]


async def test_a_server_without_a_token_is_not_asked_again() -> None:
    server = FakeServer(Plan(after_audio=5 * WORD, ready={"resume_token": None}))
    async with server.serving():
        with pytest.raises(ConnectionLost):
            await talk(server, noise(12))
    assert len(server.starts) == 1


async def test_the_first_connection_is_tried_again_where_that_is_wanted() -> None:
    plans = Plan(http=503), Plan(drop=True), Plan(refuse="not_ready")
    server = FakeServer(*plans)
    async with server.serving():
        with pytest.raises(SessionError, match="not_ready"):
            await talk(server, noise(3))
        server.plans = list(plans)
        seen, _ = await talk(server, noise(3), reconnect=Reconnect(first_seconds=5, base_seconds=0.01))
    assert_whole(server, noise(3), seen)


async def test_another_session_is_not_taken_for_the_same() -> None:
    server = FakeServer(Plan(after_audio=WORD), *[Plan(ready={"resumed": False})] * 500, resume_seconds=0.2)
    async with server.serving():
        with pytest.raises(ConnectionLost, match="another session"):
            await talk(server, noise(12))


async def test_a_server_that_knows_of_audio_that_was_never_sent() -> None:
    plans = [Plan(ready={"received_bytes": 10**9})] * 500
    server = FakeServer(Plan(after_audio=WORD), *plans, resume_seconds=0.2)
    async with server.serving():
        with pytest.raises(ConnectionLost, match="wants audio from byte 1000000000 on"):
            await talk(server, noise(12))


# What is kept


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


# The caller


async def test_a_caller_who_reads_late_misses_nothing() -> None:
    server = FakeServer(*[Plan(after_audio=30 * WORD)] * 3)
    async with server.serving(), connect(server.url, START, reconnect=QUICK) as client:
        await client.send(noise(200))
        await client.stop()
        await asyncio.sleep(0.3)
        seen = [message async for message in client]
    assert_whole(server, noise(200), seen)


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

        async def use() -> None:
            async with connect(server.url, START) as client:
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
        server.release.set()


async def test_a_dead_server_is_noticed() -> None:
    """The socket stays open and nothing comes any more: a frozen host, a cable that was pulled."""
    server = FakeServer(Plan(after_audio=5 * WORD, cut="freeze"))
    async with server.serving():
        seen, told = await talk(server, noise(12), reconnect=Reconnect(silence_seconds=0.3, base_seconds=0.001))
        server.release.set()
    assert_whole(server, noise(12), seen)
    assert isinstance(told[0], Interrupted)
    assert "nothing was heard" in told[0].reason
