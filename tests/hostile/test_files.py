"""Files made to do harm, through the real API: refused in the one shape, or the right asset; nothing is left over."""

from __future__ import annotations

import io
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from smart_assets.observability import RENDER_MEMORY, UPLOAD_STAGE_SECONDS
from tests import images
from tests.conftest import Service, StartService, problem_of
from tests.hostile import anatomy, corpus
from tests.hostile.counting import tried

NOTHING: dict[str, str] = {}
SIZED = {"sizes": "32x32,16x16", "format": "jpeg"}
QUERIES = pytest.mark.parametrize("query", [NOTHING, SIZED], ids=["as it is", "with sizes"])

REFUSALS = {
    (415, "unsupported_image"),
    (422, "corrupt_image"),
    (422, "too_many_pixels"),
    (422, "invalid_parameter"),
}

SMALL: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: images.jpeg(24, 16, quality=30),
    "progressive jpeg": lambda: images.jpeg(24, 16, quality=30, progressive=True, metadata=True, icc=True),
    "png": lambda: images.png(8, 6, metadata=True, icc=True),
    "palette png": lambda: images.palette_png(8, 6),
    "apng": lambda: images.apng(8, 6),
    "gif": lambda: images.gif(8, 6, metadata=True),
    "animated gif": lambda: images.animated_gif(8, 6),
    "webp": lambda: images.webp(8, 6),
    "lossless webp": lambda: images.webp(7, 5, lossless=True),
    "webp with metadata": lambda: images.webp(8, 6, mode="RGBA", metadata=True, icc=True),
    "animated webp": lambda: images.animated_webp(8, 6),
    "avif": lambda: images.avif(16, 12),
    "avif with metadata": lambda: images.avif(16, 12, mode="RGBA", metadata=True, icc=True),
    "animated avif": lambda: images.animated_avif(16, 12),
    "grid avif": lambda: images.grid_avif(128, 64),
}


@pytest.fixture
async def serves_on(service: Service) -> AsyncIterator[Service]:
    """Afterwards the next image is taken, and nothing is held on to for those before."""
    yield service
    assert RENDER_MEMORY._value.get() == 0
    assert not service.temporary_files()
    asset = await service.uploaded(images.image("jpeg"), sizes="32")
    assert (await service.client.get(asset["variants"][0]["url"])).status_code == 200


def rendered() -> float:
    """How many images' sizes were begun to be made."""
    samples = (sample for metric in UPLOAD_STAGE_SECONDS.collect() for sample in metric.samples)
    return sum(
        sample.value for sample in samples if sample.name.endswith("_count") and sample.labels["stage"] == "render"
    )


async def is_right_or_refused(service: Service, answer: httpx.Response, content: bytes) -> bool:
    """Whether it was taken; the asset is then what it says, and is removed again."""
    if answer.status_code != 201:
        problem = answer.json()
        assert (answer.status_code, problem["code"]) in REFUSALS, problem
        problem_of(answer, answer.status_code, problem["code"])
        assert await service.leaves_nothing()
        return False
    asset = answer.json()
    assert asset["size_bytes"] == len(content)
    assert (await service.client.get(asset["url"])).content == content
    for variant in asset["variants"]:
        made = await service.client.get(variant["url"])
        with Image.open(io.BytesIO(made.content)) as opened:
            opened.load()
            assert opened.size == (variant["width"], variant["height"])
            assert max(opened.size) <= 32
    assert (await service.client.delete(f"/api/v1/assets/{asset['id']}")).status_code == 204
    assert await service.leaves_nothing()
    return True


# ── What is no image, or too much of one ────────────────────────────────────────────────────────────────────────────


@QUERIES
@pytest.mark.parametrize("bomb", corpus.BOMBS)
async def test_a_bomb_is_refused_before_anything_is_decoded(
    serves_on: Service, bomb: str, query: dict[str, str]
) -> None:
    before = rendered()
    with tried("decompression bombs"):
        answer = await serves_on.upload(corpus.BOMBS[bomb](), **query)
        problem_of(answer, 422, "too_many_pixels")
        assert rendered() == before
        assert await serves_on.leaves_nothing()


@QUERIES
@pytest.mark.parametrize("name", corpus.CORRUPT)
async def test_what_cannot_be_an_image_is_corrupt(serves_on: Service, name: str, query: dict[str, str]) -> None:
    before = rendered()
    with tried("files that lie about themselves"):
        problem_of(await serves_on.upload(corpus.CORRUPT[name](), **query), 422, "corrupt_image")
        assert rendered() == before
        assert await serves_on.leaves_nothing()


