// Captions on the screen: finals that stay, and the partial that is still being said.

import { clock, make } from "./dom.js";

/** Finals that are shown at once; a day of talk must not slow the page down. */
const SHOWN = 400;
/** Confidence from which a word is sure, and below which it is doubtful. */
const SURE = 0.7;
const DOUBTFUL = 0.4;
/** Pixels from the end at which the reader still counts as following. */
const NEAR = 96;

/** Captions in `box`, which scrolls: into the elements `finals` and `partial`. `stamps`: with times beside them. */
export class Captions {
  #box;
  #finals;
  #partial;
  #stamps;
  #following = true;

  constructor({ box, finals, partial, stamps = true, onFollow = () => {}, onDrop = () => {} }) {
    this.#box = box;
    this.#finals = finals;
    this.#partial = partial;
    this.#stamps = stamps;
    this.onDrop = onDrop;
    box.addEventListener(
      "scroll",
      () => {
        const following = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
        if (following !== this.#following) onFollow(following);
        this.#following = following;
      },
      { passive: true },
    );
  }

  /** What is final goes to the end, for good. */
  final(message) {
    this.#partial.replaceChildren();
    const text = make("span", "said", ...spoken(message));
    text.dir = "auto";
    const line = make("p", "final", text);
    if (message.language) line.lang = message.language;
    if (this.#stamps) {
      const stamp = make("time", "stamp", clock(message.start));
      stamp.setAttribute("aria-hidden", "true");
      line.prepend(stamp);
    }
    this.#finals.append(line);
    while (this.#finals.childElementCount > SHOWN) {
      this.#finals.firstElementChild.remove();
      this.onDrop();
    }
    this.#follow();
  }

  /** The words so far; those that are certain to stay are told apart. */
  partial({ text, committed = 0 }) {
    const letters = [...text];
    this.#partial.replaceChildren(
      make("span", "certain", letters.slice(0, committed).join("")),
      letters.slice(committed).join(""),
    );
    this.#follow();
  }

  /** The partial is no longer valid: the connection broke, or the session is over. */
  forgetPartial() {
    this.#partial.replaceChildren();
  }

  /** The language that is spoken, for screen readers. */
  set language(tag) {
    for (const element of [this.#finals, this.#partial]) {
      if (tag && tag !== "auto") element.lang = tag;
      else element.removeAttribute("lang");
    }
  }

  /** Empty. */
  clear() {
    this.#finals.replaceChildren();
    this.#partial.replaceChildren();
  }

  /** To the newest line, and along with it from now on. */
  toEnd() {
    this.#following = true;
    this.#follow();
  }

  #follow() {
    if (this.#following) this.#box.scrollTop = this.#box.scrollHeight;
  }
}

/** A final's words, each that is not sure in an element of its own; the text where words are not known. */
function spoken({ text, words = [] }) {
  const joined = words.map((word) => word.text).join(" ");
  if (joined !== text || !words.some(({ confidence }) => confidence < SURE)) return [text];
  return words.flatMap((word, index) => {
    const space = index ? [" "] : [];
    if (!(word.confidence < SURE)) return [...space, word.text];
    const element = make("span", word.confidence < DOUBTFUL ? "word doubtful" : "word unsure", word.text);
    element.title = `${Math.round(100 * word.confidence)} % sure`;
    return [...space, element];
  });
}
