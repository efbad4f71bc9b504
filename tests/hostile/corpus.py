"""Files made to do harm: each is built when it is asked for, and none is kept.

`REFUSED` are told no, with the code they are refused by; `TAKEN` are images all the same, whatever else they are.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, Final

from PIL import Image

from tests import images

SCRIPT: Final = b"<html><script>alert(document.domain)</script></html>"
JAVASCRIPT: Final = b"alert(document.domain)"
PHP: Final = b"<?php system($_GET['c']); ?>"

Make = Callable[[], bytes]

_JPEG, _PNG, _GIF = (images.image(name) for name in ("jpeg", "png", "gif"))
_FRAME_AT = _JPEG.index(b"\xff\xc0")


def _saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def segment(marker: int, payload: bytes) -> bytes:
    """A JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def in_jpeg(*segments: bytes) -> bytes:
    """A photograph with these segments first."""
    return _JPEG[:2] + b"".join(segments) + _JPEG[2:]


def in_png(*chunks: bytes) -> bytes:
    """A picture with these chunks behind its header."""
    return _PNG[:33] + b"".join(chunks) + _PNG[33:]


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP of these chunks."""
    body = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def webp_canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    """The header of an extended WebP."""
    sides = (side.to_bytes(3, "little") for side in (width - 1, height - 1))
    return b"VP8X", bytes([flags, 0, 0, 0]) + b"".join(sides)


def webp_animation(width: int, height: int, frames: int) -> bytes:
    """Frames of 16x16 on a canvas: small, however many."""
    still = images.webp(16, 16)
    frame = bytes(6) + b"\x0f\0\0" * 2 + b"\x50\0\0\0" + still[12:]
    return riff(webp_canvas(width, height, 2), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * frames)


def gif_of(
    *frames: bytes, width: int = 16, height: int = 16, loop: int | None = 0, trailer: bool = True, packed: int = 0x80
) -> bytes:
    """A GIF of two colours."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, packed, 0, 0)
    head += b"\0\0\0\xff\xff\xff" if packed & 0x80 else b""
    repeat = b"" if loop is None else b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", loop) + b"\0"
    return head + repeat + b"".join(frames) + (b"\x3b" if trailer else b"")


def gif_frame(
    *,
    delay: int = 10,
    disposal: int = 1,
    place: tuple[int, int, int, int] = (0, 0, 1, 1),
    pixels: bytes = b"\x02\x02\x44\x01\0",
) -> bytes:
    """One frame."""
    control = b"\x21\xf9\x04" + struct.pack("<BHBB", disposal << 2, delay, 0, 0)
    return control + b"\x2c" + struct.pack("<HHHHB", *place, 0) + pixels


def jpeg_sized(width: int, height: int) -> bytes:
    """A JPEG that says it is of another size."""
    return _JPEG[: _FRAME_AT + 5] + struct.pack(">HH", height, width) + _JPEG[_FRAME_AT + 9 :]


def png_sized(width: int, height: int) -> bytes:
    """A PNG that says it is of another size, with the right checksum."""
    return _PNG[:8] + images.png_chunk(b"IHDR", struct.pack(">II", width, height) + _PNG[24:29]) + _PNG[33:]


def webp_sized(width: int, height: int) -> bytes:
    """A WebP that says it is of another size."""
    image = images.image("webp")
    at = image.index(b"\x9d\x01\x2a") + 3
    return image[:at] + struct.pack("<HH", width, height) + image[at + 4 :]


def avif_sized(width: int, height: int) -> bytes:
    """An AVIF that says it is of another size."""
    image = images.image("avif")
    at = image.index(b"ispe") + 8
    return image[:at] + struct.pack(">II", width, height) + image[at + 8 :]


def tiff(*entries: tuple[int, int, int, int], following: int = 0, more: bytes = b"", count: int | None = None) -> bytes:
    """An EXIF block of these entries: tag, type, count, value; then the next directory's offset."""
    body = b"".join(struct.pack(">HHII", *entry) for entry in entries)
    number = len(entries) if count is None else count
    return b"MM\0*" + struct.pack(">IH", 8, number) + body + struct.pack(">I", following) + more


