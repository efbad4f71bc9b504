"""Renditions, held against Pillow as an independent referee, and made in the workers that make them for callers."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from PIL import Image, ImageChops, ImageCms, ImageDraw, ImageOps, ImageStat

from smart_assets.errors import CorruptImage, TooManyPixels
from smart_assets.formats import ImageFormat, sniff
from smart_assets.imaging.budget import MemoryBudget
from smart_assets.imaging.info import ImageInfo, Limits
from smart_assets.imaging.jobs import RenderJob, RenderResult, Rendition, RenditionFailure
from smart_assets.imaging.placeholder import placeholder
from smart_assets.imaging.probe import probe
from smart_assets.imaging.sizes import Background, Fit, Gravity, RenderOptions, parse_sizes
from smart_assets.imaging.workers import RenderPool
from smart_assets.settings import ImagingSettings, Settings
from tests import images

RED = Background(255, 0, 0)
JPEG, PNG, WEBP, GIF, AVIF = ImageFormat.JPEG, ImageFormat.PNG, ImageFormat.WEBP, ImageFormat.GIF, ImageFormat.AVIF


@pytest.fixture(scope="module")
def render_job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[RenderJob], RenderResult]]:
    settings, directory = ImagingSettings(workers=1), tmp_path_factory.mktemp("budget")
    with start_blocking_portal() as portal, closing(MemoryBudget(settings.memory_budget_bytes, directory)) as budget:
        pool = RenderPool(settings, budget)
        yield lambda job: portal.call(pool.render, job)
        portal.call(pool.close)


class Renderer:
    """Renders into `directory`; `info` of a source is what `probe` says of it, unless told otherwise."""

    def __init__(self, render_job: Callable[[RenderJob], RenderResult], directory: Path) -> None:
        self._render_job = render_job
        self.directory = directory

    def __call__(
        self,
        source: bytes,
        sizes: str = "",
        options: RenderOptions | None = None,
        *,
        placeholder: bool = False,
        info: ImageInfo | None = None,
    ) -> RenderResult:
        path = self.directory / "source"
        path.write_bytes(source)
        info = info or info_of(source)
        asked = parse_sizes([sizes], {}, 20)
        return self._render_job(RenderJob(path, info, asked, options or RenderOptions(), placeholder, self.directory))

    def one(self, source: bytes, size: str, options: RenderOptions | None = None) -> Image.Image:
        """The single rendition, decoded by Pillow."""
        (rendition,) = self(source, size, options).renditions
        return opened(rendition)


@pytest.fixture
def render(render_job: Callable[[RenderJob], RenderResult], tmp_path: Path) -> Renderer:
    return Renderer(render_job, tmp_path)


def info_of(source: bytes) -> ImageInfo:
    return probe(source, Limits.from_settings(Settings()))


def opened(rendition: Rendition | RenditionFailure) -> Image.Image:
    assert isinstance(rendition, Rendition), rendition
    image = Image.open(io.BytesIO(rendition.path.read_bytes()))
    assert image.size == (rendition.width, rendition.height)
    return image


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def as_seen(source: bytes) -> Image.Image:
    """The first frame as Pillow decodes it: upright, 8-bit, RGBA."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(source)))
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda level: level / 257).convert("L")
    return image.convert("RGBA")


def over_grey(image: Image.Image) -> Image.Image:
    """What a viewer sees on a grey page: colours under little alpha mean little."""
    return Image.alpha_composite(Image.new("RGBA", image.size, (128, 128, 128, 255)), image.convert("RGBA"))


def difference(one: Image.Image, other: Image.Image) -> float:
    """The largest of the bands' mean differences, in levels of 255."""
    return max(ImageStat.Stat(ImageChops.difference(over_grey(one), over_grey(other))).mean)


def colour(image: Image.Image, x: float, y: float) -> tuple[int, ...]:
    """The colour at a place given in shares of width and height."""
    pixel = image.convert("RGBA").getpixel((int(x * (image.width - 1)), int(y * (image.height - 1))))
    assert isinstance(pixel, tuple)
    return pixel


