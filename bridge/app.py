"""The composition root: the one place that knows which engines, stores and routes exist, and wires them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

import bridge
from backends import registry
from backends.base import BackendError
from bridge.api.bodies import Bodies
from bridge.api.door import Door
from bridge.api.metrics import exposition
from bridge.api.models import Models
from bridge.audio.denoise import DenoiseError, make_denoiser
from bridge.audio.media import MediaDecoder
from bridge.audio.vad.detector import VoiceDetectionError, make_voice_detection
from bridge.audio.vad.segmenter import Endpointing
from bridge.errors import BridgeError
from bridge.guarding import Protection, make_protection
from bridge.jobs.intake import JobIntake
from bridge.jobs.service import JobService
from bridge.observe.http import App, HttpObserver
from bridge.observe.metrics import Metrics
from bridge.observe.recording import MissingPackageError as NoRecorderError
from bridge.observe.recording import open_tracing
from bridge.observe.trace import Tracing
from bridge.processes.figures import Figures
from bridge.processes.member import Member
from bridge.protocols.asr_room import AsrRoomCodec
from bridge.protocols.native import NativeCodec
from bridge.routes import LastWord, Parts, make_http
from bridge.security.auth import is_loopback
from bridge.security.certificates import unusable
from bridge.security.headers import WebHeaders
from bridge.security.quotas import Quotas
from bridge.session.archive import Archive
from bridge.session.batch import Batch
from bridge.session.breaker import BreakerRules
from bridge.session.engine import Engine
from bridge.session.eventlog.urls import MissingPackageError, open_log
from bridge.session.failover import EnginePool
from bridge.session.keeper import Keeper
from bridge.session.limits import SessionLimits
from bridge.session.manager import SessionManager
from bridge.session.reception import Reception
from bridge.session.voice import VoicePolicy
from bridge.settings import (
    Settings,
    SettingsError,
    environment,
    option_prefix,
    option_variables,
    read_options,
    unknown_variables,
)
from bridge.transports.http_protocol import Crowd
from bridge.transports.server import Server, listen, make_server
from bridge.transports.websocket import Codec, ConnectionLimits, Message, Receive, Send, StreamEndpoint, refuse
from bridge.uploads.blobs import BlobStore
from bridge.uploads.desk import UploadDesk
from bridge.uploads.urls import MissingPackageError as NoStoreError
from bridge.uploads.urls import open_blobs
from bridge.working import make_jobs

log = logging.getLogger(__name__)

CROWD: Final = 4
"""How many times more requests with a body are looked at than may be read at once: some of these give way to others."""


def make_engines(settings: Settings, env: dict[str, str] | None = None) -> EnginePool:
    """The engines that the settings name, not loaded yet. `env`: where their own settings are read.

    Raises:
        SettingsError: an unknown backend, a bad setting of one's own, or backends that do not go together.
        BackendError: `not_installed`.
    """
    rules = BreakerRules(
        settings.breaker_share,
        settings.breaker_window_seconds,
        settings.breaker_streams,
        settings.breaker_failures,
        settings.breaker_seconds,
    )
    engines = [make_engine(name, settings, env) for name in settings.backends]
    try:
        return EnginePool(*engines, rules=rules)
    except ValueError as exc:
        raise SettingsError(f"STT_BACKEND: {settings.backend!r} is not allowed: {exc}") from None


def make_engine(name: str, settings: Settings, env: dict[str, str] | None = None) -> Engine:
    """One of them.

    Raises:
        SettingsError, BackendError: as `make_engines`.
    """
    try:
        backend = registry.load_class(name)
    except BackendError as exc:
        if exc.code == "unknown_backend":
            raise SettingsError(f"STT_BACKEND: {exc}") from None
        raise
    options = read_options(backend.settings_name(), backend.Options, environment() if env is None else env)
    return Engine(backend(options), threads=settings.threads)


def session_limits(settings: Settings) -> SessionLimits:
    """The part of the settings that bounds one session."""
    return SessionLimits(
        session_seconds=settings.max_session_seconds,
        idle_seconds=settings.idle_seconds,
        queue_seconds=settings.queue_seconds,
        replay_seconds=settings.replay_seconds,
        ack_seconds=settings.ack_seconds,
        stall_seconds=settings.stall_seconds,
        stop_seconds=settings.stop_seconds,
        reopen_seconds=settings.reopen_seconds,
        outbox_events=settings.outbox_events,
        message_bytes=settings.max_message_bytes,
    )


def voice_policy(settings: Settings, engines: EnginePool) -> VoicePolicy:
    """What the settings say about voice activity; its detection is not loaded yet.

    Raises:
        SettingsError: the detector's packages are missing, or there is nothing to open the gate.
    """
    if settings.vad == "off":
        if settings.gate == "on":
            raise SettingsError("STT_GATE: 'on' is not allowed: it should be off where STT_VAD is off")
        return VoicePolicy()
    gated = settings.gate == "on" or (
        settings.gate == "auto" and any(engine.capabilities.metered for engine in engines.engines)
    )
    try:
        detection = make_voice_detection(settings.vad)
    except VoiceDetectionError as exc:
        raise SettingsError(f"STT_VAD: {exc}") from None
    return VoicePolicy(
        detection,
        Endpointing(settings.speech_threshold, settings.endpoint_silence_seconds, settings.speech_padding_seconds),
        settings.gate_seconds if gated else None,
    )


def make_manager(
    settings: Settings,
    env: dict[str, str] | None,
    metrics: Metrics,
    limits: SessionLimits | None = None,
    quotas: Quotas | None = None,
) -> SessionManager:
    """The sessions on the engines that the settings name; not loaded yet.

    Raises:
        SettingsError, BackendError: as `make_engines` and `voice_policy`.
    """
    engines = make_engines(settings, env)
    if settings.denoise:
        try:
            make_denoiser(engines.sample_rate).close()
        except DenoiseError as exc:
            raise SettingsError(f"STT_DENOISE: {exc}") from None
    return SessionManager(
        engines,
        limits or session_limits(settings),
        metrics,
        max_sessions=settings.max_sessions,
        language=settings.language,
        voice=voice_policy(settings, engines),
        denoise=settings.denoise,
        quotas=quotas,
    )


@contextlib.asynccontextmanager
async def open_manager(
    settings: Settings, env: dict[str, str] | None = None, limits: SessionLimits | None = None
) -> AsyncIterator[SessionManager]:
    """Sessions without a server, loaded; closed when the context ends."""
    manager = make_manager(settings, env, Metrics(), limits)
    try:
        await manager.load()
        yield manager
    finally:
        await manager.close()


@dataclass(frozen=True, slots=True)
class Bridge:
    """One server's parts, wired. `serve` is its whole life."""

    settings: Settings
    manager: SessionManager
    keeper: Keeper
    media: MediaDecoder
    bodies: Bodies
    blobs: BlobStore
    jobs: JobService
    uploads: UploadDesk
    metrics: Metrics
    tracing: Tracing
    protection: Protection
    server: Server

    async def serve(self, listener: socket.socket, loaded: asyncio.Event | None = None) -> None:
        """Listen at once, load the backend, serve until the server is told to stop.

        `/healthz` answers while the backend loads and `/readyz` says that it is not ready. `loaded` is set when it is.

        Raises:
            BackendError: the backend or the voice detector cannot be loaded.
            LogUnavailableError: the event log cannot be opened.
            StoreUnavailableError, BridgeError: jobs, or the files of jobs, cannot be kept.
        """
        async with contextlib.AsyncExitStack() as opened:  # what comes first is closed last
            opened.push_async_callback(self.tracing.close)
            opened.push_async_callback(self.protection.close)
            self.protection.open()
            opened.push_async_callback(self.manager.close)
            await self.keeper.open()
            opened.push_async_callback(self.keeper.close)
            await self.media.open()
            opened.push_async_callback(self.media.close)
            await self.blobs.open()
            opened.push_async_callback(self.blobs.close)
            opened.push_async_callback(self.bodies.close)
            await self.jobs.open()
            opened.push_async_callback(self.jobs.close)
            await self.uploads.open()
            opened.push_async_callback(self.uploads.close)
            await self._serve(listener, loaded)

    async def _serve(self, listener: socket.socket, loaded: asyncio.Event | None) -> None:
        serving = asyncio.create_task(self.server.serve([listener]), name="server")
        loading = asyncio.create_task(self.manager.load(), name="load")
        try:
            await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                self.jobs.start()
                if loaded is not None:
                    loaded.set()
            await asyncio.shield(serving)  # cancelled or not, it ends in its own order below
        finally:
            loading.cancel()
            self.server.should_exit = True
            await asyncio.gather(serving, loading, return_exceptions=True)


