// One asset: every image there is of it side by side, what is known of it, and what can be done with it.

import { Problem, call, canMove, keepsNothing, storages } from "./api.js";
import { deleteLater } from "./deleting.js";
import { bytes, copy, element, find, icon, nameOf, openDialog, say, showError, toast, when } from "./dom.js";
import { focusOn, neighbour, replace } from "./grid.js";
import { picture, wholeImages } from "./images.js";
import { markdown, pictureMarkup } from "./markup.js";

const UNITS = [["minutes", 60], ["hours", 3600], ["days", 86400]];

let shown = null;
let etag = null;

export function prepareDetail() {
  const dialog = find("detail");
  dialog.addEventListener("close", () => {
    const id = shown?.id;
    shown = null;
    setHash("");
    dialog.querySelector(".detail")?.remove();
    if (id) focusOn(id);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea, .sides")) return;
    turn(step);
  });
  addEventListener("hashchange", openFromAddress);
}

/** The page's own address may name an asset. */
export function openFromAddress() {
  const id = location.hash.slice(1);
  if (/^[0-9a-f-]{36}$/i.test(id) && id !== shown?.id) openAsset(id);
}

function setHash(id) {
  history.replaceState(null, "", `${location.pathname}${location.search}${id ? `#${id}` : ""}`);
}

/** Asks for the asset anew: its addresses may have expired, and it may have changed. */
export async function openAsset(id) {
  try {
    const answer = await call("GET", `assets/${id}`);
    etag = answer.etag;
    show(answer.data, answer.etag);
  } catch (error) {
    showError(error);
  }
}

/** An answer in hand, such as one of the storage that keeps nothing. */
export function show(asset, version = null, focus = null) {
  const dialog = find("detail");
  etag = version;
  shown = asset;
  dialog.querySelector(".detail")?.remove();
  dialog.prepend(view(asset));
  if (asset.id) setHash(asset.id);
  const target = (focus && dialog.querySelector(focus)) ?? dialog.querySelector("#close-detail");
  if (dialog.open) target.focus();
  else openDialog(dialog, target);
}

function turn(step) {
  const next = shown?.id && neighbour(shown.id, step);
  if (next) openAsset(next);
}

// ── The view ────────────────────────────────────────────────────────────────────────────────────────────────────────

function view(asset) {
  const stored = Boolean(asset.id);
  return element(
    "div",
    { className: "detail" },
    head(asset),
    element(
      "div",
      { className: "detail-body" },
      element(
        "div",
        { className: "looking" },
        element("div", { className: "stage", style: { "--ratio": asset.width / asset.height } }, picture(asset, wholeImages(asset), { sizes: "(min-width: 900px) 760px, 100vw", alt: nameOf(asset) })),
        variants(asset),
      ),
      element("div", { className: "side" }, copying(asset), stored && signing(asset), stored && changing(asset), facts(asset)),
    ),
  );
}

function head(asset) {
  const stored = Boolean(asset.id);
  const arrow = (step, name, label) =>
    stored &&
    element("button", { type: "button", className: "bare", "aria-label": label, disabled: !neighbour(asset.id, step), onclick: () => turn(step) }, icon(name));
  return element(
    "header",
    { className: "sheet-head" },
    element("h2", { id: "detail-title" }, nameOf(asset)),
    element("span", { className: `pill ${asset.visibility}` }, stored && asset.visibility === "private" && icon("lock"), stored ? asset.visibility : "not kept"),
    element("div", { className: "actions" }, arrow(-1, "previous", "Image before"), arrow(1, "next", "Image after"), element("button", { type: "button", id: "close-detail", className: "bare", "aria-label": "Close", onclick: () => find("detail").close() }, icon("close"))),
  );
}

function part(title, ...children) {
  return element("section", { className: "part" }, element("h3", {}, title), ...children);
}

function copying(asset) {
  const button = (text, make, what) => element("button", { type: "button", className: "small", onclick: () => copy(make(asset), what) }, text);
  return part(
    "Copy as",
    element("div", { className: "buttons" }, button("URL", () => asset.url, "The URL"), button("HTML <picture>", pictureMarkup, "The HTML"), button("Markdown", markdown, "The Markdown")),
    asset.url_expires_at && element("p", { className: "faint small" }, `It is private: these addresses work until ${when(asset.url_expires_at)}.`),
  );
}

function signing(asset) {
  const most = Number(document.body.dataset.maxExpiry);
  const which = element("select", { name: "size" }, element("option", { value: "" }, "original"), ...asset.variants.map(({ size }) => element("option", { value: size }, size)));
  const amount = element("input", { type: "number", name: "amount", min: 1, max: 9999, value: 1, required: true, inputMode: "numeric" });
  const unit = element("select", { name: "unit" }, ...UNITS.map(([name, seconds]) => element("option", { value: seconds, selected: name === "hours" }, name)));
  const answer = element("div", { className: "answer", hidden: true });
  const form = element(
    "form",
    { className: "row tight", id: "sign" },
    element("label", { className: "field" }, "Image", which),
    element("label", { className: "field narrow" }, "Good for", amount),
    element("label", { className: "field" }, "Unit", unit),
    element("button", { type: "submit" }, "Make link"),
  );
  amount.addEventListener("input", () => amount.setCustomValidity(""));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const seconds = Number(amount.value) * Number(unit.value);
    if (seconds > most) {
      amount.setCustomValidity(`At most ${Math.floor(most / Number(unit.value))} here.`);
      amount.reportValidity();
      return;
    }
    try {
      const { data } = await call("POST", `assets/${asset.id}/signed-url`, { json: { expiry_seconds: seconds, size: which.value || null } });
      const field = element("input", { readOnly: true, value: data.url, "aria-label": "The link" });
      field.addEventListener("focus", () => field.select());
      answer.replaceChildren(
        element("div", { className: "row tight" }, field, element("button", { type: "button", onclick: () => copy(data.url, "The link") }, "Copy")),
        element("p", { className: "faint small" }, `Whoever has it can see the image until ${when(data.url_expires_at)}.`),
      );
      answer.hidden = false;
      say(`The link is there; it works until ${when(data.url_expires_at)}`);
    } catch (error) {
      showError(error, "No link");
    }
  });
  return part("Signed link", form, answer);
}

