"""What an image is, is read from its structure: right, cheaply, and whatever the bytes."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import pyvips
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from smart_assets.errors import CorruptImage, InvalidParameter, SmartAssetsError, TooManyPixels, UnsupportedImage
from smart_assets.formats import ImageFormat
from smart_assets.imaging.probe import ImageInfo, Limits, probe
from smart_assets.imaging.strip import strip_metadata
from smart_assets.imaging.structure import exif
from smart_assets.imaging.structure.reader import WINDOW
from smart_assets.settings import Settings
from tests import images

LIMITS = Limits.from_settings(Settings(_env_file=None))

SMALL = {
    "jpeg": lambda: images.jpeg(24, 16, quality=30),
    "progressive jpeg": lambda: images.jpeg(24, 16, quality=30, progressive=True, metadata=True, orientation=6),
    "png": lambda: images.png(8, 6, metadata=True, orientation=3),
    "palette png": lambda: images.palette_png(8, 6),
    "interlaced png": lambda: images.interlaced_png(8, 6),
    "apng": lambda: images.apng(8, 6),
    "gif": lambda: images.gif(8, 6, metadata=True),
    "animated gif": lambda: images.animated_gif(8, 6),
    "webp": lambda: images.webp(8, 6),
    "lossless webp": lambda: images.webp(7, 5, lossless=True),
    "webp with metadata": lambda: images.webp(8, 6, mode="RGBA", metadata=True, orientation=6),
    "animated webp": lambda: images.animated_webp(8, 6),
    "avif": lambda: images.avif(16, 12),
    "avif with metadata": lambda: images.avif(16, 12, mode="RGBA", metadata=True, orientation=7),
    "animated avif": lambda: images.animated_avif(16, 12),
    "grid avif": lambda: images.grid_avif(128, 64),
}
"""Small enough to be cut at every byte."""


def engine_reads(image: bytes) -> pyvips.Image:
    """The header as libvips sees it; an AVIF by its loader's name, since `avis` is not recognised without."""
    if image[4:8] == b"ftyp":
        return pyvips.Image.heifload_buffer(image)
    return pyvips.Image.new_from_buffer(image, "", access="sequential")


def field(image: pyvips.Image, name: str, default: int) -> int:
    """A number of the image's metadata."""
    return cast("int", image.get(name)) if name in image.get_fields() else default


@pytest.mark.parametrize("name", images.IMAGES)
def test_pillow_sees_the_same_image(name: str) -> None:
    info = probe(images.image(name), LIMITS)
    with Image.open(io.BytesIO(images.image(name))) as opened:
        shown = ImageOps.exif_transpose(opened)
        assert (info.width, info.height) == opened.size
        assert info.display_size == shown.size
        assert info.orientation == opened.getexif().get(0x0112, 1)
        if name not in {"apng", "animated avif", "mpo"}:
            assert info.frames == getattr(opened, "n_frames", 1)
        assert info.progressive == bool(opened.info.get("progressive") or opened.info.get("interlace"))


@pytest.mark.parametrize("name", images.IMAGES)
def test_the_engine_sees_the_same_image(name: str) -> None:
    info = probe(images.image(name), LIMITS)
    engine = engine_reads(images.image(name))
    turned = info.format is ImageFormat.AVIF  # libheif applies the orientation before libvips sees the size
    assert (engine.width, engine.height) == (info.display_size if turned else (info.width, info.height))
    assert field(engine, "orientation", 1) == (1 if turned else info.orientation)
    assert field(engine, "n-pages", 1) == info.frames
    assert bool(engine.hasalpha()) == info.has_alpha
    assert engine.format == ("ushort" if info.bits == 16 else "uchar")


