"""`/assets` for storages that serve their objects themselves: it decides, then sends the caller there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from smart_assets.assets.delivery import REDIRECT_SECONDS
from smart_assets.storage.factory import register_backend
from tests import images
from tests.conftest import Service, StartService, problem_of
from tests.staging import DistantStorage, FaultyStorage

HOLIDAY = images.jpeg(320, 240, seed=3)


@pytest.fixture
async def distant() -> AsyncIterator[DistantStorage]:
    storage = DistantStorage()
    undo = register_backend("distant", lambda _name, _settings: storage)
    yield storage
    undo()


@pytest.fixture
async def service(distant: DistantStorage, start_service: StartService) -> AsyncIterator[Service]:
    async with start_service() as running:
        yield running


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def key_of(url: str) -> str:
    return urlsplit(url).path.removeprefix("/assets/").removeprefix("/")


def max_age(cache_control: str) -> int:
    return int(cache_control.rpartition("max-age=")[2])


async def test_a_public_asset_of_a_closed_bucket_is_reached_through_the_service(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, storage="distant", sizes="64")
    for address in (asset["url"], asset["variants"][0]["url"]):
        assert address.startswith("http://127.0.0.1:8000/assets/public/")
        for method in ("GET", "HEAD"):
            answer = await service.client.request(method, address)
            assert answer.status_code == 302
            location = answer.headers["location"]
            assert location.startswith("https://bucket.example/")
            assert key_of(location) == key_of(address)
            left = int(query_of(location)["until"]) - time.time()
            assert 0 < max_age(answer.headers["cache-control"]) <= left / 2 + 1
            assert answer.headers["cache-control"].startswith("public, ")
            assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_public_asset_of_an_open_bucket_is_linked_there_and_its_own_address_leads_there(
    service: Service, distant: DistantStorage
) -> None:
    distant.capabilities = DistantStorage(public_access=True).capabilities
    asset = await service.uploaded(HOLIDAY, storage="distant")
    assert asset["url"].startswith("https://bucket.example/public/")
    answer = await service.client.get(f"/assets/{key_of(asset['url'])}")
    assert (answer.status_code, answer.headers["location"]) == (302, asset["url"])
    assert answer.headers["cache-control"] == "public, max-age=3600"
    private = await service.uploaded(HOLIDAY, storage="distant", visibility="private")
    assert private["url"].startswith("http://127.0.0.1:8000/assets/private/")


async def test_a_storage_may_be_open_and_yet_be_linked_through_the_service(
    service: Service, distant: DistantStorage
) -> None:
    distant.capabilities = DistantStorage(public_access=True, links_public=False).capabilities
    asset = await service.uploaded(HOLIDAY, storage="distant")
    assert asset["url"].startswith("http://127.0.0.1:8000/assets/public/")
    answer = await service.client.get(asset["url"])
    assert answer.headers["location"] == f"https://bucket.example/{key_of(asset['url'])}"


async def test_a_private_asset_leads_there_only_with_a_signature_and_never_for_longer_than_it(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, storage="distant", visibility="private")
    problem_of(await service.client.get(asset["url"].partition("?")[0]), 403, "signature_required")
    answer = await service.client.get(asset["url"])
    assert answer.status_code == 302
    assert answer.headers["cache-control"].startswith("private, ")
    assert query_of(answer.headers["location"])["as"] == "photo.jpg"
    assert int(query_of(answer.headers["location"])["until"]) <= time.time() + REDIRECT_SECONDS
    bare = service.runtime.delivery._signer.sign(key_of(asset["url"]), 30)
    answer = await service.client.get(f"/assets/{key_of(asset['url'])}?{bare.query}")
    assert int(query_of(answer.headers["location"])["until"]) == bare.expires_at.timestamp()
    short = service.runtime.delivery._signer.sign(key_of(asset["url"]), 1)
    await asyncio.sleep(1.1)
    problem_of(await service.client.get(f"/assets/{key_of(asset['url'])}?{short.query}"), 403, "signature_expired")


@pytest.mark.parametrize("visibility", ["public", "private"])
async def test_calls_within_a_window_lead_to_the_same_url(service: Service, visibility: str) -> None:
    asset = await service.uploaded(HOLIDAY, storage="distant", visibility=visibility)
    locations = set()
    for _ in range(4):
        locations.add((await service.client.get(asset["url"])).headers["location"])
        await asyncio.sleep(0.4)
    assert len(locations) <= 2, "two where a window ended in between"


async def test_the_signed_url_of_an_asset_is_the_storages_own(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, storage="distant", visibility="private", sizes="64")
    path = f"/api/v1/assets/{asset['id']}/signed-url"
    for size, name in ((None, "original"), ("64", "64")):
        signed = (await service.client.post(path, json={"expiry_seconds": 600, "size": size})).json()
        assert signed["url"].startswith("https://bucket.example/private/")
        assert f".{name}" in signed["url"]
        assert query_of(signed["url"])["as"] == "photo.jpg"
        assert 540 <= int(query_of(signed["url"])["until"]) - time.time() <= 600


async def test_what_is_deleted_or_elsewhere_leads_nowhere(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, storage="distant")
    gone_private = await service.client.patch(f"/api/v1/assets/{asset['id']}", json={"visibility": "private"})
    assert gone_private.status_code == 200
    problem_of(await service.client.get(asset["url"]), 404, "asset_not_found")
    private_url = gone_private.json()["url"]
    assert (await service.client.get(private_url)).status_code == 302
    assert (await service.client.delete(f"/api/v1/assets/{asset['id']}")).status_code == 204
    problem_of(await service.client.get(private_url), 404, "asset_not_found")
    other_size = asset["url"].replace(".original.", ".w64.")
    problem_of(await service.client.get(other_size), 404, "asset_not_found")


async def test_nothing_is_answered_in_the_middle_of_a_change(start_service: StartService) -> None:
    storage = FaultyStorage("faulty", DistantStorage("faulty"))
    undo = register_backend("faulty", lambda _name, _settings: storage)
    try:
        async with start_service() as service:
            asset = await service.uploaded(HOLIDAY, storage="faulty")
            hang = storage.hang("move")
            change = asyncio.create_task(
                service.client.patch(f"/api/v1/assets/{asset['id']}", json={"visibility": "private"})
            )
            await hang.reached.wait()
            problem_of(await service.client.get(asset["url"]), 404, "asset_not_found")
            present: Any = (await service.client.get(f"/api/v1/assets/{asset['id']}")).json()
            problem_of(await service.client.get(present["url"]), 503, "busy")
            hang.release()
            assert (await change).status_code == 200
            assert (await service.client.get(present["url"])).status_code == 302
    finally:
        undo()
