"""What browsers are told: on every answer, and to pages of allowed origins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from bridge.security.entrance import HEADERS
from bridge.security.headers import ALWAYS, METHODS, POLICIES, REQUEST_HEADERS, RESPONSE_HEADERS, Message, WebHeaders
from tests.wire import Wire, get, serve

PAGE = "https://app.example"


async def ask(
    app: WebHeaders, method: str = "GET", path: str = "/x", headers: Mapping[str, str] | None = None
) -> tuple[int, list[tuple[str, str]]]:
    """The head of the answer."""
    heads: list[Message] = []

    async def send(message: Message) -> None:
        heads.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await app({"type": "http", "method": method, "path": path, "headers": raw}, receive, send)
    assert [message["type"] for message in heads] == ["http.response.start", "http.response.body"]
    return heads[0]["status"], [(name.decode(), value.decode()) for name, value in heads[0]["headers"]]


def answering(*headers: tuple[bytes, bytes], told: tuple[tuple[bytes, bytes], ...] = ()) -> Any:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        scope[HEADERS] += told
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x"})

    return app


async def test_what_a_route_says_itself_stays() -> None:
    app = WebHeaders(answering((b"Cache-Control", b"max-age=60"), (b"content-security-policy", b"default-src 'self'")))
    _, headers = await ask(app)
    assert [value for name, value in headers if name.lower() == "cache-control"] == ["max-age=60"]
    assert [value for name, value in headers if name == "content-security-policy"] == ["default-src 'self'"]
    assert dict(headers)["x-content-type-options"] == "nosniff"


async def test_headers_that_others_ask_for_are_added() -> None:
    _, headers = await ask(WebHeaders(answering(told=((b"ratelimit-limit", b"5"),))))
    assert ("ratelimit-limit", "5") in headers


async def test_without_origins_no_page_may_read_anything() -> None:
    _, headers = await ask(WebHeaders(answering()), headers={"origin": PAGE})
    assert not [name for name, _ in headers if name.startswith("access-control") or name == "vary"]


@pytest.mark.parametrize("origin", [PAGE, "HTTPS://APP.EXAMPLE"])
async def test_a_page_of_an_allowed_origin_may_read_the_answer(origin: str) -> None:
    _, headers = await ask(WebHeaders(answering(), [PAGE + "/"]), headers={"origin": origin})
    told = dict(headers)
    assert told["access-control-allow-origin"] == origin
    assert told["access-control-expose-headers"].split(", ") == list(RESPONSE_HEADERS)
    assert "access-control-allow-credentials" not in told
    assert ("vary", "Origin") in headers


@pytest.mark.parametrize(
    "origin", ["https://elsewhere.example", "https://app.example.evil", "http://app.example", "null"]
)
async def test_others_may_not_and_caches_are_told(origin: str) -> None:
    app = WebHeaders(answering(), [PAGE])
    for method in ("GET", "OPTIONS"):
        asked = {"origin": origin, "access-control-request-method": "GET"}
        status, headers = await ask(app, method, headers=asked)
        assert status == 200  # the application's own
        assert not [name for name, _ in headers if name.startswith("access-control")]
        assert ("vary", "Origin") in headers


async def test_a_preflight_is_answered_here() -> None:
    wanted = "authorization, Tus-Resumable,x-stainless-os, x-evil, cookie"
    asked = {"origin": PAGE, "access-control-request-method": "PATCH", "access-control-request-headers": wanted}
    status, headers = await ask(WebHeaders(answering(), [PAGE]), "OPTIONS", headers=asked)
    told = dict(headers)
    assert status == 204
    assert told["access-control-allow-methods"] == METHODS
    assert told["access-control-allow-headers"] == "authorization, tus-resumable, x-stainless-os"
    assert told["access-control-allow-origin"] == PAGE


async def test_options_that_is_no_preflight_reaches_the_route() -> None:
    status, headers = await ask(WebHeaders(answering(), [PAGE]), "OPTIONS", headers={"origin": PAGE})
    assert status == 200
    assert dict(headers)["access-control-allow-origin"] == PAGE


async def test_websockets_are_left_alone() -> None:
    seen: list[Message] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        seen.append(scope)
        assert (receive, send) == (None, None)

    scope = {"type": "websocket"}
    await WebHeaders(app)(scope, None, None)  # type: ignore[arg-type]
    assert seen == [scope]
    assert HEADERS not in scope


def test_lists_are_in_order_and_name_nothing_twice() -> None:
    for names in (REQUEST_HEADERS, RESPONSE_HEADERS):
        lowered = [name.lower() for name in names]
        assert lowered == sorted(set(lowered))
        assert all(re.fullmatch(r"[A-Za-z-]+", name) for name in names)
    assert "authorization" in {name.lower() for name in REQUEST_HEADERS}


# On a real server


async def test_every_answer_has_them(plain: str) -> None:
    for path, method in (
        ("/healthz", "GET"),
        ("/docs", "GET"),
        ("/openapi.json", "GET"),
        ("/metrics", "GET"),
        ("/v1/sessions/unknown", "GET"),
        ("/v1/stream", "GET"),  # no upgrade
        ("/nowhere", "POST"),
        ("/healthz", "DELETE"),
    ):
        answer = await get(plain + path, method=method)
        for name, value in ALWAYS:
            assert answer.headers[name.decode()] == value.decode(), (path, method)
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


async def test_what_cannot_be_read_is_answered_with_them(plain: str) -> None:
    async with Wire.open(plain) as wire:
        await wire.send(b"rubbish\r\n\r\n")
        outcome = await wire.response()
    assert outcome.status == 400
    for name, value in ALWAYS:
        assert outcome.headers[name.decode()] == value.decode()


async def test_the_page_of_the_api_may_load_what_it_is_made_of(plain: str) -> None:
    answer = await get(plain + "/docs")
    policy = answer.headers["content-security-policy"]
    assert policy.encode() == POLICIES["/docs"]
    page = answer.body.decode()
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    for directive, pattern in (
        ("script-src", r'<script src="(https://[^/"]+)'),
        ("style-src", r'rel="stylesheet" href="(https://[^/"]+)'),
        ("img-src", r'icon" href="(https://[^/"]+)'),
    ):
        found = re.findall(pattern, page)
        assert found, directive
        for host in found:
            assert host in directives[directive].split(), (directive, host)
    assert "<script>" in page
    assert "'unsafe-inline'" in directives["script-src"]


async def test_a_page_s_request_with_a_key(plain: str) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    preflight = await get(plain + "/v1/sessions/x", asked, method="OPTIONS")
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-headers"] == "authorization"
    assert "traceparent" in preflight.headers  # what is outermost sees it, too
    answer = await get(plain + "/v1/sessions/unknown", {"Origin": PAGE, "Authorization": "Bearer whatever"})
    assert answer.status == 404
    assert answer.headers["access-control-allow-origin"] == PAGE


async def test_a_refused_upgrade_has_them_too() -> None:
    async with serve(api_keys=("sesame",)) as url:
        async with Wire.stream(url) as wire:
            assert wire.outcome.status == 401
            assert wire.outcome.headers["x-content-type-options"] == "nosniff"
            assert wire.outcome.headers["www-authenticate"] == "Bearer"
        answer = await get(url + "/v1/sessions/x")
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
