// A screen that everybody in the hall can read: receives a session by its link, and shows the last lines large.

import { SttReceiver } from "/sdk/index.js";
import { Captions } from "./captions.js";
import { $, make, showStatus } from "./dom.js";
import { sentence } from "./sentences.js";
import { token } from "./settings.js";
import { choices, choose, showChoices, switchTheme } from "./store.js";

const STATES = {
  connecting: "Connecting…",
  reconnecting: "Reconnecting… nothing is lost",
};
const JOINED = {
  waiting: "Waiting for the speaker…",
  live: "Live",
  held: "The speaker is away for a moment",
  ended: "The session is over",
};

/** Show the session on the whole page. */
export function openHall(session) {
  document.body.classList.add("in-hall");
  $("hall").hidden = false;
  const finals = make("div", "hall-finals");
  finals.setAttribute("role", "log");
  finals.setAttribute("aria-live", "polite");
  finals.setAttribute("aria-label", "Final text");
  const partial = make("p", "partial");
  partial.dir = "auto";
  $("hall-captions").append(finals, partial);
  const captions = new Captions({ box: $("hall-captions"), finals, partial, stamps: false });

  const receiver = new SttReceiver({ session, token, reconnect: { firstSeconds: 60 } });
  receiver.addEventListener("state", ({ detail: { state } }) => {
    if (STATES[state]) showStatus("hall-status", state, STATES[state]);
    if (state === "reconnecting") captions.forgetPartial();
  });
  receiver.addEventListener("joined", ({ detail: { state } }) => {
    showStatus("hall-status", state === "live" ? "open" : "connecting", JOINED[state]);
  });
  const live = () => showStatus("hall-status", "open", JOINED.live);
  receiver.addEventListener("speech_started", live);
  receiver.addEventListener("partial", ({ detail }) => {
    live();
    captions.partial(detail);
  });
  receiver.addEventListener("final", ({ detail }) => {
    live();
    captions.final(detail);
  });
  receiver.addEventListener("end", ({ detail: { error } }) => {
    captions.forgetPartial();
    showStatus("hall-status", error ? "failed" : "idle", error ? sentence(error) : JOINED.ended);
  });
  addEventListener("online", () => receiver.networkChanged());
  addEventListener("pagehide", () => receiver.close());
  receiver.start().catch(() => {}); // the event `end` tells

  const size = (change) => {
    choose({ size: Math.min(300, Math.max(40, choices.size + change)) });
    showChoices();
    captions.toEnd();
  };
  $("smaller").onclick = () => size(-10);
  $("larger").onclick = () => size(10);
  $("hall-theme").onclick = switchTheme;
  $("whole-screen").hidden = !document.fullscreenEnabled;
  $("whole-screen").onclick = () =>
    document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen();
  stayAwake();
}

/** A screen on a wall is touched by nobody. Where the browser cannot do it, the system's settings have to. */
function stayAwake() {
  const ask = () => document.visibilityState === "visible" && navigator.wakeLock?.request("screen").catch(() => {});
  document.addEventListener("visibilitychange", ask);
  ask();
}
