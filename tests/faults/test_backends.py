"""A storage that is slow, down, hung or flaky: its own callers hear of it, and nobody else does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from smart_assets.storage.factory import register_backend
from tests import images
from tests.catalogue.test_repository import a_record
from tests.conftest import Service, StartService, problem_of
from tests.faults.process import expected_objects, settled
from tests.faults.staging import LateStorage, becomes_empty, eventually
from tests.staging import DistantStorage, FaultyStorage, Operation

HOLIDAY = images.jpeg(320, 240, seed=22)
DEAD = "a-process-that-is-gone/1"


@pytest.fixture
def flaky() -> Iterator[FaultyStorage]:
    """A storage `faulty` over a network of which every third call fails, half of those when it was carried out."""
    storage = FaultyStorage("faulty", DistantStorage("faulty"))
    operations: tuple[Operation, ...] = ("put", "stat", "delete", "move", "read")
    for operation in operations:
        for at in range(3, 1000, 3):
            storage.fail(operation, at=at, after=at % 2 == 0)
    undo = register_backend("faulty", lambda _name, _settings: storage)
    yield storage
    undo()


@pytest.fixture
def hung() -> Iterator[LateStorage]:
    """A storage `hung` over a network that answers nothing; two calls to it at once, and no others wait for long."""
    storage = LateStorage("hung", limit=2, wait_seconds=0.2)
    storage.silent = True
    undo = register_backend("hung", lambda _name, _settings: storage)
    yield storage
    storage.time_out()
    undo()


async def one_caller(service: Service, number: int) -> tuple[list[int], str | None]:
    """Uploads an image, publishes it, and every other time deletes it: the answers, and the asset that must be there.

    Who is answered 503 gives up.
    """
    sizes = {"sizes": "50"} if number % 3 else {}
    answer = await service.upload(HOLIDAY, storage="faulty", visibility="private", **sizes)
    answers = [answer]
    kept: str | None = None
    if answer.status_code == 201:
        kept = answer.json()["id"]
        url = f"/api/v1/assets/{kept}"
        answers.append(await service.client.patch(url, json={"visibility": "public"}))
        if number % 2 and not answers[-1].is_error:
            answers.append(await service.client.delete(url))
            kept = None
    for answer in answers:
        if answer.is_error:
            problem_of(answer, 503, "storage_unavailable")
            assert answer.headers["retry-after"]
    return [answer.status_code for answer in answers], kept


async def test_of_a_storage_that_fails_every_third_call_only_what_was_confirmed_is_kept(
    start_service: StartService, flaky: FaultyStorage
) -> None:
    async with start_service(lease_seconds=1) as service:
        told = await asyncio.gather(*(one_caller(service, number) for number in range(48)))
        statuses = {status for answers, _ in told for status in answers}
        assert statuses == {201, 200, 204, 503}
        flaky.relent()
        await eventually(lambda: settled(service.data_dir), of="the end of what was begun")
        assert await flaky.keys() == expected_objects(service.data_dir).keys()
        found = (await service.client.get("/api/v1/assets", params={"limit": 200})).json()["items"]
        assert {asset["id"] for asset in found} == {kept for _, kept in told if kept is not None}
        for asset in found:
            content = await service.client.get(f"/api/v1/assets/{asset['id']}/content")
            assert content.content == HOLIDAY


async def test_a_hung_storage_refuses_more_than_it_can_hold_and_others_stay_usable(
    start_service: StartService, hung: LateStorage
) -> None:
    async with start_service(lease_seconds=1) as service:
        uploads = [asyncio.create_task(service.upload(HOLIDAY, storage="hung")) for _ in range(6)]
        refused = []
        for upload in asyncio.as_completed(uploads):
            refused.append(await upload)
            if len(refused) == 4:
                break
        for answer in refused:
            problem_of(answer, 503, "storage_unavailable")
            assert int(answer.headers["retry-after"]) > 0
        assert hung.waiting == 2

        kept = await service.uploaded(HOLIDAY, sizes="100")
        assert (await service.client.get(kept["url"])).content == HOLIDAY
        assert (await service.client.get("/health/ready")).status_code == 200
        assert (await service.client.delete(f"/api/v1/assets/{kept['id']}")).status_code == 204

        hung.late_write_seconds = 0
        hung.time_out()
        for upload in uploads:
            problem_of(await upload, 503, "storage_unavailable")
        await becomes_empty(service, hung)


async def test_a_hung_storage_holds_up_nobody_else_s_clean_up(
    start_service: StartService, faulty: FaultyStorage
) -> None:
    async with start_service(lease_seconds=1) as service:
        hang = faulty.hang("delete")
        left = [a_record(storage="faulty", lease=DEAD), a_record(lease=DEAD)]
        await service.runtime.database.write(lambda catalogue: catalogue.insert_pending(left))
        await asyncio.wait_for(hang.reached.wait(), 60)
        later = a_record(lease=DEAD)
        await service.runtime.database.write(lambda catalogue: catalogue.insert_pending([later]))
        for _ in range(1000):
            await asyncio.sleep(0.01)
            remaining = [asset_id for asset_id, _ in await service.rows()]
            if remaining == [left[0].id.hex]:
                break
        assert remaining == [left[0].id.hex]
        hang.release()
        await becomes_empty(service, faulty)
