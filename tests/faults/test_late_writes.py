"""A write whose answer never came may still land: what an upload was told has failed is gone in the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace

import pytest

from smart_assets.storage import base
from smart_assets.storage.factory import register_backend
from tests import images
from tests.conftest import Service, StartService, problem_of
from tests.faults.staging import LateStorage, becomes_empty, eventually

HOLIDAY = images.jpeg(320, 240, seed=21)


@pytest.fixture
def late() -> Iterator[LateStorage]:
    storage = LateStorage("late")
    undo = register_backend("late", lambda _name, _settings: storage)
    yield storage
    storage.time_out()
    undo()


@pytest.fixture
async def impatient(start_service: StartService) -> AsyncIterator[Service]:
    """A service that looks four times a second for what is left to do."""
    async with start_service(lease_seconds=1) as service:
        yield service


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """By how many seconds it is `ahead`, for whoever waits for late writes."""
    clock = SimpleNamespace(ahead=0)
    monkeypatch.setattr(
        base,
        "time",
        SimpleNamespace(
            time=time.time, perf_counter=time.perf_counter, monotonic=lambda: time.monotonic() + clock.ahead
        ),
    )
    return clock


async def deletions_owed(service: Service) -> int:
    owed: int = (await service.client.get("/api/v1/stats")).json()["deletions_owed"]
    return owed


@pytest.mark.parametrize("files", [1, 3], ids=["an upload", "a batch"])
async def test_a_write_that_lands_after_its_upload_failed_is_removed(
    impatient: Service, late: LateStorage, clock: SimpleNamespace, files: int
) -> None:
    late.silent = True
    sent = [("files", (f"{number}.jpg", HOLIDAY)) for number in range(files)]
    upload = asyncio.create_task(impatient.client.post("/api/v1/assets/batch?storage=late", files=sent))
    await eventually(lambda: late.waiting)
    late.time_out()
    problem = await upload
    problem_of(problem, 503, "storage_unavailable")
    assert problem.headers["retry-after"]
    assert (await impatient.client.get("/api/v1/assets")).json()["items"] == []
    assert await deletions_owed(impatient), "somebody has to know of what may land"

    landed = await late.land()
    assert late.there == landed
    await eventually(lambda: not late.there, of="their removal")
    assert await deletions_owed(impatient), "more may land"
    clock.ahead = 3600
    await becomes_empty(impatient, late)


async def test_so_is_one_whose_neighbour_s_failure_broke_it_off(
    impatient: Service, late: LateStorage, clock: SimpleNamespace
) -> None:
    """The first write to fail ends the wait for the others; they were sent all the same."""
    late.silent = True
    upload = asyncio.create_task(impatient.upload(HOLIDAY, storage="late", sizes="200,100,50"))
    await eventually(lambda: late.waiting == 4, of="four writes at once")
    late.time_out()
    problem_of(await upload, 503, "storage_unavailable")
    landed = await late.land()
    assert len(landed) == 4
    await eventually(lambda: not late.there, of="their removal")
    clock.ahead = 3600
    await becomes_empty(impatient, late)


async def test_a_copy_that_lands_after_its_publishing_failed_is_removed(
    impatient: Service, late: LateStorage, clock: SimpleNamespace
) -> None:
    asset = await impatient.uploaded(HOLIDAY, storage="late", sizes="100", visibility="private")
    url = f"/api/v1/assets/{asset['id']}"
    private = late.there
    late.silent = True
    change = asyncio.create_task(impatient.client.patch(url, json={"visibility": "public"}))
    await eventually(lambda: late.waiting == 2, of="two copies at once")
    late.silent = False
    late.time_out()
    problem_of(await change, 503, "storage_unavailable")
    landed = await late.land()
    assert {key.partition("/")[0] for key in landed} == {"public"}
    await eventually(lambda: not landed & late.there, of="their removal")
    clock.ahead = 3600
    await eventually(lambda: late.there == private)
    shown = (await impatient.client.get(url)).json()
    assert shown["visibility"] == "private"
