// An asset as other pages show it.

import { nameOf } from "./dom.js";
import { srcset, wholeImages } from "./images.js";

const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const escaped = (text) => String(text).replace(/[&<>"]/g, (character) => escapes[character]);

/** What stands for the image where it cannot be seen: its name without the extension, for somebody to better. */
export const alternative = (asset) => nameOf(asset).replace(/\.[a-z]{3,4}$/i, "");

/** `<picture>` with a source for each type there is: the browser takes the first it can, in the width it needs. */
export function pictureMarkup(asset) {
  const images = wholeImages(asset);
  const own = images.filter((image) => image.content_type === asset.content_type);
  const others = [...new Set(images.map((image) => image.content_type))].filter((type) => type !== asset.content_type);
  const sources = [...others, ...(own.length > 1 ? [asset.content_type] : [])].map((type) => {
    const candidates = images.filter((image) => image.content_type === type);
    return `  <source type="${escaped(type)}" srcset="${escaped(srcset(candidates))}" sizes="100vw">`;
  });
  const image =
    `  <img src="${escaped(asset.url)}" width="${asset.width}" height="${asset.height}" ` +
    `alt="${escaped(alternative(asset))}" loading="lazy" decoding="async">`;
  return ["<picture>", ...sources, image, "</picture>"].join("\n");
}

export function markdown(asset) {
  const text = alternative(asset).replace(/[\\[\]*_`<>]/g, "\\$&");
  const url = asset.url.replace(/[()\s<>]/g, (character) => `%${character.codePointAt(0).toString(16).padStart(2, "0")}`);
  return `![${text}](${url})`;
}
