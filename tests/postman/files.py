"""The files the collection uploads, beside it in `files/`: small, and none of them anybody's photograph.

They are made where they are missing, and else left: encoders differ from one machine to the next, and the collection
holds a hash.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image, ImageDraw

from tests import images


def _holiday() -> bytes:
    return images.jpeg(1200, 800, seed=18, quality=60)


def _logo() -> bytes:
    logo = Image.new("RGBA", (320, 320))
    draw = ImageDraw.Draw(logo)
    draw.rounded_rectangle((0, 0, 319, 319), 64, fill="#4f5dff")
    draw.ellipse((60, 60, 120, 120), fill="#ffd75e")
    draw.polygon([(40, 260), (130, 130), (190, 215), (230, 165), (285, 260)], fill="#ffffff")
    buffer = io.BytesIO()
    logo.save(buffer, "PNG")
    return buffer.getvalue()


def _damaged() -> bytes:
    whole = _holiday()
    return whole[: len(whole) // 2]


FILES: Mapping[str, Callable[[], bytes]] = {
    "holiday.jpg": _holiday,
    "logo.png": _logo,
    "damaged.jpg": _damaged,
    "notes.txt": lambda: b"Sun, mostly.\n",
}


def make(directory: Path) -> None:
    """Those that are not there."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        if not (directory / name).exists():
            (directory / name).write_bytes(content())
