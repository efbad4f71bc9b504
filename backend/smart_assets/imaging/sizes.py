"""Sizes: how they are asked for, what each comes to for a given image, and what a variant is called.

Pure arithmetic and text; nothing here touches a pixel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from smart_assets.errors import ConfigurationError, InvalidParameter
from smart_assets.formats import ImageFormat
from smart_assets.imaging.info import ImageInfo

MAX_SIDE = 8192
DEFAULT_QUALITY = 80

_SIZE = re.compile(r"(?P<width>\d+)(?:x(?P<height>\d+))?|x(?P<only_height>\d+)", re.ASCII)
_SIDE = re.compile(r"[1-9]\d{0,3}", re.ASCII)
_PRESET_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}", re.ASCII)
_COLOUR = re.compile(r"#[0-9a-f]{6}", re.ASCII | re.IGNORECASE)


class Fit(StrEnum):
    """How an image comes into a box of two sides. None ever enlarges."""

    INSIDE = "inside"
    COVER = "cover"
    CONTAIN = "contain"


class Gravity(StrEnum):
    """What `cover` keeps; `attention` is where the eye goes."""

    CENTRE = "centre"
    NORTH = "north"
    SOUTH = "south"
    EAST = "east"
    WEST = "west"
    ATTENTION = "attention"


@dataclass(frozen=True)
class Size:
    """A box in pixels; a side that is None follows from the image's ratio. At least one side is given.

    `str(size)` is its canonical label: `1200x627`, `800` or `x600`.
    """

    width: int | None
    height: int | None

    def __str__(self) -> str:
        if self.height is None:
            return str(self.width)
        return f"{self.width or ''}x{self.height}"


@dataclass(frozen=True)
class Background:
    """A plain opaque colour; `str(background)` is `#rrggbb` in lower case."""

    red: int
    green: int
    blue: int

    def __str__(self) -> str:
        return f"#{self.red:02x}{self.green:02x}{self.blue:02x}"


WHITE = Background(255, 255, 255)


@dataclass(frozen=True)
class RenderOptions:
    """What all sizes of one request have in common.

    `background` None is transparent where the format can, else white. `format` None is the source's own.
    `quality` is 1 to 100.
    """

    fit: Fit = Fit.INSIDE
    gravity: Gravity = Gravity.CENTRE
    background: Background | None = None
    format: ImageFormat | None = None
    quality: int = DEFAULT_QUALITY


def parse_sizes(values: Iterable[str], presets: Mapping[str, Sequence[str]], most: int) -> tuple[Size, ...]:
    """The sizes asked for, in order, each once.

    Each value is comma-separated: `1200x627`, `800` (width), `x600` (height), or the name of a preset, which stands
    for its sizes. An empty value asks for none. Raises InvalidParameter, naming the item, for anything else, a side
    outside 1 to 8192, or more than `most` sizes.
    """
    sizes: dict[Size, None] = {}
    for value in values:
        for item in value.split(",") if value.strip() else ():
            for text in presets.get(item.strip(), [item]):
                sizes[_parse_size(text.strip(), presets)] = None
                if len(sizes) > most:
                    raise _refused(f"more than {most} sizes; {text.strip()[:40]!r} is one too many")
    return tuple(sizes)


def _refused(message: str) -> InvalidParameter:
    return InvalidParameter.at("query", "sizes", message=message)


def _parse_size(text: str, presets: Mapping[str, Sequence[str]]) -> Size:
    shown = repr(text if len(text) <= 40 else text[:40] + "…")
    match = _SIZE.fullmatch(text)
    if match is None:
        known = ", ".join(sorted(presets)) or "none"
        raise _refused(f"{shown} is neither a size (1200x627, 800 or x600) nor a preset (there are: {known})")
    height = match["height"] or match["only_height"]
    return Size(_parse_side(match["width"], shown), _parse_side(height, shown))


def _parse_side(digits: str | None, shown: str) -> int | None:
    if digits is None:
        return None
    if not _SIDE.fullmatch(digits) or int(digits) > MAX_SIDE:
        raise _refused(f"in {shown} the side {digits[:40]} is not a plain number from 1 to {MAX_SIDE}")
    return int(digits)


def check_presets(presets: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigurationError where a preset could not be used: its name reads as a size, or it holds what is none."""
    for name, items in presets.items():
        if not _PRESET_NAME.fullmatch(name) or _SIZE.fullmatch(name):
            raise ConfigurationError(
                f"ASSETS_PRESETS: {name[:40]!r} cannot name a preset; a name is a letter and up to 63 more of a-z, "
                "0-9, - and _, and must not read as a size"
            )
        if not items:
            raise ConfigurationError(f"ASSETS_PRESETS: {name!r} has no sizes")
        try:
            for item in items:
                _parse_size(item.strip(), {})
        except InvalidParameter as error:
            raise ConfigurationError(f"ASSETS_PRESETS: {name!r}: {error.errors[0].message}") from None


