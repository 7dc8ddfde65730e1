"""`POST /v1/transcribe`: the audio as the body, by curl and by hand; what ends it, what it waits for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import srt
import webvtt

from backends.scripted import marker_audio
from bridge.audio.formats import Encoding
from bridge.transports import http_protocol, server
from tests.api.test_openai import FILE, SECONDS, WORDS
from tests.audio.encoding import contained
from tests.wire import LIMIT, Wire, engine_env, get, serve

PATH = "/v1/transcribe"
PCM = marker_audio(len(WORDS))
TEXT = " ".join(WORDS)
FORM = "multipart/form-data; boundary=B"


@contextlib.asynccontextmanager
async def client(env: dict[str, str] | None = None, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Of a server on the scripted engine."""
    async with (
        serve(env, **settings) as url,
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=LIMIT) as http,
    ):
        yield http


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with client() as opened:
        yield opened


def post(data: bytes, *more: str, query: str = "") -> bytes:
    """A request with a body."""
    lines = [f"POST {PATH}{query} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(data)}", *more, "", ""]
    return "\r\n".join(lines).encode() + data


async def sessions(url: str) -> int:
    count: int = (await get(f"{url}/readyz")).json["sessions"]
    return count


async def test_every_format_by_query_and_by_accept(http: httpx.AsyncClient) -> None:
    found = (await http.post(PATH, content=FILE[1])).json()
    assert found["text"] == TEXT
    assert found["duration"] == pytest.approx(SECONDS, abs=0.001)
    assert (found["language"], found["backend"]) == ("en-US", "scripted")
    assert [word["text"] for segment in found["segments"] for word in segment["words"]] == WORDS

    for kind, accept in (("txt", "text/plain"), ("srt", "application/x-subrip"), ("vtt", "text/vtt")):
        asked = await http.post(PATH, params={"format": kind}, content=FILE[1])
        accepted = await http.post(PATH, headers={"accept": accept}, content=FILE[1])
        assert asked.text == accepted.text
        assert asked.headers["content-type"] == accepted.headers["content-type"]
        assert asked.headers["content-type"].startswith(accept)
        assert asked.headers["cache-control"] == "no-store"
        match kind:
            case "txt":
                assert asked.text.split() == WORDS
            case "srt":
                assert " ".join(cue.content for cue in srt.parse(asked.text)).split() == WORDS
            case _:
                assert " ".join(cue.text for cue in webvtt.from_string(asked.text).captions).split() == WORDS


async def test_any_container_and_raw_samples(http: httpx.AsyncClient) -> None:
    for encoding in (Encoding.FLAC, Encoding.MP3, Encoding.WEBM):
        answer = await http.post(PATH, content=contained(encoding, seconds=1.0))
        assert answer.status_code == 200, (encoding, answer.text)
        assert answer.json()["duration"] == pytest.approx(1, abs=0.15)
    raw = {"encoding": "pcm_s16le", "sample_rate": "16000"}
    assert (await http.post(PATH, params=raw, content=PCM)).json()["text"] == TEXT
    stereo = b"".join(PCM[at : at + 2] * 2 for at in range(0, len(PCM), 2))
    assert (await http.post(PATH, params=raw | {"channels": "2"}, content=stereo)).json()["text"] == TEXT


async def test_without_words_and_in_a_form(http: httpx.AsyncClient) -> None:
    found = (await http.post(PATH, params={"words": "false"}, content=FILE[1])).json()
    assert {len(segment["words"]) for segment in found["segments"]} == {0}
    assert found["text"] == TEXT
    assert (await http.post(PATH, files={"file": FILE})).json()["text"] == TEXT
    assert (await http.post(PATH, files={"sound": FILE})).status_code == 400


async def test_a_stream(http: httpx.AsyncClient) -> None:
    answer = await http.post(PATH, params={"stream": "true"}, content=FILE[1])
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in answer.text.strip().split("\n\n")]
    assert [block["event"] for block in blocks] == ["final"] * (len(blocks) - 1) + ["done"]
    events = [json.loads(block["data"]) for block in blocks]
    assert " ".join(event["text"] for event in events[:-1]) == events[-1]["text"] == TEXT
    assert events[-1]["backend"] == "scripted"


REFUSED: list[tuple[dict[str, str], bytes, int, str]] = [
    ({}, b"", 415, "unsupported_audio"),
    ({}, b"<svg/>" * 100, 415, "unsupported_audio"),
    ({"stream": "true"}, b"<svg/>" * 100, 415, "unsupported_audio"),
    ({"format": "xml"}, FILE[1], 400, "bad_message"),
    ({"model": "gpt-9"}, FILE[1], 404, "unknown_backend"),
    ({"encoding": "pcm_s16le", "sample_rate": "lots"}, PCM, 400, "bad_request"),
    ({"encoding": "opera"}, PCM, 415, "unsupported_audio"),
    ({"words": "perhaps"}, FILE[1], 400, "bad_request"),
]