@pytest.mark.parametrize("name", corpus.NOT_TAKEN)
async def test_other_formats_are_refused_by_name_whatever_they_call_themselves(service: Service, name: str) -> None:
    word, make = corpus.NOT_TAKEN[name]
    content = make()
    for filename, kind in (("photo.jpg", "image/jpeg"), ("a.svg", "image/svg+xml"), ("a", "application/octet-stream")):
        with tried("files that are no image we take"):
            form = {"file": (filename, content, kind)}
            problem = problem_of(await service.client.post("/api/v1/assets", files=form), 415, "unsupported_image")
            assert word in problem["detail"]
            raw = await service.client.post("/api/v1/assets", content=content, headers={"Content-Type": kind})
            assert word in problem_of(raw, 415, "unsupported_image")["detail"]
    assert await service.leaves_nothing()


@QUERIES
@pytest.mark.parametrize("name", corpus.ODD)
async def test_what_is_strange_is_taken_or_refused_for_what_it_is(
    serves_on: Service, name: str, query: dict[str, str]
) -> None:
    content = corpus.ODD[name]()
    for more in (NOTHING, {"strip_metadata": "true"}):
        with tried("strange images"):
            answer = await serves_on.upload(content, **query, **more)
            if more and answer.status_code == 201:
                asset = answer.json()
                assert asset["size_bytes"] <= len(content)
                await serves_on.client.delete(f"/api/v1/assets/{asset['id']}")
                assert await serves_on.leaves_nothing()
            else:
                await is_right_or_refused(serves_on, answer, content)


# ── What is an image, and something else ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("visibility", ["public", "private"])
@pytest.mark.parametrize("name", corpus.POLYGLOTS)
async def test_a_polyglot_is_delivered_as_an_image_and_nothing_else(
    service: Service, name: str, visibility: str
) -> None:
    make, payload = corpus.POLYGLOTS[name]
    content = make()
    assert payload in content
    with tried("polyglots"):
        for filename in ("evil.html", "evil.svg", "evil.php", "../../evil.js", "evil.jpg\r\nContent-Type: text/html"):
            form = {"file": (filename, content, "text/html")}
            query = {"visibility": visibility, **SIZED}
            answer = await service.client.post("/api/v1/assets", params=query, files=form)
            assert answer.status_code == 201, answer.text
            asset = answer.json()
            assert asset["content_type"].startswith("image/")
            for url in (asset["url"], f"/api/v1/assets/{asset['id']}/content"):
                shown = await service.client.get(url)
                assert shown.content == content
                assert_is_shown_as_an_image_only(shown, asset["content_type"])
            assert asset["url"].partition("?")[0].endswith((".jpg", ".png", ".gif", ".webp", ".avif"))
            for variant in asset["variants"]:
                made = await service.client.get(variant["url"])
                assert payload not in made.content
                assert_is_shown_as_an_image_only(made, "image/jpeg")


def assert_is_shown_as_an_image_only(answer: httpx.Response, media_type: str) -> None:
    assert answer.status_code == 200
    assert answer.headers.get_list("content-type") == [media_type]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["content-disposition"].startswith("inline")
    assert "\r" not in answer.headers["content-disposition"]


@pytest.mark.parametrize("name", corpus.POLYGLOTS)
async def test_what_was_hidden_goes_with_the_metadata(service: Service, name: str) -> None:
    make, payload = corpus.POLYGLOTS[name]
    with tried("polyglots"):
        asset = await service.uploaded(make(), strip_metadata="true")
        content = (await service.client.get(asset["url"])).content
        assert payload not in content
        assert not zipfile.is_zipfile(io.BytesIO(content))


@pytest.mark.parametrize("name", ["jpeg", "png", "gif", "webp", "avif"])
async def test_the_bytes_decide_and_neither_name_nor_type(service: Service, name: str) -> None:
    content = images.image(name)
    for claimed in ("jpg", "png", "gif", "webp", "avif", "svg", "html", "exe", "heic"):
        with tried("names and types that lie"):
            form = {"file": (f"photo.{claimed}", content, f"image/{claimed}")}
            sent = await service.client.post("/api/v1/assets", files=form)
            assert (sent.status_code, sent.json()["content_type"]) == (201, f"image/{name}")
            headers = {"Content-Type": f"image/{claimed}"}
            sent = await service.client.post("/api/v1/assets", content=content, headers=headers)
            assert (sent.status_code, sent.json()["content_type"]) == (201, f"image/{name}")


# ── Cut, and lying ──────────────────────────────────────────────────────────────────────────────────────────────────


def cuts(image: bytes) -> Iterator[int]:
    """At every seam of it, and a byte before and after."""
    yield from sorted({at + by for at in anatomy.seams(image) for by in (-1, 0, 1) if 0 < at + by < len(image)})


