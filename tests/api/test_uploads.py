"""`/v1/audio` on a real server: what a client in chunks is told, by curl and httpx; deaths of the server in between."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Spawn
from tests.uploads.fakes import sha256
from tests.wire import LIMIT, ROOT, engine_env, spawned

HELLO = (ROOT / "samples" / "hello.flac").read_bytes()
ROUTE = "/v1/audio"


def cut(data: bytes, count: int) -> list[bytes]:
    size = -(-len(data) // count)
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps uploads."""
    return tmp_path_factory.mktemp("chunks") / "up"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """All of them go to one server."""
    env = {"STT_UPLOADS": str(folder), "STT_MAX_FILE_BYTES": "200000", "STT_JOB_WORKERS": "0", "STT_MAX_UPLOADS": "20"}
    with spawned(folder.parent, engine_env() | env) as server:
        yield server.url
        server.assert_no_traceback()


@pytest.fixture
async def client(server: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server, timeout=LIMIT) as client:
        yield client
        for name in ("s1", *(f"up-{number}" for number in range(60))):
            if (await client.delete(f"{ROUTE}/{name}")).status_code == 404 and name != "s1":
                break


async def send(
    client: httpx.AsyncClient, number: int, chunk: bytes, *, last: bool = False, name: str = "s1", **fields: str
) -> httpx.Response:
    form = {"session_id": name, "seq": str(number), "is_last": str(last).lower(), **fields}
    return await client.post(ROUTE, data=form, files={"chunk": ("blob", chunk, "application/octet-stream")})


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_file_in_chunks_becomes_a_job(client: httpx.AsyncClient, folder: Path) -> None:
    parts = cut(HELLO, 4)
    for number in (0, 2, 0):
        answer = await send(client, number, parts[number])
        assert answer.status_code == 200
    answer = await send(client, 3, parts[3], last=True)
    assert error(answer) == (409, "upload_incomplete")
    assert answer.json()["missing"] == [1]
    assert answer.json()["missing_count"] == 1
    assert "missing: [1]" in answer.json()["error"]["message"]
    answer = await send(client, 1, parts[1], filename="hello.flac")
    body = answer.json()
    assert (answer.status_code, body["complete"], body["state"]) == (200, True, "complete")
    assert (body["session_id"], body["received"], body["bytes"]) == ("s1", 4, len(HELLO))
    assert body["sha256"] == sha256(HELLO)
    assert body["job"] == {"id": body["task_id"], "url": f"/v1/jobs/{body['task_id']}"}
    assert (await client.get(f"{ROUTE}/s1")).json() == body
    assert (await send(client, 3, parts[3], last=True)).json() == body
    job = (await client.get(body["job"]["url"])).json()
    assert (job["source"]["bytes"], job["source"]["sha256"]) == (len(HELLO), sha256(HELLO))
    assert job["source"]["name"] == "hello.flac"
    assert not list((folder / "uploads").iterdir())


async def test_giving_up(client: httpx.AsyncClient) -> None:
    await send(client, 0, b"some")
    assert (await client.delete(f"{ROUTE}/s1")).status_code == 204
    assert error(await client.get(f"{ROUTE}/s1")) == (404, "unknown_upload")
    assert error(await client.delete(f"{ROUTE}/s1")) == (404, "unknown_upload")


async def test_other_bytes_and_no_audio(client: httpx.AsyncClient) -> None:
    await send(client, 0, b"<svg>")
    assert error(await send(client, 0, b"<svg/>")) == (409, "upload_conflict")
    answer = await send(client, 1, b"</svg>", last=True, filename="song.wav")
    assert error(answer) in {(422, "undecodable_audio"), (415, "unsupported_audio")}
    body = (await client.get(f"{ROUTE}/s1")).json()
    assert (body["state"], body["complete"], body["job"]) == ("refused", False, None)
    assert body["error"]["code"] == answer.json()["error"]["code"]


async def test_bad_fields(client: httpx.AsyncClient) -> None:
    cases = [
        ({"session_id": "../../etc/passwd"}, "bad_request"),
        ({"session_id": "a/b"}, "bad_request"),
        ({"session_id": "a\0b"}, "bad_request"),
        ({"session_id": ""}, "bad_request"),
        ({"session_id": "x" * 129}, "bad_request"),
        ({"seq": "-1"}, "bad_request"),
        ({"seq": "1.5"}, "bad_request"),
        ({"seq": ""}, "bad_request"),
        ({"seq": "99999999999999999999"}, "bad_request"),
        ({"seq": "20000"}, "bad_request"),
        ({"is_last": "maybe"}, "bad_request"),
        ({"language": "x" * 100}, "bad_request"),
        ({"job": "perhaps"}, "bad_request"),
        ({"first_seq": "2"}, "bad_request"),
        ({"webhook": "http://127.0.0.1/"}, "bad_request"),
        ({"encoding": "nonsense"}, "unsupported_audio"),
    ]
    for form, code in cases:
        answer = await client.post(ROUTE, data={"session_id": "s1", "seq": "0"} | form, files={"chunk": b"x"})
        assert error(answer)[1] == code, form
        assert answer.status_code < 500
        assert (await client.get(f"{ROUTE}/s1")).status_code == 404, "nothing was begun"


