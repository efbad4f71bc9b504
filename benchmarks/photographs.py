"""Images to measure with, drawn from fixed seeds.

Drawn like a photograph is made up: gradients, things with edges, texture at every scale, grain. So they are as hard to
code as one, and have as many bytes for their pixels as a camera's files have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

# Pixels to a cell of noise, from the light of the scene to the grain of the film, and how much each layer shows.
_SCENE = ((512, 1.0), (128, 0.45))
_TEXTURE = ((32, 0.22), (8, 0.12), (3, 0.06))
_THINGS = 60


@dataclass(frozen=True)
class Photograph:
    """An image file still to be made: `content` is the same bytes wherever the same Pillow makes it."""

    name: str
    extension: str
    make: Callable[[], bytes]

    @property
    def content_type(self) -> str:
        """As a header says it."""
        return {"jpg": "image/jpeg", "png": "image/png"}[self.extension]

    @cached_property
    def content(self) -> bytes:
        """The file's bytes; made once."""
        return self.make()

    def write(self, folder: Path) -> Path:
        """The file, in `folder`; its name says how many bytes it has."""
        path = folder / f"{len(self.content)}.{self.extension}"
        if not path.exists():
            path.write_bytes(self.content)
        return path


def draw(width: int, height: int, *, seed: int = 1, grain: float = 0.05) -> Image.Image:
    """A scene of so many pixels. `grain` is how much of it is noise from one pixel to the next, from 0 to 1."""
    random = Random(seed)
    picture = Image.new("RGB", (width, height), (128, 128, 128))
    for cell, share in _SCENE:
        picture = Image.blend(picture, _noise(random, "RGB", width, height, cell), share)
    pen = ImageDraw.Draw(picture)
    for _ in range(_THINGS):
        x, y, side = random.randrange(width), random.randrange(height), random.randrange(4, max(width // 6, 8))
        box = (x, y, x + side, y + side * random.uniform(0.4, 1.6))
        colour = (random.randrange(30, 226), random.randrange(30, 226), random.randrange(30, 226))
        random.choice((pen.ellipse, pen.rectangle))(box, fill=colour)
    for cell, share in (*_TEXTURE, (1, grain)):
        light = _noise(random, "L", width, height, cell)
        picture = Image.blend(picture, Image.merge("RGB", (light, light, light)), share)
    return picture


def _noise(random: Random, mode: str, width: int, height: int, cell: int) -> Image.Image:
    columns, rows = math.ceil(width / cell), math.ceil(height / cell)
    cells = Image.frombytes(mode, (columns, rows), random.randbytes(columns * rows * len(mode)))
    return cells.resize((width, height), Image.Resampling.BICUBIC)


def jpeg(width: int, height: int, *, quality: int, seed: int = 1, grain: float = 0.05) -> bytes:
    """A baseline JPEG."""
    file = BytesIO()
    draw(width, height, seed=seed, grain=grain).save(file, "JPEG", quality=quality)
    return file.getvalue()


def png(width: int, height: int, *, seed: int = 1, grain: float = 0.05) -> bytes:
    """A PNG without alpha."""
    file = BytesIO()
    draw(width, height, seed=seed, grain=grain).save(file, "PNG", compress_level=3)
    return file.getvalue()


def static(width: int, height: int, *, seed: int = 1) -> bytes:
    """A PNG of noise, as many bytes as pixels have."""
    file = BytesIO()
    pixels = Random(seed).randbytes(width * height * 3)
    Image.frombytes("RGB", (width, height), pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


# By the names the tables use; bytes and megapixels are what is meant, and come out within a few percent.
SMALL = Photograph("21 KB JPEG", "jpg", lambda: jpeg(304, 228, quality=88, grain=0.066))
PHONE = Photograph("4.7 MB JPEG", "jpg", lambda: jpeg(4000, 3000, quality=92, grain=0.105))
CAMERA = Photograph("2.3 MB JPEG", "jpg", lambda: jpeg(3000, 2000, quality=92, grain=0.1))
WEB = Photograph("0.8 MB JPEG", "jpg", lambda: jpeg(2100, 1575, quality=88, grain=0.07))
PNGS = (
    Photograph("0.8 MB PNG", "png", lambda: png(812, 609)),
    Photograph("2.3 MB PNG", "png", lambda: png(1376, 1032)),
    Photograph("4.7 MB PNG", "png", lambda: png(1972, 1479)),
)
UPLOADS = (SMALL, WEB, PNGS[0], CAMERA, PNGS[1], PHONE, PNGS[2])
SCREEN = Photograph("3 MP PNG", "png", lambda: png(2000, 1500))
HUGE = Photograph("100 MP JPEG", "jpg", lambda: jpeg(12240, 8160, quality=85, grain=0.05))
HEAVY = Photograph("50 MB PNG", "png", lambda: static(4096, 4096))
