// The few things that every part of the page does with elements. Text is always set as text, never as markup.

/** The element of this id. */
export const $ = (id) => document.getElementById(id);

/** A new element: `classes` separated by spaces, `content` texts and elements. */
export function make(tag, classes = "", ...content) {
  const element = document.createElement(tag);
  if (classes) element.className = classes;
  element.append(...content);
  return element;
}

/** Seconds as people write them: 1:05 or 1:02:05. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** Have the browser save a file. */
export function save(file) {
  const link = make("a");
  link.href = URL.createObjectURL(file);
  link.download = file.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Show a state in one of the two status lines: for the eye (`data-state`) and in words. */
export function showStatus(id, state, text) {
  $(id).dataset.state = state;
  $(`${id}-text`).textContent = text;
}

/** A language tag in words. */
export function languageName(tag) {
  if (tag === "auto") return "Whichever is spoken";
  try {
    return new Intl.DisplayNames([navigator.language, "en"], { type: "language" }).of(tag) ?? tag;
  } catch {
    return tag;
  }
}
