"""AVIF (AOM; HEIF, ISO/IEC 23008-12, over ISO/IEC 14496-12): boxes, and items that lie where `iloc` says.

Of a sequence the primary item is what counts: it is what the engine reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from smart_assets.errors import CorruptImage, UnsupportedImage
from smart_assets.formats import ImageFormat
from smart_assets.imaging.info import ImageInfo, Limits
from smart_assets.imaging.structure import exif
from smart_assets.imaging.structure.reader import WINDOW, Piece, Reader

# What the file is made of at its top. The first box of another kind, or a second `ftyp`, is behind the image.
_TOP = frozenset({b"ftyp", b"meta", b"mdat", b"moov", b"idat", b"free", b"skip", b"uuid", b"pdin", b"bloc"})
_META = frozenset({b"hdlr", b"pitm", b"iloc", b"iinf", b"iref", b"iprp", b"idat", b"dinf", b"grpl"})
_TRACK_METADATA = frozenset({b"udta", b"meta", b"uuid"})
_TELLTALE_PROPERTIES = frozenset({b"udes", b"uuid", b"altt", b"crtt", b"mdft"})
_PICTURES = frozenset({b"av01", b"grid", b"iovl", b"iden", b"tmap"})
_FILLED = frozenset({b"idat", b"free", b"skip", b"uuid", b""})
_ALPHA = frozenset({b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1"})

# More than any file has; for items and extents, libheif's own limits.
_MAX_BOXES = 32
_MAX_ITEMS = 1000
_MAX_EXTENTS = 32
_MAX_PROPERTIES = 1000
_MAX_REFERENCES = 4000


class Box(NamedTuple):
    """A box: header from `start` to `data`, content from there to `end`."""

    kind: bytes
    start: int
    data: int
    end: int


def _boxes(reader: Reader, at: int, end: int) -> Iterator[Box]:
    while at < end:
        if end - at < 8:
            raise CorruptImage("damaged: the AVIF has a piece of a box at its end")
        yield (box := _box(reader, at, end))
        at = box.end


def _box(reader: Reader, at: int, end: int) -> Box:
    header = reader.read(at, 8)
    size, kind, data = int.from_bytes(header[:4]), header[4:], at + 8
    if size == 1:
        size, data = reader.integer(at + 8, 8), at + 16
    stop = at + size if size else end
    if stop < data:
        raise CorruptImage(f"damaged: the AVIF box at byte {at} is smaller than its own header")
    if stop > end:
        raise CorruptImage("truncated: an AVIF box goes on past the end")
    return Box(kind, at, data, stop)


class _Numbers:
    """Big-endian numbers out of a box, one after the other; of a full box, `version` and `flags` are taken first."""

    def __init__(self, reader: Reader, box: Box, *, full: bool = True) -> None:
        self._data = reader.read(box.data, box.end - box.data)
        self._at = 0
        self.version = self.take(1) if full else 0
        self.flags = self.take(3) if full else 0

    def take(self, length: int) -> int:
        self._at += length
        if self._at > len(self._data):
            raise CorruptImage("damaged: an AVIF box is shorter than what it lists")
        return int.from_bytes(self._data[self._at - length : self._at])


@dataclass
class _Meta:
    """The tables of the `meta` box; extents are offsets in the file."""

    boxes: list[Box] = field(default_factory=list)
    handler: bytes = b""
    primary: int | None = None
    kinds: dict[int, bytes] = field(default_factory=dict)
    extents: dict[int, list[range]] = field(default_factory=dict)
    references: list[tuple[bytes, int, list[int]]] = field(default_factory=list)
    properties: list[Box] = field(default_factory=list)
    associations: dict[int, list[int]] = field(default_factory=dict)

    def properties_of(self, item: int) -> list[Box]:
        """In the order they apply."""
        return [self.properties[at - 1] for at in self.associations.get(item, []) if 0 < at <= len(self.properties)]


def _read_meta(reader: Reader, meta_box: Box) -> _Meta:
    meta = _Meta()
    for box in _boxes(reader, meta_box.data + 4, meta_box.end):
        if box.kind in _META and any(box.kind == other.kind for other in meta.boxes):
            raise CorruptImage(f"damaged: the AVIF has {box.kind.decode()} twice")
        meta.boxes.append(box)
        _at_most(len(meta.boxes), _MAX_BOXES)
    for box in meta.boxes:
        if box.kind == b"hdlr" and box.end - box.data >= 12:
            meta.handler = reader.read(box.data + 8, 4)
        elif box.kind == b"pitm":
            numbers = _Numbers(reader, box)
            meta.primary = numbers.take(4 if numbers.version else 2)
        elif box.kind == b"iinf":
            meta.kinds |= _read_kinds(reader, box)
        elif box.kind == b"iref":
            meta.references += _read_references(reader, box)
        elif box.kind == b"iprp":
            _read_properties(reader, box, meta)
        elif box.kind == b"iloc":
            idat = next((other for other in meta.boxes if other.kind == b"idat"), None)
            meta.extents |= _read_extents(reader, box, idat)
    return meta


def _at_most(count: int, limit: int) -> int:
    if count > limit:
        raise CorruptImage("damaged: the AVIF lists more items, or pieces of one, than any decoder takes")
    return count


def _read_kinds(reader: Reader, iinf: Box) -> dict[int, bytes]:
    version = reader.integer(iinf.data, 1)
    kinds = {}
    for box in _boxes(reader, iinf.data + (8 if version else 6), iinf.end):
        if box.kind == b"infe":
            infe = _Numbers(reader, box)
            if infe.version >= 2:
                item = infe.take(2 if infe.version == 2 else 4)
                infe.take(2)
                kinds[item] = infe.take(4).to_bytes(4)
                _at_most(len(kinds), _MAX_ITEMS)
    return kinds


def _read_references(reader: Reader, iref: Box) -> Iterator[tuple[bytes, int, list[int]]]:
    width = 4 if reader.integer(iref.data, 1) else 2
    total = 0
    for box in _boxes(reader, iref.data + 4, iref.end):
        numbers = _Numbers(reader, box, full=False)
        source, count = numbers.take(width), numbers.take(2)
        total = _at_most(total + count, _MAX_REFERENCES)
        yield box.kind, source, [numbers.take(width) for _ in range(count)]


def _read_properties(reader: Reader, iprp: Box, meta: _Meta) -> None:
    for count, box in enumerate(_boxes(reader, iprp.data, iprp.end), 1):
        _at_most(count, _MAX_BOXES)
        if box.kind == b"ipco":
            for prop in _boxes(reader, box.data, box.end):
                meta.properties.append(prop)
                _at_most(len(meta.properties), _MAX_PROPERTIES)
        elif box.kind == b"ipma":
            ipma = _Numbers(reader, box)
            for _ in range(_at_most(ipma.take(4), _MAX_ITEMS)):
                item = ipma.take(4 if ipma.version else 2)
                wide = ipma.flags & 1
                indices = [ipma.take(2) & 0x7FFF if wide else ipma.take(1) & 0x7F for _ in range(ipma.take(1))]
                meta.associations.setdefault(item, []).extend(indices)


def _read_extents(reader: Reader, iloc_box: Box, idat: Box | None) -> dict[int, list[range]]:
    """Where each item lies, by item; CorruptImage where that is not within the file."""
    iloc = _Numbers(reader, iloc_box)
    if iloc.version > 2:
        raise CorruptImage("damaged: an AVIF with item locations of an unknown version")
    sizes = iloc.take(2)
    offset_bytes, length_bytes, base_bytes = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_bytes = sizes & 15 if iloc.version else 0
    extents: dict[int, list[range]] = {}
    for _ in range(_at_most(iloc.take(4 if iloc.version == 2 else 2), _MAX_ITEMS)):
        item = iloc.take(4 if iloc.version == 2 else 2)
        method = iloc.take(2) & 15 if iloc.version else 0
        elsewhere = iloc.take(2)
        start, end = {0: (0, reader.size), 1: (idat.data, idat.end) if idat else (0, 0)}.get(method, (0, 0))
        start += iloc.take(base_bytes)
        ranges = []
        for _ in range(_at_most(iloc.take(2), _MAX_EXTENTS)):
            iloc.take(index_bytes)
            offset = start + iloc.take(offset_bytes)
            length = iloc.take(length_bytes)
            if elsewhere or offset + length > end:
                raise CorruptImage("truncated: the AVIF points at bytes that are not there")
            ranges.append(range(offset, offset + length))
        extents[item] = ranges
    return extents


def _top_level(reader: Reader) -> list[Box]:
    """The file's own boxes, `ftyp` the first; whatever follows them is not the image's."""
    boxes: list[Box] = []
    at = 0
    while at + 8 <= reader.size:
        kind = reader.read(at + 4, 4)
        if kind not in _TOP or (kind == b"ftyp") == bool(boxes):
            break
        boxes.append(_box(reader, at, reader.size))
        _at_most(len(boxes), _MAX_BOXES)
        at = boxes[-1].end
    return boxes


def _only_meta(reader: Reader, boxes: list[Box]) -> _Meta:
    found = [box for box in boxes if box.kind == b"meta"]
    if not found and any(box.kind == b"moov" for box in boxes):
        raise UnsupportedImage("this is an AVIF sequence without a still picture")
    if len(found) != 1:
        raise CorruptImage("truncated: the AVIF ends before it describes its picture")
    return _read_meta(reader, found[0])


def read_info(reader: Reader, limits: Limits) -> ImageInfo:
    """What the primary item's properties say; every size the file names is held to the limit on pixels."""
    meta = _only_meta(reader, _top_level(reader))
    primary = meta.primary
    if meta.handler != b"pict" or primary is None or not any(meta.extents.get(primary, [])):
        raise CorruptImage("damaged: the AVIF names no primary picture")
    kind = meta.kinds.get(primary, b"")
    if kind not in {b"av01", b"grid"}:
        raise UnsupportedImage(f"this is a HEIF image coded as {kind.decode('ascii', 'replace')!r}, not as AV1")
    for prop in meta.properties:
        if prop.kind == b"ispe":
            limits.check_pixels(*_size(reader, prop))
    properties = meta.properties_of(primary)
    size = next((_size(reader, prop) for prop in properties if prop.kind == b"ispe"), None)
    if not size or not all(size):
        raise CorruptImage("damaged: the AVIF names no size of its picture")
    if kind == b"grid":
        _check_grid(reader, meta, primary, size, limits)
    width, height, orientation = _transformed(reader, properties, *size)
    return ImageInfo(
        ImageFormat.AVIF,
        width,
        height,
        orientation=orientation,
        has_alpha=_has_alpha(reader, meta, primary),
        bits=_bits(reader, properties),
    )


