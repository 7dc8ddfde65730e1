// Connection after connection to one session, so that its user sees a single unbroken run of messages.
//
// What the server wrote down has a number, 1, 2, 3 and so on. Whatever breaks, the next connection asks for what comes
// after the last number that was taken; a repeat is dropped, and a gap means that the connection cannot be relied on.
// The numbers in brackets are the rules of docs/client.md, "What a client owes".

import { keyFrom } from "./address.js";
import { Backoff, RECONNECT } from "./backoff.js";
import { Connection } from "./connection.js";
import { mayPass, SttError } from "./errors.js";

/** An attempt that broke off may lie for so long in a server that hangs (7). */
const DOUBTFUL_SECONDS = 15;
/** A connection that has lived so long ends an outage, even if nobody has said anything (8). */
const STEADY_SECONDS = 10;
/** Connections given up one after another for what the server sent on them, with nothing lasting in between. */
const MAX_FAULTS = 3;
/** Times the limit of one outage, for which resumes that come to nothing are gone on with. */
const FRUITLESS = 5;
/** After `networkChanged`, a server that answers nothing for so long counts as gone. */
const PROBE_SECONDS = 3;

/** Code of a connection that is given up because nothing may ever come over it again: no news for anybody. */
export const RENEWED = "renewed";

const LASTING = new Set(["speech_started", "speech_ended", "final", "warning", "error", "closed"]);

const now = () => performance.now() / 1000;

/** What senders and receivers have in common. Events: see index.d.ts. */
export class Lifeline extends EventTarget {
  /** `closed` of the server, once it came. */
  closed = null;
  /** How often the session was resumed. */
  reconnects = 0;
  state = "idle";
  last = 0; // number of the last lasting message
  connection = null;

  #server;
  #token;
  #backoff;
  #running = false;
  #over = false;
  #settle;
  #wake = null; // ends the wait between two attempts
  #break = null; // ends the connection that there is, with a reason
  #doubtfulUntil = 0;
  #since = null; // when the outage began that has seen no progress since
  #faults = 0;
  #silence = null; // timer
  #heard = 0; // when something came last
  #error = null; // the fatal one

  constructor({ server, token, reconnect } = {}) {
    super();
    this.#server = server;
    this.#token = token;
    this.reconnect = reconnect === false ? null : { ...RECONNECT, ...reconnect };
    this.#backoff = new Backoff(this.reconnect ?? RECONNECT);
    /** Resolves with `closed` (null after `close`), rejects with an `SttError`: when the session is over. */
    this.done = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    this.done.catch(() => {}); // who does not ask for it hears of it by the event `end`
  }

  // What sets senders and receivers apart.

  /** The type of the message that a connection begins with. */
  get greeting() {
    throw new Error("not implemented");
  }

  /** What the next connection begins with. */
  opening() {
    throw new Error("not implemented");
  }

  /** Take that message; throws an `SttError` where the session cannot go on with it. */
  welcome() {
    throw new Error("not implemented");
  }

  /** How long after a break it makes sense to come back; null: not at all. */
  get holdSeconds() {
    return null;
  }

  /** Whether the server owes an answer, so that silence means that it is gone. A browser cannot ping. */
  get owed() {
    return false;
  }

  /** Seconds of such silence. */
  get patience() {
    return this.reconnect?.silenceSeconds ?? RECONNECT.silenceSeconds;
  }

  /** What that silence ends the connection with. */
  silent(seconds) {
    return new SttError("connection_lost", `Nothing was heard of the server for ${seconds.toFixed(0)} s.`);
  }

  /** The connection is there: say what there is to say. */
  write() {}

  /** Say goodbye before the connection is closed from this side. */
  leave() {}

  /** Look at a message before the user gets it; whether it shows that the session has come further. */
  heed(message) {
    return LASTING.has(message.type) && message.seq != null;
  }

  // Its life.

