"""Uploading over HTTP."""

import base64
import hashlib
import json
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from tests import images
from tests.conftest import Service, StartService, problem_of

HOLIDAY = images.jpeg(640, 480, seed=7)


def opened(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content))


async def fetched(service: Service, url: str) -> httpx.Response:
    return await service.client.get(url)


async def test_an_upload_is_described_and_can_be_fetched(service: Service) -> None:
    answer = await service.upload(HOLIDAY, filename="holiday photo.jpg", tags="trip,beach")
    assert answer.status_code == 201
    asset = answer.json()
    assert answer.headers["location"] == f"/api/v1/assets/{asset['id']}"
    assert asset["filename"] == "holiday photo.jpg"
    assert asset["content_type"] == "image/jpeg"
    assert (asset["width"], asset["height"]) == (640, 480)
    assert asset["size_bytes"] == len(HOLIDAY)
    assert asset["sha256"] == hashlib.sha256(HOLIDAY).hexdigest()
    assert (asset["storage"], asset["visibility"]) == ("local", "public")
    assert asset["tags"] == ["trip", "beach"]
    assert asset["variants"] == asset["failed"] == []
    assert asset["url_expires_at"] is asset["thumbhash"] is asset["credits_used"] is None
    assert asset["created_at"].endswith("Z")
    picture = await fetched(service, asset["url"])
    assert picture.content == HOLIDAY
    assert picture.headers["content-type"] == "image/jpeg"


async def test_sizes_are_made_stored_and_described(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, sizes="200x100,x60,thumbnail", format="webp")
    assert [variant["size"] for variant in asset["variants"]] == ["200x100", "x60", "150x150"]
    for variant, size in zip(asset["variants"], [(133, 100), (80, 60), (150, 113)], strict=True):
        picture = await fetched(service, variant["url"])
        assert picture.headers["content-type"] == variant["content_type"] == "image/webp"
        assert len(picture.content) == variant["size_bytes"]
        image = opened(picture.content)
        assert (image.format, image.size) == ("WEBP", size)
        assert (variant["width"], variant["height"]) == size
    assert asset["thumbhash"]
    assert asset["dominant_color"].startswith("#")
    assert len(service.stored_files()) == 4
    assert service.temporary_files() == []


async def test_cover_never_enlarges(service: Service) -> None:
    asset = await service.uploaded(images.png(500, 500), sizes="1200x627", fit="cover")
    assert (asset["variants"][0]["width"], asset["variants"][0]["height"]) == (500, 261)


async def test_orientation_is_applied_for_a_person(service: Service) -> None:
    asset = await service.uploaded(images.oriented(6, width=240, height=320), sizes="120")
    assert (asset["width"], asset["height"]) == (240, 320)
    assert (asset["variants"][0]["width"], asset["variants"][0]["height"]) == (120, 160)


async def test_raw_bytes_with_a_filename_and_a_digest(service: Service) -> None:
    digest = base64.b64encode(hashlib.sha256(HOLIDAY).digest()).decode()
    answer = await service.client.post(
        "/api/v1/assets",
        content=HOLIDAY,
        headers={
            "Content-Type": "image/png",  # wrong, and nobody minds: the bytes decide
            "Content-Disposition": "attachment; filename*=UTF-8''%E5%86%99%E7%9C%9F.jpg",
            "Content-Digest": f"sha-256=:{digest}:",
        },
    )
    assert answer.status_code == 201
    assert answer.json()["filename"] == "写真.jpg"
    assert answer.json()["content_type"] == "image/jpeg"


async def test_a_wrong_digest_keeps_nothing(service: Service) -> None:
    digest = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    answer = await service.client.post(
        "/api/v1/assets",
        content=HOLIDAY,
        headers={"Content-Type": "image/jpeg", "Content-Digest": f"sha-256=:{digest}:"},
    )
    problem_of(answer, 422, "digest_mismatch")
    assert await service.leaves_nothing()


async def test_a_data_url_with_metadata(service: Service) -> None:
    body = {
        "data_url": f"data:image/jpeg;base64,{base64.b64encode(HOLIDAY).decode()}",
        "filename": "a.jpg",
        "metadata": {"album": 7},
    }
    answer = await service.client.post("/api/v1/assets", json=body)
    assert answer.status_code == 201
    asset = answer.json()
    assert (asset["filename"], asset["metadata"], asset["size_bytes"]) == ("a.jpg", {"album": 7}, len(HOLIDAY))


