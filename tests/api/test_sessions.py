"""Sessions over HTTP, of a directory that is a dictionary: what is answered, in which form, and to whom."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backends.base import Word
from bridge.api import sessions
from bridge.api.door import Door
from bridge.errors import BridgeError
from bridge.protocols.events import Final
from bridge.protocols.native import MAX_SESSION_ID_CHARS
from bridge.security.auth import Gatekeeper
from bridge.security.entrance import Entrance
from bridge.security.tokens import TokenIssuer, TokenVerifier
from bridge.session.directory import SessionState, can_be_session
from tests.api.served import served
from tests.wire import LIMIT, Answer, get

SECRET = "s" * 32
STATE = SessionState(
    session_id="room-1",
    state="held",
    code=None,
    backend="whisper",
    language="en-US",
    protocol="native",
    created=1_795_000_000.25,
    ended=None,
    seq=7,
    received=12.34567,
    finalized=8.0,
    receivers=3,
    stored=True,
)
FINALS = [
    Final(2, "one two", 0.0, 1.0, (Word("one", 0.0, 0.5, 0.9), Word("two", 0.5, 1.0)), 0.8),
    Final(5, "three <b>", 2.0, 3.5),
]


class Directory:
    """Sessions in a dictionary; `away` is a log that cannot be reached."""

    def __init__(self) -> None:
        self.states = {"room-1": STATE, "other": dataclasses.replace(STATE, session_id="other")}
        self.asked: list[str] = []
        self.away = False

    def _ask(self, session_id: str) -> SessionState | None:
        self.asked.append(session_id)
        if self.away:
            raise BridgeError("log_unavailable")
        return self.states.get(session_id)

    async def describe(self, session_id: str) -> SessionState | None:
        return self._ask(session_id)

    async def finals(self, session_id: str) -> list[Final]:
        return FINALS if self._ask(session_id) else []

    async def delete(self, session_id: str) -> bool:
        known = self._ask(session_id) is not None
        self.states.pop(session_id, None)
        return known


@contextlib.asynccontextmanager
async def serving(directory: Directory, gatekeeper: Gatekeeper) -> AsyncIterator[str]:
    """The routes on a real server."""
    async with asyncio.timeout(LIMIT), served(sessions.router(directory, Door(Entrance(gatekeeper)))) as url:
        yield url


@pytest.fixture
def directory() -> Directory:
    return Directory()


@pytest.fixture
async def url(directory: Directory) -> AsyncIterator[str]:
    """A server without keys, at the directory's sessions."""
    async with serving(directory, Gatekeeper((), ["http://stt.example:8000"])) as address:
        yield f"{address}/v1/sessions"


@pytest.fixture
async def guarded(directory: Directory) -> AsyncIterator[str]:
    """The same with keys of every kind."""
    gatekeeper = Gatekeeper(
        ["all"],
        admin_keys=["king"],
        scoped_keys=["receive@room-*=reader", "send=sender", "admin=keeper", "admin@other=caretaker"],
        tokens=TokenVerifier.from_secret(SECRET),
    )
    async with serving(directory, gatekeeper) as address:
        yield f"{address}/v1/sessions"


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["error"]["code"]


# State


async def test_the_state_of_a_session(url: str) -> None:
    answer = await get(f"{url}/room-1")
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json == {
        "session_id": "room-1",
        "state": "held",
        "code": None,
        "backend": "whisper",
        "language": "en-US",
        "protocol": "native",
        "created": "2026-11-18T11:06:40.250Z",
        "ended": None,
        "seq": 7,
        "received": 12.346,
        "finalized": 8.0,
        "receivers": 3,
        "stored": True,
    }


async def test_a_session_that_has_ended(url: str, directory: Directory) -> None:
    directory.states["room-1"] = dataclasses.replace(STATE, state="ended", code="stopped", ended=STATE.created + 60)
    answer = (await get(f"{url}/room-1")).json
    assert (answer["state"], answer["code"], answer["ended"]) == ("ended", "stopped", "2026-11-18T11:07:40.250Z")


async def test_a_session_that_is_not_known(url: str, directory: Directory) -> None:
    for method, path in (("GET", ""), ("GET", "/transcript"), ("DELETE", "")):
        assert code(await get(f"{url}/nobody{path}", method=method)) == (404, "unknown_session")
    assert directory.asked == ["nobody"] * 3


