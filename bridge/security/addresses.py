"""Whose address a request comes from, where proxies stand between, and what counts as one."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

IPV6_PREFIX: Final = 64
"""Bits that one subscriber has in common: who has one address has 2**64 of them (RFC 6177)."""
HOPS: Final = 16
"""Addresses of `X-Forwarded-For` that are looked at, from its end."""


def parse_network(text: str) -> Network:
    """An address, or a network as 10.0.0.0/8.

    Raises:
        ValueError: it is neither.
    """
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise ValueError("should be addresses or networks, as 10.0.0.7 or 10.0.0.0/8") from None


class Proxies:
    """Those that are believed when they say for whom they ask."""

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._networks = tuple(map(parse_network, trusted))

    def address(self, peer: str, forwarded: Sequence[str] = ()) -> str:
        """Whose request it is: the last of `forwarded` and then `peer` that is no trusted proxy.

        `forwarded`: the values of `X-Forwarded-For`, in their order. Each proxy appends who asked it, so what stands
        before the first stranger's address, seen from the end, may be that stranger's invention.
        """
        if not self._networks or not self._trusts(_address(peer)):
            return peer
        last = peer
        for text in reversed(",".join(forwarded).split(",")[-HOPS:]):
            address = _address(text.strip())
            if address is None:
                break
            last = str(address)
            if not self._trusts(address):
                break
        return last

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


@functools.lru_cache(4_096)
def counted_as(address: str) -> str:
    """Under which name it is counted: an IPv6 address by its network, anything else by itself."""
    parsed = _address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(parsed), IPV6_PREFIX), strict=False))
    return address if parsed is None else str(parsed)


def _address(text: str) -> Address | None:
    """Also of what proxies write: `1.2.3.4:567`, `[2001:db8::1]:567`; IPv4 in IPv6 is IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None) or address