def near(one: tuple[int, ...], other: tuple[int, ...], by: int = 12) -> bool:
    return all(abs(here - there) <= by for here, there in zip(one[:3], other, strict=False))


# --- the same picture, smaller -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in images.IMAGES if name != "cmyk jpeg"])
def test_every_kind_of_source_comes_out_as_pillow_sees_it(render: Renderer, name: str) -> None:
    source = images.image(name)
    result = render(source, "50x40,30", RenderOptions(format=PNG))
    for rendition in result.renditions:
        made = opened(rendition)
        assert sniff(rendition.path.read_bytes()) is PNG  # type: ignore[union-attr]
        assert difference(made, as_seen(source).resize(made.size, Image.Resampling.LANCZOS)) < 3


def test_a_ladder_of_sizes_is_as_good_as_each_from_the_source(render: Renderer) -> None:
    source = encoded(images.picture(1700, 1275))
    for rendition in render(source, "160,1600,800,400,20", RenderOptions(format=PNG)).renditions:
        made = opened(rendition)
        assert difference(made, as_seen(source).resize(made.size, Image.Resampling.LANCZOS)) < 0.7


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_orientation_is_applied_before_anything_is_measured(
    render: Renderer, image_format: str, orientation: int
) -> None:
    source = images.oriented(orientation, width=300, height=200, image_format=image_format)
    made = render.one(source, "90x60", RenderOptions(fit=Fit.COVER))
    assert made.size == (90, 60)
    upright = images.quadrants(90, 60)
    for x, y in ((0.2, 0.2), (0.8, 0.2), (0.2, 0.8), (0.8, 0.8)):
        assert near(colour(made, x, y), colour(upright, x, y))
    assert made.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(("width", "height"), [(1, 500), (500, 1)])
@pytest.mark.parametrize("image_format", [JPEG, PNG, WEBP, AVIF])
def test_a_line_stays_a_line(render: Renderer, width: int, height: int, image_format: ImageFormat) -> None:
    source = images.png(width, height)
    result = render(source, "100x100,7,x7", RenderOptions(format=image_format), placeholder=True)
    assert [min(opened(rendition).size) for rendition in result.renditions] == [1, 1, 1]
    assert result.placeholder


@pytest.mark.parametrize("name", ["grey jpeg", "grey png", "16-bit grey png", "bilevel png"])
def test_grey_stays_grey(render: Renderer, name: str) -> None:
    assert render.one(images.image(name), "40").mode == "L"


def test_cmyk_without_a_profile_becomes_the_rgb_everybody_shows(render: Renderer) -> None:
    inks = [(0, 0, 0, 0), (0, 0, 0, 255), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (60, 120, 30, 90)]
    image = Image.new("CMYK", (600, 100))
    for index, ink in enumerate(inks):
        image.paste(ink, (index * 100, 0, index * 100 + 100, 100))
    made = render.one(encoded(image, "JPEG", quality=95), "300")
    assert made.mode == "RGB"
    for index in range(len(inks)):
        expected = colour(image.convert("RGB"), (index + 0.5) / 6, 0.5)
        assert near(colour(made, (index + 0.5) / 6, 0.5), expected, by=6)


