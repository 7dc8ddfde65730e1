"""The native protocol of `/v1/stream`, sans I/O: messages in, client events out, and back.

Every message is described by a type below; docs/protocol.md is tested against them. The caller feeds each WebSocket
message to `receive_text` or `receive_bytes` in order and sends what `encode` returns as a text message. Both receive
methods raise `BridgeError` for a message that is refused; unless the error is fatal the codec goes on as if the
message had never been sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from backends.base import Word
from bridge.audio.formats import AudioFormat
from bridge.audio.vad.segmenter import Endpointing
from bridge.errors import BridgeError
from bridge.protocols import events
from bridge.protocols.events import Audio, ClientEvent, Flush, Join, Opening, Resume, ServerEvent, Start, Stop

VERSION: Final = 1
MAX_PHRASES: Final = 500
MAX_PHRASE_CHARS: Final = 100
MAX_ID_CHARS: Final = 200  # an `audio_id` goes back with every result
MIN_SESSION_ID_CHARS: Final = 16  # of a client's own making: a shorter one is guessed
MAX_SESSION_ID_CHARS: Final = 128

# Wide enough for `AudioFormat` to say what is allowed, narrow enough that its sentence stays one.
Count = Annotated[int, msgspec.Meta(ge=-(10**9), le=10**9)]
AudioId = (
    Annotated[str, msgspec.Meta(max_length=MAX_ID_CHARS)] | Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
)
Phrase = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PHRASE_CHARS)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=60_000)]
SessionId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_SESSION_ID_CHARS, pattern=r"^[A-Za-z0-9._~-]*\Z")]
Seq = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Frames = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class StartMessage(msgspec.Struct, tag="start", omit_defaults=True, frozen=True):
    """Opens a session, resumes one (`resume_token`) or receives one (`role`). Every field has a default."""

    encoding: Annotated[str, msgspec.Meta(max_length=40)] = "auto"
    sample_rate: Count = 16_000
    channels: Count = 1
    channel_mode: Literal["mix", "separate"] = "mix"
    language: Annotated[str, msgspec.Meta(min_length=1, max_length=35)] | None = None
    backend: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None
    partials: bool = True
    words: bool = True
    phrases: Annotated[tuple[Phrase, ...], msgspec.Meta(max_length=MAX_PHRASES)] = ()
    vad: bool | None = None
    endpoint_silence_ms: Milliseconds | None = None
    speech_padding_ms: Milliseconds | None = None
    speech_threshold: float | None = None
    denoise: bool | None = None
    role: Literal["sender", "receiver"] = "sender"
    session_id: SessionId | None = None
    resume_token: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    from_seq: Seq | None = None
    offset: Frames | None = None
    store: bool = True
    resume: bool | None = None

    def event(self) -> Opening:
        """The message as the session understands it.

        Raises:
            BridgeError: `unsupported_audio` or `bad_start`.
        """
        if self.role == "receiver":
            if self.session_id is None:
                raise BridgeError("bad_start", "a receiver has to say of which session: `session_id`")
            return Join(self.session_id, self.from_seq, self.partials)
        if self.resume_token is not None:
            if self.session_id is None:
                raise BridgeError("bad_start", "a `resume_token` needs the `session_id` that it belongs to")
            return Resume(self.session_id, self.resume_token, self.from_seq, self.offset)
        if self.from_seq is not None or self.offset is not None:
            raise BridgeError("bad_start", "`from_seq` and `offset` are for a session that exists")
        if self.session_id is not None and len(self.session_id) < MIN_SESSION_ID_CHARS:
            raise BridgeError("bad_start", f"a `session_id` needs at least {MIN_SESSION_ID_CHARS} characters")
        return Start(
            audio=AudioFormat.parse(self.encoding, self.sample_rate, self.channels),
            language=self.language,
            partials=self.partials,
            words=self.words,
            phrases=self.phrases,
            separate=self.channel_mode == "separate",
            vad=self.vad,
            endpointing=self._endpointing(),
            denoise=self.denoise,
            session_id=self.session_id,
            store=self.store,
            resume=self.resume,
            backend=self.backend,
        )

    def _endpointing(self) -> Mapping[str, float] | None:
        """What was chosen of it."""
        chosen: dict[str, float] = {}
        if self.endpoint_silence_ms is not None:
            chosen["silence_seconds"] = self.endpoint_silence_ms / 1_000
        if self.speech_padding_ms is not None:
            chosen["padding_seconds"] = self.speech_padding_ms / 1_000
        if self.speech_threshold is not None:
            chosen["threshold"] = self.speech_threshold
        try:
            Endpointing(**chosen)
        except ValueError as exc:
            raise BridgeError("bad_start", str(exc)) from None
        return chosen or None


class AudioMessage(msgspec.Struct, tag="audio", frozen=True):
    """Audio as base64 (msgspec decodes it), for clients that cannot send binary messages."""

    data: bytes


class FlushMessage(msgspec.Struct, tag="flush", frozen=True):
    """Finalize what was said so far; the session goes on."""


class StopMessage(msgspec.Struct, tag="stop", frozen=True):
    """No more audio: finalize every word, then close."""


class LegacyAudioMessage(msgspec.Struct, frozen=True):
    """What the earliest Android clients send: no `start`, no `type`; results carry the `audio_id` back."""

    content: bytes
    audio_id: AudioId | None = None


ClientMessage = StartMessage | AudioMessage | FlushMessage | StopMessage


class WordObject(msgspec.Struct, omit_defaults=True, frozen=True):
    """One word of a result."""

    text: str
    start: float
    end: float
    confidence: float | None = None
    speaker: str | None = None


class Limits(msgspec.Struct, frozen=True):
    """What this server allows a session."""

    session_seconds: float
    idle_seconds: float
    message_bytes: int


class ReadyMessage(msgspec.Struct, tag="ready", frozen=True):
    """The session is open; audio sent before this message is not lost, unless the session is resumed."""

    protocol: int
    session_id: str
    backend: str
    language: str
    encoding: str
    sample_rate: int
    channels: int
    partials: bool
    limits: Limits
    resume_token: str | None = None
    resume_seconds: float = 0
    resumed: bool = False
    last_seq: int = 0
    received: int = 0
    received_bytes: int = 0
    finalized: int = 0
    trace_id: str | None = None


class JoinedMessage(msgspec.Struct, tag="joined", frozen=True):
    """A receiver is welcome; the session's events follow."""

    protocol: int
    session_id: str
    state: events.Presence
    last_seq: int


