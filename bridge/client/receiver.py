"""The receiver's half of a session: what somebody else says, without a gap or a repeat."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from bridge.client.backoff import Reconnect
from bridge.client.connection import OPEN_SECONDS
from bridge.client.errors import ConnectError
from bridge.client.lifeline import Lifeline, OnReconnect
from bridge.protocols.native import JoinedMessage, ServerMessage, StartMessage

HOLD_SECONDS: Final = 60.0
"""How long a receiver tries to come back unless told otherwise: as long as a server holds a sender's place."""

DEFAULT: Final = Reconnect()


@contextlib.asynccontextmanager
async def receive(
    url: str,
    session_id: str,
    *,
    from_seq: int | None = None,
    partials: bool = True,
    api_key: str | None = None,
    reconnect: Reconnect | None = DEFAULT,
    on_reconnect: OnReconnect | None = None,
    open_seconds: float = OPEN_SECONDS,
) -> AsyncGenerator[Receiver]:
    """Receive a session's messages, from the lasting one with this number on (None: those to come).

    In the context the server has said `joined`. When the connection breaks, another one goes on behind the last
    message; see `connect`. Safe to cancel at any point.

    Raises:
        ConnectError: there is no server, or none that answers within `open_seconds`.
        SessionError: the server refuses.
    """
    receiver = Receiver(
        url,
        session_id,
        from_seq,
        partials=partials,
        api_key=api_key,
        reconnect=reconnect,
        open_seconds=open_seconds,
        on_reconnect=on_reconnect,
    )
    await receiver._begin()  # noqa: SLF001 - its life is this context's
    try:
        yield receiver
    finally:
        await receiver._end()  # noqa: SLF001


class Receiver(Lifeline):
    """A session that somebody else speaks into. Get one from `receive`."""

    joined: JoinedMessage
    """How the session stood, at the last connection."""

    def __init__(
        self,
        url: str,
        session_id: str,
        from_seq: int | None,
        *,
        partials: bool,
        api_key: str | None,
        reconnect: Reconnect | None,
        open_seconds: float,
        on_reconnect: OnReconnect | None,
    ) -> None:
        super().__init__(
            url, api_key=api_key, reconnect=reconnect, open_seconds=open_seconds, on_reconnect=on_reconnect
        )
        self._session_id = session_id
        self._partials = partials
        self._from: int | None = from_seq  # None until it is known

    @property
    def _hold_seconds(self) -> float | None:
        return HOLD_SECONDS

    def _opening(self) -> StartMessage:
        wanted = self._from if self._task is None else self._last + 1
        return StartMessage(role="receiver", session_id=self._session_id, from_seq=wanted, partials=self._partials)

    def _welcome(self, first: ServerMessage | None) -> int:
        if not isinstance(first, JoinedMessage):
            tag = "an unknown message" if first is None else repr(type(first).__struct_config__.tag)
            raise ConnectError(f"{self._url}: the server began with {tag} instead of `joined`")
        if self._task is None and self._from is not None:
            self._last = self._from - 1
        elif self._task is None:
            self._last = first.last_seq
        if first.state == "ended" and first.last_seq <= self._last:
            # It counts as told, but `closed` is still to come: the session ended before, or between two connections.
            self._last = first.last_seq - 1
        self.joined = first
        return 0
