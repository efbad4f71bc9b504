"""Rendering: one source file in, the sizes asked for out, as files.

Importing this module sets up libvips for the whole process: no loader but those of the allow-list, no cache, one
thread. It belongs into a worker process; `workers` is the way to call it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import pyvips

from smart_assets.errors import CorruptImage, NoSpace, SmartAssetsError, TooManyPixels, no_space
from smart_assets.formats import ImageFormat
from smart_assets.imaging.jobs import RenderJob, RenderResult, Rendition, RenditionFailure
from smart_assets.imaging.placeholder import Placeholder, placeholder
from smart_assets.imaging.sizes import (
    WHITE,
    Background,
    Fit,
    Geometry,
    Gravity,
    RenderOptions,
    Size,
    keeps_animation,
    output_format,
    target_geometry,
)

PLACEHOLDER_SIZE = Size(48, 48)

# The family of libvips' loaders, and the operation that reads a file.
_LOADERS = {
    ImageFormat.JPEG: ("VipsForeignLoadJpeg", "jpegload"),
    ImageFormat.PNG: ("VipsForeignLoadPng", "pngload"),
    ImageFormat.WEBP: ("VipsForeignLoadWebp", "webpload"),
    ImageFormat.GIF: ("VipsForeignLoadNsgif", "gifload"),
    ImageFormat.AVIF: ("VipsForeignLoadHeif", "heifload"),
}

# The most pixels a side that each format, or its encoder, takes.
_MOST_SIDE = {ImageFormat.JPEG: 65535, ImageFormat.WEBP: 16383, ImageFormat.GIF: 65535, ImageFormat.AVIF: 16384}

# To libjpeg all damage within the scans is a warning, and so are oddities of headers that every viewer shows the image
# in spite of: stray bytes between markers, an unknown JFIF revision or Adobe transform, wrong parameters of a scan.
# So JPEGs fail on warnings, and one that warned of nothing below gets a second chance. The other decoders call only
# damage a warning; libpng's about colour profiles pass. What no decoder notices nobody can know: a changed coefficient
# of a JPEG, most of a WebP, which has no checksum. (libvips' `thumbnail_buffer` and `thumbnail_source` ignore `fail_on`
# altogether; its loaders do not.)
_DAMAGED_SCAN = re.compile(
    r"bad Huffman code|bad arithmetic|premature end|instead of RST|extraneous bytes before marker 0xd[0-7]",
    re.IGNORECASE,
)
_OUT_OF_MEMORY = re.compile(r"out of memory|insufficient memory|memory alloc|cannot allocate", re.IGNORECASE)
_OUT_OF_SPACE = re.compile(r"no space left|file too large|quota exceeded", re.IGNORECASE)
_NO_METADATA = pyvips.enums.ForeignKeep.NONE
_NO_MEMORY = "making these sizes takes more memory than a worker may use"


def _set_up_libvips() -> None:
    # Loaders are called by name here; the rest are blocked as well, because with some a picture reads files or runs
    # code (CVE-2026-66066). A misspelt name would be accepted silently: a test tries the blocked formats.
    pyvips.operation_block_set("VipsForeignLoad", True)
    for family, _ in _LOADERS.values():
        pyvips.operation_block_set(family, False)
    pyvips.cache_set_max(0)
    pyvips.concurrency_set(1)  # type: ignore[attr-defined]  # missing in its stubs


_set_up_libvips()


@dataclass(frozen=True)
class _Picture:
    """Decoded frames in memory: upright, 8-bit sRGB or grey, all of one size. `timing` only where there are several."""

    frames: tuple[pyvips.Image, ...]
    timing: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        return self.frames[0].width, self.frames[0].height


def render(job: RenderJob) -> RenderResult:
    """Make every size and the placeholder. Decodes once.

    Raises CorruptImage where the source's pixels are damaged or cut off, TooManyPixels where memory does not suffice;
    then no file of the job stays.
    """
    try:
        return _render(job)
    except BaseException as error:
        job.discard()
        if isinstance(error, MemoryError) or (isinstance(error, pyvips.Error) and _OUT_OF_MEMORY.search(error.detail)):
            raise TooManyPixels(_NO_MEMORY) from error
        # pyvips raises UnicodeDecodeError instead of its own error where libvips quotes a hostile file.
        if isinstance(error, (pyvips.Error, UnicodeDecodeError)):
            raise CorruptImage("the image's pixels are damaged or cut off") from error
        raise


def _render(job: RenderJob) -> RenderResult:
    targets = {size: _target(job, size) for size in job.sizes}
    resizes = {target.resize for target in targets.values() if isinstance(target, Geometry)}
    placeholder_size = target_geometry(*job.info.display_size, PLACEHOLDER_SIZE, Fit.INSIDE).resize
    if job.placeholder:
        resizes.add(placeholder_size)
    pictures = _make_pictures(job, resizes)
    renditions = tuple(
        _rendition(job, index, pictures[target.resize], target) if isinstance(target, Geometry) else target
        for index, target in enumerate(targets[size] for size in job.sizes)
    )
    return RenderResult(renditions, _placeholder(pictures[placeholder_size]) if job.placeholder else None)


def _target(job: RenderJob, size: Size) -> Geometry | RenditionFailure:
    geometry = target_geometry(*job.info.display_size, size, job.options.fit)
    width, height = geometry.canvas
    format_ = output_format(job.info, job.options)
    most = _MOST_SIDE.get(format_)
    if most is not None and max(width, height) > most:
        detail = f"{size} comes to {width}x{height}, and {format_.label} takes at most {most} pixels a side"
        return RenditionFailure(size, TooManyPixels(detail))
    return geometry


def _make_pictures(job: RenderJob, resizes: Iterable[tuple[int, int]]) -> dict[tuple[int, int], _Picture]:
    """The whole image in every size of `resizes`: the largest decoded from the source, the others from one another."""
    pictures: dict[tuple[int, int], _Picture] = {}
    for width, height in sorted(resizes, key=math.prod, reverse=True):
        # A second resampling does not show where at least half of the pixels go in each direction.
        roomy = (
            picture
            for picture in reversed(pictures.values())
            if picture.size[0] >= 2 * width and picture.size[1] >= 2 * height
        )
        above = next(roomy, next(iter(pictures.values()), None))
        pictures[width, height] = _shrink(above, width, height) if above else _decode(job, width, height)
    return pictures


def _decode(job: RenderJob, width: int, height: int) -> _Picture:
    """The source decoded, `width` by `height`, all in memory: what is damaged fails here and not in an encoder."""
    # What earlier jobs left in libvips' error buffer would stand in this one's errors.
    pyvips.vips_lib.vips_error_clear()
    _check_header(job)
    try:
        return _load(job, width, height, "warning")
    except pyvips.Error as error:
        damage = _DAMAGED_SCAN.search(error.detail) or _OUT_OF_MEMORY.search(error.detail)
        if damage or job.info.format is not ImageFormat.JPEG:
            raise
    return _load(job, width, height, "error")


def _check_header(job: RenderJob) -> None:
    """Raise CorruptImage where the decoder sees more pixels than were let in, or fewer frames."""
    header, info = _open(job, fail_on="none"), job.info
    if header.width * header.height > info.width * info.height * info.frames:
        raise CorruptImage(f"the decoder sees {header.width}x{header.height} pixels, more than the header says")
    if keeps_animation(info, job.options) and header.height < header.get_page_height() * info.frames:
        raise CorruptImage(f"the animation breaks off before the last of its {info.frames} frames")


def _open(job: RenderJob, **options: Any) -> pyvips.Image:
    """The source as a stream of rows: every frame below the one before where an animation is kept, else the first."""
    if keeps_animation(job.info, job.options):
        options["n"] = -1
    _, load = _LOADERS[job.info.format]
    return cast("pyvips.Image", getattr(pyvips.Image, load)(str(job.source), access="sequential", **options))


def _load(job: RenderJob, width: int, height: int, fail_on: str) -> _Picture:
    strip = _open(job, fail_on=fail_on, **_shrink_on_load(job, width, height))
    page_height = strip.get_page_height()
    profile: dict[str, Any] = {"output_profile": "srgb"} if _has(strip, "icc-profile-data") else {}
    timing = {name: strip.get(name) for name in ("delay", "loop") if _has(strip, name)}
    if strip.interpretation == "cmyk" and not profile:
        strip = _plain_rgb(strip)
    # One at a time, so that the rows of one frame do not bleed into the next, and only small frames stay in memory.
    frames = tuple(
        strip.crop(0, top, strip.width, page_height)
        .thumbnail_image(width, height=height, size="force", **profile)
        .copy_memory()
        for top in range(0, strip.height, page_height)
    )
    return _Picture(frames, timing)


def _has(image: pyvips.Image, name: str) -> bool:
    # `get_fields` would decode every name there is, and raises on those of hostile files.
    return bool(image.get_typeof(name))


def _plain_rgb(strip: pyvips.Image) -> pyvips.Image:
    """CMYK of which no profile says what its inks look like: as browsers show it, and not as some press would."""
    light = 255 - strip
    rgb = light.extract_band(0, n=3) * light.extract_band(3) / 255
    return rgb.cast("uchar").copy(interpretation="srgb")


def _shrink_on_load(job: RenderJob, width: int, height: int) -> dict[str, float]:
    """Loader options that decode to fewer pixels, leaving at least a factor of two to the better resampling after."""
    factor = min(job.info.display_size[0] / width, job.info.display_size[1] / height)
    if job.info.format is ImageFormat.JPEG:
        return {"shrink": next(shrink for shrink in (8, 4, 2, 1) if factor >= 2 * shrink or shrink == 1)}
    if job.info.format is ImageFormat.WEBP and job.info.frames == 1:
        return {"scale": min(1.0, 2 / factor)}
    return {}


def _shrink(picture: _Picture, width: int, height: int) -> _Picture:
    frames = (frame.thumbnail_image(width, height=height, size="force") for frame in picture.frames)
    return replace(picture, frames=tuple(frame.copy_memory() for frame in frames))


def _rendition(job: RenderJob, index: int, picture: _Picture, geometry: Geometry) -> Rendition | RenditionFailure:
    size, path, format_ = job.sizes[index], job.output(index), output_format(job.info, job.options)
    with no_space():
        path.touch(mode=0o600, exist_ok=False)
    try:
        frames = [_compose(frame, geometry, job.options, format_) for frame in _crop(picture, geometry, job.options)]
        _encode(_joined(frames, picture.timing), str(path), format_, job.options.quality)
    except pyvips.Error as error:
        path.unlink()
        if _OUT_OF_MEMORY.search(error.detail):
            return RenditionFailure(size, TooManyPixels(_NO_MEMORY))
        if _OUT_OF_SPACE.search(error.detail):
            return RenditionFailure(size, NoSpace("no room left for temporary files"))
        return RenditionFailure(size, SmartAssetsError(f"{size} could not be encoded as {format_.label}"))
    width, height = geometry.canvas
    return Rendition(size, path, format_, width, height, path.stat().st_size)


def _crop(picture: _Picture, geometry: Geometry, options: RenderOptions) -> Iterable[pyvips.Image]:
    if geometry.crop == geometry.resize:
        return picture.frames
    width, height = geometry.crop
    if options.gravity is Gravity.ATTENTION:
        # The eye goes somewhere else in each frame; a window that follows it would shake.
        window = picture.frames[0].smartcrop(width, height, interesting="attention")
        left, top = -window.xoffset, -window.yoffset
    else:
        spare_width, spare_height = geometry.resize[0] - width, geometry.resize[1] - height
        left = {Gravity.WEST: 0, Gravity.EAST: spare_width}.get(options.gravity, spare_width // 2)
        top = {Gravity.NORTH: 0, Gravity.SOUTH: spare_height}.get(options.gravity, spare_height // 2)
    return [frame.crop(left, top, width, height) for frame in picture.frames]


def _compose(frame: pyvips.Image, geometry: Geometry, options: RenderOptions, format_: ImageFormat) -> pyvips.Image:
    """One cropped frame, flattened onto a background that shows no alpha, and padded to the canvas."""
    background = options.background if options.background or format_.has_alpha else WHITE
    if background and frame.hasalpha():
        frame = _able_to_show(frame, background)
        frame = frame.flatten(background=_ink(frame, background)[: frame.bands - 1])
    if geometry.canvas == geometry.crop:
        return frame
    if background:
        frame = _able_to_show(frame, background)
        ink = _ink(frame, background)
    else:
        frame = frame if frame.hasalpha() else frame.addalpha()
        ink = [0.0] * frame.bands
    (width, height), (inner_width, inner_height) = geometry.canvas, geometry.crop
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return frame.embed(left, top, width, height, extend="background", background=ink)


def _able_to_show(frame: pyvips.Image, background: Background) -> pyvips.Image:
    """The frame in colour where it is grey and the background is not."""
    plain = background.red == background.green == background.blue
    return frame if plain or frame.bands > 2 else frame.colourspace("srgb")


def _ink(frame: pyvips.Image, background: Background) -> list[float]:
    """The background as one opaque pixel of the frame's bands."""
    ink: list[float] = [background.red, background.green, background.blue] if frame.bands > 2 else [background.red]
    return [*ink, 255] if frame.hasalpha() else ink


