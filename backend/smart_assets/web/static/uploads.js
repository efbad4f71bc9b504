// Uploads: files from the picker, dropped or pasted; each on its own, with its progress, three at a time.

import { Problem, address, authorization, key, otherKey } from "./api.js";
import { bytes, count, element, find, randomId, say } from "./dom.js";

const AT_ONCE = 3;
const TRIES = 5;
const LONGEST_WAIT_SECONDS = 30;
const SIZE = /^(?:[1-9]\d{0,3}(?:x[1-9]\d{0,3})?|x[1-9]\d{0,3})$/;
const KEPT_AS = "smart-assets-upload";

const waiting = [];
const running = new Set();
let tell;

/** `handlers.stored(asset)` is told of each asset, `handlers.show(asset)` asked to show one that nothing keeps. */
export function prepareUploads(handlers) {
  tell = handlers;
  const picker = find("picker");
  find("choose").addEventListener("click", () => picker.click());
  picker.addEventListener("change", () => {
    add([...picker.files]);
    picker.value = "";
  });
  find("clear-uploads").addEventListener("click", () => {
    for (const row of find("queue").querySelectorAll("[data-state=stored], [data-state=failed]")) row.remove();
    summarise();
    find("choose").focus();
  });
  prepareOptions();
  prepareDropping();
  document.addEventListener("paste", (event) => {
    if (document.querySelector("dialog[open]")) return;
    const files = [...event.clipboardData.files];
    if (!files.length) return; // text, for a field
    event.preventDefault();
    add(files);
  });
  addEventListener("beforeunload", (event) => {
    if (running.size || waiting.length) event.preventDefault();
  });
}

function prepareDropping() {
  const overlay = find("drop");
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files") && !document.querySelector("dialog[open]");
  let depth = 0;
  addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    depth += 1;
    overlay.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!hasFiles(event)) return;
    depth = Math.max(0, depth - 1);
    overlay.hidden = depth === 0;
  });
  addEventListener("dragover", (event) => event.dataTransfer?.types.includes("Files") && event.preventDefault());
  addEventListener("drop", (event) => {
    depth = 0;
    overlay.hidden = true;
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault(); // the browser would leave the page and open the file
    if (!document.querySelector("dialog[open]")) add([...event.dataTransfer.files]);
  });
}

// ── How they are to be taken ────────────────────────────────────────────────────────────────────────────────────────

function prepareOptions() {
  const form = find("options");
  form.addEventListener("submit", (event) => event.preventDefault());
  const presets = [...form.querySelectorAll("[name=preset]")];
  let kept = null;
  try {
    kept = JSON.parse(sessionStorage.getItem(KEPT_AS));
  } catch {
    // as if there were none
  }
  const narrow = matchMedia("(max-width: 600px)");
  const fold = () => (form.parentElement.open = !narrow.matches);
  narrow.addEventListener("change", fold);
  fold();
  for (const box of presets) box.checked = kept ? kept.presets.includes(box.value) : box.value === "responsive";
  if (kept) {
    form.visibility.value = kept.visibility;
    for (const name of ["sizes", "fit", "format", "tags"]) form[name].value = kept[name];
  }
  form.addEventListener("change", () => {
    const values = Object.fromEntries(["visibility", "sizes", "fit", "format", "tags"].map((name) => [name, form[name].value]));
    values.presets = presets.filter((box) => box.checked).map((box) => box.value);
    sessionStorage.setItem(KEPT_AS, JSON.stringify(values));
  });
  form.sizes.addEventListener("input", () => form.sizes.setCustomValidity(""));
}

/** The parameters of an upload as the form has them; null, and the form says so, where a size is none. */
function parameters() {
  const form = find("options");
  const free = form.sizes.value.split(",").map((item) => item.trim()).filter(Boolean);
  const wrong = free.find((item) => !SIZE.test(item));
  if (wrong) {
    form.parentElement.open = true;
    form.sizes.setCustomValidity(`“${wrong}” is not a size: write 1200x627, 800 or x600.`);
    form.sizes.reportValidity();
    return null;
  }
  const presets = [...form.querySelectorAll("[name=preset]:checked")].map((box) => box.value);
  return {
    storage: form.storage.value,
    visibility: form.visibility.value,
    sizes: [...presets, ...free].join(","),
    fit: form.fit.value,
    format: form.format.value,
    tags: form.tags.value,
    placeholder: "true",
  };
}

// ── The queue ───────────────────────────────────────────────────────────────────────────────────────────────────────

function add(files) {
  const query = files.length ? parameters() : null;
  if (!query) return;
  for (const file of files) {
    const upload = { file, query, id: randomId(), request: null, cancelled: false };
    show(upload);
    const most = Number(document.body.dataset.maxBytes);
    if (file.size > most) {
      const detail = `It has ${bytes(file.size)}; the limit is ${bytes(most)}.`;
      fail(upload, new Problem({ title: "Body too large", detail, status: 413, code: "body_too_large" }));
    } else {
      waiting.push(upload);
    }
  }
  find("queue").firstElementChild?.scrollIntoView({ block: "nearest" });
  next();
}

function next() {
  while (running.size < AT_ONCE && waiting.length) {
    const upload = waiting.shift();
    running.add(upload);
    run(upload).finally(() => {
      running.delete(upload);
      next();
    });
  }
  summarise();
}

