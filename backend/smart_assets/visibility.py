"""Who may fetch an asset."""

from __future__ import annotations

from enum import StrEnum


class Visibility(StrEnum):
    """Anybody, or only the holder of a signed URL."""

    PUBLIC = "public"
    PRIVATE = "private"
