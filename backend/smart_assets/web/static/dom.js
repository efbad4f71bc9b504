// Elements, numbers as people read them, the clipboard, and messages.

/** An element: `properties` are set as such, those under `dataset` and `aria…`/`role` as attributes. */
export function element(tag, properties = {}, ...children) {
  const made = tag === "svg" || svgTags.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "dataset") Object.assign(made.dataset, value);
    else if (name === "style") for (const [property, to] of Object.entries(value)) made.style.setProperty(property, to);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && !(made instanceof SVGElement)) made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}
const SVG = "http://www.w3.org/2000/svg";
const svgTags = new Set(["path", "rect", "g", "text", "line", "title"]);

export const find = (id) => document.getElementById(id);

const icons = {
  lock: "M7 11V8a5 5 0 0 1 10 0v3m-11 0h12v9H6z",
  close: "M6 6l12 12M18 6L6 18",
  previous: "M15 5l-7 7 7 7",
  next: "M9 5l7 7-7 7",
};

/** A picture without words: the button around it says what it is for. */
export function icon(name) {
  return element("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, element("path", { d: icons[name] }));
}

const number = new Intl.NumberFormat("en");
const rounded = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const moment = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });

export const count = (value, one, many = `${one}s`) => `${number.format(value)} ${value === 1 ? one : many}`;
export const when = (text) => (text ? moment.format(new Date(text)) : "never");

/** 829183 as 829 kB: by thousands, as disks are sold. */
export function bytes(value) {
  const units = ["bytes", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit ? rounded.format(value) : number.format(value)} ${units[unit]}`;
}

export const nameOf = (asset) => asset.filename ?? "unnamed";

/** A random id; `crypto.randomUUID` is there for https and localhost alone. */
export function randomId() {
  const random = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// ── Messages ────────────────────────────────────────────────────────────────────────────────────────────────────────

const PATIENCE = 6000;

/** Tell those who listen to the page, and nobody else. */
export function say(text) {
  find("said").textContent = text;
}

/** A short message that goes away by itself. */
export function toast(text) {
  say(text);
  const shown = element("div", { className: "toast", "aria-hidden": "true" }, text);
  find("toasts").append(shown);
  setTimeout(() => shown.remove(), PATIENCE);
}

/** An error, as the service tells it; it stays until it is closed. */
export function showError(error, doing) {
  if (error.name === "AbortError") return;
  const shown = element(
    "div",
    { className: "toast failure" },
    element("div", {}, element("strong", {}, doing ? `${doing}: ${error.title}` : error.title), element("p", {}, error.message)),
    error.requestId && element("p", { className: "faint small" }, `Request ${error.requestId}`),
    element("button", { type: "button", className: "bare", "aria-label": "Close this message", onclick: () => shown.remove() }, icon("close")),
  );
  const all = find("errors");
  all.append(shown);
  while (all.childElementCount > 3) all.firstElementChild.remove();
}

/** Messages must be inside of the dialog that is open: everything else is out of reach meanwhile. */
export function openDialog(dialog, focus) {
  const messages = find("messages");
  dialog.addEventListener(
    "close",
    () => (document.querySelector("dialog[open]") ?? document.body).append(messages),
    { once: true },
  );
  dialog.showModal();
  dialog.append(messages);
  focus?.focus();
}

/** Copy, also where the page is not at a secure address and the browser's own clipboard is not to be had. */
export async function copy(text, what) {
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyByHand(text);
    toast(`${what} copied`);
  } catch {
    showError({ title: "Not copied", message: "The browser does not let this page use the clipboard." });
  }
}

function copyByHand(text) {
  const before = document.activeElement;
  const field = element("textarea", { value: text, className: "hidden" });
  (document.querySelector("dialog[open]") ?? document.body).append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  before?.focus();
  if (!copied) throw new Error("refused");
}