def with_exif(block: bytes) -> bytes:
    """A photograph that brings it."""
    return in_jpeg(segment(0xE1, b"Exif\0\0" + block))


def thumbnail_bomb() -> bytes:
    """EXIF whose thumbnail says it is of four gigapixels."""
    bomb = jpeg_sized(65_500, 65_500)[:60_000]
    begin = 8 + 2 + 4 + 2 + 2 * 12 + 4
    second = struct.pack(">HHHIIHHIII", 2, 0x0201, 4, 1, begin, 0x0202, 4, 1, len(bomb), 0)
    return with_exif(tiff(following=14, more=second + bomb))


def icc_in_jpeg(profile: bytes, *, numbers: Callable[[int, int], tuple[int, int]] = lambda at, of: (at, of)) -> bytes:
    """A profile in as many segments as it takes."""
    pieces = [profile[at : at + 65_000] for at in range(0, len(profile), 65_000)]
    return in_jpeg(
        *(
            segment(0xE2, b"ICC_PROFILE\0" + bytes(number & 255 for number in numbers(at, len(pieces))) + piece)
            for at, piece in enumerate(pieces, 1)
        )
    )


def zip_of() -> bytes:
    """A program, as browsers and Java once took them out of pictures."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("index.html", SCRIPT)
    return buffer.getvalue()


def gif_that_is_javascript() -> bytes:
    """`GIF89a/*…*/=1;alert(…)`: the width's bytes open the comment."""
    (width,) = struct.unpack("<H", b"/*")
    frame = gif_frame(place=(0, 0, width, 1), pixels=b"\x02\x02\x44\x01\0")
    return gif_of(frame, width=width, height=1) + b"*/=1;" + JAVASCRIPT + b"//"


def progressive(scans: int) -> bytes:
    """A progressive JPEG that tells its last scan again and again."""
    image = images.jpeg(16, 16, progressive=True)
    last = image.rindex(b"\xff\xda")
    return image[:-2] + image[last:-2] * (scans - image.count(b"\xff\xda")) + image[-2:]


# ── Refused ─────────────────────────────────────────────────────────────────────────────────────────────────────────

BOMBS: dict[str, Make] = {
    "a PNG of 3.6 gigapixels": lambda: images.png_from_rows(
        60_000, 60_000, bytes(100), bits=1, colour_type=0, interlaced=False
    ),
    "the same, interlaced": lambda: images.png_from_rows(
        60_000, 60_000, bytes(100), bits=16, colour_type=6, interlaced=True
    ),
    "a PNG of the greatest sides": lambda: png_sized(2**31 - 1, 2**31 - 1),
    "a JPEG of 4 gigapixels": lambda: jpeg_sized(65_500, 65_500),
    "a lossy WebP of 268 megapixels": lambda: webp_sized(16_383, 16_383),
    "a lossless WebP of 268 megapixels": lambda: riff((b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(20))),
    "a WebP canvas of 281 terapixels": lambda: riff(webp_canvas(2**24, 2**24)),
    "a WebP of 1001 frames": lambda: webp_animation(16, 16, 1001),
    "a WebP of 63 frames of 4 megapixels": lambda: webp_animation(2000, 2000, 63),
    "a GIF of 1001 frames": lambda: gif_of(*[gif_frame()] * 1001),
    "a GIF of 63 frames of 4 megapixels": lambda: gif_of(*[gif_frame()] * 63, width=2000, height=2000),
    "a GIF frame of 4 gigapixels": lambda: gif_of(gif_frame(place=(0, 0, 65_535, 65_535))),
    "a GIF whose last frame is of 4 gigapixels": lambda: gif_of(gif_frame(), gif_frame(place=(0, 0, 65_535, 65_535))),
    "an AVIF of 18 exapixels": lambda: avif_sized(2**32 - 1, 2**32 - 1),
    "an AVIF of 101 megapixels": lambda: avif_sized(10_100, 10_000),
    "a PNG wider than any side may be": lambda: images.png_from_rows(
        65_536, 1, bytes(8193), bits=1, colour_type=0, interlaced=False
    ),
}
"""Refused as `too_many_pixels`, before anything is decoded."""

