"""`relay`: each stream is a session of another server that speaks the native protocol, over one WebSocket.

The bridge's own client library carries it: it keeps what is not final, and resumes a session whose connection broke, so
that no word is lost and none comes twice. Where it cannot, the stream fails as that of any engine does, and the session
opens another one from its last final on. Nothing else is ever sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, ClassVar, Final

from prometheus_client import Counter, Gauge

from backends.base import AsyncBackend, BackendError, Capabilities, Fault, RecognitionConfig, Result
from backends.relay.errors import translate
from backends.relay.options import RelayOptions
from backends.relay.transcript import Transcript
from backends.relay.upstream import Upstream
from bridge.client import Client, ClientError, ConnectionLost, Interrupted, Reconnect, Resumed, connect
from bridge.protocols.native import ErrorMessage, ServerMessage, StartMessage, WarningMessage

log = logging.getLogger(__name__)

SAMPLE_RATES: Final = (16_000, 8_000, 24_000, 32_000, 44_100, 48_000)
"""The protocol takes any; these are what engines have in common with others of a list."""
WAITING_SECONDS: Final = 20.0
"""Audio that the other server has yet to receive. More is left in the session's buffer: were that full of audio that is
on its way (`STT_REPLAY_SECONDS`), the session would ask for a final wherever it stands, in the middle of a word.
"""
MAX_KEY_CHARS: Final = 8_192
"""Of a caller's key or token: a header holds no more at most servers."""
MAX_SILENCE_MS: Final = 60_000
"""The protocol's longest `endpoint_silence_ms`."""
HEARD_HERE: Final = ("clipping", "silence", "low_level")
"""Warnings of the other server that this one gives, too: it hears the same audio."""
_SHOWN: Final = 200
"""Characters of the other server's warnings that are logged."""


class RelayBackend(AsyncBackend):
    """Another server's sessions as an engine's streams."""

    name: ClassVar[str] = "relay"
    Options = RelayOptions
    options: RelayOptions

    def __init__(self, options: RelayOptions) -> None:
        super().__init__(options)
        self._address = options.address
        self._upstream = Upstream(options)
        self._reconnect = Reconnect(
            first_seconds=options.retry_seconds,
            give_up_seconds=options.resume_seconds,
            silence_seconds=options.heartbeat_seconds,
            ring_seconds=WAITING_SECONDS,
        )
        self._interruptions = Counter(
            "stt_relay_interruptions", "Connections to the server behind that broke in mid-session.", registry=None
        )
        self._resumes = Counter("stt_relay_resumes", "Sessions that went on after that.", registry=None)
        ready = Gauge("stt_relay_ready", "Whether the server behind takes sessions.", registry=None)
        ready.set_function(lambda: self._upstream.refusal is None)
        self._collectors: Sequence[Any] = (self._interruptions, self._resumes, ready)

    @property
    def capabilities(self) -> Capabilities:
        """Whatever the other server can do is passed on; what it cannot, it says itself."""
        return Capabilities(
            word_times=True,
            confidences=True,
            phrases=True,
            flush=True,
            sample_rates=SAMPLE_RATES,
            max_streams=self.options.max_streams or self._upstream.capacity,
            detects_language=True,
        )

    def refusal(self) -> str | None:
        """Why the server behind would refuse."""
        reason = self._upstream.refusal
        return None if reason is None else f"the server behind takes no session: {reason}"

    @property
    def collectors(self) -> Sequence[Any]:
        """Connections that broke, and whether the server behind is ready."""
        return self._collectors

    @property
    def progress(self) -> str | None:
        """Whom starting waits for."""
        return self._upstream.progress

    async def load(self) -> None:
        """Wait for the server behind, see `Upstream.open`."""
        secret = self.options.api_key is not None or self.options.pass_authorization
        if secret and not self._address.encrypted and not self._address.loopback:
            log.warning(
                "keys go to %s in the clear: prefer wss:// outside of a network of your own", self._address.host
            )
        await self._upstream.open()

    async def close(self) -> None:
        """Ask no more after it."""
        await self._upstream.close()

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        """One session of the server behind.

        The first stream of a session opens it at once, others with the first audio: after an idle one there may be none
        for long.
        """
        if config.attempt:
            first = await anext(audio, None)
            if first is None:
                return
            audio = _with_first(first, audio)
        key = self._key(config)
        loop = asyncio.get_running_loop()
        limit = self.options.timeout_seconds
        deadline = None if limit is None else loop.time() + limit
        transcript = Transcript(config.sample_rate)
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with _until(deadline):
                    client = await stack.enter_async_context(self._session(config, key))
                log.info(
                    "relayed to %s",
                    self._address.host,
                    extra={"session": config.session_id, "to": client.ready.session_id},
                )
                feeding = await stack.enter_async_context(_feeding(client, audio, transcript))
                messages = await stack.enter_async_context(contextlib.aclosing(_messages(client, deadline)))
                async for message in messages:
                    if isinstance(message, WarningMessage | ErrorMessage):
                        self._told(message, config)
                    for result in transcript.take(message):
                        yield result
                feeding.check()
                for result in transcript.rest():
                    yield result
        except ClientError as exc:
            error = translate(exc, caller=key is not None and key != self.options.api_key)
            self._upstream.refused(error)
            raise error from exc
        except _OutOfTimeError as exc:
            raise BackendError(f"the stream took longer than {limit:g} s", code="timeout") from exc

    def _session(self, config: RecognitionConfig, key: str | None) -> contextlib.AbstractAsyncContextManager[Client]:
        silence = config.silence_seconds
        start = StartMessage(
            encoding="pcm_s16le",
            sample_rate=config.sample_rate,
            language=config.language,
            partials=config.partials,
            words=config.words,
            phrases=config.phrases,
            endpoint_silence_ms=None if silence is None else min(round(1_000 * silence), MAX_SILENCE_MS),
            store=config.store,
        )

        def told(event: Interrupted | Resumed) -> None:
            extra = {"session": config.session_id}
            if isinstance(event, Interrupted):
                self._interruptions.inc()
                log.warning("the connection to %s is lost: %s", self._address.host, event.reason, extra=extra)
            else:
                self._resumes.inc()
                log.info("goes on at %s after %.2f s", self._address.host, event.seconds, extra=extra)

        return connect(
            self._address.stream,
            start,
            api_key=key,
            reconnect=self._reconnect,
            on_reconnect=told,
            open_seconds=self.options.connect_seconds,
            headers=None if config.traceparent is None else {"traceparent": config.traceparent},
        )

    def _key(self, config: RecognitionConfig) -> str | None:
        """What the server behind is shown.

        Raises:
            BackendError: the caller's own cannot be sent as it is.
        """
        given = config.credential
        if given is None or not self.options.pass_authorization:
            return self.options.api_key
        if not (given.isascii() and given.isprintable() and len(given) <= MAX_KEY_CHARS):
            raise BackendError("the key cannot be passed on: it is no header", code="rejected", fault=Fault.CLIENT)
        return given

    def _told(self, message: WarningMessage | ErrorMessage, config: RecognitionConfig) -> None:
        if message.code in HEARD_HERE:
            return
        log.warning(
            "%s says %s: %s",
            self._address.host,
            message.code,
            message.message[:_SHOWN],
            extra={"session": config.session_id},
        )