@pytest.mark.parametrize("name", images.IMAGES)
def test_a_file_says_what_its_bytes_say(name: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(images.image(name))
    assert probe(path, LIMITS) == probe(images.image(name), LIMITS)


@pytest.mark.parametrize("name", images.IMAGES)
def test_bytes_behind_the_end_change_nothing(name: str) -> None:
    image = images.image(name)
    for behind in (b"\x00", b"\r\n", bytes(100), b"PK\x03\x04" * 9, images.image("jpeg"), images.with_film(b"")):
        assert probe(image + behind, LIMITS) == probe(image, LIMITS)


@pytest.mark.parametrize("name", SMALL)
def test_a_file_cut_anywhere_is_corrupt(name: str) -> None:
    image = SMALL[name]()
    assert isinstance(probe(image, LIMITS), ImageInfo)
    for end in range(1, len(image)):
        # Below, the signature or the brands are cut, and it is no image at all.
        with pytest.raises(CorruptImage if end >= 44 else (CorruptImage, UnsupportedImage)):
            probe(image[:end], LIMITS)


@pytest.mark.parametrize("name", ["jpeg", "progressive jpeg", "png", "animated gif", "animated webp", "rgba avif"])
def test_half_an_image_is_called_truncated(name: str) -> None:
    image = images.image(name)
    with pytest.raises(CorruptImage, match=r"^truncated: "):
        probe(image[: len(image) // 2], LIMITS)


@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from(sorted(SMALL)),
    edits=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 2), st.binary(max_size=8)), min_size=1, max_size=6
    ),
)
def test_damage_gives_an_answer_or_one_of_our_errors(name: str, edits: list[tuple[float, int, bytes]]) -> None:
    damaged = bytearray(SMALL[name]())
    for where, removed, inserted in edits:
        at = int(where * len(damaged))
        damaged[at : at + (len(inserted) if removed == 2 else removed)] = inserted
    answer_or_refusal(bytes(damaged))


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(SMALL)), data=st.data())
def test_lying_numbers_give_an_answer_or_one_of_our_errors(name: str, data: st.DataObject) -> None:
    lie = bytearray(SMALL[name]())
    at = data.draw(st.integers(2, min(len(lie) - 8, 700)))
    width = data.draw(st.sampled_from([1, 2, 4, 8]))
    lie[at : at + width] = data.draw(
        st.sampled_from([bytes(width), b"\xff" * width, b"\x7f" * width, bytes(7) + b"\x01"])
    )
    answer_or_refusal(bytes(lie))


