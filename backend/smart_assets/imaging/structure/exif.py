"""The one thing of EXIF that pixels depend on: the orientation (CIPA DC-008, tag 0x0112 of the first IFD)."""

from __future__ import annotations

import struct

_ORIENTATION = 0x0112
_SHORT, _LONG = 3, 4

JPEG_PREFIX = b"Exif\x00\x00"
"""What stands before the TIFF structure in JPEG, and in the WebP files of some writers."""

MAX_BYTES = 64 * 1024
"""How much of an EXIF block `orientation` wants to see."""

EMPTY = b"MM\x00\x2a\x00\x00\x00\x08" + bytes(6)
"""A TIFF structure with no tag in it."""


def orientation(tiff: bytes) -> int:
    """1 to 8; 1 for whatever makes no sense. Never raises."""
    order: str | None = {b"II*\x00": "<", b"MM\x00*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    (ifd,) = struct.unpack_from(order + "I", tiff, 4)
    if ifd + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(order + "H", tiff, ifd)
    for entry in range(ifd + 2, min(ifd + 2 + count * 12, len(tiff) - 11), 12):
        tag, kind, values = struct.unpack_from(order + "HHI", tiff, entry)
        if tag == _ORIENTATION:
            (value,) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), tiff, entry + 8)
            return value if kind in {_SHORT, _LONG} and values == 1 and 1 <= value <= 8 else 1
    return 1


def block(orientation: int) -> bytes:
    """A TIFF structure that says the orientation and nothing else."""
    return b"MM\x00\x2a\x00\x00\x00\x08" + struct.pack(">HHHIHHI", 1, _ORIENTATION, _SHORT, 1, orientation, 0, 0)
