"""docs/access.md and docs/rooms.md against the code: tables that are complete, examples that run."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import connect

from backends.scripted import marker_audio
from bridge.api.formats import NAMES, TYPES
from bridge.api.sessions import SessionDescription
from bridge.errors import ERRORS
from bridge.guarding import make_gatekeeper
from bridge.protocols.asr_room import FailureMessage, Query, ResultMessage
from bridge.security import jwks
from bridge.security.rights import SCOPES, Grant, Rights
from bridge.security.tokens import TokenVerifier
from bridge.settings import Settings
from tests.docs import ROOT, blocks, code, page, section, tables
from tests.wire import LIMIT, markers, serve

ACCESS = page("access.md")
ROOMS = page("rooms.md")
COMMANDS = blocks(ACCESS, "sh")


SHELL_SECONDS = 60
"""For some commands of ours: each begins a Python, which a busy machine takes its time for."""


def shell(script: str, folder: Path, **variables: str) -> str:
    """What the commands write; they must succeed."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    prelude = f'stt-bridge() {{ "{sys.executable}" -m bridge "$@"; }}\n'
    env = {k: v for k, v in os.environ.items() if not k.startswith("STT_")} | {"PYTHONPATH": str(ROOT)} | variables
    command = ["bash", "-euo", "pipefail", "-c", prelude + script]
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=SHELL_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program}")


def block(word: str) -> str:
    (found,) = (text for text in COMMANDS if word in text)
    return found


def settings(**variables: str) -> Settings:
    return Settings.load(variables, None)


def test_every_command_is_run_by_a_test_here() -> None:
    assert len(COMMANDS) == 5


# Tables


def test_scopes() -> None:
    scopes, needs_ = tables(section(ACCESS, "Scopes"))
    assert tuple(code(row["Scope"]) for row in scopes) == SCOPES
    assert all(any(f"`{scope}`" in row["Needs"] for scope in SCOPES) for row in needs_)


def test_claims_and_variables() -> None:
    variables, claims = tables(section(ACCESS, "Tokens"))[:2]
    assert [code(row["Variable"]).removeprefix("STT_").lower() for row in variables] == [
        "jwt_secret",
        "jwt_key_file",
        "jwt_jwks",
    ]
    assert {code(row["Claim"]) for row in claims} == {"exp", "scope", "session", "sub", "aud", "iss", "nbf"}


def test_limits() -> None:
    (limits,) = tables(section(ACCESS, "How much each may use"))
    assert all(code(row["Refused with"]) in ERRORS for row in limits)
    example = {"STT_RATE_LIMIT", "STT_ADDRESS_RATE_LIMIT", "STT_KEY_SESSIONS"}
    (line,) = re.findall(r"^    (STT_RATE_LIMIT=.*)$", ACCESS, re.MULTILINE)
    assert Settings.load(dict(part.split("=", 1) for part in line.split()), None)
    assert {part.split("=", 1)[0] for part in line.split()} == example
    fields = [code(row["Variable"]).removeprefix("STT_").lower() for row in limits]
    assert set(fields) == {
        name for name in Settings.model_fields if re.search(r"rate_limit|key_(sessions|audio)", name)
    }
    assert f"{Settings.model_fields['failure_rate_limit'].default}" == "30/minute"
    assert "30 a minute by default" in ACCESS


def test_published_keys() -> None:
    text = section(ACCESS, "Tokens")
    assert f"at most every {jwks.AGAIN_SECONDS:g} s" in text
    assert jwks.FRESH_SECONDS == 600
    assert "every ten minutes" in text
    assert f"at most {jwks.MOST_KEYS} are taken, of {jwks.MOST_BYTES // 1_024} KiB" in text


def test_fields_of_the_state() -> None:
    fields, formats, errors = tables(section(ACCESS, "Sessions over HTTP"))
    named = {name for row in fields for name in row["Field"].replace("`", "").split(", ")}
    assert named | {"session_id"} == set(SessionDescription.model_fields)
    (example,) = blocks(section(ACCESS, "Sessions over HTTP"), "json")
    assert list(json.loads(example)) == list(SessionDescription.model_fields)
    SessionDescription.model_validate_json(example)
    shown = {code(row["`format`"]): code(row["`Accept`"]) for row in formats}
    assert {name: TYPES[NAMES[name]].partition(";")[0] for name in shown} == shown
    assert set(shown) == set(NAMES) - {"text"}
    for row in errors:
        for name in row["`code`"].replace("`", "").split(", "):
            assert ERRORS[name].status == int(row["Status"])


