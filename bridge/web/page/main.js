// Which page it is: a microphone with captions and files, or a screen in a hall.

import { $, languageName } from "./dom.js";
import { openHall } from "./hall.js";
import { Live } from "./live.js";
import { openRecordings } from "./recordings.js";
import { sentence } from "./sentences.js";
import { discover, openSettings } from "./settings.js";
import { choices, showChoices, switchTheme } from "./store.js";

const TABS = ["live", "file"];
const query = new URLSearchParams(location.search);
const session = query.get("session");

showChoices();
$("theme").onclick = switchTheme;

if (query.get("role") === "receiver" && session) openHall(session);
else openDesk();

function openDesk() {
  const live = new Live();
  const facts = (served) => {
    if (live.busy || !served) return;
    const name = choices.backend || served.backends.find(({ state }) => state === "ready")?.name;
    $("fact-backend").textContent = name ?? served.backends[0]?.name ?? "–";
    $("fact-language").textContent = languageName(choices.language || served.language);
  };
  openSettings((served) => {
    showChoices();
    facts(served);
  });
  openTabs();
  openRecordings(() => showTab("file"));
  discover().then(facts, (error) => {
    $("notes").textContent = sentence(error);
  });
}

function openTabs() {
  for (const name of TABS) {
    const tab = $(`tab-${name}`);
    tab.onclick = () => showTab(name);
    tab.onkeydown = ({ key }) => {
      if (key !== "ArrowLeft" && key !== "ArrowRight") return;
      const other = TABS.find((one) => one !== name);
      showTab(other);
      $(`tab-${other}`).focus();
    };
  }
}

function showTab(name) {
  for (const other of TABS) {
    const tab = $(`tab-${other}`);
    tab.setAttribute("aria-selected", String(other === name));
    tab.tabIndex = other === name ? 0 : -1;
    $(other).hidden = other !== name;
  }
}
