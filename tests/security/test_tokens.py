"""Tokens: what their claims allow, what is refused, and that no token chooses how it is verified."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from bridge.errors import BridgeError
from bridge.security import tokens
from bridge.security.rights import Grant, Rights
from bridge.security.tokens import LEEWAY_SECONDS, KeyFileError, TokenIssuer, TokenVerifier

SECRET = "0123456789abcdef0123456789abcdef"
ALL = Rights((Grant.of(["receive"]),))


def private_pem(key: Any, encryption: Any = None) -> bytes:
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return pem


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


RSA = rsa.generate_private_key(65_537, 2_048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
KEYS = {
    "RS256": RSA,
    "ES256": EC,
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ED,
}


def signed(claims: dict[str, Any], key: Any = SECRET, algorithm: str = "HS256", **headers: Any) -> str:
    return jwt.encode({"exp": time.time() + 3_600, "scope": "receive"} | claims, key, algorithm, headers or None)


def part(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def refusal(token: str, verifier: TokenVerifier | None = None) -> str:
    with pytest.raises(BridgeError) as caught:
        (verifier or TokenVerifier.from_secret(SECRET)).verify(token)
    assert caught.value.code == "unauthorized"
    assert token == "" or token not in str(caught.value)
    return str(caught.value)


# Claims


@pytest.mark.parametrize(
    ("claims", "rights"),
    [
        ({"scope": "send receive"}, Rights((Grant.of(["send", "receive"]),))),
        ({"scope": "openid send profile"}, Rights((Grant.of(["send"]),))),
        ({"scope": ""}, Rights((Grant.of([]),))),
        ({"scope": "send receive admin", "session": "a"}, Rights((Grant.of(["send", "receive", "admin"], ["a"]),))),
        ({"session": ["a", "b-*"]}, Rights((Grant.of(["receive"], ["a", "b-*"]),))),
        ({"session": []}, Rights((Grant.of(["receive"], []),))),
        ({"sub": "somebody", "iss": "us"}, ALL),
    ],
)
def test_what_a_token_allows(claims: dict[str, Any], rights: Rights) -> None:
    assert TokenVerifier.from_secret(SECRET).verify(signed(claims)).rights == rights


def test_clocks_may_differ() -> None:
    verifier = TokenVerifier.from_secret(SECRET)
    assert verifier.verify(signed({"exp": time.time() - LEEWAY_SECONDS + 5})).rights == ALL
    assert verifier.verify(signed({"nbf": time.time() + LEEWAY_SECONDS - 5})).rights == ALL


def test_a_token_without_a_scope_allows_nothing() -> None:
    rights = TokenVerifier.from_secret(SECRET).verify(jwt.encode({"exp": time.time() + 60}, SECRET, "HS256")).rights
    with pytest.raises(BridgeError, match="may not receive"):
        rights.require("receive", "a")


@pytest.mark.parametrize(
    ("claims", "sentence"),
    [
        ({"exp": time.time() - LEEWAY_SECONDS - 5}, "the token has expired"),
        ({"exp": 0}, "the token has expired"),
        ({"nbf": time.time() + 3_600}, "the token is not valid yet"),
        ({"aud": "somebody"}, "the token is meant for another server (`aud`)"),
        ({"exp": None}, "the token needs the claim `exp`"),
        ({"exp": "soon"}, "the token is wrong"),
        ({"exp": float("inf")}, "the token is wrong"),
        ({"scope": ["receive"]}, "the token's `scope` or `session` is not what it should be"),
        ({"scope": None}, "the token's `scope` or `session` is not what it should be"),
        ({"session": None}, "the token's `scope` or `session` is not what it should be"),
        ({"session": 5}, "the token's `scope` or `session` is not what it should be"),
        ({"session": [5]}, "the token's `scope` or `session` is not what it should be"),
        ({"session": {"a": 1}}, "the token's `scope` or `session` is not what it should be"),
        ({"session": ""}, "the token's `session` names what cannot be a session"),
        ({"session": ["a", "b c"]}, "the token's `session` names what cannot be a session"),
    ],
)
def test_claims_that_are_refused(claims: dict[str, Any], sentence: str) -> None:
    assert refusal(signed(claims)) == sentence


def test_a_token_without_an_end_is_refused() -> None:
    assert "`exp`" in refusal(jwt.encode({"scope": "receive"}, SECRET, "HS256"))


@pytest.mark.parametrize("audience", ["me", ["you", "me"]])
def test_an_audience(audience: object) -> None:
    verifier = TokenVerifier.from_secret(SECRET, "me")
    assert verifier.verify(signed({"aud": audience})).rights == ALL
    assert "another server" in refusal(signed({"aud": "you"}), verifier)
    assert "`aud`" in refusal(signed({}), verifier)


# Signatures


@pytest.mark.parametrize("algorithm", KEYS)
def test_each_kind_of_key(algorithm: str) -> None:
    key = KEYS[algorithm]
    verifier = TokenVerifier.from_pem(public_pem(key))
    token = TokenIssuer.from_pem(private_pem(key)).issue(["send"], ["a"], ttl_seconds=60)
    assert jwt.get_unverified_header(token)["alg"] == algorithm
    assert verifier.verify(token).rights == Rights((Grant.of(["send"], ["a"]),))
    for other in KEYS.values():
        if other is not key:
            foreign = TokenIssuer.from_pem(private_pem(other)).issue(["send"], ttl_seconds=60)
            assert refusal(foreign, verifier) == "the token is wrong"


def test_another_secret() -> None:
    assert refusal(signed({}, "x" * 32)) == "the token is wrong"


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
def test_an_unsigned_token(algorithm: str) -> None:
    claims = {"exp": time.time() + 60, "scope": "receive"}
    for verifier in (TokenVerifier.from_secret(SECRET), TokenVerifier.from_pem(public_pem(RSA))):
        for signature in ("", part(b"x")):
            token = f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(claims)}.{signature}"
            assert refusal(token, verifier) == "the token is wrong"


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("key", [RSA, EC, ED])
def test_the_public_key_is_no_secret(key: Any, algorithm: str) -> None:
    """The classic: a token "signed" with the public key as if it were a shared secret (CVE-2015-9235)."""
    import hashlib
    import hmac

    pem = public_pem(key)
    body = f"{part({'alg': algorithm})}.{part({'exp': time.time() + 60, 'scope': 'receive'})}"
    for secret in (pem, pem.strip(), pem.decode().strip().encode() + b"\r\n"):
        mac = hmac.digest(secret, body.encode(), getattr(hashlib, f"sha{algorithm[2:]}"))
        assert refusal(f"{body}.{part(mac)}", TokenVerifier.from_pem(pem)) == "the token is wrong"


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_another_hash_of_the_same_secret(algorithm: str) -> None:
    assert refusal(signed({}, SECRET * 2, algorithm), TokenVerifier.from_secret(SECRET * 2)) == "the token is wrong"


def test_a_key_that_the_token_brings_along() -> None:
    own = jwt.get_algorithm_by_name("RS256").to_jwk(RSA.public_key())
    for headers in ({"jwk": json.loads(own)}, {"jku": "https://a.example"}, {"x5u": "https://a.example"}, {"kid": "/"}):
        token = signed({}, RSA, "RS256", **headers)
        other = TokenVerifier.from_pem(public_pem(rsa.generate_private_key(65_537, 2_048)))
        assert refusal(token, other) == "the token is wrong"


GOOD = signed({})


@pytest.mark.parametrize(
    "token",
    [
        *("", ".", "..", "...", "a.b.c", GOOD[:-1], GOOD + "A", GOOD + ".", GOOD.rpartition(".")[0] + ".", "é.é.é"),
        *(GOOD.replace(".", "..", 1), "\ud800.a.b", "\x00.\x00.\x00"),
        f"{part(b'[' * 30_000)}.e30.AA",  # nested deeper than Python's stack
        part(b'{"alg":' * 9_000) + ".e30.AA",
        f"{part([])}.e30.AA",
        f"{part({'alg': ['HS256']})}.e30.AA",
        f"{part({'alg': {}})}.e30.AA",
        f"{part({'alg': 5})}.e30.AA",
        f"{part({'alg': 'HS256', 'kid': 5})}.e30.AA",
        f"{part({'alg': 'HS256', 'crit': ['b64'], 'b64': False})}.e30.AA",
        signed({}, b64=False),
        signed({}, crit=["exp"]),
        jwt.PyJWS().encode(b"[" * 30_000, SECRET, "HS256"),
        jwt.PyJWS().encode(b"5", SECRET, "HS256"),
        jwt.PyJWS().encode(b'{"exp":1e999,"scope":"receive"}', SECRET, "HS256"),
        jwt.PyJWS().encode(b'{"exp":' + b"9" * 5_000 + b"}", SECRET, "HS256"),
    ],
    ids=range(27),
)
def test_what_is_no_token(token: str) -> None:
    refusal(token)


# Keys


@pytest.mark.parametrize("make", [TokenVerifier.from_secret, TokenIssuer.from_secret])
def test_a_short_secret(make: Any) -> None:
    with pytest.raises(KeyFileError, match="should have at least 32 bytes"):
        make("x" * 31)


@pytest.mark.parametrize(
    ("pem", "sentence"),
    [
        (b"", "should hold a public key in PEM"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "should hold a public key in PEM"),
        (private_pem(RSA), "the private one stays with who makes the tokens"),
        (public_pem(rsa.generate_private_key(65_537, 1_024)), "should have at least 2048 bits"),
        (public_pem(ec.generate_private_key(ec.SECP256K1())), "should be a key of RSA, P-256"),
        (public_pem(ed448.Ed448PrivateKey.generate()), "should be a key of RSA, P-256"),
        (public_pem(dsa.generate_private_key(2_048)), "should be a key of RSA, P-256"),
    ],
)
def test_public_keys_that_are_not_taken(pem: bytes, sentence: str) -> None:
    with pytest.raises(KeyFileError, match=sentence):
        TokenVerifier.from_pem(pem)


@pytest.mark.parametrize("pem", [b"", public_pem(EC), private_pem(EC, BestAvailableEncryption(b"x"))])
def test_private_keys_that_are_not_taken(pem: bytes) -> None:
    with pytest.raises(KeyFileError, match="should hold a private key in PEM, without a passphrase"):
        TokenIssuer.from_pem(pem)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives", None)
    for make in (TokenVerifier.from_pem, TokenIssuer.from_pem):
        with pytest.raises(KeyFileError, match=r"stt-bridge\[jwt\]"):
            make(b"")
    assert TokenVerifier.from_secret(SECRET).verify(GOOD).rights == ALL  # a secret needs none


# Making them


def test_the_claims_of_a_token() -> None:
    issuer = TokenIssuer.from_secret(SECRET)
    plain = jwt.decode(
        issuer.issue(["send", "receive"], ttl_seconds=60, now=100.9), options={"verify_signature": False}
    )
    assert plain == {"scope": "send receive", "iat": 100, "exp": 160}
    whole = issuer.issue(["admin"], ["a", "b*"], ttl_seconds=1, audience="me", now=100)
    claims = jwt.decode(whole, options={"verify_signature": False})
    assert claims == {"scope": "admin", "session": ["a", "b*"], "iat": 100, "exp": 101, "aud": "me"}


@pytest.mark.parametrize(("scopes", "sessions"), [([], None), (["send"], []), (["listen"], None), (["send"], ["a b"])])
def test_tokens_that_would_be_good_for_nothing(scopes: list[str], sessions: list[str] | None) -> None:
    with pytest.raises(ValueError, match="should"):
        TokenIssuer.from_secret(SECRET).issue(scopes, sessions, ttl_seconds=60)


def test_whoever_asks_too_early_or_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    token = TokenIssuer.from_secret(SECRET).issue(["receive"], ttl_seconds=60)
    assert TokenVerifier.from_secret(SECRET).verify(token).rights == ALL
    old = TokenIssuer.from_secret(SECRET).issue(["receive"], ttl_seconds=60, now=time.time() - 60 - LEEWAY_SECONDS - 1)
    assert refusal(old) == "the token has expired"
    assert tokens.LEEWAY_SECONDS < 60