def parse_background(text: str) -> Background | None:
    """The colour that `#rrggbb` names, None for `transparent`; InvalidParameter for anything else."""
    if text == "transparent":
        return None
    if not _COLOUR.fullmatch(text):
        message = f"{text[:40]!r} is neither a colour (#rrggbb) nor transparent"
        raise InvalidParameter.at("query", "background", message=message)
    return Background(*bytes.fromhex(text[1:]))


def variant_name(size: Size, options: RenderOptions) -> str:
    """What the variant is called in keys: `[0-9a-z-]`, at most 64 characters.

    The size's label, then whatever differs from the defaults and can matter to the pixels, so that for one source and
    one format different pixels never share a name: `1200x627-cover-north`, `800-q60`, `600x600-contain-ff0000`.
    """
    parts = [str(size)]
    fit = _effective_fit(size, options.fit)
    if fit is not Fit.INSIDE:
        parts.append(fit.value)
    if fit is Fit.COVER and options.gravity is not Gravity.CENTRE:
        parts.append(options.gravity.value)
    if options.background:
        parts.append(str(options.background).removeprefix("#"))
    if options.quality != DEFAULT_QUALITY and options.format not in {ImageFormat.PNG, ImageFormat.GIF}:
        parts.append(f"q{options.quality}")
    return "-".join(parts)


def _effective_fit(size: Size, fit: Fit) -> Fit:
    return Fit.INSIDE if size.width is None or size.height is None else fit


@dataclass(frozen=True)
class Geometry:
    """Width and height after each step: the whole image is resized, then cropped, then padded.

    No step but padding is larger than the one before it, or than the source; no side is 0.
    """

    resize: tuple[int, int]
    crop: tuple[int, int]
    canvas: tuple[int, int]


def target_geometry(source_width: int, source_height: int, size: Size, fit: Fit) -> Geometry:
    """What `size` comes to for an image of the given size, orientation applied."""
    if _effective_fit(size, fit) is Fit.COVER:
        return _cover(source_width, source_height, size.width or 1, size.height or 1)
    inside = _inside(source_width, source_height, size)
    if _effective_fit(size, fit) is Fit.CONTAIN:
        return Geometry(inside, inside, (size.width or 1, size.height or 1))
    return Geometry(inside, inside, inside)


def _inside(width: int, height: int, size: Size) -> tuple[int, int]:
    box_width = min(size.width or width, width)
    box_height = min(size.height or height, height)
    if box_width * height <= box_height * width:
        return box_width, _scaled(height, box_width, width)
    return _scaled(width, box_height, height), box_height


def _cover(width: int, height: int, box_width: int, box_height: int) -> Geometry:
    wider = box_width * height >= box_height * width
    if box_width > width or box_height > height:
        # The box's ratio, as large as the source has it.
        crop = (
            (width, _scaled(box_height, width, box_width))
            if wider
            else (_scaled(box_width, height, box_height), height)
        )
        return Geometry((width, height), crop, crop)
    resize = (
        (box_width, _scaled(height, box_width, width)) if wider else (_scaled(width, box_height, height), box_height)
    )
    return Geometry(resize, (box_width, box_height), (box_width, box_height))


def _scaled(length: int, numerator: int, denominator: int) -> int:
    """`length * numerator / denominator`, halves rounded up, at least 1."""
    return max(1, (2 * length * numerator + denominator) // (2 * denominator))


def output_format(info: ImageInfo, options: RenderOptions) -> ImageFormat:
    """The format of every rendition of this image."""
    return options.format or info.format


def keeps_animation(info: ImageInfo, options: RenderOptions) -> bool:
    """Whether renditions move as the source does; where not, they are made of its first frame."""
    return info.frames > 1 and info.format.animates and output_format(info, options).animates