def make_tracing(settings: Settings, env: Mapping[str, str]) -> Tracing:
    """Trace ids, and a recorder of traces where one is asked for.

    Raises:
        SettingsError: its package is missing.
    """
    try:
        return open_tracing(settings.otel_endpoint, env, bridge.__version__)
    except NoRecorderError as exc:
        raise SettingsError(f"STT_OTEL_ENDPOINT: {exc}") from None


def make_keeper(settings: Settings, manager: SessionManager, member: Member | None = None) -> Keeper:
    """Who runs the sessions, with the event log that the settings name; not opened yet. `member`: as `make_bridge`.

    Raises:
        SettingsError: the log's package is missing.
    """
    node = secrets.token_hex(8)
    try:
        event_log = open_log(settings.event_log, node, settings.retention_seconds, siblings=member)
    except (ValueError, MissingPackageError) as exc:
        raise SettingsError(f"STT_EVENT_LOG: {exc}") from None
    return Keeper(
        manager,
        event_log,
        node=node,
        resume_seconds=settings.resume_seconds,
        wait_seconds=settings.wait_seconds,
    )


def make_blobs(settings: Settings, env: Mapping[str, str]) -> BlobStore:
    """Where files lie until they are transcribed; not opened yet.

    Raises:
        SettingsError: an address that means nothing, or a package that is missing.
    """
    try:
        return open_blobs(settings.uploads, env)
    except (ValueError, NoStoreError) as exc:
        raise SettingsError(f"STT_UPLOADS: {exc}") from None


