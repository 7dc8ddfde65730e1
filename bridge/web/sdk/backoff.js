// When a client comes back after its connection broke.

/** How a client comes back, and what it keeps for that; docs/client.md says why. Times are seconds. */
export const RECONNECT = Object.freeze({
  firstSeconds: 15, // how long even the first connection is tried again, after failures that may pass
  giveUpSeconds: null, // how long after a break; null: as long as the server holds the session
  baseSeconds: 0.1,
  mostSeconds: 2,
  ringSeconds: 120, // raw audio that is kept; more than a server keeps without a final
  windowSeconds: 10, // audio on its way beyond the last ack
  silenceSeconds: 15, // a server that answers nothing for so long, while audio waits for its ack, counts as gone
});

/** Random waits, up to base * 2^n and never more than most ("full jitter"): clients do not come back all at once. */
export class Backoff {
  #tries = 0;

  constructor({ baseSeconds, mostSeconds }) {
    this.base = baseSeconds;
    this.most = mostSeconds;
  }

  /** Seconds to wait before the next attempt. */
  next() {
    const longest = Math.min(this.most, this.base * 2 ** Math.min(this.#tries, 32));
    this.#tries += 1;
    return Math.random() * longest;
  }

  /** The outage is over. */
  reset() {
    this.#tries = 0;
  }
}