def adobe_rgb() -> bytes:
    """An sRGB profile with the primaries of Adobe RGB (1998), adapted to D50."""
    profile = bytearray(images.icc_profile())
    primaries = {b"rXYZ": (0.60974, 0.31111, 0.01947), b"gXYZ": (0.20528, 0.62567, 0.06087),
                 b"bXYZ": (0.14919, 0.06322, 0.74457)}  # fmt: skip
    (tags,) = struct.unpack_from(">I", profile, 128)
    for index in range(tags):
        name, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * index)
        if name in primaries:
            struct.pack_into(">3i", profile, offset + 8, *(round(value * 65536) for value in primaries[name]))
    return bytes(profile)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_a_wide_gamut_profile_is_converted_not_dropped(render: Renderer, image_format: str) -> None:
    image = images.picture(200, 150)
    lossless: dict[str, object] = {"lossless": True} if image_format == "WEBP" else {"quality": 95}
    source = encoded(image, image_format, icc_profile=adobe_rgb(), **lossless)
    made = render.one(source, "100", RenderOptions(format=PNG))
    srgb = ImageCms.createProfile("sRGB")
    expected = ImageCms.profileToProfile(
        Image.open(io.BytesIO(source)), ImageCms.ImageCmsProfile(io.BytesIO(adobe_rgb())), srgb, outputMode="RGB"
    )
    assert expected is not None
    assert difference(made, expected.resize(made.size, Image.Resampling.LANCZOS)) < 2
    assert difference(made, as_seen(source).resize(made.size, Image.Resampling.LANCZOS)) > 4
    assert "icc_profile" not in made.info


def test_a_broken_profile_is_ignored(render: Renderer) -> None:
    source = encoded(images.picture(), "JPEG", icc_profile=b"no profile at all" * 20)
    made = render.one(source, "100", RenderOptions(format=PNG))
    assert difference(made, as_seen(source).resize(made.size, Image.Resampling.LANCZOS)) < 3


# --- formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", [JPEG, PNG, WEBP, AVIF])
@pytest.mark.parametrize("name", ["jpeg", "rgba png", "palette png", "transparent gif", "rgba webp", "rgba avif"])
def test_a_rendition_really_is_of_the_format_it_says(render: Renderer, name: str, image_format: ImageFormat) -> None:
    source = images.image(name)
    (rendition,) = render(source, "60", RenderOptions(format=image_format, quality=100)).renditions
    assert isinstance(rendition, Rendition)
    data = rendition.path.read_bytes()
    assert rendition.format is sniff(data) is image_format
    assert rendition.size_bytes == len(data)
    made = opened(rendition)
    expected = as_seen(source).resize(made.size, Image.Resampling.LANCZOS)
    if image_format is JPEG:
        expected = Image.alpha_composite(Image.new("RGBA", made.size, "white"), expected)
    assert difference(made, expected) < 8


@pytest.mark.parametrize("name", ["rgba png", "palette png", "transparent gif", "rgba webp", "rgba avif"])
def test_transparency_is_kept_where_the_format_is(render: Renderer, name: str) -> None:
    source = images.image(name)
    made = render.one(source, "50")
    expected = as_seen(source).resize(made.size, Image.Resampling.LANCZOS)
    assert difference(made.convert("RGBA").getchannel("A"), expected.getchannel("A")) < 6
    assert made.convert("RGBA").getchannel("A").getextrema()[0] < 255  # type: ignore[operator]


def test_alpha_is_flattened_for_jpeg_onto_the_background_or_white(render: Renderer) -> None:
    clear = encoded(Image.new("RGBA", (80, 80), (0, 0, 255, 0)))
    assert near(colour(render.one(clear, "40", RenderOptions(format=JPEG)), 0.5, 0.5), (255, 255, 255))
    assert near(colour(render.one(clear, "40", RenderOptions(format=JPEG, background=RED)), 0.5, 0.5), (255, 0, 0))
    grey = encoded(Image.new("LA", (80, 80), (10, 0)))
    assert near(colour(render.one(grey, "40", RenderOptions(format=JPEG, background=RED)), 0.5, 0.5), (255, 0, 0))


