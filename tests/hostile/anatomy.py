"""Where the parts of an image's file begin and end, and where it says so: read by no code of the service.

For whoever cuts a file at its seams, or has it lie about them. Files are taken to be right: this is for those the tests
make.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

Order = Literal["big", "little"]

_CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"iref": 4, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0}
_NO_LENGTH = {0xD8, 0xD9, *range(0xD0, 0xD8)}


class Part(NamedTuple):
    """From `start` to `end`; what it says of its own length stands at `length_at`, in so many bytes (none: 0)."""

    start: int
    end: int
    length_at: int = 0
    length_bytes: int = 0
    order: Order = "big"


def parts(image: bytes) -> list[Part]:
    """The parts, and those within them."""
    readers = {b"\xff\xd8": _jpeg, b"\x89P": _png, b"RI": _webp, b"GI": _gif}
    return list(readers.get(image[:2], _avif)(image))


def _jpeg(image: bytes) -> Iterator[Part]:
    at = 0
    while at < len(image):
        assert image[at] == 0xFF
        marker = image[at + 1]
        if marker in _NO_LENGTH:
            yield Part(at, at + 2)
            at += 2
            if marker == 0xD9:
                return
            continue
        length = int.from_bytes(image[at + 2 : at + 4])
        yield Part(at, at + 2 + length, at + 2, 2)
        at += 2 + length
        if marker == 0xDA:
            begin = at
            while image[at] != 0xFF or image[at + 1] in {0, *range(0xD0, 0xD8)}:
                at += 1
            yield Part(begin, at)


def _png(image: bytes) -> Iterator[Part]:
    yield Part(0, 8)
    at = 8
    while at < len(image):
        length = int.from_bytes(image[at : at + 4])
        yield Part(at, at + 12 + length, at, 4)
        yield Part(at + 8, at + 8 + length)
        at += 12 + length


def _webp(image: bytes) -> Iterator[Part]:
    yield Part(0, len(image), 4, 4, "little")
    yield Part(0, 12)
    yield from _riff(image, 12, len(image))


def _riff(image: bytes, at: int, end: int) -> Iterator[Part]:
    while at < end:
        length = int.from_bytes(image[at + 4 : at + 8], "little")
        yield Part(at, at + 8 + length, at + 4, 4, "little")
        yield Part(at, at + 8)
        if image[at : at + 4] == b"ANMF":
            yield from _riff(image, at + 8 + 16, at + 8 + length)
        at += 8 + length + length % 2


def _gif(image: bytes) -> Iterator[Part]:
    at = 13 + (3 * 2 ** ((image[10] & 7) + 1) if image[10] & 0x80 else 0)
    yield Part(0, 6)
    yield Part(6, 13)
    yield Part(13, at)
    while image[at] != 0x3B:
        begin = at
        if image[at] == 0x21:
            at += 2
        else:
            at += 10 + (3 * 2 ** ((image[at + 9] & 7) + 1) if image[at + 9] & 0x80 else 0)
            yield Part(begin, at)
            at += 1
        while length := image[at]:
            yield Part(at, at + 1 + length, at, 1)
            at += 1 + length
        at += 1
        yield Part(begin, at)
    yield Part(at, at + 1)


def _avif(image: bytes) -> Iterator[Part]:
    yield from _boxes(image, 0, len(image))


def _boxes(image: bytes, at: int, end: int) -> Iterator[Part]:
    while at + 8 <= end:
        length = int.from_bytes(image[at : at + 4])
        yield Part(at, at + length, at, 4)
        yield Part(at, at + 8)
        kind = image[at + 4 : at + 8]
        if kind in _CONTAINERS:
            yield from _boxes(image, at + 8 + _CONTAINERS[kind], at + length)
        at += length


def seams(image: bytes) -> list[int]:
    """Every offset at which a part begins or ends."""
    return sorted({edge for part in parts(image) for edge in part[:2]})