async def test_metadata_may_stand_in_the_form(service: Service) -> None:
    answer = await service.client.post(
        "/api/v1/assets", files={"file": ("a.jpg", HOLIDAY)}, data={"metadata": json.dumps({"a": {"b": [1]}})}
    )
    assert answer.json()["metadata"] == {"a": {"b": [1]}}


async def test_direct_gives_the_bytes_back_and_keeps_nothing(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, storage="direct", sizes="64", format="png")
    assert asset["id"] is None
    assert base64.b64decode(asset["url"].removeprefix("data:image/jpeg;base64,")) == HOLIDAY
    variant = asset["variants"][0]
    assert opened(base64.b64decode(variant["url"].removeprefix("data:image/png;base64,"))).size == (64, 48)
    assert await service.leaves_nothing()


@pytest.mark.parametrize("visibility", ["public", "private"])
async def test_memory_serves_what_it_holds(service: Service, visibility: str) -> None:
    asset = await service.uploaded(HOLIDAY, storage="memory", visibility=visibility, sizes="64")
    assert (await fetched(service, asset["url"])).content == HOLIDAY
    assert (await fetched(service, asset["variants"][0]["url"])).status_code == 200
    assert service.stored_files() == []


async def test_memory_is_forgotten_at_a_restart_and_its_rows_with_it(start_service: StartService) -> None:
    async with start_service() as service:
        await service.uploaded(HOLIDAY, storage="memory")
        kept = await service.uploaded(HOLIDAY)
    async with start_service() as service:
        page = (await service.client.get("/api/v1/assets")).json()
        assert [asset["id"] for asset in page["items"]] == [kept["id"]]
        assert (await service.client.get("/api/v1/stats")).json()["count"] == 1


