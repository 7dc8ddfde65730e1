"""Who may connect: keys in every place, web origins, and what counts as loopback."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from bridge.errors import BridgeError
from bridge.security.auth import Gatekeeper, is_loopback
from bridge.security.rights import EVERYTHING, SCOPES, Scope
from bridge.security.tokens import TokenIssuer, TokenVerifier

KEY = "k-0123456789"


def refusal(gatekeeper: Gatekeeper, headers: dict[str, str], query: dict[str, str], *subprotocols: str) -> BridgeError:
    with pytest.raises(BridgeError) as caught:
        gatekeeper.admit(headers, query, subprotocols)
    return caught.value


# Keys


@pytest.mark.parametrize(
    ("headers", "query", "subprotocols", "echo"),
    [
        ({"authorization": f"Bearer {KEY}"}, {}, (), None),
        ({"authorization": f"bearer  {KEY} "}, {}, (), None),
        ({"authorization": f"Token {KEY}"}, {}, (), None),
        ({"authorization": KEY}, {}, (), None),
        ({"x-api-key": KEY}, {}, (), None),
        ({}, {"token": KEY}, (), None),
        ({}, {"api_key": KEY}, (), None),
        ({}, {"token": "", "api_key": KEY}, (), None),
        ({}, {}, ("bearer", KEY), "bearer"),
        ({}, {}, ("Token", KEY), "Token"),
        ({}, {}, ("v1", "bearer", KEY), "bearer"),
        ({"authorization": f"Bearer {KEY}"}, {}, ("bearer", KEY), "bearer"),
    ],
)
def test_key_is_found(
    headers: dict[str, str], query: dict[str, str], subprotocols: tuple[str, ...], echo: str | None
) -> None:
    admission = Gatekeeper([KEY]).admit(headers, query, subprotocols)
    assert admission.subprotocol == echo  # never the key


@pytest.mark.parametrize("key", ["one", "two", "three"])
def test_each_of_several_keys(key: str) -> None:
    Gatekeeper(["one", "two", "three"]).admit({"x-api-key": key}, {})


@pytest.mark.parametrize(
    ("headers", "query", "subprotocols"),
    [
        ({}, {}, ()),
        ({"authorization": ""}, {}, ()),
        ({"x-api-key": ""}, {}, ()),
        ({}, {"token": ""}, ()),
        ({}, {"key": KEY}, ()),
        ({}, {}, ("bearer",)),
        ({}, {}, (KEY,)),
        ({}, {}, ("v1", KEY)),
    ],
)
def test_key_is_missing(headers: dict[str, str], query: dict[str, str], subprotocols: tuple[str, ...]) -> None:
    error = refusal(Gatekeeper([KEY]), headers, query, *subprotocols)
    assert error.code == "unauthorized"
    assert "needed" in str(error)


@pytest.mark.parametrize(
    ("headers", "query", "subprotocols"),
    [
        ({"authorization": "Bearer wrong"}, {}, ()),
        ({"authorization": "Bearer"}, {}, ()),
        ({"authorization": f"Basic {KEY}"}, {}, ()),
        ({"authorization": f"Bearer {KEY}x"}, {}, ()),
        ({"authorization": f"Bearer {KEY[:-1]}"}, {}, ()),
        ({"authorization": f"Bearer {KEY.upper()}"}, {}, ()),
        ({"x-api-key": "wrong"}, {"token": KEY}, ()),  # the first that is given counts
        ({}, {"token": "\u00e9\ufffd"}, ()),
        ({}, {}, ("bearer", "wrong")),
    ],
)
def test_key_is_wrong(headers: dict[str, str], query: dict[str, str], subprotocols: tuple[str, ...]) -> None:
    error = refusal(Gatekeeper([KEY]), headers, query, *subprotocols)
    assert error.code == "unauthorized"
    assert KEY not in str(error)
    assert "wrong" in str(error)


def test_a_key_opens_the_door_to_any_origin() -> None:
    Gatekeeper([KEY]).admit({"origin": "https://elsewhere.example", "x-api-key": KEY}, {})


# What each may do

SECRET = "0123456789abcdef0123456789abcdef"
SCOPED = Gatekeeper(
    [KEY],
    admin_keys=["a-1"],
    scoped_keys=["receive=r", "send@room-*=s", "receive@hall=s", "admin=b64=="],
    tokens=TokenVerifier.from_secret(SECRET),
)
TOKEN = TokenIssuer.from_secret(SECRET).issue(["send"], ["hall"], ttl_seconds=3_600)


def held(key: str) -> set[tuple[Scope, str | None]]:
    rights = SCOPED.admit({"x-api-key": key}, {}).rights
    return {(scope, name) for scope in SCOPES for name in ("room-1", "hall", None) if rights.allows(scope, name)}


def test_who_may_do_what() -> None:
    assert len(held(KEY)) == 12
    assert held("r") == {("receive", "room-1"), ("receive", "hall"), ("receive", None)}
    assert held("s") == {("send", "room-1"), ("receive", "hall")}  # two entries of one key
    assert held("b64==") == {("admin", "room-1"), ("admin", "hall"), ("admin", None)}
    assert held(TOKEN) == {("send", "hall")}


def test_without_keys_everything_is_allowed() -> None:
    assert not Gatekeeper().guarded
    assert Gatekeeper().admit({}, {}).rights == EVERYTHING


@pytest.mark.parametrize(
    "gatekeeper",
    [
        Gatekeeper(["k"]),
        Gatekeeper(scoped_keys=["send=k"]),
        Gatekeeper(tokens=TokenVerifier.from_secret(SECRET)),
    ],
)
def test_each_kind_of_key_guards_the_server(gatekeeper: Gatekeeper) -> None:
    assert gatekeeper.guarded
    for key in ("", "x", "a.b.c"):
        assert refusal(gatekeeper, {"x-api-key": key}, {}).code == "unauthorized"


@pytest.mark.parametrize(
    ("headers", "query", "subprotocols"),
    [
        ({"authorization": f"Bearer {TOKEN}"}, {}, ()),
        ({"x-api-key": TOKEN}, {}, ()),
        ({}, {"token": TOKEN}, ()),
        ({}, {}, ("bearer", TOKEN)),
    ],
)
def test_a_token_comes_where_keys_do(
    headers: dict[str, str], query: dict[str, str], subprotocols: tuple[str, ...]
) -> None:
    assert SCOPED.admit(headers, query, subprotocols).rights.allows("send", "hall")


def test_a_token_s_bearer_is_one_caller_however_its_signature_is_written() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    gatekeeper = Gatekeeper(tokens=TokenVerifier.from_pem(pem))
    issuer = TokenIssuer.from_pem(private)
    first = issuer.issue(["send"], ttl_seconds=60)
    signed, _, signature = first.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
    other = raw[:32] + (order - int.from_bytes(raw[32:])).to_bytes(32)  # as good as the first, for ECDSA
    second = f"{signed}.{base64.urlsafe_b64encode(other).rstrip(b'=').decode()}"
    subjects = {gatekeeper.admit({"x-api-key": token}, {}).subject for token in (first, second)}
    assert len(subjects) == 1
    another = issuer.issue(["send"], ttl_seconds=61)
    assert gatekeeper.admit({"x-api-key": another}, {}).subject not in subjects


def test_what_is_wrong_with_a_token_is_said() -> None:
    old = TokenIssuer.from_secret(SECRET).issue(["send"], ttl_seconds=60, now=0)
    assert str(refusal(SCOPED, {"x-api-key": old}, {})) == "the token has expired"
    assert str(refusal(SCOPED, {"x-api-key": TOKEN[:-2]}, {})) == "the token is wrong"
    assert str(refusal(Gatekeeper([KEY]), {"x-api-key": TOKEN}, {})) == "the API key is wrong"


@pytest.mark.parametrize("key", [KEY, "r", "s", "b64==", TOKEN])
def test_a_session_s_key_does_not_change_the_server(key: str) -> None:
    with pytest.raises(BridgeError) as caught:
        SCOPED.admit_admin({"x-api-key": key})
    assert caught.value.code == "forbidden"


# Who may read what was said


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "[::1]", "localhost", "LOCALHOST:1", "App.example", "10.0.0.7:80"])
def test_hosts_that_a_reader_may_name(host: str) -> None:
    Gatekeeper((), ["https://app.example/"]).admit_reader({"host": host}, {})


@pytest.mark.parametrize("headers", [{}, {"host": ""}, {"host": "rebound.example"}, {"host": "app.example:1"}])
def test_hosts_that_a_reader_may_not_name(headers: dict[str, str]) -> None:
    with pytest.raises(BridgeError) as caught:
        Gatekeeper((), ["https://app.example"]).admit_reader(headers, {})
    assert caught.value.code == "forbidden_origin"
    Gatekeeper([KEY]).admit_reader(headers | {"x-api-key": KEY}, {})


# Origins


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "127.0.0.1:8000"},
        {"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000"},
        {"origin": "http://LOCALHOST:8000", "host": "localhost:8000"},
        {"origin": "http://[::1]:8000", "host": "[::1]:8000"},
        {"origin": "https://app.example", "host": "127.0.0.1:8000"},
        {"origin": "https://APP.example/", "host": "127.0.0.1:8000"},
    ],
)
def test_origin_that_may_connect(headers: dict[str, str]) -> None:
    Gatekeeper((), ["https://app.example/"]).admit(headers, {})


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://elsewhere.example", "host": "127.0.0.1:8000"},
        {"origin": "http://app.example", "host": "127.0.0.1:8000"},
        {"origin": "https://app.example:444", "host": "127.0.0.1:8000"},
        {"origin": "https://app.example.evil.example", "host": "127.0.0.1:8000"},
        {"origin": "http://127.0.0.1:9000", "host": "127.0.0.1:8000"},
        # A stranger's name that resolves to this machine: the browser sends it as Host, too.
        {"origin": "http://rebound.example:8000", "host": "rebound.example:8000"},
        {"origin": "null", "host": "127.0.0.1:8000"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://[", "host": "127.0.0.1:8000"},
        {"origin": "http://[::1", "host": "[::1"},
    ],
)
def test_origin_that_may_not_connect(headers: dict[str, str]) -> None:
    error = refusal(Gatekeeper((), ["https://app.example"]), headers, {})
    assert error.code == "forbidden_origin"
    assert "STT_ALLOWED_ORIGINS" in str(error)


def test_a_marker_is_echoed_without_keys_too() -> None:
    """A client with a key meets a server without one: its handshake must not fail for want of an answer."""
    assert Gatekeeper().admit({}, {}, ("bearer", "k")).subprotocol == "bearer"


# Who may change the server

ADMIN = Gatekeeper([KEY], ["https://app.example"], ["a-1", "a-2"])


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer a-1"},
        {"authorization": "Token a-2"},
        {"authorization": "a-2"},
        {"x-api-key": "a-1"},
        {"x-api-key": "a-1", "origin": "https://app.example"},
        {"x-api-key": "a-1", "origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000"},
    ],
)
def test_an_admin_s_key(headers: dict[str, str]) -> None:
    ADMIN.admit_admin(headers)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "unauthorized"),
        ({"authorization": ""}, "unauthorized"),
        ({"authorization": "Bearer"}, "unauthorized"),
        ({"x-api-key": "a-3"}, "unauthorized"),
        ({"x-api-key": "a-"}, "unauthorized"),
        ({"authorization": KEY, "x-api-key": "a-1"}, "forbidden"),  # the first that is given counts
        ({"x-api-key": KEY}, "forbidden"),
        ({"x-api-key": "a-1", "origin": "https://elsewhere.example"}, "forbidden_origin"),
        # A stranger's name that resolves to this machine: the browser sends it as Host, too.
        ({"x-api-key": "a-1", "origin": "http://r.example:8000", "host": "r.example:8000"}, "forbidden_origin"),
        ({"x-api-key": "a-1", "origin": ""}, "forbidden_origin"),
    ],
)
def test_who_may_not_change_the_server(headers: dict[str, str], code: str) -> None:
    with pytest.raises(BridgeError) as caught:
        ADMIN.admit_admin(headers)
    assert caught.value.code == code


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_without_admin_keys_nobody_may_change_the_server(keys: tuple[str, ...]) -> None:
    for headers in ({}, {"x-api-key": KEY}, {"x-api-key": ""}):
        with pytest.raises(BridgeError) as caught:
            Gatekeeper(keys).admit_admin(headers)
        assert caught.value.code == "not_found"


def test_an_admin_s_key_opens_no_stream() -> None:
    assert refusal(ADMIN, {"x-api-key": "a-1"}, {}).code == "unauthorized"


# Where the server listens


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.168.1.2", "localhost.example", "example.org", "127.0.0.1:80"]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)
