"""Where everybody comes in: who is asked what, in which order, and what that costs those who guess."""

from __future__ import annotations

import time

import jwt
import pytest

from bridge.errors import BridgeError
from bridge.security.addresses import Proxies
from bridge.security.auth import Gatekeeper
from bridge.security.entrance import HEADERS, Arrival, Entrance
from bridge.security.guards import Guards, Header
from bridge.security.rates import parse_rates
from bridge.security.tokens import TokenVerifier

SECRET = "0123456789abcdef0123456789abcdef"


def arrival(key: str | None = None, peer: str = "203.0.113.5", forwarded: tuple[str, ...] = ()) -> Arrival:
    return Arrival(peer, {} if key is None else {"x-api-key": key}, {}, forwarded=forwarded)


async def outcome(entrance: Entrance, what: Arrival) -> str:
    try:
        await entrance.admit(what)
    except BridgeError as exc:
        return exc.code
    return "in"


def made(gatekeeper: Gatekeeper | None = None, trusted: tuple[str, ...] = (), **rates: str) -> Entrance:
    guards = Guards(**{name: parse_rates(text) for name, text in rates.items()})  # type: ignore[arg-type]
    return Entrance(gatekeeper or Gatekeeper(["sesame"], admin_keys=["king"]), guards, Proxies(trusted))


def test_a_request_as_asgi_describes_it() -> None:
    told: list[Header] = []
    scope = {
        "headers": [
            (b"host", b"here"),
            (b"X-Forwarded-For", b"1.2.3.4"),
            (b"x-forwarded-for", b"5.6.7.8, 10.0.0.1"),
            (b"x-api-key", b"k\xe9y"),
        ],
        "query_string": b"token=a+b&empty=&token=c",
        "client": ("10.0.0.1", 4711),
        "subprotocols": ["bearer", "key"],
        HEADERS: told,
    }
    seen = Arrival.of(scope)
    assert (seen.peer, seen.headers["x-api-key"], seen.subprotocols) == ("10.0.0.1", "k\xe9y", ["bearer", "key"])
    assert seen.query == {"token": "c", "empty": ""}
    assert seen.forwarded == ["1.2.3.4", "5.6.7.8, 10.0.0.1"]
    assert seen.told is told
    bare = Arrival.of({"headers": [], "query_string": b"", "client": None})  # a Unix socket
    assert (bare.peer, bare.query, bare.forwarded) == ("", {}, [])


async def test_addresses_are_counted_before_keys_are_looked_at() -> None:
    entrance = made(rates="1/minute", address_rates="3/minute")
    assert await outcome(entrance, arrival("wrong")) == "unauthorized"
    assert await outcome(entrance, arrival("sesame")) == "in"
    refused = arrival("sesame")
    assert await outcome(entrance, refused) == "rate_limited"  # the key's
    assert (b"ratelimit-remaining", b"0") in refused.told
    assert await outcome(entrance, arrival("wrong")) == "rate_limited"  # the address's
    assert await outcome(entrance, arrival("sesame", peer="203.0.113.6")) == "rate_limited"
    assert await outcome(entrance, arrival("wrong", peer="203.0.113.6")) == "unauthorized"  # of no key, so not counted


async def test_users_of_tokens_are_counted_by_who_they_are() -> None:
    entrance = made(Gatekeeper(tokens=TokenVerifier.from_secret(SECRET)), rates="2/minute")

    def token(sub: str, number: int) -> Arrival:
        return arrival(jwt.encode({"exp": time.time() + 60 + number, "sub": sub, "scope": "send"}, SECRET))

    assert [await outcome(entrance, token("anna", number)) for number in range(3)] == ["in", "in", "rate_limited"]
    assert await outcome(entrance, token("ben", 0)) == "in"


async def test_wrong_keys_lock_an_address_but_not_those_who_were_in() -> None:
    entrance = made(Gatekeeper(["sesame", "other"]), failure_rates="3/minute")
    assert await outcome(entrance, arrival("sesame")) == "in"
    assert [await outcome(entrance, arrival(f"guess-{n}")) for n in range(4)] == ["unauthorized"] * 3 + ["rate_limited"]
    assert await outcome(entrance, arrival("other")) == "rate_limited"  # a right guess is not found out
    assert await outcome(entrance, arrival("sesame")) == "in"
    assert await outcome(entrance, arrival("other", peer="203.0.113.6")) == "in"


async def test_no_key_at_all_is_no_guess() -> None:
    entrance = made(failure_rates="1/minute")
    for _ in range(5):
        assert await outcome(entrance, arrival()) == "unauthorized"
    assert await outcome(entrance, arrival("sesame")) == "in"


async def test_without_keys_nothing_is_a_guess() -> None:
    entrance = made(Gatekeeper(), failure_rates="1/minute", rates="3/minute")
    assert [await outcome(entrance, arrival(f"whatever-{n}")) for n in range(4)] == ["in"] * 3 + ["rate_limited"]


async def test_guesses_of_an_admin_s_key_count_as_well() -> None:
    entrance = made(failure_rates="2/minute")

    async def administer(key: str | None) -> str:
        try:
            await entrance.admit_admin(arrival(key))
        except BridgeError as exc:
            return exc.code
        return "in"

    assert [await administer(key) for key in (None, None, None)] == ["unauthorized"] * 3
    assert [await administer(key) for key in ("a", "sesame", "b", "c")] == [
        "unauthorized",
        "forbidden",  # known, so no guess
        "unauthorized",
        "rate_limited",
    ]
    assert await administer("king") == "rate_limited"


async def test_behind_a_proxy_each_client_has_an_address_of_its_own() -> None:
    entrance = made(trusted=("10.0.0.0/8",), failure_rates="1/minute")
    bad, good = (
        arrival(key, "10.0.0.1", (client,)) for key, client in (("bad", "203.0.113.5"), ("sesame", "192.0.2.1"))
    )
    assert [await outcome(entrance, bad), await outcome(entrance, bad)] == ["unauthorized", "rate_limited"]
    assert await outcome(entrance, good) == "in"
    untrusting = made(failure_rates="1/minute")
    assert [await outcome(untrusting, bad), await outcome(untrusting, good)] == ["unauthorized", "rate_limited"]


@pytest.mark.parametrize("key", [None, "k"])
async def test_what_was_given_is_kept_for_a_backend_behind_another_server(key: str | None) -> None:
    assert (await made(Gatekeeper()).admit(arrival(key))).credential == key