@pytest.mark.parametrize("image_format", [JPEG, WEBP, AVIF])
def test_quality_is_heard(render: Renderer, image_format: ImageFormat) -> None:
    sizes = []
    for quality in (30, 60, 90):
        (made,) = render(images.jpeg(), "200", RenderOptions(format=image_format, quality=quality)).renditions
        assert isinstance(made, Rendition)
        sizes.append(made.size_bytes)
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("image_format", [None, JPEG, PNG, WEBP, AVIF])
@pytest.mark.parametrize("name", ["jpeg with metadata", "png with metadata", "gif with metadata", "avif with metadata"])
def test_no_metadata_comes_along(render: Renderer, name: str, image_format: ImageFormat | None) -> None:
    assert images.SECRET in images.image(name)
    (rendition,) = render(images.image(name), "40", RenderOptions(format=image_format)).renditions
    assert isinstance(rendition, Rendition)
    assert images.SECRET not in rendition.path.read_bytes()
    made = opened(rendition)
    assert not dict(made.getexif())
    assert not {"icc_profile", "exif", "xmp", "XML:com.adobe.xmp", "comment"} & made.info.keys()


# --- fit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fit", "size", "made"),
    [
        (Fit.INSIDE, "100x100", (100, 75)),
        (Fit.INSIDE, "1000x1000", (320, 240)),
        (Fit.COVER, "100x100", (100, 100)),
        (Fit.COVER, "1000x500", (320, 160)),
        (Fit.CONTAIN, "100x100", (100, 100)),
        (Fit.CONTAIN, "1000x500", (1000, 500)),
        (Fit.CONTAIN, "100", (100, 75)),
    ],
)
def test_sizes_come_out_as_the_fit_says(render: Renderer, fit: Fit, size: str, made: tuple[int, int]) -> None:
    assert render.one(images.jpeg(320, 240), size, RenderOptions(fit=fit)).size == made


@pytest.mark.parametrize(
    ("gravity", "size", "left_and_right"),
    [
        (Gravity.WEST, "60x120", (0, 0)),
        (Gravity.EAST, "60x120", (1, 1)),
        (Gravity.CENTRE, "60x120", (0, 1)),
        (Gravity.NORTH, "160x40", (0, 1)),
        (Gravity.SOUTH, "160x40", (2, 3)),
    ],
)
def test_cover_keeps_the_side_that_gravity_names(
    render: Renderer, gravity: Gravity, size: str, left_and_right: tuple[int, int]
) -> None:
    whole = images.quadrants(320, 240)
    corners = [colour(whole, x, y) for y in (0.1, 0.9) for x in (0.1, 0.9)]
    made = render.one(encoded(whole), size, RenderOptions(fit=Fit.COVER, gravity=gravity))
    assert near(colour(made, 0.1, 0.3), corners[left_and_right[0]])
    assert near(colour(made, 0.9, 0.3), corners[left_and_right[1]])


def test_attention_keeps_what_the_eye_goes_to(render: Renderer) -> None:
    field = Image.new("RGB", (600, 150), (90, 100, 95))
    ImageDraw.Draw(field).ellipse((480, 40, 550, 110), fill=(250, 60, 40), outline=(255, 255, 0), width=6)
    source = encoded(field)

    def redness(gravity: Gravity) -> float:
        made = render.one(source, "75x75", RenderOptions(fit=Fit.COVER, gravity=gravity))
        assert made.size == (75, 75)
        return ImageStat.Stat(made.convert("RGB")).mean[0]

    assert redness(Gravity.ATTENTION) > redness(Gravity.CENTRE) + 20


