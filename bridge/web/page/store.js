// What the page remembers: choices in the browser, the key in this tab only.

const CHOICES = "stt-choices";
const KEY = "stt-key";
const THEME = "stt-theme";

/** A browser may forbid storage: then nothing is remembered, and all the rest works. */
function attempt(action) {
  try {
    return action();
  } catch {
    return null;
  }
}

/** What was chosen: language, backend, microphone, processing, colours, size. */
export const choices = {
  language: "",
  backend: "",
  microphone: "",
  processing: false,
  colours: true,
  size: 100,
  ...attempt(() => JSON.parse(localStorage.getItem(CHOICES))),
};

/** Choose, and remember. */
export function choose(changes) {
  Object.assign(choices, changes);
  attempt(() => localStorage.setItem(CHOICES, JSON.stringify(choices)));
}

let key = attempt(() => sessionStorage.getItem(KEY));

/** The key of this tab, or null. */
export function knownKey() {
  return key;
}

/** Keep it as long as the tab is open; never in the address, which browsers and servers write down. */
export function keepKey(value) {
  key = value || null;
  attempt(() => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY)));
}

/** Show the chosen size and colours. */
export function showChoices() {
  document.documentElement.style.setProperty("--size", choices.size / 100);
  document.body.classList.toggle("plain", !choices.colours);
}

/** Switch between light and dark, from whichever is shown. */
export function switchTheme() {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  attempt(() => localStorage.setItem(THEME, root.dataset.theme));
}
