"""Where webhooks may go: not to this server's own network, unless its operator names the host.

Whoever may hand in a job could otherwise have the server ask what only the server can reach (SSRF). A name is resolved
once, every address of it is checked, and the connection goes to one that was.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from bridge.errors import BridgeError

MAX_URL_CHARS: Final = 2_000
_PORTS: Final = {"http": 80, "https": 443}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ForbiddenHostError(Exception):
    """The address is nobody's outside of this network, or there is none."""


@dataclass(frozen=True, slots=True)
class WebhookHosts:
    """Which hosts may be told. `named` may have any address; `loopback`: so may this machine itself."""

    named: Collection[str] = ()
    loopback: bool = False

    def check(self, url: str) -> str:
        """The same URL, if it may be one; its host is resolved only when it is used.

        Raises:
            BridgeError: `bad_request`. The sentence does not repeat the URL, which may hold a secret.
        """
        parts = _parts(url)
        host = parts.hostname or ""
        if not self._is_named(host) and (address := _address(host)) is not None and not self._allowed(address):
            raise BridgeError(
                "bad_request", "webhook: this address is not on the public network; see STT_WEBHOOK_HOSTS"
            )
        return url

    async def resolve(self, url: str, *, loopback: bool = False) -> str:
        """An address to which the URL's host may be connected now. `loopback`: for this URL, it may be this machine.

        Raises:
            ForbiddenHostError: there is none.
            OSError: the name cannot be resolved.
        """
        parts = _parts(url)
        host = parts.hostname or ""
        port = parts.port or _PORTS[parts.scheme]
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        if not self._is_named(host):
            for address in addresses:
                # One of many is enough: which one is used would be chance.
                if not self._allowed(address, loopback=loopback):
                    raise ForbiddenHostError("the host has an address that is not on the public network")
        if not addresses:
            raise ForbiddenHostError("the host has no address")
        return str(addresses[0])

    def _is_named(self, host: str) -> bool:
        return host.lower() in {name.lower() for name in self.named}

    def _allowed(self, address: Address, *, loopback: bool = False) -> bool:
        inner = _inner(address)
        if inner.is_loopback:
            return self.loopback or loopback
        if any(inner in network for network in _ALSO_INNER):
            return False
        return inner.is_global and not inner.is_multicast and not inner.is_reserved


def _parts(url: str) -> SplitResult:
    """The parts of a URL that may be a webhook's."""
    if len(url) > MAX_URL_CHARS or not url.isascii() or not url.isprintable() or " " in url:
        raise BridgeError("bad_request", f"webhook: should be a URL of at most {MAX_URL_CHARS} ASCII characters")
    try:
        parts = urlsplit(url)
        _ = parts.port
        (parts.hostname or "").encode("idna")  # as it is resolved: an empty part, or a very long one, is no name
    except ValueError:
        raise BridgeError("bad_request", "webhook: should be a URL") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise BridgeError("bad_request", "webhook: should begin with https:// (or http://) and name a host")
    if parts.username is not None or parts.password is not None:
        raise BridgeError("bad_request", "webhook: should hold no user name")
    return parts


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


_ALSO_INNER: Final = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv6Network("fec0::/10"))
"""Which Python takes for public, in part: a cloud's metadata may lie in the first (192.0.0.192)."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def _inner(address: Address) -> Address:
    """The IPv4 address that some IPv6 addresses stand for."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address
