// Images: a placeholder at once, the picture when it has come.

import { call } from "./api.js";
import { element } from "./dom.js";
import { thumbhashCanvas } from "./thumbhash.js";

const SAME_RATIO = 0.02;

/** The asset's original and those of its sizes that show all of it: cropped and padded ones do not. Small ones first. */
export function wholeImages(asset) {
  const ratio = asset.width / asset.height;
  const whole = asset.variants.filter(
    ({ width, height }) => Math.abs(width / height / ratio - 1) < Math.max(SAME_RATIO, 1 / Math.min(width, height)),
  );
  const byWidth = new Map([asset, ...whole].map((image) => [image.width, image]));
  return [...byWidth.values()].sort((one, other) => one.width - other.width);
}

export const srcset = (images) => images.map(({ url, width }) => `${url} ${width}w`).join(", ");

/** What an image stands before: its ThumbHash, or else its dominant colour. */
export function placeholder(asset) {
  const canvas = asset.thumbhash ? thumbhashCanvas(asset.thumbhash) : null;
  if (canvas) {
    canvas.className = "placeholder";
    canvas.setAttribute("aria-hidden", "true");
    return canvas;
  }
  const made = element("span", { className: "placeholder" });
  if (asset.dominant_color) made.style.backgroundColor = asset.dominant_color;
  return made;
}

/**
 * The asset's picture over its placeholder. `images` are candidates, of which the browser takes one by `sizes`.
 * Addresses of private ones expire: when none loads, the asset is asked for once more.
 */
export function picture(asset, images, { sizes, alt = "", lazy = false }) {
  const image = element("img", { alt, decoding: "async", loading: lazy ? "lazy" : "eager" });
  const frame = element("span", { className: "picture" }, placeholder(asset), image);
  const use = (candidates) => {
    image.sizes = sizes;
    image.srcset = candidates.length > 1 ? srcset(candidates) : "";
    image.src = candidates.at(-1).url;
  };
  image.addEventListener("load", () => frame.classList.add("sharp"));
  let again = Boolean(asset.id);
  image.addEventListener("error", async () => {
    if (again) {
      again = false;
      try {
        const { data } = await call("GET", `assets/${asset.id}`);
        const widths = new Set(images.map(({ width }) => width));
        use([data, ...data.variants].filter(({ width }) => widths.has(width)).sort((one, other) => one.width - other.width));
        return;
      } catch {
        // shown as an image that does not come
      }
    }
    frame.classList.add("broken");
  });
  use(images);
  return frame;
}
