"""Guards on a real server: rates over HTTP and at WebSocket openings, quotas of sessions and files, published keys."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm

from backends.scripted import marker_audio
from bridge.guarding import make_protection
from bridge.observe.metrics import Metrics
from bridge.security.tokens import TokenIssuer
from bridge.settings import Settings, SettingsError
from tests.redis import redis_server
from tests.wire import LIMIT, Answer, Outcome, Wire, get, metric, serve

START = {"encoding": "pcm_s16le", "sample_rate": 16_000}
WAV = {"Content-Type": "audio/wav"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def opened(url: str, key: str, **headers: str) -> Outcome:
    """The answer to a WebSocket's opening."""
    async with Wire.stream(url, headers=bearer(key) | headers) as wire:
        return wire.outcome


@contextlib.asynccontextmanager
async def session(url: str, key: str, **start: Any) -> AsyncIterator[Wire]:
    """A session that is ready."""
    async with Wire.stream(url, headers=bearer(key), start=START | start) as wire:
        await wire.until("ready")
        yield wire


async def refusal(url: str, key: str) -> str | None:
    """The code with which a session is refused; None: it is ready."""
    async with Wire.stream(url, headers=bearer(key), start=START) as wire:
        while not wire.outcome.messages:
            assert await wire._step()
        codes = wire.outcome.codes
        if not codes:
            return None
        outcome = await wire.finish()
        assert outcome.close == 4429
        return codes[0]


def refused(answer: Answer) -> tuple[int, str, int]:
    error = answer.json["error"]
    return answer.status, error["code"], int(answer.headers["retry-after"])


# Rates


async def test_a_key_s_requests_and_openings_are_counted_together() -> None:
    async with serve(api_keys=("sesame", "other"), rate_limit="3/minute") as url:
        answer = await get(f"{url}/v1/sessions/unknown", bearer("sesame"))
        assert (answer.status, answer.headers["ratelimit-limit"], answer.headers["ratelimit-remaining"]) == (
            404,
            "3",
            "2",
        )
        accepted = await opened(url, "sesame")
        assert (accepted.status, accepted.headers["ratelimit-remaining"]) == (101, "1")
        assert (await get(f"{url}/v1/models", bearer("sesame"))).headers["ratelimit-remaining"] == "0"
        status, code, wait = refused(await get(f"{url}/v1/sessions/unknown", bearer("sesame")))
        assert (status, code) == (429, "rate_limited")
        assert 1 <= wait <= 120
        late = await opened(url, "sesame")
        assert (late.status, late.error["code"]) == (429, "rate_limited")
        assert late.headers["retry-after"] == late.headers["ratelimit-reset"]
        assert (await opened(url, "other")).status == 101
        for _ in range(5):
            assert (await get(f"{url}/healthz")).status == 200  # probes have no key, and are nobody's
        shown = (await get(f"{url}/metrics", bearer("other"))).body
        assert metric(shown, "stt_rate_limited_total", by="key") == 2


async def test_an_upload_is_refused_before_its_body_is_read() -> None:
    async with serve(api_keys=("sesame",), rate_limit="1/minute") as url:
        await get(f"{url}/v1/models", bearer("sesame"))
        fields = ("Host: x", "Authorization: Bearer sesame", f"Content-Length: {10**9}")
        head = "\r\n".join(("POST /v1/transcribe HTTP/1.1", *fields, "", ""))
        async with Wire.open(url) as wire:
            await wire.send(head.encode())
            outcome = await wire.response()
            assert (outcome.status, outcome.error["code"]) == (429, "rate_limited")


async def test_addresses_are_counted_behind_a_trusted_proxy() -> None:
    async with serve(address_rate_limit="2/minute", trusted_proxies=("127.0.0.0/8",)) as url:

        async def asked(address: str) -> int:
            return (await get(f"{url}/v1/sessions/unknown", {"X-Forwarded-For": address})).status

        assert [await asked("203.0.113.5") for _ in range(3)] == [404, 404, 429]
        assert [await asked("6.6.6.6, 203.0.113.5") for _ in range(2)] == [
            429,
            429,
        ]  # what it says itself is not believed
        assert await asked("203.0.113.6") == 404
        assert (await opened(url, "", **{"X-Forwarded-For": "203.0.113.5"})).status == 429
        assert (await opened(url, "", **{"X-Forwarded-For": "2001:db8::1"})).status == 101
        assert (await opened(url, "", **{"X-Forwarded-For": "2001:db8::2"})).status == 101
        assert (await opened(url, "", **{"X-Forwarded-For": "2001:db8::3"})).status == 429