@pytest.mark.parametrize(
    ("query", "place"),
    [
        ({"sizes": "12by4"}, "sizes"),
        ({"sizes": "0x5"}, "sizes"),
        ({"sizes": "8193"}, "sizes"),
        ({"sizes": ",".join(str(width) for width in range(1, 22))}, "sizes"),
        ({"fit": "fill"}, "fit"),
        ({"gravity": "up"}, "gravity"),
        ({"background": "red"}, "background"),
        ({"format": "gif"}, "format"),
        ({"quality": "0"}, "quality"),
        ({"quality": "101"}, "quality"),
        ({"visibility": "secret"}, "visibility"),
        ({"atomic": "maybe"}, "atomic"),
        ({"tags": "x" * 65}, "tags"),
        ({"tags": ",".join(str(number) for number in range(51))}, "tags"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2090-01-01T00:00:00"}, "expires_at"),
        ({"expires_at": "9999-12-31T23:59:59-12:00"}, "expires_at"),
        ({"expires_at": "1900000000"}, "expires_at"),
        ({"storage": ""}, "storage"),
        ({"strange": "1"}, "strange"),
    ],
)
async def test_a_wrong_parameter_is_named_and_nothing_is_kept(
    service: Service, query: dict[str, str], place: str
) -> None:
    problem = problem_of(await service.upload(HOLIDAY, **query), 422, "invalid_parameter")
    assert problem["errors"][0]["loc"][:2] == ["query", place]
    assert await service.leaves_nothing()


@pytest.mark.parametrize("storage", ["s3", "cloudinary", "gcs", "azure", "nowhere"])
async def test_a_storage_that_is_not_there_is_said_before_the_body_is_read(service: Service, storage: str) -> None:
    problem = problem_of(await service.upload(HOLIDAY, storage=storage), 422, "storage_not_configured")
    assert storage in problem["detail"]


@pytest.mark.parametrize("seen", images.NOT_IMAGES)
async def test_what_is_no_image_is_called_by_its_name(service: Service, seen: str) -> None:
    problem = problem_of(await service.upload(images.NOT_IMAGES[seen], filename="photo.jpg"), 415, "unsupported_image")
    assert seen in problem["detail"]
    assert await service.leaves_nothing()


@pytest.mark.parametrize("query", [{}, {"sizes": "100"}, {"placeholder": "true"}, {"strip_metadata": "true"}])
async def test_half_an_image_is_refused_whole(service: Service, query: dict[str, str]) -> None:
    problem_of(await service.upload(HOLIDAY[: len(HOLIDAY) // 2], **query), 422, "corrupt_image")
    assert await service.leaves_nothing()


async def test_damaged_pixels_show_when_sizes_are_made(service: Service) -> None:
    damaged = bytearray(images.png(400, 300))
    middle = len(damaged) // 2
    damaged[middle : middle + 64] = bytes(64)
    problem_of(await service.upload(bytes(damaged), sizes="100"), 422, "corrupt_image")
    assert await service.leaves_nothing()
    asset = await service.uploaded(bytes(damaged), sizes="100,50", atomic="false")
    assert [(failed["size"], failed["code"]) for failed in asset["failed"]] == [
        ("100", "corrupt_image"),
        ("50", "corrupt_image"),
    ]
    assert asset["variants"] == []
    assert (await fetched(service, asset["url"])).content == bytes(damaged)


async def test_an_explicit_background_is_what_alpha_is_flattened_onto(service: Service) -> None:
    clear = BytesIO()
    Image.new("RGBA", (100, 100), (0, 0, 255, 0)).save(clear, "PNG")
    asset = await service.uploaded(clear.getvalue(), sizes="50", background="#00ff00")
    made = opened((await fetched(service, asset["variants"][0]["url"])).content)
    assert made.convert("RGBA").getpixel((25, 25)) == (0, 255, 0, 255)
    asset = await service.uploaded(clear.getvalue(), sizes="50")
    made = opened((await fetched(service, asset["variants"][0]["url"])).content)
    assert made.convert("RGBA").getpixel((25, 25))[3] == 0  # type: ignore[index]


async def test_a_failed_size_leaves_no_temporary_file_of_the_others(service: Service) -> None:
    answer = await service.upload(images.png(10, 20_000), sizes="10,5,4,x20000", format="webp")
    problem_of(answer, 422, "invalid_parameter")
    answer = await service.upload(images.png(10, 20_000), sizes="10,5,4", format="webp")
    problem_of(answer, 422, "too_many_pixels")
    assert await service.leaves_nothing()


async def test_what_direct_sends_back_is_bounded(start_service: StartService) -> None:
    async with start_service(direct={"max_bytes": len(HOLIDAY)}) as service:
        await service.uploaded(HOLIDAY, storage="direct")
        answer = await batch(service, HOLIDAY, HOLIDAY, storage="direct")
        problem_of(answer, 413, "body_too_large")


@pytest.mark.parametrize("film", [b"", bytes(3_000_000)])
async def test_metadata_is_stripped_and_what_is_stored_is_described(service: Service, film: bytes) -> None:
    original = images.jpeg(1200, 900, metadata=True, orientation=6) + film
    asset = await service.uploaded(original, strip_metadata="true")
    stored = (await fetched(service, asset["url"])).content
    assert asset["sha256"] == hashlib.sha256(stored).hexdigest() != hashlib.sha256(original).hexdigest()
    assert asset["size_bytes"] == len(stored) < len(original)
    assert images.SECRET not in stored
    assert dict(opened(stored).getexif()) == {0x0112: 6}
    assert opened(stored).tobytes() == opened(original).tobytes()
    assert service.temporary_files() == []


@pytest.mark.parametrize(
    ("settings", "content", "status", "code", "names"),
    [
        ({"max_upload_bytes": 1000}, HOLIDAY, 413, "body_too_large", "1000"),
        ({"max_pixels": 1000}, HOLIDAY, 422, "too_many_pixels", "1000"),
        ({"policy": {"formats": ["png", "webp"]}}, HOLIDAY, 415, "unsupported_image", "PNG"),
        ({"policy": {"min_bytes": 10**6}}, HOLIDAY, 422, "invalid_parameter", "1000000"),
        ({"policy": {"min_width": 641}}, HOLIDAY, 422, "invalid_parameter", "641"),
        ({"policy": {"min_height": 481}}, HOLIDAY, 422, "invalid_parameter", "481"),
        ({"policy": {"max_width": 639}}, HOLIDAY, 422, "too_many_pixels", "639"),
        ({"policy": {"max_height": 479}}, HOLIDAY, 422, "too_many_pixels", "479"),
        ({"policy": {"max_frames": 3}}, images.animated_gif(frames=4), 422, "too_many_pixels", "3"),
    ],
)
async def test_a_refusal_by_policy_names_the_limit(
    start_service: StartService, settings: dict[str, Any], content: bytes, status: int, code: str, names: str
) -> None:
    async with start_service(**settings) as service:
        problem = problem_of(await service.upload(content), status, code)
        assert names in problem["detail"].replace(",", "").replace("_", "")
        assert await service.leaves_nothing()


async def test_the_policy_limits_sizes_and_files(start_service: StartService) -> None:
    async with start_service(policy={"max_sizes_per_upload": 1, "max_files_per_batch": 2}) as service:
        problem_of(await service.upload(HOLIDAY, sizes="10,20"), 422, "invalid_parameter")
        files = [("files", (f"{number}.jpg", HOLIDAY)) for number in range(3)]
        problem_of(await service.client.post("/api/v1/assets/batch", files=files), 422, "invalid_parameter")
        assert await service.leaves_nothing()


@pytest.mark.parametrize(
    "filename",
    [
        "日本語/写真.png",
        "..\\..\\evil.jpg",
        "../../etc/passwd",
        "CON",
        "a" * 300,
        "x\r\nSet-Cookie: a=b",
        "🦊.jpg",
        "a\x00b",
    ],
)
async def test_a_filename_is_metadata_and_never_a_path(service: Service, filename: str) -> None:
    answer = await service.client.post(
        "/api/v1/assets", params={"filename": filename}, content=HOLIDAY, headers={"Content-Type": "image/jpeg"}
    )
    assert answer.status_code == 201
    asset = answer.json()
    (stored,) = service.stored_files()
    assert stored == f"public/{stored[7:17]}/{asset['id']}.original.jpg"
    content = await service.client.get(f"/api/v1/assets/{asset['id']}/content")
    disposition = content.headers["content-disposition"]
    assert disposition.isascii()
    assert disposition.isprintable()
    assert set(content.headers) & {"set-cookie"} == set()


async def test_two_uploads_of_one_name_are_two_assets(service: Service) -> None:
    first, second = [await service.uploaded(HOLIDAY, filename="hero.jpg") for _ in range(2)]
    assert first["id"] != second["id"]
    assert len(service.stored_files()) == 2


# ── Batches ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def batch(service: Service, *contents: bytes, **query: Any) -> httpx.Response:
    files = [("files", (f"{number}.img", content)) for number, content in enumerate(contents)]
    return await service.client.post("/api/v1/assets/batch", params=query, files=files)


async def test_a_batch_keeps_the_order_of_its_files(service: Service) -> None:
    answer = await batch(service, HOLIDAY, images.png(30, 20), images.webp(40, 30), sizes="10")
    assert answer.status_code == 201
    found = answer.json()
    assert [asset["content_type"] for asset in found["assets"]] == ["image/jpeg", "image/png", "image/webp"]
    assert found["failed"] == []
    assert len(service.stored_files()) == 6


@pytest.mark.parametrize("bad", [b"", b"no image", HOLIDAY[:3000]])
async def test_one_bad_file_fails_the_whole_batch(service: Service, bad: bytes) -> None:
    answer = await batch(service, HOLIDAY, bad, HOLIDAY, sizes="10")
    assert answer.status_code in {415, 422}
    assert await service.leaves_nothing()


async def test_without_atomic_the_good_files_stay(service: Service) -> None:
    answer = await batch(service, HOLIDAY, b"no image", b"", images.png(30, 20), atomic="false")
    assert answer.status_code == 201
    found = answer.json()
    assert [asset["filename"] for asset in found["assets"]] == ["0.img", "3.img"]
    assert [(failed["index"], failed["filename"], failed["code"]) for failed in found["failed"]] == [
        (1, "1.img", "unsupported_image"),
        (2, "2.img", "invalid_parameter"),
    ]
    assert len(service.stored_files()) == 2


async def test_without_atomic_a_file_that_is_too_large_fails_alone(start_service: StartService) -> None:
    async with start_service(max_upload_bytes=len(HOLIDAY)) as service:
        answer = await batch(service, HOLIDAY + b"x", HOLIDAY, atomic="false")
        found = answer.json()
        assert [asset["filename"] for asset in found["assets"]] == ["1.img"]
        assert [(failed["index"], failed["code"]) for failed in found["failed"]] == [(0, "body_too_large")]
        problem_of(await batch(service, HOLIDAY + b"x", HOLIDAY), 413, "body_too_large")
        assert service.temporary_files() == []


async def test_a_long_filename_keeps_its_extension(service: Service) -> None:
    for filename, kept in (("é" * 300 + ".jpg", 304), ("x" * 5000 + ".jpg", 1024)):
        asset = (await service.upload(HOLIDAY, filename=filename)).json()
        assert len(asset["filename"]) == kept
        assert asset["filename"].endswith(".jpg")


async def test_without_atomic_a_single_upload_that_fails_still_fails(service: Service) -> None:
    problem_of(await service.upload(b"no image", atomic="false"), 415, "unsupported_image")
