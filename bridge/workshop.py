"""A process that works on jobs and takes no connections: the composition root of `stt-bridge worker`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bridge.api.door import Door
from bridge.api.models import Models
from bridge.app import check_exposure, make_blobs, make_manager, make_media, make_tracing
from bridge.audio.media import MediaDecoder
from bridge.guarding import Protection, make_protection
from bridge.jobs.service import JobService
from bridge.observe.http import HttpObserver
from bridge.observe.metrics import Metrics
from bridge.observe.trace import Tracing
from bridge.routes import make_operations
from bridge.session.batch import Batch
from bridge.session.keeper import Keeper
from bridge.session.manager import SessionManager
from bridge.settings import Settings, environment
from bridge.transports.server import Server, make_server
from bridge.uploads.blobs import BlobStore
from bridge.working import make_jobs

log = logging.getLogger(__name__)

DRAIN_SECONDS: Final = 4.0
MESSAGE_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Workshop:
    """One worker's parts, wired. `work` is its whole life."""

    manager: SessionManager
    media: MediaDecoder
    blobs: BlobStore
    jobs: JobService
    tracing: Tracing
    protection: Protection
    server: Server
    stopping: asyncio.Event

    async def work(self, listener: socket.socket | None = None, loaded: asyncio.Event | None = None) -> None:
        """Load the engine and work on jobs until SIGTERM or SIGINT; what is not done then is put back.

        `listener`: where `/healthz`, `/readyz` and `/metrics` are served. `loaded` is set when work begins.

        Raises:
            BackendError: the engine cannot be loaded.
            StoreUnavailableError, BridgeError: jobs, or their files, cannot be had.
        """
        async with contextlib.AsyncExitStack() as opened:  # what comes first is closed last
            opened.push_async_callback(self.tracing.close)
            opened.push_async_callback(self.protection.close)
            opened.push_async_callback(self.manager.close)
            await self.media.open()
            opened.push_async_callback(self.media.close)
            await self.blobs.open()
            opened.push_async_callback(self.blobs.close)
            await self.jobs.open()
            opened.push_async_callback(self.jobs.close)
            if listener is None:
                await self._work(loaded)
            else:
                serving = asyncio.create_task(self._serve(listener), name="server")
                try:
                    await self._work(loaded)
                finally:
                    await serving

    async def _work(self, loaded: asyncio.Event | None) -> None:
        with _signals(self.stop):
            loading = asyncio.create_task(self.manager.load(), name="load")
            stopping = asyncio.create_task(self.stopping.wait(), name="stopping")
            try:
                await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if loading.done():
                    loading.result()
                    self.jobs.start()
                    if loaded is not None:
                        loaded.set()
                await stopping
            finally:
                loading.cancel()
                stopping.cancel()
                await asyncio.gather(loading, stopping, return_exceptions=True)
                await self._drain()
                self.server.should_exit = True

    async def _serve(self, listener: socket.socket) -> None:
        try:
            await self.server.serve([listener])
        finally:
            self.stop()

    def stop(self) -> None:
        """Begin to stop."""
        if not self.stopping.is_set():
            log.info("stopping: jobs are put back")
            self.stopping.set()

    async def _drain(self) -> None:
        await self.jobs.stop()
        await self.manager.drain(DRAIN_SECONDS)


def make_workshop(settings: Settings, env: dict[str, str] | None = None, *, serves: bool = False) -> Workshop:
    """Wire what the settings ask for. `serves`: it will have a listener.

    Raises:
        SettingsError: a setting that is wrong, or unsafe.
        BackendError: `not_installed`.
    """
    if serves:
        check_exposure(settings)
    environ = environment() if env is None else env
    metrics = Metrics()
    tracing = make_tracing(settings, environ)
    protection = make_protection(settings, metrics)
    manager = make_manager(settings, environ, metrics, quotas=protection.quotas)
    manager.kept_for_live = 0.0  # nobody speaks here
    metrics.show(manager.engines.collectors)
    media = make_media(settings)
    blobs = make_blobs(settings, environ)
    jobs = make_jobs(settings, blobs, Batch(manager, media), metrics, tracing, Models(manager.engines).backend, environ)
    keeper = Keeper(manager, None, node=secrets.token_hex(8), resume_seconds=0, wait_seconds=settings.wait_seconds)
    stopping = asyncio.Event()

    async def drain() -> None:
        stopping.set()

    app = make_operations(keeper, metrics, Door(protection.entrance))
    server = make_server(
        HttpObserver(app, metrics.http, tracing),
        drain=drain,
        max_message_bytes=MESSAGE_BYTES,
        ping_seconds=settings.ping_seconds,
        ping_timeout_seconds=settings.ping_timeout_seconds,
        shutdown_seconds=1,
    )
    return Workshop(manager, media, blobs, jobs, tracing, protection, server, stopping)


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT end the work in order, while the context lasts."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
