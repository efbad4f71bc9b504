"""Placeholders: what a page shows while the image is on its way.

The ThumbHash is Evan Wallace's (https://evanw.github.io/thumbhash/): average colour and alpha, and a few terms of the
cosine transform of lightness, two chroma channels and alpha, in 25 bytes or fewer.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from functools import cache
from operator import mul

from PIL import Image

MAX_SIDE = 100
"""The longest side that `thumbhash` takes, as its reference does."""

TRANSPARENT_COLOUR = "#ffffff"
"""The dominant colour of an image nobody can see."""

_COLOURS = 16
_NOISE = 1e-9


@dataclass(frozen=True)
class Placeholder:
    """`thumbhash` in base64; `dominant_color` as `#rrggbb`."""

    thumbhash: str
    dominant_color: str


def placeholder(width: int, height: int, rgba: bytes) -> Placeholder:
    """The placeholder of a raster of at most 100 by 100 pixels, four bytes each, alpha not premultiplied."""
    encoded = base64.b64encode(thumbhash(width, height, rgba)).decode()
    return Placeholder(encoded, dominant_colour(rgba))


def dominant_colour(rgba: bytes) -> str:
    """The mean of the most common group of like colours; pixels more transparent than not do not count."""
    visible = b"".join(rgba[at : at + 3] for at in range(0, len(rgba), 4) if rgba[at + 3] >= 128)
    if not visible:
        return TRANSPARENT_COLOUR
    pixels = Image.frombytes("RGB", (len(visible) // 3, 1), visible)
    # The octree groups by likeness; median cut would make groups of like size, and the largest would mean nothing.
    grouped = pixels.quantize(_COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    counts = grouped.histogram()
    largest = counts.index(max(counts))
    return "#" + bytes((grouped.getpalette() or [])[largest * 3 : largest * 3 + 3]).hex()


def thumbhash(width: int, height: int, rgba: bytes) -> bytes:
    """The ThumbHash of a raster as `placeholder` takes it; ValueError where a side exceeds 100 pixels."""
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"{width}x{height} does not fit in {MAX_SIDE}x{MAX_SIDE}")
    lightness, yellow_blue, red_green, alpha = _channels(rgba)
    has_alpha = any(value < 255 for value in rgba[3::4])
    most = 5 if has_alpha else 7
    across = max(1, _round(most * width / max(width, height)))
    down = max(1, _round(most * height / max(width, height)))

    l_dc, l_ac, l_scale = _transform(lightness, width, height, max(3, across), max(3, down))
    p_dc, p_ac, p_scale = _transform(yellow_blue, width, height, 3, 3)
    q_dc, q_ac, q_scale = _transform(red_green, width, height, 3, 3)
    terms = l_ac + p_ac + q_ac

    landscape = width > height
    head = (
        _round(63 * l_dc)
        | _round(31.5 + 31.5 * p_dc) << 6
        | _round(31.5 + 31.5 * q_dc) << 12
        | _round(31 * l_scale) << 18
        | has_alpha << 23
    )
    ratio = (down if landscape else across) | _round(63 * p_scale) << 3 | _round(63 * q_scale) << 9 | landscape << 15
    encoded = bytearray(head.to_bytes(3, "little") + ratio.to_bytes(2, "little"))
    if has_alpha:
        a_dc, a_ac, a_scale = _transform(alpha, width, height, 5, 5)
        encoded.append(_round(15 * a_dc) | _round(15 * a_scale) << 4)
        terms += a_ac
    nibbles = [_round(15 * term) for term in terms] + [0] * (len(terms) % 2)
    encoded += bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))
    return bytes(encoded)


def _round(value: float) -> int:
    """To the nearest integer, halves upwards, as JavaScript does."""
    return math.floor(value + 0.5)


def _channels(rgba: bytes) -> tuple[list[float], list[float], list[float], list[float]]:
    """Lightness, yellow against blue, red against green, and alpha, each 0 to 1 or -1 to 1, over the average colour."""
    alphas = [value / 255 for value in rgba[3::4]]
    weights = [alpha / 255 for alpha in alphas]
    opacity = sum(alphas)
    planes = []
    for plane in (rgba[0::4], rgba[1::4], rgba[2::4]):
        average = sum(map(mul, weights, plane)) / (opacity or 1)
        shown = zip(alphas, map(mul, weights, plane), strict=True)
        planes.append([average * (1 - alpha) + value for alpha, value in shown])
    red, green, blue = planes
    lightness = [(r + g + b) / 3 for r, g, b in zip(red, green, blue, strict=True)]
    yellow_blue = [(r + g) / 2 - b for r, g, b in zip(red, green, blue, strict=True)]
    red_green = [r - g for r, g in zip(red, green, strict=True)]
    return lightness, yellow_blue, red_green, alphas


@cache
def _cosines(length: int, frequency: int) -> tuple[float, ...]:
    return tuple(math.cos(math.pi / length * frequency * (at + 0.5)) for at in range(length))


def _transform(
    channel: list[float], width: int, height: int, across: int, down: int
) -> tuple[float, list[float], float]:
    """The mean, the other low terms scaled to 0 to 1, and their scale."""
    rows = [channel[at : at + width] for at in range(0, len(channel), width)]
    columns = [[sum(map(mul, row, _cosines(width, cx))) for row in rows] for cx in range(across)]
    terms = [
        sum(map(mul, columns[cx], _cosines(height, cy))) / (width * height)
        for cy in range(down)
        for cx in range(across)
        if cx * down < across * (down - cy)
    ]
    # A term that ought to be 0 comes out as rounding noise, which in a plain image would be scaled up to full size.
    mean, *others = (0.0 if abs(term) < _NOISE else term for term in terms)
    scale = max(map(abs, others))
    if scale:
        others = [0.5 + 0.5 / scale * term for term in others]
    return mean, others, scale
