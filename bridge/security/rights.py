"""What a key or a token allows, and on which sessions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, Self, get_args

from bridge.errors import BridgeError

Scope = Literal["send", "receive", "admin", "files"]
"""To send a session's audio, to receive what it says, to administer it; to have files transcribed (no session's)."""

SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

# A session's name, or how names begin; what a name may hold stands in `bridge.protocols.native`.
_PATTERN: Final = re.compile(r"[A-Za-z0-9._~-]{1,128}|[A-Za-z0-9._~-]{0,127}\*")
_DENIED: Final = {"send": "send audio to", "receive": "receive", "admin": "administer", "files": "transcribe files in"}


@dataclass(frozen=True, slots=True)
class Grant:
    """These scopes on these sessions: names, or beginnings of names followed by `*`; `*` is all."""

    scopes: frozenset[Scope]
    sessions: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        for pattern in self.sessions:
            if not _PATTERN.fullmatch(pattern):
                raise ValueError(f"{pattern[:80]!r} should be the name of a session, or how names begin and `*`")

    @classmethod
    def of(cls, scopes: Iterable[str], sessions: Iterable[str] = ("*",)) -> Self:
        """The grant of scopes by their names.

        Raises:
            ValueError: a scope that there is not, or a pattern that is none.
        """
        named = list(scopes)
        known: frozenset[Scope] = frozenset(scope for scope in SCOPES if scope in named)
        if unknown := [name for name in named if name not in SCOPES]:
            raise ValueError(f"{unknown[0][:80]!r} should be one of {', '.join(SCOPES)}")
        return cls(known, tuple(sessions))

    def covers(self, session_id: str | None) -> bool:
        """Whether it is about this session. None: one that gets its name from the server."""
        return any(
            pattern == "*"
            or (
                session_id is not None
                and (session_id.startswith(pattern[:-1]) if pattern.endswith("*") else session_id == pattern)
            )
            for pattern in self.sessions
        )


@dataclass(frozen=True, slots=True)
class Rights:
    """All that one connection or request may do. It is asked when that begins; who is in stays in."""

    grants: tuple[Grant, ...] = ()

    def allows(self, scope: Scope, session_id: str | None) -> bool:
        """Whether it may. Without a name: a session that the server will name, or anything about all of them."""
        return any(scope in grant.scopes and grant.covers(session_id) for grant in self.grants)

    def require(self, scope: Scope, session_id: str | None) -> None:
        """Insist on it, before it is said whether there is such a session.

        Raises:
            BridgeError: `forbidden`.
        """
        if self.allows(scope, session_id):
            return
        if not any(scope in grant.scopes for grant in self.grants):
            raise BridgeError("forbidden", f"this key may not {_DENIED[scope]} sessions")
        if session_id is None:
            raise BridgeError("forbidden", f"this key may {_DENIED[scope]} certain sessions only; name one of them")
        raise BridgeError("forbidden", f"this key may not {_DENIED[scope]} this session")


EVERYTHING: Final = Rights((Grant(frozenset(SCOPES)),))


def parse_scoped_key(text: str) -> tuple[str, Grant]:
    """The key and what it grants, of `RIGHTS[@SESSION]=KEY`, as `send+receive@room-*=KEY`.

    Raises:
        ValueError: a sentence that does not hold the key.
    """
    what, mark, key = text.partition("=")
    if not mark or not key:
        # Nothing of it may be shown: what has no `=` may be a key.
        raise ValueError("should hold RIGHTS=KEY or RIGHTS@SESSION=KEY, as send+receive@room-*=KEY")
    scopes, at, session = what.partition("@")
    return key, Grant.of(scopes.split("+"), (session,) if at else ("*",))
