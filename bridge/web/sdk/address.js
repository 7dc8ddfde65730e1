// Where a bridge is, and how a key travels to it.

import { SttError } from "./errors.js";

/** The bridge's HTTP address, of any of its addresses (`wss:`, `https:` …); unset: where the page is from. */
export function httpBase(server) {
  const url = new URL(server ?? "/", globalThis.location?.href);
  const protocol = { "ws:": "http:", "wss:": "https:" }[url.protocol] ?? url.protocol;
  const path = url.pathname.replace(/\/v1\/stream$/, "").replace(/\/$/, "");
  return `${protocol}//${url.host}${path}`;
}

/** The address of its WebSocket. */
export function streamUrl(server) {
  return `${httpBase(server).replace(/^http/, "ws")}/v1/stream`;
}

/** What a subprotocol may be made of (RFC 6455 asks for RFC 9110's `token`); keys in base64 may not fit. */
const SUBPROTOCOL = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;

/** `new WebSocket` arguments: the key as a subprotocol, which no log holds; only one that does not fit in the query. */
export function socketArguments(url, key) {
  if (!key) return [url, []];
  if (SUBPROTOCOL.test(key)) return [url, ["bearer", key]];
  return [`${url}?token=${encodeURIComponent(key)}`, []];
}

/** Headers of a request. */
export function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** A key from what the user gave: text, nothing, or a function that may take its time, and fail when a network does. */
export async function keyFrom(source, reason) {
  try {
    return (typeof source === "function" ? await source(reason) : source) || null;
  } catch (cause) {
    if (cause instanceof SttError) throw cause;
    throw new SttError("unreachable", `There is no token: ${cause?.message ?? cause}.`, { cause });
  }
}
