"""`/v1/uploads` on a real server: the protocol's own rules, tuspy, and connections that are cut."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tusclient.client
from tusclient.exceptions import TusCommunicationError

from bridge.api.tus import BODY_TYPE, read_metadata
from bridge.errors import BridgeError
from bridge.uploads.appends import PIECE_BYTES
from tests.conftest import Spawn
from tests.uploads.fakes import sha256
from tests.wire import LIMIT, ROOT, Wire, engine_env, eventually, spawned

HELLO = (ROOT / "samples" / "hello.flac").read_bytes()
ROUTE = "/v1/uploads"
TUS = {"tus-resumable": "1.0.0"}
APPEND = TUS | {"content-type": BODY_TYPE}
LARGEST = 3_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """All of them go to one server."""
    env = engine_env() | {"STT_MAX_FILE_BYTES": str(LARGEST), "STT_JOB_WORKERS": "0"}
    with spawned(tmp_path_factory.mktemp("tus"), env) as server:
        yield server.url
        server.assert_no_traceback()


@pytest.fixture
async def client(server: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server, timeout=LIMIT) as client:
        yield client


def metadata(**fields: str) -> dict[str, str]:
    pairs = (f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in fields.items())
    return {"upload-metadata": ",".join(pairs)}


async def begin(client: httpx.AsyncClient, length: int | None = len(HELLO), **headers: str) -> str:
    said = {"upload-defer-length": "1"} if length is None else {"upload-length": str(length)}
    answer = await client.post(ROUTE, headers=TUS | said | headers)
    assert (answer.status_code, answer.headers["tus-resumable"]) == (201, "1.0.0")
    assert "upload-expires" in answer.headers
    return answer.headers["location"]


async def append(client: httpx.AsyncClient, url: str, offset: int, data: bytes, **headers: str) -> httpx.Response:
    return await client.patch(url, content=data, headers=APPEND | {"upload-offset": str(offset)} | headers)


async def offset(client: httpx.AsyncClient, url: str) -> int:
    answer = await client.head(url, headers=TUS)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    return int(answer.headers["upload-offset"])


async def assert_arrived(client: httpx.AsyncClient, url: str, data: bytes = HELLO) -> dict[str, Any]:
    state: dict[str, Any] = (await client.get(url)).json()
    assert (state["state"], state["bytes"], state["sha256"]) == ("complete", len(data), sha256(data))
    job: dict[str, Any] = (await client.get(state["job"]["url"])).json()
    assert job["source"]["sha256"] == sha256(data)
    return job


def error(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["tus-resumable"] == "1.0.0"
    return answer.status_code, answer.json()["error"]["code"]


async def test_what_it_can_do(client: httpx.AsyncClient) -> None:
    for path in (ROUTE, f"{ROUTE}/any"):
        answer = await client.options(path)
        assert answer.status_code == 204
        assert answer.headers["tus-version"] == "1.0.0"
        assert answer.headers["tus-max-size"] == str(LARGEST)
        assert {"creation", "termination", "expiration", "checksum"} <= set(answer.headers["tus-extension"].split(","))
        assert "sha1" in answer.headers["tus-checksum-algorithm"].split(",")


async def test_an_upload_step_by_step(client: httpx.AsyncClient) -> None:
    said = metadata(filename="hello.flac", language="en-US", odd="x")
    url = await begin(client, len(HELLO), **said)
    assert await offset(client, url) == 0
    answer = await append(client, url, 0, HELLO[:1_000])
    assert (answer.status_code, answer.headers["upload-offset"]) == (204, "1000")
    head = await client.head(url, headers=TUS)
    assert head.headers["upload-metadata"] == said["upload-metadata"]
    assert head.headers["upload-length"] == str(len(HELLO))
    assert error(await append(client, url, 999, b"x")) == (409, "upload_conflict")
    answer = await append(client, url, 1_000, HELLO[1_000:])
    assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(len(HELLO)))
    job = await assert_arrived(client, url)
    assert answer.headers["upload-job"] == job["id"]
    assert (job["source"]["name"], job["id"]) == (
        "hello.flac",
        (await client.head(url, headers=TUS)).headers["upload-job"],
    )


async def test_the_whole_file_with_the_creation(client: httpx.AsyncClient) -> None:
    answer = await client.post(ROUTE, content=HELLO, headers=APPEND | {"upload-length": str(len(HELLO))})
    assert (answer.status_code, answer.headers["upload-offset"]) == (201, str(len(HELLO)))
    await assert_arrived(client, answer.headers["location"])


async def test_a_length_that_is_said_later(client: httpx.AsyncClient) -> None:
    url = await begin(client, None)
    await append(client, url, 0, HELLO[:500])
    assert (await client.head(url, headers=TUS)).headers["upload-defer-length"] == "1"
    answer = await append(client, url, 500, HELLO[500:], **{"upload-length": str(len(HELLO))})
    assert answer.status_code == 204
    await assert_arrived(client, url)


async def test_giving_up(client: httpx.AsyncClient) -> None:
    url = await begin(client)
    assert (await client.delete(url, headers=TUS)).status_code == 204
    assert (await client.head(url, headers=TUS)).status_code == 404
    assert error(await append(client, url, 0, b"x")) == (404, "unknown_upload")


async def test_for_those_who_cannot_patch(client: httpx.AsyncClient) -> None:
    url = await begin(client)
    said = APPEND | {"upload-offset": "0"}
    answer = await client.post(url, content=HELLO, headers=said | {"x-http-method-override": "PATCH"})
    assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(len(HELLO)))
    assert error(await client.post(url, headers=said)) == (400, "bad_request")
    assert (await client.post(url, headers=TUS | {"x-http-method-override": "DELETE"})).status_code == 204
    assert (await client.get(url)).status_code == 404


async def test_checksums(client: httpx.AsyncClient) -> None:
    url = await begin(client)
    half = len(HELLO) // 2

    def said(algorithm: str, data: bytes) -> dict[str, str]:
        return {"upload-checksum": f"{algorithm} {base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"}

    assert error(await append(client, url, 0, HELLO[:half], **said("sha1", b"other"))) == (460, "checksum_mismatch")
    assert await offset(client, url) == 0
    assert error(await append(client, url, 0, b"x", **{"upload-checksum": "crc9 AAAA"})) == (400, "bad_request")
    assert error(await append(client, url, 0, b"x", **{"upload-checksum": "sha1 ???"})) == (400, "bad_request")
    assert (await append(client, url, 0, HELLO[:half], **said("sha1", HELLO[:half]))).status_code == 204
    assert (await append(client, url, half, HELLO[half:], **said("sha256", HELLO[half:]))).status_code == 204
    await assert_arrived(client, url)


async def test_creations_that_are_refused(client: httpx.AsyncClient) -> None:
    cases: list[tuple[dict[str, str], int, str]] = [
        ({}, 400, "bad_request"),
        ({"upload-length": "x"}, 400, "bad_request"),
        ({"upload-length": "-1"}, 400, "bad_request"),
        ({"upload-length": "5", "upload-defer-length": "1"}, 400, "bad_request"),
        ({"upload-defer-length": "2"}, 400, "bad_request"),
        ({"upload-length": str(LARGEST + 1)}, 413, "too_large"),
        ({"upload-length": "9" * 30}, 400, "bad_request"),
        ({"upload-length": "5", "upload-metadata": "language !!!"}, 400, "bad_request"),
        ({"upload-length": "5", **metadata(webhook="ftp://x")}, 400, "bad_request"),
        ({"upload-length": "0"}, 415, "unsupported_audio"),
    ]
    for headers, status, code in cases:
        assert error(await client.post(ROUTE, headers=TUS | headers)) == (status, code), headers
    answer = await client.post(ROUTE, headers={"tus-resumable": "0.2.2", "upload-length": "5"})
    assert error(answer) == (412, "unsupported_version")
    assert answer.headers["tus-version"] == "1.0.0"


async def test_appends_that_are_refused(client: httpx.AsyncClient) -> None:
    url = await begin(client, 100)
    assert error(await client.patch(url, content=b"x", headers=APPEND)) == (400, "bad_request")
    wrong = APPEND | {"upload-offset": "0", "content-type": "audio/wav"}
    assert error(await client.patch(url, content=b"x", headers=wrong)) == (415, "unsupported_type")
    assert error(await client.patch(url, content=b"x", headers={"upload-offset": "0"})) == (412, "unsupported_version")
    assert error(await append(client, url, 0, bytes(101))) == (413, "too_large")
    assert (await append(client, f"{ROUTE}/..%2Faudio", 0, b"x")).status_code in {404, 405}
    assert await offset(client, url) == 0
    assert (await client.head(f"{ROUTE}/none", headers=TUS)).status_code == 404


async def test_no_audio(client: httpx.AsyncClient) -> None:
    url = await begin(client, 6)
    assert error(await append(client, url, 0, b"<html>")) in {(422, "undecodable_audio"), (415, "unsupported_audio")}
    assert (await client.get(url)).json()["state"] == "refused"


def test_metadata() -> None:
    header = metadata(name="talk é.wav", language="de")["upload-metadata"] + ",flag,else !!!"
    assert read_metadata(header) == {"upload-metadata": header, "filename": "talk é.wav", "language": "de"}
    assert read_metadata(" ") == {}
    for bad in ("a YQ==,a YQ==", ",", "language YQ", "language /w=="):
        with pytest.raises(BridgeError):
            read_metadata(bad)


def request(url: str, path: str, at: int, length: int) -> bytes:
    lines = [f"PATCH {path} HTTP/1.1", "Host: 127.0.0.1", f"Upload-Offset: {at}", f"Content-Length: {length}"]
    return "\r\n".join([*lines, *(f"{key}: {value}" for key, value in APPEND.items()), "", ""]).encode()


@pytest.mark.parametrize("how", ["reset", "end", "silence"])
async def test_a_connection_that_is_cut(client: httpx.AsyncClient, how: str) -> None:
    """What has come is kept; of one that is only silent too, as soon as its client is back."""
    data = HELLO * 20  # what follows a whole file does no harm
    url = await begin(client, len(data))
    sent = PIECE_BYTES + 50_000

    async def come(size: int) -> None:
        async with asyncio.timeout(LIMIT):
            while (await client.get(url)).json()["bytes"] < size:
                await asyncio.sleep(0.02)

    async with Wire.open(str(client.base_url)) as wire:
        await wire.send(request(str(client.base_url), url, 0, len(data)) + data[:sent])
        await come(PIECE_BYTES)
        if how == "end":
            wire.half_close()
            await come(sent)  # without anybody's asking for it
        elif how == "reset":
            wire.reset()
        at = await offset(client, url)
        assert PIECE_BYTES <= at <= sent
        assert (await append(client, url, at, data[at:])).status_code == 204
    await assert_arrived(client, url, data)


def upload_by_tuspy(server: str, store: dict[str, str], chunk: int, stop_at: int | None = None) -> str:
    """All of it, or as far as a client that dies gets; `store` is what it remembers."""
    client = tusclient.client.TusClient(f"{server}{ROUTE}")
    uploader = client.uploader(
        file_stream=io.BytesIO(HELLO),
        chunk_size=chunk,
        metadata={"filename": "hello.flac"},
        url=store.get("url"),
        upload_checksum=True,
    )
    uploader.upload(stop_at=stop_at)
    store["url"] = str(uploader.url)
    return str(uploader.url)


async def test_tuspy(client: httpx.AsyncClient) -> None:
    remembered: dict[str, str] = {}
    server = str(client.base_url)
    await asyncio.to_thread(upload_by_tuspy, server, remembered, 10_000, 40_000)
    url = remembered["url"].removeprefix(server)
    assert await offset(client, url) == 40_000
    await asyncio.to_thread(upload_by_tuspy, server, remembered, 20_000)
    await assert_arrived(client, url)
    with pytest.raises(TusCommunicationError):
        await asyncio.to_thread(upload_by_tuspy, server, {"url": f"{server}{ROUTE}/none"}, 1_000)


async def test_kill_in_the_middle(tmp_path: Path, spawn: Spawn) -> None:
    """The server dies within a request. What HEAD said before is there, and the rest comes after it."""
    env = engine_env() | {"STT_UPLOADS": str(tmp_path / "up"), "STT_JOB_WORKERS": "0"}
    server = spawn(env)
    port = server.url.rpartition(":")[2]
    data = HELLO * 40  # frames after a whole file are still a file
    async with httpx.AsyncClient(base_url=server.url, timeout=LIMIT) as client:
        url = await begin(client, len(data))
        assert (await append(client, url, 0, data[:100_000])).status_code == 204
        async with Wire.open(server.url) as wire:
            await wire.send(request(server.url, url, 100_000, len(data) - 100_000) + data[100_000:2_000_000])
            folder = tmp_path / "up" / "uploads"
            await eventually(lambda: len(list(folder.glob("*/*/p/*"))) >= 2)
            server.process.kill()
            await server.exited()
        server = spawn(env, "--port", port)
        at = await offset(client, url)
        assert 100_000 < at < len(data)
        assert (await append(client, url, at, data[at:])).status_code == 204
        await assert_arrived(client, url, data)
    server.assert_no_traceback()
