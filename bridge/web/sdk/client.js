// The sender's half of a session: audio goes in whatever the connection does.

import { Lifeline } from "./lifeline.js";
import { SttError } from "./errors.js";
import { Ring } from "./ring.js";

/** Acks come about once a second while audio comes. From a server that sends none, the socket alone holds back. */
const ACK_PATIENCE_SECONDS = 2;
/** Audio in one message at most; more only delays what follows it. */
const PIECE_SECONDS = 0.25;
/** Flushes that are remembered until they are answered; the oldest are the least missed. */
const MAX_FLUSHES = 1024;
/** What may wait in the browser for a server that sends no acks. */
const MAX_WAITING_BYTES = 262_144;
/** Bytes of a sample, of the raw encodings that this client sends. */
const WIDTHS = { pcm_s16le: 2, pcm_s16be: 2, pcm_f32le: 4, pcm_s8: 1, pcm_u8: 1, mulaw: 1, alaw: 1 };

/** One session that this page speaks into. See index.d.ts for options and events, docs/clients.md for examples. */
export class SttClient extends Lifeline {
  /** What the server agreed to, at the last connection. */
  ready = null;

  #start;
  #frameBytes;
  #byteRate;
  #ring = new Ring();
  #limit;
  #cursor = 0; // the next byte to be sent
  #acked = 0; // bytes known to be received
  #best = [0, 0]; // the furthest ack
  #baseWindow;
  #window;
  #acksCome = true;
  #ackTimer = null;
  #flushes = []; // where they were asked for
  #flushed = -1; // those up to here have been said on this connection
  #stopAt = null;
  #stopSaid = false;
  #drained = null; // {promise, resolve}: who waits for room
  #full = false; // told
  #refused = 0; // bytes for which there was no room

