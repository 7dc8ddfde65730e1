// The receiver's half of a session: what somebody else says, without a gap or a repeat.

import { Lifeline, RENEWED } from "./lifeline.js";
import { SttError } from "./errors.js";

/** How long a receiver tries to come back: as long as a server holds a sender's place (16). */
const HOLD_SECONDS = 60;
/** A session may be silent for long, and a dead connection looks the same: after so long another one takes over. */
const QUIET_SECONDS = 45;

/** A session that somebody else speaks into. */
export class SttReceiver extends Lifeline {
  /** How the session stood, at the last connection. */
  joined = null;

  #session;
  #from;
  #partials;

  /** `from`: the first lasting message that is wanted; null: those to come. */
  constructor({ session, from = 1, partials = true, ...options } = {}) {
    super(options);
    if (!session) throw new TypeError("a receiver has to say of which session");
    this.#session = session;
    this.#from = from;
    this.#partials = partials;
  }

  get holdSeconds() {
    return HOLD_SECONDS;
  }

  get owed() {
    return true;
  }

  get patience() {
    return QUIET_SECONDS;
  }

  silent() {
    return new SttError(RENEWED, "Nothing was heard for long.");
  }

  write() {
    this.watch();
  }

  get greeting() {
    return "joined";
  }

  opening() {
    const wanted = this.joined === null ? this.#from : this.last + 1;
    const opening = { type: "start", role: "receiver", session_id: this.#session, partials: this.#partials };
    return wanted === null ? opening : { ...opening, from_seq: wanted };
  }

  welcome(first) {
    if (this.joined === null) this.last = this.#from === null ? first.last_seq : this.#from - 1;
    // It counts as told, but `closed` is still to come: the session ended before, or between two connections (15).
    if (first.state === "ended" && first.last_seq <= this.last) this.last = first.last_seq - 1;
    this.joined = first;
  }
}
