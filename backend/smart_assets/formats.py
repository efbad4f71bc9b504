"""The image formats the service takes, and names for what it does not take.

Bytes decide; a filename or a declared content type never does.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from enum import StrEnum

SNIFF_BYTES = 512
"""How much of a file's beginning `sniff` and `describe` look at."""


class ImageFormat(StrEnum):
    """The allow-list."""

    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"
    GIF = "gif"
    AVIF = "avif"

    @property
    def label(self) -> str:
        """The format's name as people write it."""
        return "WebP" if self is ImageFormat.WEBP else self.value.upper()

    @property
    def media_type(self) -> str:
        """The IANA media type, `image/…`."""
        return f"image/{self.value}"

    @property
    def extension(self) -> str:
        """The file name extension, without a dot."""
        return "jpg" if self is ImageFormat.JPEG else self.value

    @property
    def has_alpha(self) -> bool:
        """Whether the format can be transparent."""
        return self is not ImageFormat.JPEG

    @property
    def animates(self) -> bool:
        """Whether the engine writes animations of it."""
        return self in {ImageFormat.GIF, ImageFormat.WEBP}

    @classmethod
    def from_extension(cls, extension: str) -> ImageFormat:
        """The format of an extension that `extension` gave; KeyError for any other."""
        return _BY_EXTENSION[extension]


PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
"""A PNG of one pixel: what is written where something has to be, and some storages take nothing but images."""

_BY_EXTENSION = {image_format.extension: image_format for image_format in ImageFormat}

# ISO base media file format brands (ISO/IEC 14496-12), as registered at mp4ra.org.
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"})


def _brands(head: bytes) -> list[bytes]:
    """Major and compatible brands of an ISO base media file; empty where it is none."""
    if head[4:8] != b"ftyp":
        return []
    size = min(int.from_bytes(head[:4], "big"), len(head))
    return [head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))]


def sniff(head: bytes) -> ImageFormat | None:
    """The format a file beginning with `head` claims by its signature; None where it is not one we take."""
    if head.startswith(b"\xff\xd8\xff"):
        return ImageFormat.JPEG
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return ImageFormat.PNG
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return ImageFormat.WEBP
    if head.startswith((b"GIF87a", b"GIF89a")):
        return ImageFormat.GIF
    brands = _brands(head)
    if _AVIF_BRANDS.intersection(brands) and not _HEIC_BRANDS.intersection(brands[:1]):
        return ImageFormat.AVIF
    return None


@dataclass(frozen=True)
class _Signature:
    name: str
    pattern: re.Pattern[bytes]


def _starts(name: str, *prefixes: bytes) -> _Signature:
    return _Signature(name, re.compile(b"|".join(re.escape(prefix) for prefix in prefixes)))


_KNOWN = (
    _starts("TIFF", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),
    _Signature("BMP", re.compile(rb"BM.{4}\x00{4}", re.DOTALL)),
    _starts("PDF", b"%PDF"),
    _starts("Photoshop", b"8BPS"),
    _starts("Windows icon", b"\x00\x00\x01\x00", b"\x00\x00\x02\x00"),
    _starts("JPEG XL", b"\xff\x0a", b"\x00\x00\x00\x0cJXL "),
    _starts("JPEG 2000", b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51"),
    _starts("ZIP archive", b"PK\x03\x04", b"PK\x05\x06"),
    _starts("gzip", b"\x1f\x8b"),
    _starts("Matroska or WebM video", b"\x1a\x45\xdf\xa3"),
    _starts("ELF program", b"\x7fELF"),
    _starts("Windows program", b"MZ"),
    _starts("EPS or PostScript", b"%!PS"),
)

# Markup may begin with a byte order mark, white space, declarations, comments or a doctype. Nothing of it is given back
# once matched (possessive): a hostile head would cost exponential time.
_LEAD = rb"(?:\xef\xbb\xbf)?(?>\s+|<\?.*?\?>|<!--.*?-->|<!doctype(?!\s+html)[^>\[]*+(?:\[.*?\]\s*)?>)*+"
_SVG = re.compile(_LEAD + rb"<(?:[\w.-]++:)?svg\b", re.IGNORECASE | re.DOTALL)
_HTML = re.compile(
    _LEAD + rb"<(?:!doctype\s+html|html|head|body|script|style|title|iframe|meta|img|div)\b", re.IGNORECASE | re.DOTALL
)
_XML = re.compile(rb"(?:\xef\xbb\xbf)?\s*+<\?xml\b", re.IGNORECASE)


def describe(head: bytes) -> str:
    """What a file beginning with `head` looks like, in words for an error message."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        head = head.decode("utf-16", "ignore").encode()
    brands = _brands(head)
    if _HEIC_BRANDS.intersection(brands):
        return "HEIC (what phones save; export it as JPEG)"
    if brands:
        return "an ISO media file such as MP4 or HEIF"
    if head.startswith(b"RIFF"):
        return {b"WAVE": "WAV audio", b"AVI ": "AVI video"}.get(head[8:12], "a RIFF file")
    for pattern, name in ((_SVG, "SVG"), (_HTML, "HTML"), (_XML, "XML")):
        if pattern.match(head):
            return name
    for known in _KNOWN:
        if known.pattern.match(head):
            return known.name
    if head and all(byte >= 0x20 or byte in b"\t\r\n\f" for byte in head):
        return "text"
    return "an unknown format"
