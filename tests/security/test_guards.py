"""Guards: whose requests are counted, what the answers say of it, and who guesses keys."""

from __future__ import annotations

import pytest

from bridge.errors import BridgeError
from bridge.security import guards as module
from bridge.security.guards import By, Guards, Header
from bridge.security.rates import Counts, MemoryCounts, parse_rates


def limited(**rates: str) -> tuple[Guards, list[By]]:
    refused: list[By] = []
    parsed = {name: parse_rates(text) for name, text in rates.items()}
    return Guards(**parsed, refused=refused.append), refused  # type: ignore[arg-type]


def named(told: list[Header], name: str) -> list[str]:
    return [value.decode() for key, value in told if key.decode() == name]


async def test_without_rates_nothing_is_counted_and_nothing_said() -> None:
    own = MemoryCounts()
    guards, told = Guards(Counts(own=own)), list[Header]()
    for _ in range(1_000):
        await guards.arrive("203.0.113.5", told)
        await guards.hit("key-1", told)
    assert (len(own), told) == (0, [])


async def test_each_key_and_each_address_has_its_own() -> None:
    guards, refused = limited(rates="2/minute", address_rates="3/minute")
    for _ in range(2):
        await guards.hit("key-1", [])
    with pytest.raises(BridgeError, match="of this key: 2 in 60 s") as caught:
        await guards.hit("key-1", [])
    assert caught.value.code == "rate_limited"
    assert caught.value.retry_after is not None
    assert 1 <= caught.value.retry_after <= 120
    await guards.hit("key-2", [])
    for number in range(3):
        await guards.arrive(f"2001:db8::{number}", [])  # one subscriber's
    with pytest.raises(BridgeError, match="of this address"):
        await guards.arrive("2001:db8::ffff", [])
    await guards.arrive("2001:db8:1::1", [])
    assert refused == ["key", "address"]


async def test_answers_say_what_is_left() -> None:
    guards, _ = limited(rates="2/minute", address_rates="30/second; 3/minute")
    told: list[Header] = []
    await guards.arrive("203.0.113.5", told)
    await guards.hit("key-1", told)
    assert named(told, "ratelimit-policy") == ['"address-1";q=30;w=1', '"address-60";q=3;w=60', '"key";q=2;w=60']
    assert [value.partition(";t=")[0] for value in named(told, "ratelimit")] == [
        '"address-1";r=29',
        '"address-60";r=2',
        '"key";r=1',
    ]
    # The older fields have room for one rate: that of which least is left.
    assert (named(told, "ratelimit-limit"), named(told, "ratelimit-remaining")) == (["2"], ["1"])
    assert 0 < int(*named(told, "ratelimit-reset")) <= 60


async def test_a_refusal_says_so_too() -> None:
    guards, _ = limited(rates="1/minute")
    await guards.hit("key-1", [])
    told: list[Header] = []
    with pytest.raises(BridgeError) as caught:
        await guards.hit("key-1", told)
    assert named(told, "ratelimit-remaining") == ["0"]
    assert named(told, "ratelimit-reset") == [str(caught.value.retry_after)]


async def test_of_several_rates_the_longest_wait_counts() -> None:
    guards, _ = limited(rates="1/second; 1/hour")
    await guards.hit("key-1", [])
    with pytest.raises(BridgeError, match="1 in 3600 s") as caught:
        await guards.hit("key-1", [])
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 2


# Who guesses keys


def locked(guards: Guards, address: str, credential: str) -> bool:
    try:
        guards.check(address, credential)
    except BridgeError as exc:
        return exc.code == "rate_limited"
    return False


def test_an_address_with_many_wrong_keys_is_not_looked_at() -> None:
    guards, refused = limited(failure_rates="3/minute")
    for _ in range(3):
        assert not locked(guards, "203.0.113.5", "guess")
        guards.failed("203.0.113.5")
    assert locked(guards, "203.0.113.5", "guess")
    assert locked(guards, "203.0.113.5", "the right one, as it happens")
    assert not locked(guards, "203.0.113.6", "guess")
    assert refused == ["failures", "failures"]


def test_who_was_in_from_there_comes_in_again() -> None:
    guards, _ = limited(failure_rates="1/minute")
    guards.passed("203.0.113.5", "good")
    guards.failed("203.0.113.5")
    guards.failed("203.0.113.6")
    assert not locked(guards, "203.0.113.5", "good")
    assert locked(guards, "203.0.113.5", "bad")
    assert locked(guards, "203.0.113.6", "good")  # from elsewhere it may be a guess


def test_who_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KNOWN", 10)
    guards, _ = limited(failure_rates="1/minute")
    for number in range(100):
        guards.passed("203.0.113.5", f"key-{number}")
    assert len(guards._known) == 10
    guards.failed("203.0.113.5")
    assert not locked(guards, "203.0.113.5", "key-99")
    assert locked(guards, "203.0.113.5", "key-0")


def test_it_can_be_turned_off() -> None:
    guards = Guards()
    for _ in range(100):
        guards.failed("203.0.113.5")
    assert not locked(guards, "203.0.113.5", "guess")
