"""Who may connect: keys in every place, web origins, and what counts as loopback."""

from __future__ import annotations

import pytest

from bridge.errors import BridgeError
from bridge.security.auth import Gatekeeper, is_loopback

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