@QUERIES
@pytest.mark.parametrize("name", SMALL)
async def test_a_file_cut_at_any_seam_is_refused(serves_on: Service, name: str, query: dict[str, str]) -> None:
    image = SMALL[name]()
    before, ends = rendered(), list(cuts(image))
    assert len(ends) >= 8
    for end in ends:
        with tried("files cut at a seam"):
            answer = await serves_on.upload(image[:end], **query)
            if end >= 44:  # below, the signature or the brands are cut, and it is no image at all
                problem_of(answer, 422, "corrupt_image")
            else:
                assert not await is_right_or_refused(serves_on, answer, image[:end])
    assert rendered() == before, "one was decoded"
    assert await serves_on.leaves_nothing()


def lies(image: bytes) -> Iterator[bytes]:
    """What it says of its parts' lengths, otherwise."""
    for part in anatomy.parts(image):
        if part.length_bytes:
            begin, end = part.length_at, part.length_at + part.length_bytes
            said, most = int.from_bytes(image[begin:end], part.order), 256**part.length_bytes - 1
            for lie in sorted({0, said - 1, said + 1, said // 2, most} - {said, -1}):
                yield image[:begin] + min(lie, most).to_bytes(part.length_bytes, part.order) + image[end:]


@QUERIES
@pytest.mark.parametrize("name", SMALL)
async def test_a_file_that_lies_about_its_lengths_is_refused_or_taken_as_it_is(
    serves_on: Service, name: str, query: dict[str, str]
) -> None:
    for lie in lies(SMALL[name]()):
        with tried("lengths that lie"):
            await is_right_or_refused(serves_on, await serves_on.upload(lie, **query), lie)


@pytest.mark.parametrize("name", ["png", "palette png", "apng"])
async def test_wrong_checksums_are_found_in_what_is_decoded(serves_on: Service, name: str) -> None:
    image = SMALL[name]()
    for part in anatomy.parts(image):
        if part.length_bytes:
            with tried("checksums that lie"):
                lie = image[: part.end - 1] + bytes([image[part.end - 1] ^ 1]) + image[part.end :]
                taken = await is_right_or_refused(serves_on, await serves_on.upload(lie, **SIZED), lie)
                if image[part.start + 4 : part.start + 8] in {b"IHDR", b"IDAT"}:
                    assert not taken


SIDES = {"jpeg": corpus.jpeg_sized, "png": corpus.png_sized, "webp": corpus.webp_sized, "avif": corpus.avif_sized}


@QUERIES
@pytest.mark.parametrize("name", SIDES)
async def test_sides_that_lie_are_refused_or_not_believed(serves_on: Service, name: str, query: dict[str, str]) -> None:
    true_width, true_height = Image.open(io.BytesIO(images.image(name))).size
    for width in (0, 1, true_width - 1, true_width + 1, 2048, 16_383, 65_535):
        for height in (0, 1, true_height - 1, true_height + 1, 2048, 16_383, 65_535):
            with tried("sides that lie"):
                lie = SIDES[name](width, height)
                taken = await is_right_or_refused(serves_on, await serves_on.upload(lie, **query), lie)
                if name == "webp":  # of which fourteen bits count
                    width, height = width & 0x3FFF, height & 0x3FFF
                assert not (taken and (width * height == 0 or width * height > 100_000_000))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])  # each input is deleted again
@given(
    name=st.sampled_from(sorted(SMALL)),
    edits=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 2), st.binary(max_size=8)), min_size=1, max_size=4
    ),
    query=st.sampled_from([NOTHING, SIZED, {"strip_metadata": "true"}, {"placeholder": "true"}]),
)
def test_damage_of_any_kind_is_an_answer(
    portal: tuple[Service, Callable[..., Any]], name: str, edits: list[tuple[float, int, bytes]], query: dict[str, str]
) -> None:
    damaged = bytearray(SMALL[name]())
    for where, removed, inserted in edits:
        at = int(where * len(damaged))
        damaged[at : at + removed] = inserted
    service, call = portal

    async def upload() -> None:
        answer = await service.upload(bytes(damaged), **query)
        if answer.status_code == 201:
            assert (await service.client.delete(f"/api/v1/assets/{answer.json()['id']}")).status_code == 204
        else:
            assert (answer.status_code, answer.json()["code"]) in REFUSALS
        assert await service.leaves_nothing()

    with tried("damaged images"):
        call(upload)


@pytest.fixture
def portal(start_service: StartService) -> Iterator[tuple[Service, Callable[..., Any]]]:
    """A service, and how to call it from a test that is no coroutine."""
    with start_blocking_portal() as blocking:
        running = blocking.wrap_async_context_manager(start_service())
        with running as service:
            yield service, blocking.call


async def test_the_anatomy_finds_every_byte_of_what_it_reads() -> None:
    for make in SMALL.values():
        image = make()
        seams = anatomy.seams(image)
        assert (seams[0], seams[-1]) == (0, len(image))
        assert len(seams) > 3
