"""The protocol of `/ws/asr/{session_id}?mode=sender|receiver`, sans I/O: one microphone, many screens.

It is what the documents of a self-hosted FunASR server on FastAPI describe; what they leave open (partials, errors, the
end) is decided here. The request holds all that a session needs; then the order is

    sender:    audio* close
    receiver:  close?

Audio is binary, 16 kHz mono, float32 or int16. `close` is a text; of a receiver it ends nothing but its own connection.
Everybody is sent `{"asr": TEXT, "spk": null}` for each final, the sender included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from bridge.audio.formats import AudioFormat
from bridge.errors import BridgeError
from bridge.protocols import events
from bridge.protocols.events import Audio, ClientEvent, Join, Opening, ServerEvent, Start, Stop
from bridge.protocols.native import MAX_SESSION_ID_CHARS, SessionId

SAMPLE_RATE: Final = 16_000

RoomEncoding = Literal["pcm_f32le", "pcm_s16le"]

_CLOSE: Final = "close"
_CLOSE_CHARS: Final = 100  # of a text that may be `close` in one of its spellings


class Query(msgspec.Struct, frozen=True):
    """What the request's query string may say; the rest of it is ignored.

    `partials`: hypotheses, too. `from_seq`: for a receiver, the event with which it begins; 1 is all that was said.
    """

    mode: Literal["sender", "receiver"]
    encoding: RoomEncoding | None = None
    language: Annotated[str, msgspec.Meta(min_length=1, max_length=35)] | None = None
    partials: bool = False
    from_seq: Annotated[int, msgspec.Meta(ge=1, le=2**53)] | None = None


class ResultMessage(msgspec.Struct, omit_defaults=True, frozen=True):
    """What was said. `spk`: who said it, null as long as nobody can tell; `partial`: it will be replaced."""

    asr: str
    spk: None
    partial: bool = False


class ErrorObject(msgspec.Struct, frozen=True):
    """A code of docs/protocol.md, section "Errors", and a sentence."""

    code: str
    message: str


class FailureMessage(msgspec.Struct, frozen=True):
    """A refusal or a failure."""

    error: ErrorObject


class AsrRoomCodec:
    """One connection's codec. `session_id` is the path's last part, `query` the query string, both decoded."""

    name: Final = "asr_room"

    def __init__(self, session_id: str, query: Mapping[str, str], default_encoding: RoomEncoding = "pcm_f32le") -> None:
        self._session_id = session_id
        self._query = {k: v for k, v in query.items() if k in Query.__struct_fields__}
        self._encoding = default_encoding
        self._sender = False
        self._partials = False
        self._closed = False

    def opening(self) -> Opening:
        """What the connection begins with; to be asked once, before any message.

        Raises:
            BridgeError: `bad_start`.
        """
        try:
            msgspec.convert(self._session_id, SessionId)
        except msgspec.ValidationError:
            raise BridgeError(
                "bad_start",
                f"the session's name should have 1 to {MAX_SESSION_ID_CHARS} letters, digits, `.`, `_`, `~` or `-`",
            ) from None
        if "mode" not in self._query:
            raise BridgeError("bad_start", "the query string should say `mode=sender` or `mode=receiver`")
        try:
            wanted = msgspec.convert(self._query, Query, strict=False)
        except msgspec.ValidationError as exc:
            raise BridgeError("bad_start", f"query string: {exc}") from None
        self._partials = wanted.partials
        if wanted.mode == "receiver":
            return Join(self._session_id, wanted.from_seq, wanted.partials)
        self._sender = True
        return Start(
            AudioFormat.parse(wanted.encoding or self._encoding, SAMPLE_RATE, 1),
            language=wanted.language,
            partials=wanted.partials,
            words=False,
            session_id=self._session_id,
            resume=False,
            # A room is used again and again under its name, and nobody has a token of the time before.
            reuse=True,
        )

    def receive_bytes(self, data: bytes) -> ClientEvent:
        """A binary message: audio, cut anywhere.

        Raises:
            BridgeError: `bad_order`.
        """
        if not self._sender:
            raise BridgeError("bad_order", "a receiver sends no audio")
        if self._closed:
            raise BridgeError("bad_order", "nothing may follow `close`")
        return Audio(data)

    def receive_text(self, text: str) -> list[ClientEvent]:
        """A text message, which can only be `close`.

        Raises:
            BridgeError: `bad_message` or `bad_order`.
        """
        if not _is_close(text):
            raise BridgeError("bad_message", "a text message can be `close` only; audio is binary")
        if self._closed:
            raise BridgeError("bad_order", "nothing may follow `close`")
        self._closed = True
        return [Stop()]

    def encode(self, event: ServerEvent) -> str | None:
        """The event as the text of one WebSocket message; None where the protocol has none for it."""
        match event:
            # A stretch without words moves the session forward; here nothing is left of it.
            case events.Final() if event.text.strip():
                return _text(ResultMessage(event.text, None))
            case events.Partial() if self._partials and event.text.strip():
                return _text(ResultMessage(event.text, None, partial=True))
            case events.Error():
                return _text(FailureMessage(ErrorObject(event.code, event.message)))
            case _:
                return None


def _is_close(text: str) -> bool:
    """`close` as it stands, as a JSON string, or as an object of this type; case and space around it do not count."""
    if len(text) > _CLOSE_CHARS:
        return False
    said: Any = text.strip()
    if said.startswith(('"', "{")):
        try:
            said = msgspec.json.decode(said)
        except (msgspec.DecodeError, UnicodeEncodeError):
            return False
        if isinstance(said, dict):
            said = said.get("type")
    return isinstance(said, str) and said.strip().lower() == _CLOSE


def _text(message: ResultMessage | FailureMessage) -> str:
    return msgspec.json.encode(message).decode()