async def test_what_is_refused(http: httpx.AsyncClient) -> None:
    for query, body, status, code in REFUSED:
        answer = await http.post(PATH, params=query, content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_nothing_of_a_body_is_read_for_a_stranger() -> None:
    async with serve(api_keys=("key",)) as url, Wire.open(url) as wire:
        await wire.send(post(b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 1000000"))
        outcome = await wire.response()
        assert (outcome.status, outcome.error["code"]) == (401, "unauthorized")


async def test_curl(http: httpx.AsyncClient, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    file = tmp_path / "talk.wav"
    file.write_bytes(FILE[1] + bytes(2_000_000))  # curl asks before it sends so much; the rest is no audio
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "--noproxy", "*", "--data-binary", f"@{file}", f"{http.base_url}/v1/transcribe?format=txt"),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(curl.communicate(), LIMIT)
    assert out.decode().split() == WORDS


def stalling(tmp_path: Path, streams: int, max_streams: int | None = None) -> dict[str, str]:
    """The marker engine, whose first streams of a session say nothing more after a second."""
    faults = [{"at": 1.0, "kind": "stall"}] * streams
    return engine_env(tmp_path, script={"faults": faults}, max_streams=max_streams)


@pytest.mark.parametrize("query", ["", "?stream=true"])
async def test_a_client_that_hangs_up_ends_its_session_at_once(tmp_path: Path, query: str) -> None:
    async with serve(stalling(tmp_path, 1)) as url:
        async with Wire.open(url) as wire:
            await wire.send(post(FILE[1], query=query))
            await wait_for_sessions(url, 1)
        await wait_for_sessions(url, 0)
        metrics = (await get(f"{url}/metrics")).body.decode()
    assert 'stt_sessions_total{code="client_gone"} 1.0' in metrics


async def wait_for_sessions(url: str, count: int) -> None:
    async with asyncio.timeout(LIMIT):
        while await sessions(url) != count:
            await asyncio.sleep(0.02)


async def test_a_request_that_takes_long_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.3)
    async with serve(stalling(tmp_path, 1), stall_seconds=1.5) as url, Wire.open(url) as wire:
        await wire.send(post(FILE[1]))
        outcome = await wire.response()
        assert outcome.status == 200
        assert json.loads(outcome.body)["text"] == TEXT


async def test_files_wait_for_a_place_and_leave_some_to_who_speaks(tmp_path: Path) -> None:
    async with client(stalling(tmp_path, 1, max_streams=4), stall_seconds=1.0) as http:
        url = str(http.base_url).rstrip("/")
        answers = [asyncio.create_task(http.post(PATH, content=FILE[1])) for _ in range(8)]
        await wait_for_sessions(url, 3)
        async with Wire.stream(url, start={}) as wire:
            await wire.until("ready")
            assert await sessions(url) == 4
            await wire.say({"type": "stop"})
            await wire.until("closed")
        assert [(await answer).json()["text"] for answer in answers] == [TEXT] * 8
        await wait_for_sessions(url, 0)


@pytest.mark.parametrize("path", [PATH, f"{PATH}?stream=true", "/v1/audio/transcriptions", "/v1/jobs"])
async def test_a_server_that_stops_says_so_to_whom_it_no_longer_listens(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "CLOSE_SECONDS", -0.5)  # with what is added: half a second for who is still sending
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {FORM}\r\nContent-Length: 9999\r\n\r\n--B\r\n"
    async with contextlib.AsyncExitStack() as stack:
        async with serve() as url:
            wire = await stack.enter_async_context(Wire.open(url))
            await wire.send(head.encode())
            await asyncio.sleep(0.1)
        outcome = await wire.response()
    assert outcome.status == 503
    error = json.loads(outcome.body)["error"]
    assert error["code"] == "shutting_down"
    assert ("type" in error) == (path == "/v1/audio/transcriptions")
    assert "Traceback" not in caplog.text


async def test_a_server_that_stops_says_so(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with serve(stalling(tmp_path, 9), shutdown_seconds=0.3) as url:
            wire = await stack.enter_async_context(Wire.open(url))
            await wire.send(post(FILE[1]))
            await wait_for_sessions(url, 1)
        outcome = await wire.response()
    assert (outcome.status, outcome.error["code"]) == (503, "shutting_down")