@pytest.mark.parametrize(
    ("source", "options", "border"),
    [
        ("png", RenderOptions(fit=Fit.CONTAIN), (0, 0, 0, 0)),
        ("png", RenderOptions(fit=Fit.CONTAIN, background=RED), (255, 0, 0, 255)),
        ("rgba png", RenderOptions(fit=Fit.CONTAIN, background=RED), (255, 0, 0, 255)),
        ("grey png", RenderOptions(fit=Fit.CONTAIN), (0, 0, 0, 0)),
        ("grey png", RenderOptions(fit=Fit.CONTAIN, background=RED), (255, 0, 0, 255)),
        ("jpeg", RenderOptions(fit=Fit.CONTAIN), (255, 255, 255, 255)),
        ("grey jpeg", RenderOptions(fit=Fit.CONTAIN, background=RED), (255, 0, 0, 255)),
        ("jpeg", RenderOptions(fit=Fit.CONTAIN, format=WEBP), (0, 0, 0, 0)),
        ("jpeg", RenderOptions(fit=Fit.CONTAIN, format=AVIF), (0, 0, 0, 0)),
        ("gif", RenderOptions(fit=Fit.CONTAIN), (0, 0, 0, 0)),
    ],
)
def test_contain_pads_around_the_middle(
    render: Renderer, source: str, options: RenderOptions, border: tuple[int, int, int, int]
) -> None:
    made = render.one(images.image(source), "50x100", options)
    assert made.size == (50, 100)
    alpha = border[3]
    for y in (0.0, 0.1, 0.9, 1.0):
        seen = colour(made, 0.5, y)
        assert seen[3] == alpha
        assert not alpha or near(seen, border)
    expected = as_seen(images.image(source))
    if options.background:
        ground = Image.new("RGBA", expected.size, str(options.background))
        expected = Image.alpha_composite(ground, expected.convert("RGBA"))
    inner = made.convert("RGBA").crop((0, 32, 50, 69))
    assert difference(inner, expected.resize(inner.size, Image.Resampling.LANCZOS)) < 12


# --- animations ----------------------------------------------------------------------------------------------------

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))
DELAYS = [60, 120, 240, 480]


def slides(image_format: str, **options: object) -> bytes:
    """Four plain frames, each a colour of its own, so that one that runs into another shows."""
    frames = [Image.new("RGB", (160, 120), colour) for colour in COLOURS]
    return encoded(frames[0], image_format, save_all=True, append_images=frames[1:], duration=DELAYS, loop=2, **options)


@pytest.mark.parametrize(
    ("source", "options", "size", "made"),
    [
        ("GIF", RenderOptions(), "40", (40, 30)),
        ("GIF", RenderOptions(format=WEBP), "40", (40, 30)),
        ("WEBP", RenderOptions(), "40", (40, 30)),
        ("GIF", RenderOptions(fit=Fit.COVER, gravity=Gravity.SOUTH), "40x10", (40, 10)),
        ("GIF", RenderOptions(fit=Fit.COVER, gravity=Gravity.ATTENTION), "40x10", (40, 10)),
        ("WEBP", RenderOptions(fit=Fit.COVER), "20x40", (20, 40)),
        ("GIF", RenderOptions(), "1000", (160, 120)),
    ],
)
def test_animations_keep_frames_timing_and_edges(
    render: Renderer, source: str, options: RenderOptions, size: str, made: tuple[int, int]
) -> None:
    original = slides(source, **({"lossless": True} if source == "WEBP" else {}))
    animation = render.one(original, size, options)
    assert animation.size == made
    assert animation.n_frames == 4  # type: ignore[attr-defined]
    # A GIF's number counts the repetitions after the first showing, a WebP's the showings.
    showings = 3 if source == "GIF" else 2
    assert animation.info["loop"] + (animation.format == "GIF") == showings
    for index, (plain, delay) in enumerate(zip(COLOURS, DELAYS, strict=True)):
        animation.seek(index)
        animation.load()
        assert animation.info["duration"] == delay
        for y in (0.0, 0.5, 1.0):
            assert near(colour(animation, 0.5, y), plain)


@pytest.mark.parametrize(("source", "format_"), [("GIF", None), ("GIF", WEBP), ("WEBP", None)])
def test_animations_are_padded_frame_by_frame(render: Renderer, source: str, format_: ImageFormat | None) -> None:
    animation = render.one(slides(source), "40x60", RenderOptions(fit=Fit.CONTAIN, background=RED, format=format_))
    for index in range(4):
        animation.seek(index)
        assert animation.size == (40, 60)
        assert near(colour(animation, 0.5, 0.1), (255, 0, 0))
        assert near(colour(animation, 0.5, 0.5), COLOURS[index])
        assert near(colour(animation, 0.5, 0.9), (255, 0, 0))


