"""Deleting many assets at once: a result for each, and none in another's way."""

import asyncio
from typing import Any

import httpx
import pytest

from smart_assets.assets import deletions
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import CatalogueUnavailable
from tests import images
from tests.conftest import Service, StartService, problem_of
from tests.staging import FaultyStorage

HOLIDAY = images.jpeg(64, 48, seed=3)
NOBODY = "019aa0c2-0000-7000-8000-000000000000"


async def send(service: Service, ids: Any) -> httpx.Response:
    return await service.client.post("/api/v1/assets/delete", json={"ids": ids})


async def results(service: Service, ids: list[str]) -> list[tuple[str, str | None]]:
    """Status and code of each, in the order they were asked for."""
    answer = await send(service, ids)
    assert answer.status_code == 200, answer.text
    found = answer.json()["results"]
    assert [result["id"] for result in found] == ids
    return [(result["status"], result["code"]) for result in found]


DELETED = ("deleted", None)
NOT_FOUND = ("not_found", "asset_not_found")
BUSY = ("busy", "asset_busy")
FAILED = ("failed", "storage_unavailable")


async def test_each_is_deleted_and_has_its_result_in_order(service: Service, faulty: FaultyStorage) -> None:
    kept = await service.uploaded(HOLIDAY)
    assets = [await service.uploaded(HOLIDAY, storage=name, sizes="20") for name in ("local", "faulty", "memory")]
    ids = [asset["id"] for asset in assets]
    assert await results(service, [ids[0], NOBODY, ids[1], "nonsense", "", ids[2]]) == [
        DELETED, NOT_FOUND, DELETED, NOT_FOUND, NOT_FOUND, DELETED,
    ]  # fmt: skip
    assert [row[0] for row in await service.rows()] == [kept["id"].replace("-", "")]
    assert len(service.stored_files()) == 1
    assert await faulty.keys() == set()
    assert await results(service, ids) == [NOT_FOUND] * 3
    assert (await service.client.get("/api/v1/stats")).json()["count"] == 1


