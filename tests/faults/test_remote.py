"""The real service before a storage behind a network that is slow, away, hung, or answers too late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests import images
from tests.cloudinary_fake import Account, CloudinaryFake, Fault, Hold, cloudinary_fake
from tests.conftest import problem_of
from tests.faults.process import ServiceProcess, states, temporary_files
from tests.faults.staging import eventually
from tests.wire import Wire

HOLIDAY = images.jpeg(320, 240, seed=23)


class Landed(dict[Any, Any]):
    """What an account holds; remembers that there was something."""

    ever = 0

    def __setitem__(self, key: Any, value: Any) -> None:
        self.ever += 1
        super().__setitem__(key, value)


@dataclass(frozen=True)
class Distant:
    """A service, its way to the storage, and what the storage has."""

    process: ServiceProcess
    client: httpx.AsyncClient
    wire: Wire
    fake: CloudinaryFake
    account: Account

    async def upload(self, storage: str = "cloudinary", **query: str) -> httpx.Response:
        query["storage"] = storage
        return await self.client.post("/api/v1/assets", params=query, files={"file": ("a.jpg", HOLIDAY)})

    async def others_are_usable(self) -> bool:
        """Whether another storage keeps, shows and removes as if nothing had happened."""
        made = await self.upload("local", sizes="50")
        url = f"/api/v1/assets/{made.json()['id']}"
        read = await self.client.get(f"{url}/content")
        return [made.status_code, read.content, (await self.client.delete(url)).status_code] == [201, HOLIDAY, 204]


@pytest.fixture(scope="module")
def fake() -> Iterator[CloudinaryFake]:
    with cloudinary_fake() as fake:
        yield fake


@pytest.fixture
async def distant(fake: CloudinaryFake, tmp_path: Path) -> AsyncIterator[Distant]:
    account = fake.account("demo-cloud", assets=Landed())
    server = urlsplit(fake.url)
    async with Wire(server.hostname or "", server.port or 0) as wire:
        settings = {
            "CLOUDINARY_URL": f"cloudinary://{account.api_key}:{account.api_secret}@demo-cloud",
            "ASSETS_CLOUDINARY__API_URL": wire.address,
            "ASSETS_CLOUDINARY__DELIVERY_URL": f"{wire.address}/demo-cloud",
            "ASSETS_CLOUDINARY__TIMEOUT_SECONDS": "1",
            "ASSETS_CLOUDINARY__CONNECT_TIMEOUT_SECONDS": "1",
            "ASSETS_CLOUDINARY__MAX_CONNECTIONS": "2",
            "ASSETS_LEASE_SECONDS": "1",
        }
        process = await asyncio.to_thread(ServiceProcess(tmp_path, **settings).__enter__)
        try:
            async with httpx.AsyncClient(base_url=process.url, timeout=60, trust_env=False) as client:
                await eventually(lambda: "the storage can be used" in process.text, of="the check at the start")
                yield Distant(process, client, wire, fake, account)
        finally:
            process.__exit__(None, None, None)
    fake.forget()


async def test_a_slow_storage_is_waited_for(distant: Distant) -> None:
    distant.wire.delay(0.1)
    made = await distant.upload(sizes="100")
    assert made.status_code == 201
    assert len(distant.account.assets) == 2
    assert (await distant.client.delete(f"/api/v1/assets/{made.json()['id']}")).status_code == 204
    assert distant.account.assets == {}


@pytest.mark.parametrize("fault", ["away", "silent", "overloaded"])
async def test_a_storage_that_cannot_answer_costs_its_own_requests_an_error_and_leaves_nothing(
    distant: Distant, fault: str
) -> None:
    kept = (await distant.upload()).json()
    url = f"/api/v1/assets/{kept['id']}"
    if fault == "away":
        distant.wire.refuse()
    elif fault == "silent":
        distant.wire.stall()
    else:
        distant.wire.answer(503, {"Retry-After": "7"})
    several = asyncio.gather(*(distant.upload(sizes="100") for _ in range(3)))
    assert await distant.others_are_usable()
    for answer in await several:
        problem_of(answer, 503, "storage_unavailable")
        assert int(answer.headers["retry-after"]) > 0
    problem_of(await distant.client.get(f"{url}/content"), 503, "storage_unavailable")
    assert (await distant.client.get(url)).json() == kept
    # Gone for callers at once; the bytes follow when the storage is back.
    assert (await distant.client.delete(url)).status_code == 204
    problem_of(await distant.client.get(url), 404, "asset_not_found")
    assert (await distant.client.get("/api/v1/stats")).json()["deletions_owed"] >= 1
    assert (await distant.client.get("/health/ready")).status_code == 200, "the default storage is another"
    distant.wire.restore()
    await eventually(lambda: not distant.account.assets, of="the deletion owed")
    assert (await distant.upload()).status_code == 201
    assert temporary_files(distant.process.data) == []


async def test_a_write_that_times_out_and_lands_later_is_gone_in_the_end(distant: Distant) -> None:
    landed = distant.account.assets
    assert isinstance(landed, Landed)
    before = landed.ever
    hold = Hold()
    distant.fake.stage("upload", Fault(hold=hold))
    problem_of(await distant.upload(), 503, "storage_unavailable")
    assert hold.reached.is_set()
    assert landed.ever == before, "it is still on its way"
    assert states(distant.process.data) == {"deleting": 1}
    hold.released.set()
    await eventually(lambda: landed.ever > before, of="the late write")
    await eventually(lambda: not landed, of="its removal")
    assert (await distant.client.get("/api/v1/assets")).json()["items"] == []
