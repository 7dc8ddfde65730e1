"""Published keys: read from a file and from a real server, kept, exchanged, refused."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from bridge.errors import BridgeError
from bridge.security import jwks
from bridge.security.auth import Gatekeeper, UnknownKeyError
from bridge.security.entrance import Arrival, Entrance
from bridge.security.jwks import AGAIN_SECONDS, FRESH_SECONDS, MOST_BYTES, KeySet
from bridge.security.tokens import KeyFileError, TokenVerifier

RSA = rsa.generate_private_key(65_537, 2_048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
Json = dict[str, Any]


def public(key: Any, **members: Any) -> Json:
    """The key as a JWKS has it."""
    made: Json
    if isinstance(key, rsa.RSAPrivateKey):
        made = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        made = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        made = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    made.pop("key_ops", None)
    return made | members


def document(*keys: Json) -> bytes:
    return json.dumps({"keys": keys}).encode()


def signed(key: Any, algorithm: str, kid: str | None = None, **claims: Any) -> str:
    headers = None if kid is None else {"kid": kid}
    return jwt.encode({"exp": time.time() + 600, "scope": "files", "sub": "anna"} | claims, key, algorithm, headers)


def encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def part(*values: Json) -> list[bytes]:
    return [encoded(json.dumps(value).encode()) for value in values]


def stored(folder: Path, *keys: Json) -> str:
    file = folder / "jwks.json"
    file.write_bytes(document(*keys))
    return str(file)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


# What is a key


def test_the_key_decides_the_algorithm(tmp_path: Path) -> None:
    keys = KeySet(
        stored(
            tmp_path,
            public(RSA, kid="r"),
            public(RSA, kid="pss", alg="PS384", use="sig"),
            public(EC, kid="e"),
            public(ED, kid="o"),
        )
    )
    verifier = TokenVerifier(keys.of)
    for kid, key, algorithm in (("r", RSA, "RS256"), ("pss", RSA, "PS384"), ("e", EC, "ES256"), ("o", ED, "EdDSA")):
        assert verifier.verify(signed(key, algorithm, kid)).subject == "user-anna"
    for kid, key, algorithm in (("r", RSA, "RS512"), ("pss", RSA, "RS256"), ("e", RSA, "RS256"), ("o", EC, "ES256")):
        with pytest.raises(BridgeError, match="the token is wrong"):
            verifier.verify(signed(key, algorithm, kid))


@pytest.mark.parametrize("key", [RSA, EC, ED])
def test_a_public_key_is_no_shared_secret(tmp_path: Path, key: Any) -> None:
    entry = public(key, kid="k")
    verifier = TokenVerifier(KeySet(stored(tmp_path, entry)).of)
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    text = b".".join(part({"alg": "HS256", "kid": "k"}, {"exp": time.time() + 60, "scope": "files"}))
    for secret in (json.dumps(entry).encode(), str(entry.get("n", entry.get("x"))).encode(), pem):  # as an attacker may
        forged = text + b"." + encoded(hmac.digest(secret, text, "sha256"))
        with pytest.raises(BridgeError, match="the token is wrong"):
            verifier.verify(forged.decode())
    unsigned = jwt.encode({"exp": time.time() + 60}, "", "none", {"kid": "k"})
    with pytest.raises(BridgeError, match="the token is wrong"):
        verifier.verify(unsigned)


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "kid": "a"},
        RSAAlgorithm.to_jwk(RSA, as_dict=True) | {"kid": "a"},  # the private one
        public(RSA, use="enc"),
        public(EC, alg="RS256"),
        public(rsa.generate_private_key(65_537, 1_024)),
        public(ec.generate_private_key(ec.SECP256K1())),
        public(RSA, kid=7),
        {"kty": "RSA", "n": "AQAB", "kid": "a"},
        {"kty": "PQC"},
        "key",
        None,
    ],
)
def test_what_cannot_be_used_is_left_out(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(KeyFileError, match="should hold a public key"):
        KeySet(stored(tmp_path, entry))
    keys = KeySet(stored(tmp_path, entry, public(ED, kid="good")))
    assert TokenVerifier(keys.of).verify(signed(ED, "EdDSA", "good"))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b"\xff", b"[" * 100_000, b" " * (MOST_BYTES + 1)]
)
def test_what_is_no_set_of_keys(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(content)
    with pytest.raises(KeyFileError, match="should "):
        KeySet(str(file))


@pytest.mark.parametrize("source", ["http://keys.example/jwks", "ftp://keys.example/jwks", "https://", "nowhere.json"])
def test_where_keys_cannot_come_from(source: str) -> None:
    with pytest.raises(KeyFileError, match="https"):
        KeySet(source)


def test_a_token_without_a_key_s_name_means_the_only_one(tmp_path: Path) -> None:
    one = KeySet(stored(tmp_path, public(ED, kid="a")))
    assert TokenVerifier(one.of).verify(signed(ED, "EdDSA"))
    two = KeySet(stored(tmp_path, public(ED, kid="a"), public(EC, kid="b")))
    with pytest.raises(UnknownKeyError):
        two.of(signed(ED, "EdDSA"))


@pytest.mark.parametrize("token", ["a.b.c", "..", "eyJhbGciOiJub25lIn0", "\ud800.a.b"])
def test_what_is_no_token(tmp_path: Path, token: str) -> None:
    keys = KeySet(stored(tmp_path, public(ED, kid="a")))
    with pytest.raises(BridgeError, match="the token is wrong"):
        keys.of(token)


# Reading again


class Publisher:
    """A server of keys."""

    def __init__(self) -> None:
        self.body = document(public(ED, kid="one"))
        self.status = 200
        self.asked = 0
        self.stuck: asyncio.Event | None = None
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):  # who asked has gone
            await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        if self.stuck is not None:
            await self.stuck.wait()
        head = f"HTTP/1.1 {self.status} X\r\nconnection: close\r\nlocation: {self.url}\r\n\r\n"
        with contextlib.suppress(ConnectionError):
            writer.write(head.encode() + self.body)
            await writer.drain()
            writer.close()
            await writer.wait_closed()


@pytest.fixture
async def publisher(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Publisher]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Publisher()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"
    async with server:
        yield made


def arrival(token: str) -> Arrival:
    return Arrival("203.0.113.5", {"authorization": f"Bearer {token}"}, {})


@contextlib.asynccontextmanager
async def entrance(source: str, clock: Clock) -> AsyncIterator[tuple[Entrance, KeySet]]:
    keys = KeySet(source, clock)
    try:
        yield Entrance(Gatekeeper(tokens=TokenVerifier(keys.of)), keys=keys), keys
    finally:
        await keys.close()


async def test_keys_are_exchanged_while_the_server_runs(publisher: Publisher) -> None:
    clock = Clock()
    async with entrance(publisher.url, clock) as (door, _):
        assert (await door.admit(arrival(signed(ED, "EdDSA", "one")))).subject == "user-anna"
        assert publisher.asked == 1
        publisher.body = document(public(ED, kid="one"), public(EC, kid="two"))
        new = arrival(signed(EC, "ES256", "two"))
        with pytest.raises(BridgeError, match="a key that is not known"):  # too soon to ask again
            await door.admit(new)
        clock.now += AGAIN_SECONDS
        await door.admit(new)
        await door.admit(arrival(signed(ED, "EdDSA", "one")))
        assert publisher.asked == 2


async def test_strangers_do_not_make_it_ask_more_often(publisher: Publisher) -> None:
    clock = Clock()
    async with entrance(publisher.url, clock) as (door, _):
        tries = [door.admit(arrival(signed(ED, "EdDSA", f"invented-{number}"))) for number in range(50)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert {getattr(result, "code", None) for result in results} == {"unauthorized"}
        assert publisher.asked == 1


async def test_a_key_that_was_withdrawn_is_forgotten(publisher: Publisher) -> None:
    clock = Clock()
    async with entrance(publisher.url, clock) as (door, keys):
        await door.admit(arrival(signed(ED, "EdDSA", "one")))
        publisher.body = document(public(EC, kid="two"))
        clock.now += FRESH_SECONDS
        await door.admit(arrival(signed(ED, "EdDSA", "one")))  # nobody waits for the reading that begins now
        await keys.refresh()
        with pytest.raises(BridgeError, match="not known"):
            await door.admit(arrival(signed(ED, "EdDSA", "one")))


@pytest.mark.parametrize("failure", ["status", "redirect", "rubbish", "endless", "gone"])
async def test_while_the_keys_cannot_be_read_those_known_are_good(
    publisher: Publisher, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bridge.security.jwks")
    clock = Clock()
    async with entrance(publisher.url, clock) as (door, keys):
        await door.admit(arrival(signed(ED, "EdDSA", "one")))
        good = publisher.body
        match failure:
            case "status":
                publisher.status = 500
            case "redirect":
                publisher.status = 302
            case "rubbish":
                publisher.body = b"<html>"
            case "endless":
                publisher.body = b" " * (MOST_BYTES + 1_000_000)
            case "gone":
                keys._url = keys._url.copy_with(port=1)  # type: ignore[union-attr]
        for _ in range(2):
            clock.now += FRESH_SECONDS
            await keys.refresh()
            await door.admit(arrival(signed(ED, "EdDSA", "one")))
        assert [record.levelname for record in caplog.records] == ["WARNING"]  # once
        publisher.status, publisher.body = 200, good
        keys._url = jwks._url(publisher.url)
        clock.now += AGAIN_SECONDS
        await keys.refresh()
        assert caplog.records[-1].getMessage().endswith("can be read again")


async def test_a_publisher_that_hangs_holds_nobody_for_ever(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "READ_SECONDS", 0.2)
    publisher.stuck = asyncio.Event()
    clock = Clock()
    async with entrance(publisher.url, clock) as (door, _), asyncio.timeout(5):
        token = arrival(signed(ED, "EdDSA", "one"))
        impatient = asyncio.create_task(door.admit(token))
        await asyncio.sleep(0.05)
        impatient.cancel()  # one that goes away does not take the reading with it
        with pytest.raises(BridgeError) as caught:
            await door.admit(token)
        assert caught.value.code == "not_ready"
        assert caught.value.retry_after is not None
        assert publisher.asked == 1
        publisher.stuck.set()
        publisher.stuck = None
        clock.now += AGAIN_SECONDS
        await door.admit(token)


async def test_a_file_is_read_again(tmp_path: Path) -> None:
    clock = Clock()
    source = stored(tmp_path, public(ED, kid="one"))
    async with entrance(source, clock) as (door, _):
        await door.admit(arrival(signed(ED, "EdDSA", "one")))
        stored(tmp_path, public(EC, kid="two"))
        clock.now += AGAIN_SECONDS
        await door.admit(arrival(signed(EC, "ES256", "two")))
        (tmp_path / "jwks.json").unlink()
        clock.now += AGAIN_SECONDS
        with pytest.raises(BridgeError, match="not known"):
            await door.admit(arrival(signed(ED, "EdDSA", "three")))
        await door.admit(arrival(signed(EC, "ES256", "two")))


async def test_closing_ends_a_reading(publisher: Publisher) -> None:
    publisher.stuck = asyncio.Event()
    keys = KeySet(publisher.url)
    keys.freshen()
    await asyncio.sleep(0.05)
    async with asyncio.timeout(2):
        await keys.close()
    publisher.stuck.set()