def test_the_room_s_messages() -> None:
    (query,) = tables(section(ROOMS, "Rooms: `/ws/asr/{session_id}`"))
    assert {code(row["Query"]) for row in query} == set(Query.__struct_fields__)
    result, failure = blocks(ROOMS, "json")
    msgspec.json.decode(result, type=ResultMessage, strict=True)
    error = msgspec.json.decode(failure, type=FailureMessage).error
    assert ERRORS[error.code].meaning == error.message


# Examples


def test_scoped_keys(tmp_path: Path) -> None:
    value = shell(block("STT_SCOPED_KEYS") + 'echo "$STT_SCOPED_KEYS"', tmp_path).strip()
    gatekeeper = make_gatekeeper(settings(STT_SCOPED_KEYS=value))

    def may(key: str, session: str) -> list[str]:
        rights = gatekeeper.admit({"x-api-key": key}, {}).rights
        return [scope for scope in SCOPES if rights.allows(scope, session)]

    assert may("microphones", "room-8") == ["send", "receive"]
    assert may("microphones", "hall") == []
    assert (may("screen-in-room-7", "room-7"), may("screen-in-room-7", "room-8")) == (["receive"], [])
    assert may("janitor", "hall") == ["admin"]


def test_tokens_by_a_secret(tmp_path: Path) -> None:
    needs("openssl")
    script = next(text for text in COMMANDS if "export STT_JWT_SECRET" in text)
    secret, one, two, three = shell(script.replace("\nstt", "\necho $STT_JWT_SECRET\nstt", 1), tmp_path).split()
    gatekeeper = make_gatekeeper(settings(STT_JWT_SECRET=secret))
    assert gatekeeper.admit({}, {"token": one}).rights == Rights((Grant.of(["receive"], ["room-7"]),))
    assert gatekeeper.admit({}, {"token": two}).rights == Rights((Grant.of(["send", "receive"], ["room-*"]),))
    files = gatekeeper.admit({}, {"token": three})
    assert (files.rights, files.subject) == (Rights((Grant.of(["files"]),)), "user-anna")


def test_tokens_by_a_pair_of_keys(tmp_path: Path) -> None:
    needs("openssl")
    script = next(text for text in COMMANDS if "openssl genpkey" in text)
    try:
        token = shell(script, tmp_path).split()[-1]
    except AssertionError as exc:
        if "ed25519" in str(exc).lower():
            pytest.skip("this openssl knows no Ed25519")
        raise
    gatekeeper = make_gatekeeper(settings(STT_JWT_KEY_FILE=str(tmp_path / "public.pem")))
    assert gatekeeper.admit({}, {"token": token}).rights == Rights((Grant.of(["receive"], ["room-7"]),))


def test_tokens_by_one_s_own_code() -> None:
    (source,) = blocks(ACCESS, "python")
    names: dict[str, Any] = {}
    exec(source, names)
    token = names["token_for_a_screen"]("s" * 32, "room-7")
    assert TokenVerifier.from_secret("s" * 32).verify(token).rights == Rights((Grant.of(["receive"], ["room-7"]),))


async def test_a_session_over_http(tmp_path: Path) -> None:
    needs("curl")
    state, rest = (text for text in COMMANDS if "curl" in text)
    async with serve(api_keys=("sesame",), event_log="sqlite::memory:") as url:
        address = url.replace("http", "ws", 1) + "/ws/asr/room-7?mode=sender&encoding=pcm_s16le&token=sesame"
        async with asyncio.timeout(LIMIT), connect(address, proxy=None) as socket:
            await socket.send(marker_audio(6))
            await socket.send("close")
            async for _ in socket:
                pass
        variables = {"KEY": "sesame", "SERVER": url, "NO_PROXY": "*"}
        told = json.loads(await asyncio.to_thread(shell, state, tmp_path, **variables))
        written = await asyncio.to_thread(shell, rest, tmp_path, **variables)
        (example,) = blocks(section(ACCESS, "Sessions over HTTP"), "json")
        assert told.keys() == json.loads(example).keys()
        assert (told["session_id"], told["state"], told["code"]) == ("room-7", "ended", "stopped")
        assert (told["protocol"], told["stored"], told["receivers"]) == ("asr_room", True, 0)
        assert told["received"] == told["finalized"] == pytest.approx(3.6)
        assert told["created"] < told["ended"]
        srt, _, vtt = written.partition("WEBVTT\n")
        for captions in (srt, vtt):
            assert [line for line in captions.splitlines() if line.startswith("w")] == markers(6)
        gone = await asyncio.to_thread(shell, state, tmp_path, **variables)
    assert json.loads(gone)["error"]["code"] == "unknown_session"
