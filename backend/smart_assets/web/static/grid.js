// The library: what the filters let through, newest first, more of it as one scrolls.

import { Problem, call } from "./api.js";
import { count, element, find, icon, nameOf, say } from "./dom.js";
import { picture, wholeImages } from "./images.js";

const PAGE = 60;
const FILTERS = ["q", "storage", "visibility", "tag", "days"];
const TYPING = 250;

const tiles = new Map();
const tags = new Set();
const hiddenIds = new Set();
let open;
let cursor = null;
let ended = false;
let loading = null;

/** `show(asset)` opens one. */
export function prepareGrid(show) {
  open = show;
  const form = find("filters");
  const given = new URLSearchParams(location.search);
  for (const name of FILTERS) if (given.has(name)) form[name].value = given.get(name);
  form.storage.dataset.wanted = given.get("storage") ?? "";
  let typing;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    delete form.storage.dataset.wanted;
    clearTimeout(typing);
    typing = setTimeout(reload, TYPING);
  });
  form.addEventListener("reset", () => {
    delete form.storage.dataset.wanted;
    setTimeout(reload); // the fields are empty then
  });
  find("more").addEventListener("click", loadMore);
  new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && !find("more").dataset.failed && loadMore(), {
    rootMargin: "600px",
  }).observe(find("more").parentElement);
}

function filters() {
  const form = find("filters");
  const values = Object.fromEntries(FILTERS.map((name) => [name, form[name].value.trim()]));
  values.storage ||= form.storage.dataset.wanted ?? "";
  return values;
}

const isFiltered = () => Object.values(filters()).some(Boolean);

/** Begin anew. */
export function reload() {
  loading?.abort();
  loading = null;
  cursor = null;
  ended = false;
  const chosen = Object.entries(filters()).filter(([, value]) => value);
  history.replaceState(null, "", `${location.pathname}${chosen.length ? `?${new URLSearchParams(chosen)}` : ""}${location.hash}`);
  find("reset-filters").hidden = !chosen.length;
  return loadPage({ anew: true });
}

function loadMore() {
  return loading || ended || cursor === null ? undefined : loadPage({});
}

async function loadPage({ anew }) {
  const mine = new AbortController();
  loading = mine;
  find("grid").setAttribute("aria-busy", "true");
  try {
    const { data } = await call("GET", "assets", { query: { ...filters(), limit: PAGE, cursor }, signal: mine.signal });
    if (loading !== mine) return;
    if (anew) clear();
    data.items.forEach((asset) => insert(asset));
    cursor = data.next_cursor;
    ended = cursor === null;
    delete find("more").dataset.failed;
    find("more").textContent = "Load more";
    say(`${count(tiles.size, "image")} ${ended ? "in all" : "loaded"}`);
  } catch (error) {
    if (loading !== mine || error.name === "AbortError") return;
    if (anew) clear();
    failed(error);
    return;
  } finally {
    if (loading === mine) {
      loading = null;
      find("grid").removeAttribute("aria-busy");
    }
  }
  describe();
  fillTheWindow();
}

/** The observer tells of a change only: where a page does not fill the window there is none. */
function fillTheWindow() {
  if (!ended && find("more").parentElement.getBoundingClientRect().top < innerHeight + 600) loadMore();
}

function clear() {
  tiles.clear();
  find("grid").replaceChildren();
}

function failed(error) {
  const problem = error instanceof Problem ? error : new Problem({ title: "Not shown", detail: String(error) });
  const more = find("more");
  more.dataset.failed = "true";
  if (tiles.size) {
    more.hidden = false;
    more.textContent = `${problem.title}: try again`;
    say(problem.message);
    return;
  }
  find("count").textContent = "";
  more.hidden = true;
  find("empty").hidden = false;
  find("empty").replaceChildren(
    element("p", { className: "empty-title" }, problem.title),
    element("p", { role: "alert" }, problem.message),
    element("button", { type: "button", onclick: () => reload() }, "Try again"),
  );
}

