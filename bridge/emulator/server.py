"""The server: what it is told, listening, its counters, its life."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc

from backends import registry
from backends.scripted import ScriptedBackend, ScriptedOptions
from bridge.emulator.api import APIS, Api
from bridge.emulator.faults import Plan
from bridge.emulator.limits import Limits, Quota
from bridge.emulator.speech import EngineRecognizer, Recognizer, echo
from bridge.emulator.stats import EndedStream, Stats
from bridge.emulator.statuses import UNAUTHENTICATED, Code, StreamEnded
from bridge.emulator.stream import ServerState, Stream
from bridge.security.auth import is_loopback
from bridge.security.certificates import unusable
from bridge.session.engine import Engine
from bridge.settings import SettingsError, environment, read_options

log = logging.getLogger(__name__)

Mode = Literal["speech", "words", "echo"]


@dataclass(frozen=True, slots=True)
class EmulatorConfig:
    """What an emulator does.

    `mode`: `speech` recognizes by `backend`, whose STT_* settings are read from `env` (default: the process's
    environment); `words` reads marker audio (see `backends.scripted`); `echo` answers each message with the number
    of bytes received. `token` is the one that callers need, `deny` refuses them all. `location`: the only one that
    v2 recognizers may have. `speed`: how many times faster than the wall its clocks run.
    """

    host: str = "127.0.0.1"
    port: int = 0
    mode: Mode = "words"
    backend: str = "pocketsphinx"
    env: Mapping[str, str] | None = None
    limits: Limits = field(default_factory=Limits)
    plan: Plan = field(default_factory=Plan)
    token: str | None = None
    deny: bool = False
    location: str | None = None
    speed: float = 1.0
    tls_cert: Path | None = None
    tls_key: Path | None = None


class Emulator:
    """A server that can be started, killed and started again on its port. All its methods belong to one event loop."""

    def __init__(self, config: EmulatorConfig, recognizer: Recognizer) -> None:
        self.config = config
        self.stats = Stats()
        self.port = config.port
        self._recognizer = recognizer
        self._running = asyncio.Event()
        self._running.set()
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """`host:port`, as a gRPC client takes it."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{host}:{self.port}"

    async def start(self) -> None:
        """Listen; the second time on the port of the first.

        Raises:
            OSError: the address cannot be had.
        """
        server_state = ServerState(
            self._recognizer,
            self.config.limits,
            Quota(self.config.limits, self.config.speed),
            self.stats,
            self._running,
            self._admit,
            self.config.location,
            self.config.speed,
        )
        server = grpc.aio.server(
            options=[
                # Without it a second server would share the port instead of being told that it is taken.
                ("grpc.so_reuseport", 0),
                ("grpc.max_concurrent_streams", self.config.limits.streams_per_connection),
                # How often Google lets a client ping is not known. gRPC's own rule, once in five minutes, would
                # end the connections of clients that keep them alive.
                ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        server.add_generic_rpc_handlers(tuple(self._handlers(api, server_state) for api in APIS))
        try:
            self.port = self._listen(server)
        except RuntimeError as exc:
            await server.stop(None)
            raise OSError(f"cannot listen on {self.address}") from exc
        await server.start()
        self._server = server

    async def kill(self) -> None:
        """Stop at once: open streams end with UNAVAILABLE, as when a server dies. `start` brings it back."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)

    def freeze(self) -> None:
        """Read nothing and answer nothing, on any stream; connections stay."""
        self._running.clear()

    def thaw(self) -> None:
        """Go on where `freeze` stopped."""
        self._running.set()

    def _listen(self, server: grpc.aio.Server) -> int:
        cert, key = self.config.tls_cert, self.config.tls_key
        if cert is None or key is None:
            return server.add_insecure_port(self.address)
        return server.add_secure_port(
            self.address, grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
        )

    def _admit(self, api: Api, context: Any) -> None:
        """Check a call's metadata. Raises `StreamEnded`."""
        if self.config.token is not None:
            given = dict(context.invocation_metadata() or ()).get("authorization", "")
            if not hmac.compare_digest(str(given).encode(), f"Bearer {self.config.token}".encode()):
                raise StreamEnded(UNAUTHENTICATED)
        if self.config.deny:
            raise StreamEnded(api.denied)

    def _handlers(self, api: Api, server_state: ServerState) -> grpc.GenericRpcHandler:
        stats = self.stats

        # gRPC looks at the function itself: a coroutine function, not something that returns a coroutine.
        async def recognize(_: Any, context: Any) -> None:
            peer = context.peer()
            number = stats.begin(peer)
            stream = Stream(server_state, api, self.config.plan.of(number), number, context)
            try:
                await stream.run()
            finally:
                status = stream.status.code if stream.status is not None else Code.CANCELLED
                stats.end(peer, EndedStream(number, api.name, status.name, stream.audio_seconds, stream.requests))
                log.info(
                    "stream %d (%s) ended: %s, %.1f s of audio", number, api.name, status.name, stream.audio_seconds
                )

        method = grpc.stream_stream_rpc_method_handler(
            recognize,
            request_deserializer=api.request.FromString,
            response_serializer=api.response.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(api.service, {"StreamingRecognize": method})


def check(config: EmulatorConfig, *, insecure: bool) -> None:
    """Refuse what is unsafe, or cannot be served.

    Raises:
        SettingsError: reachable from other machines and not told `insecure`, or a bad certificate.
    """
    if not is_loopback(config.host) and not insecure:
        raise SettingsError(
            f"--host: {config.host!r} can be reached from other machines: pass --insecure if everybody may connect"
        )
    cert, key = config.tls_cert, config.tls_key
    if (cert is None) != (key is None):
        raise SettingsError("--tls-cert and --tls-key belong together: give both or neither")
    if cert is None or key is None:
        return
    if reason := unusable(cert, key):
        raise SettingsError(
            f"--tls-cert, --tls-key: '{cert}' and '{key}' should hold a certificate chain and its key in PEM ({reason})"
        )


def make_engine(config: EmulatorConfig) -> Engine | None:
    """The engine that recognizes, not loaded yet; None where none is needed.

    Raises:
        BackendError: `unknown_backend` or `not_installed`.
        SettingsError: a setting of the engine is wrong.
    """
    if config.mode == "echo":
        return None
    if config.mode == "words":
        return Engine(ScriptedBackend(ScriptedOptions(mode="markers")))
    backend = registry.load_class(config.backend)
    env = environment() if config.env is None else dict(config.env)
    return Engine(
        backend(read_options(backend.settings_name(), backend.Options, env)), threads=config.limits.max_streams
    )


@contextlib.asynccontextmanager
async def emulating(config: EmulatorConfig | None = None) -> AsyncIterator[Emulator]:
    """An emulator in this process, loaded and listening; killed in the end.

    Raises:
        BackendError, SettingsError: its engine cannot be made or loaded.
        OSError: the address cannot be had.
    """
    config = config or EmulatorConfig()
    engine = make_engine(config)
    async with contextlib.AsyncExitStack() as stack:
        if engine is not None:
            stack.push_async_callback(engine.close)
            await engine.load()
        recognizer = echo if engine is None else EngineRecognizer(engine, resample=config.mode == "speech")
        emulator = Emulator(config, recognizer)
        await emulator.start()
        stack.push_async_callback(emulator.kill)
        yield emulator
