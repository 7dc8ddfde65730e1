// How long it takes from a sound to its word on the screen.

/** Of how many measurements the middle one is shown. */
const KEPT = 9;

/** Knows when each moment of the audio was recorded. Seconds. */
export class Delay {
  #at = null; // [position in the audio, when it was recorded]
  #measured = [];

  /** The audio has come to this position now. */
  recorded(position) {
    this.#at = [position, performance.now() / 1000];
  }

  /** A text that ends at this position is shown now; the usual delay, or null. */
  shown(position) {
    if (this.#at === null) return null;
    const [known, when] = this.#at;
    this.#measured.push(Math.max(0, performance.now() / 1000 - (when - (known - position))));
    this.#measured.splice(0, this.#measured.length - KEPT);
    return [...this.#measured].sort((a, b) => a - b)[Math.floor(this.#measured.length / 2)];
  }
}
