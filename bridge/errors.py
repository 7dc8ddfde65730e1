"""Every code that a client can see: what it means, whose fault it is, and how each transport says it.

One table serves the WebSocket protocols, HTTP and the documentation (docs/protocol.md is tested against it).
WebSocket close codes in the range 4000 to 4999 are this server's own: 4000 + the HTTP status where one fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Fault = Literal["client", "server", "engine", "none"]


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One row: the name on the wire, how sockets and HTTP express it, and what a client should do.

    `close` is the WebSocket close code sent when the error ends the connection, `status` the HTTP status of the
    same refusal; `fatal` errors end the session, the others cost only the message that caused them;
    `retryable` means that the same request may succeed later.
    """

    name: str
    close: int
    status: int
    fault: Fault
    fatal: bool
    retryable: bool
    meaning: str


_ROWS: Final = (
    # What a client's message did wrong. Not fatal: the message is ignored and nothing else is hurt.
    ErrorCode("bad_message", 4400, 400, "client", False, False, "The message is not what the protocol describes."),
    ErrorCode("unknown_type", 4400, 400, "client", False, False, "The message has a `type` unknown to this server."),
    ErrorCode("bad_order", 4409, 409, "client", False, False, "The message is not allowed at this point."),
    ErrorCode("bad_audio", 4422, 422, "client", False, False, "The audio of this message cannot be decoded."),
    # What an operator asked for in vain.
    ErrorCode("not_supported", 4422, 422, "client", False, False, "The backend cannot do that."),
    ErrorCode("unknown_model", 4422, 422, "client", False, False, "The backend has no model of this name."),
    ErrorCode("model_loading", 4409, 409, "client", False, True, "Another model is loading; ask again when it serves."),
    ErrorCode(
        "model_failed", 1011, 502, "engine", False, True, "The model cannot be loaded; the one before it serves on."
    ),
    # What ends a session, or refuses it.
    ErrorCode("too_many_errors", 4429, 429, "client", True, False, "The connection sent too many bad messages."),
    ErrorCode("bad_start", 4400, 400, "client", True, False, "A field of `start` is missing or has a bad value."),
    ErrorCode("unsupported_audio", 4415, 415, "client", True, False, "The audio format is not supported."),
    ErrorCode(
        "undecodable_audio", 4422, 422, "client", True, False, "The audio's container or codec cannot be decoded."
    ),
    ErrorCode("unsupported_language", 4400, 400, "client", True, False, "The backend does not know the language."),
    ErrorCode("start_timeout", 4408, 408, "client", True, True, "No `start` came in time."),
    ErrorCode("idle_timeout", 4408, 408, "client", True, True, "Neither audio nor a message came in time."),
    ErrorCode("session_too_long", 4413, 413, "client", True, True, "The session reached its longest duration."),
    ErrorCode("message_too_large", 1009, 413, "client", True, False, "A message is larger than allowed."),
    ErrorCode("slow_receiver", 4414, 408, "client", True, True, "The client did not read its events in time."),
    # What an HTTP request did wrong.
    ErrorCode("bad_request", 4400, 400, "client", True, False, "A field of the request is missing or has a bad value."),
    ErrorCode("unknown_backend", 4404, 404, "client", True, False, "This server has no such model or backend."),
    ErrorCode("too_large", 4413, 413, "client", True, False, "The body or file is larger than allowed."),
    ErrorCode("audio_too_long", 4413, 413, "client", True, False, "The audio is longer than allowed."),
    ErrorCode("body_timeout", 4408, 408, "client", True, True, "The request's body came too slowly, or broke off."),
    ErrorCode("rate_limited", 4429, 429, "client", True, True, "Too many requests; `Retry-After` says when."),
    ErrorCode("quota_exceeded", 4429, 429, "client", True, True, "This key has used up what it may at once or a day."),
    ErrorCode("unknown_upload", 4404, 404, "client", True, False, "There is no upload of this name, or no longer."),
    ErrorCode("upload_conflict", 4409, 409, "client", True, False, "This contradicts what was uploaded before."),
    ErrorCode(
        "checksum_mismatch", 4460, 460, "client", True, True, "The bytes do not have this checksum; send them again."
    ),
    ErrorCode("unsupported_version", 4412, 412, "client", True, False, "This version of tus is not spoken here."),
    ErrorCode("unsupported_type", 4415, 415, "client", True, False, "The body's `Content-Type` is another one."),
    ErrorCode("upload_incomplete", 4409, 409, "client", True, True, "Chunks are missing; the message names them."),
    ErrorCode("unknown_job", 4404, 404, "client", True, False, "There is no job of this name, or no longer."),
    ErrorCode("job_unfinished", 4409, 409, "client", True, True, "The job has no result yet."),
    ErrorCode("job_failed", 4409, 409, "none", True, False, "The job failed, and has no transcript; it says why."),
    ErrorCode("worker_lost", 1011, 500, "server", True, True, "Every worker that began the job ended before its end."),
    ErrorCode("cancelled", 4410, 410, "none", True, False, "The job was cancelled."),
    ErrorCode("unauthorized", 4401, 401, "client", True, False, "The API key is missing or wrong."),
    ErrorCode("forbidden", 4403, 403, "client", True, False, "This API key may not do that."),
    ErrorCode("forbidden_origin", 4403, 403, "client", True, False, "This web origin may not connect."),
    ErrorCode("not_found", 4404, 404, "client", True, False, "There is nothing at this address."),
    # What becomes of a session whose connection broke, or that has several.
    ErrorCode("unknown_session", 4404, 404, "client", True, False, "There is no session of this name, or no longer."),
    ErrorCode("session_expired", 4410, 410, "client", True, False, "The session was not resumed in time."),
    ErrorCode("wrong_token", 4403, 403, "client", True, False, "The resume token is not this session's."),
    ErrorCode("session_taken", 4409, 409, "client", True, False, "The session has a sender, or had one."),
    ErrorCode("taken_over", 4409, 409, "client", True, False, "The session was resumed over another connection."),
    ErrorCode("offset_ahead", 4416, 416, "client", True, False, "Audio before this offset has not been received."),
    ErrorCode("offset_behind", 4416, 416, "client", True, False, "Audio at this offset is final already."),
    ErrorCode("seq_ahead", 4416, 416, "client", True, False, "There are no events up to this number yet."),
    ErrorCode("seq_behind", 4410, 410, "client", True, False, "Events from this number on are no longer kept."),
    ErrorCode("sender_gone", 4408, 408, "client", True, False, "The sender did not come back in time."),
    ErrorCode("deleted", 4410, 410, "client", True, False, "The session was deleted."),
    ErrorCode("log_unavailable", 1013, 503, "server", True, True, "The event log cannot be reached; try again."),
    ErrorCode("store_unavailable", 1013, 503, "server", True, True, "Jobs or uploads cannot be stored; try again."),
    ErrorCode("at_capacity", 1013, 503, "server", True, True, "The server carries as much as it can; try again later."),
    ErrorCode("not_ready", 1013, 503, "server", True, True, "The backend is still loading."),
    ErrorCode("shutting_down", 1001, 503, "server", True, True, "The server is stopping; connect again."),
    ErrorCode("backend_rejected", 4400, 400, "client", True, False, "The backend refuses this request."),
    ErrorCode(
        "backend_misconfigured",
        1011,
        502,
        "server",
        True,
        False,
        "The backend refuses this server's credentials or setup.",
    ),
    ErrorCode("backend_failed", 1011, 502, "engine", True, True, "The backend broke, and re-opening it did not help."),
    ErrorCode("backend_stalled", 1011, 504, "engine", True, True, "The backend stopped answering."),
    ErrorCode("internal", 1011, 500, "server", True, True, "A fault in this server; its log has the details."),
    # How a session ends well.
    ErrorCode("stopped", 1000, 200, "none", True, False, "The client stopped, and every word was finalized."),
)

