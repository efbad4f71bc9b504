"""One story over HTTP, the same on every storage: upload, look, change, delete, and fail without a trace."""

from __future__ import annotations

import io
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
from PIL import Image
from prometheus_client import REGISTRY

from smart_assets.storage import StorageBackend
from tests import images
from tests.conftest import BASE_URL, Service, StartService, problem_of
from tests.live.places import PLACES

HOLIDAY = images.jpeg(640, 480, seed=11)
DAMAGED = images.png(400, 300)
DAMAGED = DAMAGED[: len(DAMAGED) // 2] + bytes(64) + DAMAGED[len(DAMAGED) // 2 + 64 :]  # shows when it is decoded
REFUSED = {400, 401, 403, 404}


@dataclass(frozen=True)
class Story:
    """A service, the storage it is told about, and a stranger with a plain HTTP client."""

    service: Service
    storage: str
    stranger: httpx.AsyncClient

    @property
    def backend(self) -> StorageBackend:
        return self.service.runtime.storages.get(self.storage)

    async def upload(self, content: bytes = HOLIDAY, **query: Any) -> Any:
        return await self.service.uploaded(content, storage=self.storage, **query)

    async def fetch(self, url: str) -> httpx.Response:
        """What anybody gets who follows that address, from the service and on to the storage."""
        for _ in range(5):
            ours = url.startswith(BASE_URL)
            answer = await (self.service.client if ours else self.stranger).get(url)
            if not answer.has_redirect_location:
                return answer
            url = str(answer.next_request.url) if answer.next_request else ""
        raise AssertionError("a redirect without an end")

    async def objects(self) -> list[str]:
        async with aclosing(self.backend.list()) as records:
            return sorted([record.key async for record in records])


@pytest.fixture(params=PLACES)
async def story(request: pytest.FixtureRequest, start_service: StartService) -> AsyncIterator[Story]:
    place = PLACES[request.param](request)
    checks = checks_of(place.storage)
    async with start_service(**place.settings) as service, httpx.AsyncClient(timeout=60) as stranger:
        if place.settings:  # the check at the start writes objects of its own
            with anyio.fail_after(60):
                while checks_of(place.storage) == checks:
                    await anyio.sleep(0.02)
        yield Story(service, place.storage, stranger)


def checks_of(storage: str) -> float:
    """How often it was found to be in order."""
    labels = {"storage": storage, "operation": "check", "outcome": "ok"}
    return REGISTRY.get_sample_value("smart_assets_storage_call_seconds_count", labels) or 0


@pytest.fixture
def keeping(story: Story) -> Story:
    if not story.backend.capabilities.persistent:
        pytest.skip(f"declared absent: {story.storage} keeps nothing")
    return story


def size_of(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content)) as image:
        return image.size


@pytest.mark.parametrize("visibility", ["public", "private"])
async def test_an_image_and_its_sizes_are_kept_looked_at_changed_and_removed(keeping: Story, visibility: str) -> None:
    other = {"public": "private", "private": "public"}[visibility]
    asset = await keeping.upload(visibility=visibility, sizes="320,100x100", fit="cover")
    assert (asset["storage"], asset["visibility"]) == (keeping.storage, visibility)
    assert len(await keeping.objects()) == 3

    await _can_be_fetched(keeping, asset)
    listed = (await keeping.service.client.get(f"/api/v1/assets?storage={keeping.storage}")).json()["items"]
    assert [found["id"] for found in listed] == [asset["id"]]

    path = f"/api/v1/assets/{asset['id']}"
    content = await keeping.service.client.get(f"{path}/content?size=320", headers={"Range": "bytes=10-99"})
    assert (content.status_code, len(content.content)) == (206, 90)
    for size in (None, "320"):
        signed = (await keeping.service.client.post(f"{path}/signed-url", json={"size": size})).json()
        answer = await keeping.fetch(signed["url"])
        assert answer.status_code == 200
        assert size_of(answer.content) == ((640, 480) if size is None else (320, 240))

    changed = (await keeping.service.client.patch(path, json={"visibility": other})).json()
    assert changed["visibility"] == other
    assert all(key.startswith(f"{other}/") for key in await keeping.objects())
    await _can_be_fetched(keeping, changed)
    for address in _addresses(asset):
        assert (await keeping.fetch(address)).status_code in REFUSED, "the old address is dead"

    assert (await keeping.service.client.delete(path)).status_code == 204
    for address in _addresses(changed):
        assert (await keeping.fetch(address)).status_code in REFUSED
    assert await keeping.objects() == []
    problem_of(await keeping.service.client.delete(path), 404, "asset_not_found")
    assert await keeping.service.rows() == []


def _addresses(asset: Any) -> list[str]:
    return [asset["url"], *(variant["url"] for variant in asset["variants"])]


