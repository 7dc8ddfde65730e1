"""Who may connect: keys and tokens in every place where clients can put them, and the origins of web pages."""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from bridge.errors import BridgeError
from bridge.security.rights import EVERYTHING, Grant, Rights, parse_scoped_key

if TYPE_CHECKING:
    from bridge.security.tokens import TokenVerifier

_MARKERS: Final = ("bearer", "token")
"""Subprotocols that say "the next one is the key"; the marker is echoed, never the key."""
_QUERY: Final = ("token", "api_key")
_NOTHING: Final[Mapping[str, str]] = {}
ANYBODY: Final = "anybody"
"""Whoever connects to a server that asks for no key."""


class UnknownKeyError(Exception):
    """A token names a key to verify it with that is not known, or not yet."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A connection that may go on; `subprotocol` is to be echoed, `rights` is what it may do.

    `subject` names who it is, without giving a key away: the same for the same key or the same user of tokens.
    """

    subprotocol: str | None = None
    rights: Rights = EVERYTHING
    subject: str = ANYBODY
    credential: str | None = field(default=None, repr=False)


class Gatekeeper:
    """Checks one connection attempt. Without keys everybody on this machine may connect, but no foreign web page.

    `keys` may do everything with every session, `scoped_keys` (`RIGHTS[@SESSION]=KEY`) what they say; one key in
    several of these has all that they grant. What is no known key is read as a token, if there is a verifier.
    """

    def __init__(
        self,
        keys: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
        admin_keys: Iterable[str] = (),
        scoped_keys: Iterable[str] = (),
        tokens: TokenVerifier | None = None,
    ) -> None:
        self._keys = [(_digest(key), EVERYTHING.grants) for key in keys]
        self._keys += [(_digest(key), (grant,)) for key, grant in map(parse_scoped_key, scoped_keys)]
        self._tokens = tokens
        self._admin_digests = [_digest(key) for key in admin_keys]
        self._origins = {origin.rstrip("/").lower() for origin in allowed_origins}
        self._hosts = {origin.partition("//")[2] for origin in self._origins}

    @property
    def guarded(self) -> bool:
        """Whether anybody needs a key."""
        return bool(self._keys) or self._tokens is not None

    def admit(
        self, headers: Mapping[str, str], query: Mapping[str, str], subprotocols: Sequence[str] = ()
    ) -> Admission:
        """Check a request; header names in lower case. What it may do is for the caller to ask of the `rights`.

        Raises:
            BridgeError: `unauthorized` or `forbidden_origin`.
            UnknownKeyError: it has a token, and the key that it names is not known yet.
        """
        marker, _ = _from_subprotocols(subprotocols)
        given = offered(headers, query, subprotocols)
        if not self.guarded:
            if not self._origin_allowed(headers):
                raise BridgeError("forbidden_origin", "this web origin may not connect; see STT_ALLOWED_ORIGINS")
            return Admission(marker, credential=given)
        if given is None:
            raise BridgeError("unauthorized", "an API key is needed: send `Authorization: Bearer KEY`")
        rights, subject = self._bearer(given)
        return Admission(marker, rights, subject, given)

    def admit_reader(self, headers: Mapping[str, str], query: Mapping[str, str]) -> Admission:
        """Check an HTTP request for what somebody said; as `admit`, and no page may read it under a stranger's name.

        A browser names the origin of a WebSocket always, but not that of a page's request to where it came from. So
        without keys the Host header has to be an address, localhost, or of an allowed origin (DNS rebinding).

        Raises:
            BridgeError: `unauthorized` or `forbidden_origin`.
            UnknownKeyError: as `admit`.
        """
        admission = self.admit(headers, query)
        if not self.guarded and "origin" not in headers and not self._host_allowed(headers.get("host", "").lower()):
            raise BridgeError(
                "forbidden_origin", "without a key, ask this server by its address, or see STT_ALLOWED_ORIGINS"
            )
        return admission

    def admit_admin(self, headers: Mapping[str, str]) -> None:
        """Check a request to change the server; header names in lower case.

        It needs a key of its own kind, wherever the server listens: behind a proxy, or for another user of this
        machine, loopback is no protection. The key counts in a header only, which no link and no form of a web page
        can set and no log holds; and however the page came by it, a foreign one is refused.

        Raises:
            BridgeError: `not_found` if there are no such keys, `forbidden_origin`, `unauthorized`, or `forbidden` for
                a key that is for sessions.
            UnknownKeyError: as `admit`.
        """
        if not self._admin_digests:
            raise BridgeError("not_found", "this server has no STT_ADMIN_KEYS: nobody may change it")
        if not self._origin_allowed(headers):
            raise BridgeError("forbidden_origin", "this web origin may not change the server")
        given = offered(headers)
        if given is None:
            raise BridgeError("unauthorized", "an admin key is needed: send `Authorization: Bearer KEY`")
        if not _known(given, self._admin_digests):
            if self._is_for_sessions(given):
                raise BridgeError("forbidden", "this API key may stream, not change the server; see STT_ADMIN_KEYS")
            raise BridgeError("unauthorized", "the admin key is wrong")

    def _is_for_sessions(self, given: str) -> bool:
        try:
            self._bearer(given)
        except BridgeError:
            return False
        return True

    def _bearer(self, given: str) -> tuple[Rights, str]:
        """What a key or a token may do, and whose it is.

        Raises:
            BridgeError: `unauthorized`.
            UnknownKeyError: as `admit`.
        """
        digest = _digest(given)
        grants: tuple[Grant, ...] = ()
        for expected, granted in self._keys:  # every one of them: the time taken tells nothing
            if hmac.compare_digest(digest, expected):
                grants += granted
        if grants:
            return Rights(grants), _subject(digest)
        if self._tokens is not None and given.count(".") == 2:  # a JWT in its compact form
            bearer = self._tokens.verify(given)
            # What was signed: the signature itself can be written in more than one way.
            return bearer.rights, bearer.subject or _subject(_digest(given.rpartition(".")[0]))
        raise BridgeError("unauthorized", "the API key is wrong")

    def _origin_allowed(self, headers: Mapping[str, str]) -> bool:
        """Any web page can open a socket to this machine, so a page from elsewhere needs to be named or have a key."""
        origin = headers.get("origin")
        if origin is None:
            return True
        origin = origin.rstrip("/").lower()
        if origin in self._origins:
            return True
        try:
            page = urlsplit(origin)
            name = page.hostname or ""
        except ValueError:
            return False
        # A page that this server's own address serves. A name other than localhost proves nothing: a stranger's
        # name can be made to resolve to this machine, and then the Host header says it too (DNS rebinding).
        return page.netloc == headers.get("host", "").lower() and (name == "localhost" or _is_address(name))

    def _host_allowed(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name == "localhost" or _is_address(name) or host in self._hosts


@functools.lru_cache(256)
def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _known(key: str, digests: Iterable[bytes]) -> bool:
    digest = _digest(key)
    known = False
    for expected in digests:  # every one of them: the time taken tells nothing
        known |= hmac.compare_digest(digest, expected)
    return known


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _subject(digest: bytes) -> str:
    return f"key-{digest.hex()[:16]}"


def offered(
    headers: Mapping[str, str], query: Mapping[str, str] = _NOTHING, subprotocols: Sequence[str] = ()
) -> str | None:
    """The key or token that a request has; the first that is given counts."""
    candidates = (
        _from_header(headers.get("authorization")),
        headers.get("x-api-key"),
        _from_subprotocols(subprotocols)[1],
    )
    return next(filter(None, candidates), None) or next(filter(None, map(query.get, _QUERY)), None)


def _from_header(value: str | None) -> str | None:
    """`Bearer KEY`, `Token KEY` or the bare key."""
    if value is None:
        return None
    scheme, _, key = value.strip().partition(" ")
    return key.strip() if key and scheme.lower() in _MARKERS else value.strip()


def _from_subprotocols(offered: Sequence[str]) -> tuple[str | None, str | None]:
    """The marker to echo and the key, from `Sec-WebSocket-Protocol: bearer, KEY`."""
    for index, name in enumerate(offered[:-1]):
        if name.lower() in _MARKERS:
            return name, offered[index + 1]
    return None, None
