"""One stream of the relay: what is asked of the other server, what becomes of its answers, and of its failures."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.server import ServerConnection

from backends.base import FLUSH, BackendError, Fault, RecognitionConfig
from backends.relay.backend import WAITING_SECONDS
from backends.scripted import marker_audio
from tests import wire
from tests.backends.relay.harness import CONFIG, heard, relay, spoken, words
from tests.client.fake import WORD, FakeServer, Plan
from tests.client.talk import noise


async def test_what_the_server_is_asked_for() -> None:
    server = FakeServer()
    config = dataclasses.replace(
        CONFIG,
        language="de-DE",
        partials=False,
        words=False,
        phrases=("eins", "zwei"),
        silence_seconds=0.4,
        store=False,
    )
    async with server.serving() as url:
        await heard(relay(url), noise(3), config)
    (start,) = server.starts
    assert start == {
        "type": "start",
        "encoding": "pcm_s16le",
        "sample_rate": 8_000,
        "language": "de-DE",
        "partials": False,
        "words": False,
        "phrases": ["eins", "zwei"],
        "endpoint_silence_ms": 400,
        "store": False,
        "resume": True,
    }


async def test_all_audio_arrives_and_all_words_come_back() -> None:
    server = FakeServer()
    async with server.serving() as url:
        results = await heard(relay(url), noise(25))
    assert bytes(server.audio) == noise(25)
    assert words(results) == server.texts
    assert results[-1].end == pytest.approx(2.5)


async def test_a_flush_is_passed_on_at_its_place() -> None:
    server = FakeServer()
    async with server.serving() as url:
        results = await heard(relay(url), spoken([noise(5), FLUSH, noise(5)]))
    assert ("flush", 5 * WORD) in server.said
    assert any(r.is_final and r.end == pytest.approx(0.5) for r in results)


async def test_the_trace_goes_with_the_session() -> None:
    seen: list[str | None] = []

    class Server(FakeServer):
        async def _handle(self, connection: ServerConnection) -> None:
            assert connection.request is not None
            seen.append(connection.request.headers.get("traceparent"))
            await super()._handle(connection)

    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for config in (dataclasses.replace(CONFIG, traceparent=trace), CONFIG):
        async with Server().serving() as url:
            await heard(relay(url), noise(2), config)
    assert seen == [trace, None]


# Connections that break


@pytest.mark.parametrize("cut", ["reset", "mid-frame", "close", "gap", "closed"])
async def test_a_connection_that_breaks_costs_no_word(cut: str, caplog: pytest.LogCaptureFixture) -> None:
    server = FakeServer(*[Plan(after_audio=7 * WORD, cut=cut)] * 3)  # type: ignore[arg-type]
    async with server.serving() as url:
        with caplog.at_level(logging.INFO):
            results = await heard(relay(url), noise(40))
    assert bytes(server.audio) == noise(40)
    assert words(results) == [f"w{i}" for i in range(40)]
    assert caplog.text.count("is lost") == 3
    assert "w1" not in caplog.text


async def test_a_server_that_answers_nothing_is_noticed_by_its_silence() -> None:
    server = FakeServer(Plan(after_audio=3 * WORD, cut="freeze"))
    async with server.serving() as url:
        results = await heard(relay(url, heartbeat_seconds=0.3), noise(12))
        server.release.set()
    assert words(results) == [f"w{i}" for i in range(12)]


async def test_before_any_audio_it_is_tried_again() -> None:
    server = FakeServer(Plan(drop=True), Plan(http=503), Plan(refuse="at_capacity"))
    async with server.serving() as url:
        results = await heard(relay(url), noise(5))
    assert words(results) == [f"w{i}" for i in range(5)]


async def test_what_is_refused_for_good_is_not_tried_again() -> None:
    server = FakeServer(Plan(refuse="unsupported_language"), Plan(refuse="backend_rejected"))
    async with server.serving() as url:
        for code in ("language", "rejected"):
            with pytest.raises(BackendError) as caught:
                await heard(relay(url), noise(5))
            assert (caught.value.code, caught.value.fault) == (code, Fault.CLIENT)
    assert len(server.starts) == 2


async def test_one_that_cannot_be_resumed_fails_and_another_stream_may_do_better() -> None:
    server = FakeServer(Plan(after_audio=3 * WORD), *[Plan(refuse="session_expired")] * 9)
    async with server.serving() as url:
        with pytest.raises(BackendError) as caught:
            await heard(relay(url), noise(9))
    assert (caught.value.code, caught.value.retryable) == ("session_lost", True)


async def test_nobody_there_is_given_up_in_time() -> None:
    server = FakeServer(Plan(after_audio=3 * WORD), *[Plan(drop=True)] * 99)
    began = time.monotonic()
    async with server.serving() as url:
        with pytest.raises(BackendError) as caught:
            await heard(relay(url, resume_seconds=0.3), noise(9))
    assert (caught.value.code, caught.value.retryable) == ("unavailable", True)
    assert time.monotonic() - began < 3


async def test_a_session_that_the_server_ends_for_its_length_is_no_failure() -> None:
    async with wire.serve(idle_seconds=0.3) as url:

        async def muted() -> AsyncIterator[bytes]:
            yield marker_audio(2)
            await asyncio.Event().wait()

        stream = relay(url).recognize(RecognitionConfig(), muted())
        results = []
        with pytest.raises(BackendError) as caught:
            async with asyncio.timeout(10):
                async for result in stream:
                    results.append(result)  # noqa: PERF401 - also what came before the exception
    assert caught.value.code == "stream_limit"
    assert words(results) == wire.markers(2)


async def test_the_stream_after_that_opens_nothing_before_there_is_audio() -> None:
    server = FakeServer()
    again = dataclasses.replace(CONFIG, attempt=1)
    async with server.serving() as url:
        assert await heard(relay(url), b"", again) == []
        assert server.starts == []
        assert words(await heard(relay(url), noise(4), again)) == [f"w{i}" for i in range(4)]


# Limits


@pytest.mark.parametrize("plan", [Plan(after_audio=WORD, cut="freeze"), Plan(mute=True)])
async def test_a_stream_takes_no_longer_than_it_may(plan: Plan) -> None:
    server = FakeServer(plan)
    began = time.monotonic()
    async with server.serving() as url:
        with pytest.raises(BackendError, match=r"longer than 0\.3 s") as caught:
            await heard(relay(url, timeout_seconds=0.3), noise(9))
        server.release.set()
    assert (caught.value.code, caught.value.retryable) == ("timeout", False)
    assert time.monotonic() - began < 4


async def test_little_is_taken_that_the_server_does_not() -> None:
    """More would fill the session's own buffer, which then asks for a final in the middle of a word."""
    server = FakeServer(Plan(after_audio=WORD, cut="freeze"))
    taken = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal taken
        async for chunk in spoken(noise(600)):
            taken += len(chunk)
            yield chunk

    async with server.serving() as url:
        with pytest.raises(BackendError, match="longer than"):
            await heard(relay(url, timeout_seconds=0.5, heartbeat_seconds=60), counted())
        server.release.set()
    assert WAITING_SECONDS <= taken / WORD / 10 <= WAITING_SECONDS + 0.2