@pytest.mark.parametrize("image_format", [JPEG, PNG, AVIF])
@pytest.mark.parametrize("source", ["GIF", "WEBP"])
def test_other_formats_take_the_first_frame(render: Renderer, source: str, image_format: ImageFormat) -> None:
    made = render.one(slides(source), "40", RenderOptions(format=image_format))
    assert getattr(made, "n_frames", 1) == 1
    assert near(colour(made, 0.5, 0.5), COLOURS[0])


def test_many_sizes_of_an_animation_come_from_one_another(render: Renderer) -> None:
    result = render(slides("GIF"), "160,80,40,20x20", RenderOptions(fit=Fit.COVER), placeholder=True)
    assert [opened(rendition).n_frames for rendition in result.renditions] == [4, 4, 4, 4]  # type: ignore[attr-defined]
    assert result.placeholder
    assert result.placeholder.dominant_color == "#ff0000"


# --- the placeholder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["jpeg", "grey jpeg", "rgba png", "jpeg with metadata", "animated gif", "16-bit rgb png"]
)
def test_the_placeholder_is_that_of_the_small_picture(render: Renderer, name: str) -> None:
    source = images.image(name)
    alone = render(source, placeholder=True)
    beside = render(source, "100,60,10x10", RenderOptions(fit=Fit.COVER), placeholder=True)
    small = as_seen(source)
    small.thumbnail((48, 48), Image.Resampling.LANCZOS)
    expected = placeholder(*small.size, small.tobytes())
    assert alone.renditions == ()
    for made in (alone.placeholder, beside.placeholder):
        assert made
        assert made.thumbhash[:4] == expected.thumbhash[:4] or name == "rgba png"
        assert near(tuple(bytes.fromhex(made.dominant_color[1:])), tuple(bytes.fromhex(expected.dominant_color[1:])))


def test_no_placeholder_unless_asked(render: Renderer) -> None:
    assert render(images.jpeg(), "40").placeholder is None


# --- damage --------------------------------------------------------------------------------------------------------


def garbled(source: bytes, at: float = 0.5) -> bytes:
    start = int(len(source) * at)
    return source[:start] + random.Random(2).randbytes(100) + source[start + 100 :]


# By the kind of image. Damage within a WebP goes unseen: it has no checksum, and everything decodes to something.
TRUNCATED = {
    "jpeg": 400, "progressive jpeg": 400, "png": 400, "interlaced png": 400, "webp": 400, "lossless webp": 400,
    "gif": 400, "animated gif": 5000, "animated webp": 400, "avif": 400,
}  # fmt: skip
GARBLED = {
    "jpeg with restarts": 0.5, "progressive jpeg": 0.5, "png": 0.5, "interlaced png": 0.5, "gif": 0.5,
    "animated gif": 0.8, "avif": 0.5,
}  # fmt: skip
DAMAGED = [
    *(pytest.param(kind, images.image(kind)[:-cut], id=f"truncated {kind}") for kind, cut in TRUNCATED.items()),
    *(pytest.param(kind, garbled(images.image(kind), at), id=f"garbled {kind}") for kind, at in GARBLED.items()),
]


@pytest.mark.parametrize(("kind", "source"), DAMAGED)
@pytest.mark.parametrize("size", ["10", "10x1"])
def test_damaged_pixels_are_found_and_nothing_stays(render: Renderer, kind: str, source: bytes, size: str) -> None:
    options = RenderOptions(fit=Fit.COVER, gravity=Gravity.NORTH)
    with pytest.raises(CorruptImage, match=r"damaged or cut off|breaks off"):
        render(source, f"40,{size}", options, placeholder=True, info=info_of(images.image(kind)))
    assert [path.name for path in render.directory.iterdir()] == ["source"]