async def test_bad_bodies(client: httpx.AsyncClient) -> None:
    assert error(await client.post(ROUTE, content=b"no form")) == (400, "bad_request")
    assert error(await client.post(ROUTE, data={"session_id": "s1", "seq": "0"})) == (400, "bad_request")
    for name in ("..%2F..%2Fetc%2Fpasswd", "%00", "a%20b", "x" * 200):
        answer = await client.get(f"{ROUTE}/{name}")
        assert answer.status_code == 404


async def test_too_much(client: httpx.AsyncClient) -> None:
    for number in range(2):
        assert (await send(client, number, bytes(90_000))).status_code == 200
    assert error(await send(client, 2, bytes(90_000))) == (413, "too_large")
    assert (await client.get(f"{ROUTE}/s1")).json()["received"] == 2


async def test_keys_have_uploads_of_their_own(tmp_path: Path) -> None:
    keys = {"STT_API_KEYS": "mine,yours", "STT_SCOPED_KEYS": "send=talker", "STT_JOB_WORKERS": "0"}
    with spawned(tmp_path, engine_env() | keys) as server:
        async with httpx.AsyncClient(base_url=server.url, headers={"x-api-key": "mine"}) as client:
            await send(client, 0, b"mine")
            for key, status in (("yours", 404), ("talker", 403), ("wrong", 401)):
                assert (await client.get(f"{ROUTE}/s1", headers={"x-api-key": key})).status_code == status
            assert (await client.get(f"{ROUTE}/s1")).json()["bytes"] == 4


async def test_only_so_many(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(send(client, 0, b"x", name=f"up-{number}") for number in range(60)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(refused) == 40
    assert {error(answer) for answer in refused} == {(503, "at_capacity")}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_by_curl(client: httpx.AsyncClient, tmp_path: Path) -> None:
    parts = cut(HELLO, 3)
    for number, part in enumerate(parts):
        (tmp_path / "chunk").write_bytes(part)
        form = [f"-Fsession_id=talk", f"-Fseq={number}", f"-Fis_last={str(number == 2).lower()}"]  # noqa: F541
        command = ["curl", "-sS", *form, f"-Fchunk=@{tmp_path / 'chunk'}", f"{client.base_url}{ROUTE}"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=LIMIT, check=True)
    assert sha256(HELLO).encode() in done.stdout


def chunks_of(name: str, parts: list[bytes], rng: random.Random) -> list[tuple[str, int, bytes, bool]]:
    sent = [(name, number, part, number == len(parts) - 1) for number, part in enumerate(parts)]
    sent += rng.choices(sent, k=len(sent) // 2)
    rng.shuffle(sent)
    return sent


async def test_kill_in_between(tmp_path: Path, spawn: Spawn) -> None:
    """The server dies while chunks of two files come in; what it acknowledged need not be sent again."""
    rng = random.Random(7)
    files = {"one": HELLO, "two": HELLO[:-3]}
    waiting = [chunk for name, data in files.items() for chunk in chunks_of(name, cut(data, 6), rng)]
    rng.shuffle(waiting)
    env = engine_env() | {"STT_UPLOADS": str(tmp_path / "up"), "STT_JOB_WORKERS": "0"}
    acknowledged: set[tuple[str, int]] = set()
    server = spawn(env)
    port = server.url.rpartition(":")[2]
    states: dict[str, Any] = {}
    for at, (name, number, part, last) in enumerate(waiting):
        if at == 9:
            server.process.kill()
            await server.exited()
            server = spawn(env, "--port", port)
        if (name, number) in acknowledged and rng.random() < 0.5:
            continue
        async with httpx.AsyncClient(base_url=server.url, timeout=LIMIT) as client:
            answer = await send(client, number, part, last=last, name=name)
            assert answer.status_code in {200, 409}, answer.text
            acknowledged.add((name, number))
            states[name] = answer.json()
    async with httpx.AsyncClient(base_url=server.url, timeout=LIMIT) as client:
        for name, data in files.items():
            state = (await client.get(f"{ROUTE}/{name}")).json()
            assert (state["complete"], state["sha256"]) == (True, sha256(data))
            stored = tmp_path / "up" / "files" / state["job"]["id"]
            assert await asyncio.to_thread(stored.read_bytes) == data
    server.assert_no_traceback()