async def test_what_cannot_be_a_name_is_asked_of_no_log(url: str, directory: Directory) -> None:
    for name in ("room-1%0A", "room-1%00", "%7D:x", "a%20b", "x" * 129, "%C3%A4", "%ff", "*"):
        for method, path in (("GET", ""), ("GET", "/transcript"), ("DELETE", "")):
            assert code(await get(f"{url}/{name}{path}", method=method)) == (404, "unknown_session")
    assert directory.asked == []


def test_names_are_those_of_the_protocol() -> None:
    assert can_be_session("x" * MAX_SESSION_ID_CHARS)
    assert not can_be_session("x" * (MAX_SESSION_ID_CHARS + 1))


async def test_a_log_that_is_away(url: str, directory: Directory) -> None:
    directory.away = True
    for method, path in (("GET", ""), ("GET", "/transcript"), ("DELETE", "")):
        assert code(await get(f"{url}/room-1{path}", method=method)) == (503, "log_unavailable")


# Transcript

TEXT = "one two\nthree <b>\n"
SRT = "1\n00:00:00,000 --> 00:00:01,000\none two\n\n2\n00:00:02,000 --> 00:00:03,500\nthree ‹b›\n"  # noqa: RUF001
VTT = "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\none two\n\n00:00:02.000 --> 00:00:03.500\nthree &lt;b&gt;\n"


def of(document: str) -> Any:
    """The transcript as text, or what is in the JSON."""
    return json.loads(document) if document.startswith("{") else document


JSON = {
    "text": "one two three <b>",
    "segments": [
        {
            "text": "one two",
            "start": 0.0,
            "end": 1.0,
            "confidence": 0.8,
            "words": [
                {"text": "one", "start": 0.0, "end": 0.5, "confidence": 0.9},
                {"text": "two", "start": 0.5, "end": 1.0},
            ],
        },
        {"text": "three <b>", "start": 2.0, "end": 3.5, "words": []},
    ],
}


