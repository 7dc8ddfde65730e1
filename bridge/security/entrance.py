"""Where everybody comes in, by HTTP and by WebSocket: first whether they may ask at all, then who they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import parse_qsl

from bridge.errors import BridgeError
from bridge.security.addresses import Proxies
from bridge.security.auth import Admission, Gatekeeper, UnknownKeyError, offered
from bridge.security.guards import Guards, Header

if TYPE_CHECKING:
    from bridge.security.jwks import KeySet  # imports PyJWT, which takes 20 MB where `cryptography` is installed

HEADERS: Final = "stt_bridge.headers"
"""Key in an ASGI scope of the headers that its answer is to have besides its own, whatever it is."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request or connection that nobody has looked at yet. `peer`: the address that it came from, "" if unknown."""

    peer: str
    headers: Mapping[str, str]
    """Names in lower case; of several with one name, the last."""
    query: Mapping[str, str]
    subprotocols: Sequence[str] = ()
    forwarded: Sequence[str] = ()
    """The values of `X-Forwarded-For`."""
    told: list[Header] = field(default_factory=list)
    """Headers for the answer, filled in by who looks."""

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> Self:
        """As ASGI describes it."""
        pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        query = scope["query_string"]
        return cls(
            peer=scope["client"][0] if scope.get("client") else "",
            headers=dict(pairs),
            query=_Query(query.decode("latin-1")) if query else _NO_QUERY,
            subprotocols=scope.get("subprotocols", ()),
            forwarded=[value for name, value in pairs if name == "x-forwarded-for"],
            told=scope.get(HEADERS, []),
        )


class _Query(Mapping[str, str]):
    """A query string, taken apart when somebody asks for a name in it: most requests have their key in a header."""

    __slots__ = ("_given", "_parsed")

    def __init__(self, given: str) -> None:
        self._given = given
        self._parsed: dict[str, str] | None = None

    def _names(self) -> dict[str, str]:
        if self._parsed is None:
            self._parsed = dict(parse_qsl(self._given, keep_blank_values=True))
        return self._parsed

    def __getitem__(self, name: str) -> str:
        if self._parsed is None and name not in self._given and "%" not in self._given:
            raise KeyError(name)  # as it would be
        return self._names()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())


_NO_QUERY: Final[Mapping[str, str]] = {}


class Entrance:
    """One server's. `keys`: those that tokens are verified with, where they are read from elsewhere."""

    def __init__(
        self,
        gatekeeper: Gatekeeper,
        guards: Guards | None = None,
        proxies: Proxies | None = None,
        keys: KeySet | None = None,
    ) -> None:
        self._gatekeeper = gatekeeper
        self._guards = guards or Guards()
        self._proxies = proxies or Proxies()
        self._keys = keys

    def address(self, arrival: Arrival) -> str:
        """Whose address it is."""
        return self._proxies.address(arrival.peer, arrival.forwarded)

    async def admit(self, arrival: Arrival) -> Admission:
        """Let somebody in; see `Gatekeeper.admit`.

        Raises:
            BridgeError: `unauthorized`, `forbidden_origin`, `rate_limited`; `not_ready` while no token can be verified.
        """
        return await self._counted(
            arrival, lambda: self._gatekeeper.admit(arrival.headers, arrival.query, arrival.subprotocols)
        )

    async def admit_reader(self, arrival: Arrival) -> Admission:
        """Let an HTTP request in; see `Gatekeeper.admit_reader`. Raises as `admit`."""
        return await self._counted(arrival, lambda: self._gatekeeper.admit_reader(arrival.headers, arrival.query))

    async def admit_admin(self, arrival: Arrival) -> None:
        """Let somebody change the server; see `Gatekeeper.admit_admin`, and `admit`."""
        await self._checked(arrival, offered(arrival.headers), lambda: self._gatekeeper.admit_admin(arrival.headers))

    async def _counted(self, arrival: Arrival, check: Callable[[], Admission]) -> Admission:
        credential = offered(arrival.headers, arrival.query, arrival.subprotocols) if self._gatekeeper.guarded else None
        admission = await self._checked(arrival, credential, check)
        await self._guards.hit(admission.subject, arrival.told)
        return admission

    async def _checked(self, arrival: Arrival, credential: str | None, check: Callable[[], T]) -> T:
        address = self.address(arrival)
        await self._guards.arrive(address, arrival.told)
        if credential is not None:
            self._guards.check(address, credential)
        try:
            result = await self._with_keys(check)
        except BridgeError as exc:
            if exc.code == "unauthorized" and credential is not None:
                self._guards.failed(address)
            raise
        if credential is not None:
            self._guards.passed(address, credential)
        return result

    async def _with_keys(self, check: Callable[[], T]) -> T:
        """Check; once more after the keys were read again, where one is missing."""
        if self._keys is None:
            return check()
        self._keys.freshen()
        try:
            return check()
        except UnknownKeyError:
            await self._keys.refresh()
        try:
            return check()
        except UnknownKeyError:
            raise BridgeError("unauthorized", "the token was signed with a key that is not known") from None
