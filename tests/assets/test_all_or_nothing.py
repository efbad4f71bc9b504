"""All of a batch or nothing, whichever call of the storage fails, and however."""

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from smart_assets.catalogue.models import AssetRecord
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import CatalogueUnavailable, SmartAssetsError
from smart_assets.storage.errors import StorageError, StorageFull, StorageUnavailable
from tests import images
from tests.conftest import Service, StartService, problem_of
from tests.staging import FaultyStorage

HOLIDAY = images.jpeg(320, 240, seed=11)
SIZES = "200,100,50"

ERRORS: list[tuple[StorageError, int, str]] = [
    (StorageUnavailable("staged"), 503, "storage_unavailable"),
    (StorageFull("staged"), 507, "storage_full"),
    (StorageError("staged"), 502, "storage_error"),
]


async def nothing_is_left(service: Service, storage: FaultyStorage) -> bool:
    return await service.leaves_nothing() and await storage.keys() == set()


async def visibilities(storage: FaultyStorage) -> list[str]:
    """The first segment of every key there is."""
    return sorted(key.partition("/")[0] for key in await storage.keys())


@pytest.mark.parametrize("after", [False, True], ids=["before the bytes landed", "after the bytes landed"])
@pytest.mark.parametrize("position", [1, 2, 3, 4])
@pytest.mark.parametrize(("error", "status", "code"), ERRORS, ids=[code for *_, code in ERRORS])
async def test_one_failed_write_fails_all_and_nothing_stays(
    service: Service, faulty: FaultyStorage, error: StorageError, status: int, code: str, position: int, after: bool
) -> None:
    faulty.fail("put", at=position, after=after, error=error)
    answer = await service.upload(HOLIDAY, storage="faulty", sizes=SIZES)
    problem_of(answer, status, code)
    assert await nothing_is_left(service, faulty)


@pytest.mark.parametrize("position", range(1, 7))
async def test_a_batch_fails_whole_wherever_it_fails(service: Service, faulty: FaultyStorage, position: int) -> None:
    faulty.fail("put", at=position)
    files = [("files", (f"{number}.jpg", HOLIDAY)) for number in range(3)]
    answer = await service.client.post("/api/v1/assets/batch?storage=faulty&sizes=50", files=files)
    problem_of(answer, 503, "storage_unavailable")
    assert await nothing_is_left(service, faulty)


@pytest.mark.parametrize("position", [1, 2, 3, 4])
async def test_a_clean_up_that_fails_is_owed_until_it_works(
    service: Service, faulty: FaultyStorage, position: int
) -> None:
    faulty.fail("put", at=4, error=StorageFull("staged"))
    faulty.fail("delete", at=position)
    problem_of(await service.upload(HOLIDAY, storage="faulty", sizes=SIZES), 507, "storage_full")
    rows = await service.rows()
    assert [state for _, state in rows] == ["deleting"]
    assert (await service.client.get("/api/v1/assets")).json()["items"] == []
    assert (await service.client.get("/api/v1/stats")).json()["deletions_owed"] == 1
    faulty.relent()
    await service.settle()
    assert await nothing_is_left(service, faulty)


async def test_a_write_that_is_cut_short_is_noticed(service: Service, faulty: FaultyStorage) -> None:
    faulty.shorten(at=2)
    problem_of(await service.upload(HOLIDAY, storage="faulty", sizes=SIZES), 502, "storage_error")
    assert await nothing_is_left(service, faulty)


@pytest.mark.parametrize("position", [2, 3, 4])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_without_atomic_what_worked_is_kept(
    service: Service, faulty: FaultyStorage, position: int, after: bool
) -> None:
    faulty.fail("put", at=position, after=after)
    answer = await service.upload(HOLIDAY, storage="faulty", sizes=SIZES, atomic="false")
    assert answer.status_code == 201
    asset = answer.json()
    assert len(asset["variants"]) == 2
    (failed,) = asset["failed"]
    assert failed["code"] == "storage_unavailable"
    assert {failed["size"]} | {variant["size"] for variant in asset["variants"]} == set(SIZES.split(","))
    assert len(await faulty.keys()) == 3
    faulty.relent()
    assert (await service.client.delete(f"/api/v1/assets/{asset['id']}")).status_code == 204
    assert await nothing_is_left(service, faulty)


