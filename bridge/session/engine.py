"""A loaded backend as sessions see it: one asynchronous face for both kinds, and a count of what it carries."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Any, Final, Literal

from backends.base import (
    AsyncBackend,
    BackendError,
    BlockingBackend,
    Capabilities,
    Fault,
    RecognitionConfig,
    Result,
)
from bridge.errors import BridgeError
from bridge.session.threads import ThreadBridge

log = logging.getLogger(__name__)

PROGRESS_SECONDS: Final = 5.0
"""How often the log says how loading goes on, at most; the first time sooner, so that nobody waits in the dark."""
FIRST_PROGRESS_SECONDS: Final = 1.0

State = Literal["new", "loading", "ready", "failed", "closed"]


class Engine:
    """Wraps one backend. `threads` bounds the pool of a blocking one."""

    def __init__(self, backend: AsyncBackend | BlockingBackend, *, threads: int = 64) -> None:
        self.name = backend.name
        self.state: State = "new"
        self.streams = 0
        self.sample_rate = backend.capabilities.sample_rates[0]
        """The rate, in Hz, at which it is given audio: one of those that it lists."""
        self._backend = backend
        self._face = backend if isinstance(backend, AsyncBackend) else ThreadBridge(backend, threads)
        self._threads = threads if isinstance(backend, BlockingBackend) else None

    @property
    def capabilities(self) -> Capabilities:
        """The backend's."""
        return self._backend.capabilities

    @property
    def collectors(self) -> Sequence[Any]:
        """The backend's own metrics, as collectors of Prometheus."""
        return self._backend.collectors

    @property
    def has_models(self) -> bool:
        """Whether another model can be asked for."""
        return isinstance(self._backend, AsyncBackend) and type(self._backend).use_model is not AsyncBackend.use_model

    @property
    def model(self) -> str | None:
        """The model that serves now; None where there is none to name."""
        return self._backend.model

    @property
    def progress(self) -> str | None:
        """What loading has come to; None while nothing loads."""
        return self._backend.progress

    @property
    def capacity(self) -> int | None:
        """How many streams it carries at once, one for each channel recognized; None if it sets no limit."""
        limits = [n for n in (self.capabilities.max_streams, self._threads) if n is not None]
        return min(limits) if limits else None

    @property
    def full(self) -> bool:
        """Whether another session would be refused."""
        return self.refusal(1) is not None

    def refusal(self, streams: int, spare: float = 0.0) -> str | None:
        """Why a session of so many streams would be refused; None if it would not.

        `spare`: the share of its capacity that has to stay free; one stream is let in all the same if there is none.
        """
        capacity = self.capacity
        if capacity is not None and self.streams + streams > max(1, math.floor(capacity * (1 - spare))):
            return f"the backend {self.name} carries {self.streams} streams of {capacity}"
        return self._backend.refusal()

    async def load(self) -> None:
        """Load the backend.

        Raises:
            BackendError: it cannot be loaded; the text says what would help.
        """
        self.state = "loading"
        began = time.monotonic()
        try:
            with self._progress_logged():
                await self._face.load()
        except BaseException:
            self.state = "failed"
            raise
        self.state = "ready"
        log.info("backend %s loaded in %.2f s", self.name, time.monotonic() - began)

    async def use_model(self, name: str) -> None:
        """Have another model serve; see `AsyncBackend.use_model`. Not to be called again before it has ended.

        Raises:
            BackendError: the model before serves on.
        """
        if not isinstance(self._backend, AsyncBackend):
            raise BackendError(f"the backend {self.name} has no other models", code="not_supported", fault=Fault.CLIENT)
        with self._progress_logged():
            try:
                await self._backend.use_model(name)
            except BackendError:
                raise
            except Exception as exc:
                raise BackendError(f"{type(exc).__name__} left the backend") from exc

    @contextlib.contextmanager
    def _progress_logged(self) -> Iterator[None]:
        """While the context lasts, log how loading goes on, where there is news."""
        loop = asyncio.get_running_loop()
        told: str | None = None
        timer: asyncio.TimerHandle

        def tell() -> None:
            nonlocal told, timer
            timer = loop.call_later(PROGRESS_SECONDS, tell)
            if (progress := self.progress) is not None and progress != told:
                told = progress
                log.info("backend %s: %s", self.name, progress)

        timer = loop.call_later(FIRST_PROGRESS_SECONDS, tell)
        try:
            yield
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Release the backend. To be called when no session is open."""
        self.state = "closed"
        await self._face.close()

    @contextlib.contextmanager
    def lease(self, streams: int = 1) -> Iterator[None]:
        """Room for one session of so many streams, for as long as the context lasts.

        Raises:
            BridgeError: `at_capacity` or `not_ready`.
        """
        self.take(streams)
        try:
            yield
        finally:
            self.give_back(streams)

    def take(self, streams: int) -> None:
        """The same without a context: give back as many."""
        if self.state != "ready":
            raise BridgeError("not_ready")
        if reason := self.refusal(streams):
            raise BridgeError("at_capacity", reason)
        self.streams += streams

    def give_back(self, streams: int) -> None:
        """So many streams fewer."""
        self.streams -= streams

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncGenerator[Result, None]:
        """One backend stream. Whatever an engine raises arrives as a `BackendError`."""
        stream = self._face.recognize(config, audio)
        try:
            async for result in stream:
                yield result
        except BackendError:
            raise
        except Exception as exc:
            # The contract forbids it, but a plug-in's bug must cost a retry, not the session.
            raise BackendError(f"{type(exc).__name__} left the backend", code="failed", retryable=True) from exc
        finally:
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()
