// What the page says when something is wrong: for people who use it, not for those who run the server.

const SENTENCES = {
  unreachable: "The server cannot be reached.",
  connection_lost: "The connection was lost and did not come back. What was said so far is kept here.",
  at_capacity: "The server is busy: as many people are speaking as it can follow. Try again in a moment.",
  not_ready: "The server is still loading its engine. Try again in a moment.",
  shutting_down: "The server is being stopped.",
  unauthorized: "The key is wrong, or it has expired.",
  forbidden: "This key may not do that.",
  forbidden_origin:
    "The server does not accept this page's address. Open it by 127.0.0.1, or have it allowed (STT_ALLOWED_ORIGINS).",
  unsupported_language: "The engine does not know this language. Choose another one in the settings.",
  unknown_backend: "This engine is not there any more. Choose another one in the settings.",
  idle_timeout: "The session was ended because nothing was heard for long.",
  session_too_long: "The session has reached its longest duration. Start again to go on.",
  quota_exceeded: "This key has used up what it may.",
  rate_limited: "Too many attempts. Wait a little.",
  taken_over: "The session goes on in another window.",
  deleted: "The session was deleted.",
  sender_gone: "Nobody is speaking in this session any more.",
  unknown_session: "There is no such session, or no longer.",
  session_expired: "The session was away for too long and has ended. What was said so far is kept here.",
  backend_failed: "The engine failed. What was said so far is kept here.",
  backend_stalled: "The engine stopped answering. What was said so far is kept here.",
  unsupported_audio: "This is no recording that can be read.",
  undecodable_audio: "This is no recording that can be read.",
  too_large: "The file is larger than this server takes.",
  audio_too_long: "The recording is longer than this server takes.",
  job_failed: "The recording could not be transcribed.",
};

const HINTS = {
  silence: "Nothing but silence: is the microphone muted, or the wrong one?",
  low_level: "The sound is very low: come closer to the microphone.",
  clipping: "The sound is too loud and is cut off: turn the microphone down.",
  backend_changed: "The engine failed; another one goes on.",
};

/** A sentence for an `SttError`, or for any other error. */
export function sentence(error) {
  return SENTENCES[error.code] ?? error.message ?? String(error);
}

/** A sentence for a warning of the server; null: it is for developers. */
export function hint(code) {
  return HINTS[code] ?? null;
}