async def test_a_size_whose_remains_cannot_be_removed_goes_with_its_asset(
    service: Service, faulty: FaultyStorage
) -> None:
    for position in (2, 3, 4):
        faulty.fail("put", at=position, after=True)
    faulty.fail("delete")
    answer = await service.upload(HOLIDAY, storage="faulty", sizes=SIZES, atomic="false")
    assert answer.status_code == 201
    assert answer.json()["variants"] == []
    assert len(await faulty.keys()) == 4
    faulty.relent()
    assert (await service.client.delete(f"/api/v1/assets/{answer.json()['id']}")).status_code == 204
    assert await nothing_is_left(service, faulty)


async def test_a_failed_file_of_a_batch_without_atomic_leaves_nothing_of_itself(
    service: Service, faulty: FaultyStorage
) -> None:
    faulty.fail("put", at=2, error=StorageFull("staged"))
    files = [("files", (f"{number}.jpg", HOLIDAY)) for number in range(3)]
    answer = await service.client.post("/api/v1/assets/batch?storage=faulty&atomic=false", files=files)
    found = answer.json()
    assert (len(found["assets"]), [failed["code"] for failed in found["failed"]]) == (2, ["storage_full"])
    assert len(await faulty.keys()) == 2
    assert [state for _, state in await service.rows()] == ["ready", "ready"]


async def test_an_upload_that_is_cancelled_leaves_nothing(service: Service, faulty: FaultyStorage) -> None:
    hang = faulty.hang("put", at=3)
    task = asyncio.create_task(service.upload(HOLIDAY, storage="faulty", sizes=SIZES))
    await hang.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        if await nothing_is_left(service, faulty):
            break
        await asyncio.sleep(0.02)
    assert await nothing_is_left(service, faulty)


async def test_while_an_upload_runs_nobody_sees_it(service: Service, faulty: FaultyStorage) -> None:
    hang = faulty.hang("put", at=3)
    task = asyncio.create_task(service.upload(HOLIDAY, storage="faulty", sizes=SIZES))
    await hang.reached.wait()
    assert (await service.client.get("/api/v1/assets")).json()["items"] == []
    ((asset_id, state),) = await service.rows()
    assert state == "pending"
    assert (await service.client.get(f"/api/v1/assets/{asset_id}")).status_code == 404
    await service.runtime.reconciler.pass_once()  # whose own tasks are left alone
    hang.release()
    assert (await task).status_code == 201


async def test_a_catalogue_that_fails_at_the_end_leaves_nothing(
    service: Service, faulty: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: Any) -> bool:
        raise SmartAssetsError("staged")

    with monkeypatch.context() as staged:
        staged.setattr(Repository, "mark_ready", locked)
        answer = await service.upload(HOLIDAY, storage="faulty", sizes=SIZES)
    assert answer.status_code == 500
    assert await nothing_is_left(service, faulty)


async def test_an_upload_whose_row_was_taken_by_another_process_undoes_itself(
    service: Service, faulty: FaultyStorage
) -> None:
    hang = faulty.hang("put", at=2)
    task = asyncio.create_task(service.upload(HOLIDAY, storage="faulty", sizes=SIZES))
    await hang.reached.wait()
    await service.runtime.database.write(
        lambda catalogue: catalogue._connection.exec_driver_sql(
            "UPDATE assets SET state = 'deleting', lease = 'another'"
        )
    )
    hang.release()
    problem_of(await task, 503, "busy")
    assert await faulty.keys() == set()