async def _can_be_fetched(story: Story, asset: Any) -> None:
    """By whom its visibility says, and by nobody else."""
    for described in (asset, *asset["variants"]):
        answer = await story.fetch(described["url"])
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == described["content_type"]
        assert len(answer.content) == described["size_bytes"]
        assert size_of(answer.content) == (described["width"], described["height"])
        if asset["visibility"] == "private":
            assert described["url"].startswith(f"{BASE_URL}/assets/private/")
            problem_of(await story.fetch(described["url"].partition("?")[0]), 403, "signature_required")
            refused = await story.fetch(await _without_its_signature(story, described["url"]))
            assert refused.status_code in REFUSED
    assert (await story.fetch(asset["url"])).content == HOLIDAY


async def _without_its_signature(story: Story, url: str) -> str:
    """The address at the storage itself, as a stranger may guess it."""
    location = (await story.service.client.get(url)).headers.get("location", url)
    parts = urlsplit(location)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


async def test_a_stranger_uploads_to_the_storage_itself_with_a_ticket(keeping: Story) -> None:
    client, query = keeping.service.client, {"storage": keeping.storage, "sizes": "320", "visibility": "private"}
    wanted = {"upload": "bucket", "max_bytes": len(HOLIDAY)}
    answer = await client.post("/api/v1/upload-tickets", params=query, json=wanted)
    if not keeping.backend.capabilities.presigned_uploads:
        problem_of(answer, 422, "unsupported")
        return
    ticket = answer.json()

    async def put(content: bytes) -> httpx.Response:
        if ticket["method"] == "PUT":
            return await keeping.stranger.put(ticket["url"], content=content, headers=ticket["headers"])
        files = {"file": ("a.jpg", content)}
        return await keeping.stranger.post(ticket["url"], data=ticket["fields"], files=files)

    async def complete() -> httpx.Response:
        return await client.post(ticket["complete_url"])

    problem_of(await complete(), 409, "upload_missing")
    too_much = await put(HOLIDAY + b"x")
    assert too_much.is_success is not keeping.backend.capabilities.caps_uploads
    problem_of(await complete(), *((413, "body_too_large") if too_much.is_success else (409, "upload_missing")))
    assert (await put(b"<html>")).is_success
    problem_of(await complete(), 415, "unsupported_image")
    assert await keeping.objects() == []
    assert (await put(HOLIDAY)).is_success
    assert [key.startswith("private/incoming/") for key in await keeping.objects()] == [True]
    asset = await complete()
    assert asset.status_code == 200, asset.text
    await _can_be_fetched(keeping, asset.json())
    assert (await put(HOLIDAY)).is_success, "its URL is still good"
    assert (await complete()).json()["id"] == asset.json()["id"]
    assert len(await keeping.objects()) == 2
    assert [state for _, state in await keeping.service.rows()] == ["ready"]


async def test_a_failed_upload_leaves_nothing(keeping: Story) -> None:
    answer = await keeping.service.upload(DAMAGED, storage=keeping.storage, sizes="320")
    problem_of(answer, 422, "corrupt_image")
    assert await keeping.objects() == []
    assert await keeping.service.rows() == []


@pytest.mark.parametrize("visibility", ["public", "private"])
async def test_a_failed_batch_leaves_nothing(keeping: Story, visibility: str) -> None:
    files = [("files", (f"{number}.jpg", content)) for number, content in enumerate([HOLIDAY, HOLIDAY, DAMAGED])]
    answer = await keeping.service.client.post(
        "/api/v1/assets/batch",
        params={"storage": keeping.storage, "visibility": visibility, "sizes": "320,100"},
        files=files,
    )
    problem_of(answer, 422, "corrupt_image")
    assert await keeping.objects() == []
    assert await keeping.service.rows() == []
    assert keeping.service.temporary_files() == []


async def test_what_worked_of_a_batch_can_be_kept(keeping: Story) -> None:
    files = [("files", (f"{number}.jpg", content)) for number, content in enumerate([HOLIDAY, DAMAGED])]
    answer = await keeping.service.client.post(
        "/api/v1/assets/batch", params={"storage": keeping.storage, "sizes": "320", "atomic": "false"}, files=files
    )
    assert answer.status_code == 201
    assert sum(len(_addresses(asset)) for asset in answer.json()["assets"]) == len(await keeping.objects())
    for asset in answer.json()["assets"]:
        assert (await keeping.service.client.delete(f"/api/v1/assets/{asset['id']}")).status_code == 204
    assert await keeping.objects() == []


async def test_the_storage_says_it_is_set_up(story: Story) -> None:
    await story.backend.check()
    await story.backend.ping()
    answer = (await story.service.client.get("/api/v1/storages")).json()["storages"]
    (status,) = [storage for storage in answer if storage["name"] == story.storage]
    assert status["configured"] is True
    assert status["missing"] == []
    assert "secret" not in str(answer).lower()


async def test_nothing_is_kept_where_the_bytes_come_back(story: Story) -> None:
    if story.backend.capabilities.persistent:
        pytest.skip(f"{story.storage} keeps what it is given")
    asset = await story.upload(sizes="320")
    assert asset["id"] is None
    for address, size in zip(_addresses(asset), [(640, 480), (320, 240)], strict=True):
        assert size_of(b64decode(address.partition(",")[2])) == size
    assert await story.service.rows() == []
