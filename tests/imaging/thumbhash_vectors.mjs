// Writes thumbhash_vectors.json with the reference implementation: npm install thumbhash && node thumbhash_vectors.mjs
import { writeFileSync } from "node:fs";
import { rgbaToThumbHash } from "thumbhash";

// A raster that any language can make again: `raster` in test_placeholder.py.
const pixel = {
  opaque: (x, y) => [(x * x * 5 + y * 3) % 256, (y * y * 7 + x) % 256, (x * y + 31) % 256, 255],
  fading: (x, y) => [(x * x + y) % 256, (x * 3 + y * y) % 256, (x * y) % 256, (x * y + x + 2 * y) % 256],
  speckled: (x, y) => [(x * x * 31) % 256, (y * y * 17) % 256, (x * y * 3) % 256, (x * x * 7 + y * y * 13 + x * y * 5) % 256],
  invisible: (x, y) => [x, y, 9, 0],
  plain: () => [120, 60, 30, 255],
};
const sides = [[32, 32], [32, 21], [21, 32], [100, 75], [75, 100], [100, 5], [64, 43], [100, 1], [1, 100], [1, 1]];

const vectors = [];
for (const [name, colour] of Object.entries(pixel)) {
  for (const [w, h] of sides) {
    const rgba = new Uint8Array(w * h * 4);
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) rgba.set(colour(x, y), (y * w + x) * 4);
    vectors.push({ pixels: name, width: w, height: h, thumbhash: Buffer.from(rgbaToThumbHash(w, h, rgba)).toString("base64") });
  }
}
const lines = vectors.map((vector) => "  " + JSON.stringify(vector));
writeFileSync(new URL("thumbhash_vectors.json", import.meta.url), "[\n" + lines.join(",\n") + "\n]\n");