NOT_TAKEN: dict[str, tuple[str, Make]] = {
    "TIFF": ("TIFF", lambda: _saved(images.picture(8, 8), "TIFF")),
    "BMP": ("BMP", lambda: _saved(images.picture(8, 8), "BMP")),
    "ICO": ("Windows icon", lambda: _saved(images.picture(16, 16), "ICO", bitmap_format="bmp")),
    "PDF": ("PDF", lambda: _saved(images.picture(8, 8), "PDF")),
    "JPEG 2000": ("JPEG 2000", lambda: _saved(images.picture(8, 8), "JPEG2000")),
    "PPM": ("text", lambda: b"P3\n1 1\n255\n1 2 3\n"),
    "EPS": ("EPS or PostScript", lambda: _saved(images.picture(8, 8), "EPS")),
    "ZIP": ("ZIP archive", zip_of),
    "SVG": ("SVG", lambda: images.NOT_IMAGES["SVG"]),
    "SVG behind a long comment": ("SVG", lambda: b"<!--" + b"x" * 300 + b"--><svg onload='alert(1)'/>"),
    "HEIC": ("HEIC", lambda: images.NOT_IMAGES["HEIC"]),
    "HTML": ("HTML", lambda: SCRIPT),
    "JavaScript": ("text", lambda: JAVASCRIPT),
    "an MP4": ("ISO media", lambda: images.with_film(b"")),
    "a program": ("ELF program", lambda: b"\x7fELF" + bytes(100)),
}
"""Refused as `unsupported_image`; the first word is what the refusal calls it."""

CORRUPT: dict[str, Make] = {
    "a JPEG without height": lambda: jpeg_sized(16, 0),
    "a JPEG without width": lambda: jpeg_sized(0, 16),
    "a PNG without height": lambda: png_sized(16, 0),
    "a PNG without width": lambda: png_sized(0, 16),
    "a WebP without height": lambda: webp_sized(16, 0),
    "a WebP without width": lambda: webp_sized(0, 16),
    "an AVIF without height": lambda: avif_sized(16, 0),
    "an AVIF without width": lambda: avif_sized(0, 16),
    "a GIF of no frames": gif_of,
    "a GIF without its trailer": lambda: gif_of(gif_frame(), trailer=False),
    "a JPEG of 101 scans": lambda: progressive(101),
    "a JPEG of 5000 scans": lambda: progressive(5000),
    "a JPEG of components without end": lambda: _JPEG[: _FRAME_AT + 9] + b"\xff" + _JPEG[_FRAME_AT + 10 :],
    "a PNG of a million empty chunks": lambda: in_png(images.png_chunk(b"tEXt", b"") * 500_000),
    "a GIF of a million comments": lambda: gif_of(b"\x21\xfe\0" * 1_000_000, gif_frame()),
    "a WebP frame outside its canvas": lambda: riff(
        webp_canvas(8, 8, 2),
        (b"ANIM", bytes(6)),
        (b"ANMF", bytes(6) + b"\x0f\0\0" * 2 + bytes(4) + images.webp(16, 16)[12:]),
    ),
    "a WebP frame within a frame": lambda: riff(
        webp_canvas(16, 16, 2),
        (b"ANIM", bytes(6)),
        (b"ANMF", bytes(6) + b"\x0f\0\0" * 2 + bytes(4) + webp_animation(16, 16, 1)[30:]),
    ),
    "an AVIF that points behind its end": lambda: _shifted_avif(2**31),
    "an AVIF of boxes without end": lambda: images.image("avif")[:32] + images.box(b"free") * 500_000,
}
"""Refused as `corrupt_image`, with sizes and without."""