async def test_within_its_time_a_stream_is_as_any_other() -> None:
    server = FakeServer(Plan(after_audio=7 * WORD))
    async with server.serving() as url:
        assert words(await heard(relay(url, timeout_seconds=9), noise(20))) == [f"w{i}" for i in range(20)]


async def test_what_the_audio_raises_is_raised_once_the_server_has_ended() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield noise(4)
        raise KeyError("oh dear")

    server = FakeServer()
    async with server.serving() as url:
        with pytest.raises(KeyError):
            await heard(relay(url), broken())
    assert server.stopped


# Keys


async def test_whose_key_the_server_sees(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "backends")
    caplog.set_level(logging.DEBUG, "bridge")
    alice = RecognitionConfig(credential="alice-secret")
    async with wire.serve(api_keys="alice-secret,node-secret") as url:
        passing = relay(url, pass_authorization=True)
        assert await heard(passing, bytes(3_200), alice)
        with pytest.raises(BackendError) as caught:
            await heard(passing, bytes(3_200), RecognitionConfig(credential="mallory-secret"))
        assert (caught.value.code, caught.value.fault) == ("rejected", Fault.CLIENT)
        with pytest.raises(BackendError) as caught:
            await heard(passing, bytes(3_200), RecognitionConfig())
        assert (caught.value.code, caught.value.fault) == ("unauthenticated", Fault.OPERATOR)
        both = relay(url, pass_authorization=True, api_key="node-secret")
        assert await heard(both, bytes(3_200), RecognitionConfig())  # a job's caller is gone
        with pytest.raises(BackendError):  # a key of one's own stays so
            await heard(relay(url, retry_seconds=0), bytes(3_200), alice)
    assert "secret" not in repr(alice)
    assert "-secret" not in caplog.text


async def test_what_one_caller_has_used_up_costs_no_other_anything() -> None:
    alice, bob = (RecognitionConfig(credential=f"{name}-secret") for name in ("alice", "bob"))
    async with (
        wire.serve(api_keys="alice-secret,bob-secret", key_sessions=1) as url,
        wire.Wire.stream(url, headers={"Authorization": "Bearer alice-secret"}, start={}) as first,
    ):
        await first.until("ready")
        passing = relay(url, pass_authorization=True, retry_seconds=0)
        with pytest.raises(BackendError) as caught:
            await heard(passing, bytes(3_200), alice)
        assert (caught.value.code, caught.value.fault) == ("overloaded", Fault.CLIENT)
        assert passing.refusal() is None
        assert await heard(passing, bytes(3_200), bob)


@pytest.mark.parametrize("key", ["a\r\nX-Evil: 1", "ä", "x" * 9_000, "a\0b"])
async def test_a_key_that_is_no_header_goes_nowhere(key: str) -> None:
    server = FakeServer()
    async with server.serving() as url:
        with pytest.raises(BackendError) as caught:
            await heard(relay(url, pass_authorization=True), noise(2), dataclasses.replace(CONFIG, credential=key))
    assert (caught.value.code, caught.value.fault) == ("rejected", Fault.CLIENT)
    assert server.starts == []


# Its end


async def test_closing_it_in_the_middle_ends_the_session_there_and_leaves_nothing() -> None:
    server = FakeServer()
    before = asyncio.all_tasks()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield noise(2)
            await asyncio.sleep(0.001)

    async with server.serving() as url:
        running = asyncio.all_tasks()
        stream = relay(url).recognize(CONFIG, endless())
        async for result in stream:
            if result.text:
                break
        began = time.monotonic()
        await stream.aclose()  # type: ignore[attr-defined]
        assert time.monotonic() - began < 1
        await wire.eventually(lambda: not server.open)
        assert server.said[-1][0] == "stop"
        assert {
            t.get_name() for t in asyncio.all_tasks() - running if t.get_name().startswith(("relay", "client"))
        } == set()
    assert {t for t in asyncio.all_tasks() - before if t is not asyncio.current_task()} == set()
