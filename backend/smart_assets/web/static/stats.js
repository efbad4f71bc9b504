// Statistics: what each storage holds, from the service's counters, and what came each day, from the list.

import { call } from "./api.js";
import { bytes, count, element, find, icon, openDialog, showError } from "./dom.js";

const DAYS = 30;
const PAGE = 200;
const MOST_PAGES = 10;
const DAY = 86_400_000;

export function prepareStats() {
  const dialog = find("stats");
  find("open-stats").addEventListener("click", open);
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.querySelector(".statistics")?.remove());
}

async function open() {
  const dialog = find("stats");
  const close = element("button", { type: "button", className: "bare", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"));
  const body = element("div", { className: "sheet-body", "aria-busy": "true" }, element("p", { className: "faint" }, "Counting"));
  dialog.prepend(
    element("div", { className: "statistics" }, element("header", { className: "sheet-head" }, element("h2", { id: "stats-title" }, "Statistics"), element("div", { className: "actions" }, close)), body),
  );
  openDialog(dialog, close);
  const [totals, days] = await Promise.all([shownOrError(loadTotals), shownOrError(loadDays)]);
  body.removeAttribute("aria-busy");
  body.replaceChildren(...totals, ...days);
}

/** What one half makes; where it cannot be had, why, and the other half is there all the same. */
async function shownOrError(load) {
  try {
    return await load();
  } catch (error) {
    if (error.title === undefined) showError({ title: "Not shown", message: String(error) });
    return [element("p", { className: "error" }, element("strong", {}, error.title ?? "Not shown"), ` ${error.message}`)];
  }
}

// ── What there is ───────────────────────────────────────────────────────────────────────────────────────────────────

async function loadTotals() {
  const { data } = await call("GET", "stats");
  const figure = (value, name) => element("div", { className: "figure" }, element("dt", {}, name), element("dd", {}, value));
  const largest = Math.max(1, ...data.storages.map((storage) => storage.bytes));
  return [
    element(
      "dl",
      { className: "figures" },
      figure(count(data.count, "image").replace(/ images?$/, ""), "images"),
      figure(bytes(data.bytes), "with their sizes"),
      figure(data.oldest ? day.format(new Date(data.oldest)) : "none", "the oldest"),
      data.deletions_owed > 0 && figure(String(data.deletions_owed), "deleted, bytes still to go"),
    ),
    element("h3", {}, "By storage"),
    data.storages.length
      ? element(
          "table",
          { className: "by-storage" },
          element("thead", {}, element("tr", {}, ...["Storage", "Images", "Bytes"].map((name) => element("th", { scope: "col" }, name)), element("td", {}))),
          element(
            "tbody",
            {},
            ...data.storages.map((storage, index) =>
              element(
                "tr",
                {},
                element("th", { scope: "row" }, storage.name),
                element("td", {}, count(storage.count, "", "").trim()),
                element("td", {}, bytes(storage.bytes)),
                element("td", { className: "bar-cell", "aria-hidden": "true" }, bar(storage.bytes / largest, index)),
              ),
            ),
          ),
        )
      : element("p", { className: "faint" }, "Nothing is stored yet."),
  ];
}

function bar(part, index) {
  return element(
    "svg",
    { viewBox: "0 0 100 8", preserveAspectRatio: "none", class: "bar-line" },
    element("rect", { width: Math.max(0.5, part * 100), height: 8, rx: 1, class: `series-${index % 6}` }),
  );
}

// ── What came each day ──────────────────────────────────────────────────────────────────────────────────────────────

/** The last days' uploads that are still there. The service keeps no history: what was deleted is not among them. */
async function loadDays() {
  const found = [];
  let cursor = null;
  for (let page = 0; page < MOST_PAGES; page += 1) {
    const { data } = await call("GET", "assets", { query: { days: DAYS, limit: PAGE, cursor } });
    found.push(...data.items);
    cursor = data.next_cursor;
    if (cursor === null) break;
  }
  const today = startOfDay(new Date());
  const days = Array.from({ length: DAYS }, (_, index) => startOfDay(new Date(today.getTime() - (DAYS - 1 - index) * DAY + DAY / 2)));
  const names = [...new Set(found.map((asset) => asset.storage))].sort();
  const counts = new Map(days.map((day) => [day.getTime(), new Map(names.map((name) => [name, 0]))]));
  for (const asset of found) {
    const counted = counts.get(startOfDay(new Date(asset.created_at)).getTime());
    if (counted) counted.set(asset.storage, counted.get(asset.storage) + 1);
  }
  const whole = cursor === null;
  const said = whole
    ? `The ${count(found.length, "image")} of the last ${DAYS} days that are still there, by the day they were uploaded.`
    : `Only the newest ${count(found.length, "image")} of the last ${DAYS} days: there are more, and earlier days are higher than shown.`;
  return [element("h3", {}, "By day"), element("p", { className: "faint" }, said), ...(found.length ? [chart(days, names, counts), legend(names), table(days, names, counts)] : [])];
}

function startOfDay(moment) {
  return new Date(moment.getFullYear(), moment.getMonth(), moment.getDate());
}

const day = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium" });
const short = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const sum = (counted) => [...counted.values()].reduce((total, value) => total + value, 0);

/** A top for the scale that halves into whole numbers. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, value)));
  return Math.max(2, [1, 2, 4, 6, 10].find((step) => step * power >= value) * power);
}

function chart(days, names, counts) {
  const [width, height, left, bottom, top] = [720, 200, 34, 22, 10];
  const step = (width - left) / days.length;
  const highest = roundUp(Math.max(...days.map((day) => sum(counts.get(day.getTime())))));
  const y = (value) => top + (height - bottom - top) * (1 - value / highest);
  const lines = [0, highest / 2, highest].map((value) =>
    element(
      "g",
      {},
      element("line", { x1: left, x2: width, y1: y(value), y2: y(value), class: "grid-line" }),
      element("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)),
    ),
  );
  const bars = days.flatMap((day, index) => {
    let below = 0;
    return names.map((name, series) => {
      const value = counts.get(day.getTime()).get(name);
      const made =
        value > 0 &&
        element(
          "rect",
          { x: left + index * step + step * 0.14, width: step * 0.72, y: y(below + value), height: y(below) - y(below + value), rx: 1.5, class: `series-${series % 6}` },
          element("title", {}, `${short.format(day)}: ${value} on ${name}`),
        );
      below += value;
      return made;
    });
  });
  const dates = days
    .map((day, index) => (days.length - 1 - index) % 7 === 0 && element("text", { x: left + (index + 0.5) * step, y: height - 5, "text-anchor": index > days.length - 2 ? "end" : "middle" }, short.format(day)))
    .filter(Boolean);
  return element(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": `Uploads of the last ${days.length} days by storage; the same stands in the table below` },
    ...lines,
    ...bars.filter(Boolean),
    ...dates,
  );
}

function legend(names) {
  return element(
    "ul",
    { className: "legend", "aria-hidden": "true" },
    ...names.map((name, index) => element("li", {}, element("svg", { viewBox: "0 0 10 10", class: "key" }, element("rect", { width: 10, height: 10, rx: 2, class: `series-${index % 6}` })), name)),
  );
}

function table(days, names, counts) {
  const filled = days.filter((day) => sum(counts.get(day.getTime()))).reverse();
  return element(
    "details",
    {},
    element("summary", {}, "As a table"),
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...["Day", ...names].map((name) => element("th", { scope: "col" }, name)))),
      element(
        "tbody",
        {},
        ...filled.map((day) => element("tr", {}, element("th", { scope: "row" }, short.format(day)), ...names.map((name) => element("td", {}, String(counts.get(day.getTime()).get(name)))))),
      ),
    ),
  );
}
