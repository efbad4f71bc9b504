// The gallery: puts its parts together.

import { askForKey, key, loadStorages, prepareKeyDialog } from "./api.js";
import { openAsset, openFromAddress, prepareDetail, show } from "./detail.js";
import { bytes, find, showError } from "./dom.js";
import { prepareGrid, prepend, reload } from "./grid.js";
import { prepareStats } from "./stats.js";
import { prepareUploads } from "./uploads.js";

for (const place of document.querySelectorAll("[data-bytes]")) place.textContent = bytes(Number(place.dataset.bytes));

prepareKeyDialog(() => {
  showWhetherKeyed();
  begin();
});
find("open-key").addEventListener("click", () => askForKey(null));
prepareDetail();
prepareGrid(openAsset);
prepareStats();
prepareUploads({ stored: prepend, show: (asset) => (asset.id ? openAsset(asset.id) : show(asset)) });
showWhetherKeyed();
begin();
openFromAddress();

function begin() {
  loadStorages().catch((error) => error.status !== 401 && showError(error, "Storages"));
  reload();
}

function showWhetherKeyed() {
  find("open-key").textContent = key() ? "Key is set" : "Key";
}
