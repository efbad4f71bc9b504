"""Deciding what an upload is by its bytes alone: nothing is decoded."""

from __future__ import annotations

from pathlib import Path

from smart_assets.errors import UnsupportedImage
from smart_assets.formats import SNIFF_BYTES, ImageFormat, describe, sniff
from smart_assets.imaging.info import ImageInfo, Limits
from smart_assets.imaging.structure import avif, gif, jpeg, png, webp
from smart_assets.imaging.structure.reader import open_reader

__all__ = ["ImageInfo", "Limits", "probe"]

_READ_INFO = {
    ImageFormat.JPEG: jpeg.read_info,
    ImageFormat.PNG: png.read_info,
    ImageFormat.WEBP: webp.read_info,
    ImageFormat.GIF: gif.read_info,
    ImageFormat.AVIF: avif.read_info,
}


def probe(source: bytes | Path, limits: Limits) -> ImageInfo:
    """What the image says of itself, once its structure is whole and within the limits.

    Blocking; a file is read by windows. Bytes after the image's end are not looked at. Limits on pixels hold from the
    header on, before the structure is walked. Damage within coded pixels does not show here.

    Raises UnsupportedImage, CorruptImage, TooManyPixels, and InvalidParameter for what is empty or too small.
    """
    with open_reader(source) as reader:
        limits.check_bytes(reader.size)
        head = reader.read(0, min(SNIFF_BYTES, reader.size))
        image_format = sniff(head)
        if image_format is None:
            raise UnsupportedImage(f"this looks like {describe(head)}; {limits.allowed()}")
        limits.check_format(image_format)
        info = _READ_INFO[image_format](reader, limits)
    limits.check_sides(info)
    return info
