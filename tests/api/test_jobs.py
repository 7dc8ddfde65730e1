"""`/v1/jobs` on a real server: handing in, following, reading, calling off, and who may."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import srt
import webvtt

from backends.markers import marker_audio
from tests.wire import engine_env, metric, serve

LIMIT: Final = 10.0
SECRET: Final = "of this test and no other"


def recording(words: int = 3) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(marker_audio(words))
    return file.getvalue()


def said(words: int = 3) -> str:
    return " ".join(f"w{number}" for number in range(words))


@contextlib.asynccontextmanager
async def served(folder: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with a store of its own."""
    own = {
        "store": f"sqlite:{folder / 'jobs.db'}",
        "uploads": str(folder / "files"),
        "webhook_secret": SECRET,
        "vad": "off",
    }
    async with (
        serve(**own | settings) as url,
        httpx.AsyncClient(base_url=url, timeout=LIMIT, trust_env=False) as client,
    ):
        yield client


async def handed_in(client: httpx.AsyncClient, words: int = 3, **fields: str) -> dict[str, Any]:
    answer = await client.post("/v1/jobs", files={"file": ("talk.wav", recording(words))}, data=fields)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    return job


async def events(client: httpx.AsyncClient, job_id: str, last: str | None = None) -> list[tuple[str, Any, str]]:
    """The name, the data and the id of each."""
    found: list[tuple[str, Any, str]] = []
    headers = {} if last is None else {"last-event-id": last}
    async with asyncio.timeout(LIMIT), client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
        if answer.status_code == 204:
            return []
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                found.append((fields["event"], json.loads(fields["data"]), fields["id"]))
                fields = {}
    return found