@pytest.mark.parametrize("marker", [b"\xff\xc0", b"\xff\xda"])
def test_stray_bytes_between_a_jpeg_s_headers_do_no_harm(render: Renderer, marker: bytes) -> None:
    source = images.jpeg()
    odd = source.replace(marker, bytes(7) + marker, 1)
    intact, made = render.one(source, "80", RenderOptions(format=PNG)), render.one(odd, "80", RenderOptions(format=PNG))
    assert difference(intact, made) == 0


def test_a_png_with_the_known_incorrect_profile_passes(render: Renderer) -> None:
    profile = bytearray(images.icc_profile())
    profile[84:100] = bytes(16)
    source = encoded(images.picture(), icc_profile=bytes(profile))
    assert render.one(source, "80").size == (80, 60)


def test_more_pixels_than_the_header_said_are_refused(render: Renderer) -> None:
    with pytest.raises(CorruptImage, match="sees 320x240 pixels"):
        render(images.jpeg(320, 240), "40", info=ImageInfo(JPEG, 320, 200))
    with pytest.raises(CorruptImage, match="sees 160x480 pixels"):
        render(slides("GIF"), "40", info=ImageInfo(GIF, 160, 120, frames=2))


def test_bytes_of_another_format_are_refused(render: Renderer) -> None:
    with pytest.raises(CorruptImage):
        render(images.png(320, 240), "40", info=ImageInfo(JPEG, 320, 240))


BLOCKED = """
import sys, pyvips
import smart_assets.imaging.render
for path in sys.argv[1:]:
    try:
        pyvips.Image.new_from_file(path).avg()
        print(path.rsplit(".", 1)[1], "read")
    except pyvips.Error as error:
        print(path.rsplit(".", 1)[1], "refused")
"""


def test_libvips_reads_nothing_but_the_five(tmp_path: Path) -> None:
    for suffix in ("tiff", "bmp", "ppm", "jpeg", "png", "webp", "gif", "avif"):
        images.picture().save(tmp_path / f"image.{suffix}")
    (tmp_path / "image.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    (tmp_path / "image.csv").write_text("1,2\n3,4\n")
    paths = sorted(str(path) for path in tmp_path.iterdir())
    said = subprocess.run([sys.executable, "-c", BLOCKED, *paths], capture_output=True, text=True, check=True).stdout
    assert {*said.splitlines()} == {
        *("avif read", "gif read", "jpeg read", "png read", "webp read"),
        *("bmp refused", "csv refused", "ppm refused", "svg refused", "tiff refused"),
    }


# --- what the caller gets ------------------------------------------------------------------------------------------


def test_renditions_stand_in_the_order_asked_in_files_of_their_own(render: Renderer) -> None:
    source = images.jpeg()
    first, second = render(source, "20,300,x60"), render(source, "20")
    made = [*first.renditions, *second.renditions]
    assert [str(rendition.size) for rendition in made] == ["20", "300", "x60", "20"]
    assert [opened(rendition).width for rendition in made] == [20, 300, 80, 20]
    paths = {rendition.path for rendition in made if isinstance(rendition, Rendition)}
    assert {*render.directory.iterdir()} == {*paths, render.directory / "source"}
    assert len(paths) == 4
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}
    assert (render.directory / "source").read_bytes() == source


def test_one_size_that_cannot_be_encoded_does_not_fail_the_others(render: Renderer) -> None:
    tall = images.png(2, 20_000)
    result = render(tall, "2,x100", RenderOptions(format=WEBP))
    failed, made = result.renditions
    assert isinstance(failed, RenditionFailure)
    assert isinstance(failed.error, TooManyPixels)
    assert failed.error.detail == "2 comes to 2x20000, and WebP takes at most 16383 pixels a side"
    assert opened(made).size == (1, 100)
    assert {*render.directory.iterdir()} == {made.path, render.directory / "source"}  # type: ignore[union-attr]