async def test_who_guesses_keys_is_stopped_and_others_are_not() -> None:
    async with serve(api_keys=("sesame", "fresh"), admin_keys=("king",)) as url:  # by default
        async with session(url, "sesame") as wire:
            statuses = [(await opened(url, f"guess-{number}")).status for number in range(16)]
            statuses += [(await get(f"{url}/v1/models", bearer(f"guess-{number}"))).status for number in range(16)]
            assert statuses == [401] * 30 + [429] * 2
            assert (await opened(url, "fresh")).status == 429
            assert (await get(f"{url}/v1/admin/model", bearer("king"))).status == 429
            assert (await get(f"{url}/v1/models", bearer("sesame"))).status == 200
            await wire.audio(marker_audio(2))
            await wire.say({"type": "stop"})
            assert (await wire.finish()).words == ["w0", "w1"]
        shown = (await get(f"{url}/metrics", bearer("sesame"))).body
        assert metric(shown, "stt_rate_limited_total", by="failures") == 4


async def test_two_servers_count_in_one_redis(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        limits: Any = {"api_keys": ("sesame",), "rate_limit": "4/minute", "store": redis.url}
        async with serve(**limits) as one, serve(**limits) as two:
            statuses = [
                (await get(f"{url}/v1/sessions/x", bearer("sesame"))).status for url in (one, two, one, two, one)
            ]
            assert statuses == [404] * 4 + [429]
            redis.kill()
            began = time.monotonic()
            statuses = [(await get(f"{two}/v1/sessions/x", bearer("sesame"))).status for _ in range(3)]
            assert statuses == [404, 404, 429]  # it had seen two of them itself
            assert time.monotonic() - began < LIMIT / 2


# Quotas


async def test_sessions_at_once() -> None:
    async with (
        serve(api_keys=("sesame", "other"), key_sessions=2) as url,
        session(url, "sesame"),
        session(url, "sesame", resume=False) as second,
    ):
        assert await refusal(url, "sesame") == "quota_exceeded"
        answer = await get(f"{url}/v1/transcribe", bearer("sesame") | WAV, method="POST", body=wav(1))
        assert refused(answer)[:2] == (429, "quota_exceeded")
        assert await refusal(url, "other") is None
        await second.say({"type": "stop"})
        await second.finish()
        answer = await get(f"{url}/v1/transcribe", bearer("sesame") | WAV, method="POST", body=wav(1))
        assert answer.status == 200


async def test_minutes_a_day_of_sessions_and_files() -> None:
    async with serve(api_keys=("sesame", "other"), key_audio_minutes=0.1) as url:  # six seconds
        async with session(url, "sesame") as wire:
            await wire.audio(marker_audio(5))
            await wire.until("final", 5)
            answer = await get(f"{url}/v1/transcribe", bearer("sesame") | WAV, method="POST", body=wav(10))
            assert (answer.status, answer.json["text"].split()[-1]) == (200, "w9")  # it began in time
            assert await refusal(url, "sesame") == "quota_exceeded"
            status, code, wait = refused(
                await get(f"{url}/v1/transcribe", bearer("sesame") | WAV, method="POST", body=wav(1))
            )
            assert (status, code) == (429, "quota_exceeded")
            assert 1 <= wait <= 86_400
            fields = ("Host: x", "Authorization: Bearer sesame", f"Content-Length: {10**9}")
            async with Wire.open(url) as upload:  # of which nothing is read
                await upload.send("\r\n".join(("POST /v1/transcribe HTTP/1.1", *fields, "", "")).encode())
                assert (await upload.response()).error["code"] == "quota_exceeded"
            await wire.audio(marker_audio(7)[len(marker_audio(5)) :])  # who is in stays in
            await wire.say({"type": "stop"})
            assert (await wire.finish()).words == [f"w{n}" for n in range(7)]
        assert await refusal(url, "other") is None
        assert (await get(f"{url}/v1/models", bearer("sesame"))).status == 200  # brings nothing


async def test_a_session_without_a_place_pushes_nobody_out() -> None:
    """Held sessions give way at capacity; not to who may have none."""
    async with serve(api_keys=("sesame", "other"), key_sessions=1, max_sessions=2) as url:
        async with session(url, "other") as held:
            await held.audio(marker_audio(1))
            await held.until("final")
            token, name = held.outcome.of("ready")[0]["resume_token"], held.outcome.of("ready")[0]["session_id"]
        async with session(url, "sesame"):
            assert await refusal(url, "sesame") == "quota_exceeded"
            state = await get(f"{url}/v1/sessions/{name}", bearer("other"))
            assert state.json["state"] == "held"
            back = {"resume_token": token, "session_id": name}
            async with Wire.stream(url, headers=bearer("other"), start=back) as wire:
                assert (await wire.until("ready"))["resumed"]
        shown = (await get(f"{url}/metrics", bearer("other"))).body
        assert metric(shown, "stt_resumes_total", session="held") == 1  # it never left


async def test_a_session_that_goes_on_is_not_asked_for_its_minutes() -> None:
    async with serve(api_keys=("sesame", "other"), key_audio_minutes=0.05, max_sessions=1) as url:
        async with session(url, "sesame") as left:
            await left.audio(marker_audio(10))
            await left.until("final", 10)
            ready = left.outcome.of("ready")[0]
        async with session(url, "other") as wire:  # in the place of the one that waits
            await wire.say({"type": "stop"})
            await wire.finish()
        assert await refusal(url, "sesame") == "quota_exceeded"
        back = {"resume_token": ready["resume_token"], "session_id": ready["session_id"]}
        async with Wire.stream(url, headers=bearer("sesame"), start=back) as wire:
            assert (await wire.until("ready"))["resumed"]


def wav(words: int) -> bytes:
    """A file of so many words of marker audio."""
    pcm = marker_audio(words)
    fields = b"WAVEfmt \x10\0\0\0\x01\0\x01\0" + (16_000).to_bytes(4, "little") + (32_000).to_bytes(4, "little")
    body = fields + b"\x02\0\x10\0data" + len(pcm).to_bytes(4, "little") + pcm
    return b"RIFF" + len(body).to_bytes(4, "little") + body


# Published keys


async def test_tokens_by_published_keys(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"one": ed25519.Ed25519PrivateKey.generate(), "two": ec.generate_private_key(ec.SECP256R1())}
    entries = [
        OKPAlgorithm.to_jwk(keys["one"].public_key(), as_dict=True) | {"kid": "one"},
        ECAlgorithm.to_jwk(keys["two"].public_key(), as_dict=True) | {"kid": "two"},
    ]
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": entries}))

    def token(kid: str, **claims: str) -> str:
        pem = keys[kid].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        subject = claims.get("sub", "anna")
        issuer = TokenIssuer.from_pem(pem)
        return issuer.issue(["files", "send"], ttl_seconds=60, issuer=claims.get("iss"), subject=subject, key_id=kid)

    source = str(tmp_path / "jwks.json")
    async with serve(jwt_jwks=source, jwt_issuer="https://login.example", rate_limit="3/minute") as url:
        good = {"iss": "https://login.example"}
        assert (await get(f"{url}/v1/models", bearer(token("one", **good)))).status == 200
        assert (await opened(url, token("two", **good))).status == 101  # the same user
        assert (await get(f"{url}/v1/models", bearer(token("two", **good)))).headers["ratelimit-remaining"] == "0"
        assert (await get(f"{url}/v1/models", bearer(token("two", sub="ben", **good)))).status == 200
        wrong = await get(f"{url}/v1/models", bearer(token("one", iss="https://elsewhere.example")))
        assert wrong.status == 401
        assert "somebody else" in wrong.json["error"]["message"]
        unknown = jwt.encode({"exp": time.time() + 60}, keys["one"], "EdDSA", {"kid": "three"})
        answer = await get(f"{url}/v1/models", bearer(unknown))
        assert (answer.status, "not known" in answer.json["error"]["message"]) == (401, True)


# Settings


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"STT_RATE_LIMIT": "fast"}, "STT_RATE_LIMIT: 'fast' is not allowed: it should be a rate as 600/minute"),
        ({"STT_RATE_LIMIT": "0/minute"}, "should allow one request"),
        ({"STT_TRUSTED_PROXIES": "10.0.0.0/99"}, "STT_TRUSTED_PROXIES: .* should be addresses or networks"),
        ({"STT_KEY_SESSIONS": "0"}, "STT_KEY_SESSIONS"),
        ({"STT_JWT_JWKS": "x", "STT_JWT_SECRET": "s" * 32}, "STT_JWT_SECRET and STT_JWT_JWKS exclude each other"),
        ({"STT_JWT_ISSUER": "x"}, "STT_JWT_ISSUER needs STT_JWT_SECRET, STT_JWT_KEY_FILE or STT_JWT_JWKS"),
    ],
)
def test_settings_that_are_wrong(variables: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        Settings.load(variables, None)


@pytest.mark.parametrize("source", ["nowhere.json", "http://keys.example/jwks"])
def test_keys_that_cannot_be_read(source: str) -> None:
    with pytest.raises(SettingsError, match="STT_JWT_JWKS: the value given should be"):
        make_protection(Settings.load({"STT_JWT_JWKS": source}, None), Metrics())


def test_rates_can_be_turned_off() -> None:
    settings = Settings.load({"STT_FAILURE_RATE_LIMIT": "off", "STT_RATE_LIMIT": ""}, None)
    assert settings.rate_limit is None
    entrance = make_protection(settings, Metrics()).entrance
    assert entrance._guards._failure_rates == ()
    asyncio.run(make_protection(settings, Metrics()).close())
