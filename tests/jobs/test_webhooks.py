"""Webhooks, at a receiver of the test's own: signed, tried again, and never to where they may not go."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from bridge.errors import BridgeError
from bridge.jobs import webhooks as webhooks_module
from bridge.jobs.addresses import ForbiddenHostError, WebhookHosts
from bridge.jobs.models import Job, JobOptions, Notice, Progress
from bridge.jobs.sqlite_store import SqliteJobStore
from bridge.jobs.store import Rules
from bridge.jobs.webhooks import Webhooks, WebhookSecret
from bridge.observe.metrics import Metrics
from bridge.observe.trace import Tracing
from tests.jobs.samples import BACKEND, name, spoken, terms

SECRET: Final = "a secret of this test's own"
HERE: Final = WebhookHosts(loopback=True)
LIMIT: Final = 5.0


@dataclass
class Receiver:
    """Answers with these statuses in turn, then with 204."""

    statuses: list[str] = field(default_factory=list)
    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""
    silent: bool = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:])} | {"": head[0]}
            self.heard.append((headers, await reader.readexactly(int(headers["content-length"]))))
            if self.silent:
                await reader.read()
                return
            status = self.statuses.pop(0) if self.statuses else "204 Fine"
            more = f"location: {self.url}/elsewhere\r\n" if status.startswith("3") else ""
            writer.write(f"HTTP/1.1 {status}\r\n{more}content-length: 0\r\nconnection: close\r\n\r\n".encode())
            await writer.drain()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    async with server:
        receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield receiver


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SqliteJobStore]:
    monkeypatch.setattr(webhooks_module, "RETRY_SECONDS", (0.02, 0.02, 0.02))
    store = SqliteJobStore(None, Rules())
    await store.open()
    yield store
    await store.close()


@contextlib.asynccontextmanager
async def telling(
    store: SqliteJobStore, hosts: WebhookHosts = HERE, metrics: Metrics | None = None
) -> AsyncIterator[Webhooks]:
    webhooks = Webhooks(store, WebhookSecret(SECRET), hosts, (metrics or Metrics()).jobs, Tracing())
    webhooks.start()
    try:
        yield webhooks
    finally:
        await webhooks.stop()


async def done(store: SqliteJobStore, url: str, *, result: bool = False) -> Job:
    """A job that has succeeded."""
    asked = terms(webhook=url)
    if result:
        asked = type(asked)(
            order=type(asked.order)(
                owner="me",
                blob="files/x",
                size=1,
                sha256="",
                name="a",
                webhook=url,
                options=JobOptions(webhook_result=True),
            ),
            backend=BACKEND,
            created=asked.created,
        )
    await store.submit(name(), asked)
    job = await store.claim(BACKEND)
    assert job is not None
    await store.finish(job, spoken("the words"), Progress(seconds=1.5))
    return job


async def settled(store: SqliteJobStore, job: Job) -> Job:
    with store.changes.watch(job.id) as bell:
        async with asyncio.timeout(LIMIT):
            while True:
                now = await store.get(job.id)
                assert now is not None
                if now.notice is not Notice.PENDING:
                    return now
                await bell.changed(0.1)


async def test_it_is_signed_and_says_how_the_job_ended(store: SqliteJobStore, receiver: Receiver) -> None:
    async with telling(store):
        job = await done(store, f"{receiver.url}/hook?key=1")
        told = await settled(store, job)
    assert (told.notice, told.notices) == (Notice.DELIVERED, 1)
    ((headers, body),) = receiver.heard
    assert headers[""] == "POST /hook?key=1 HTTP/1.1"
    assert headers["content-type"] == "application/json"
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert headers["webhook-id"] == f"msg_{job.id}"
    event = json.loads(body)
    assert event["type"] == "job.succeeded"
    assert (event["data"]["id"], event["data"]["state"], event["data"]["result"]) == (job.id, "succeeded", None)
    assert b"the words" not in body


async def test_with_the_transcript_where_that_was_asked_for(store: SqliteJobStore, receiver: Receiver) -> None:
    async with telling(store):
        await settled(store, await done(store, receiver.url, result=True))
    assert json.loads(receiver.heard[0][1])["data"]["result"]["text"] == "the words"


def test_a_secret_as_standard_webhooks_writes_it() -> None:
    key = b"\x00\x01 some bytes \xff"
    secret = WebhookSecret("whsec_" + base64.b64encode(key).decode())
    expected = base64.b64encode(hmac.new(key, b"msg_1.5.{}", hashlib.sha256).digest()).decode()
    assert secret.sign("msg_1", 5, b"{}") == f"v1,{expected}"


@pytest.mark.parametrize("statuses", [["500 No", "503 No"], ["302 There", "404 No"]])
async def test_it_is_tried_again_under_the_same_name(
    statuses: list[str], store: SqliteJobStore, receiver: Receiver
) -> None:
    receiver.statuses = statuses
    metrics = Metrics()
    async with telling(store, metrics=metrics):
        told = await settled(store, await done(store, receiver.url))
    assert (told.notice, told.notices) == (Notice.DELIVERED, 3)
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == 1
    assert [headers[""].split()[1] for headers, _ in receiver.heard] == ["/"] * 3, "no redirect is followed"


@pytest.mark.parametrize(("statuses", "tries"), [(["500 No"] * 9, 4), (["410 Gone"], 1)])
async def test_it_is_given_up(statuses: list[str], tries: int, store: SqliteJobStore, receiver: Receiver) -> None:
    receiver.statuses = statuses
    async with telling(store):
        told = await settled(store, await done(store, receiver.url))
    assert (told.notice, told.notices, len(receiver.heard)) == (Notice.GIVEN_UP, tries, tries)


async def test_what_was_cut_off_is_told_by_the_next_life(
    store: SqliteJobStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks_module, "CLAIM_SECONDS", 0.2)
    receiver.silent = True
    async with telling(store):
        job = await done(store, receiver.url)
        async with asyncio.timeout(LIMIT):
            while not receiver.heard:
                await asyncio.sleep(0.01)
    receiver.silent = False
    async with telling(store):
        told = await settled(store, job)
    assert (told.notice, told.notices) == (Notice.DELIVERED, 2)


async def test_a_receiver_that_says_nothing(
    store: SqliteJobStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhooks_module, "TRY_SECONDS", 0.1)
    receiver.silent = True
    with caplog.at_level(logging.DEBUG, "bridge.jobs"):
        async with telling(store):
            told = await settled(store, await done(store, f"{receiver.url}/hook?key=hidden"))
    assert told.notice is Notice.GIVEN_UP
    assert "webhook given up" in caplog.text
    assert "hidden" not in caplog.text


async def test_a_name_that_is_none_is_given_up(store: SqliteJobStore) -> None:
    """What was taken before such names were refused is not tried for ever."""
    async with telling(store):
        told = await settled(store, await done(store, "https://a..example/"))
    assert (told.notice, told.notices) == (Notice.GIVEN_UP, 1)


# Where it may go


async def test_to_this_machine_if_the_server_that_took_the_job_said_so(
    store: SqliteJobStore, receiver: Receiver
) -> None:
    """A worker has no keys, which says nothing of the server."""
    for allowed, notice in ((False, Notice.GIVEN_UP), (True, Notice.DELIVERED)):
        order = terms(webhook=receiver.url)
        await store.submit(name(), dataclasses.replace(order, loopback=allowed))
        job = await store.claim(BACKEND)
        assert job is not None
        await store.finish(job, spoken(), Progress())
        async with telling(store, WebhookHosts()):
            assert (await settled(store, job)).notice is notice
    assert len(receiver.heard) == 1


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"])
async def test_not_to_this_machine(host: str, store: SqliteJobStore, receiver: Receiver) -> None:
    port = receiver.url.rpartition(":")[2]
    async with telling(store, WebhookHosts()):
        told = await settled(store, await done(store, f"http://{host}:{port}/"))
    assert told.notice is Notice.GIVEN_UP
    assert receiver.heard == []


async def test_to_a_host_that_the_operator_names(store: SqliteJobStore, receiver: Receiver) -> None:
    port = receiver.url.rpartition(":")[2]
    async with telling(store, WebhookHosts(named=("LOCALHOST",))):
        told = await settled(store, await done(store, f"http://localhost:{port}/"))
    assert told.notice is Notice.DELIVERED
    assert receiver.heard[0][0]["host"] == f"localhost:{port}"


@pytest.mark.parametrize(
    ("addresses", "allowed"),
    [
        (["93.184.216.34"], True),
        (["2606:2800:220:1:248:1893:25c8:1946"], True),
        (["10.1.2.3"], False),
        (["192.168.0.1"], False),
        (["169.254.169.254"], False),
        (["100.64.0.1"], False),
        (["224.0.0.1"], False),
        (["fd00::1"], False),
        (["fe80::1%eth0"], False),
        (["::ffff:10.0.0.1"], False),
        (["64:ff9b::a00:1"], False),
        (["2002:a00:1::"], False),
        (["fec0::1"], False),
        (["192.0.0.192"], False),
        (["93.184.216.34", "10.0.0.1"], False),
        ([], False),
    ],
)
async def test_only_to_addresses_of_the_public_network(
    addresses: Sequence[str], allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the name resolves to when it is used counts, every address of it."""

    async def resolved(*_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", (address, 443)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved)
    for hosts in (WebhookHosts(), HERE):
        if allowed:
            assert await hosts.resolve("https://hook.example/") == addresses[0]
        else:
            with pytest.raises(ForbiddenHostError):
                await hosts.resolve("https://hook.example/")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/",
        "//a.example/",
        "a.example",
        "https://",
        "https://user:pass@a.example/",
        "https://a.example:port/",
        "https://a.example/ b",
        "https://a.example/é",
        "https://a.example/" + "x" * 2_000,
        "https://a..example/",
        f"https://{'a' * 64}.example/",
        "http://10.0.0.1/",
        "http://127.0.0.1/",
        "http://[::1]/",
        "file:///etc/passwd",
    ],
)
def test_urls_that_no_job_may_have(url: str) -> None:
    with pytest.raises(BridgeError) as caught:
        WebhookHosts().check(url)
    assert caught.value.code == "bad_request"
    assert "pass" not in str(caught.value)


def test_urls_that_a_job_may_have() -> None:
    for url in ("https://a.example/hook?key=1", "http://93.184.216.34:8080/"):
        assert WebhookHosts().check(url) == url
    assert HERE.check("http://127.0.0.1:9/") == "http://127.0.0.1:9/"


async def test_without_a_secret_there_are_none(store: SqliteJobStore) -> None:
    with pytest.raises(BridgeError, match="STT_WEBHOOK_SECRET"):
        Webhooks(store, None, HERE, Metrics().jobs, Tracing()).check("https://a.example/")
