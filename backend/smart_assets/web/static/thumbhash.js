// ThumbHash (https://evanw.github.io/thumbhash/): a blurred picture of an image in some 25 bytes.

/** The hash's picture on a canvas of at most 32 by 32 pixels; null where it is not one. */
export function thumbhashCanvas(base64) {
  try {
    const { width, height, rgba } = decode(Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)));
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width, height });
    canvas.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
    return canvas;
  } catch {
    return null;
  }
}

/** Width, height and pixels, row by row, of which none is premultiplied. */
export function decode(hash) {
  const header = hash[0] | (hash[1] << 8) | (hash[2] << 16);
  const more = hash[3] | (hash[4] << 8);
  const hasAlpha = header >> 23 === 1;
  const isLandscape = more >> 15 === 1;
  const longest = hasAlpha ? 5 : 7;
  const waves = [isLandscape ? longest : more & 7, isLandscape ? more & 7 : longest];
  const ratio = waves[0] / waves[1];
  const width = Math.round(ratio > 1 ? 32 : 32 * ratio);
  const height = Math.round(ratio > 1 ? 32 / ratio : 32);

  const nibble = nibbles(hash, hasAlpha ? 6 : 5);
  const luminance = channel(nibble, (header & 63) / 63, ((header >> 18) & 31) / 31, Math.max(3, waves[0]), Math.max(3, waves[1]));
  const yellow = channel(nibble, ((header >> 6) & 63) / 31.5 - 1, (((more >> 3) & 63) / 63) * 1.25, 3, 3);
  const red = channel(nibble, ((header >> 12) & 63) / 31.5 - 1, (((more >> 9) & 63) / 63) * 1.25, 3, 3);
  const alpha = hasAlpha ? channel(nibble, (hash[5] & 15) / 15, (hash[5] >> 4) / 15, 5, 5) : { mean: 1, terms: [] };

  const across = cosines(width);
  const down = cosines(height);
  const rgba = new Uint8ClampedArray(width * height * 4);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at += 4) {
      const [l, p, q, a] = [luminance, yellow, red, alpha].map((one) => valueAt(one, across[x], down[y]));
      const b = l - (2 / 3) * p;
      const r = (3 * l - b + q) / 2;
      rgba.set([255 * r, 255 * (r - q), 255 * b, 255 * a], at);
    }
  }
  return { width, height, rgba };
}

/** Reads four bits after another, the low ones of each byte first. */
function nibbles(hash, start) {
  let index = 0;
  return () => {
    const at = start + (index >> 1);
    if (at >= hash.length) throw new RangeError("the hash is too short");
    return (hash[at] >> ((index++ & 1) << 2)) & 15;
  };
}

/** A channel: its mean, and the cosine waves that are added to it. */
function channel(nibble, mean, scale, across, down) {
  const terms = [];
  for (let y = 0; y < down; y++) {
    for (let x = y ? 0 : 1; x * down < across * (down - y); x++) {
      terms.push({ x, y, weight: (nibble() / 7.5 - 1) * scale * 2 });
    }
  }
  return { mean, terms };
}

/** For each pixel of a side, the values of the first seven waves. */
function cosines(side) {
  return Array.from({ length: side }, (_, pixel) =>
    Array.from({ length: 7 }, (_, wave) => Math.cos((Math.PI / side) * (pixel + 0.5) * wave)),
  );
}

function valueAt({ mean, terms }, across, down) {
  return terms.reduce((sum, { x, y, weight }) => sum + weight * across[x] * down[y], mean);
}
