"""The client over connections that break at nasty points: every word once, every byte once."""

from __future__ import annotations

import asyncio
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from bridge.client import (
    ConnectionLost,
    Interrupted,
    Reconnect,
    Resumed,
    SessionError,
    connect,
    lifeline,
)
from bridge.client.lifeline import MAX_FAULTS
from bridge.errors import ERRORS
from bridge.protocols import native
from tests.client.fake import WORD, FakeServer, Plan
from tests.client.talk import QUICK, START, assert_whole, noise, talk

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


async def test_what_ends_only_a_connection_is_none_of_the_callers_business() -> None:
    plans = [Plan(after_audio=5 * WORD, cut="closed", code=code) for code in ("shutting_down", "a_code_of_the_future")]
    server = FakeServer(*plans)
    async with server.serving():
        seen, told = await talk(server, noise(12))
    assert_whole(server, noise(12), seen)
    assert not any(isinstance(message, native.ErrorMessage) for message in seen)
    assert told[0] == Interrupted("the server ended the connection (shutting_down)")
    assert told[2] == Interrupted("the server ended the connection (a_code_of_the_future)")


async def test_taken_over() -> None:
    """Somebody else has resumed the session: to take it back would be a tug of war."""
    server = FakeServer(Plan(after_audio=5 * WORD, cut="closed", code="taken_over"))
    async with server.serving():
        with pytest.raises(SessionError) as caught:
            await talk(server, noise(12))
    assert caught.value.code == "taken_over"
    assert len(server.starts) == 1


async def test_taken_over_by_an_attempt_of_its_own() -> None:
    """One that broke off without an answer, and that a server which hung has seen late."""
    plans = [Plan(after_audio=5 * WORD), Plan(drop=True), Plan(after_audio=WORD, cut="closed", code="taken_over")]
    server = FakeServer(*plans)
    async with server.serving():
        seen, _ = await talk(server, noise(12))
    assert_whole(server, noise(12), seen)
    assert len(server.starts) == 4


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


async def test_a_connection_that_breaks_again_gets_its_own_time() -> None:
    """The server holds the session anew each time that it is resumed."""
    server = FakeServer(Plan(after_audio=WORD), *[Plan(after_audio=0)] * 60, resume_seconds=0.3)
    began = time.monotonic()
    async with server.serving():
        await talk(server, noise(12))
    assert time.monotonic() - began > 0.3


async def test_a_gap_that_does_not_go_away() -> None:
    server = FakeServer(Plan(after_messages=2), *[Plan(after_messages=0, cut="gap")] * 10)
    async with server.serving():
        with pytest.raises(ConnectionLost, match="went on with message"):
            await talk(server, noise(12))
    assert len(server.starts) <= MAX_FAULTS + 2


async def test_gaps_that_go_away() -> None:
    server = FakeServer(*[Plan(after_messages=2, cut="gap")] * (MAX_FAULTS + 2))
    async with server.serving():
        seen, _ = await talk(server, noise(20))
    assert_whole(server, noise(20), seen)


async def test_many_outages_with_progress_in_between() -> None:
    """Each has its own time, and its own waits."""
    server = FakeServer(*[Plan(after_audio=2 * WORD)] * 15, resume_seconds=0.5)
    chosen = Reconnect(base_seconds=0.002, most_seconds=60)
    began = time.monotonic()
    async with server.serving():
        seen, _ = await talk(server, noise(40), reconnect=chosen, pace=0.02)
    assert_whole(server, noise(40), seen)
    assert 0.6 < time.monotonic() - began < 2.5


async def test_a_connection_that_lived_for_a_while_ends_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it has seen no progress: there may be none to see."""
    monkeypatch.setattr(lifeline, "STEADY_SECONDS", 0.05)
    server = FakeServer(Plan(after_audio=WORD), *[Plan(after_audio=0, linger=0.1)] * 5, resume_seconds=0.3)
    async with server.serving():
        seen, _ = await talk(server, noise(12))
    assert_whole(server, noise(12), seen)


async def test_what_is_left_of_a_connection_is_closed() -> None:
    server = FakeServer(Plan(after_audio=WORD, cut="rubbish"))
    async with server.serving(), connect(server.url, START, reconnect=QUICK) as client:
        await client.send(noise(3))
        async with asyncio.timeout(5):
            while len(server.starts) < 2 or server.open > 1:
                await asyncio.sleep(0.01)


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
