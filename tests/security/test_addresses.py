"""Whose address it is behind proxies, and what counts as one."""

from __future__ import annotations

import pytest

from bridge.security.addresses import HOPS, Proxies, counted_as

TRUSTED = ("10.0.0.0/8", "192.0.2.7", "fd00::/8")


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("10.0.0.1", ["203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["203.0.113.5, 10.0.0.2"], "203.0.113.5"),
        ("10.0.0.1", ["203.0.113.5", "192.0.2.7"], "203.0.113.5"),  # two lines are one list
        ("10.0.0.1", ["1.2.3.4, 203.0.113.5"], "203.0.113.5"),  # what a client says of itself stands first
        ("10.0.0.1", ["1.2.3.4", "203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["203.0.113.5, rubbish"], "10.0.0.1"),
        ("10.0.0.1", ["rubbish, 203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),  # nobody but proxies: the farthest
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.5:4711"], "203.0.113.5"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["203.0.113.5"], "203.0.113.5"),  # a socket for both kinds
        ("fd00::1", ["203.0.113.5"], "203.0.113.5"),
        ("203.0.113.9", ["203.0.113.5"], "203.0.113.9"),  # no proxy of ours
        ("", ["203.0.113.5"], ""),
    ],
)
def test_behind_proxies(peer: str, forwarded: list[str], address: str) -> None:
    assert Proxies(TRUSTED).address(peer, forwarded) == address


def test_nobody_is_believed_unless_told() -> None:
    assert Proxies().address("127.0.0.1", ["203.0.113.5"]) == "127.0.0.1"


def test_a_long_list_is_read_from_its_end() -> None:
    assert Proxies(TRUSTED).address("10.0.0.1", [",".join(["1.2.3.4"] + ["10.0.0.2"] * HOPS)]) == "10.0.0.2"


@pytest.mark.parametrize("text", ["", "example", "10.0.0.1/8", "10.0.0.0/40"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match="should be addresses or networks"):
        Proxies([text])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("::ffff:203.0.113.5", "203.0.113.5", True),
        ("203.0.113.5", "203.0.113.6", False),
        ("", "unix", False),
    ],
)
def test_what_counts_as_one(one: str, other: str, same: bool) -> None:
    assert (counted_as(one) == counted_as(other)) is same
