// Choices and keys: the two dialogs, and what the server says there is to choose from.

import { authorization } from "/sdk/address.js";
import { refusal } from "/sdk/errors.js";
import { microphones, SttError } from "/sdk/index.js";
import { $, languageName, make } from "./dom.js";
import { choices, choose, keepKey, knownKey } from "./store.js";

/** Offered where an engine takes any language; a page cannot ask for all that there are. */
const COMMON = [
  "ar", "bg", "bn", "ca", "cs", "da", "de-DE", "el", "en-GB", "en-US", "es-ES", "es-MX", "et", "fa", "fi", "fr-FR", "he",
  "hi-IN", "hr", "hu", "id", "it-IT", "ja-JP", "ko-KR", "lt", "lv", "nb-NO", "nl-NL", "pl-PL", "pt-BR", "pt-PT", "ro",
  "ru-RU", "sk", "sl", "sr", "sv-SE", "th", "tr-TR", "uk", "ur", "vi", "zh-CN", "zh-TW",
];

let served = null; // what the server offers
let asking = null; // the question for a key that is open

/** What the server offers: asks for a key where it wants one. Rejects with an `SttError`. */
export async function discover() {
  for (;;) {
    let answer;
    try {
      answer = await fetch("/v1/backends", { headers: authorization(knownKey()), cache: "no-store" });
    } catch (cause) {
      throw new SttError("unreachable", "The server cannot be reached.", { cause });
    }
    if (answer.ok) {
      served = await answer.json();
      showServed();
      return served;
    }
    const error = await refusal(answer);
    if (error.code !== "unauthorized") throw error;
    await askForKey(knownKey() ? "This key is wrong, or it has expired." : null);
  }
}

/** The key for the next request; after a refusal the user is asked for another one. Rejects if they cancel. */
export async function token(reason) {
  if (reason === "unauthorized") await askForKey("This key is wrong, or it has expired.");
  return knownKey();
}

/** Ask for a key, once however many want it. */
function askForKey(why, { required = true } = {}) {
  asking ??= new Promise((resolve, reject) => {
    const dialog = $("key-dialog");
    $("key-why").textContent = why ?? "This server asks for an API key or a token.";
    $("key").value = "";
    $("key").required = required;
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      keepKey($("key").value.trim());
      dialog.close("given");
    };
    $("key-cancel").onclick = () => dialog.close("");
    dialog.returnValue = "";
    dialog.onclose = () => {
      asking = null;
      $("key").value = "";
      if (dialog.returnValue === "given") resolve();
      else reject(new SttError("unauthorized", "This server needs a key."));
    };
    dialog.showModal();
  });
  return asking;
}

/** What a session begins with, as chosen. */
export function startFields() {
  const fields = {};
  if (choices.language) fields.language = choices.language;
  if (choices.backend && served?.backends.some(({ name }) => name === choices.backend))
    fields.backend = choices.backend;
  return fields;
}

/** Make the settings' dialog work. `onChange` is told at each change what the server offers (null: not known). */
export function openSettings(onChange) {
  const dialog = $("settings");
  $("open-settings").onclick = async () => {
    showServed();
    await showMicrophones();
    dialog.showModal();
  };
  $("settings-done").onclick = (event) => {
    event.preventDefault();
    dialog.close();
  };
  $("change-key").onclick = () => {
    dialog.close();
    askForKey("Another key, or none, to forget it.", { required: false })
      .then(discover)
      .then(onChange, () => {});
  };
  $("processing").checked = choices.processing;
  $("colours").checked = choices.colours;
  $("size").value = choices.size;
  for (const name of ["language", "backend", "microphone"]) {
    $(name).onchange = () => {
      choose({ [name]: $(name).value });
      showServed();
      onChange(served);
    };
  }
  for (const name of ["processing", "colours"]) {
    $(name).onchange = () => {
      choose({ [name]: $(name).checked });
      onChange(served);
    };
  }
  $("size").oninput = () => {
    choose({ size: Number($("size").value) });
    onChange(served);
  };
  navigator.mediaDevices?.addEventListener?.("devicechange", () => dialog.open && showMicrophones());
}

function showServed() {
  const { language, backends } = served ?? { language: "", backends: [] };
  const names = backends.map(({ name }) => name);
  if (served && choices.backend && !names.includes(choices.backend)) choose({ backend: "" });
  const first = backends.length === 1 ? names[0] : `The server's choice (${names[0] ?? "not known yet"})`;
  fill($("backend"), [["", first], ...(names.length > 1 ? names.map((name) => [name, name]) : [])], choices.backend);
  const wanted = backends.filter(({ name }) => !choices.backend || name === choices.backend);
  const any = wanted.some(({ languages }) => languages.length === 0);
  const tags = new Set(any ? COMMON : wanted.flatMap(({ languages }) => languages));
  if (wanted.some((backend) => backend.detects_language)) tags.add("auto");
  tags.delete(language);
  const listed = [...tags].map((tag) => [tag, languageName(tag)]).sort(([, a], [, b]) => a.localeCompare(b));
  if (served && choices.language && !tags.has(choices.language)) choose({ language: "" });
  const usual = language ? languageName(language) : "The server's choice";
  fill($("language"), [["", usual], ...listed], choices.language, languageName(choices.language));
}

async function showMicrophones() {
  const devices = await microphones().catch(() => []);
  const named = devices.filter(({ label }) => label).map(({ deviceId, label }) => [deviceId, label]);
  const listed = named.filter(([id]) => id !== "default");
  fill($("microphone"), [["", "The system's choice"], ...listed], choices.microphone, "The one chosen before");
}

/** `name`: of what was chosen, where it is not among the options now. */
function fill(select, options, chosen, name = chosen) {
  if (chosen && !options.some(([value]) => value === chosen)) options.push([chosen, name]);
  select.replaceChildren(
    ...options.map(([value, text]) => {
      const option = make("option", "", text);
      option.value = value;
      return option;
    }),
  );
  select.value = chosen;
  select.disabled = options.length < 2;
}
