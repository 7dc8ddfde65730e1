// The tab "File": recordings, one after the other, as jobs of the server.

import { transcribeFile, transcriptFile } from "/sdk/index.js";
import { $, clock, make, save } from "./dom.js";
import { sentence } from "./sentences.js";
import { startFields, token } from "./settings.js";

const PHASES = { waiting: "Waiting", upload: "Uploading", queued: "In the queue", running: "Transcribing" };

let last = Promise.resolve(); // the one before

/** Make the tab work; `show` brings it to the front. */
export function openRecordings(show) {
  const input = $("file-input");
  input.onchange = () => {
    add(input.files);
    input.value = "";
  };
  // Anywhere on the page: a file that misses the field must not replace the page.
  for (const type of ["dragenter", "dragover"]) {
    addEventListener(type, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      $("drop").classList.add("over");
      show();
    });
  }
  addEventListener("dragleave", (event) => event.relatedTarget === null && $("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    $("drop").classList.remove("over");
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    add(event.dataTransfer.files);
  });
}

function add(files) {
  for (const file of files) {
    const card = new Card(file);
    last = last.then(() => card.run());
  }
}

/** One recording: its name, how far it is, what was said. */
class Card {
  #file;
  #controller = new AbortController();
  #state = make("p", "state", PHASES.waiting);
  #bar = make("progress");
  #body = make("div", "text");
  #actions = make("div", "row");
  #element;

  constructor(file) {
    this.#file = file;
    this.#bar.max = 100;
    this.#bar.value = 0;
    this.#bar.setAttribute("aria-label", `Progress of ${file.name}`);
    this.#state.setAttribute("role", "status");
    const name = make("h2", "", file.name);
    const cancel = make("button", "", "Cancel");
    cancel.type = "button";
    cancel.onclick = () => this.#controller.abort(new DOMException("called off", "AbortError"));
    this.#actions.append(cancel);
    this.#element = make("li", "card", make("div", "head", name, this.#state), this.#bar, this.#body, this.#actions);
    $("files").prepend(this.#element);
  }

  async run() {
    const { language, backend } = startFields();
    try {
      this.#controller.signal.throwIfAborted();
      const result = await transcribeFile(this.#file, {
        token,
        language,
        model: backend,
        signal: this.#controller.signal,
        progress: (progress) => this.#progress(progress),
      });
      this.#succeed(result);
    } catch (error) {
      this.#fail(error);
    }
  }

  #progress({ phase, percent }) {
    const share = percent === null || phase === "queued" ? "" : ` ${Math.floor(percent)} %`;
    this.#state.textContent = `${PHASES[phase] ?? phase}${share}`;
    if (percent === null) this.#bar.removeAttribute("value");
    else this.#bar.value = percent;
  }

  #succeed({ segments, job }) {
    this.#bar.remove();
    const seconds = job.progress.total_seconds ?? job.progress.audio_seconds;
    this.#state.textContent = `${clock(seconds)} · ${job.backend} · ${job.language ?? ""}`;
    const lines = segments.map(({ text, start }) => {
      const line = make("p", "final", make("time", "stamp", clock(start)), make("span", "said", text));
      line.lastElementChild.dir = "auto";
      return line;
    });
    this.#body.replaceChildren(...(lines.length ? lines : [make("p", "hint", "Nothing was said in it.")]));
    const name = this.#file.name.replace(/\.[^.]*$/, "") || "transcript";
    this.#actions.replaceChildren(
      ...["txt", "srt", "vtt", "json"].map((format) => {
        const button = make("button", "", format);
        button.type = "button";
        button.disabled = lines.length === 0;
        button.setAttribute("aria-label", `Save ${this.#file.name} as ${format}`);
        button.onclick = () => save(transcriptFile(segments, format, name));
        return button;
      }),
    );
  }

  #fail(error) {
    this.#bar.remove();
    this.#actions.remove();
    const cancelled = error.name === "AbortError" || error.code === "cancelled";
    this.#element.classList.toggle("failed", !cancelled);
    this.#state.textContent = cancelled ? "Called off" : sentence(error);
  }
}