def _size(reader: Reader, ispe: Box) -> tuple[int, int]:
    numbers = _Numbers(reader, ispe)
    return numbers.take(4), numbers.take(4)


def _check_grid(reader: Reader, meta: _Meta, grid: int, size: tuple[int, int], limits: Limits) -> None:
    """Raises where the grid's own header, its tiles and its `ispe` do not agree."""
    extent = meta.extents[grid][0]
    numbers = _Numbers(reader, Box(b"grid", extent.start, extent.start, extent.stop), full=False)
    numbers.take(1)
    width = 4 if numbers.take(1) & 1 else 2
    rows, columns = numbers.take(1) + 1, numbers.take(1) + 1
    tiles = next((targets for kind, source, targets in meta.references if (kind, source) == (b"dimg", grid)), [])
    if (numbers.take(width), numbers.take(width)) != size or len(tiles) != rows * columns:
        raise CorruptImage("damaged: the AVIF grid differs from what the file says of it")
    for tile in set(tiles):
        tile_size = next((_size(reader, prop) for prop in meta.properties_of(tile) if prop.kind == b"ispe"), None)
        if meta.kinds.get(tile) != b"av01" or not tile_size or not any(meta.extents.get(tile, [])):
            raise CorruptImage("damaged: the AVIF grid has a tile that is no picture")
        limits.check_pixels(columns * tile_size[0], rows * tile_size[1])