  /** Begin. Resolves with the server's welcome; rejects with an `SttError`. To be called once. */
  async start() {
    if (this.#running) throw new Error("it has been started already");
    this.#running = true;
    const welcomed = new Promise((resolve) => {
      this.addEventListener("welcome", (event) => resolve(event.detail), { once: true });
    });
    this.#live().then(
      (closed) => this.#end(closed, null),
      (error) => this.#end(null, error),
    );
    return await Promise.race([welcomed, this.done]);
  }

  /** Whether `start` was called. */
  get begun() {
    return this.#running;
  }

  /** Leave at once. What was not read is lost to this client. */
  close() {
    if (this.#over) return;
    this.#over = true;
    if (this.connection) this.leave();
    this.#break?.("closed");
    this.#wake?.();
    if (!this.#running) this.#end(null, null);
  }

  /** The device has another network, or woke up: find out at once whether the connection still lives. */
  networkChanged() {
    this.#backoff.reset();
    this.#wake?.();
    if (this.connection && this.owed) this.watch(PROBE_SECONDS);
  }

  /** Tell of something. */
  tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** Be in another state, and tell of it. `reason`: a sentence. */
  enter(state, reason = null) {
    if (state === this.state && reason === null) return;
    this.state = state;
    this.tell("state", { state, reason });
  }

  /** Expect something of the server within so many seconds, from now or from what came last. */
  watch(seconds = this.patience, asked = now()) {
    clearTimeout(this.#silence);
    const left = Math.max(this.#heard, asked) + seconds - now();
    this.#silence = setTimeout(() => {
      this.#silence = null;
      if (!this.owed) return;
      if (this.#heard > asked) this.watch(this.patience, this.#heard);
      else this.#break?.(this.silent(seconds));
    }, left * 1000);
  }

  /** Whether somebody is watching already. */
  get watched() {
    return this.#silence !== null;
  }

  #end(closed, error) {
    this.#over = true;
    clearTimeout(this.#silence);
    if (error) this.#settle.reject(error);
    else this.#settle.resolve(closed);
    this.enter("ended", error?.message ?? null);
    this.tell("end", { closed, error });
  }

  async #live() {
    this.enter("connecting");
    let connection = await this.#first();
    while (connection) {
      const began = now();
      const loss = await this.#converse(connection);
      this.connection = null;
      connection.abort();
      if (loss === null || this.#over) return this.closed;
      if (now() - began >= STEADY_SECONDS) this.#progress();
      connection = await this.#comeBack(loss);
    }
    return null;
  }

  /** The first connection, null once nobody wants it. */
  async #first() {
    return await this.#attempts(now() + (this.reconnect?.firstSeconds ?? 0), (error) => error.retryable);
  }

  /** Connections until one is welcome; null once nobody wants it. One at least is tried. */
  async #attempts(deadline, mayTry) {
    let renewed = false;
    let reason = "connect";
    for (;;) {
      try {
        return await this.#open(reason);
      } catch (error) {
        if (this.#over) return null;
        reason = "connect";
        if (error.code === "unauthorized" && typeof this.#token === "function" && !renewed) {
          renewed = true;
          reason = "unauthorized";
          continue;
        }
        if (error.code === "unreachable") this.#doubtfulUntil = now() + DOUBTFUL_SECONDS;
        if (!mayTry(error) || now() >= deadline) throw error;
        this.enter(this.state, error.message);
      }
      await this.#pause(deadline);
      if (this.#over) return null;
    }
  }

  async #open(reason) {
    const key = await keyFrom(this.#token, reason);
    if (this.#over) return null;
    const [connection, first] = await Connection.open(this.#server, key, this.opening());
    try {
      if (first.type === "error") throw new SttError(first.code, first.message, first);
      if (first.type === "closed") throw new SttError(first.code, `The server ended the connection (${first.code}).`);
      if (first.type !== this.greeting) {
        const began = `The server began with \`${first.type}\` instead of \`${this.greeting}\`.`;
        throw new SttError("unreachable", began);
      }
      this.welcome(first);
      this.tell("welcome", first);
      this.tell(first.type, first);
    } catch (error) {
      connection.abort();
      throw error;
    }
    if (this.#over) {
      this.connection = connection;
      this.leave();
      connection.abort();
      return null;
    }
    return connection;
  }

  /** Until the connection is lost (an `SttError`), or the session is over (null). */
  async #converse(connection) {
    const resumable = this.reconnect !== null && this.holdSeconds !== null;
    this.connection = connection;
    this.#heard = now();
    const broken = new Promise((resolve) => {
      this.#break = resolve;
    });
    const ended = new Promise((resolve) => {
      let refused = null; // the connection, not the session
      connection.listen((message) => {
        this.#heard = now();
        if (message instanceof SttError) return resolve(message);
        const fault = this.#isNews(message, resumable);
        if (fault !== true) return fault === false ? undefined : resolve(fault);
        if (this.heed(message)) this.#progress();
        if (message.type === "error" && message.fatal) {
          if (message.seq == null && resumable) {
            refused = message; // nothing for the user unless the session ends with it
            return undefined;
          }
          this.#error = message;
        } else if (message.type === "closed") {
          if (message.seq == null && resumable && this.#passes(message.code)) {
            return resolve(new SttError("connection_lost", `The server ended the connection (${message.code}).`));
          }
          if (refused) this.tell("error", refused);
          this.closed = message;
          this.tell("closed", message);
          return resolve(null);
        }
        this.tell(message.type, message);
        return undefined;
      });
    });
    this.enter("open");
    this.write();
    const why = await Promise.race([ended, connection.lost, broken]);
    this.#break = null;
    clearTimeout(this.#silence);
    this.#silence = null;
    return typeof why === "string" ? new SttError("connection_lost", why) : why;
  }

  /** Whether the user is to see it; an `SttError` if messages are missing before it. */
  #isNews(message, checked) {
    if (message.type === "ready" || message.type === "joined") return false;
    if (!checked || !LASTING.has(message.type) || message.seq == null) return true;
    if (message.seq > this.last + 1) {
      return new SttError("protocol_fault", `The server went on with message ${message.seq} after ${this.last}.`);
    }
    if (message.seq <= this.last) return false;
    this.last = message.seq;
    this.#faults = 0;
    return true;
  }

  /** What took this connection's place may be an attempt of our own, which a server that hung has seen late. */
  #passes(code) {
    return mayPass(code) || (code === "taken_over" && now() < this.#doubtfulUntil);
  }

  #progress() {
    this.#since = null;
    this.#backoff.reset();
  }

  async #comeBack(loss) {
    const hold = this.holdSeconds;
    if (this.reconnect === null || hold === null) {
      throw this.#error ? new SttError(this.#error.code, this.#error.message, this.#error) : loss;
    }
    if (loss.code === "protocol_fault") {
      this.#faults += 1;
      if (this.#faults >= MAX_FAULTS) throw loss;
    }
    const began = now();
    const limit = this.reconnect.giveUpSeconds ?? hold;
    this.#since ??= began;
    if (began >= this.#since + FRUITLESS * limit) {
      throw new SttError("connection_lost", `${loss.message} The session was resumed, and got no further.`);
    }
    if (loss.code !== RENEWED) this.enter("reconnecting", loss.message);
    await this.#pause(began + limit);
    if (this.#over) return null;
    try {
      // A session can be taken only for a moment: while it ends, or moves from one server to another (9).
      const connection = await this.#attempts(
        began + limit,
        (error) => error.retryable || mayPass(error.code) || error.code === "session_taken",
      );
      if (connection) this.reconnects += 1;
      return connection;
    } catch (error) {
      if (error.code !== "unreachable") throw error;
      const message = `${loss.message} It could not be resumed within ${limit.toFixed(0)} s: ${error.message}`;
      throw new SttError("connection_lost", message, { cause: error });
    }
  }

  /** Wait before the next attempt; `close` and `networkChanged` end the wait. */
  async #pause(deadline) {
    const seconds = Math.max(Math.min(this.#backoff.next(), deadline - now()), 0);
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, seconds * 1000);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#wake = null;
  }
}
