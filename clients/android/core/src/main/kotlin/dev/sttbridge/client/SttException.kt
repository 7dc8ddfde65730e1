package dev.sttbridge.client

import java.io.IOException

/** What keeps a session from ending well; the message is a sentence for people. */
public sealed class SttException(message: String, cause: Throwable? = null) : IOException(message, cause) {
    /** Whether the same may succeed later. */
    public abstract val retryable: Boolean
}

/** No session came about: no server, no WebSocket, no answer in time, no token. */
public class SttConnectException internal constructor(message: String, cause: Throwable? = null) : SttException(message, cause) {
    override val retryable: Boolean get() = true
}

/** The session broke off, and could not be resumed in time. */
public open class SttLostException internal constructor(message: String) : SttException(message) {
    override val retryable: Boolean get() = true
}

/** What the server sent on a connection cannot be relied on. */
internal class ProtocolFault(message: String) : SttLostException(message)

/** The server's own word: it refused the session or ended it. [code] is one of docs/protocol.md, "Errors". */
public class SttServerException internal constructor(
    public val code: String,
    message: String,
    override val retryable: Boolean,
    /** So long another attempt is in vain. */
    internal val afterMillis: Long = 0,
) : SttException("$message ($code)")

/** Why a session ended: by its last message, in the words of its fatal error if there was one. */
internal fun ended(closed: Message.Closed, error: SttEvent.Error?): SttServerException {
    if (error != null) return SttServerException(closed.code, error.message, error.retryable)
    val retryable = isRetryable(closed.code, unknown = false)
    return SttServerException(closed.code, "The server ended the session.", retryable)
}

/**
 * The codes after which the same request may succeed; docs/protocol.md, "Errors", column "Retryable". A test compares
 * them with the server's table.
 */
internal val RETRYABLE: Set<String> = setOf(
    "at_capacity", "backend_failed", "backend_stalled", "body_timeout", "checksum_mismatch", "idle_timeout", "internal",
    "job_unfinished", "log_unavailable", "model_failed", "model_loading", "not_ready", "quota_exceeded", "rate_limited",
    "session_too_long", "shutting_down", "slow_receiver", "start_timeout", "store_unavailable", "upload_incomplete",
    "worker_lost",
)

/** The others that the server has; a code of neither set is a newer server's. */
internal val FINAL: Set<String> = setOf(
    "audio_too_long", "backend_misconfigured", "backend_rejected", "bad_audio", "bad_message", "bad_order", "bad_request",
    "bad_start", "cancelled", "deleted", "forbidden", "forbidden_origin", "job_failed", "message_too_large", "not_found",
    "not_supported", "offset_ahead", "offset_behind", "sender_gone", "seq_ahead", "seq_behind", "session_expired",
    "session_taken", "stopped", "taken_over", "too_large", "too_many_errors", "unauthorized", "undecodable_audio",
    "unknown_backend", "unknown_job", "unknown_model", "unknown_session", "unknown_type", "unknown_upload",
    "unsupported_audio", "unsupported_language", "unsupported_type", "unsupported_version", "upload_conflict",
    "wrong_token",
)

/** Whether the same request may succeed later; [unknown] is the answer for a code of a newer server. */
internal fun isRetryable(code: String, unknown: Boolean): Boolean = code in RETRYABLE || (unknown && code !in FINAL)
