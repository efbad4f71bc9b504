"""Sizes: the grammar, what each comes to, and names."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_assets.errors import ConfigurationError, InvalidParameter
from smart_assets.formats import ImageFormat
from smart_assets.imaging.info import ImageInfo
from smart_assets.imaging.sizes import (
    MAX_SIDE,
    Background,
    Fit,
    Geometry,
    Gravity,
    RenderOptions,
    Size,
    check_presets,
    keeps_animation,
    output_format,
    parse_background,
    parse_sizes,
    target_geometry,
    variant_name,
)

PRESETS = {"thumbnail": ("150x150",), "social": ("1200x630", "1200x1200"), "empty-looking": (" 10 ", "x20")}

side = st.integers(1, MAX_SIDE)
source_side = st.one_of(st.integers(1, 20), st.integers(1, 65_535))
box = st.builds(Size, side, side)
size = st.one_of(box, st.builds(Size, side, st.none()), st.builds(Size, st.none(), side))
background = st.none() | st.builds(Background, *[st.integers(0, 255)] * 3)
options = st.builds(
    RenderOptions,
    fit=st.sampled_from(Fit),
    gravity=st.sampled_from(Gravity),
    background=background,
    format=st.none() | st.sampled_from(ImageFormat),
    quality=st.integers(1, 100),
)


def labels(*values: str, most: int = 20) -> list[str]:
    return [str(size) for size in parse_sizes(values, PRESETS, most)]


def refusal(*values: str, most: int = 20) -> str:
    with pytest.raises(InvalidParameter) as caught:
        parse_sizes(values, PRESETS, most)
    (error,) = caught.value.errors
    assert error.loc == ("query", "sizes")
    return error.message


def test_sizes_are_boxes_widths_heights_and_presets() -> None:
    assert labels("1200x627,800,x600,social") == ["1200x627", "800", "x600", "1200x630", "1200x1200"]


def test_values_repeat_and_white_space_around_items_does_not_matter() -> None:
    assert labels(" 800 ,\tx600", "thumbnail") == ["800", "x600", "150x150"]


def test_duplicates_merge_after_presets_expand_and_the_first_keeps_its_place() -> None:
    assert labels("1200x1200,800,social,800", "social") == ["1200x1200", "800", "1200x630"]


@pytest.mark.parametrize("values", [(), ("",), ("  ",), ("", "")])
def test_an_empty_value_asks_for_no_sizes(values: tuple[str, ...]) -> None:
    assert labels(*values) == []


@pytest.mark.parametrize(
    "item",
    ["x", "0", "0x5", "5x0", "8193", "8193x1", "1x8193", "x8193", "0800", "+800", "-1", "8e2", "800.0", "800x",
     "800X600", "800\u00d7600", "\u0668\u0660\u0660", "\uff18\uff10\uff10", "80 0",
     "1x2x3", "thumb", "Thumbnail", "800;600", "\x00", "9" * 5000],
)  # fmt: skip
def test_anything_else_is_refused_by_name(item: str) -> None:
    message = refusal(f"800,{item}")
    assert repr(item)[1:20] in message
    assert len(message) < 250


def test_an_empty_item_is_refused() -> None:
    for value in ("800,", ",800", "800,,600", ","):
        assert "''" in refusal(value)


def test_a_side_too_long_is_told_the_limit() -> None:
    assert "the side 9000 is not a plain number from 1 to 8192" in refusal("9000x100")


def test_an_unknown_word_is_told_the_presets() -> None:
    assert "empty-looking, social, thumbnail" in refusal("tumbnail")


def test_too_many_sizes_are_told_the_limit_and_duplicates_do_not_count() -> None:
    assert len(labels("1,2,3,3,2,1", most=3)) == 3
    assert refusal("1,2,3,4", most=3) == "more than 3 sizes; '4' is one too many"
    assert "more than 1 sizes" in refusal("social", most=1)


@given(size)
def test_a_label_reads_back_as_its_size(size: Size) -> None:
    assert parse_sizes([str(size)], {}, 1) == (size,)


@settings(max_examples=200)
@given(st.text("0123456789x, ٣abc", max_size=12))
def test_whatever_is_asked_for_is_sizes_within_bounds_or_refused(text: str) -> None:
    try:
        sizes = parse_sizes([text], PRESETS, 20)
    except InvalidParameter:
        return
    for size in sizes:
        assert all(1 <= side <= MAX_SIDE for side in (size.width, size.height) if side is not None)
        assert size.width or size.height


def test_presets_of_sizes_pass() -> None:
    check_presets(PRESETS)


@pytest.mark.parametrize(
    ("presets", "said"),
    [
        ({"800": ("10",)}, "'800' cannot name a preset"),
        ({"x600": ("10",)}, "'x600' cannot name a preset"),
        ({"a,b": ("10",)}, "'a,b' cannot name a preset"),
        ({"": ("10",)}, "'' cannot name a preset"),
        ({"none": ()}, "'none' has no sizes"),
        ({"wide": ("800", "9000")}, "'wide': in '9000' the side 9000"),
        ({"wide": ("800",), "nested": ("wide",)}, "'nested': 'wide' is neither"),
    ],
)
def test_presets_nobody_could_use_are_refused_at_start(presets: dict[str, tuple[str, ...]], said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^ASSETS_PRESETS: {said}"):
        check_presets(presets)


def test_backgrounds_are_colours_or_transparent() -> None:
    assert parse_background("#fF8000") == Background(255, 128, 0)
    assert str(Background(255, 128, 0)) == "#ff8000"
    assert parse_background("transparent") is None


@pytest.mark.parametrize("text", ["", "ff8000", "#fff", "#ff80000", "#gg0000", "red", "#ff8000 ", "#١٢٣٤٥٦"])
def test_other_backgrounds_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="background: "):
        parse_background(text)


@pytest.mark.parametrize(
    ("label", "options", "name"),
    [
        ("1200x627", RenderOptions(), "1200x627"),
        ("x600", RenderOptions(), "x600"),
        ("1200x627", RenderOptions(fit=Fit.COVER), "1200x627-cover"),
        ("1200x627", RenderOptions(fit=Fit.COVER, gravity=Gravity.NORTH), "1200x627-cover-north"),
        ("1200x627", RenderOptions(gravity=Gravity.NORTH), "1200x627"),
        ("800", RenderOptions(fit=Fit.COVER, gravity=Gravity.NORTH), "800"),
        ("800", RenderOptions(quality=60), "800-q60"),
        ("800", RenderOptions(quality=60, format=ImageFormat.PNG), "800"),
        ("800", RenderOptions(quality=60, format=ImageFormat.WEBP), "800-q60"),
        ("60x50", RenderOptions(fit=Fit.CONTAIN), "60x50-contain"),
        ("60x50", RenderOptions(fit=Fit.CONTAIN, background=Background(255, 0, 0)), "60x50-contain-ff0000"),
        ("60x50", RenderOptions(background=Background(255, 0, 0)), "60x50-ff0000"),
        ("800", RenderOptions(background=Background(255, 0, 0), format=ImageFormat.JPEG), "800-ff0000"),
        ("800", RenderOptions(background=Background(255, 0, 0), format=ImageFormat.WEBP), "800-ff0000"),
    ],
)
def test_a_variant_is_named_for_its_size_and_what_differs(label: str, options: RenderOptions, name: str) -> None:
    assert variant_name(parse_sizes([label], {}, 1)[0], options) == name


@given(size, options)
def test_names_fit_into_keys(size: Size, options: RenderOptions) -> None:
    assert re.fullmatch("[0-9a-z-]{1,64}", variant_name(size, options), re.ASCII)


def pixels_depend_on(size: Size, options: RenderOptions) -> tuple[object, ...]:
    """What can change the pixels of a source of any kind, said the long way round."""
    boxed = size.width is not None and size.height is not None
    fit = options.fit if boxed else Fit.INSIDE
    return (
        size,
        fit,
        options.gravity if fit is Fit.COVER else None,
        options.background,
        None if options.format in {ImageFormat.PNG, ImageFormat.GIF} else options.quality,
    )


@settings(max_examples=300)
@given(st.data())
def test_names_differ_exactly_where_pixels_can(data: st.DataObject) -> None:
    few_sizes = st.sampled_from([Size(60, 50), Size(60, None), Size(None, 60), Size(605, None)])
    one_size, other_size = data.draw(few_sizes), data.draw(few_sizes)
    one = data.draw(options)
    other = data.draw(st.builds(
        RenderOptions,
        fit=st.sampled_from([one.fit, Fit.COVER, Fit.CONTAIN]),
        gravity=st.sampled_from([one.gravity, Gravity.EAST]),
        background=st.sampled_from([one.background, None, Background(0x60, 0x60, 0x60)]),
        format=st.just(one.format),
        quality=st.sampled_from([one.quality, 80, 60]),
    ))  # fmt: skip
    same = pixels_depend_on(one_size, one) == pixels_depend_on(other_size, other)
    assert (variant_name(one_size, one) == variant_name(other_size, other)) == same


@pytest.mark.parametrize(
    ("source", "label", "fit", "geometry"),
    [
        ((2725, 2225), "1200x627", Fit.INSIDE, Geometry((768, 627), (768, 627), (768, 627))),
        ((2725, 2225), "1200x627", Fit.COVER, Geometry((1200, 980), (1200, 627), (1200, 627))),
        ((2725, 2225), "1200x627", Fit.CONTAIN, Geometry((768, 627), (768, 627), (1200, 627))),
        ((500, 500), "1200x627", Fit.INSIDE, Geometry((500, 500), (500, 500), (500, 500))),
        ((500, 500), "1200x627", Fit.COVER, Geometry((500, 500), (500, 261), (500, 261))),
        ((500, 500), "1200x627", Fit.CONTAIN, Geometry((500, 500), (500, 500), (1200, 627))),
        ((500, 500), "800", Fit.COVER, Geometry((500, 500), (500, 500), (500, 500))),
        ((1000, 500), "x100", Fit.CONTAIN, Geometry((200, 100), (200, 100), (200, 100))),
        ((1000, 500), "100", Fit.INSIDE, Geometry((100, 50), (100, 50), (100, 50))),
        ((1, 3000), "100x100", Fit.INSIDE, Geometry((1, 100), (1, 100), (1, 100))),
        ((3000, 1), "100x100", Fit.COVER, Geometry((3000, 1), (1, 1), (1, 1))),
    ],
)
def test_what_sizes_come_to(source: tuple[int, int], label: str, fit: Fit, geometry: Geometry) -> None:
    assert target_geometry(*source, parse_sizes([label], {}, 1)[0], fit) == geometry


@settings(max_examples=500)
@given(source_side, source_side, size, st.sampled_from(Fit))
def test_nothing_is_enlarged_and_no_side_vanishes(width: int, height: int, size: Size, fit: Fit) -> None:
    geometry = target_geometry(width, height, size, fit)
    for (inner_width, inner_height), (outer_width, outer_height) in (
        (geometry.resize, (width, height)),
        (geometry.crop, geometry.resize),
        (geometry.crop, geometry.canvas),
    ):
        assert 1 <= inner_width <= outer_width
        assert 1 <= inner_height <= outer_height


@settings(max_examples=500)
@given(source_side, source_side, size, st.sampled_from(Fit))
def test_the_canvas_is_never_larger_than_the_box(width: int, height: int, size: Size, fit: Fit) -> None:
    canvas_width, canvas_height = target_geometry(width, height, size, fit).canvas
    assert canvas_width <= (size.width or width)
    assert canvas_height <= (size.height or height)


@settings(max_examples=500)
@given(source_side, source_side, size, st.sampled_from(Fit))
def test_resizing_keeps_the_ratio_to_the_pixel(width: int, height: int, size: Size, fit: Fit) -> None:
    resized_width, resized_height = target_geometry(width, height, size, fit).resize
    for given_, other, source_given, source_other in (
        (resized_width, resized_height, width, height),
        (resized_height, resized_width, height, width),
    ):
        exact = Fraction(given_ * source_other, source_given)
        if other == max(1, int(exact + Fraction(1, 2))):
            return
    pytest.fail(f"{resized_width}x{resized_height} is not {width}x{height} made smaller")


@settings(max_examples=300)
@given(source_side, source_side, box)
def test_inside_is_as_large_as_the_box_or_the_source_allows(width: int, height: int, size: Size) -> None:
    made = target_geometry(width, height, size, Fit.INSIDE).canvas
    assert made[0] == min(size.width or 0, width) or made[1] == min(size.height or 0, height)


@settings(max_examples=300)
@given(source_side, source_side, box)
def test_cover_fills_the_box_or_has_its_ratio(width: int, height: int, size: Size) -> None:
    box_width, box_height = size.width or 0, size.height or 0
    made = target_geometry(width, height, size, Fit.COVER).canvas
    if box_width <= width and box_height <= height:
        assert made == (box_width, box_height)
    else:
        assert made[0] == width or made[1] == height
        shrunk = max(Fraction(box_width, width), Fraction(box_height, height))
        assert abs(made[0] - box_width / shrunk) <= 1
        assert abs(made[1] - box_height / shrunk) <= 1


def test_renditions_have_the_source_s_format_unless_told_otherwise() -> None:
    info = ImageInfo(ImageFormat.GIF, 10, 10)
    assert output_format(info, RenderOptions()) is ImageFormat.GIF
    assert output_format(info, RenderOptions(format=ImageFormat.AVIF)) is ImageFormat.AVIF


@pytest.mark.parametrize(
    ("source", "frames", "asked", "moves"),
    [
        (ImageFormat.GIF, 5, None, True),
        (ImageFormat.GIF, 5, ImageFormat.WEBP, True),
        (ImageFormat.WEBP, 5, None, True),
        (ImageFormat.WEBP, 5, ImageFormat.WEBP, True),
        (ImageFormat.GIF, 1, None, False),
        (ImageFormat.GIF, 5, ImageFormat.PNG, False),
        (ImageFormat.WEBP, 5, ImageFormat.AVIF, False),
        (ImageFormat.PNG, 5, ImageFormat.WEBP, False),
    ],
)
def test_animations_stay_animated_where_both_formats_can(
    source: ImageFormat, frames: int, asked: ImageFormat | None, *, moves: bool
) -> None:
    assert keeps_animation(ImageInfo(source, 10, 10, frames=frames), RenderOptions(format=asked)) is moves