class SpeechStartedMessage(msgspec.Struct, tag="speech_started", omit_defaults=True, frozen=True):
    """Speech was heard."""

    seq: int
    start: float
    channel: int | None = None


class SpeechEndedMessage(msgspec.Struct, tag="speech_ended", omit_defaults=True, frozen=True):
    """The speech is over."""

    seq: int
    end: float
    channel: int | None = None


class PartialMessage(msgspec.Struct, tag="partial", omit_defaults=True, frozen=True):
    """The hypothesis so far; replaced by the next partial or final."""

    text: str
    start: float
    end: float
    stability: float | None = None
    committed: int | None = None
    words: tuple[WordObject, ...] = ()
    channel: int | None = None
    audio_id: str | int | None = None


class FinalMessage(msgspec.Struct, tag="final", omit_defaults=True, frozen=True):
    """The text of record for a stretch of time."""

    seq: int
    text: str
    start: float
    end: float
    words: tuple[WordObject, ...] = ()
    confidence: float | None = None
    language: str | None = None
    channel: int | None = None
    audio_id: str | int | None = None


class AckMessage(msgspec.Struct, tag="ack", frozen=True):
    """How far the bridge has come, in sample frames at the client's rate."""

    received: int
    finalized: int


class WarningMessage(msgspec.Struct, tag="warning", frozen=True):
    """Something the client's developer should know; the session goes on."""

    seq: int
    code: str
    message: str


