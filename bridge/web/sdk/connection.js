// One WebSocket of the native protocol: messages out and in, every failure told in a sentence.

import { authorization, httpBase, socketArguments, streamUrl } from "./address.js";
import { mayPass, refusal, SttError } from "./errors.js";

/** For the connection with its first answer: a server that carries its load answers within milliseconds. */
const OPEN_SECONDS = 10;

export class Connection {
  #socket;
  #waiting = []; // messages that came before somebody listened
  #welcome = null; // who waits for the first one
  #listener = null;
  #lost;

  constructor(socket) {
    this.#socket = socket;
    /** Resolves with the reason, a sentence, when there is nothing more to come. Never rejects. */
    this.lost = new Promise((resolve) => {
      this.#lost = resolve;
    });
    socket.onmessage = ({ data }) => this.#take(data);
    socket.onclose = ({ code, reason }) => this.#lost(closing(code, reason));
  }

  /**
   * Connect, say `opening`, and wait for the first message: [connection, message].
   *
   * Rejects with an `SttError`: the server's refusal where it can be found out, or `unreachable`.
   */
  static async open(server, key, opening) {
    const socket = socketTo(server, key);
    socket.binaryType = "arraybuffer";
    const connection = new Connection(socket);
    let timer;
    const late = new Promise((resolve) => {
      timer = setTimeout(resolve, OPEN_SECONDS * 1000, `The server did not get ready within ${OPEN_SECONDS} s.`);
    });
    const first = new Promise((resolve) => {
      connection.#welcome = resolve;
    });
    let opened = false;
    socket.onopen = () => {
      opened = true;
      connection.say(opening);
    };
    try {
      const outcome = await Promise.race([first, connection.lost, late]);
      if (outcome instanceof SttError) throw outcome;
      if (typeof outcome !== "string") return [connection, outcome];
      throw (opened ? null : await whyNot(server, key)) ?? new SttError("unreachable", outcome);
    } catch (error) {
      connection.abort();
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Bytes that wait in the browser. */
  get waiting() {
    return this.#socket.bufferedAmount;
  }

  /** Give each message to `listener`, from the first after the welcome on. `SttError`: what came is no message. */
  listen(listener) {
    this.#listener = listener;
    for (const message of this.#waiting.splice(0)) listener(message);
  }

  /** Send audio; goes nowhere once the connection is lost. */
  send(bytes) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(bytes);
  }

  /** Send a message. */
  say(message) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** End it without waiting for anything; what still comes is dropped. */
  abort(why = "The connection was given up.") {
    this.#lost(why);
    this.#socket.onmessage = this.#socket.onopen = null;
    this.#welcome = null;
    this.#listener = () => {};
    this.#socket.close();
  }

  #take(data) {
    let message;
    try {
      message = JSON.parse(data);
      if (typeof message?.type !== "string") throw new TypeError("it has no type");
    } catch (cause) {
      message = new SttError("protocol_fault", "The server sent something that is no message.", { cause });
    }
    const taker = this.#welcome ?? this.#listener;
    this.#welcome = null;
    if (taker) taker(message);
    else this.#waiting.push(message);
  }
}

function socketTo(server, key) {
  try {
    return new WebSocket(...socketArguments(streamUrl(server), key));
  } catch (cause) {
    // No address, or one without encryption from a page with it: another try changes nothing.
    throw new SttError("unreachable", `${server}: ${cause.message}`, { retryable: false, cause });
  }
}

/** What the server has against a connection: a browser hides the answer to an upgrade. Null: nothing that shows. */
async function whyNot(server, key) {
  try {
    const base = httpBase(server);
    const signal = AbortSignal.timeout(5000);
    const asked = await fetch(`${base}/v1/backends`, { headers: authorization(key), cache: "no-store", signal });
    if (!asked.ok) return await refusal(asked);
    const ready = await (await fetch(`${base}/readyz`, { cache: "no-store", signal })).json();
    return ready.code
      ? new SttError(ready.code, `The server takes no session now (${ready.code}).`, {
          retryable: mayPass(ready.code),
        })
      : null;
  } catch {
    return null; // it cannot be reached by HTTP either, which says as much as the failure before
  }
}

function closing(code, reason) {
  if (code === 1006) return "The connection broke off.";
  return `The server closed the connection with code ${code}${reason ? `: ${reason}` : ""}.`;
}
