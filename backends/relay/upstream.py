"""Whether the server behind takes sessions: what it says at `/readyz`, and what it was last seen to do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

import httpx
import msgspec

from backends.base import BackendError, Fault
from backends.relay.errors import translate
from backends.relay.options import RelayOptions
from bridge.client import ClientError, SessionError, connect
from bridge.protocols.native import StartMessage

log = logging.getLogger(__name__)

MAX_BYTES: Final = 65_536
"""Of an answer of `/readyz`, which has a few hundred."""
MISSED: Final = 2
"""Questions in a row without an answer after which it counts as away; open sessions ride out less than that."""
LOAD_LOOK_SECONDS: Final = 0.5
"""Between two questions while this server starts."""


class _Readiness(msgspec.Struct):
    """What is read of `/readyz`."""

    ready: bool
    code: str | None = None
    capacity: int | None = None


class Upstream:
    """The server behind. `refusal` is why it takes no session now, `capacity` how many streams it carries."""

    def __init__(self, options: RelayOptions) -> None:
        self.refusal: str | None = None
        self.capacity: int | None = None
        self.progress: str | None = None
        self._options = options
        self._address = options.address
        self._missed = 0
        self._full = False  # it is not ready because it carries as much as it can
        self._http: httpx.AsyncClient | None = None
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Wait until it is ready, as long as that may take; from now on, ask it now and then.

        One that does not get ready in time is asked on: until it is, new sessions are refused.

        Raises:
            BackendError: it does not take this server's key.
        """
        seconds = self._options.connect_seconds
        # A proxy of the environment is no way to this machine; the client library sees it so, too.
        self._http = httpx.AsyncClient(timeout=seconds, trust_env=not self._address.loopback)
        try:
            async with asyncio.timeout(self._options.load_seconds):
                while not await self._ready():
                    self.progress = f"waits for {self._address.host}: {self.refusal}"
                    await asyncio.sleep(LOAD_LOOK_SECONDS)  # another machine: nothing here tells of it
        except TimeoutError:
            self.refusal = self.refusal or "it did not answer in time"
            log.warning("%s is not ready: %s; sessions are refused until it is", self._address.host, self.refusal)
        except BaseException:
            await self.close()
            raise
        finally:
            self.progress = None
        self._watching = asyncio.create_task(self._watch(), name="relay-health")
        self._watching.add_done_callback(_ended)

    async def close(self) -> None:
        """Ask no more."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._http is not None:
            await self._http.aclose()

    def refused(self, error: BackendError) -> None:
        """It has refused a session just now: until it is asked again, others are not sent there."""
        if error.code == "overloaded" and error.fault is not Fault.CLIENT:
            self.refusal = "it carries as much as it can"

    async def _ready(self) -> bool:
        """Whether it can be begun with: also a server that is full takes this one's key."""
        await self._look()
        if self.refusal is not None and not self._full:
            return False
        try:
            async with connect(
                self._address.stream,
                StartMessage(encoding="pcm_s16le", partials=False, store=False),
                api_key=self._options.api_key,
                reconnect=None,
                open_seconds=self._options.connect_seconds,
            ):
                return True
        except ClientError as exc:
            return self._judge(exc)

    def _judge(self, error: ClientError) -> bool:
        """Whether a server that refuses the first session takes others.

        Raises:
            BackendError: it takes none with this server's key.
        """
        meant = translate(error)
        if isinstance(error, SessionError) and error.code in ("unauthorized", "forbidden", "forbidden_origin"):
            if self._options.pass_authorization and self._options.api_key is None:
                return True  # the callers' own will do
            raise BackendError(f"{meant}: see STT_RELAY_API_KEY", code=meant.code, fault=Fault.OPERATOR) from error
        if meant.retryable and meant.code != "overloaded":
            self.refusal = str(meant)
            return False
        if meant.fault is Fault.OPERATOR:
            raise meant from error
        return True  # full, or it wants another language than its own: it lives

    # Asking now and then

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._options.health_seconds)
            before = self.refusal
            await self._look()
            if self.refusal != before:
                said = f"takes no sessions: {self.refusal}" if self.refusal else "takes sessions again"
                log.warning("%s %s", self._address.host, said)

    async def _look(self) -> None:
        """Ask once. A server without `/readyz` counts as ready while it answers at all."""
        if self._address.readyz is None or self._http is None:
            self.refusal = None
            return
        try:
            async with asyncio.timeout(self._options.connect_seconds):
                status, readiness = await self._ask(self._http, self._address.readyz)
        except (httpx.HTTPError, TimeoutError) as exc:
            self._missed += 1
            if self._missed >= MISSED or self._watching is None:
                self.refusal = f"it does not answer ({type(exc).__name__})"
            return
        self._missed = 0
        if readiness is not None:
            self.capacity = readiness.capacity
            self._full = readiness.code == "at_capacity"
            self.refusal = None if readiness.ready else f"it is not ready ({readiness.code})"
        else:
            self.refusal = f"it answers with HTTP status {status}" if status >= 500 else None

    @staticmethod
    async def _ask(http: httpx.AsyncClient, url: str) -> tuple[int, _Readiness | None]:
        body = b""
        async with http.stream("GET", url) as answer:
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > MAX_BYTES:
                    return answer.status_code, None
        with contextlib.suppress(msgspec.MsgspecError):
            return answer.status_code, msgspec.json.decode(body, type=_Readiness)
        return answer.status_code, None


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (failure := task.exception()) is not None:
        log.error("the server behind is no longer asked whether it is ready", exc_info=failure)