function changing(asset) {
  const to = asset.visibility === "private" ? "public" : "private";
  const visibility = element("button", { type: "button", id: "change-visibility" }, `Make it ${to}`);
  visibility.addEventListener("click", () =>
    busy(visibility, `Not made ${to}`, async () => {
      const headers = etag ? { "If-Match": etag } : {};
      const answer = await call("PATCH", `assets/${asset.id}`, { json: { visibility: to }, headers });
      changed(answer, "#change-visibility", `It is ${to} now`);
    }, asset),
  );
  const remove = element("button", { type: "button", className: "danger", id: "delete" }, "Delete");
  remove.addEventListener("click", () => {
    // Last of those that listen: the message with the way back is out of the dialog then, and takes the focus.
    find("detail").addEventListener("close", () => deleteLater(asset), { once: true });
    find("detail").close();
  });
  return part("Change", element("div", { className: "buttons" }, visibility, remove), moving(asset));
}

/** Only where the service can carry assets over, and there is another storage to carry it to. */
function moving(asset) {
  const others = storages().filter((storage) => storage.name !== asset.storage && !keepsNothing(storage));
  const select = element("select", { name: "to" }, ...others.map(({ name }) => element("option", { value: name }, name)));
  const button = element("button", { type: "submit", id: "move" }, "Move");
  const form = element("form", { className: "row tight", hidden: true }, element("label", { className: "field" }, "Move to", select), button);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    busy(button, "Not moved", async () => {
      await call("POST", `assets/${asset.id}/move`, { query: { storage: select.value } });
      changed(await call("GET", `assets/${asset.id}`), "#move", `It lies on ${select.value} now`);
    }, asset);
  });
  if (others.length) canMove().then((can) => (form.hidden = !can));
  return form;
}

async function busy(button, failure, act, asset) {
  if (button.getAttribute("aria-disabled")) return;
  button.setAttribute("aria-disabled", "true");
  try {
    await act();
  } catch (error) {
    showError(error, failure);
    if (error instanceof Problem && error.status === 412 && shown?.id === asset.id) openAsset(asset.id);
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

function changed({ data, etag: version }, focus, text) {
  replace(data);
  if (shown?.id === data.id) show(data, version, focus);
  toast(text);
}

function facts(asset) {
  const rows = [
    ["Type", asset.content_type],
    ["Size", `${bytes(asset.size_bytes)}, ${asset.width} × ${asset.height}`],
    ["Storage", asset.storage],
    asset.id && ["Visibility", asset.visibility],
    asset.id && ["Uploaded", when(asset.created_at)],
    asset.id && asset.updated_at !== asset.created_at && ["Changed", when(asset.updated_at)],
    asset.id && ["Expires", asset.pinned ? "never: pinned" : when(asset.expires_at)],
    ["Tags", asset.tags.length ? element("span", { className: "chips" }, ...asset.tags.map((tag) => element("span", { className: "tag" }, tag))) : "none"],
    asset.dominant_color && ["Colour", element("span", {}, element("span", { className: "swatch", style: { "background-color": asset.dominant_color } }), asset.dominant_color)],
    asset.credits_used !== null && ["Credits", String(asset.credits_used)],
    Object.keys(asset.metadata).length > 0 && ["Metadata", element("pre", { tabIndex: 0 }, JSON.stringify(asset.metadata, null, 2))],
    ["SHA-256", element("code", {}, asset.sha256)],
    asset.id && ["Id", element("code", {}, asset.id)],
  ].filter(Boolean);
  return part("About it", element("dl", {}, ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])));
}

function variants(asset) {
  const all = [{ ...asset, size: "original" }, ...asset.variants];
  const failed = asset.failed ?? [];
  return element(
    "section",
    { className: "part variants" },
    element("h3", {}, asset.variants.length ? "Original and sizes" : "Original; no sizes were made"),
    element("ul", { className: "sides", tabIndex: 0, "aria-label": "Original and sizes" }, ...all.map((image) => side(asset, image))),
    failed.length > 0 && element("p", { className: "error" }, `Not made: ${failed.map(({ size, detail }) => `${size} (${detail})`).join("; ")}`),
  );
}

function side(asset, image) {
  const name = image.size === "original" ? "the original" : `size ${image.size}`;
  return element(
    "li",
    { style: { "--ratio": Math.min(3, Math.max(0.4, image.width / image.height)) } },
    element("a", { href: image.url, target: "_blank", rel: "noopener", "aria-label": `Open ${name} in a new tab` }, picture(asset, [image], { sizes: "auto" })),
    element(
      "div",
      { className: "side-text" },
      element("strong", {}, image.size),
      element("span", { className: "faint" }, `${image.width} × ${image.height}`),
      element("span", { className: "faint" }, `${image.content_type.replace("image/", "")}, ${bytes(image.size_bytes)}`),
      element("button", { type: "button", className: "small quiet", "aria-label": `Copy URL of ${name}`, onclick: () => copy(image.url, "The URL") }, "Copy URL"),
    ),
  );
}
