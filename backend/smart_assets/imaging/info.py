"""What an image's structure says of it, and what of that is allowed."""

from __future__ import annotations

from dataclasses import dataclass

from smart_assets.errors import InvalidParameter, TooManyPixels, UnsupportedImage
from smart_assets.formats import ImageFormat
from smart_assets.settings import Settings


@dataclass(frozen=True)
class ImageInfo:
    """What an image's structure says of it.

    `width` and `height` in pixels as stored (of the canvas, for animations; within the clean aperture, for AVIF);
    `orientation` is EXIF's 1 to 8, and what AVIF's `irot` and `imir` come to; `frames` is 1 where nothing moves, and
    where the engine reads one picture only: of an animated PNG and of an AVIF sequence; `progressive` says that a
    decoder must hold every coefficient or row at once (JPEG with several scans, interlaced PNG); `has_alpha` that
    pixels may be transparent; `bits` per sample, or per palette index.
    """

    format: ImageFormat
    width: int
    height: int
    orientation: int = 1
    frames: int = 1
    progressive: bool = False
    has_alpha: bool = False
    bits: int = 8

    @property
    def display_size(self) -> tuple[int, int]:
        """Width and height as a person sees the image: orientation applied."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


@dataclass(frozen=True)
class Limits:
    """What may be uploaded; the fields are the settings of the same names."""

    formats: frozenset[ImageFormat]
    max_pixels: int
    max_frames: int
    max_animation_pixels: int
    min_bytes: int
    min_width: int
    min_height: int
    max_width: int
    max_height: int

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        """The limits the settings name."""
        policy = settings.policy
        return cls(
            formats=frozenset(policy.formats),
            max_pixels=settings.max_pixels,
            max_frames=policy.max_frames,
            max_animation_pixels=policy.max_animation_pixels,
            min_bytes=policy.min_bytes,
            min_width=policy.min_width,
            min_height=policy.min_height,
            max_width=policy.max_width,
            max_height=policy.max_height,
        )

    def check_bytes(self, size: int) -> None:
        """Raises InvalidParameter for an empty file or one below `min_bytes`."""
        if not size:
            raise InvalidParameter.at("body", "file", message="the file is empty")
        if size < self.min_bytes:
            raise InvalidParameter.at("body", "file", message=f"{size} bytes are fewer than min_bytes {self.min_bytes}")

    def check_format(self, image_format: ImageFormat) -> None:
        """Raises UnsupportedImage for a format that is switched off."""
        if image_format not in self.formats:
            raise UnsupportedImage(f"this is {image_format.label}, which is switched off here; {self.allowed()}")

    def allowed(self) -> str:
        """The formats, for the end of a sentence."""
        return "allowed: " + ", ".join(known.label for known in ImageFormat if known in self.formats)

    def check_pixels(self, width: int, height: int) -> None:
        """Raises TooManyPixels; called as soon as a header names a size, before the rest is looked at."""
        if width * height > self.max_pixels:
            raise TooManyPixels(f"{width}x{height} is {width * height} pixels, above max_pixels {self.max_pixels}")

    def check_frames(self, frames: int, width: int, height: int) -> None:
        """Raises TooManyPixels; called for each frame counted, so that nobody counts on past the limit."""
        if frames > self.max_frames:
            raise TooManyPixels(f"the animation has more frames than max_frames {self.max_frames}")
        if frames > 1 and frames * width * height > self.max_animation_pixels:
            raise TooManyPixels(
                f"{frames} frames of {width}x{height} are {frames * width * height} pixels, "
                f"above max_animation_pixels {self.max_animation_pixels}"
            )

    def check_sides(self, info: ImageInfo) -> None:
        """Raises TooManyPixels or InvalidParameter for a side too long or too short, as a person sees the image."""
        width, height = info.display_size
        for side, value, least, most in (
            ("width", width, self.min_width, self.max_width),
            ("height", height, self.min_height, self.max_height),
        ):
            if value > most:
                raise TooManyPixels(f"the {side} is {value} pixels, above max_{side} {most}")
            if value < least:
                raise InvalidParameter.at(
                    "body", "file", message=f"the {side} is {value} pixels, below min_{side} {least}"
                )