async def done(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """The job when it has ended."""
    last: dict[str, Any] = (await events(client, job_id))[-1][1]
    return last


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_file_becomes_a_transcript(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        job = await handed_in(client, language="en-US")
        assert (job["state"], job["attempts"], job["result"], job["error"]) == ("queued", 0, None, None)
        ended = await done(client, job["id"])
        shown = (await client.get(f"/v1/jobs/{job['id']}")).json()
        alias = (await client.get(f"/v1/task/{job['id']}")).json()
        short = (await client.get(f"/v1/jobs/{job['id']}", params={"result": "false"})).json()
        figures = (await client.get("/metrics")).content
    assert ended["state"] == "succeeded"
    assert shown == alias
    assert shown["result"]["text"] == said()
    assert shown["progress"] == {"percent": 100.0, "audio_seconds": 1.8, "total_seconds": 1.8}
    assert shown["source"]["name"] == "talk.wav"
    assert shown["source"]["bytes"] == len(recording())
    assert shown["source"]["duration"] == 1.8
    assert (shown["backend"], shown["language"], shown["attempts"]) == ("scripted", "en-US", 1)
    assert short == shown | {"result": None}
    assert metric(figures, "stt_job_seconds_count", state="succeeded") == 1
    assert [path for path in (tmp_path / "files" / "files").glob("**/*") if path.is_file()] == []


async def test_every_format(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        job = await handed_in(client)
        await done(client, job["id"])
        path = f"/v1/jobs/{job['id']}/transcript"
        answers = {kind: await client.get(path, params={"format": kind}) for kind in ("json", "txt", "srt", "vtt")}
        verbose = (await client.get(path, params={"format": "verbose_json"})).json()
        by_header = await client.get(path, headers={"accept": "text/vtt"})
        unknown = await client.get(path, params={"format": "doc"})
    assert answers["json"].json()["text"] == said()
    assert answers["txt"].text.split() == said().split()
    assert [cue.content for cue in srt.parse(answers["srt"].text)] == said().split()
    assert [cue.text for cue in webvtt.from_string(answers["vtt"].text).captions] == said().split()
    assert by_header.text == answers["vtt"].text
    assert (verbose["text"], verbose["duration"], len(verbose["words"])) == (said(), 1.8, 3)
    assert unknown.status_code == 400
    assert all(answer.headers["cache-control"] == "no-store" for answer in answers.values())


async def test_events_tell_of_it_to_the_end(tmp_path: Path) -> None:
    async with served(tmp_path, job_workers=0) as client:
        job = await handed_in(client)
        following = asyncio.create_task(events(client, job["id"]))
        await asyncio.sleep(0.1)
        assert (await client.delete(f"/v1/jobs/{job['id']}")).json()["state"] == "cancelled"
        told = await following
        assert [name for name, _, _ in told] == ["progress", "cancelled"]
        assert told[0][1]["state"] == "queued"
        assert int(told[0][2]) < int(told[1][2])
        assert [name for name, _, _ in await events(client, job["id"], told[0][2])] == ["cancelled"]
        assert await events(client, job["id"], told[1][2]) == [], "a browser is told not to ask again"


async def test_calling_off_and_deleting(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        job = await handed_in(client)
        await done(client, job["id"])
        assert (await client.delete(f"/v1/jobs/{job['id']}")).status_code == 204
        for answer in (
            await client.get(f"/v1/jobs/{job['id']}"),
            await client.get(f"/v1/jobs/{job['id']}/transcript"),
            await client.get(f"/v1/jobs/{job['id']}/events"),
            await client.delete(f"/v1/jobs/{job['id']}"),
            await client.get("/v1/jobs/..%2f..%2fetc"),
        ):
            assert answer.status_code == 404
    async with served(tmp_path, job_workers=0) as client:
        waiting = await handed_in(client)
        path = f"/v1/jobs/{waiting['id']}/transcript"
        assert code(await client.get(path)) == (409, "job_unfinished")
        await client.delete(f"/v1/jobs/{waiting['id']}")
        assert code(await client.get(path)) == (410, "cancelled")
        assert (await client.delete(f"/v1/jobs/{waiting['id']}")).status_code == 204


async def test_a_job_that_fails_says_why(tmp_path: Path) -> None:
    env = engine_env(tmp_path, mode="script", script={"results": [], "faults": [{"at": 0, "kind": "reject"}]})
    async with served(tmp_path, env=env) as client:
        job = await handed_in(client)
        ended = await done(client, job["id"])
        transcript = await client.get(f"/v1/jobs/{job['id']}/transcript")
    assert (ended["state"], ended["error"]["code"], ended["attempts"]) == ("failed", "backend_rejected", 1)
    assert code(transcript) == (409, "job_failed")


@pytest.mark.parametrize(
    ("fields", "file", "wanted"),
    [
        ({}, b"<svg xmlns='http://www.w3.org/2000/svg'/>", (415, "unsupported_audio")),
        ({}, b"", (415, "unsupported_audio")),
        ({"model": "nobody's"}, None, (404, "unknown_backend")),
        ({"language": "x" * 36}, None, (400, "bad_request")),
        ({"phrases": "x" * 101}, None, (400, "bad_request")),
        ({"encoding": "pcm_s16le", "sample_rate": "many"}, None, (400, "bad_request")),
        ({"encoding": "morse"}, None, (415, "unsupported_audio")),
        ({"webhook": "ftp://a.example"}, None, (400, "bad_request")),
        ({"webhook": "http://10.0.0.1/"}, None, (400, "bad_request")),
        ({"webhook_result": "perhaps"}, None, (400, "bad_request")),
        ({"upload": "one"}, None, (400, "bad_request")),
    ],
)
async def test_what_is_refused(fields: dict[str, str], file: bytes | None, wanted: Any, plain: str) -> None:
    content = recording() if file is None else file
    async with httpx.AsyncClient(base_url=plain, trust_env=False) as client:
        before = (await client.get("/v1/jobs")).json()
        answer = await client.post("/v1/jobs", files={"file": ("a.wav", content)}, data=fields)
        assert code(answer) == wanted
        assert (await client.get("/v1/jobs")).json() == before


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"upload":{}}',
        b'{"upload":"a","webhook":"nowhere"}',
        b"[" * 60_000,
        b'{"upload":"\\ud800"}',
    ],
)
async def test_json_that_makes_no_job(body: bytes, plain: str) -> None:
    async with httpx.AsyncClient(base_url=plain, trust_env=False) as client:
        answer = await client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert code(answer) == (400, "bad_request")


async def test_the_same_key_again_is_the_same_job(tmp_path: Path) -> None:
    async with served(tmp_path, job_workers=0) as client:
        key = {"idempotency-key": "of mine"}

        async def submit(words: int, **fields: str) -> httpx.Response:
            return await client.post("/v1/jobs", files={"file": ("a", recording(words))}, data=fields, headers=key)

        first, again = await submit(3), await submit(3)
        assert first.status_code == again.status_code == 202
        assert first.json() == again.json()
        assert code(await submit(4)) == (409, "upload_conflict")
        assert code(await submit(3, language="de")) == (409, "upload_conflict")
        assert len((await client.get("/v1/jobs")).json()["jobs"]) == 1
        files = [path for path in (tmp_path / "files" / "files").glob("**/*") if path.is_file()]
        assert len(files) == 1, "what was sent in vain is not kept"


async def test_pages(tmp_path: Path) -> None:
    async with served(tmp_path, job_workers=0) as client:
        ids = [(await handed_in(client, 1))["id"] for _ in range(5)]
        found: list[str] = []
        after: dict[str, str] = {}
        for size in (2, 2, 1):
            page = (await client.get("/v1/jobs", params={"limit": "2", **after})).json()
            assert len(page["jobs"]) == size
            found += [job["id"] for job in page["jobs"]]
            after = {"after": page["next"]}
        assert found == ids[::-1]
        assert after == {"after": None}
        assert (await client.get("/v1/jobs", params={"state": "running"})).json()["jobs"] == []
        for bad in ({"limit": "0"}, {"limit": "101"}, {"after": "nobody"}, {"state": "odd"}):
            assert code(await client.get("/v1/jobs", params=bad)) == (400, "bad_request")


async def test_others_do_not_see_it(tmp_path: Path) -> None:
    mine, theirs, boss = ({"x-api-key": f"{name}-of-16-chars"} for name in ("mine", "theirs", "boss"))
    rights = {"mine": "files", "theirs": "files", "boss": "files+admin"}
    keys = tuple(f"{right}={name}-of-16-chars" for name, right in rights.items())
    async with served(tmp_path, job_workers=0, scoped_keys=(*keys, "send=just-talks-here")) as client:
        assert (await client.post("/v1/jobs", files={"file": recording()})).status_code == 401
        talker = {"x-api-key": "just-talks-here"}
        assert (await client.post("/v1/jobs", files={"file": recording()}, headers=talker)).status_code == 403
        job = (await client.post("/v1/jobs", files={"file": ("a", recording())}, headers=mine)).json()
        path = f"/v1/jobs/{job['id']}"
        for answer in (
            await client.get(path, headers=theirs),
            await client.get(f"{path}/events", headers=theirs),
            await client.get(f"{path}/transcript", headers=theirs),
            await client.delete(path, headers=theirs),
        ):
            assert code(answer) == (404, "unknown_job")
        assert (await client.get("/v1/jobs", headers=theirs)).json()["jobs"] == []
        assert len((await client.get("/v1/jobs", headers=mine)).json()["jobs"]) == 1
        assert (await client.get("/v1/jobs", params={"after": job["id"]}, headers=theirs)).status_code == 400
        assert (await client.get(path, headers=boss)).status_code == 200


async def test_an_upload_becomes_a_job_once(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        form = {"session_id": "mine", "seq": "0", "is_last": "true", "job": "false", "language": "en-US"}
        sent = await client.post("/v1/audio", data=form, files={"chunk": ("a", recording())})
        assert sent.json()["job"] is None
        answers = [await client.post("/v1/jobs", json={"upload": "mine"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 202]
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert (await done(client, answers[0].json()["id"]))["state"] == "succeeded"
        other = await client.post("/v1/jobs", json={"upload": "mine", "language": "de"})
        assert code(other) == (409, "upload_conflict")
        assert code(await client.post("/v1/jobs", data={"upload": "another"})) == (404, "unknown_upload")
        await client.delete(f"/v1/jobs/{answers[0].json()['id']}")
        assert code(await client.post("/v1/jobs", json={"upload": "mine"})) == (404, "unknown_upload")


async def test_a_job_survives_the_server(tmp_path: Path) -> None:
    async with served(tmp_path, job_workers=0) as client:
        job = await handed_in(client)
    async with served(tmp_path) as client:
        assert (await done(client, job["id"]))["state"] == "succeeded"
    async with served(tmp_path, backend="scripted-threads", env=engine_env(backend="scripted-threads")) as client:
        shown = (await client.get(f"/v1/jobs/{job['id']}")).json()
        assert shown["result"]["text"] == said()


async def test_a_full_queue_is_said(tmp_path: Path) -> None:
    async with served(tmp_path, job_workers=0, max_jobs=1) as client:
        await handed_in(client)
        answer = await client.post("/v1/jobs", files={"file": ("a", recording())})
        assert code(answer) == (503, "at_capacity")
        assert int(answer.headers["retry-after"]) > 0