  constructor({ start = {}, ...options } = {}) {
    super(options);
    const { encoding = "pcm_s16le", sample_rate = 16_000, channels = 1, ...others } = start;
    if (!(encoding in WIDTHS)) throw new TypeError(`this client sends raw samples, not ${encoding}`);
    this.#start = { type: "start", encoding, sample_rate, channels, ...others };
    this.#start.resume ??= this.reconnect !== null;
    this.#frameBytes = WIDTHS[encoding] * channels;
    this.#byteRate = this.#frameBytes * sample_rate;
    const { ringSeconds, windowSeconds } = this.reconnect ?? { ringSeconds: 10, windowSeconds: 10 };
    this.#limit = Math.ceil(ringSeconds * this.#byteRate);
    this.#baseWindow = this.#window = Math.ceil(windowSeconds * this.#byteRate);
    this.addEventListener("end", () => this.#drained?.resolve());
  }

  /** Seconds of audio that `send` has taken. */
  get seconds() {
    return this.#ring.end / this.#byteRate;
  }

  /** Seconds of audio that wait to be sent. */
  get behindSeconds() {
    return (this.#ring.end - this.#cursor) / this.#byteRate;
  }

  /**
   * Take audio in the declared format (`ArrayBuffer` or a view of one), also while there is no connection.
   *
   * False: nothing of it was taken, because as much as may be is kept for a server that is away (event `overflow`);
   * a file waits for `room`, a microphone cannot. Throws once `stop` was said or the session is over.
   */
  send(audio) {
    if (this.#stopAt !== null) throw new Error("nothing may follow `stop`");
    if (this.state === "ended") throw new SttError("connection_lost", "The session is over.");
    const bytes =
      audio instanceof ArrayBuffer
        ? new Uint8Array(audio)
        : new Uint8Array(audio.buffer, audio.byteOffset, audio.byteLength);
    if (bytes.length === 0) return true;
    if (!this.#makeRoom(bytes.length)) {
      if (!this.#full) this.tell("overflow", { seconds: this.#ring.held / this.#byteRate });
      this.#full = true;
      this.#refused = bytes.length;
      return false;
    }
    this.#full = false;
    this.#refused = 0;
    this.#ring.append(bytes);
    this.#pump();
    return true;
  }

  /** Resolves when `send` may take more, or the session is over. */
  async room() {
    if (this.state === "ended" || this.#roomy) return;
    if (!this.#drained) {
      let resolve;
      const promise = new Promise((done) => {
        resolve = done;
      });
      this.#drained = { promise, resolve };
    }
    await this.#drained.promise;
  }

  /** Ask for finals of everything sent so far; the session goes on. */
  flush() {
    this.#flushes.push(this.#ring.end);
    this.#flushes.splice(0, this.#flushes.length - MAX_FLUSHES);
    this.#pump();
  }

  /** Say that there is no more audio. Resolves with `closed` after the last final; rejects as `done`. */
  async stop() {
    if (!this.begun) this.close();
    if (this.#stopAt === null) {
      this.#stopAt = this.#ring.end;
      if (this.state === "open") this.enter("stopping");
      this.#pump();
    }
    return await this.done;
  }

  // What is kept

  get #keeps() {
    return this.reconnect !== null && (this.ready === null || this.ready.resume_token != null);
  }

  /** Up to which byte this server has the audio. */
  get #got() {
    return Math.min(this.#keeps ? this.#acked : this.#cursor, this.#cursor);
  }

  /** Whether half of the ring could be had, and what was refused last; that which is larger than the ring, alone. */
  get #roomy() {
    const held = this.#ring.end - Math.max(this.#ring.start, this.#got);
    return held === 0 || (held < this.#limit / 2 && held + this.#refused <= this.#limit);
  }

  /**
   * Whether there is room for so much. Where there is none, audio that this server has got is let go of, final or not:
   * the session can then be resumed only where it lives, but a microphone never has to wait for a final.
   */
  #makeRoom(size) {
    const over = this.#ring.held + size - this.#limit;
    if (over <= 0) return true;
    this.#ring.forget(Math.min(this.#ring.start + over, this.#got));
    return this.#ring.held + size <= this.#limit || this.#ring.held === 0;
  }

  heed(message) {
    if (message.type !== "ack") return super.heed(message);
    const [received, finalized] = this.#best;
    const further = message.received > received || message.finalized > finalized;
    this.#best = [Math.max(received, message.received), Math.max(finalized, message.finalized)];
    this.#acksCome = true;
    clearTimeout(this.#ackTimer);
    this.#ackTimer = null;
    const got = message.received * this.#frameBytes;
    // Two intervals' worth: twice as much as a fast server takes from one ack to the next.
    this.#window = Math.max(this.#baseWindow, 2 * (got - this.#acked));
    this.#acked = Math.max(this.#acked, got);
    this.#letGo(message.finalized);
    this.#pump();
    return further;
  }

  /** Audio that the server has finalized; tells who waits for room. */
  #letGo(finalized) {
    const final = finalized * this.#frameBytes;
    this.#ring.forget(Math.min(final, this.#cursor));
    this.#flushes = this.#flushes.filter((at) => at > final + this.#frameBytes - 1);
    this.#tellRoom();
  }

  #tellRoom() {
    if (!this.#drained || !this.#roomy) return;
    this.#drained.resolve();
    this.#drained = null;
  }

  // Connections

  get holdSeconds() {
    return this.ready?.resume_token == null ? null : this.ready.resume_seconds;
  }

  get owed() {
    return this.connection !== null && (this.#cursor > this.#acked || this.#stopSaid);
  }

  get patience() {
    return super.patience * (this.#stopSaid ? 2 : 1); // it finalizes what is left first
  }

  get greeting() {
    return "ready";
  }

  opening() {
    if (this.ready === null) return this.#start;
    const { session_id, resume_token } = this.ready;
    return { type: "start", session_id, resume_token, from_seq: this.last + 1 };
  }

  welcome(first) {
    if (this.ready === null) this.ready = first;
    else this.#goOn(first);
  }

  /** Take the audio up again where the server wants it (10, 11). */
  #goOn(ready) {
    const at = ready.received_bytes;
    if (!ready.resumed || ready.session_id !== this.ready.session_id) {
      throw new SttError("unreachable", "The server opened another session instead of resuming this one.");
    }
    if (at > this.#ring.end) {
      throw new SttError("unreachable", `The server wants audio from byte ${at} on of ${this.#ring.end}.`);
    }
    if (ready.resume_token == null) {
      // It has ended meanwhile: only messages are left, and audio would be ignored.
      this.#cursor = this.#acked = this.#ring.end;
      return;
    }
    if (at < this.#ring.start) {
      throw new SttError("offset_ahead", "The server wants audio again that is no longer kept.");
    }
    this.#cursor = this.#acked = at;
    this.#window = this.#baseWindow;
    this.#acksCome = true;
    this.ready = ready;
    this.#letGo(ready.finalized ?? 0); // what is told here is not told again by an ack
  }

  write() {
    this.#flushed = this.#cursor - 1;
    this.#stopSaid = false;
    if (this.#stopAt !== null) this.enter("stopping");
    this.#pump();
  }

  /** Audio, flushes and `stop`, each at its place, as far as they may go now. */
  #pump() {
    while (this.connection && !this.#stopSaid) {
      const flush = this.#flushes.find((at) => at > this.#flushed);
      const end = flush ?? this.#ring.end;
      if (this.#cursor < end) {
        if (!this.#sendPiece(end)) return;
      } else if (flush !== undefined) {
        this.#flushed = flush;
        this.connection.say({ type: "flush" });
      } else if (this.#stopAt !== null) {
        this.#stopSaid = true;
        this.connection.say({ type: "stop" });
        this.watch();
      } else return;
    }
  }

  #sendPiece(end) {
    let size = Math.min(Math.ceil(PIECE_SECONDS * this.#byteRate), end - this.#cursor);
    size = Math.min(size, this.ready.limits?.message_bytes ?? size);
    if (this.#acksCome) {
      size = Math.min(size, this.#acked + this.#window - this.#cursor);
      if (size <= 0) {
        this.#wait(ACK_PATIENCE_SECONDS);
        return false;
      }
    } else if (this.connection.waiting > MAX_WAITING_BYTES) {
      this.#wait(PIECE_SECONDS); // a browser gives no event when its buffer empties
      return false;
    }
    const piece = this.#ring.piece(this.#cursor, size);
    this.connection.send(piece);
    this.#cursor += piece.length;
    if (!this.#keeps) {
      this.#ring.forget(this.#cursor);
      this.#tellRoom();
    }
    if (!this.watched) this.watch();
    return true;
  }

  /** Go on after a while without acks. */
  #wait(seconds) {
    this.#ackTimer ??= setTimeout(() => {
      this.#ackTimer = null;
      this.#acksCome = false;
      this.#pump();
    }, seconds * 1000);
  }

  /** Without `stop` the server would hold the session for somebody who does not come back (14). */
  leave() {
    if (!this.closed && this.ready?.resume_token != null) this.connection.say({ type: "stop" });
  }
}
