"""GIF (GIF89a): blocks from the logical screen to the trailer, numbers little-endian."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from smart_assets.errors import CorruptImage
from smart_assets.formats import ImageFormat
from smart_assets.imaging.info import ImageInfo, Limits
from smart_assets.imaging.structure.reader import Piece, Reader

_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_PLAIN_TEXT, _GRAPHIC_CONTROL, _COMMENT, _APPLICATION = 0x01, 0xF9, 0xFE, 0xFF
_KEPT_APPLICATIONS = frozenset({b"NETSCAPE2.0", b"ANIMEXTS1.0", b"ICCRGBG1012"})

# Screens that software used to write whatever the picture's size: libnsgif, the engine's decoder, believes the first
# frame instead of these, and of any screen with a side of 0 or above 2048.
_DISBELIEVED_SCREENS = frozenset({(640, 480), (640, 512), (800, 600), (1024, 768), (1280, 1024), (1600, 1200)})


class Block(NamedTuple):
    """A block from its first byte to behind its terminator; `label` is the extension's, 0 for other blocks."""

    kind: int
    label: int
    start: int
    end: int


def _colour_table_bytes(packed: int) -> int:
    return 3 * 2 ** ((packed & 7) + 1) if packed & 0x80 else 0


def _after_sub_blocks(reader: Reader, at: int) -> int:
    """Where the chain of length-prefixed sub-blocks at `at` has ended."""
    while True:
        window, start = reader.window(at)
        begin, end = at - start, len(window)
        while begin < end:
            length = window[begin]
            begin += length + 1
            if not length:
                return start + begin
        at = start + begin


def _header_end(reader: Reader) -> int:
    end = 13 + _colour_table_bytes(reader.integer(10, 1))
    reader.require(end)
    return end


def blocks(reader: Reader, *, first_descriptor: bool = False) -> Iterator[Block]:
    """The blocks behind the global colour table, the trailer the last. Zeros between blocks are passed over.

    With `first_descriptor` no further than to the first picture, of which only the descriptor is read.
    """
    at = _header_end(reader)
    while True:
        kind = reader.integer(at, 1)
        label = 0
        if kind == _TRAILER:
            yield Block(kind, label, at, at + 1)
            return
        if kind == _IMAGE and first_descriptor:
            yield Block(kind, label, at, at + 10)
            return
        if kind == _EXTENSION:
            label = reader.integer(at + 1, 1)
            end = _after_sub_blocks(reader, at + 2)
        elif kind == _IMAGE:
            # Descriptor, colour table, the code size, then the coded pixels.
            end = _after_sub_blocks(reader, at + 11 + _colour_table_bytes(reader.integer(at + 9, 1)))
        elif kind == 0:
            at += 1
            continue
        else:
            raise CorruptImage(f"damaged: no GIF block begins at byte {at}")
        yield Block(kind, label, at, end)
        at = end


def read_info(reader: Reader, limits: Limits, *, header_only: bool = False) -> ImageInfo:
    """What the blocks say; the canvas is what the engine's decoder makes of screen and first frame.

    With `header_only` no further than to the first frame.
    """
    width, height = struct.unpack("<HH", reader.read(6, 4))
    # Held to the limit even where the engine would not believe it: others who read the file might.
    limits.check_pixels(width, height)
    if (width, height) in _DISBELIEVED_SCREENS or not width or not height or max(width, height) > 2048:
        width = height = 1

    frames = 0
    has_alpha = False
    for block in blocks(reader, first_descriptor=header_only):
        if block.label == _GRAPHIC_CONTROL and block.end - block.start == 8:
            has_alpha |= bool(reader.integer(block.start + 3, 1) & 1)
        elif block.kind == _IMAGE:
            left, top, across, down = struct.unpack("<HHHH", reader.read(block.start + 1, 8))
            if not frames:
                width, height = max(width, left + across), max(height, top + down)
            frames += 1
            limits.check_pixels(max(width, across), max(height, down))
            limits.check_frames(frames, width, height)
    if not frames:
        raise CorruptImage("damaged: the GIF has no picture")
    return ImageInfo(ImageFormat.GIF, width, height, frames=frames, has_alpha=has_alpha)


def without_metadata(reader: Reader, _info: ImageInfo) -> Iterator[Piece]:
    """Header to trailer with the pictures, their timing, the loop count and the profile."""
    yield range(_header_end(reader))
    control: Piece = b""
    for block in blocks(reader):
        if block.label == _GRAPHIC_CONTROL:
            control = range(block.start, block.end)
        elif block.kind == _IMAGE:
            yield control
            yield range(block.start, block.end)
            control = b""
        elif block.label == _PLAIN_TEXT:
            # The control before it is for this text, not for the next picture.
            control = b""
        elif block.kind == _TRAILER or (
            block.label == _APPLICATION and _application(reader, block) in _KEPT_APPLICATIONS
        ):
            yield range(block.start, block.end)


def _application(reader: Reader, block: Block) -> bytes:
    return reader.read(block.start + 3, 11) if block.end - block.start > 14 else b""