/** One file, until it is stored, refused or given up. Each try has the same Idempotency-Key: it is stored once. */
async function run(upload) {
  for (let attempt = 1; !upload.cancelled; attempt += 1) {
    const used = key();
    try {
      finish(upload, await send(upload));
      return;
    } catch (problem) {
      if (upload.cancelled) break;
      if (problem.status === 401 && (await otherKey(used, problem))) continue;
      if (!problem.passes || attempt >= TRIES) {
        fail(upload, problem);
        return;
      }
      const seconds = Math.min(problem.retryAfter ?? 2 ** (attempt - 1), LONGEST_WAIT_SECONDS);
      progress(upload, null, `${problem.title}. Trying again in ${count(seconds, "second")}`);
      await new Promise((resolve) => {
        upload.wake = resolve;
        setTimeout(resolve, seconds * 1000);
      });
    }
  }
  upload.row.remove();
}

function send(upload) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("file", upload.file);
    const request = new XMLHttpRequest();
    upload.request = request;
    request.open("POST", address("assets", upload.query));
    request.setRequestHeader("Idempotency-Key", upload.id);
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) progress(upload, event.loaded / event.total, `Sending, ${Math.floor((100 * event.loaded) / event.total)} %`);
    });
    request.upload.addEventListener("load", () => progress(upload, null, "Making the sizes and storing"));
    request.addEventListener("load", () => {
      if (request.status === 201) resolve(JSON.parse(request.responseText));
      else reject(Problem.of(request.status, request.responseText, request.getResponseHeader("retry-after")));
    });
    for (const kind of ["error", "abort", "timeout"]) request.addEventListener(kind, () => reject(Problem.unreachable()));
    progress(upload, 0, "Sending");
    request.send(form);
  });
}

// ── What is to be seen of it ────────────────────────────────────────────────────────────────────────────────────────

function show(upload) {
  const { file } = upload;
  upload.picture = element("img", { alt: "", src: URL.createObjectURL(file), decoding: "async" });
  const forget = () => URL.revokeObjectURL(upload.picture.src);
  upload.picture.addEventListener("load", forget);
  upload.picture.addEventListener("error", () => {
    forget();
    upload.picture.replaceWith(element("span", { className: "blank" }));
  });
  upload.bar = element("progress", { max: 1, value: 0, "aria-label": `Progress of ${file.name}` });
  upload.text = element("p", { className: "upload-text faint" }, "Waiting");
  upload.buttons = element("div", { className: "buttons" });
  upload.row = element(
    "li",
    { className: "upload", dataset: { state: "waiting" } },
    upload.picture,
    element("div", { className: "upload-body" }, element("p", { className: "upload-name" }, file.name, element("span", { className: "faint" }, ` ${bytes(file.size)}`)), upload.bar, upload.text),
    upload.buttons,
  );
  offer(upload, [["Cancel", () => cancel(upload)]]);
  find("queue").append(upload.row);
}

function cancel(upload) {
  upload.cancelled = true;
  const place = waiting.indexOf(upload);
  if (place >= 0) waiting.splice(place, 1);
  upload.request?.abort();
  upload.wake?.();
  say(`${upload.file.name} is not uploaded`);
  discard(upload);
}

function discard(upload) {
  const neighbour = upload.row.nextElementSibling ?? upload.row.previousElementSibling;
  upload.row.remove();
  (neighbour?.querySelector("button") ?? find("choose")).focus();
  summarise();
}

function progress(upload, part, text) {
  upload.row.dataset.state = "running";
  if (part === null) upload.bar.removeAttribute("value");
  else upload.bar.value = part;
  upload.text.textContent = text;
}

function finish(upload, asset) {
  upload.row.dataset.state = "stored";
  upload.bar.hidden = true;
  const made = count(asset.variants.length, "size");
  const kept = Boolean(asset.id);
  upload.text.textContent = kept ? `Stored on ${asset.storage}, with ${made}` : `Made, with ${made}; nothing is kept`;
  offer(upload, [["Show", () => tell.show(asset)]]);
  say(`${upload.file.name} is ${kept ? "stored" : "made"}`);
  if (kept) tell.stored(asset);
}

function fail(upload, problem) {
  upload.row.dataset.state = "failed";
  upload.bar.hidden = true;
  find("queue").prepend(upload.row); // where it is seen
  find("queue").scrollTop = 0;
  upload.text.replaceChildren(element("strong", {}, problem.title), ` ${problem.message}`);
  upload.text.setAttribute("role", "alert");
  upload.text.className = "upload-text error";
  const again = ["Try again", () => retry(upload)];
  offer(upload, [...(problem.passes || problem.status === 401 || problem.status >= 500 ? [again] : []), ["Remove", () => discard(upload)]]);
  summarise();
}

function retry(upload) {
  upload.bar.hidden = false;
  upload.text.removeAttribute("role");
  upload.text.className = "upload-text faint";
  offer(upload, [["Cancel", () => cancel(upload)]]);
  upload.buttons.firstElementChild.focus();
  waiting.push(upload);
  next();
}

function offer(upload, choices) {
  const hadFocus = upload.buttons.contains(document.activeElement);
  upload.buttons.replaceChildren(
    ...choices.map(([text, act]) =>
      element("button", { type: "button", className: "small", "aria-label": `${text}: ${upload.file.name}`, onclick: act }, text),
    ),
  );
  if (hadFocus) upload.buttons.firstElementChild?.focus();
}

function summarise() {
  const rows = [...find("queue").children];
  const of = (state) => rows.filter((row) => row.dataset.state === state).length;
  const open = rows.length - of("stored") - of("failed");
  find("uploads").hidden = rows.length === 0;
  find("clear-uploads").hidden = open === rows.length;
  const parts = [open && `${open} under way`, of("stored") && `${of("stored")} stored`, of("failed") && `${of("failed")} failed`];
  find("uploads-title").textContent = `Uploads: ${parts.filter(Boolean).join(", ")}`;
}