/** How many there are, and a word where there is none. */
function describe() {
  const shown = [...tiles.values()].filter(({ tile }) => !tile.hidden).length;
  find("count").textContent = shown ? `${count(shown, "image")}${ended ? "" : " so far"}` : "";
  find("more").hidden = ended || find("more").dataset.failed !== undefined;
  const empty = find("empty");
  empty.hidden = shown > 0 || !ended;
  if (empty.hidden) return;
  empty.replaceChildren(
    ...(isFiltered()
      ? [element("p", { className: "empty-title" }, "Nothing fits these filters"), element("button", { type: "button", onclick: () => find("filters").reset() }, "Show everything")]
      : [element("p", { className: "empty-title" }, "No images yet"), element("p", {}, "Choose some above, drop them anywhere, or paste one: they appear here.")]),
  );
}

// ── Tiles ───────────────────────────────────────────────────────────────────────────────────────────────────────────

function insert(asset, { first = false } = {}) {
  if (tiles.has(asset.id)) return;
  const tile = tileOf(asset);
  tile.hidden = hiddenIds.has(asset.id);
  tiles.set(asset.id, { asset, tile });
  if (first) find("grid").prepend(tile);
  else find("grid").append(tile);
  remember(asset.tags);
}

function tileOf(asset) {
  const ratio = Math.min(3, Math.max(0.45, asset.width / asset.height));
  const isPrivate = asset.visibility === "private";
  const name = `${nameOf(asset)} ${asset.width} × ${asset.height}, ${asset.visibility}, on ${asset.storage}`;
  const button = element(
    "button",
    { type: "button", className: "tile", "aria-label": name, onclick: () => open(asset.id) },
    picture(asset, wholeImages(asset), { sizes: `${Math.round(ratio * 220)}px`, lazy: true }),
    isPrivate && element("span", { className: "badge" }, icon("lock")),
    element("span", { className: "caption" }, element("span", {}, nameOf(asset)), element("small", {}, `${asset.width} × ${asset.height}`)),
  );
  return element("li", { dataset: { id: asset.id }, style: { "--ratio": ratio } }, button);
}

function remember(found) {
  for (const tag of found) {
    if (tags.has(tag)) continue;
    tags.add(tag);
    find("tags").append(element("option", { value: tag }));
  }
}

/** An asset that is new: in front, where the filters let it through. */
export function prepend(asset) {
  const { q, storage, visibility, tag } = filters();
  const fits =
    (!storage || asset.storage === storage) &&
    (!visibility || asset.visibility === visibility) &&
    (!tag || asset.tags.includes(tag)) &&
    (!q || (asset.filename ?? "").toLowerCase().includes(q.toLowerCase()));
  if (!fits) return;
  insert(asset, { first: true });
  describe();
}

/** An asset that was changed. */
export function replace(asset) {
  const entry = tiles.get(asset.id);
  if (!entry) return;
  const tile = tileOf(asset);
  entry.tile.replaceWith(tile);
  tiles.set(asset.id, { asset, tile });
}

/** An asset that is to be deleted, or is to be kept after all. */
export function setHidden(id, hidden) {
  if (hidden) hiddenIds.add(id);
  else hiddenIds.delete(id);
  const entry = tiles.get(id);
  if (entry) entry.tile.hidden = hidden;
  describe();
}

/** An asset that is gone. */
export function remove(id) {
  tiles.get(id)?.tile.remove();
  tiles.delete(id);
  hiddenIds.delete(id);
  describe();
}

export const assetOf = (id) => tiles.get(id)?.asset ?? null;

/** Who stands beside an asset: `step` 1 after it, -1 before it. */
export function neighbour(id, step) {
  const shown = [...find("grid").children].filter((tile) => !tile.hidden).map((tile) => tile.dataset.id);
  const at = shown.indexOf(id);
  return at < 0 ? null : (shown[at + step] ?? null);
}

/** Put the focus on an asset's tile, or, where it is gone, on the list. */
export function focusOn(id) {
  const tile = tiles.get(id)?.tile;
  (tile && !tile.hidden ? tile.querySelector("button") : find("grid")).focus();
}
