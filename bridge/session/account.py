"""On whose behalf a session runs, and what that costs them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class Account:
    """Who it is, as `bridge.security` names them, and the key or token they came with, for a backend to pass on."""

    subject: str = "anybody"
    credential: str | None = field(default=None, repr=False)
    """Never logged, never kept."""


NOBODY: Final = Account()
"""Whoever uses a server that asks for no key."""


class Quotas(Protocol):
    """What each may use; see `bridge.security.quotas`."""

    async def check(self, subject: str, *, place: bool = False) -> None:
        """Whether they have some left; `place`: for one more session.

        Raises:
            BridgeError: `quota_exceeded`.
        """

    def session(self, subject: str, *, checked: bool = True) -> AbstractAsyncContextManager[Callable[[float], None]]:
        """One more session of theirs; what it gives is told the seconds of audio that came.

        Raises:
            BridgeError: `quota_exceeded`. Not where it is not `checked`: then it is only counted.
        """
