"""Senders that come back: over another connection, to another life of the server, with the wrong papers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from backends.markers import marker_audio
from bridge.audio.formats import Encoding
from tests.audio.encoding import contain
from tests.conftest import Spawn
from tests.wire import BINARY, Json, Outcome, Wire, engine_env, eventually, frame, get, http_get, markers, metric, serve

WORDS = 20
AUDIO = marker_audio(WORDS)
HALF = len(AUDIO) // 2 + 1  # in the middle of a sample
PCM = {"encoding": "pcm_s16le", "resume": True}


def papers(ready: Json, **more: object) -> Json:
    """What a sender shows that comes back."""
    return {"session_id": ready["session_id"], "resume_token": ready["resume_token"]} | more


def whole(*outcomes: Outcome) -> list[str]:
    """The transcript of all connections; what is lasting came once and without a gap."""
    lasting = [m for outcome in outcomes for m in outcome.messages if "seq" in m]
    assert [m["seq"] for m in lasting] == list(range(1, len(lasting) + 1))
    return [word for outcome in outcomes for word in outcome.words]


def last(outcome: Outcome) -> int:
    return max((m["seq"] for m in outcome.messages if "seq" in m), default=0)


@contextlib.asynccontextmanager
async def broken_off(url: str, how: str = "reset", start: Json | None = None) -> AsyncIterator[Wire]:
    """A session whose sender has sent half of the audio, heard some of it, and is gone."""
    async with Wire.stream(url, start=PCM if start is None else start) as wire:
        await wire.until("ready")
        await wire.audio(AUDIO[:HALF])
        await wire.until("final", 3)
        if how == "reset":
            wire.reset()
        elif how == "mid-frame":
            await wire.send(frame(BINARY, AUDIO[HALF : HALF + 3_200])[:1_000])
        elif how == "close":
            await wire.send(frame(8, (1000).to_bytes(2)))
            await wire.finish()
    yield wire


async def finished(url: str, former: Outcome, audio: bytes = AUDIO, **more: object) -> Outcome:
    """Come back, send what is missing, and stop."""
    ready = former.messages[0]
    async with Wire.stream(url, start=papers(ready, from_seq=last(former) + 1, **more)) as wire:
        again = await wire.until("ready")
        assert again["resumed"]
        assert again["session_id"] == ready["session_id"]
        await wire.audio(audio[again["received_bytes"] :])
        await wire.say({"type": "stop"})
        return await wire.finish()


@pytest.mark.parametrize("how", ["reset", "end", "close", "mid-frame"])
async def test_a_connection_that_breaks_costs_nothing(how: str) -> None:
    async with serve(ack_seconds=0.05) as url:
        async with broken_off(url, how) as wire:
            pass
        outcome = await finished(url, wire.outcome)
        assert whole(wire.outcome, outcome) == markers(WORDS)
        assert outcome.messages[0]["received_bytes"] <= HALF
        assert outcome.messages[-1]["code"] == "stopped"
        assert outcome.close == 1000
        assert metric((await get(f"{url}/metrics")).body, "stt_resumes_total", session="held") == 1


@pytest.mark.parametrize("log", ["sqlite:", "off"])
async def test_a_held_session_needs_no_log(log: str) -> None:
    async with serve(event_log=log) as url:
        async with broken_off(url) as wire:
            pass
        assert whole(wire.outcome, await finished(url, wire.outcome)) == markers(WORDS)


@pytest.mark.parametrize("start", [PCM, {}, {"encoding": "pcm_s16le", "words": False, "partials": False}])
async def test_a_server_that_is_killed_costs_nothing(spawn: Spawn, tmp_path: Path, start: Json) -> None:
    env = engine_env() | {"STT_EVENT_LOG": f"sqlite:{tmp_path}/log.db"}
    server = spawn(env)
    async with Wire.stream(server.url, start=start) as wire:
        await wire.until("ready")
        await wire.audio(AUDIO[:HALF])
        await wire.until("final", 3)
        server.process.kill()
        await wire.finish()
    server = spawn(env)
    outcome = await finished(server.url, wire.outcome)
    assert outcome.messages[0]["received"] == outcome.messages[0]["finalized"] > 0
    assert whole(wire.outcome, outcome) == markers(WORDS)
    assert outcome.messages[-1]["received"] == len(AUDIO) // 2


async def test_each_channel_goes_on_where_it_was(spawn: Spawn, tmp_path: Path) -> None:
    env = engine_env() | {"STT_EVENT_LOG": f"sqlite:{tmp_path}/log.db"}
    silence = bytes(len(AUDIO))
    left, right = AUDIO + silence, silence + AUDIO
    stereo = b"".join(left[i : i + 2] + right[i : i + 2] for i in range(0, len(left), 2))
    server = spawn(env)
    async with Wire.stream(server.url, start=PCM | {"channels": 2, "channel_mode": "separate"}) as wire:
        await wire.until("ready")
        await wire.audio(stereo[: int(len(stereo) * 0.7)])
        await wire.until("final", WORDS + 3)
        server.process.kill()
        await wire.finish()
    outcome = await finished(spawn(env).url, wire.outcome, stereo)
    finals = [m for o in (wire.outcome, outcome) for m in o.of("final")]
    for channel in (0, 1):
        assert [w for m in finals if m["channel"] == channel for w in m["text"].split()] == markers(WORDS)
    whole(wire.outcome, outcome)


@pytest.mark.parametrize("killed", [False, True])
async def test_coded_audio(spawn: Spawn, tmp_path: Path, killed: bool) -> None:
    """Where its decoder lives, it goes on; elsewhere it is wanted from its first byte, and what is final is skipped."""
    coded = contain(Encoding.FLAC, np.frombuffer(AUDIO, "<i2").reshape(-1, 1), 16_000)
    env = engine_env() | {"STT_EVENT_LOG": f"sqlite:{tmp_path}/log.db"}
    server = spawn(env)
    async with Wire.stream(server.url, start={"encoding": "auto"}) as wire:
        await wire.until("ready")
        await wire.audio(coded[: len(coded) * 2 // 3], 500)
        await wire.until("final", 3)
        if killed:
            server.process.kill()
            await wire.finish()
            server = spawn(env)
        else:
            wire.reset()
    outcome = await finished(server.url, wire.outcome, coded)
    again = outcome.messages[0]
    assert (again["received_bytes"] == 0) is killed
    assert again["finalized"] > 0
    assert whole(wire.outcome, outcome) == markers(WORDS)
    acks = [(m["received"], m["finalized"]) for m in outcome.of("ack")]
    assert acks == sorted(acks)
    assert acks[0] >= (again["finalized"], again["finalized"])
    # The encoder's last block may hold silence beyond what was put in.
    assert outcome.messages[-1]["received"] == outcome.messages[-1]["finalized"] >= len(AUDIO) // 2


async def test_a_wav_header_is_counted(spawn: Spawn, tmp_path: Path) -> None:
    """The client counts the bytes that it sends, whatever they are."""
    header = b"RIFF\xff\xff\xff\xffWAVEfmt " + (16).to_bytes(4, "little") + (1).to_bytes(2, "little")
    header += (1).to_bytes(2, "little") + (16_000).to_bytes(4, "little") + (32_000).to_bytes(4, "little")
    header += (2).to_bytes(2, "little") + (16).to_bytes(2, "little") + b"data\xff\xff\xff\xff"
    audio = header + AUDIO
    env = engine_env() | {"STT_EVENT_LOG": f"sqlite:{tmp_path}/log.db", "STT_ACK_SECONDS": "0.02"}
    server = spawn(env)
    outcomes = []
    async with Wire.stream(server.url, start=PCM) as wire:
        await wire.until("ready")
        await wire.audio(audio[:HALF])
        await wire.until("final", 3)
        wire.reset()
    outcomes.append(wire.outcome)
    async with Wire.stream(
        server.url, start=papers(wire.outcome.messages[0], from_seq=last(wire.outcome) + 1)
    ) as second:
        again = await second.until("ready")
        assert again["received"] == (again["received_bytes"] - 44) // 2
        await second.audio(audio[again["received_bytes"] : HALF + 6_400])
        await second.until("ack")
        server.process.kill()
        await second.finish()
    outcomes.append(second.outcome)
    third = Outcome(messages=[wire.outcome.messages[0], *[m for o in outcomes for m in o.messages[1:]]])
    outcomes.append(await finished(spawn(env).url, third, audio))
    assert whole(*outcomes) == markers(WORDS)


async def test_the_last_words_are_not_lost_when_the_connection_breaks_after_stop(spawn: Spawn, tmp_path: Path) -> None:
    async with serve() as url:
        async with Wire.stream(url, start=PCM) as wire:
            ready = await wire.until("ready")
            await wire.audio(AUDIO)
            await wire.say({"type": "stop"})
            await wire.until("final", WORDS)
            wire.reset()
        await eventually(lambda: http_get(f"{url}/v1/sessions/{ready['session_id']}").json["state"] == "ended")
        outcome = await finished(url, Outcome(messages=[ready]))
        assert whole(outcome) == markers(WORDS)
        assert outcome.messages[-1]["code"] == "stopped"
        # And once more, by who has heard all of it.
        again = await finished(url, Outcome(messages=[ready, *outcome.messages[1:]]))
        assert again.types == ["ready"]
        assert again.close == 1000


async def test_a_second_connection_takes_over() -> None:
    async with serve() as url, Wire.stream(url, start=PCM) as first:
        ready = await first.until("ready")
        await first.audio(AUDIO[:HALF])
        await first.until("final", 3)
        async with Wire.stream(url, start=papers(ready, from_seq=1)) as second:
            again = await second.until("ready")
            gone = await first.finish()
            assert (gone.messages[-1]["code"], gone.close) == ("taken_over", 4409)
            assert "seq" not in gone.messages[-1]
            await second.audio(AUDIO[again["received_bytes"] :])
            await second.say({"type": "stop"})
            outcome = await second.finish()
    assert whole(outcome) == markers(WORDS)


async def refused(url: str, start: Json) -> str:
    async with Wire.stream(url, start=start) as wire:
        outcome = await wire.finish()
    assert outcome.types == ["error", "closed"]
    (code,) = outcome.codes
    assert isinstance(code, str)
    return code


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"resume_token": "guessed"}, "wrong_token"),
        ({"session_id": "somebody-elses-session"}, "unknown_session"),
        ({"from_seq": 10_000}, "seq_ahead"),
        ({"offset": 10_000_000}, "offset_ahead"),
        ({"offset": 0}, "offset_behind"),
        ({"offset": -1}, "bad_start"),
        ({"from_seq": 0}, "bad_start"),
    ],
)
async def test_wrong_papers_hurt_nothing(more: Json, code: str) -> None:
    async with serve() as url:
        async with broken_off(url) as wire:
            pass
        assert await refused(url, papers(wire.outcome.messages[0]) | more) == code
        assert whole(wire.outcome, await finished(url, wire.outcome)) == markers(WORDS)


@pytest.mark.parametrize(("offset", "code"), [(10_000_000, "offset_ahead"), (0, "offset_behind")])
async def test_wrong_papers_hurt_nothing_that_only_the_log_knows(
    spawn: Spawn, tmp_path: Path, offset: int, code: str
) -> None:
    env = engine_env() | {"STT_EVENT_LOG": f"sqlite:{tmp_path}/log.db"}
    server = spawn(env)
    async with broken_off(server.url) as wire:
        server.process.kill()
    server = spawn(env)
    ready = wire.outcome.messages[0]
    assert await refused(server.url, papers(ready) | {"resume_token": "guessed"}) == "wrong_token"
    assert await refused(server.url, papers(ready, from_seq=10_000)) == "seq_ahead"
    assert await refused(server.url, papers(ready, offset=offset)) == code
    assert whole(wire.outcome, await finished(server.url, wire.outcome)) == markers(WORDS)


async def test_a_client_may_say_where_its_audio_goes_on() -> None:
    """Then it need not wait for `ready`; what is there already is passed over, here half a sample."""
    async with serve() as url:
        async with broken_off(url) as wire:
            pass
        ready = wire.outcome.messages[0]
        path = f"{url}/v1/sessions/{ready['session_id']}"
        await eventually(lambda: http_get(path).json["state"] == "held")
        offset = int((await get(path)).json["received"] * 16_000)
        async with Wire.stream(url, start=papers(ready, from_seq=last(wire.outcome) + 1, offset=offset)) as second:
            await second.audio(AUDIO[2 * offset :])
            await second.say({"type": "stop"})
            outcome = await second.finish()
        assert whole(wire.outcome, outcome) == markers(WORDS)


async def test_a_sender_that_does_not_come_back() -> None:
    async with serve(resume_seconds=0.3) as url:
        async with broken_off(url) as wire:
            pass
        ready = wire.outcome.messages[0]
        assert ready["resume_seconds"] == 0.3
        path = f"{url}/v1/sessions/{ready['session_id']}"
        await eventually(lambda: http_get(path).json["state"] == "held")
        await eventually(lambda: http_get(path).json["state"] == "ended")
        assert (await get(path)).json["code"] == "sender_gone"
        # What it had sent was finalized.
        heard = (await get(f"{path}/transcript?format=json")).json["text"].split()
        assert heard[:9] == markers(9)
        outcome = Outcome()
        async with Wire.stream(url, start=papers(ready, from_seq=last(wire.outcome) + 1)) as late:
            outcome = await late.finish()
        assert outcome.messages[-1]["code"] == "sender_gone"


async def test_a_session_that_expired_in_the_log(spawn: Spawn, tmp_path: Path) -> None:
    env = engine_env() | {"STT_EVENT_LOG": f"sqlite:{tmp_path}/log.db", "STT_RESUME_SECONDS": "0.2"}
    server = spawn(env)
    async with Wire.stream(server.url, start=PCM) as wire:
        ready = await wire.until("ready")
        await wire.audio(AUDIO[:HALF])
        await wire.until("final", 3)
        server.process.kill()
        await wire.finish()
    await asyncio.sleep(0.3)
    assert await refused(spawn(env).url, papers(ready)) == "session_expired"


async def test_nothing_is_held_of_who_does_not_come_back() -> None:
    async with serve() as url:
        async with Wire.stream(url, start={"resume": False}) as wire:
            ready = await wire.until("ready")
            assert "resume_token" not in ready or ready["resume_token"] is None
        await eventually(lambda: metric(http_get(f"{url}/metrics").body, "stt_sessions_open") == 0)


async def test_no_trace_is_left_of_who_asks_for_none(spawn: Spawn, tmp_path: Path) -> None:
    server = spawn(engine_env() | {"STT_EVENT_LOG": f"sqlite:{tmp_path}/log.db"})
    async with broken_off(server.url, start=PCM | {"store": False}) as wire:
        pass
    ready = wire.outcome.messages[0]
    path = f"{server.url}/v1/sessions/{ready['session_id']}"
    await eventually(lambda: http_get(path).json["state"] == "held")
    assert (await get(path)).json["stored"] is False
    assert whole(wire.outcome, await finished(server.url, wire.outcome)) == markers(WORDS)
    await eventually(lambda: http_get(path).status == 404)
    kept = b"".join(await asyncio.to_thread(lambda: [file.read_bytes() for file in tmp_path.glob("log.db*")]))
    assert kept
    assert ready["session_id"].encode() not in kept


async def test_a_held_session_gives_way_and_goes_on_all_the_same() -> None:
    async with serve(engine_env(max_streams=1)) as url:
        async with broken_off(url) as wire:
            pass
        async with Wire.stream(url, start=PCM) as other:
            await other.until("ready")
            assert await refused(url, papers(wire.outcome.messages[0])) == "at_capacity"
            await other.say({"type": "stop"})
            await other.finish()
        outcome = await finished(url, wire.outcome)
        assert whole(wire.outcome, outcome) == markers(WORDS)
        assert metric((await get(f"{url}/metrics")).body, "stt_resumes_total", session="restored") == 1


@pytest.mark.parametrize("resume", [True, None])
async def test_a_server_that_stops_in_order(spawn: Spawn, tmp_path: Path, resume: bool | None) -> None:
    """Who comes back loses nothing, and no word is cut; who may not come back has all finals before the end."""
    env = engine_env() | {"STT_EVENT_LOG": f"sqlite:{tmp_path}/log.db"}
    server = spawn(env)
    async with Wire.stream(server.url, start=PCM | {"resume": resume}) as wire:
        await wire.until("ready")
        await wire.audio(AUDIO[:HALF])
        await wire.until("final", 3)
        server.process.terminate()
        gone = await wire.finish()
    assert gone.messages[-1]["code"] == "shutting_down"
    if resume:
        assert "seq" not in gone.messages[-1]
        assert whole(gone, await finished(spawn(env).url, gone)) == markers(WORDS)
    else:
        assert gone.messages[-1]["finalized"] == HALF // 2
        assert whole(gone)[:10] == markers(10)
