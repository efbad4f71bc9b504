"""What a rendering worker is asked, and what it answers. Nothing here loads libvips."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from smart_assets.errors import SmartAssetsError
from smart_assets.formats import ImageFormat
from smart_assets.imaging.info import ImageInfo
from smart_assets.imaging.sizes import RenderOptions, Size, output_format

if TYPE_CHECKING:
    from smart_assets.imaging.placeholder import Placeholder


@dataclass(frozen=True)
class RenderJob:
    """What to make of one source. The outputs are written into `directory`, which exists, under names of this job only.

    `info` is what `probe` says of `source`.
    """

    source: Path
    info: ImageInfo
    sizes: tuple[Size, ...]
    options: RenderOptions
    placeholder: bool
    directory: Path
    id: str = field(default_factory=lambda: uuid4().hex)

    def output(self, index: int) -> Path:
        """Where the rendition of `sizes[index]` is written."""
        return self.directory / f"{self.id}.{index}.{output_format(self.info, self.options).extension}"

    def discard(self) -> None:
        """Remove whatever was written."""
        for index in range(len(self.sizes)):
            self.output(index).unlink(missing_ok=True)


@dataclass(frozen=True)
class Rendition:
    """One size, made: a file of mode 0600 in `format`, `width` by `height` pixels (of one frame), `size_bytes` long."""

    size: Size
    path: Path
    format: ImageFormat
    width: int
    height: int
    size_bytes: int


@dataclass(frozen=True)
class RenditionFailure:
    """One size that could not be made, for reasons of its own."""

    size: Size
    error: SmartAssetsError


@dataclass(frozen=True)
class RenderResult:
    """`renditions` in the order of the job's sizes."""

    renditions: tuple[Rendition | RenditionFailure, ...]
    placeholder: Placeholder | None
