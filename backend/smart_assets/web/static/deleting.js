// Deleting with a way back: the page waits before it asks the service, since what is gone there is gone.
//
// While it waits the image is hidden here and nowhere else. Leaving the page does not undo it: what was deleted is sent
// then. The time stands still while the pointer or the focus is on the message.

import { Problem, address, authorization, call } from "./api.js";
import { element, find, nameOf, say, showError } from "./dom.js";
import { focusOn, remove, setHidden } from "./grid.js";

const SECONDS = 8;

const pending = new Map();

addEventListener("pagehide", () => {
  for (const [id, settle] of pending) {
    // Outlives the page; sent with the key that is there, nobody is left to ask for another.
    fetch(address(`assets/${id}`), { method: "DELETE", keepalive: true, headers: authorization() });
    settle();
    remove(id);
  }
});

export function deleteLater(asset) {
  const name = nameOf(asset);
  const undo = element("button", { type: "button", className: "small" }, "Undo");
  const clock = element("span", { className: "faint" });
  const message = element(
    "div",
    { className: "toast undo" },
    element("div", {}, element("p", {}, `${name} is being deleted`), clock),
    undo,
  );
  let left = SECONDS;
  let settled = false;
  let timer;
  const stop = () => clearInterval(timer);
  const tell = () => (clock.textContent = `in ${left} s, or when you leave this page`);
  const start = () => {
    stop();
    if (settled) return; // the message goes away, and the focus with it
    timer = setInterval(() => {
      left -= 1;
      tell();
      if (left <= 0) send();
    }, 1000);
  };
  const settle = () => {
    settled = true;
    stop();
    pending.delete(asset.id);
    message.remove();
  };
  const send = async () => {
    const hadFocus = message.contains(document.activeElement);
    settle();
    if (hadFocus) find("grid").focus();
    try {
      await call("DELETE", `assets/${asset.id}`);
      remove(asset.id);
      say(`${name} is deleted`);
    } catch (error) {
      if (error instanceof Problem && error.status === 404) {
        remove(asset.id); // somebody was faster
        return;
      }
      setHidden(asset.id, false);
      showError(error, `${name} was not deleted`);
    }
  };
  undo.addEventListener("click", () => {
    settle();
    setHidden(asset.id, false);
    focusOn(asset.id);
    say(`${name} is kept`);
  });
  message.addEventListener("pointerenter", stop);
  message.addEventListener("pointerleave", start);
  undo.addEventListener("focus", () => undo.matches(":focus-visible") && stop());
  undo.addEventListener("blur", start);

  setHidden(asset.id, true);
  pending.set(asset.id, settle);
  tell();
  find("toasts").append(message);
  say(`${name} is being deleted; undo is there for ${SECONDS} seconds`);
  start();
  undo.focus();
}
