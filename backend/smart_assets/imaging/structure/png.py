"""PNG (W3C, third edition): chunks from IHDR to IEND. Of an animated PNG, the still image is what counts."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from smart_assets.errors import CorruptImage
from smart_assets.formats import ImageFormat
from smart_assets.imaging.info import ImageInfo, Limits
from smart_assets.imaging.structure import exif
from smart_assets.imaging.structure.reader import Piece, Reader

_MAX = 2**31 - 1
_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_KEPT = _CRITICAL | {
    *(b"cHRM", b"gAMA", b"iCCP", b"sBIT", b"sRGB", b"cICP", b"mDCV", b"cLLI"),
    *(b"tRNS", b"bKGD", b"hIST", b"pHYs", b"sPLT"),
    *(b"acTL", b"fcTL", b"fdAT"),
}
_DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
"""Bit depths by colour type: grey, RGB, palette, grey with alpha, RGB with alpha."""
_PALETTE = 3


class Chunk(NamedTuple):
    """A chunk, from its length to behind its CRC; the data begins at `start + 8`."""

    name: bytes
    start: int
    end: int

    @property
    def length(self) -> int:
        """Bytes of data."""
        return self.end - self.start - 12


def chunks(reader: Reader) -> Iterator[Chunk]:
    """The chunks behind the signature, IHDR the first and IEND the last."""
    at = 8
    while True:
        header = reader.read(at, 8)
        length, name = int.from_bytes(header[:4]), header[4:]
        if length > _MAX or not name.isalpha():
            raise CorruptImage(f"damaged: no PNG chunk begins at byte {at}")
        if (at == 8) != (name == b"IHDR"):
            raise CorruptImage("damaged: a PNG has one IHDR, and it comes first")
        if name[0] < 0x60 and name not in _CRITICAL:
            raise CorruptImage(f"damaged: the PNG has the unknown critical chunk {name.decode()}")
        end = at + 12 + length
        reader.require(end)
        yield Chunk(name, at, end)
        if name == b"IEND":
            return
        at = end


def read_info(reader: Reader, limits: Limits, *, header_only: bool = False) -> ImageInfo:
    """What the chunks say; orientation from an eXIf before the first IDAT, where `header_only` stops looking."""
    walk = chunks(reader)
    ihdr = next(walk)
    if ihdr.length != 13:
        raise CorruptImage("damaged: the PNG header has a wrong length")
    data = reader.read(ihdr.start + 4, 21)
    width, height, bits, colour, compression, filtering, interlace, crc = struct.unpack_from(">IIBBBBBI", data, 4)
    if zlib.crc32(data[:17]) != crc:
        raise CorruptImage("damaged: the PNG header does not match its checksum")
    if not 0 < width <= _MAX or not 0 < height <= _MAX or bits not in _DEPTHS.get(colour, ()):
        raise CorruptImage("damaged: the PNG header names a size or colour type there is not")
    if compression or filtering or interlace > 1:
        raise CorruptImage("damaged: the PNG header names a method there is not")
    limits.check_pixels(width, height)

    orientation = 1
    seen: set[bytes] = set()
    for chunk in walk:
        if chunk.name == b"IDAT" and colour == _PALETTE and b"PLTE" not in seen:
            raise CorruptImage("damaged: the PNG has no palette before its pixels")
        if chunk.name == b"eXIf" and not seen & {b"eXIf", b"IDAT"}:
            orientation = exif.orientation(reader.read(chunk.start + 8, min(chunk.length, exif.MAX_BYTES)))
        seen.add(chunk.name)
        if header_only and chunk.name == b"IDAT":
            break
    if b"IDAT" not in seen:
        raise CorruptImage("damaged: the PNG has no pixels")
    return ImageInfo(
        ImageFormat.PNG,
        width,
        height,
        orientation=orientation,
        progressive=interlace == 1,
        has_alpha=colour in {4, 6} or b"tRNS" in seen,
        bits=bits,
    )


def without_metadata(reader: Reader, info: ImageInfo) -> Iterator[Piece]:
    """Signature to IEND with the chunks that pixels and their colours need, animation's too, and the orientation."""
    yield range(8)
    for chunk in chunks(reader):
        if chunk.name in _KEPT:
            yield range(chunk.start, chunk.end)
        if chunk.name == b"IHDR" and info.orientation != 1:
            named = b"eXIf" + exif.block(info.orientation)
            yield struct.pack(">I", len(named) - 4) + named + struct.pack(">I", zlib.crc32(named))
