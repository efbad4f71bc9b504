"""WebP (RFC 9649): a RIFF file of chunks, numbers little-endian."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from smart_assets.errors import CorruptImage
from smart_assets.formats import ImageFormat
from smart_assets.imaging.info import ImageInfo, Limits
from smart_assets.imaging.structure import exif
from smart_assets.imaging.structure.reader import Piece, Reader

_ICC, _ALPHA, _EXIF, _XMP, _ANIMATION = 0x20, 0x10, 0x08, 0x04, 0x02
_CODED = frozenset({b"VP8 ", b"VP8L"})
_FRAME_HEADER = 16


class Chunk(NamedTuple):
    """A chunk: data from `start` to `end`, its header of 8 bytes before it."""

    name: bytes
    start: int
    end: int


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _chunks(reader: Reader, at: int, end: int) -> Iterator[Chunk]:
    while at < end:
        if end - at < 8:
            raise CorruptImage("damaged: the WebP has a piece of a chunk at its end")
        header = reader.read(at, 8)
        start = at + 8
        stop = start + _number(header[4:])
        if stop > end:
            raise CorruptImage("truncated: a WebP chunk goes on past the end")
        yield Chunk(header[:4], start, stop)
        at = stop + (stop - start) % 2


def _end(reader: Reader) -> int:
    end = 8 + _number(reader.read(4, 4))
    reader.require(end)
    return end


class _Coded(NamedTuple):
    width: int
    height: int
    has_alpha: bool


def _read_coded(reader: Reader, chunk: Chunk) -> _Coded:
    """The header of a VP8 key frame (RFC 6386, 9.1) or of a VP8L stream."""
    size = chunk.end - chunk.start
    if chunk.name == b"VP8 " and size > 10:
        data = reader.read(chunk.start, 10)
        tag = _number(data[:3])
        width, height = _number(data[6:8]) & 0x3FFF, _number(data[8:10]) & 0x3FFF
        key_frame, profile, shown, partition = not tag & 1, tag >> 1 & 7, tag >> 4 & 1, tag >> 5
        if (
            key_frame
            and profile <= 3
            and shown
            and partition < size
            and data[3:6] == b"\x9d\x01\x2a"
            and width
            and height
        ):
            return _Coded(width, height, has_alpha=False)
    elif chunk.name == b"VP8L" and size > 5:
        data = reader.read(chunk.start, 5)
        fields = _number(data[1:])
        if data[0] == 0x2F and fields >> 29 == 0:
            return _Coded((fields & 0x3FFF) + 1, (fields >> 14 & 0x3FFF) + 1, has_alpha=bool(fields >> 28 & 1))
    raise CorruptImage("damaged: the WebP has no picture where one should begin")


def read_info(reader: Reader, limits: Limits, *, header_only: bool = False) -> ImageInfo:
    """What the chunks say; orientation from the first EXIF chunk, where the header's flags announce one.

    With `header_only` no further than to that chunk: pictures are neither counted nor looked at.
    """
    end = _end(reader)
    walk = _chunks(reader, 12, end)
    first = next(walk, None)
    if first and first.name in _CODED:
        coded = _read_coded(reader, first)
        limits.check_pixels(coded.width, coded.height)
        return ImageInfo(ImageFormat.WEBP, coded.width, coded.height, has_alpha=coded.has_alpha)
    if not first or first.name != b"VP8X" or first.end - first.start < 10:
        raise CorruptImage("damaged: the WebP begins with neither a picture nor a header")
    header = reader.read(first.start, 10)
    flags, width, height = header[0], _number(header[4:7]) + 1, _number(header[7:10]) + 1
    limits.check_pixels(width, height)

    orientation: int | None = None
    pictures = 0
    for chunk in () if header_only and not flags & _EXIF else walk:
        if chunk.name == b"EXIF" and flags & _EXIF and orientation is None:
            data = reader.read(chunk.start, min(chunk.end - chunk.start, exif.MAX_BYTES))
            orientation = exif.orientation(data.removeprefix(exif.JPEG_PREFIX))
            if header_only:
                break
        elif header_only:
            continue
        elif flags & _ANIMATION and chunk.name == b"ANMF":
            pictures += 1
            limits.check_frames(pictures, width, height)
            _check_frame(reader, chunk, width, height)
        elif not flags & _ANIMATION and chunk.name in _CODED and not pictures:
            pictures = 1
            if _read_coded(reader, chunk)[:2] != (width, height):
                raise CorruptImage("damaged: the WebP picture and its header differ in size")
    if not pictures and not header_only:
        raise CorruptImage("damaged: the WebP has no picture")
    return ImageInfo(
        ImageFormat.WEBP,
        width,
        height,
        orientation=orientation or 1,
        frames=pictures or 1,
        has_alpha=bool(flags & _ALPHA),
    )


def _check_frame(reader: Reader, chunk: Chunk, canvas_width: int, canvas_height: int) -> None:
    if chunk.end - chunk.start < _FRAME_HEADER:
        raise CorruptImage("damaged: a WebP frame without a header")
    header = reader.read(chunk.start, _FRAME_HEADER)
    left, top = 2 * _number(header[:3]), 2 * _number(header[3:6])
    width, height = _number(header[6:9]) + 1, _number(header[9:12]) + 1
    if left + width > canvas_width or top + height > canvas_height:
        raise CorruptImage("damaged: a WebP frame lies outside the canvas")
    for part in _chunks(reader, chunk.start + _FRAME_HEADER, chunk.end):
        if part.name in _CODED:
            if _read_coded(reader, part)[:2] != (width, height):
                raise CorruptImage("damaged: a WebP frame and its picture differ in size")
            return
    raise CorruptImage("damaged: a WebP frame without a picture")


def _kept(chunk: Chunk) -> Iterator[Piece]:
    yield range(chunk.start - 8, chunk.end)
    if (chunk.end - chunk.start) % 2:
        yield b"\x00"


def _size(pieces: list[Piece]) -> int:
    return sum(map(len, pieces))


def without_metadata(reader: Reader, info: ImageInfo) -> Iterator[Piece]:
    """RIFF header, the pictures with their alpha, animation and profile, and the orientation."""
    body: list[Piece] = [b"WEBP"]
    for chunk in _chunks(reader, 12, _end(reader)):
        if chunk.name == b"VP8X":
            flags = reader.integer(chunk.start, 1) & (_ICC | _ALPHA | _ANIMATION)
            flags |= _EXIF if info.orientation != 1 else 0
            body += [range(chunk.start - 8, chunk.start), bytes([flags, 0, 0, 0]), range(chunk.start + 4, chunk.end)]
        elif chunk.name == b"ANMF":
            body += _frame_without_metadata(reader, chunk)
        elif chunk.name in _CODED | {b"ICCP", b"ANIM", b"ALPH"}:
            body += _kept(chunk)
    if info.orientation != 1:
        block = exif.block(info.orientation)
        body.append(b"EXIF" + struct.pack("<I", len(block)) + block)
    yield b"RIFF" + struct.pack("<I", _size(body))
    yield from body


def _frame_without_metadata(reader: Reader, frame: Chunk) -> list[Piece]:
    parts: list[Piece] = [range(frame.start, frame.start + _FRAME_HEADER)]
    for part in _chunks(reader, frame.start + _FRAME_HEADER, frame.end):
        if part.name in _CODED | {b"ALPH"}:
            parts += _kept(part)
    return [b"ANMF" + struct.pack("<I", _size(parts)), *parts]
