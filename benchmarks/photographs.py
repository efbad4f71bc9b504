"""Images to measure with, made from a fixed seed: as hard to compress as a photograph, and of a given size in bytes."""

from collections.abc import Callable
from io import BytesIO
from random import Random

from PIL import Image, ImageFilter


def photograph(width: int, height: int, *, quality: int = 88, seed: int = 1) -> bytes:
    """A JPEG with gradients, shapes and grain."""
    random = Random(seed)
    coarse = Image.frombytes("RGB", (48, 32), random.randbytes(48 * 32 * 3))
    picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
    grain = Image.effect_noise((width, height), 28).filter(ImageFilter.GaussianBlur(0.8))
    picture = Image.blend(picture, grain.convert("RGB"), 0.25)
    file = BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


PHOTOGRAPHS: dict[str, Callable[[], bytes]] = {
    "21 KB": lambda: photograph(304, 228),
    "0.8 MB": lambda: photograph(2612, 1959),
    "2.3 MB": lambda: photograph(4540, 3405),
}