# What turning and mirroring come to, as (mirrored left to right first, then quarter turns clockwise): EXIF's number.
_ORIENTATIONS = {
    (False, 0): 1,
    (True, 0): 2,
    (False, 2): 3,
    (True, 2): 4,
    (True, 3): 5,
    (False, 1): 6,
    (True, 1): 7,
    (False, 3): 8,
}


def _transformed(reader: Reader, properties: list[Box], width: int, height: int) -> tuple[int, int, int]:
    """Size before turning, and the orientation, once the clean aperture, turns and mirrors apply in their order."""
    mirrored, turns = False, 0
    for prop in properties:
        if prop.kind == b"irot":
            turns = (turns - reader.integer(prop.data, 1)) % 4
        elif prop.kind == b"imir":
            # Axis 0 exchanges top and bottom: half a turn more than left and right.
            mirrored, turns = not mirrored, ((0 if reader.integer(prop.data, 1) & 1 else 2) - turns) % 4
        elif prop.kind == b"clap":
            across, down = _clean_aperture(reader, prop)
            if turns % 2:
                across, down = down, across
            if not 0 < across <= width or not 0 < down <= height:
                raise CorruptImage("damaged: the AVIF shows more of its picture than there is")
            width, height = across, down
    return width, height, _ORIENTATIONS[mirrored, turns]