@pytest.mark.parametrize(
    ("wanted", "kind", "document"),
    [
        ("json", "application/json", JSON),
        ("txt", "text/plain; charset=utf-8", TEXT),
        ("text", "text/plain; charset=utf-8", TEXT),
        ("srt", "application/x-subrip; charset=utf-8", SRT),
        ("vtt", "text/vtt; charset=utf-8", VTT),
    ],
)
async def test_each_format(url: str, wanted: str, kind: str, document: object) -> None:
    answer = await get(f"{url}/room-1/transcript?format={wanted}", {"Accept": "text/html"})
    assert (answer.status, answer.headers["content-type"]) == (200, kind)
    assert (answer.headers["cache-control"], answer.headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert of(answer.body.decode()) == document


ACCEPTED = [
    ("*/*", JSON),
    ("application/json", JSON),
    ("text/vtt", VTT),
    ("TEXT/VTT", VTT),
    ("application/x-subrip", SRT),
    ("text/srt", SRT),
    ("text/plain", TEXT),
    ("text/*", TEXT),
    ("text/plain;q=0.5, text/vtt", VTT),
    ("text/plain; q=0.5 , text/vtt;q=0.4", TEXT),
    ("text/vtt;q=0, text/plain;q=0.001", TEXT),
    ("text/vtt;q=0", JSON),
    ("text/html", JSON),
    ("", JSON),
    (",;,;q=,text/vtt;q=x", VTT),
    ("text/vtt;charset=utf-8", VTT),
]


async def test_the_header_decides_where_the_address_does_not(url: str) -> None:
    for accept, document in ACCEPTED:
        answer = await get(f"{url}/room-1/transcript", {"Accept": accept})
        assert answer.status == 200
        assert of(answer.body.decode()) == document, accept


async def test_a_format_that_there_is_not(url: str, directory: Directory) -> None:
    answer = await get(f"{url}/room-1/transcript?format=pdf")
    assert code(answer) == (400, "bad_message")
    assert "json, txt" in answer.json["error"]["message"]
    assert directory.asked == []


async def test_a_transcript_without_finals(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.api.test_sessions.FINALS", [])
    assert (await get(f"{url}/room-1/transcript")).json == {"text": "", "segments": []}
    assert (await get(f"{url}/room-1/transcript?format=txt")).body == b""


# Deletion


async def test_deletion(url: str) -> None:
    answer = await get(f"{url}/room-1", method="DELETE")
    assert (answer.status, answer.body) == (204, b"")
    assert code(await get(f"{url}/room-1")) == (404, "unknown_session")
    assert code(await get(f"{url}/room-1", method="DELETE")) == (404, "unknown_session")
    assert (await get(f"{url}/other")).status == 200


# Who may


@pytest.mark.parametrize(
    ("key", "session", "may"),
    [
        ("all", "room-1", "state transcript delete"),
        ("reader", "room-1", "state transcript"),
        ("reader", "other", ""),
        ("sender", "room-1", ""),
        ("keeper", "room-1", "state delete"),
        ("caretaker", "room-1", ""),
        ("caretaker", "other", "state delete"),
    ],
)
async def test_who_may_what(guarded: str, directory: Directory, key: str, session: str, may: str) -> None:
    headers = {"X-API-Key": key}
    answers = {
        "state": await get(f"{guarded}/{session}", headers),
        "transcript": await get(f"{guarded}/{session}/transcript?token=all", headers),  # a header wins
        "delete": await get(f"{guarded}/{session}", headers, method="DELETE"),
    }
    assert {name for name, answer in answers.items() if answer.status < 300} == set(may.split())
    refused = [answer for answer in answers.values() if answer.status >= 300]
    assert all(code(answer) == (403, "forbidden") for answer in refused)
    assert (session in directory.states) == ("delete" not in may)


async def test_a_token_in_place_of_a_key(guarded: str) -> None:
    issuer = TokenIssuer.from_secret(SECRET)
    token = issuer.issue(["receive"], ["room-1"], ttl_seconds=60)
    assert (await get(f"{guarded}/room-1/transcript?token={token}")).status == 200
    assert code(await get(f"{guarded}/other/transcript?token={token}")) == (403, "forbidden")
    assert code(await get(f"{guarded}/room-1?token={token}", method="DELETE")) == (403, "forbidden")
    old = issuer.issue(["receive"], ttl_seconds=60, now=0)
    assert code(await get(f"{guarded}/room-1", {"Authorization": f"Bearer {old}"})) == (401, "unauthorized")


async def test_the_right_is_asked_before_it_is_told_whether_there_is_one(guarded: str, directory: Directory) -> None:
    for path in ("nobody", "nobody/transcript", "other", "other/transcript", "other/transcript?format=pdf"):
        assert code(await get(f"{guarded}/{path}", {"X-API-Key": "reader"})) == (403, "forbidden")
    assert directory.asked == []


async def test_who_is_not_known(guarded: str, directory: Directory) -> None:
    for headers in ({}, {"X-API-Key": "wrong"}, {"X-API-Key": "king"}, {"X-API-Key": "a.b.c"}):
        for method, path in (("GET", ""), ("GET", "/transcript"), ("DELETE", "")):
            assert code(await get(f"{guarded}/room-1{path}", headers, method=method)) == (401, "unauthorized")
    assert directory.asked == []


PAGES: list[tuple[dict[str, str], int]] = [
    ({}, 200),
    ({"Host": "localhost:8000"}, 200),
    ({"Host": "[::1]:8000"}, 200),
    ({"Host": "STT.example:8000"}, 200),
    # A stranger's name that resolves to this machine; a browser names no origin where a page asks its own.
    ({"Host": "rebound.example:8000"}, 403),
    ({"Host": "stt.example:9000"}, 403),
    ({"Host": "[::1"}, 403),
    ({"Host": ""}, 403),
    ({"Origin": "https://elsewhere.example"}, 403),
    ({"Origin": "http://rebound.example:8000", "Host": "rebound.example:8000"}, 403),
    ({"Origin": "http://stt.example:8000", "Host": "stt.example:8000"}, 200),
]


async def test_without_keys_no_foreign_page_reads(url: str) -> None:
    for headers, status in PAGES:
        answer = await get(f"{url}/room-1/transcript", headers)
        assert answer.status == status, headers
        if status == 403:
            assert answer.json["error"]["code"] == "forbidden_origin"


async def test_with_a_key_any_name_will_do(guarded: str) -> None:
    answer = await get(f"{guarded}/room-1", {"Host": "stt.example", "X-API-Key": "all", "Origin": "https://a.example"})
    assert answer.status == 200


async def test_a_long_transcript_does_not_hold_up_the_loop(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others are served meanwhile."""
    loop_was_free = asyncio.Event()
    written = sessions._written

    def slow(*arguments: Any) -> str:
        asyncio.run_coroutine_threadsafe(asyncio.wait_for(loop_was_free.wait(), LIMIT), loop).result()
        return written(*arguments)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(sessions, "_written", slow)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(get(f"{url}/room-1/transcript"))
        assert (await get(f"{url}/room-1")).status == 200
        loop_was_free.set()
    assert waiting.result().json == JSON