class _OutOfTimeError(Exception):
    """The stream's time is over."""


@contextlib.asynccontextmanager
async def _until(deadline: float | None) -> AsyncGenerator[None]:
    """Raises `_OutOfTimeError` out of what takes longer; there is no `yield` of results inside."""
    try:
        async with asyncio.timeout_at(deadline) as scope:
            yield
    except TimeoutError as exc:
        if scope.expired():
            raise _OutOfTimeError from exc
        raise


async def _messages(client: Client, deadline: float | None) -> AsyncGenerator[ServerMessage]:
    """What the server says, to the end.

    Raises:
        ClientError: it ended otherwise than in order.
        _OutOfTimeError: it took longer.
    """
    async with contextlib.aclosing(aiter(client)) as messages:
        if deadline is None:
            async for message in messages:
                yield message
            return
        while True:
            async with _until(deadline):
                following = await anext(messages, None)
            if following is None:
                return
            yield following


class _Feeding:
    """The task that sends."""

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def check(self) -> None:
        """Raise what the audio raised, if it did."""
        if self.failure is not None:
            raise self.failure

    async def run(self, client: Client, audio: AsyncIterator[bytes], transcript: Transcript) -> None:
        """Send everything, then `stop`. The client holds back where the server is slow; who reads learns of its end."""
        with contextlib.suppress(ConnectionLost):
            try:
                async for chunk in audio:
                    if chunk:
                        transcript.sent(chunk)
                        await client.send(chunk)
                    else:
                        transcript.flushed()
                        await client.flush()
            except ConnectionLost:
                raise
            except Exception as exc:  # noqa: BLE001 - raised by `check`, once the server has said what it knows
                self.failure = exc
            await client.stop()


@contextlib.asynccontextmanager
async def _feeding(client: Client, audio: AsyncIterator[bytes], transcript: Transcript) -> AsyncGenerator[_Feeding]:
    """Send the audio from a task of its own, which ends with the context."""
    feeding = _Feeding()
    task = asyncio.create_task(feeding.run(client, audio, transcript), name="relay-writer")
    try:
        yield feeding
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _with_first(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A chunk that was taken already, and what follows it."""
    yield first
    async for chunk in rest:
        yield chunk