def _clean_aperture(reader: Reader, clap: Box) -> tuple[int, int]:
    across, across_by, down, down_by = struct.unpack(">IIII", reader.read(clap.data, 16))
    if not across_by or not down_by:
        raise CorruptImage("damaged: the AVIF divides its size by zero")
    return (across + across_by // 2) // across_by, (down + down_by // 2) // down_by


def _has_alpha(reader: Reader, meta: _Meta, primary: int) -> bool:
    """Whether another item is the primary's alpha channel."""
    sources = {source for kind, source, targets in meta.references if kind == b"auxl" and primary in targets}
    return any(
        prop.kind == b"auxC" and reader.read(prop.data, prop.end - prop.data)[4:].split(b"\x00")[0] in _ALPHA
        for source in sources
        for prop in meta.properties_of(source)
    )


def _bits(reader: Reader, properties: list[Box]) -> int:
    for prop in properties:
        if prop.kind == b"pixi" and prop.end - prop.data >= 6:
            return reader.integer(prop.data + 5, 1)
    for prop in properties:
        if prop.kind == b"av1C" and prop.end - prop.data >= 4:
            coding = reader.integer(prop.data + 2, 1)
            return (12 if coding & 0x20 else 10) if coding & 0x40 else 8
    return 8


class _Edit(NamedTuple):
    """What stands at `start` to `stop` instead: `text`, and `pad` for the rest."""

    start: int
    stop: int
    text: bytes = b""
    pad: bytes = b"\x00"


def without_metadata(reader: Reader, _info: ImageInfo) -> Iterator[Piece]:
    """The file's own boxes, every byte where it was; what is no picture and no part of its description is blank.

    Items that are not pictures keep their place and say nothing: Exif is empty, XMP is white space.
    """
    boxes = _top_level(reader)
    meta = _only_meta(reader, boxes)
    sequence = any(box.kind == b"moov" for box in boxes)
    edits: list[_Edit] = []
    for item, extents in meta.extents.items():
        kind = meta.kinds.get(item, b"")
        if kind not in _PICTURES:
            _check_in_data(extents, (*boxes, *meta.boxes))
            edits += _blank_item(kind, extents)
    for box in meta.boxes:
        if box.kind not in _META:
            edits += _blank_box(box)
    for prop in meta.properties:
        if prop.kind in _TELLTALE_PROPERTIES:
            edits += _blank_box(prop)
    for box in boxes:
        if box.kind == b"moov":
            edits += _blank_track_metadata(reader, box)

    end = boxes[-1].end
    occupied = sorted(
        (extent for extents in meta.extents.values() for extent in extents), key=lambda extent: extent.start
    )
    behind = max([end, *(extent.stop for extent in occupied)])
    for box in (*boxes, *meta.boxes, Box(b"", end, end, behind)):
        if box.kind in _FILLED or (box.kind == b"mdat" and not sequence):
            edits += _gaps(box, occupied)
    yield from _edited(edits, behind)


def _check_in_data(extents: list[range], boxes: tuple[Box, ...]) -> None:
    """Raises where an item lies on the file's own structure: to blank it would break the picture."""
    for extent in extents:
        if any(
            box.kind not in {b"mdat", b"idat", b"meta"} and extent.start < box.end and box.start < extent.stop
            for box in boxes
        ) or any(box.kind == b"meta" and extent.start < box.data + 4 and box.start < extent.stop for box in boxes):
            raise CorruptImage("damaged: the AVIF keeps metadata where it describes its picture")


def _blank_item(kind: bytes, extents: list[range]) -> Iterator[_Edit]:
    text = bytes(4) + exif.EMPTY if kind == b"Exif" else b""
    if sum(map(len, extents)) < len(text):
        text = b""
    for extent in extents:
        part, text = text[: len(extent)], text[len(extent) :]
        yield _Edit(extent.start, extent.stop, part, b" " if kind == b"mime" else b"\x00")


def _blank_box(box: Box) -> Iterator[_Edit]:
    yield _Edit(box.start + 4, box.start + 8, b"free")
    yield _Edit(box.data, box.end)


def _blank_track_metadata(reader: Reader, moov: Box) -> Iterator[_Edit]:
    for box in _boxes(reader, moov.data, moov.end):
        if box.kind in _TRACK_METADATA:
            yield from _blank_box(box)
        elif box.kind == b"trak":
            for part in _boxes(reader, box.data, box.end):
                if part.kind in _TRACK_METADATA:
                    yield from _blank_box(part)


def _gaps(box: Box, occupied: list[range]) -> Iterator[_Edit]:
    """The parts of the box's content that no extent, in order of their starts, lies on."""
    at = box.data
    for extent in occupied:
        if extent.start >= box.end:
            break
        if extent.start > at:
            yield _Edit(at, extent.start)
        at = max(at, extent.stop)
    if at < box.end:
        yield _Edit(at, box.end)


def _edited(edits: list[_Edit], end: int) -> Iterator[Piece]:
    at = 0
    for edit in sorted(edits):
        # Only a hostile file has edits that overlap: the first one stays.
        if edit.start >= at:
            yield range(at, edit.start)
            yield edit.text
            blank = edit.stop - edit.start - len(edit.text)
            while blank:
                length = min(blank, WINDOW)
                yield edit.pad * length
                blank -= length
            at = edit.stop
    yield range(at, end)