class ErrorMessage(msgspec.Struct, tag="error", omit_defaults=True, frozen=True):
    """A refusal or a failure; `closed` follows when it is fatal."""

    code: str
    message: str
    fatal: bool
    retryable: bool
    seq: int | None = None


class ClosedMessage(msgspec.Struct, tag="closed", omit_defaults=True, frozen=True):
    """The last message. Without `seq` only this connection ends."""

    code: str
    received: int
    finalized: int
    duration: float
    seq: int | None = None


ServerMessage = (
    ReadyMessage
    | JoinedMessage
    | SpeechStartedMessage
    | SpeechEndedMessage
    | PartialMessage
    | FinalMessage
    | AckMessage
    | WarningMessage
    | ErrorMessage
    | ClosedMessage
)

State = Literal["connected", "streaming", "stopped"]
Kind = Literal["start", "audio", "flush", "stop"]

# Which message is allowed when, and what state follows. What is not here is `bad_order`.
TRANSITIONS: Final[Mapping[tuple[State, Kind], State]] = {
    ("connected", "start"): "streaming",
    ("streaming", "audio"): "streaming",
    ("streaming", "flush"): "streaming",
    ("streaming", "stop"): "stopped",
}

_ORDER_HELP: Final[Mapping[State, str]] = {
    "connected": "send `start` first",
    "streaming": "the session has started already",
    "stopped": "the session was stopped; nothing may follow `stop`",
}

_BASE64: Final = "Invalid base64"  # msgspec's words
_decode_client: Final = msgspec.json.Decoder(ClientMessage)
_decode_legacy: Final = msgspec.json.Decoder(LegacyAudioMessage)
_encoder: Final = msgspec.json.Encoder()