ERRORS: Final = {row.name: row for row in _ROWS}
"""Every code by its name."""

WARNINGS: Final = {
    "wav_header": "Raw samples were declared, and a WAV header came first. It agreed with `start` and was skipped.",
    "damaged_audio": "Some of the coded audio cannot be decoded; silence stands in its place.",
    "wrong_encoding": "The bytes do not look like the declared encoding; the message says what they look like.",
    "wrong_channels": "The samples look like more or fewer channels than were declared.",
    "wrong_rate": "Audio comes steadily as fast as if its rate were another one.",
    "clipping": "Samples are cut off at full scale: the microphone's gain is too high.",
    "silence": "Nothing but silence for long: the microphone is muted, is the wrong one, or may not be used.",
    "low_level": "Sounds come and go, but all are very low: the microphone's gain is too low.",
    "no_vad": "`start` asked for voice activity detection, which this server does not do.",
    "backend_changed": "The backend failed; another one goes on from the last final.",
    "no_denoise": "`start` asked for noise suppression, which is not installed on this server.",
}
"""What a developer is told in a `warning`, by its code; the session goes on."""


class BridgeError(Exception):
    """Anything that a client is told as an error. `code` is a name in `ERRORS`, the text is for people.

    The text may name fields and values of the client's own message; it never holds a key or a transcript.
    """

    def __init__(self, code: str, message: str | None = None, *, retry_after: float | None = None) -> None:
        self.row = ERRORS[code]
        self.retry_after = retry_after
        """Seconds after which another try may do better, where that is known."""
        super().__init__(message or self.row.meaning)

    @property
    def code(self) -> str:
        """The name on the wire."""
        return self.row.name

    @property
    def fatal(self) -> bool:
        """Whether it ends the session."""
        return self.row.fatal