def _shifted_avif(by: int) -> bytes:
    image = images.image("avif")
    extent = struct.pack(">I", image.index(b"mdat") + 4)
    assert image.count(extent) == 1
    return image.replace(extent, struct.pack(">I", by))


# ── Taken ───────────────────────────────────────────────────────────────────────────────────────────────────────────

POLYGLOTS: dict[str, tuple[Make, bytes]] = {
    "a JPEG with a page behind it": (lambda: _JPEG + SCRIPT, SCRIPT),
    "a JPEG with a page in a comment": (lambda: in_jpeg(segment(0xFE, SCRIPT)), SCRIPT),
    "a JPEG with PHP in a comment": (lambda: in_jpeg(segment(0xFE, PHP)), PHP),
    "a JPEG with a PDF in front": (lambda: in_jpeg(segment(0xFE, b"%PDF-1.7\n" + SCRIPT)), b"%PDF"),
    "a JPEG with PHP in its EXIF": (
        lambda: with_exif(tiff((0x010E, 2, len(PHP), 26), more=PHP)),
        PHP,
    ),
    "a PNG with a zip behind it": (lambda: _PNG + zip_of(), b"PK\x03\x04"),
    "a PNG with a page in a text": (lambda: in_png(images.png_chunk(b"tEXt", b"Title\0" + SCRIPT)), SCRIPT),
    "a PNG with a page in a chunk of its own": (lambda: in_png(images.png_chunk(b"juNk", SCRIPT)), SCRIPT),
    "a GIF that is JavaScript": (gif_that_is_javascript, JAVASCRIPT),
    "a GIF with a page in a comment": (
        lambda: gif_of(b"\x21\xfe" + bytes([len(SCRIPT)]) + SCRIPT + b"\0", gif_frame()),
        SCRIPT,
    ),
    "a WebP with a zip in a chunk": (
        lambda: riff(webp_canvas(16, 16), (b"VP8 ", images.webp(16, 16)[20:]), (b"junk", zip_of())),
        b"PK\x03\x04",
    ),
    "a WebP with JavaScript behind it": (lambda: images.image("webp") + JAVASCRIPT, JAVASCRIPT),
    "an AVIF with a page in a free box": (
        lambda: images.avif_of([images.av1_item(images.image("avif"))], in_front=images.box(b"free", SCRIPT)),
        SCRIPT,
    ),
    "an AVIF with a page behind it": (lambda: images.image("avif") + SCRIPT, SCRIPT),
}
"""Images, and something else by what is hidden in them."""