class NativeCodec:
    """One connection's codec. `query` is the request's query string, decoded: it may stand for `start`."""

    name: Final = "native"

    def __init__(self, query: Mapping[str, str] | None = None) -> None:
        self._state: State = "connected"
        self._audio_id: str | int | None = None
        self._query = {k: v for k, v in (query or {}).items() if k in StartMessage.__struct_fields__}

    def opening(self) -> Opening | None:
        """What the connection begins with if the query string holds one; to be asked once, before any message.

        Raises:
            BridgeError: `bad_start` or `unsupported_audio`.
        """
        if not self._query:
            return None
        fields: dict[str, Any] = dict(self._query)
        if "phrases" in fields:
            fields["phrases"] = [p.strip() for p in fields["phrases"].split(",") if p.strip()]
        try:
            message = msgspec.convert(fields | {"type": "start"}, StartMessage, strict=False)
        except msgspec.ValidationError as exc:
            raise BridgeError("bad_start", f"query string: {exc}") from None
        self._enter("start")
        return message.event()

    def receive_bytes(self, data: bytes) -> ClientEvent:
        """A binary message: audio in the declared format."""
        if self._state != "streaming":
            self._enter("audio")
        return Audio(data)

    def receive_text(self, text: str) -> list[ClientEvent]:
        """A text message. More than one event where the message implies a `start`.

        Raises:
            BridgeError: any of the codes of docs/protocol.md, section "Errors".
        """
        try:
            message = _decode_client.decode(text)
        except msgspec.ValidationError as exc:
            return self._receive_untyped(text, exc)
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as exc:
            raise BridgeError("bad_message", f"not JSON that can be read: {_short(exc)}") from None
        match message:
            case AudioMessage():
                self._enter("audio")
                return [Audio(message.data)]
            case StartMessage():
                self._enter("start")
                return [message.event()]
            case FlushMessage():
                self._enter("flush")
                return [Flush()]
            case _:
                self._enter("stop")
                return [Stop()]

    def _receive_untyped(self, text: str, cause: msgspec.ValidationError) -> list[ClientEvent]:
        """A message that is none of the protocol's: the legacy shape, or a mistake to be named."""
        reason = _short(cause)
        if reason.endswith("`$.type`"):
            raise BridgeError("unknown_type", reason) from None
        if "`type`" in reason:
            try:
                legacy = _decode_legacy.decode(text)
            except (msgspec.DecodeError, RecursionError) as exc:  # what follows the first fault may be no JSON at all
                better = reason if '"content"' not in text[:200] else _short(exc)
                raise BridgeError("bad_audio" if _BASE64 in better else "bad_message", better) from None
            started: list[ClientEvent] = []
            if self._state == "connected":
                self._enter("start")
                started.append(Start())
            self._enter("audio")
            self._audio_id = legacy.audio_id
            return [*started, Audio(legacy.content)]
        if _BASE64 in reason:
            self._enter("audio")
            raise BridgeError("bad_audio", reason) from None
        if self._state == "connected" and '"start"' in text[:200]:
            raise BridgeError("bad_start", reason) from None
        raise BridgeError("bad_message", reason) from None

    def _enter(self, kind: Kind) -> None:
        following = TRANSITIONS.get((self._state, kind))
        if following is None:
            raise BridgeError("bad_order", f"`{kind}` is not allowed now: {_ORDER_HELP[self._state]}")
        self._state = following

    def encode(self, event: ServerEvent) -> str:
        """The event as the text of one WebSocket message."""
        return _encoder.encode(self._message(event)).decode()

    def _message(self, event: ServerEvent) -> ServerMessage:  # noqa: C901, PLR0911 - a table of ten rows
        match event:
            case events.Partial():
                return PartialMessage(
                    event.text,
                    event.start,
                    event.end,
                    event.stability,
                    event.committed,
                    _words(event.words),
                    event.channel,
                    self._audio_id,
                )
            case events.Final():
                return FinalMessage(
                    event.seq,
                    event.text,
                    event.start,
                    event.end,
                    _words(event.words),
                    event.confidence,
                    event.language,
                    event.channel,
                    self._audio_id,
                )
            case events.Ack():
                return AckMessage(event.received, event.finalized)
            case events.SpeechStarted():
                return SpeechStartedMessage(event.seq, event.start, event.channel)
            case events.SpeechEnded():
                return SpeechEndedMessage(event.seq, event.end, event.channel)
            case events.Ready():
                return ReadyMessage(
                    protocol=VERSION,
                    session_id=event.session_id,
                    backend=event.backend,
                    language=event.language,
                    encoding=event.audio.encoding.value,
                    sample_rate=event.audio.sample_rate,
                    channels=event.audio.channels,
                    partials=event.partials,
                    limits=Limits(event.max_session_seconds, event.idle_seconds, event.max_message_bytes),
                    resume_token=event.resume_token,
                    resume_seconds=event.resume_seconds,
                    resumed=event.resumed,
                    last_seq=event.last_seq,
                    received=event.received,
                    received_bytes=event.received_bytes,
                    finalized=event.finalized,
                    trace_id=event.trace_id,
                )
            case events.Joined():
                return JoinedMessage(VERSION, event.session_id, event.state, event.last_seq)
            case events.Warning():
                return WarningMessage(event.seq, event.code, event.message)
            case events.Error():
                return ErrorMessage(event.code, event.message, event.fatal, event.retryable, event.seq)
            case events.Closed():
                return ClosedMessage(event.code, event.received, event.finalized, event.duration, event.seq)


def _words(words: tuple[Word, ...]) -> tuple[WordObject, ...]:
    return tuple(WordObject(w.text, w.start, w.end, w.confidence, w.speaker) for w in words)


def _short(exc: BaseException) -> str:
    """The error's sentence, cut: it may quote the client."""
    text = str(exc)
    return text if len(text) <= 200 else text[:197] + "..."
