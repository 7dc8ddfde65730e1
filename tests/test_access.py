"""Scopes on a real server: what each key and token may do over the native protocol, in rooms and over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from backends.scripted import marker_audio
from bridge.app import check_exposure, make_bridge
from bridge.guarding import make_gatekeeper
from bridge.security.tokens import TokenIssuer
from bridge.settings import Settings, SettingsError
from tests.wire import LIMIT, engine_env, get, markers, metric, serve

SECRET = "0123456789abcdef0123456789abcdef"
ROOM = "room-0123456789abcdef"
OTHER = "hall-0123456789abcdef"
KEYS = ("send@room-*=sender", "receive@room-*=reader", "admin@room-*=keeper", "send=anywhere")


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with serve(
        event_log="sqlite::memory:", api_keys=("all",), admin_keys=("king",), scoped_keys=KEYS, jwt_secret=SECRET
    ) as address:
        yield address


def token(*scopes: str, session: str | None = None, ttl_seconds: int = 3_600, now: float | None = None) -> str:
    sessions = None if session is None else [session]
    return TokenIssuer.from_secret(SECRET).issue(scopes, sessions, ttl_seconds=ttl_seconds, now=now)


@contextlib.asynccontextmanager
async def native(url: str, key: str, **start: Any) -> AsyncIterator[ClientConnection]:
    address = url.replace("http", "ws", 1) + "/v1/stream"
    headers = {"Authorization": f"Bearer {key}"}
    # No limit to what waits here: a client that does not read its queue does not read the end either.
    open_ = connect(address, additional_headers=headers, proxy=None, max_queue=None)
    async with asyncio.timeout(LIMIT), open_ as socket:
        await socket.send(json.dumps({"type": "start", "encoding": "pcm_s16le"} | start))
        yield socket


async def first(url: str, key: str, **start: Any) -> str:
    """What comes first: `ready`, `joined`, or the code of an error."""
    async with native(url, key, **start) as socket:
        message = json.loads(await socket.recv())
        return str(message.get("code", message["type"]))


async def rest(socket: ClientConnection) -> list[dict[str, Any]]:
    messages = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            messages.append(json.loads(await socket.recv()))
    return messages


async def spoken(url: str, name: str = ROOM, **start: Any) -> None:
    """A session that has ended well."""
    async with native(url, "all", session_id=name, **start) as socket:
        await socket.send(marker_audio(6))
        await socket.send('{"type":"stop"}')
        assert (await rest(socket))[-1]["code"] == "stopped"


@pytest.mark.parametrize(
    ("key", "start", "outcome"),
    [
        ("all", {}, "ready"),
        ("all", {"session_id": OTHER}, "ready"),
        ("anywhere", {}, "ready"),
        ("anywhere", {"session_id": OTHER}, "ready"),
        ("anywhere", {"role": "receiver", "session_id": OTHER}, "forbidden"),
        ("sender", {"session_id": ROOM}, "ready"),
        ("sender", {"session_id": OTHER}, "forbidden"),
        ("sender", {}, "forbidden"),
        ("sender", {"role": "receiver", "session_id": ROOM}, "forbidden"),
        ("sender", {"session_id": OTHER, "resume_token": "x"}, "forbidden"),
        ("sender", {"session_id": ROOM, "resume_token": "x"}, "unknown_session"),
        ("reader", {"role": "receiver", "session_id": ROOM}, "joined"),
        ("reader", {"role": "receiver", "session_id": OTHER}, "forbidden"),
        ("reader", {"session_id": ROOM}, "forbidden"),
        ("reader", {"session_id": ROOM, "resume_token": "x"}, "forbidden"),
        ("keeper", {"session_id": ROOM}, "forbidden"),
        ("keeper", {"role": "receiver", "session_id": ROOM}, "forbidden"),
        (token("send", session=ROOM), {"session_id": ROOM}, "ready"),
        (token("send", session=ROOM), {"session_id": ROOM + "x"}, "forbidden"),
        (token("receive"), {"role": "receiver", "session_id": OTHER}, "joined"),
        (token("receive"), {"session_id": OTHER}, "forbidden"),
    ],
)
async def test_the_native_protocol(url: str, key: str, start: dict[str, Any], outcome: str) -> None:
    assert await first(url, key, **start) == outcome


@pytest.mark.parametrize("key", ["", "nonsense", "king", "a.b.c", token("send")[:-3], token("send", now=0)])
async def test_who_is_not_known_is_refused_before_the_upgrade(url: str, key: str) -> None:
    for path in ("/v1/stream", f"/ws/asr/{ROOM}?mode=sender"):
        with pytest.raises(InvalidStatus) as caught:
            async with connect(url.replace("http", "ws", 1) + path, additional_headers={"X-API-Key": key}, proxy=None):
                pass
        assert caught.value.response.status_code == 401
        body = caught.value.response.body.decode()
        assert json.loads(body)["error"]["code"] == "unauthorized"
        assert key == "" or key not in body


async def test_rooms(url: str) -> None:
    for key, name, mode, code in (
        ("sender", ROOM, "receiver", "forbidden"),
        ("sender", OTHER, "sender", "forbidden"),
        ("reader", ROOM, "sender", "forbidden"),
        ("keeper", ROOM, "receiver", "forbidden"),
        (token("receive", session=OTHER), ROOM, "receiver", "forbidden"),
    ):
        address = f"{url.replace('http', 'ws', 1)}/ws/asr/{name}?mode={mode}&token={key}"
        async with asyncio.timeout(LIMIT), connect(address, proxy=None) as socket:
            assert [message["error"]["code"] for message in await rest(socket)] == [code]
            assert socket.close_code == 4403
    address = f"{url.replace('http', 'ws', 1)}/ws/asr/{ROOM}?encoding=pcm_s16le&mode="
    async with (
        asyncio.timeout(LIMIT),
        connect(address + "sender&token=sender", proxy=None) as sender,
        connect(address + "receiver&token=reader", proxy=None) as reader,
    ):
        await sender.send(marker_audio(6))
        await sender.send("close")
        assert [word for message in await rest(reader) for word in message["asr"].split()] == markers(6)


async def test_http(url: str) -> None:
    await spoken(url)
    session = f"{url}/v1/sessions/{ROOM}"
    for key, state, transcript in (
        ("all", 200, 200),
        ("reader", 200, 200),
        ("keeper", 200, 403),
        ("sender", 403, 403),
        (token("receive", session=ROOM), 200, 200),
        (token("receive", session=OTHER), 403, 403),
        (token("admin"), 200, 403),
    ):
        headers = {"Authorization": f"Bearer {key}"}
        assert (await get(session, headers)).status == state, key
        assert (await get(f"{session}/transcript", headers)).status == transcript, key
    for key in ("reader", "sender", token("send", "receive"), token("admin", session=OTHER)):
        assert (await get(session, {"X-API-Key": key}, method="DELETE")).status == 403
    assert (await get(session, {"X-API-Key": "keeper"}, method="DELETE")).status == 204
    assert (await get(session, {"X-API-Key": "all"})).status == 404


async def test_metrics_are_for_who_administers_all(url: str) -> None:
    assert await first(url, "reader", session_id=ROOM) == "forbidden"
    for key, status in (("all", 200), (token("admin"), 200), ("keeper", 403), ("anywhere", 403), ("king", 401)):
        answer = await get(f"{url}/metrics", {"X-API-Key": key})
        assert answer.status == status, key
    body = (await get(f"{url}/metrics", {"X-API-Key": "all"})).body
    assert metric(body, "stt_refused_total", code="forbidden") == 1


async def test_a_live_session_that_is_deleted_ends_for_everybody(url: str) -> None:
    async with (
        native(url, "sender", session_id=ROOM) as sender,
        native(url, "reader", role="receiver", session_id=ROOM) as reader,
    ):
        await sender.send(marker_audio(6))
        while json.loads(await reader.recv())["type"] != "final":
            pass
        deleted = await get(f"{url}/v1/sessions/{ROOM}", {"X-API-Key": "keeper"}, method="DELETE")
        assert deleted.status == 204
        for socket in (sender, reader):
            assert (await rest(socket))[-1]["code"] == "deleted"
            assert socket.close_code == 4410
    assert (await get(f"{url}/v1/sessions/{ROOM}", {"X-API-Key": "all"})).status == 404
    assert (await get(f"{url}/v1/sessions/{ROOM}/transcript", {"X-API-Key": "all"})).status == 404


async def test_a_session_that_leaves_no_trace(url: str) -> None:
    await spoken(url, OTHER, store=False)
    assert (await get(f"{url}/v1/sessions/{OTHER}", {"X-API-Key": "all"})).status == 404


async def test_the_state_while_it_goes_on(url: str) -> None:
    async with (
        native(url, "sender", session_id=ROOM) as sender,
        native(url, "reader", role="receiver", session_id=ROOM),
    ):
        await sender.send(marker_audio(6))
        while json.loads(await sender.recv())["type"] != "final":
            pass
        state = (await get(f"{url}/v1/sessions/{ROOM}", {"X-API-Key": "keeper"})).json
        assert (state["state"], state["receivers"], state["ended"], state["code"]) == ("live", 1, None, None)
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", state["created"])
        assert state["received"] == pytest.approx(3.6)
        assert state["seq"] >= 1
        transcript = await get(f"{url}/v1/sessions/{ROOM}/transcript?format=txt", {"X-API-Key": "reader"})
        assert transcript.body.decode().split() == markers(len(transcript.body.decode().split()))
        assert transcript.body


async def test_no_key_and_no_token_in_the_log(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    made = token("send", session=ROOM)
    for key in ("wrong-key", "sender", made):
        for path in (f"/v1/sessions/{ROOM}?token={key}", f"/v1/sessions/{ROOM}/transcript?api_key={key}"):
            await get(url + path)
    assert await first(url, made, session_id=ROOM) == "ready"
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("bridge"))
    assert made not in ours
    assert "wrong-key" not in ours


# Settings


def settings(**fields: Any) -> Settings:
    return Settings.load({}, None, **{"backend": "scripted", "event_log": "off"} | fields)


@pytest.mark.parametrize(
    "fields", [{"scoped_keys": ("send=k",)}, {"jwt_secret": SECRET}, {"api_keys": ("k",)}, {"insecure": True}]
)
def test_each_kind_of_key_lets_strangers_come(fields: dict[str, Any]) -> None:
    check_exposure(settings(host="0.0.0.0", **fields))
    assert make_gatekeeper(settings(**fields)).guarded is ("insecure" not in fields)
    assert settings(**fields).guarded is ("insecure" not in fields)


def test_an_admin_s_key_guards_no_session() -> None:
    with pytest.raises(SettingsError, match="STT_HOST"):
        check_exposure(settings(host="0.0.0.0", admin_keys=("k",)))


def test_a_key_file(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file = tmp_path / "public.pem"
    file.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    gatekeeper = make_gatekeeper(settings(jwt_key_file=file, jwt_audience="me"))
    made = TokenIssuer.from_pem(private).issue(["send"], ttl_seconds=60, audience="me")
    assert gatekeeper.admit({"x-api-key": made}, {}).rights.allows("send", "x")
    for wrong, sentence in ((private, "should be a public key"), (b"x", "should hold a public key")):
        file.write_bytes(wrong)
        with pytest.raises(SettingsError, match=rf"STT_JWT_KEY_FILE: '.*public.pem' {sentence}"):
            make_bridge(settings(jwt_key_file=file), engine_env())
