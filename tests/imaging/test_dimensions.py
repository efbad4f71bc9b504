"""How large an image is, from a few ranges of it."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from smart_assets.errors import CorruptImage, UnsupportedImage
from smart_assets.imaging.dimensions import STEP_BYTES, read_dimensions
from tests.images import IMAGES, NOT_IMAGES


class Ranges:
    """A file that is fetched by ranges, and counts."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.fetched = 0
        self.requests = 0

    async def fetch(self, start: int, end: int) -> bytes:
        assert 0 <= start < end <= len(self.data)
        self.requests += 1
        self.fetched += end - start
        return self.data[start:end]

    def dimensions(self) -> Awaitable[tuple[int, int]]:
        return read_dimensions(self.fetch, len(self.data))


@pytest.mark.parametrize("name", IMAGES)
async def test_the_dimensions_are_those_a_person_sees(name: str) -> None:
    with Image.open(io.BytesIO(IMAGES[name]())) as seen:
        assert await Ranges(IMAGES[name]()).dimensions() == ImageOps.exif_transpose(seen).size


@pytest.mark.parametrize("name", IMAGES)
async def test_what_follows_the_header_is_not_fetched(name: str) -> None:
    grown = {
        "png": _behind_the_header(IMAGES["png"]()),
        "jpeg": IMAGES["jpeg"]()[:-2] + bytes(10_000_000) + b"\xff\xd9",
    }
    file = Ranges(grown.get(name) or IMAGES[name]())
    assert await file.dimensions()
    assert file.fetched <= STEP_BYTES * 2
    assert file.requests <= 2


def _behind_the_header(png: bytes) -> bytes:
    at = png.index(b"IDAT") - 4
    return png[:at] + (8_000_000).to_bytes(4) + b"IDAT" + bytes(8_000_004) + png[at:]


async def test_metadata_before_the_header_is_stepped_over() -> None:
    segment = b"\xff\xe1" + (65_535).to_bytes(2) + bytes(65_533)
    jpeg = IMAGES["jpeg"]()
    file = Ranges(jpeg[:2] + segment * 20 + jpeg[2:])
    assert await file.dimensions() == await Ranges(jpeg).dimensions()


@pytest.mark.parametrize("name", NOT_IMAGES)
async def test_what_is_no_image_says_what_it_looks_like(name: str) -> None:
    with pytest.raises((UnsupportedImage, CorruptImage)):
        await Ranges(NOT_IMAGES[name]).dimensions()


async def test_a_source_shorter_than_it_says_is_truncated() -> None:
    async def fetch(start: int, end: int) -> bytes:
        return IMAGES["jpeg"]()[:100][start:end]

    with pytest.raises(CorruptImage, match="truncated"):
        await read_dimensions(fetch, len(IMAGES["jpeg"]()))


@given(st.sampled_from(sorted(IMAGES)), st.data())
def test_damage_ends_in_an_answer_or_in_one_of_our_errors(name: str, data: st.DataObject) -> None:
    damaged = bytearray(IMAGES[name]())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged), 400) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(1, len(damaged)))])
    try:
        width, height = _run(Ranges(cut).dimensions)
    except (UnsupportedImage, CorruptImage):
        return
    assert width > 0
    assert height > 0


def _run(work: Callable[[], Awaitable[tuple[int, int]]]) -> tuple[int, int]:
    """The result of a coroutine that waits for nothing."""
    steps = work().__await__()
    try:
        next(steps)
    except StopIteration as done:
        size: tuple[int, int] = done.value
        return size
    raise AssertionError("it waited")