# ── Deleting and changing visibility ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("position", [1, 2, 3, 4])
async def test_a_deletion_the_storage_refuses_is_gone_for_callers_and_owed(
    service: Service, faulty: FaultyStorage, position: int
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes=SIZES)
    url = f"/api/v1/assets/{asset['id']}"
    faulty.relent()
    faulty.fail("delete", at=position)
    # Memory is at hand, so its bytes would still be handed out: the caller hears of it.
    problem_of(await service.client.delete(url), 503, "storage_unavailable")
    assert (await service.client.get(url)).status_code == 404
    faulty.relent()
    await service.settle()
    assert await nothing_is_left(service, faulty)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("position", [1, 2, 3])
async def test_going_public_that_fails_is_undone(
    service: Service, faulty: FaultyStorage, position: int, after: bool
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="100,50", visibility="private")
    url = f"/api/v1/assets/{asset['id']}"
    faulty.relent()
    faulty.fail("move", at=position, after=after)
    answer = await service.client.patch(url, json={"visibility": "public", "filename": "new.jpg"})
    problem_of(answer, 503, "storage_unavailable")
    assert await visibilities(faulty) == ["private"] * 3
    assert (await service.client.get(url)).json() == asset
    assert (await service.client.get(asset["url"])).content == HOLIDAY
    faulty.relent()
    assert (await service.client.patch(url, json={"visibility": "public"})).status_code == 200
    assert await visibilities(faulty) == ["public"] * 3


async def test_going_public_is_undone_before_the_answer_where_the_catalogue_was_away_for_a_moment(
    start_service: StartService, faulty: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start_service(lease_seconds=3600) as service:  # so that the background does not do it meanwhile
        asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="100,50", visibility="private")
        with monkeypatch.context() as staged:

            def comes_back_after(_: Repository, record: AssetRecord) -> bool:
                staged.undo()
                raise CatalogueUnavailable("staged")

            def goes_away(_: Repository, finished: AssetRecord) -> bool:
                staged.setattr(Repository, "is_claimed", comes_back_after)
                raise CatalogueUnavailable("staged")

            staged.setattr(Repository, "finish_moving", goes_away)
            answer = await service.client.patch(f"/api/v1/assets/{asset['id']}", json={"visibility": "public"})
        problem_of(answer, 503, "busy")
        assert await visibilities(faulty) == ["private"] * 3
        assert [state for _, state in await service.rows()] == ["ready"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("position", [1, 2, 3])
async def test_going_private_that_fails_is_finished_later_and_never_shown_as_public(
    service: Service, faulty: FaultyStorage, position: int, after: bool
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="100,50")
    url = f"/api/v1/assets/{asset['id']}"
    faulty.relent()
    faulty.fail("move", at=position, after=after)
    problem_of(await service.client.patch(url, json={"visibility": "private"}), 503, "storage_unavailable")
    assert (await service.client.get(url)).json()["visibility"] == "private"
    for change in ({"visibility": "public"}, {"filename": "x.jpg"}):
        problem_of(await service.client.patch(url, json=change), 409, "asset_busy")
    problem_of(await service.client.delete(url), 409, "asset_busy")
    faulty.relent()
    await service.settle()
    assert await visibilities(faulty) == ["private"] * 3
    settled = (await service.client.get(url)).json()
    assert settled["visibility"] == "private"
    assert (await service.client.get(settled["url"])).content == HOLIDAY
    assert (await service.client.get(asset["url"])).status_code == 404


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
async def test_a_disk_that_is_full_can_be_emptied_by_deleting(start_service: StartService, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", data], check=False)
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        async with start_service() as service:
            large = images.with_film(HOLIDAY) + bytes(700_000)
            kept = []
            while (answer := await service.upload(large)).status_code == 201:
                kept.append(answer.json()["id"])
            problem_of(answer, 507, "storage_full")
            assert len(kept) >= 3
            assert service.temporary_files() == []
            assert len(service.stored_files()) == len(kept)
            for asset_id in kept:
                assert (await service.client.delete(f"/api/v1/assets/{asset_id}")).status_code == 204
            assert await service.leaves_nothing()
            assert (await service.upload(large)).status_code == 201
    finally:
        subprocess.run(["umount", data], check=True)
