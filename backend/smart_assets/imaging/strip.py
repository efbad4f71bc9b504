"""Taking metadata off without touching a pixel.

What goes: EXIF (GPS with it), XMP, IPTC, comments, texts, times, thumbnails, unknown application data, and everything
behind the image's own end. What stays, byte for byte: coded pixels, colour profile and colour description, animation.
The orientation stays as the only tag of a new EXIF block, where that is the format's place for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smart_assets.formats import ImageFormat
from smart_assets.imaging.info import ImageInfo
from smart_assets.imaging.structure import avif, gif, jpeg, png, webp
from smart_assets.imaging.structure.reader import WINDOW, Reader, open_reader

_WITHOUT_METADATA = {
    ImageFormat.JPEG: jpeg.without_metadata,
    ImageFormat.PNG: png.without_metadata,
    ImageFormat.WEBP: webp.without_metadata,
    ImageFormat.GIF: gif.without_metadata,
    ImageFormat.AVIF: avif.without_metadata,
}


def strip_metadata(source: bytes, info: ImageInfo) -> bytes:
    """The image without its metadata; `info` is what `probe` said of the same bytes. Twice is the same as once."""
    with open_reader(source) as reader:
        return b"".join(_chunks(reader, info))


def strip_metadata_file(source: Path, target: Path, info: ImageInfo) -> int:
    """Writes `source` without its metadata to `target`, by windows; the size in bytes of what was written.

    Blocking. `target` is another file; it is created, or overwritten, and not synced.
    """
    with open_reader(source) as reader, target.open("wb") as output:
        return sum(output.write(chunk) for chunk in _chunks(reader, info))


def _chunks(reader: Reader, info: ImageInfo) -> Iterator[bytes]:
    for piece in _WITHOUT_METADATA[info.format](reader, info):
        if isinstance(piece, bytes):
            yield piece
        else:
            for start in range(piece.start, piece.stop, WINDOW):
                yield reader.read(start, min(WINDOW, piece.stop - start))
