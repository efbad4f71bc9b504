"""Metadata goes, pixels stay."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import pyvips
from PIL import Image, ImageSequence

from smart_assets.imaging.probe import ImageInfo, Limits, probe
from smart_assets.imaging.strip import strip_metadata, strip_metadata_file
from smart_assets.imaging.structure.reader import WINDOW
from smart_assets.settings import Settings
from tests import images

LIMITS = Limits.from_settings(Settings(_env_file=None))

TELLING: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: images.jpeg(metadata=True, icc=True, orientation=6),
    "upright jpeg": lambda: images.jpeg(metadata=True),
    "progressive cmyk jpeg": lambda: images.jpeg(metadata=True, mode="CMYK", progressive=True, orientation=3),
    "mpo": images.mpo,
    "png": lambda: images.png(metadata=True, icc=True, orientation=8),
    "upright png": lambda: images.png(metadata=True, mode="RGBA"),
    "gif": lambda: images.gif(metadata=True, transparent=True),
    "webp": lambda: images.webp(metadata=True, icc=True, orientation=6),
    "upright webp": lambda: images.webp(metadata=True),
    "rgba webp": lambda: images.webp(metadata=True, mode="RGBA", lossless=True, orientation=2),
    "animated webp": lambda: images.animated_webp(metadata=True),
    "avif": lambda: images.avif(metadata=True, icc=True, orientation=6),
    "rgba avif": lambda: images.avif(metadata=True, mode="RGBA"),
}
"""Images that say where they were taken."""

EVERY = images.IMAGES | {f"telling {name}": make for name, make in TELLING.items()}


def strip(image: bytes) -> bytes:
    """The image without its metadata."""
    return strip_metadata(image, probe(image, LIMITS))


def frames(image: bytes) -> list[tuple[bytes, object]]:
    """Pillow's pixels and duration of each frame that is the file's own."""
    with Image.open(io.BytesIO(image)) as opened:
        own = [opened] if opened.format == "MPO" else ImageSequence.Iterator(opened)
        return [(frame.convert("RGBA").tobytes(), frame.info.get("duration")) for frame in own]


def decoded(image: bytes) -> bytes:
    """libvips' pixels; an AVIF by its loader's name, since `avis` is not recognised without."""
    if image[4:8] == b"ftyp":
        return bytes(pyvips.Image.heifload_buffer(image).write_to_memory())
    return bytes(pyvips.Image.new_from_buffer(image, "").write_to_memory())


def metadata_seen(image: bytes) -> set[str]:
    """What Pillow and libvips find besides pixels, profile and orientation; white space counts as nothing."""
    with Image.open(io.BytesIO(image)) as opened:
        opened.load()
        seen = {f"exif {tag:04x}" for tag in opened.getexif() if tag != 0x0112}
        found = opened.info | getattr(opened, "text", {})
    engine = pyvips.Image.new_from_buffer(image, "")
    found |= {name: engine.get(name) for name in ("xmp-data", "iptc-data") if name in engine.get_fields()}
    told = {"comment", "xmp", "photoshop", "mp", "xmp-data", "iptc-data", "Location", "Place", "XML:com.adobe.xmp"}
    return seen | {
        name for name in told & found.keys() if not (isinstance(found[name], bytes) and found[name].isspace())
    }


@pytest.mark.parametrize("name", TELLING)
def test_the_place_is_gone_and_nothing_else_is_told(name: str) -> None:
    image = TELLING[name]()
    assert images.SECRET in image
    assert metadata_seen(image)
    stripped = strip(image)
    assert images.SECRET not in stripped
    assert metadata_seen(stripped) == set()
    assert len(stripped) <= len(image)


@pytest.mark.parametrize("name", EVERY)
def test_every_frame_has_the_same_pixels_and_timing(name: str) -> None:
    image = EVERY[name]()
    assert frames(strip(image)) == frames(image)


@pytest.mark.parametrize("name", EVERY)
def test_it_stays_the_same_image_with_profile_orientation_and_loop(name: str) -> None:
    image = EVERY[name]()
    stripped = strip(image)
    assert probe(stripped, LIMITS) == probe(image, LIMITS)
    with Image.open(io.BytesIO(image)) as before, Image.open(io.BytesIO(stripped)) as after:
        assert after.getexif().get(0x0112, 1) == before.getexif().get(0x0112, 1)
        for key in ("icc_profile", "loop", "transparency", "gamma", "adobe_transform", "jfif_density"):
            assert after.info.get(key) == before.info.get(key)


@pytest.mark.parametrize("name", EVERY)
def test_the_engine_decodes_the_same_picture(name: str) -> None:
    assert decoded(strip(EVERY[name]())) == decoded(EVERY[name]())


@pytest.mark.parametrize("name", EVERY)
def test_twice_is_the_same_as_once(name: str) -> None:
    once = strip(EVERY[name]())
    assert strip(once) == once


@pytest.mark.parametrize("name", EVERY)
def test_a_file_becomes_what_its_bytes_become(name: str, tmp_path: Path) -> None:
    image = EVERY[name]()
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(image)
    size = strip_metadata_file(source, target, probe(source, LIMITS))
    assert target.read_bytes() == strip(image)
    assert size == target.stat().st_size
    assert source.read_bytes() == image


@pytest.mark.parametrize("name", images.IMAGES)
def test_a_film_behind_the_end_is_gone(name: str) -> None:
    assert images.SECRET not in strip(images.with_film(images.image(name)))


def test_a_large_file_goes_by_windows(tmp_path: Path) -> None:
    source, target = tmp_path / "source.jpg", tmp_path / "target.jpg"
    with source.open("wb") as file:
        file.write(images.jpeg(metadata=True)[:-2])
        file.seek(20_000_000, os.SEEK_CUR)
        file.write(b"\xff\xd9" + images.SECRET)
    tracemalloc.start()
    try:
        size = strip_metadata_file(source, target, ImageInfo(probe(source, LIMITS).format, 320, 240))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 20_000_000
    assert peak < 4 * WINDOW


def test_a_thumbnail_in_jfif_goes() -> None:
    image = images.jpeg()
    small = b"\x01\x01" + images.SECRET[:3]
    segment = b"\xff\xe0" + struct.pack(">H", 16 + 3) + image[6:18] + small
    extension = b"\xff\xe0" + struct.pack(">H", 8 + len(images.SECRET)) + b"JFXX\x00\x10" + images.SECRET
    assert strip(image[:2] + segment + extension + image[20:]) == image


def test_telling_parts_of_a_png_go_and_colours_stay() -> None:
    image = images.png()
    colours = images.png_chunk(b"gAMA", struct.pack(">I", 45455)) + images.png_chunk(b"cICP", b"\x09\x10\x00\x01")
    private = images.png_chunk(b"prVt", images.SECRET)
    assert strip(image[:33] + private + colours + image[33:]) == image[:33] + colours + image[33:]


def test_the_header_of_a_webp_announces_what_is_left() -> None:
    profile, orientation = 0x20, 0x08
    assert strip(images.webp(metadata=True, icc=True, orientation=6))[20] == profile | orientation
    assert strip(images.webp(metadata=True, icc=True))[20] == profile


def test_a_chunk_within_a_webp_frame_goes() -> None:
    image = images.animated_webp()
    at = image.index(b"ANMF")
    (size,) = struct.unpack_from("<I", image, at + 4)
    hidden = b"NOTE" + struct.pack("<I", len(images.SECRET)) + images.SECRET + bytes(len(images.SECRET) % 2)
    frame = b"ANMF" + struct.pack("<I", size + len(hidden)) + image[at + 8 : at + 8 + size] + hidden
    body = image[8:at] + frame + image[at + 8 + size :]
    assert strip(b"RIFF" + struct.pack("<I", len(body)) + body) == image


def test_plain_text_of_a_gif_goes_with_its_timing() -> None:
    image = images.gif()
    at = image.index(b"\x2c\x00\x00\x00\x00")
    control = b"\x21\xf9\x04\x01\x08\x00\x03\x00"
    text = control + b"\x21\x01\x0c" + bytes(12) + bytes([len(images.SECRET)]) + images.SECRET + b"\x00"
    assert strip(image[:at] + text + image[at:]) == image


def with_longer_box(image: bytes, kind: bytes, content: bytes = images.SECRET) -> bytes:
    """The image with something at the end of one of its boxes."""
    at = image.index(kind) - 4
    (size,) = struct.unpack_from(">I", image, at)
    return (
        image[:at] + struct.pack(">I", size + len(content)) + image[at + 4 : at + size] + content + image[at + size :]
    )


class TestAvif:
    picture = images.av1_item(images.image("avif"))

    @pytest.mark.parametrize(
        "image",
        [
            images.avif_of([picture], in_front=images.box(b"uuid", bytes(16), images.SECRET)),
            images.avif_of([picture], in_front=images.box(b"free", images.SECRET)),
            images.avif_of([picture, images.AvifItem(b"Exif", bytes(4) + images.exif()[6:])]),
            images.avif_of([picture, images.AvifItem(b"Exif", bytes(4) + images.exif()[6:], in_idat=True)]),
            images.avif_of([picture, images.AvifItem(b"mime", images.xmp(), in_idat=True)]),
            images.avif_of([picture, images.AvifItem(b"uri ", images.SECRET)]),
            images.avif_of([images.av1_item(images.image("avif"), images.full_box(b"udes", images.SECRET))]),
            with_longer_box(images.avif_of([picture]), b"mdat"),
            with_longer_box(images.avif_of([picture._replace(in_idat=True)]), b"mdat"),
        ],
        ids=[
            "uuid",
            "free",
            "exif",
            "exif in idat",
            "xmp in idat",
            "uri",
            "description",
            "behind the items",
            "nothing but that",
        ],
    )
    def test_no_corner_keeps_the_place(self, image: bytes) -> None:
        stripped = strip(image)
        assert images.SECRET not in stripped
        assert frames(stripped) == frames(image)

    def test_metadata_of_a_sequence_goes(self) -> None:
        # The samples move and `stco` is left behind, which nobody here looks at.
        told = with_longer_box(images.image("animated avif"), b"moov", images.box(b"udta", images.SECRET))
        assert images.SECRET not in strip(told)