async def test_an_id_that_stands_twice_has_its_result_twice(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    assert await results(service, [asset["id"], asset["id"].upper(), asset["id"]]) == [DELETED] * 3
    assert await service.leaves_nothing()


async def test_a_thousand_are_deleted_at_once_and_no_more(service: Service) -> None:
    assets = [await service.uploaded(HOLIDAY, storage="memory") for _ in range(150)]
    ids = [asset["id"] for asset in assets] + [NOBODY] * 850
    assert await results(service, ids) == [DELETED] * 150 + [NOT_FOUND] * 850
    assert await service.rows() == []


@pytest.mark.parametrize("ids", [[], [NOBODY] * 1001, "x", None, [1], [None]])
async def test_what_is_no_list_of_ids_is_refused_whole(service: Service, ids: Any) -> None:
    asset = await service.uploaded(HOLIDAY)
    problem = problem_of(await send(service, ids), 422, "invalid_parameter")
    assert problem["errors"][0]["loc"][:2] == ["body", "ids"]
    problem_of(
        await service.client.post("/api/v1/assets/delete", json={"ids": [asset["id"]], "force": True}),
        422,
        "invalid_parameter",
    )
    assert len(await service.rows()) == 1


async def test_one_that_is_being_changed_is_busy_and_the_others_go(service: Service, faulty: FaultyStorage) -> None:
    busy = await service.uploaded(HOLIDAY, storage="faulty")
    others = [await service.uploaded(HOLIDAY, storage="faulty") for _ in range(2)]
    hang = faulty.hang("move")
    url = f"/api/v1/assets/{busy['id']}"
    change = asyncio.create_task(service.client.patch(url, json={"visibility": "private"}))
    await hang.reached.wait()
    assert await results(service, [others[0]["id"], busy["id"], others[1]["id"]]) == [DELETED, BUSY, DELETED]
    hang.release()
    assert (await change).status_code == 200
    assert await results(service, [busy["id"]]) == [DELETED]


async def test_bytes_that_cannot_be_removed_now_are_owed_and_said_to_be_where_they_are_at_hand(
    service: Service, faulty: FaultyStorage, distant: FaultyStorage
) -> None:
    near = await service.uploaded(HOLIDAY, storage="faulty")
    far = await service.uploaded(HOLIDAY, storage="distant")
    here = await service.uploaded(HOLIDAY)
    faulty.fail("delete")
    distant.fail("delete")
    ids = [near["id"], far["id"], here["id"]]
    assert await results(service, ids) == [FAILED, DELETED, DELETED]
    assert await results(service, ids) == [NOT_FOUND] * 3
    assert (await service.client.get("/api/v1/stats")).json()["deletions_owed"] == 2
    faulty.relent()
    distant.relent()
    await service.settle()
    assert await service.leaves_nothing()
    assert await faulty.keys() | await distant.keys() == set()


async def test_a_storage_that_hangs_holds_up_no_other(service: Service, distant: FaultyStorage) -> None:
    far = [await service.uploaded(HOLIDAY, storage="distant") for _ in range(20)]
    here = [await service.uploaded(HOLIDAY) for _ in range(20)]
    hang = distant.hang("delete")
    ids = [asset["id"] for pair in zip(far, here, strict=True) for asset in pair]
    task = asyncio.create_task(results(service, ids))
    await hang.reached.wait()
    while service.stored_files():
        await asyncio.sleep(0.01)
    assert not task.done()
    for asset in far:
        assert (await service.client.get(f"/api/v1/assets/{asset['id']}")).status_code == 404
    hang.release()
    assert await task == [DELETED] * 40
    assert await service.leaves_nothing()
    assert await distant.keys() == set()


async def test_the_answer_does_not_wait_for_good_and_what_is_left_is_owed(
    service: Service, faulty: FaultyStorage, distant: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "WAIT_SECONDS", 0.2)
    far = [await service.uploaded(HOLIDAY, storage="distant") for _ in range(20)]
    near = await service.uploaded(HOLIDAY, storage="faulty")
    hangs = [distant.hang("delete"), faulty.hang("delete")]
    ids = [*(asset["id"] for asset in far), near["id"]]
    assert await results(service, ids) == [DELETED] * 20 + [FAILED]
    assert await results(service, ids) == [NOT_FOUND] * 21
    for hang in hangs:
        hang.release()
    while await service.rows():
        await service.settle()
    assert await distant.keys() | await faulty.keys() == set()


async def test_a_service_that_stops_meanwhile_leaves_the_rest_to_the_next(
    start_service: StartService, distant: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "WAIT_SECONDS", 0.2)
    async with start_service() as service:
        assets = [await service.uploaded(HOLIDAY, storage="distant") for _ in range(10)]
        distant.hang("delete")
        assert await results(service, [asset["id"] for asset in assets]) == [DELETED] * 10
    distant.relent()
    async with start_service() as service:
        await service.settle()
        assert await service.rows() == []
        assert await distant.keys() == set()


async def test_a_catalogue_that_goes_away_in_the_middle_is_told_for_those_it_did_not_mark(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [(await service.uploaded(HOLIDAY, storage="memory"))["id"] for _ in range(120)]
    begin, calls = Repository.begin_deleting, 0

    def locked(catalogue: Repository, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 100:
            raise CatalogueUnavailable("staged")
        return begin(catalogue, *arguments)

    with monkeypatch.context() as staged:
        staged.setattr(Repository, "begin_deleting", locked)
        assert await results(service, ids) == [DELETED] * 100 + [("failed", "busy")] * 20
        problem_of(await send(service, ids[100:]), 503, "busy")
    assert await results(service, ids) == [NOT_FOUND] * 100 + [DELETED] * 20
    assert service.runtime.deletions._lease.held == frozenset()
