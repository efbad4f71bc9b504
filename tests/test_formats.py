"""The bytes decide: what is taken, and what a refusal calls the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smart_assets.formats import SNIFF_BYTES, ImageFormat, describe, sniff
from tests import images


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    """The beginning of an ISO media file."""
    brands = major + bytes(4) + b"".join(compatible)
    return (8 + len(brands)).to_bytes(4) + b"ftyp" + brands + bytes(64)


@pytest.mark.parametrize("name", images.IMAGES)
def test_every_image_is_told_by_its_first_bytes(name: str) -> None:
    spoken = name.replace("mpo", "jpeg").replace("apng", "png")
    assert sniff(images.image(name)[:SNIFF_BYTES]) in {known for known in ImageFormat if known.value in spoken}


@pytest.mark.parametrize("word", images.NOT_IMAGES)
def test_what_is_no_image_is_refused_and_named(word: str) -> None:
    assert sniff(images.NOT_IMAGES[word]) is None
    assert word in describe(images.NOT_IMAGES[word])


@pytest.mark.parametrize(
    "head",
    [
        b"<svg/>",
        b"  \r\n<svg width='1'>",
        b"\xef\xbb\xbf<svg/>",
        b"\xef\xbb\xbf<?xml version='1.0'?><!-- one --><!-- two -->\n<svg/>",
        b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "svg11.dtd"><svg/>',
        b'<?xml version="1.0"?><!DOCTYPE svg [ <!ENTITY a "<b>"> ]><svg/>',
        b"<s:svg xmlns:s='http://www.w3.org/2000/svg'/>",
        "\ufeff<?xml version='1.0' encoding='UTF-16'?><svg/>".encode("utf-16-le"),
        "\ufeff<svg/>".encode("utf-16-be"),
    ],
)
def test_svg_is_seen_in_any_dress(head: bytes) -> None:
    assert sniff(head) is None
    assert describe(head) == "SVG"


@pytest.mark.parametrize(
    "head",
    [
        b"<html>",
        b"\n<!-- x --><HTML lang=en>",
        b"<!doctype html><svg/>",
        b"<?xml version='1.0'?><!DOCTYPE html PUBLIC '-//W3C'>",
        b"<script>alert(1)</script>",
    ],
)
def test_html_is_called_html(head: bytes) -> None:
    assert describe(head) == "HTML"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (ftyp(b"avif", b"mif1", b"miaf"), ImageFormat.AVIF),
        (ftyp(b"mif1", b"mif1", b"avif"), ImageFormat.AVIF),
        (ftyp(b"avis", b"msf1"), ImageFormat.AVIF),
        (ftyp(b"heic", b"mif1", b"heic", b"avif"), None),
        (ftyp(b"mif1", b"heic"), None),
        (ftyp(b"isom", b"mp42"), None),
        (b"\x00\x00\x00\x10ftypmif1\x00\x00\x00\x00avif", None),
    ],
)
def test_the_brands_of_an_iso_media_file_decide(head: bytes, expected: ImageFormat | None) -> None:
    assert sniff(head) is expected


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (ftyp(b"mif1", b"heic"), "HEIC (what phones save; export it as JPEG)"),
        (ftyp(b"isom", b"mp42"), "an ISO media file such as MP4 or HEIF"),
        (b"II*\x00" + bytes(20), "TIFF"),
        (b"BM\x36\x00\x00\x00\x00\x00\x00\x00", "BMP"),
        (b"BMW builds cars.", "text"),
        (b"\xff\x0a" + bytes(10), "JPEG XL"),
        (b"RIFF\x10\x00\x00\x00AVI LIST", "AVI video"),
        (b"<?xml version='1.0'?><note/>", "XML"),
        (b"", "an unknown format"),
        (bytes(100), "an unknown format"),
    ],
)
def test_other_files_are_called_by_their_names(head: bytes, name: str) -> None:
    assert sniff(head) is None
    assert describe(head) == name


@pytest.mark.parametrize("disguise", [b"GIF8", b"\x89PNG\r\n", b"RIFF\x00\x00\x00\x00WEB", b"\xff\xd8"])
def test_half_a_signature_is_none(disguise: bytes) -> None:
    assert sniff(disguise + b"<script>alert(1)</script>") is None


@pytest.mark.parametrize("part", [b"<??>", b"<!---->", b" <!---->", b"<!doctype a>", b"<!doctype [<!--]>"])
def test_markup_made_to_confuse_is_described_in_linear_time(part: bytes) -> None:
    # Backtracking over these took time exponential in their length: without an end, not slowly.
    assert describe(part * (SNIFF_BYTES // len(part))) in {"text", "XML"}


@given(st.binary(max_size=SNIFF_BYTES))
def test_any_bytes_have_a_description(head: bytes) -> None:
    sniff(head)
    assert describe(head)


def test_a_format_knows_its_names() -> None:
    assert [known.label for known in ImageFormat] == ["JPEG", "PNG", "WebP", "GIF", "AVIF"]
    assert [known.extension for known in ImageFormat] == ["jpg", "png", "webp", "gif", "avif"]
    assert all(ImageFormat.from_extension(known.extension) is known for known in ImageFormat)
