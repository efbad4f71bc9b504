"""How large an image is that lies elsewhere: by its header alone, fetched by ranges."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from smart_assets.errors import CorruptImage, UnsupportedImage
from smart_assets.formats import SNIFF_BYTES, ImageFormat, describe, sniff
from smart_assets.imaging.info import ImageInfo, Limits
from smart_assets.imaging.structure import avif, gif, jpeg, png, webp
from smart_assets.imaging.structure.reader import Reader

Fetch = Callable[[int, int], Awaitable[bytes]]
"""The bytes from a first offset up to but not including a second one."""

STEP_BYTES = 64 * 1024
_MAX_FETCHES = 200

_READ_HEADER: dict[ImageFormat, Callable[[Reader, Limits], ImageInfo]] = {
    ImageFormat.JPEG: partial(jpeg.read_info, header_only=True),
    ImageFormat.PNG: partial(png.read_info, header_only=True),
    ImageFormat.WEBP: partial(webp.read_info, header_only=True),
    ImageFormat.GIF: partial(gif.read_info, header_only=True),
    ImageFormat.AVIF: avif.read_info,
}


_UNLIMITED = 2**63
_NO_LIMITS = Limits(
    formats=frozenset(ImageFormat),
    max_pixels=_UNLIMITED,
    max_frames=_UNLIMITED,
    max_animation_pixels=_UNLIMITED,
    min_bytes=0,
    min_width=0,
    min_height=0,
    max_width=_UNLIMITED,
    max_height=_UNLIMITED,
)


async def read_dimensions(fetch: Fetch, size: int) -> tuple[int, int]:
    """Width and height in pixels as a person sees the image of `size` bytes: orientation applied.

    Only what the header takes is fetched, in steps of 64 KiB: one or two of them for nearly every file, more where
    large metadata comes first. The pixels are not looked at.
    Raises UnsupportedImage for what is no image of a known format, CorruptImage for a header that does not add up.
    """
    pieces: dict[int, bytes] = {}
    for _ in range(_MAX_FETCHES):
        try:
            return _read_header(_SparseReader(size, pieces)).display_size
        except _NotFetched as missing:
            at, end = missing.at, min(size, missing.at + max(missing.length, STEP_BYTES))
            pieces[at] = await fetch(at, end)
            if len(pieces[at]) < end - at:
                raise CorruptImage("truncated: the image is shorter than its size says") from None
    raise CorruptImage("damaged: more parts, or larger ones, than an image has")


def _read_header(reader: Reader) -> ImageInfo:
    head = reader.read(0, min(SNIFF_BYTES, reader.size))
    image_format = sniff(head)
    if image_format is None:
        raise UnsupportedImage(f"this looks like {describe(head)}")
    return _READ_HEADER[image_format](reader, _NO_LIMITS)


class _NotFetched(Exception):
    """The walk has come to bytes that are not here yet."""

    def __init__(self, at: int, length: int) -> None:
        self.at = at
        self.length = length


class _SparseReader(Reader):
    """Over the pieces fetched so far, by the offset each begins at."""

    window_bytes = STEP_BYTES

    def __init__(self, size: int, pieces: dict[int, bytes]) -> None:
        super().__init__(b"", size)
        self._pieces = pieces

    def _load(self, at: int, length: int) -> None:
        wanted = min(length, self.size - at)
        for start, piece in self._pieces.items():
            if start <= at and at + wanted <= start + len(piece):
                self._start, self._window = start, piece
                return
        raise _NotFetched(at, wanted)
