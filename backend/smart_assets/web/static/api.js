// Calls of the service: the key they are sent with, and the problems they are answered with.

import { element, find, openDialog } from "./dom.js";

const KEPT_AS = "smart-assets-key";

/** What the service, or the way to it, says went wrong (RFC 9457). */
export class Problem extends Error {
  name = "Problem";

  constructor({ title, detail, status = 0, code = "unreachable", request_id = null }, retryAfter = null) {
    super(detail);
    Object.assign(this, { title, status, code, requestId: request_id, retryAfter });
  }

  /** Whether the same request may well be answered otherwise in a while. */
  get passes() {
    return [0, 408, 429, 502, 503, 504].includes(this.status) || this.code === "idempotency_in_progress";
  }

  static unreachable() {
    return new Problem({ title: "No answer", detail: "The service could not be reached." });
  }

  /** Of an answer: `text` may be a problem of ours, or whatever a proxy on the way says. */
  static of(status, text, retryAfter) {
    const seconds = /^\d+$/.test(retryAfter ?? "") ? Number(retryAfter) : null;
    try {
      const body = JSON.parse(text);
      if (body.title) return new Problem({ detail: "", ...body, status }, seconds);
    } catch {
      // not JSON
    }
    return new Problem({ title: `Status ${status}`, detail: "The answer is none of the service's own.", status, code: "foreign" }, seconds);
  }
}

// ── The key ─────────────────────────────────────────────────────────────────────────────────────────────────────────

let asking = null;

export const key = () => sessionStorage.getItem(KEPT_AS);

/** After a 401 with the key `used`: true when there is another one to try. Whoever asks meanwhile waits for the same. */
export function otherKey(used, problem) {
  if (key() !== used) return Promise.resolve(true);
  asking ??= askForKey(used ? problem.message : null).finally(() => (asking = null));
  return asking;
}

/** Shows the dialog; resolves when it is closed, to whether a key was given. */
export function askForKey(error) {
  const dialog = find("key");
  const input = find("key-input");
  find("key-error").textContent = error ?? "";
  find("key-error").hidden = !error;
  find("key-forget").hidden = !key();
  find("key-title").textContent = key() && !error ? "The key of this tab" : "This service asks for a key";
  input.value = "";
  dialog.returnValue = "";
  openDialog(dialog, input);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given"), { once: true });
  });
}

export function prepareKeyDialog(changed) {
  const dialog = find("key");
  find("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEPT_AS, find("key-input").value.trim());
    dialog.close("given");
    changed();
  });
  find("key-cancel").addEventListener("click", () => dialog.close(""));
  find("key-forget").addEventListener("click", () => {
    sessionStorage.removeItem(KEPT_AS);
    dialog.close("");
    changed();
  });
}

export function authorization() {
  const used = key();
  return used ? { Authorization: `Bearer ${used}` } : {};
}

// ── Calls ───────────────────────────────────────────────────────────────────────────────────────────────────────────

export function address(path, query = {}) {
  const url = new URL(`api/v1/${path}`, document.baseURI.split("#")[0]);
  for (const [name, value] of Object.entries(query)) {
    if (value !== "" && value !== null && value !== undefined) url.searchParams.set(name, value);
  }
  return url;
}

/** The answer's JSON (null where there is none) and its ETag; a Problem where it is an error. */
export async function call(method, path, { query, json, headers = {}, signal, keepalive } = {}) {
  for (;;) {
    const used = key();
    const options = { method, signal, keepalive, headers: { ...headers, ...authorization() } };
    if (json !== undefined) {
      options.body = JSON.stringify(json);
      options.headers["Content-Type"] = "application/json";
    }
    let response, text;
    try {
      response = await fetch(address(path, query), options);
      text = await response.text();
    } catch (error) {
      throw error.name === "AbortError" ? error : Problem.unreachable();
    }
    if (response.ok) return { data: text ? JSON.parse(text) : null, etag: response.headers.get("etag") };
    const problem = Problem.of(response.status, text, response.headers.get("retry-after"));
    if (response.status !== 401 || !(await otherKey(used, problem))) throw problem;
  }
}

// ── What the service is ─────────────────────────────────────────────────────────────────────────────────────────────

let described;

/** Whether the service has a way to carry assets from one storage to another. */
export async function canMove() {
  described ??= fetch(new URL("openapi.json", document.baseURI.split("#")[0])).then((response) => response.json());
  try {
    const { paths } = await described;
    return Object.entries(paths).some(([path, methods]) => /\/assets\/\{[^}]+\}\/move$/.test(path) && methods.post);
  } catch {
    described = undefined;
    return false;
  }
}

let known = [];

/** The storages that can be used, as they were last told. */
export const storages = () => known;

export async function loadStorages() {
  const { data } = await call("GET", "storages");
  known = data.storages.filter((storage) => storage.configured);
  const keeping = known.filter((storage) => storage.capabilities?.persistent !== false || storage.type === "memory");
  fill(find("storage"), known.map((storage) => [storage.name, label(storage, keeping.includes(storage)), storage.default]));
  const filter = find("filter-storage");
  const chosen = filter.value || filter.dataset.wanted || "";
  fill(filter, [["", "Any storage"], ...keeping.map((storage) => [storage.name, storage.name, storage.name === chosen])]);
}

export const keepsNothing = (storage) => storage.type === "direct";

function label(storage, keeps) {
  const kind = storage.name === storage.type ? "" : ` (${storage.type})`;
  if (!keeps) return `${storage.name}${kind}: nothing is kept`;
  return storage.default ? `${storage.name}${kind} (default)` : storage.name + kind;
}

function fill(select, options) {
  select.replaceChildren(
    ...options.map(([value, text, selected]) => element("option", { value, selected: Boolean(selected) }, text)),
  );
}
