// One microphone, live: from the click to the saved transcript.

import { Microphone, SttClient, transcriptFile } from "/sdk/index.js";
import { Captions } from "./captions.js";
import { Delay } from "./delay.js";
import { $, clock, languageName, save, showStatus } from "./dom.js";
import { hint, sentence } from "./sentences.js";
import { startFields, token } from "./settings.js";
import { choices } from "./store.js";

/** For a server that is still loading its engine: what is said meanwhile is kept. */
const PATIENCE_SECONDS = 90;
/** The quietest level that the meter shows. */
const FLOOR_DB = -60;
/** A level at which samples are about to be cut off. */
const LOUD_DB = -1;

const STATES = {
  connecting: "Connecting…",
  open: "Listening",
  reconnecting: "Reconnecting… nothing is lost",
  stopping: "Finishing the last words…",
};

/** Everything on the tab "Live". `busy`: whether somebody is speaking, or the last words are awaited. */
export class Live {
  #client = null;
  #microphone = null;
  #captions;
  #finals = []; // of all sessions since the page was cleared, on one clock
  #offset = 0; // seconds: where the session's clock begins on it
  #wakeLock = null;

  constructor() {
    this.#captions = new Captions({
      box: $("captions"),
      finals: $("finals"),
      partial: $("partial"),
      onFollow: (following) => {
        $("newest").hidden = following;
      },
      onDrop: () => {
        $("earlier").hidden = false;
      },
    });
    $("newest").onclick = () => {
      $("newest").hidden = true;
      this.#captions.toEnd();
    };
    $("record").onclick = () => (this.busy ? this.#stop() : this.#begin());
    $("clear").onclick = () => this.#clear();
    $("copy-link").onclick = () => this.#copyLink();
    for (const button of document.querySelectorAll("[data-format]")) {
      button.onclick = () => save(transcriptFile(this.#finals, button.dataset.format, `captions-${stamp()}`));
    }
    addEventListener("online", () => this.#client?.networkChanged());
    addEventListener("beforeunload", (event) => this.busy && event.preventDefault());
    addEventListener("pagehide", () => this.#client?.close());
    document.addEventListener("visibilitychange", () => this.#awake());
  }

  get busy() {
    return this.#client !== null;
  }

  async #begin() {
    const client = new SttClient({ token, start: startFields(), reconnect: { firstSeconds: PATIENCE_SECONDS } });
    const microphone = new Microphone({ deviceId: choices.microphone || null, processing: choices.processing });
    [this.#client, this.#microphone] = [client, microphone];
    this.#notes(null);
    this.#follow(client, microphone);
    this.#button("Stop", true);
    showStatus("status", "connecting", "Waiting for the microphone…");
    try {
      await microphone.open();
    } catch (error) {
      if (this.#client === client) this.#finish(error);
      client.close();
      return;
    }
    if (this.#microphone !== microphone) {
      await microphone.close(); // it was stopped while the browser asked
      return;
    }
    void this.#awake();
    // What is spoken from here on is kept until the server is ready. How it ends, the event `end` tells.
    client.start().catch(() => {});
  }

  async #stop() {
    const [client, microphone] = [this.#client, this.#microphone];
    this.#microphone = null;
    if (microphone === null || client.state === "idle") {
      client.close(); // asked for a second time, or before anything was said: the last words are not awaited
      await microphone?.close();
      return;
    }
    this.#button("Do not wait for the last words", true);
    await microphone.close(); // its last frame is sent on
    if (client.state === "open") showStatus("status", "stopping", STATES.stopping);
    client.stop().catch(() => {}); // as above
  }

  #follow(client, microphone) {
    const delay = new Delay();
    microphone.addEventListener("frame", ({ detail }) => {
      this.#level(detail);
      if (client.state === "ended") return;
      client.send(detail.pcm);
      delay.recorded(client.seconds);
      $("elapsed").textContent = clock(this.#offset + client.seconds);
      // Not beside the state, which is read aloud whenever it changes.
      if (client.behindSeconds >= 1) $("fact-delay").textContent = `${Math.round(client.behindSeconds)} s wait`;
    });
    microphone.addEventListener("lost", ({ detail }) => {
      this.#notes(sentence(detail));
      if (this.#microphone === microphone) void this.#stop();
    });
    microphone.addEventListener("interrupted", () =>
      this.#notes("The microphone is paused by the device: a call, or another app."),
    );
    microphone.addEventListener("resumed", () => this.#notes(null));

    client.addEventListener("state", ({ detail: { state, reason } }) => {
      if (state === "ended") return; // `end` says more
      showStatus("status", state, STATES[state]);
      if (state === "open" || (state === "connecting" && reason)) this.#notes(reason);
      if (state === "reconnecting") this.#captions.forgetPartial();
    });
    client.addEventListener("ready", ({ detail }) => {
      $("fact-backend").textContent = detail.backend;
      $("fact-language").textContent = languageName(detail.language);
      this.#captions.language = detail.language;
      this.#link(detail.session_id);
      this.#savable();
    });
    const shown = ({ end }) => {
      const seconds = delay.shown(end);
      if (seconds !== null) $("fact-delay").textContent = `${seconds.toFixed(1)} s`;
    };
    client.addEventListener("partial", ({ detail }) => {
      $("blank").hidden = true;
      this.#captions.partial(detail);
      shown(detail);
    });
    client.addEventListener("final", ({ detail }) => {
      $("blank").hidden = true;
      const final = shifted(detail, this.#offset);
      this.#finals.push(final);
      this.#captions.final(final);
      this.#savable();
    });
    client.addEventListener("warning", ({ detail }) => hint(detail.code) && this.#notes(hint(detail.code)));
    client.addEventListener("overflow", () =>
      this.#notes("The server has been away for too long: what is said now is not kept."),
    );
    client.addEventListener("end", ({ detail: { closed, error } }) => {
      this.#offset += closed?.duration ?? client.seconds;
      if (this.#client !== client) return;
      const early =
        closed && closed.code !== "stopped"
          ? { code: closed.code, message: `The session ended (${closed.code}).` }
          : null;
      this.#finish(error ?? early);
    });
  }

  /** Back to the beginning; `error`: why, unless it was wanted. */
  #finish(error) {
    void this.#microphone?.close();
    this.#client = this.#microphone = null;
    this.#captions.forgetPartial();
    this.#button("Start listening", false);
    this.#level({ rms: 0, peak: 0 });
    this.#savable();
    void this.#wakeLock?.release();
    this.#wakeLock = null;
    showStatus("status", error ? "failed" : "idle", error ? "Stopped" : this.#finals.length ? "Done" : "Ready");
    if (error) this.#notes(sentence(error));
  }

  #button(label, live) {
    const button = $("record");
    button.setAttribute("aria-label", label);
    button.dataset.live = live;
  }

  #level({ rms, peak }) {
    const decibels = Math.max(FLOOR_DB, 20 * Math.log10(Math.max(rms, 1e-6)));
    const meter = $("meter");
    meter.firstElementChild.style.transform = `scaleX(${(1 - decibels / FLOOR_DB).toFixed(3)})`;
    meter.classList.toggle("loud", 20 * Math.log10(Math.max(peak, 1e-6)) > LOUD_DB);
    meter.setAttribute("aria-valuenow", Math.round(decibels));
    meter.setAttribute("aria-valuetext", decibels <= FLOOR_DB ? "silent" : `${Math.round(decibels)} decibels`);
  }

  #notes(text) {
    $("notes").textContent = text ?? "";
  }

  #savable() {
    const some = this.#finals.length > 0;
    for (const button of document.querySelectorAll("[data-format]")) button.disabled = !some;
    $("clear").disabled = !some || this.busy;
  }

  #link(session) {
    const link = $("screen");
    link.hidden = session === null;
    $("copy-link").disabled = session === null;
    if (session !== null) link.href = `/?session=${encodeURIComponent(session)}&role=receiver`;
  }

  async #copyLink() {
    const { href } = $("screen");
    try {
      await navigator.clipboard.writeText(href);
      this.#notes("Copied. Whoever opens the link reads along.");
    } catch {
      this.#notes(href); // not every browser lets pages copy: then by hand
    }
  }

  #clear() {
    this.#finals = [];
    this.#offset = 0;
    this.#captions.clear();
    this.#link(null);
    this.#notes(null);
    $("blank").hidden = false;
    $("earlier").hidden = true;
    $("elapsed").textContent = "0:00";
    showStatus("status", "idle", "Ready");
    this.#savable();
  }

  /** A phone that goes dark stops listening. Where the browser cannot keep it awake, nothing else is lost. */
  async #awake() {
    if (!this.busy || document.visibilityState !== "visible" || !navigator.wakeLock) return;
    this.#client?.networkChanged(); // timers of a hidden page sleep
    try {
      this.#wakeLock = await navigator.wakeLock.request("screen");
      if (!this.busy) await this.#wakeLock.release();
    } catch {
      this.#wakeLock = null; // on low battery it is refused
    }
  }
}

function shifted(final, offset) {
  if (offset === 0) return final;
  const move = (item) => ({ ...item, start: item.start + offset, end: item.end + offset });
  return { ...move(final), words: final.words?.map(move) };
}

/** When it was said, for a file's name. */
function stamp() {
  const now = new Date();
  const two = (number) => String(number).padStart(2, "0");
  const day = `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`;
  return `${day}-${two(now.getHours())}${two(now.getMinutes())}`;
}