@settings(max_examples=200, deadline=None)
@given(
    signature=st.sampled_from(
        [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\x00\x00\x00WEBPVP8X", b"GIF89a", b"\x00\x00\x00\x10ftypavif"]
    ),
    rest=st.binary(max_size=300),
)
def test_noise_behind_a_signature_gives_one_of_our_errors(signature: bytes, rest: bytes) -> None:
    answer_or_refusal(signature + rest)


def answer_or_refusal(image: bytes) -> None:
    """Probes, and strips what was accepted; any other exception than ours comes out of here."""
    try:
        info = probe(image, LIMITS)
        stripped = strip_metadata(image, info)
    except SmartAssetsError:
        return
    assert info.width >= 1
    assert info.height >= 1
    assert info.width * info.height <= LIMITS.max_pixels
    assert 1 <= info.orientation <= 8
    assert 1 <= info.frames <= LIMITS.max_frames
    assert probe(stripped, LIMITS).display_size == info.display_size


class TestLimits:
    @pytest.mark.parametrize(
        "lie",
        [
            b"\xff\xd8\xff\xc0\x00\x0b\x08\xff\xff\xff\xff\x01\x01\x11\x00",
            b"\x89PNG\r\n\x1a\n" + images.png_chunk(b"IHDR", b"\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x02\x00\x00\x00"),
            b"RIFF\x16\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff",
            b"RIFF\x12\x00\x00\x00WEBPVP8L\x06\x00\x00\x00\x2f\xff\xff\xff\x0f\x00",
            b"GIF89a\x01\x00\x01\x00\x00\x00\x00\x2c\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x00",
            images.avif_of([images.AvifItem(b"av01", b"x", (images.spatial_extents(2**32 - 1, 2**32 - 1),))]),
        ],
        ids=["jpeg", "png", "webp", "lossless webp", "gif", "avif"],
    )
    def test_a_huge_size_is_refused_from_the_header_alone(self, lie: bytes) -> None:
        with pytest.raises(TooManyPixels, match=f"max_pixels {LIMITS.max_pixels}"):
            probe(lie, LIMITS)

    def test_a_small_picture_in_tiles_of_a_huge_one_is_refused(self) -> None:
        item = images.av1_item(images.avif())
        tile = item._replace(properties=(images.spatial_extents(9_000, 9_000), item.properties[1]))
        layout = images.AvifItem(b"grid", b"\x00\x00\x00\x01\x00\xa0\x00\x78", (images.spatial_extents(160, 120),))
        references = [images.box(b"dimg", struct.pack(">HHHH", 1, 2, 2, 3))]
        lie = images.avif_of([layout, tile, tile], references=references)
        with pytest.raises(TooManyPixels, match="18000x9000"):
            probe(lie, LIMITS)

    @pytest.mark.parametrize("name", ["animated gif", "animated webp"])
    def test_too_many_frames_are_refused(self, name: str) -> None:
        with pytest.raises(TooManyPixels, match="max_frames 3"):
            probe(images.image(name), replace(LIMITS, max_frames=3))
        assert probe(images.image(name), replace(LIMITS, max_frames=4)).frames == 4

    @pytest.mark.parametrize("name", ["animated gif", "animated webp"])
    def test_too_many_pixels_of_all_frames_are_refused(self, name: str) -> None:
        pixels = 4 * 80 * 60
        with pytest.raises(TooManyPixels, match=f"{pixels} pixels, above max_animation_pixels {pixels - 1}"):
            probe(images.image(name), replace(LIMITS, max_animation_pixels=pixels - 1))
        assert probe(images.image(name), replace(LIMITS, max_animation_pixels=pixels)).frames == 4

    def test_sides_are_those_a_person_sees(self) -> None:
        upright = images.oriented(6, width=100, height=300)  # stored 300 wide
        exact = replace(LIMITS, max_width=100, max_height=300, min_width=100, min_height=300)
        assert probe(upright, exact).display_size == (100, 300)
        with pytest.raises(TooManyPixels, match="the height is 300 pixels, above max_height 299"):
            probe(upright, replace(LIMITS, max_height=299))
        with pytest.raises(TooManyPixels, match="the width is 100 pixels, above max_width 99"):
            probe(upright, replace(LIMITS, max_width=99))
        with pytest.raises(InvalidParameter, match="the width is 100 pixels, below min_width 101"):
            probe(upright, replace(LIMITS, min_width=101))
        with pytest.raises(InvalidParameter, match="the height is 300 pixels, below min_height 301") as refusal:
            probe(upright, replace(LIMITS, min_height=301))
        assert refusal.value.errors[0].loc == ("body", "file")

    def test_an_empty_file_is_called_empty(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        for source in (b"", tmp_path / "empty"):
            with pytest.raises(InvalidParameter, match="the file is empty") as refusal:
                probe(source, LIMITS)
            assert refusal.value.errors[0].loc == ("body", "file")

    def test_a_file_below_the_least_size_names_both(self) -> None:
        with pytest.raises(InvalidParameter, match="5 bytes are fewer than min_bytes 100"):
            probe(b"12345", replace(LIMITS, min_bytes=100))

    def test_a_format_switched_off_is_refused_by_name(self) -> None:
        limits = replace(LIMITS, formats=frozenset({ImageFormat.PNG, ImageFormat.JPEG}))
        with pytest.raises(UnsupportedImage, match=r"this is GIF, which is switched off here; allowed: JPEG, PNG$"):
            probe(images.image("gif"), limits)

    @pytest.mark.parametrize("word", images.NOT_IMAGES)
    def test_what_is_no_image_is_refused_with_what_was_seen(self, word: str) -> None:
        with pytest.raises(UnsupportedImage, match=f"{word}.*; allowed: JPEG, PNG, WebP, GIF, AVIF$"):
            probe(images.NOT_IMAGES[word], LIMITS)


class TestLargeFiles:
    """Held by windows: memory does not grow with the file."""

    PEAK = 3 * WINDOW

    def peak(self, path: Path) -> int:
        tracemalloc.start()
        try:
            assert probe(path, LIMITS) == ImageInfo(ImageFormat.JPEG, 320, 240)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def test_a_long_scan(self, tmp_path: Path) -> None:
        path = tmp_path / "long.jpg"
        with path.open("wb") as file:
            file.write(images.image("jpeg")[:-2])
            file.seek(50_000_000, os.SEEK_CUR)
            file.write(b"\xff\xd9")
        assert self.peak(path) < self.PEAK

    def test_a_film_behind_the_picture(self, tmp_path: Path) -> None:
        path = tmp_path / "film.jpg"
        path.write_bytes(images.image("jpeg"))
        os.truncate(path, 50_000_000)
        assert self.peak(path) < self.PEAK

    def test_a_marker_across_two_windows_is_found(self, tmp_path: Path) -> None:
        path = tmp_path / "scan.jpg"
        image = images.jpeg(16, 16)[:-2]
        # The first window is a short one, loaded somewhere in the header.
        for length in range(2800, 4100):
            path.write_bytes(image + b"\x11" * length + b"\xff\xd9")
            assert probe(path, LIMITS).width == 16

    @pytest.mark.parametrize(
        "bomb",
        [
            b"\xff\xd8" + b"\xff\xe0\x00\x02" * 1_000_000,
            images.image("png")[:33] + images.png_chunk(b"tEXt", b"") * 500_000,
            b"RIFF" + struct.pack("<I", 8_000_022) + images.image("webp with metadata")[8:30] + bytes(8) * 1_000_000,
            images.image("gif")[:13] + b"\x21\xfe\x00" * 1_000_000,
            images.image("avif")[:32] + images.box(b"free") * 500_000,
            images.avif_of(
                [images.av1_item(images.image("avif"))],
                references=[images.box(b"dimg", struct.pack(">HH", 1, 50_000), bytes(100_000))],
            ),
        ],
        ids=["jpeg", "png", "webp", "gif", "avif", "avif references"],
    )
    def test_a_million_tiny_parts_are_not_counted_to_the_end(self, bomb: bytes) -> None:
        with pytest.raises(CorruptImage, match=r"than an image has|than any decoder takes"):
            probe(bomb, LIMITS)


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_either_byte_order_is_read(self, orientation: int, order: str) -> None:
        tiff = {"<": b"II", ">": b"MM"}[order] + struct.pack(
            order + "HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0
        )
        assert exif.orientation(tiff) == orientation

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_its_own_block_says_the_orientation(self, orientation: int) -> None:
        block = Image.Exif()
        block.load(exif.block(orientation))
        assert dict(block) == {0x0112: orientation}
        assert exif.orientation(exif.block(orientation)) == orientation

    @pytest.mark.parametrize("value", [0, 9, 65535])
    def test_a_number_that_is_none_counts_as_upright(self, value: int) -> None:
        assert exif.orientation(exif.block(value)) == 1

    @settings(max_examples=200)
    @given(st.sampled_from([b"II*\x00", b"MM\x00*", b""]), st.binary(max_size=80))
    def test_garbage_is_upright_or_an_orientation(self, head: bytes, rest: bytes) -> None:
        assert 1 <= exif.orientation(head + rest) <= 8

    @pytest.mark.parametrize("order", ["turned, then mirrored", "mirrored, then turned"])
    @pytest.mark.parametrize("angle", range(4))
    @pytest.mark.parametrize("axis", range(2))
    def test_what_avif_turns_and_mirrors_comes_to_one_orientation(self, order: str, angle: int, axis: int) -> None:
        turn, mirror = images.box(b"irot", bytes([angle])), images.box(b"imir", bytes([axis]))
        properties = (turn, mirror) if order == "turned, then mirrored" else (mirror, turn)
        buffer = io.BytesIO()
        images.quadrants(64, 32).save(buffer, "AVIF", quality=95)
        stored = images.av1_item(buffer.getvalue(), *properties)

        info = probe(images.avif_of([stored]), LIMITS)

        block = Image.Exif()
        block[0x0112] = info.orientation
        upright = images.quadrants(64, 32)
        upright.info["exif"] = block.tobytes()
        expected = ImageOps.exif_transpose(upright)
        shown = engine_reads(images.avif_of([stored]))
        assert (shown.width, shown.height) == expected.size == info.display_size
        for x, y in ((5, 5), (shown.width - 5, 5), (5, shown.height - 5)):
            assert shown(x, y) == pytest.approx(expected.getpixel((x, y)), abs=30)


def exif_segment(orientation: int) -> bytes:
    """An APP1 segment."""
    block = images.exif(orientation=orientation, metadata=False)
    return b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block


class TestJpeg:
    image = images.image("jpeg")
    frame_at = image.index(b"\xff\xc0")
    scan_at = image.index(b"\xff\xda")

    def with_frame_byte(self, offset: int, value: int) -> bytes:
        return self.image[: self.frame_at + offset] + bytes([value]) + self.image[self.frame_at + offset + 1 :]

    @pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
    def test_processes_that_nobody_uses_are_refused_in_words(self, marker: int) -> None:
        with pytest.raises(UnsupportedImage, match="arithmetic-coded, lossless or hierarchical JPEG"):
            probe(self.with_frame_byte(1, marker), LIMITS)

    def test_twelve_bits_are_refused_in_words(self) -> None:
        with pytest.raises(UnsupportedImage, match="JPEG of 12 bits a sample"):
            probe(self.with_frame_byte(4, 12), LIMITS)

    def test_a_height_given_after_the_scan_is_refused(self) -> None:
        no_height = self.image[: self.frame_at + 5] + b"\x00\x00" + self.image[self.frame_at + 7 :]
        with pytest.raises(CorruptImage, match="no height"):
            probe(no_height, LIMITS)

    @pytest.mark.parametrize("between", [b"\xff\xff\xff", b"junk", b"\xff\x00"])
    def test_fill_bytes_and_junk_between_segments_are_passed_over(self, between: bytes) -> None:
        image = self.image[: self.frame_at] + between + self.image[self.frame_at :]
        assert probe(image, LIMITS) == probe(self.image, LIMITS)
        engine_reads(image).avg()

    @pytest.mark.parametrize(("first", "second"), [(6, 3), (3, 6)])
    def test_the_first_exif_counts_as_for_the_engine(self, first: int, second: int) -> None:
        image = self.image[:2] + exif_segment(first) + exif_segment(second) + self.image[2:]
        assert probe(image, LIMITS).orientation == engine_reads(image).get("orientation") == first

    def test_exif_behind_the_scan_does_not_count(self) -> None:
        image = self.image[:-2] + exif_segment(6) + self.image[-2:]
        assert probe(image, LIMITS).orientation == 1
        assert "orientation" not in engine_reads(image).get_fields()

    def test_a_thumbnail_in_the_metadata_does_not_end_the_picture(self) -> None:
        thumbnail = images.jpeg(16, 16)
        segment = b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
        cut = self.image[:2] + segment + self.image[2:-2]
        assert probe(cut + b"\xff\xd9", LIMITS).width == 320
        with pytest.raises(CorruptImage):
            probe(cut, LIMITS)

    def test_several_scans_count_as_progressive(self) -> None:
        again = self.image[:-2] + self.image[self.scan_at :]
        assert probe(again, LIMITS).progressive

    def test_more_than_a_hundred_scans_are_refused(self) -> None:
        image = images.jpeg(16, 16)
        bomb = image[:-2] + image[image.index(b"\xff\xda") : -2] * 100 + image[-2:]
        with pytest.raises(CorruptImage, match="more than 100 scans"):
            probe(bomb, LIMITS)

    @pytest.mark.parametrize(
        "damage",
        [
            image[:scan_at] + image[frame_at:],  # a second frame header
            image[:frame_at] + image[scan_at:],  # none
            image[:scan_at] + b"\xff\xd9",  # no scan
            image[:2] + image,  # a second beginning
            image[:2] + b"\xff\x02" + image[2:],  # a reserved marker
            image[:2] + b"\xff\xe0\x00\x01" + image[2:],  # shorter than its length
        ],
    )
    def test_what_does_not_add_up_is_corrupt(self, damage: bytes) -> None:
        with pytest.raises(CorruptImage):
            probe(damage, LIMITS)


class TestPng:
    image = images.image("png")
    header, pixels, end = image[:33], image[33:-12], image[-12:]

    def test_exif_counts_before_the_pixels_only_as_for_the_engine(self) -> None:
        block = images.png_chunk(b"eXIf", exif.block(6))
        before, behind = self.header + block + self.pixels + self.end, self.image[:-12] + block + self.end
        assert probe(before, LIMITS).orientation == engine_reads(before).get("orientation") == 6
        assert probe(behind, LIMITS).orientation == 1
        assert "orientation" not in engine_reads(behind).get_fields()

    @pytest.mark.parametrize(
        "damage",
        [
            header[:16] + b"\x00\x00\x01\x00" + header[20:] + pixels + end,  # checksum
            header + end,  # no pixels
            image[:8] + pixels + end,  # no header
            header + header[8:] + pixels + end,  # two
            header + images.png_chunk(b"QUIT", b"") + pixels + end,  # unknown and critical
            header + images.png_chunk(b"ab1d", b"") + pixels + end,  # no name
            images.png_from_rows(8, 8, bytes(72), bits=8, colour_type=3, interlaced=False),  # no palette
            images.png_from_rows(8, 8, bytes(72), bits=4, colour_type=2, interlaced=False),  # no such depth
            images.png_from_rows(0, 8, b"", bits=8, colour_type=2, interlaced=False),  # no width
        ],
    )
    def test_what_does_not_add_up_is_corrupt(self, damage: bytes) -> None:
        with pytest.raises(CorruptImage):
            probe(damage, LIMITS)


class TestWebp:
    extended = images.image("webp with metadata")

    def test_exif_without_its_flag_does_not_count_as_for_the_engine(self) -> None:
        unannounced = self.extended[:20] + bytes([self.extended[20] & ~0x08]) + self.extended[21:]
        assert probe(unannounced, LIMITS).orientation == 1
        assert "orientation" not in engine_reads(unannounced).get_fields()

    @pytest.mark.parametrize(
        ("image", "alpha"), [("rgba webp", 0x10), ("lossless rgba webp", 0), ("webp with metadata", 0)]
    )
    def test_alpha_is_what_the_header_says_as_for_the_engine(self, image: str, alpha: int) -> None:
        changed = bytearray(images.image(image))
        changed[20] ^= alpha
        assert probe(bytes(changed), LIMITS).has_alpha == bool(engine_reads(bytes(changed)).hasalpha())

    def test_a_frame_outside_the_canvas_is_corrupt(self) -> None:
        image = images.image("animated webp")
        at = image.index(b"ANMF") + 8
        with pytest.raises(CorruptImage, match="outside the canvas"):
            probe(image[:at] + b"\x40" + image[at + 1 :], LIMITS)

    def test_a_frame_smaller_than_its_picture_is_corrupt(self) -> None:
        image = images.image("animated webp")
        at = image.index(b"ANMF") + 8 + 6
        with pytest.raises(CorruptImage, match="differ in size"):
            probe(image[:at] + b"\x01" + image[at + 1 :], LIMITS)

    def test_a_header_that_lies_about_the_picture_is_corrupt(self) -> None:
        with pytest.raises(CorruptImage, match="differ in size"):
            probe(self.extended[:24] + b"\x01" + self.extended[25:], LIMITS)

    def test_a_header_without_a_picture_is_corrupt(self) -> None:
        with pytest.raises(CorruptImage, match="no picture"):
            probe(b"RIFF\x16\x00\x00\x00" + self.extended[8:30], LIMITS)


def gif_of(screen: tuple[int, int], *frames: tuple[int, int, int, int], between: bytes = b"") -> bytes:
    """A GIF with a logical screen and frames (left, top, width, height) that need not fit it."""
    parts = []
    for left, top, width, height in frames:
        single = images.gif(width, height)
        descriptor = single.index(b"\x2c\x00\x00\x00\x00")
        parts.append(b"\x2c" + struct.pack("<HHHHB", left, top, width, height, 0) + single[descriptor + 10 : -1])
    colours = images.gif(8, 8)
    table = colours[13 : colours.index(b"\x2c\x00\x00\x00\x00")][: 3 * 64]
    return b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80 | 5, 0, 0) + table + between.join(parts) + between + b";"


class TestGif:
    @pytest.mark.parametrize(
        ("screen", "frames"),
        [
            ((100, 90), [(0, 0, 10, 10)]),
            ((640, 480), [(0, 0, 10, 10)]),
            ((640, 480), [(0, 0, 640, 480)]),
            ((800, 600), [(3, 4, 10, 10), (0, 0, 20, 20)]),
            ((3000, 10), [(5, 5, 10, 10)]),
            ((2048, 2048), [(0, 0, 4, 4)]),
            ((0, 0), [(30, 30, 5, 5)]),
            ((5, 5), [(3, 0, 10, 12)]),
            ((5, 5), [(0, 0, 2, 2), (3, 0, 10, 12)]),
        ],
    )
    def test_the_canvas_is_the_one_the_engine_makes(
        self, screen: tuple[int, int], frames: list[tuple[int, int, int, int]]
    ) -> None:
        image = gif_of(screen, *frames)
        info, engine = probe(image, LIMITS), engine_reads(image)
        assert (info.width, info.height, info.frames) == (engine.width, engine.height, engine.get("n-pages"))

    def test_zeros_between_blocks_are_passed_over(self) -> None:
        assert probe(gif_of((9, 9), (0, 0, 9, 9), between=bytes(3)), LIMITS).frames == 1

    def test_a_gif_without_a_picture_is_corrupt(self) -> None:
        with pytest.raises(CorruptImage, match="no picture"):
            probe(gif_of((9, 9)), LIMITS)

    def test_what_is_no_block_is_corrupt(self) -> None:
        with pytest.raises(CorruptImage, match="no GIF block"):
            probe(gif_of((9, 9), (0, 0, 9, 9), between=b"x"), LIMITS)


def clean_aperture(width: int, height: int) -> bytes:
    """AVIF's `clap` property, in the middle."""
    return images.box(b"clap", struct.pack(">IIIIIIII", width, 1, height, 1, 0, 1, 0, 1))


class TestAvif:
    plain = images.image("avif")

    @pytest.mark.parametrize(
        "properties",
        [
            [clean_aperture(100, 50)],
            [clean_aperture(100, 50), images.box(b"irot", b"\x01")],
            [images.box(b"irot", b"\x01"), clean_aperture(100, 50)],
        ],
    )
    def test_a_clean_aperture_is_the_size_the_engine_shows(self, properties: list[bytes]) -> None:
        image = images.avif_of([images.av1_item(self.plain, *properties)])
        engine = engine_reads(image)
        assert probe(image, LIMITS).display_size == (engine.width, engine.height)

    def test_more_shown_than_there_is_is_corrupt(self) -> None:
        with pytest.raises(CorruptImage):
            probe(images.avif_of([images.av1_item(self.plain, clean_aperture(161, 50))]), LIMITS)

    def test_exif_does_not_turn_it_as_for_the_engine(self) -> None:
        image = images.image("avif with metadata")
        said = images.exif(orientation=6, metadata=False)[6:]
        block = struct.pack(">I", 0) + said
        with_exif = images.avif_of([images.av1_item(self.plain), images.AvifItem(b"Exif", block)])
        assert probe(with_exif, LIMITS).orientation == 1
        assert (engine_reads(with_exif).width, probe(image, LIMITS).orientation) == (160, 6)

    def test_a_heif_coded_otherwise_is_refused_by_its_coding(self) -> None:
        item = images.av1_item(self.plain)
        hevc = images.avif_of([images.AvifItem(b"hvc1", item.data, item.properties)])
        with pytest.raises(UnsupportedImage, match="hvc1"):
            probe(hevc, LIMITS)

    def test_a_sequence_without_a_still_picture_is_refused_in_words(self) -> None:
        image = images.image("animated avif")
        film = image.replace(b"meta", b"free", 1)
        with pytest.raises(UnsupportedImage, match="sequence without a still picture"):
            probe(film, LIMITS)

    @pytest.mark.parametrize(
        "layout",
        [
            b"\x00\x00\x00\x01\x00\xa1\x00\x78",  # another width than `ispe`
            b"\x00\x00\x01\x01\x00\xa0\x00\x78",  # four tiles, two there
            b"\x00\x00\x00\x01\x00",  # cut
        ],
    )
    def test_a_grid_that_does_not_add_up_is_corrupt(self, layout: bytes) -> None:
        tiles = [images.av1_item(images.avif(80, 120, seed=seed)) for seed in range(2)]
        grid = images.AvifItem(b"grid", layout, (images.spatial_extents(160, 120),), in_idat=True)
        references = [images.box(b"dimg", struct.pack(">HHHH", 1, 2, 2, 3))]
        with pytest.raises(CorruptImage):
            probe(images.avif_of([grid, *tiles], references=references), LIMITS)
