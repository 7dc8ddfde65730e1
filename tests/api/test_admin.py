"""Changing the model over HTTP: who may, and what is answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backends import registry
from backends.base import BackendError, Fault
from bridge.api import admin
from bridge.api.admin import PATH
from tests.session.test_models import Models
from tests.wire import Answer, Wire, get, serve

KEY = "queen"
ADMIN = {"Authorization": f"Bearer {KEY}"}
SERVING = {"model": "first", "state": "serving", "loading": None, "progress": None, "failure": None}

Server = tuple[str, Models]


class Loading(Models):
    """The newest one made, so that a test finds what the server made."""

    made: list[Loading]

    def __init__(self, options: Any = None) -> None:
        super().__init__()
        self.made.append(self)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    """A server with users' keys and one admin's, one web origin allowed."""
    Loading.made = []
    monkeypatch.setattr(registry, "load_class", lambda _: Loading)
    monkeypatch.setattr(registry, "names", lambda: ["models"])
    async with serve(
        {}, backend="models", api_keys=("sesame",), admin_keys=(KEY, "king"), allowed_origins=("https://app.example",)
    ) as url:
        yield url + PATH, Loading.made[0]


async def post(url: str, body: object, headers: dict[str, str] | None = None) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await get(url, ADMIN if headers is None else headers, method="POST", body=data)


# What is answered


async def test_a_model_that_is_loaded_in_time(server: Server) -> None:
    url, backend = server
    assert (await get(url, ADMIN)).json == SERVING
    backend.loads.set()
    answer = await post(url, {"model": "second"})
    assert (answer.status, answer.json) == (200, SERVING | {"model": "second"})
    assert (await get(url, {"X-API-Key": "king"})).json["model"] == "second"


async def test_a_model_that_takes_longer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url, backend = server
    monkeypatch.setattr(admin, "WAIT_SECONDS", 0.05)
    backend.news = "downloading second: 43 %"
    expected = SERVING | {"state": "loading", "loading": "second", "progress": "downloading second: 43 %"}
    answer = await post(url, {"model": "second"})
    assert (answer.status, answer.json) == (202, expected)
    assert (await get(url, ADMIN)).json == expected
    ready = await get(url.replace(PATH, "/readyz"))
    assert (ready.status, ready.json["progress"]) == (200, "downloading second: 43 %")  # the first serves on
    other = await post(url, {"model": "third"})
    assert (other.status, other.json["error"]["code"]) == (409, "model_loading")
    backend.loads.set()
    backend.news = None
    assert (await post(url, {"model": "second"})).json == SERVING | {"model": "second"}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BackendError("none is called so", code="unknown_model", fault=Fault.CLIENT), 422, "unknown_model"),
        (BackendError("it does not fit"), 502, "model_failed"),
        (BackendError("one only", code="not_supported"), 422, "not_supported"),
        (ValueError("x"), 502, "model_failed"),
    ],
)
async def test_a_model_that_fails(server: Server, error: Exception, status: int, code: str) -> None:
    url, backend = server
    backend.error = error
    backend.loads.set()
    answer = await post(url, {"model": "second"})
    assert (answer.status, answer.json["error"]["code"]) == (status, code)
    failure = {"model": "second", "code": code, "message": answer.json["error"]["message"]}
    assert (await get(url, ADMIN)).json == SERVING | {"failure": failure}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        {},
        {"model": ""},
        {"model": " "},
        {"model": "a\nb"},
        {"model": "\u202e"},
        {"model": 5},
        {"model": None},
        {"model": "x" * 301},
        {"model": "second", "force": True},
    ],
)
async def test_a_request_that_is_none(server: Server, body: object) -> None:
    url, backend = server
    answer = await post(url, body)
    assert answer.status == 400
    assert answer.json["error"]["code"] == "bad_message"
    assert backend.asked == []


async def test_a_body_that_is_too_large(server: Server) -> None:
    url, _ = server
    answer = await post(url, b" " * (admin.BODY_BYTES + 1))
    assert (answer.status, answer.json["error"]["code"]) == (413, "message_too_large")


async def test_a_body_that_does_not_come(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = server
    monkeypatch.setattr(admin, "BODY_SECONDS", 0.05)
    async with Wire.open(url) as wire:
        await wire.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 9\r\n\r\n{{".encode())
        outcome = await wire.response()
    assert (outcome.status, outcome.error["code"]) == (408, "start_timeout")


async def test_a_client_that_goes_away_costs_nothing(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    url, backend = server
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 19\r\n\r\n"
    async with Wire.open(url) as wire:
        await wire.send((head + '{"mod').encode())
        wire.reset()
    async with Wire.open(url) as wire:
        await wire.send((head + '{"model": "second"}').encode())
        while not backend.asked:
            await asyncio.sleep(0.01)
        wire.reset()
    backend.loads.set()
    assert (await post(url, {"model": "second"})).status == 200
    assert backend.asked[0] == "second"
    assert not [r for r in caplog.records if r.exc_info]


# Who may


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("headers", "query", "status", "code"),
    [
        ({}, "", 401, "unauthorized"),
        ({"Authorization": "Bearer wrong"}, "", 401, "unauthorized"),
        ({"Authorization": "Bearer sesame"}, "", 403, "forbidden"),
        ({"X-API-Key": "sesame"}, "", 403, "forbidden"),
        ({}, f"?api_key={KEY}", 401, "unauthorized"),
        ({}, f"?token={KEY}", 401, "unauthorized"),
        ({"Sec-WebSocket-Protocol": f"bearer, {KEY}"}, "", 401, "unauthorized"),
        ({"Cookie": f"token={KEY}"}, "", 401, "unauthorized"),
        (ADMIN | {"Origin": "https://elsewhere.example"}, "", 403, "forbidden_origin"),
        (ADMIN | {"Origin": "null"}, "", 403, "forbidden_origin"),
        ({"Origin": "https://elsewhere.example"}, "", 403, "forbidden_origin"),
    ],
)
async def test_who_may_not(
    server: Server, method: str, headers: dict[str, str], query: str, status: int, code: str
) -> None:
    url, backend = server
    backend.loads.set()
    answer = await get(url + query, headers, method=method, body=b'{"model": "second"}' if method == "POST" else None)
    assert (answer.status, answer.json["error"]["code"]) == (status, code)
    assert KEY not in answer.body.decode()
    assert backend.asked == []


async def test_pages_that_may(server: Server) -> None:
    url, _ = server
    for origin in ("https://app.example", url.removesuffix(PATH)):
        assert (await get(url, ADMIN | {"Origin": origin})).status == 200


async def test_a_stranger_s_body_is_not_read(server: Server) -> None:
    """The refusal comes at once, however much was announced."""
    url, _ = server
    async with Wire.open(url) as wire:
        await wire.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n{{".encode())
        outcome = await wire.response()
        assert (outcome.status, outcome.error["code"]) == (401, "unauthorized")


async def test_an_admin_s_key_opens_nothing_else(server: Server) -> None:
    url, _ = server
    assert (await get(url.replace(PATH, "/metrics"), ADMIN)).status == 401
    assert (await get(url.replace(PATH, "/metrics"), {"X-API-Key": "sesame"})).status == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_without_keys_for_it_nobody_may(plain: str, keyed: str, method: str) -> None:
    """Not on loopback either: whoever is on this machine, or behind its proxy, is no operator for that."""
    for server, headers in ((plain, {}), (plain, ADMIN), (keyed, {"X-API-Key": "sesame"}), (keyed, {})):
        answer = await get(server + PATH, headers, method=method)
        assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")
        assert "STT_ADMIN_KEYS" in answer.json["error"]["message"]


async def test_an_engine_without_models() -> None:
    async with serve({}, backend="scripted", admin_keys=(KEY,)) as url:
        answer = await post(url + PATH, {"model": "second"})
        assert (answer.status, answer.json["error"]["code"]) == (422, "not_supported")
        assert (await get(url + PATH, ADMIN)).json["model"] is None