ODD: dict[str, Make] = {
    "a profile of 16 MB in 255 segments": lambda: icc_in_jpeg(images.icc_profile().ljust(255 * 65_000, b"\0")),
    "a profile whose pieces are all the first": lambda: icc_in_jpeg(bytes(200_000), numbers=lambda _, of: (1, of)),
    "a profile of which pieces are missing": lambda: icc_in_jpeg(bytes(200_000), numbers=lambda at, _: (at * 2, 255)),
    "a profile with piece 0 of 0": lambda: icc_in_jpeg(bytes(1000), numbers=lambda _at, _of: (0, 0)),
    "a PNG profile of 50 MB": lambda: in_png(images.png_chunk(b"iCCP", b"b\0\0" + zlib.compress(bytes(50_000_000)))),
    "a PNG profile that is no zlib stream": lambda: in_png(images.png_chunk(b"iCCP", b"b\0\0" + b"\xff" * 100)),
    "a text of 100 MB, compressed": lambda: in_png(
        images.png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))
    ),
    "EXIF in 100 segments": lambda: in_jpeg(*[segment(0xE1, b"Exif\0\0" + tiff().ljust(60_000, b"\0"))] * 100),
    "XMP of 6 MB in extended segments": lambda: in_jpeg(
        *(
            segment(
                0xE1,
                b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + struct.pack(">II", 2**32 - 1, at) + b"<" * 60_000,
            )
            for at in range(0, 6_000_000, 60_000)
        )
    ),
    "XMP of a billion laughs": lambda: in_jpeg(
        segment(
            0xE1,
            b'http://ns.adobe.com/xap/1.0/\0<!DOCTYPE x [<!ENTITY a "ha">'
            + b"".join(b'<!ENTITY %c "%s">' % (98 + at, b"&%c;" % (97 + at) * 10) for at in range(9))
            + b"]><x>&j;</x>",
        )
    ),
    "a PNG's EXIF of 2 MB": lambda: in_png(images.png_chunk(b"eXIf", tiff().ljust(2_000_000, b"\0"))),
    "a thumbnail of 4 gigapixels": thumbnail_bomb,
    "EXIF whose directory follows itself": lambda: with_exif(tiff((0x0112, 3, 1, 6 << 16), following=8)),
    "EXIF whose directories follow one another": lambda: with_exif(
        tiff(following=14, more=b"\0\0" + struct.pack(">I", 8))
    ),
    "EXIF whose directory is its own child": lambda: with_exif(tiff((0x8769, 4, 1, 8), (0x8825, 4, 1, 8))),
    "EXIF of 65535 entries that are not there": lambda: with_exif(tiff((0x0100, 3, 1, 0), count=65_535)),
    "EXIF that points behind its end": lambda: with_exif(b"MM\0*\xff\xff\xff\xff"),
    "EXIF of values without end": lambda: with_exif(tiff((0x010E, 2, 2**32 - 1, 8), (0x0112, 3, 2**32 - 1, 8))),
    "orientation 0": lambda: with_exif(tiff((0x0112, 3, 1, 0))),
    "orientation 9": lambda: with_exif(tiff((0x0112, 3, 1, 9 << 16))),
    "orientation 65535": lambda: with_exif(tiff((0x0112, 3, 1, 0xFFFF << 16))),
    "orientation as text": lambda: with_exif(tiff((0x0112, 2, 4, 0x36363636))),
    "a GIF that never waits": lambda: gif_of(*[gif_frame(delay=0)] * 200),
    "a GIF that waits for eleven minutes": lambda: gif_of(*[gif_frame(delay=65_535)] * 3),
    "a GIF that loops 65535 times": lambda: gif_of(*[gif_frame()] * 3, loop=65_535),
    "a GIF that says nothing of loops": lambda: gif_of(*[gif_frame()] * 3, loop=None),
    "a GIF of unknown disposals": lambda: gif_of(*(gif_frame(disposal=kind) for kind in range(8))),
    "a GIF whose frame reaches beyond its screen": lambda: gif_of(gif_frame(place=(14, 14, 16, 16))),
    "a GIF of 1000 frames": lambda: gif_of(*[gif_frame()] * 1000),
    "a WebP of 500 frames": lambda: webp_animation(16, 16, 500),
    "a JPEG of 100 scans": lambda: progressive(100),
    "a PNG 65535 wide": lambda: images.png_from_rows(65_535, 1, bytes(8193), bits=1, colour_type=0, interlaced=False),
    "a PNG 65535 high": lambda: images.png_from_rows(
        1, 65_535, bytes(2 * 65_535), bits=1, colour_type=0, interlaced=True
    ),
    "a JPEG 65500 wide": lambda: _saved(Image.new("L", (65_500, 1)), "JPEG"),
    "a WebP 16383 high": lambda: _saved(Image.new("RGB", (1, 16_383)), "WEBP", method=0),
    "a GIF without a colour table": lambda: gif_of(gif_frame(), packed=0),
    "a PNG with more pixels than it says": lambda: images.png_from_rows(
        8, 8, bytes(50_000_000), bits=8, colour_type=0, interlaced=False
    ),
    "a WebP whose tail says nothing": lambda: images.image("webp") + bytes(1_000_000),
    "an AVIF of 4 megapixels in a kilobyte": lambda: _saved(Image.new("RGB", (2000, 2000)), "AVIF", speed=10),
}
"""Strange, and images: taken, or refused for what they are, but never by an accident."""