def make_uploads(settings: Settings, blobs: BlobStore, jobs: JobService, media: MediaDecoder) -> UploadDesk:
    """Where files come in piece by piece; whole ones become jobs. Not opened yet."""
    return UploadDesk(
        blobs,
        JobIntake(jobs.desk, media, jobs.webhooks.check),
        max_bytes=settings.max_file_bytes,
        max_uploads=settings.max_uploads,
        owner_uploads=settings.key_uploads,
        keep_seconds=settings.upload_seconds,
    )


def make_media(settings: Settings) -> MediaDecoder:
    """What reads files, within the settings' limits; not opened yet."""
    return MediaDecoder(max_bytes=settings.max_file_bytes, max_seconds=settings.max_file_seconds)


def make_bridge(settings: Settings, env: dict[str, str] | None = None, member: Member | None = None) -> Bridge:
    """Wire everything that the settings ask for. `member`: this process among several that serve the port.

    Raises:
        SettingsError: a setting that is wrong, or unsafe.
        BackendError: `not_installed`.
    """
    check_exposure(settings)
    check_certificate(settings)
    environ = environment() if env is None else env
    for sentence in misspellings(settings, environ) if member is None or member.number == 1 else ():
        log.warning(sentence)
    metrics = Metrics()
    tracing = make_tracing(settings, environ)
    protection = make_protection(settings, metrics)
    manager = make_manager(settings, environ, metrics, quotas=protection.quotas)
    metrics.show(manager.engines.collectors)
    keeper = make_keeper(settings, manager, member)
    media = make_media(settings)
    bodies = Bodies(max_bytes=settings.max_file_bytes, max_bodies=settings.max_files)
    batch = Batch(manager, media)
    blobs = make_blobs(settings, environ)
    jobs = make_jobs(
        settings,
        blobs,
        batch,
        metrics,
        tracing,
        Models(manager.engines).backend,
        environ,
        loopback=not settings.guarded and is_loopback(settings.host),  # everybody is on this machine anyway
    )
    uploads = make_uploads(settings, blobs, jobs, media)
    reception = Reception(keeper)
    journal = keeper.journal
    metrics.follow_sessions(
        held=lambda: keeper.held,
        receivers=lambda: keeper.rooms.receivers,
        log_up=lambda: journal is None or not journal.down,
        backlog=lambda: journal.backlog if journal is not None else 0,
    )
    limits = ConnectionLimits(
        settings.max_connections, settings.start_seconds, settings.send_seconds, settings.max_bad_messages
    )

    def native(_: str, query: Mapping[str, str]) -> Codec:
        return NativeCodec(query)

    def asr_room(path: str, query: Mapping[str, str]) -> Codec:
        return AsrRoomCodec(path.rpartition("/")[2], query, settings.asr_room_encoding)

    sockets = {
        path: StreamEndpoint(make_codec, reception, protection.entrance, metrics, limits, tracing, route)
        for path, route, make_codec in (
            ("/v1/stream", "/v1/stream", native),
            ("/ws/asr/", "/ws/asr/{session_id}", asr_room),
        )
    }
    app = make_http(
        Parts(
            keeper=keeper,
            metrics=metrics,
            door=Door(protection.entrance, protection.quotas),
            archive=Archive(keeper),
            media=media,
            bodies=bodies,
            batch=batch,
            blobs=blobs,
            jobs=jobs,
            uploads=uploads,
            gather=None if member is None else Figures(member, lambda: exposition(metrics, keeper)).all,
        )
    )

    async def drain() -> None:
        await jobs.stop()  # first: what is put back would be refused here, and begun anew
        await keeper.drain(settings.shutdown_seconds)

    server = make_server(
        Gateway(HttpObserver(WebHeaders(LastWord(app), settings.allowed_origins), metrics.http, tracing), sockets),
        drain=drain,
        max_connections=settings.max_connections,
        crowd=Crowd(CROWD * settings.max_files, lambda: metrics.refused.labels("at_capacity").inc()),
        max_message_bytes=settings.max_message_bytes,
        ping_seconds=settings.ping_seconds,
        ping_timeout_seconds=settings.ping_timeout_seconds,
        shutdown_seconds=1,
        tls_cert=settings.tls_cert,
        tls_key=settings.tls_key,
        patient=member is not None,
    )
    return Bridge(settings, manager, keeper, media, bodies, blobs, jobs, uploads, metrics, tracing, protection, server)


