"""How much a size looks like its original: SSIM beside the size that Pillow's Lanczos makes of it.

The arithmetic is libvips', on pixels that Pillow has decoded; nothing of the service's is asked.
"""

from __future__ import annotations

from pathlib import Path

import pyvips
from PIL import Image

# Wang and others, 2004: a Gaussian window, and constants that keep flat areas from dividing by nothing.
_SIGMA = 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(one: Image.Image, other: Image.Image) -> float:
    """The mean structural similarity of two images' lightness: 1.0 where they are equal."""
    x, y = _lightness(one), _lightness(other)
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = _blurred(x * x) - mean_x * mean_x
    variance_y = _blurred(y * y) - mean_y * mean_y
    covariance = _blurred(x * y) - mean_x * mean_y
    likeness = ((2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)) / (
        (mean_x * mean_x + mean_y * mean_y + _C1) * (variance_x + variance_y + _C2)
    )
    return float(likeness.avg())


def _lightness(image: Image.Image) -> pyvips.Image:
    grey = image.convert("L")
    return pyvips.Image.new_from_memory(grey.tobytes(), grey.width, grey.height, 1, "uchar").cast("double")


def _blurred(image: pyvips.Image) -> pyvips.Image:
    # Out to five pixels on each side.
    return image.gaussblur(_SIGMA, min_ampl=0.002, precision="float")


def to_lanczos(files: list[str], source: Path) -> list[float]:
    """The SSIM of each file to what Pillow's Lanczos makes of `source` in its size."""
    with Image.open(source) as original:
        original.load()
    found = []
    for file in files:
        with Image.open(file) as size:
            reference = original.resize(size.size, Image.Resampling.LANCZOS)
            found.append(ssim(size, reference))
    return found
