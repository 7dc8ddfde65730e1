// Files as jobs of the server: hand one in, watch it, get its transcript. A job outlives this page's connection.

import { authorization, httpBase, keyFrom } from "./address.js";
import { Backoff, RECONNECT } from "./backoff.js";
import { refusal, SttError } from "./errors.js";

/** How long it is tried to hear of a job again, after the connection broke. */
const PATIENCE_SECONDS = 120;
/** Without a sign of life for so long (the server sends one every 15 s), the connection counts as lost. */
const SILENCE_SECONDS = 40;

/**
 * Have a file (`Blob`) transcribed: {text, segments, job}. Rejects with an `SttError`, or `signal`'s reason.
 *
 * `progress` is told {phase: "upload" | "queued" | "running", percent} (percent null: not known). When `signal` aborts,
 * the job is called off.
 */
export async function transcribeFile(file, { server, token, language, model, progress = () => {}, signal } = {}) {
  const base = httpBase(server);
  const headers = async () => authorization(await keyFrom(token, "request"));
  const form = new FormData();
  for (const [name, value] of Object.entries({ language, model })) if (value) form.append(name, value);
  form.append("file", file, file.name ?? "audio");
  const key = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  const job = await upload(`${base}/v1/jobs`, { ...(await headers()), "Idempotency-Key": key }, form, progress, signal);
  const address = `${base}/v1/jobs/${job.id}`;
  try {
    await watch(address, headers, progress, signal);
  } catch (error) {
    // Whether the server hears it or not: nobody waits for the job any longer, and it ends by itself.
    if (signal?.aborted) fetch(address, { method: "DELETE", headers: await headers() }).catch(() => {});
    throw error;
  }
  const done = await fetched(address, headers, signal);
  return { ...done.result, job: done };
}

/** By `XMLHttpRequest`: `fetch` does not tell how much has been sent. */
function upload(url, headers, form, progress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const abort = () => request.abort();
    request.open("POST", url);
    request.responseType = "text";
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ lengthComputable, loaded, total }) => {
      progress({ phase: "upload", percent: lengthComputable && total ? (100 * loaded) / total : null });
    };
    request.onload = async () => {
      const answer = new Response(request.responseText, { status: request.status });
      if (answer.ok) resolve(await answer.json());
      else reject(await refusal(answer));
    };
    request.onerror = () =>
      reject(new SttError("unreachable", "The file could not be sent: the connection broke off."));
    request.onabort = () => reject(signal?.reason ?? new SttError("cancelled", "The upload was called off."));
    request.onloadend = () => signal?.removeEventListener("abort", abort);
    signal?.addEventListener("abort", abort, { once: true });
    if (signal?.aborted) reject(signal.reason);
    else request.send(form);
  });
}

/** The job as it stands. */
async function fetched(url, headers, signal) {
  const answer = await fetch(url, { headers: await headers(), signal });
  if (!answer.ok) throw await refusal(answer);
  return await answer.json();
}

/** Until the job has succeeded; over as many connections as it takes. */
async function watch(address, headers, progress, signal) {
  const backoff = new Backoff(RECONNECT);
  let last = "";
  let heard = performance.now();
  for (;;) {
    try {
      for await (const { id, event, data } of events(
        `${address}/events`,
        { ...(await headers()), "Last-Event-ID": last },
        signal,
      )) {
        last = id;
        heard = performance.now();
        backoff.reset();
        if (ended(event, JSON.parse(data), progress)) return;
      }
      // The stream ended without the end of the job: the server stops, or there was nothing new to tell.
      const job = await fetched(`${address}?result=false`, headers, signal);
      if (ended(job.state, job, progress)) return;
    } catch (error) {
      signal?.throwIfAborted();
      const over = error instanceof SttError && !error.retryable;
      if (over || performance.now() - heard > PATIENCE_SECONDS * 1000) throw error;
    }
    await new Promise((resolve) => {
      setTimeout(resolve, backoff.next() * 1000);
    });
  }
}

/** Whether the job has succeeded; throws where it failed or was called off. */
function ended(event, job, progress) {
  if (event === "succeeded") return true;
  if (event === "failed")
    throw new SttError(job.error?.code ?? "job_failed", job.error?.message ?? "The job failed.", { retryable: false });
  if (event === "cancelled") throw new SttError("cancelled", "The job was called off.");
  progress({ phase: job.state, percent: job.progress.percent });
  return false;
}

/** Server-sent events by `fetch`: an `EventSource` cannot send a key. */
async function* events(url, headers, signal) {
  const silence = new AbortController();
  const answer = await fetch(url, { headers, cache: "no-store", signal: any([signal, silence.signal]) });
  if (answer.status === 204) return;
  if (!answer.ok) throw await refusal(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const timer = setTimeout(() => silence.abort(), SILENCE_SECONDS * 1000);
      const { done, value } = await reader.read().finally(() => clearTimeout(timer));
      if (done) return;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const event = { id: "", event: "message", data: "" };
        for (const line of block.split("\n")) {
          const [, name, rest] = /^(id|event|data): ?(.*)$/.exec(line) ?? [];
          if (name) event[name] = name === "data" && event.data ? `${event.data}\n${rest}` : rest;
        }
        if (event.data) yield event;
      }
    }
  } finally {
    silence.abort(); // whoever left the loop wants no more of it
  }
}

/** `AbortSignal.any`, also where there is none yet. */
function any(signals) {
  const there = signals.filter(Boolean);
  if (AbortSignal.any) return AbortSignal.any(there);
  const controller = new AbortController();
  for (const signal of there) signal.addEventListener("abort", () => controller.abort(signal.reason), { once: true });
  return controller.signal;
}
