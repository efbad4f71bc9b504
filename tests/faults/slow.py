"""An image that keeps a rendering worker busy for some seconds when it is made an AVIF."""

from __future__ import annotations

import io
from typing import Any, Final

from PIL import Image

SIDE: Final = 1800


def _noise() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((SIDE, SIDE), 90).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


NOISE: Final = _noise()

SLOWLY: Final[dict[str, Any]] = {"sizes": f"20,{SIDE}", "format": "avif"}
"""What to ask of `NOISE`: the first size is there long before the second."""
