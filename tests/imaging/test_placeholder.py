"""Placeholders, held against the reference implementation of ThumbHash."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_assets.imaging.placeholder import dominant_colour, placeholder, thumbhash

Pixel = tuple[int, int, int, int]

# Made by thumbhash_vectors.mjs, whose pixels these are.
VECTORS = json.loads(Path(__file__).with_name("thumbhash_vectors.json").read_text())
PIXELS: dict[str, Callable[[int, int], Pixel]] = {
    "opaque": lambda x, y: ((x * x * 5 + y * 3) % 256, (y * y * 7 + x) % 256, (x * y + 31) % 256, 255),
    "fading": lambda x, y: ((x * x + y) % 256, (x * 3 + y * y) % 256, x * y % 256, (x * y + x + 2 * y) % 256),
    "speckled": lambda x, y: (
        x * x * 31 % 256,
        y * y * 17 % 256,
        x * y * 3 % 256,
        (x * x * 7 + y * y * 13 + x * y * 5) % 256,
    ),
    "invisible": lambda x, y: (x, y, 9, 0),
    "plain": lambda _x, _y: (120, 60, 30, 255),
}


def raster(name: str, width: int, height: int) -> bytes:
    return b"".join(bytes(PIXELS[name](x, y)) for y in range(height) for x in range(width))


def has_terms_of_zero(vector: dict[str, Any]) -> bool:
    """Where a term ought to be 0 the reference writes its own rounding noise, and scales it up."""
    return vector["pixels"] == "plain" or (vector["pixels"] != "invisible" and 1 in (vector["width"], vector["height"]))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: "{pixels} {width}x{height}".format(**vector))
def test_thumbhash_is_byte_for_byte_the_reference(vector: dict[str, Any]) -> None:
    width, height = vector["width"], vector["height"]
    made, reference = thumbhash(width, height, raster(vector["pixels"], width, height)), vector["thumbhash"]
    if has_terms_of_zero(vector):
        assert made[:5] == base64.b64decode(reference)[:5]
        assert len(made) == len(base64.b64decode(reference))
    else:
        assert base64.b64encode(made).decode() == reference


def test_thumbhash_of_a_plain_image_does_not_depend_on_its_size() -> None:
    plain = {thumbhash(side, side, raster("plain", side, side)) for side in (16, 32, 33)}
    assert len(plain) == 1


def test_thumbhash_refuses_what_the_reference_refuses() -> None:
    with pytest.raises(ValueError, match="101x1 does not fit"):
        thumbhash(101, 1, bytes(101 * 4))


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_every_raster_has_a_placeholder(width: int, height: int, data: st.DataObject) -> None:
    rgba = data.draw(st.binary(min_size=width * height * 4, max_size=width * height * 4))
    made = placeholder(width, height, rgba)
    assert 5 <= len(base64.b64decode(made.thumbhash, validate=True)) <= 25
    assert int(made.dominant_color.removeprefix("#"), 16) <= 0xFFFFFF
    assert len(made.dominant_color) == 7


def test_dominant_colour_is_the_most_common_not_the_average() -> None:
    assert dominant_colour(bytes((200, 30, 40, 255)) * 60 + bytes((20, 30, 200, 255)) * 40) == "#c81e28"


def test_dominant_colour_gathers_like_colours() -> None:
    reds = b"".join(bytes((200 + step, 30, 40, 255)) for step in range(8)) * 6
    red, green, _ = bytes.fromhex(dominant_colour(reds + bytes((20, 30, 200, 255)) * 30)[1:])
    assert 200 <= red <= 207
    assert green == 30


def test_transparent_pixels_do_not_count() -> None:
    assert dominant_colour(bytes((255, 0, 0, 0)) * 90 + bytes((0, 0, 255, 255)) * 10) == "#0000ff"


def test_an_invisible_image_is_white() -> None:
    assert dominant_colour(bytes((255, 0, 0, 127)) * 9) == "#ffffff"