def _joined(frames: list[pyvips.Image], timing: Mapping[str, Any]) -> pyvips.Image:
    """One image as encoders take it: frames below each other, page height and timing in its metadata."""
    if len(frames) == 1:
        return frames[0]
    strip = pyvips.Image.arrayjoin(frames, across=1).copy()
    strip.set_type(pyvips.GValue.gint_type, "page-height", frames[0].height)
    for name, value in timing.items():
        strip.set(name, value)
    return strip


def _encode(image: pyvips.Image, path: str, format_: ImageFormat, quality: int) -> None:
    """Write the file, without metadata."""
    match format_:
        case ImageFormat.JPEG:
            # Optimal Huffman tables cost 6 ms at 1600x1200 and save an eighth of the bytes; progressive scans would
            # cost as much again for 2 %, and every later decode of them holds the whole image.
            image.jpegsave(path, Q=quality, optimize_coding=True, keep=_NO_METADATA)
        case ImageFormat.PNG:
            image.pngsave(path, compression=6, keep=_NO_METADATA)
        case ImageFormat.WEBP:
            image.webpsave(path, Q=quality, effort=4, keep=_NO_METADATA)
        case ImageFormat.AVIF:
            # Effort 4, the library's default, takes four times as long as 3 for 3 to 15 % fewer bytes.
            image.heifsave(path, compression="av1", Q=quality, effort=3, bitdepth=8, keep=_NO_METADATA)
        case ImageFormat.GIF:
            # Effort 7, the library's default, takes twice as long for 4 % fewer bytes.
            image.gifsave(path, effort=4, keep=_NO_METADATA)


def _placeholder(picture: _Picture) -> Placeholder:
    frame = picture.frames[0].colourspace("srgb")
    frame = frame if frame.hasalpha() else frame.addalpha()
    return placeholder(frame.width, frame.height, bytes(frame.cast("uchar").write_to_memory()))