def misspellings(settings: Settings, env: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that neither the server nor any engine reads.

    Besides the chosen engines, it imports only those that a variable seems meant for.
    """
    variables: list[str] = []
    unchecked: list[str] = []
    for name in registry.names():
        prefix = option_prefix(name)
        if name not in settings.backends and not any(variable.startswith(prefix) for variable in env):
            continue
        try:
            backend = registry.load_class(name)
        except Exception:  # noqa: BLE001 - an engine that is not chosen may be broken; the chosen one is loaded again
            unchecked.append(prefix)
        else:
            variables += option_variables(backend.settings_name(), backend.Options)
    return unknown_variables(env, variables, unchecked)


class Gateway:
    """The application as the server sees it: sockets go straight to their endpoints, the rest to FastAPI.

    FastAPI's dozen layers of middleware would be awaited through at every frame. A socket's path that ends in `/`
    stands for every name behind it.
    """

    def __init__(self, http: App, sockets: Mapping[str, StreamEndpoint]) -> None:
        self._http = http
        self._sockets = sockets

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection or request."""
        if scope["type"] != "websocket":
            await self._http(scope, receive, send)
            return
        path: str = scope["path"]
        endpoint = self._sockets.get(path) or self._sockets.get(path.rpartition("/")[0] + "/")
        if endpoint is None:
            await refuse(send, BridgeError("not_found"))
        else:
            await endpoint(scope, receive, send)


def check_exposure(settings: Settings) -> None:
    """Refuse to serve strangers by accident.

    Raises:
        SettingsError: reachable from other machines, without a key, and not told `--insecure`.
    """
    if not is_loopback(settings.host) and not settings.guarded and not settings.insecure:
        raise SettingsError(
            f"STT_HOST: {settings.host!r} can be reached from other machines and STT_API_KEYS is empty: "
            "set a key, or pass --insecure if everybody may connect"
        )


def check_certificate(settings: Settings) -> None:
    """Refuse a certificate that cannot be served.

    Raises:
        SettingsError: the files hold no certificate, or no key that belongs to it.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return
    if reason := unusable(settings.tls_cert, settings.tls_key):
        raise SettingsError(
            f"STT_TLS_CERT, STT_TLS_KEY: '{settings.tls_cert}' and '{settings.tls_key}' are not allowed: they should "
            f"hold a certificate chain and its key in PEM ({reason})"
        )


@contextlib.asynccontextmanager
async def serving(settings: Settings, env: dict[str, str] | None = None) -> AsyncIterator[str]:
    """A server in this process, loaded and listening; yields its address, as `http://127.0.0.1:PORT`.

    For demonstrations and tests; a failure of the server ends the context's body.
    """
    built = make_bridge(settings, env)
    listener = listen(settings.host, settings.port)
    loaded = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(built.serve(listener, loaded), name="bridge")
        ready = group.create_task(loaded.wait(), name="ready")
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            ready.cancel()
            running.result()
            raise RuntimeError("the server stopped before it was ready")
        yield address(settings, listener)
        built.server.stop()


def address(settings: Settings, listener: socket.socket) -> str:
    """The server's address as a client would write it."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if settings.tls_cert else 'http'}://{shown}:{port}"


def raise_file_limit(wanted: int) -> None:
    """Ask for so many file descriptors, as far as the system lets an ordinary process: one a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
