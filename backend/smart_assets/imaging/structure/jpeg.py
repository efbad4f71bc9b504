"""JPEG (ITU-T T.81): marker segments from SOI to EOI. MPO is one JPEG and more behind its end."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from smart_assets.errors import CorruptImage, UnsupportedImage
from smart_assets.formats import ImageFormat
from smart_assets.imaging.info import ImageInfo, Limits
from smart_assets.imaging.structure import exif
from smart_assets.imaging.structure.reader import Piece, Reader

_SOI, _EOI, _SOS, _DNL, _DHP, _EXP = 0xD8, 0xD9, 0xDA, 0xDC, 0xDE, 0xDF
_DHT, _JPG, _DAC, _DQT, _DRI = 0xC4, 0xC8, 0xCC, 0xDB, 0xDD
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_STARTS_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {_DHT, _JPG, _DAC}
_HUFFMAN = {0xC0, 0xC1, 0xC2}
_CODING = _STARTS_OF_FRAME | {_DHT, _DAC, _DQT, _DRI, _SOS, _DNL, _EOI}

# Not stuffing (FF00), not TEM, not a restart, not a fill byte: where coded data ends and a segment begins.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")

_MAX_SCANS = 100
"""libvips' own limit: each scan of a progressive JPEG is a pass over all of its coefficients."""


class Segment(NamedTuple):
    """A marker segment, from its FF to where the next begins; of a scan, the coded data too."""

    marker: int
    start: int
    end: int


def segments(reader: Reader, *, before_scans: bool = False) -> Iterator[Segment]:
    """The segments behind SOI, EOI the last; or (`before_scans`) those before the first scan.

    Bytes between them that belong to none are passed over, as by libjpeg.
    """
    at = 2
    while True:
        at = reader.find(_MARKER, at)
        head = reader.read_some(at, 4)
        marker = head[1]
        if marker == _EOI:
            yield Segment(marker, at, at + 2)
            return
        if marker == _SOS and before_scans:
            return
        if marker < 0xC0 or marker in {_SOI, _DHP, _EXP}:
            raise CorruptImage(f"damaged: a JPEG cannot have the marker FF{marker:02X} at byte {at}")
        reader.require(at + 4)
        length = int.from_bytes(head[2:])
        if length < 2:
            raise CorruptImage(f"damaged: the JPEG segment at byte {at} is shorter than its own length")
        end = at + 2 + length
        reader.require(end)
        if marker == _SOS:
            end = reader.find(_MARKER, end)
        yield Segment(marker, at, end)
        at = end


def _payload(reader: Reader, segment: Segment) -> bytes:
    return reader.read(segment.start + 4, segment.end - segment.start - 4)


class _Frame(NamedTuple):
    width: int
    height: int
    progressive: bool


def _read_frame(reader: Reader, segment: Segment, limits: Limits) -> _Frame:
    if segment.marker not in _HUFFMAN:
        raise UnsupportedImage(f"this is an arithmetic-coded, lossless or hierarchical JPEG (FF{segment.marker:02X})")
    payload = _payload(reader, segment)
    if len(payload) < 6 or len(payload) != 6 + 3 * payload[5]:
        raise CorruptImage("damaged: the JPEG frame header has a wrong length")
    bits, height, width, components = struct.unpack_from(">BHHB", payload)
    if bits != 8:
        raise UnsupportedImage(f"this is a JPEG of {bits} bits a sample; 8 are read")
    if not width or not height:
        raise CorruptImage("damaged: the JPEG frame header names no width or no height")
    if components not in {1, 3, 4}:
        raise CorruptImage(f"damaged: a JPEG of {components} components")
    limits.check_pixels(width, height)
    return _Frame(width, height, segment.marker == 0xC2)


def read_info(reader: Reader, limits: Limits, *, header_only: bool = False) -> ImageInfo:
    """What the segments say; orientation from the first EXIF segment before the first scan.

    With `header_only` the scans are not looked at: whether there are any, and how many.
    """
    frame: _Frame | None = None
    orientation: int | None = None
    scans = 0
    for segment in segments(reader, before_scans=header_only):
        if segment.marker in _STARTS_OF_FRAME:
            if frame:
                raise CorruptImage("damaged: a second JPEG frame within the first")
            frame = _read_frame(reader, segment, limits)
        elif segment.marker == _APP1 and orientation is None and not scans:
            payload = _payload(reader, segment)
            if payload.startswith(exif.JPEG_PREFIX):
                orientation = exif.orientation(payload[len(exif.JPEG_PREFIX) :])
        elif segment.marker == _SOS:
            scans += 1
            if not frame or scans > _MAX_SCANS:
                raise CorruptImage(f"damaged: a JPEG scan before the frame, or more than {_MAX_SCANS} scans")
    if not frame or not (scans or header_only):
        raise CorruptImage("truncated: the JPEG ends before its first scan")
    return ImageInfo(
        ImageFormat.JPEG,
        frame.width,
        frame.height,
        orientation=orientation or 1,
        progressive=frame.progressive or scans > 1,
    )


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def without_metadata(reader: Reader, info: ImageInfo) -> Iterator[Piece]:
    """SOI to EOI with what codes the pixels, JFIF (without its thumbnail), Adobe's APP14, profile and orientation."""
    yield range(2)
    orientation = _segment(_APP1, exif.JPEG_PREFIX + exif.block(info.orientation)) if info.orientation != 1 else b""
    for segment in segments(reader):
        # JFIF wants to be first, so the orientation comes behind it.
        if segment.marker != _APP0 and orientation:
            yield orientation
            orientation = b""
        if segment.marker in _CODING:
            yield range(segment.start, segment.end)
        elif segment.marker in {_APP0, _APP2, _APP14}:
            yield _kept_application_data(segment, _payload(reader, segment))


def _kept_application_data(segment: Segment, payload: bytes) -> Piece:
    if segment.marker == _APP0 and payload.startswith(b"JFIF\x00") and len(payload) >= 14:
        return _segment(_APP0, payload[:12] + b"\x00\x00")
    if segment.marker == _APP2 and payload.startswith(b"ICC_PROFILE\x00"):
        return range(segment.start, segment.end)
    if segment.marker == _APP14 and payload.startswith(b"Adobe") and len(payload) >= 12:
        return _segment(_APP14, payload[:12])
    return b""
