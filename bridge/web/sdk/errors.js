// What can go wrong, in a code for programs and a sentence for people.

/** A failure that ends a session, or refuses a request. `code` is one of docs/protocol.md, or one of `LOCAL`. */
export class SttError extends Error {
  constructor(code, message, { retryable = RETRYABLE.has(code), cause } = {}) {
    super(message, { cause });
    this.name = "SttError";
    this.code = code;
    this.retryable = retryable;
  }
}

/** Codes of this library's own: no server answers; the connection is lost for good; it speaks something else. */
export const LOCAL = Object.freeze(["unreachable", "connection_lost", "protocol_fault"]);

/** Codes after which the same request may succeed later; a test holds them against the server's table. */
export const RETRYABLE = new Set([
  "model_loading", "model_failed", "start_timeout", "idle_timeout", "session_too_long", "slow_receiver",
  "body_timeout", "rate_limited", "quota_exceeded", "checksum_mismatch", "upload_incomplete", "job_unfinished",
  "worker_lost", "log_unavailable", "store_unavailable", "at_capacity", "not_ready", "shutting_down",
  "backend_failed", "backend_stalled", "internal", "unreachable",
]);

/** Codes that this version knows not to be worth another try. An unknown one may be. */
export const FINAL = new Set([
  "bad_message", "unknown_type", "bad_order", "bad_audio", "not_supported", "unknown_model", "too_many_errors",
  "bad_start", "unsupported_audio", "undecodable_audio", "unsupported_language", "message_too_large", "bad_request",
  "unknown_backend", "too_large", "audio_too_long", "unknown_upload", "upload_conflict", "unsupported_version",
  "unsupported_type", "unknown_job", "job_failed", "cancelled", "unauthorized", "forbidden", "forbidden_origin",
  "not_found", "unknown_session", "session_expired", "wrong_token", "session_taken", "taken_over", "offset_ahead",
  "offset_behind", "seq_ahead", "seq_behind", "sender_gone", "deleted", "backend_rejected", "backend_misconfigured",
  "stopped",
]);

/** Whether what ended with this code may be followed by another try. */
export function mayPass(code) {
  return RETRYABLE.has(code) || !FINAL.has(code);
}

/** The `SttError` that an HTTP answer of the bridge stands for. */
export async function refusal(response) {
  let error = null;
  try {
    ({ error } = await response.json());
  } catch {
    // A proxy's page, or a body that broke off: the status has to do.
  }
  if (typeof error?.code === "string")
    return new SttError(error.code, error.message, { retryable: mayPass(error.code) });
  const message = `The server answers with HTTP status ${response.status}.`;
  return new SttError("unreachable", message, { retryable: response.status >= 500 });
}
