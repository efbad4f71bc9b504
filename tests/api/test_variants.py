"""Sizes added to an asset that is there: all of them or none, whichever call fails, and however."""

import asyncio
from dataclasses import replace
from io import BytesIO
from typing import Any
from uuid import UUID

import httpx
import pytest
from PIL import Image

from smart_assets.catalogue.models import AssetRecord, VariantRecord
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import CatalogueUnavailable
from smart_assets.formats import ImageFormat
from smart_assets.storage.errors import StorageError, StorageFull
from smart_assets.storage.factory import register_backend
from tests import images
from tests.conftest import Service, StartService, problem_of
from tests.staging import DistantStorage, FaultyStorage

HOLIDAY = images.jpeg(320, 240, seed=17)
NOBODY = "019aa0c2-0000-7000-8000-000000000000"


async def add(service: Service, asset: Any, /, key: str | None = None, **query: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await service.client.post(f"/api/v1/assets/{asset['id']}/variants", params=query, headers=headers)


async def added(service: Service, asset: Any, /, **query: Any) -> Any:
    answer = await add(service, asset, **query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def got(service: Service, asset: Any) -> Any:
    answer = await service.client.get(f"/api/v1/assets/{asset['id']}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def total_bytes(service: Service) -> int:
    return int((await service.client.get("/api/v1/stats")).json()["bytes"])


def sizes(asset: Any) -> list[str]:
    return [variant["size"] for variant in asset["variants"]]


def size_in_bytes(asset: Any) -> int:
    return int(asset["size_bytes"] + sum(variant["size_bytes"] for variant in asset["variants"]))


# ── What is made ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("storage", ["local", "memory"])
async def test_sizes_are_added_to_those_there_are(service: Service, storage: str) -> None:
    asset = await service.uploaded(HOLIDAY, storage=storage, sizes="64", visibility="private")
    version = (await service.client.get(f"/api/v1/assets/{asset['id']}")).headers["etag"]
    answer = await add(service, asset, sizes="100,x50")
    assert answer.status_code == 200, answer.text
    grown = answer.json()
    assert sizes(grown) == ["64", "100", "x50"]
    assert grown["failed"] == []
    assert grown["variants"][0]["size_bytes"] == asset["variants"][0]["size_bytes"]
    for variant in grown["variants"]:
        content = (await service.client.get(variant["url"])).content
        assert Image.open(BytesIO(content)).size == (variant["width"], variant["height"])
        assert len(content) == variant["size_bytes"]
    assert answer.headers["etag"] != version
    assert grown["updated_at"] >= asset["updated_at"]
    seen = await service.client.get(f"/api/v1/assets/{asset['id']}")
    assert seen.headers["etag"] == answer.headers["etag"]
    assert sizes(seen.json()) == sizes(grown)
    assert await total_bytes(service) == size_in_bytes(grown)
    assert service.temporary_files() == []


async def test_a_size_that_is_there_is_not_made_again(service: Service, faulty: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="100")
    faulty.relent()
    answer = await add(service, asset, sizes="100")
    assert answer.json() == asset
    assert sum(faulty.calls.values()) == 0
    assert answer.headers["etag"] == '"v1"'
    grown = await added(service, asset, sizes="100,50")
    assert faulty.calls["put"] == 1
    assert sizes(grown) == ["100", "50"]


async def test_other_options_or_another_format_make_another_size(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, sizes="100x40")
    for query in ({"quality": 40}, {"fit": "cover"}, {"format": "webp"}, {"format": "png"}):
        grown = await added(service, asset, sizes="100x40", **query)
    assert [variant["name"] for variant in grown["variants"]] == [
        "100x40.jpg", "100x40-q40.jpg", "100x40-cover.jpg", "100x40.webp", "100x40.png",
    ]  # fmt: skip
    assert len({variant["url"] for variant in grown["variants"]}) == 5
    for variant in grown["variants"]:
        content = await service.client.get(f"/api/v1/assets/{asset['id']}/content", params={"size": variant["name"]})
        assert (content.headers["content-type"], len(content.content)) == (
            variant["content_type"],
            variant["size_bytes"],
        )
        assert (await service.client.get(variant["url"])).content == content.content


async def test_an_asset_has_at_most_twenty_sizes_in_all(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, sizes=",".join(str(side) for side in range(20, 35)))
    too_many = await add(service, asset, sizes="34,35,36,37,38,39,40")
    assert problem_of(too_many, 422, "invalid_parameter")["errors"][0]["loc"] == ["query", "sizes"]
    assert await got(service, asset) == asset
    assert len((await added(service, asset, sizes="34,35,36,37,38,39"))["variants"]) == 20
    problem_of(await add(service, asset, sizes="41"), 422, "invalid_parameter")


async def test_a_placeholder_is_computed_where_it_is_missing(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    assert asset["thumbhash"] is None
    assert (await added(service, asset, sizes="50", placeholder="false"))["thumbhash"] is None
    with_one = await added(service, asset, placeholder="true")
    assert with_one["thumbhash"]
    assert with_one["dominant_color"]
    assert sizes(with_one) == ["50"]
    assert with_one["thumbhash"] == (await service.uploaded(HOLIDAY, placeholder="true"))["thumbhash"]
    assert await added(service, asset, placeholder="true") == with_one
    other = await service.uploaded(HOLIDAY)
    assert (await added(service, other, sizes="50"))["thumbhash"]


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ({}, "sizes"),
        ({"sizes": ""}, "sizes"),
        ({"sizes": "0"}, "sizes"),
        ({"sizes": "50", "quality": 101}, "quality"),
        ({"sizes": "50", "background": "red"}, "background"),
        ({"sizes": "50", "storage": "memory"}, "storage"),
    ],
)
async def test_what_cannot_be_asked_for_is_named(service: Service, query: Any, where: str) -> None:
    asset = await service.uploaded(HOLIDAY)
    problem = problem_of(await add(service, asset, **query), 422, "invalid_parameter")
    assert problem["errors"][0]["loc"] == ["query", where]


@pytest.mark.parametrize("asset_id", [NOBODY, "nonsense", "null"])
async def test_of_what_is_not_there_no_size_is_made(service: Service, asset_id: str) -> None:
    problem_of(await add(service, {"id": asset_id}, sizes="50"), 404, "asset_not_found")


# ── What fails ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("after", [False, True], ids=["before the bytes landed", "after the bytes landed"])
@pytest.mark.parametrize("position", [1, 2, 3])
@pytest.mark.parametrize(
    ("error", "status", "code"), [(None, 503, "storage_unavailable"), (StorageFull("staged"), 507, "storage_full")]
)
async def test_one_failed_write_leaves_the_asset_as_it_was(
    service: Service,
    faulty: FaultyStorage,
    error: StorageError | None,
    status: int,
    code: str,
    position: int,
    after: bool,
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="64")
    before = await faulty.keys()
    faulty.relent()
    faulty.fail("put", at=position, after=after, error=error)
    problem_of(await add(service, asset, sizes="100,50,x30"), status, code)
    assert await faulty.keys() == before
    assert await got(service, asset) == asset
    assert await total_bytes(service) == size_in_bytes(asset)
    assert service.temporary_files() == []
    assert [state for _, state in await service.rows()] == ["ready"]
    assert sizes(await added(service, asset, sizes="100,50,x30")) == ["64", "100", "50", "x30"]


@pytest.mark.parametrize("position", [1, 2, 3])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_without_atomic_what_worked_is_kept(
    service: Service, faulty: FaultyStorage, position: int, after: bool
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="64")
    faulty.relent()
    faulty.fail("put", at=position, after=after)
    grown = await added(service, asset, sizes="100,50,x30", atomic="false")
    (failed,) = grown["failed"]
    assert failed["code"] == "storage_unavailable"
    assert {failed["size"], *sizes(grown)} == {"64", "100", "50", "x30"}
    assert len(grown["variants"]) == 3
    assert len(await faulty.keys()) == 4
    assert await total_bytes(service) == size_in_bytes(grown)
    assert sizes(await added(service, asset, sizes="100,50,x30")) == [*sizes(grown), failed["size"]]


async def test_what_cannot_be_removed_of_a_failed_size_is_removed_before_it_is_made_again(
    service: Service, faulty: FaultyStorage
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    faulty.relent()
    faulty.fail("put", after=True)
    faulty.fail("delete")
    grown = await added(service, asset, sizes="100,50", atomic="false")
    assert sizes(grown) == []
    assert len(await faulty.keys()) == 3
    problem_of(await add(service, asset, sizes="100"), 503, "storage_unavailable")
    faulty.relent()
    await service.settle()
    assert sizes(await added(service, asset, sizes="100")) == ["100"]
    assert len(await faulty.keys()) == 2


@pytest.mark.parametrize("position", [1, 2])
async def test_a_clean_up_that_fails_keeps_the_asset_busy_until_it_works(
    service: Service, faulty: FaultyStorage, position: int
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    before = await faulty.keys()
    faulty.relent()
    faulty.fail("put", at=2, after=True)
    faulty.fail("delete", at=position)
    problem_of(await add(service, asset, sizes="100,50"), 503, "storage_unavailable")
    assert await got(service, asset) == asset
    problem_of(await add(service, asset, sizes="100"), 409, "asset_busy")
    faulty.relent()
    await service.settle()
    assert await faulty.keys() == before
    assert await got(service, asset) == asset
    assert sizes(await added(service, asset, sizes="100,50")) == ["100", "50"]


async def test_pixels_that_are_damaged_fail_all_or_each_size(service: Service) -> None:
    whole = images.png(240, 180)
    middle = len(whole) // 2
    asset = await service.uploaded(whole[:middle] + bytes(64) + whole[middle + 64 :])
    problem_of(await add(service, asset, sizes="100"), 422, "corrupt_image")
    kept = await added(service, asset, sizes="100,50", atomic="false")
    assert [(failed["size"], failed["code"]) for failed in kept["failed"]] == [
        ("100", "corrupt_image"),
        ("50", "corrupt_image"),
    ]
    assert {**kept, "failed": []} == asset
    assert service.temporary_files() == []


@pytest.mark.parametrize("now", [HOLIDAY + b"x", HOLIDAY[:-1] + b"x", None], ids=["longer", "changed", "gone"])
async def test_an_original_that_is_not_what_was_uploaded_is_not_rendered(service: Service, now: bytes | None) -> None:
    asset = await service.uploaded(HOLIDAY)
    (key,) = service.stored_files()
    path = service.data_dir / "assets" / key
    path.unlink()
    if now is not None:
        path.write_bytes(now)
    problem_of(await add(service, asset, sizes="50"), 502, "storage_error")
    assert await got(service, asset) == asset
    assert service.temporary_files() == []


# ── Who else is there ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_while_sizes_are_added_the_asset_is_as_before_and_busy(service: Service, faulty: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="64")
    faulty.relent()
    hang = faulty.hang("put", at=2)
    task = asyncio.create_task(add(service, asset, sizes="100,50"))
    await hang.reached.wait()
    assert await got(service, asset) == asset
    assert (await service.client.get(asset["variants"][0]["url"])).status_code == 200
    problem_of(await add(service, asset, sizes="30"), 409, "asset_busy")
    url = f"/api/v1/assets/{asset['id']}"
    problem_of(await service.client.patch(url, json={"filename": "x.jpg"}), 409, "asset_busy")
    problem_of(await service.client.delete(url), 409, "asset_busy")
    await service.runtime.reconciler.pass_once()  # whose own tasks are left alone
    hang.release()
    assert sizes((await task).json()) == ["64", "100", "50"]


async def test_a_second_call_for_the_same_asset_is_busy_from_the_first_byte_that_is_fetched(
    service: Service, faulty: FaultyStorage
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    hang = faulty.hang("read")
    task = asyncio.create_task(add(service, asset, sizes="100"))
    await hang.reached.wait()
    problem_of(await add(service, asset, sizes="100"), 409, "asset_busy")
    hang.release()
    assert (await task).status_code == 200


async def test_one_that_is_cancelled_leaves_the_asset_as_it_was(service: Service, faulty: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    before = await faulty.keys()
    faulty.relent()
    hang = faulty.hang("put", at=2)
    task = asyncio.create_task(add(service, asset, sizes="100,50"))
    await hang.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        if [state for _, state in await service.rows()] == ["ready"]:
            break
        await asyncio.sleep(0.02)
    assert await faulty.keys() == before
    assert await got(service, asset) == asset
    assert service.temporary_files() == []


async def test_what_a_dead_process_had_begun_is_undone(service: Service, faulty: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="64")
    before = await faulty.keys()
    key = next(key for key in before if ".64." in key)
    await faulty.inner.upload(key.replace(".64.", ".50."), HOLIDAY, content_type="image/jpeg")
    await service.runtime.database.write(lambda catalogue: catalogue.begin_growing(_begun(catalogue, "dead/1", "50")))
    problem_of(await add(service, asset, sizes="50"), 409, "asset_busy")
    await service.settle()
    assert await faulty.keys() == before
    assert await got(service, asset) == asset
    assert await total_bytes(service) == size_in_bytes(asset)


def _begun(catalogue: Repository, lease: str, size: str) -> AssetRecord:
    """The only asset, about to get a size."""
    ((asset_id,),) = catalogue._connection.exec_driver_sql("SELECT id FROM assets")
    record = catalogue.get(UUID(asset_id))
    assert record is not None
    return replace(record, lease=lease, variants=(*record.variants, VariantRecord(size, size, ImageFormat.JPEG)))


@pytest.mark.parametrize("atomic", ["true", "false"])
async def test_who_was_taken_for_dead_removes_what_it_wrote_and_only_that(
    service: Service, faulty: FaultyStorage, atomic: str
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    faulty.relent()
    hang = faulty.hang("put", at=2)
    slow = asyncio.create_task(add(service, asset, sizes="100,50", atomic=atomic))
    await hang.reached.wait()
    while len(await faulty.keys()) < 2:  # the first put may be on its way still
        await asyncio.sleep(0.01)
    await _taken_over_and_undone(service)
    for key in await faulty.keys():
        if ".original." not in key:
            await faulty.inner.delete(key)
    # Another makes the same sizes meanwhile, and the slow one's write finds its key taken: those bytes must stay.
    theirs = await added(service, asset, sizes="100,50")
    hang.release()
    assert (await slow).status_code in {502, 503}
    assert await got(service, asset) == theirs
    for variant in theirs["variants"]:
        assert (await service.client.get(variant["url"])).status_code == 200
    assert len(await faulty.keys()) == 3


async def test_who_was_taken_for_dead_and_writes_what_nobody_else_did_removes_that(
    service: Service, faulty: FaultyStorage
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    before = await faulty.keys()
    faulty.relent()
    hang = faulty.hang("put", at=2)
    slow = asyncio.create_task(add(service, asset, sizes="100,50"))
    await hang.reached.wait()
    await _taken_over_and_undone(service)
    hang.release()
    problem_of(await slow, 503, "busy")
    assert await faulty.keys() == before
    assert await got(service, asset) == asset


async def _taken_over_and_undone(service: Service) -> None:
    await service.runtime.database.write(
        lambda catalogue: catalogue._connection.exec_driver_sql(
            "UPDATE assets SET state = 'ready', lease = NULL, variants = '[]'"
        )
    )


async def test_a_write_that_lands_after_its_row_was_taken_over_is_found_and_removed(
    service: Service, faulty: FaultyStorage
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="64")
    before = await faulty.keys()
    await service.runtime.database.write(lambda catalogue: catalogue.begin_growing(_begun(catalogue, "dead/1", "50")))
    await service.settle()
    late = next(key for key in before if ".64." in key).replace(".64.", ".50.")
    await faulty.inner.upload(late, HOLIDAY, content_type="image/jpeg")
    await service.settle()
    assert await faulty.keys() == before
    assert await got(service, asset) == asset


async def test_an_answer_that_is_lost_behind_the_commit_undoes_nothing(
    service: Service, faulty: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    write = service.runtime.database.write

    async def answer_lost(work: Any) -> Any:
        result = await write(work)
        if work.__name__ == "close":
            raise CatalogueUnavailable("staged")
        return result

    with monkeypatch.context() as staged:
        staged.setattr(service.runtime.database, "write", answer_lost)
        problem_of(await add(service, asset, sizes="100"), 503, "busy")
    assert sizes(await got(service, asset)) == ["100"]
    assert len(await faulty.keys()) == 2


async def test_the_original_is_fetched_from_wherever_it_lies(start_service: StartService) -> None:
    undo = register_backend("distant", lambda name, _: DistantStorage(name))
    try:
        async with start_service() as service:
            asset = await service.uploaded(HOLIDAY, storage="distant")
            grown = await added(service, asset, sizes="100")
            content = await service.client.get(f"/api/v1/assets/{asset['id']}/content", params={"size": "100"})
            assert len(content.content) == grown["variants"][0]["size_bytes"]
    finally:
        undo()


# ── Under a key ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_retry_under_a_key_returns_the_first_answer(service: Service, faulty: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    faulty.relent()
    faulty.fail("put", at=1)
    query = {"sizes": "100,50", "atomic": "false"}
    first = await add(service, asset, "k", **query)
    assert len(first.json()["failed"]) == 1
    again = await add(service, asset, "k", **query)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    assert faulty.calls["put"] == 2
    problem_of(await add(service, asset, "k", sizes="30"), 409, "idempotency_conflict")
    assert (await service.client.delete(f"/api/v1/assets/{asset['id']}")).status_code == 204
    problem_of(await add(service, asset, "k", **query), 410, "asset_gone")


async def test_a_refusal_about_the_content_is_remembered_and_one_about_the_storage_is_not(
    service: Service, faulty: FaultyStorage
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    faulty.relent()
    faulty.fail("put", at=1)
    problem_of(await add(service, asset, "k", sizes="100"), 503, "storage_unavailable")
    assert (await add(service, asset, "k", sizes="100")).status_code == 200
    nothing_new = await add(service, asset, "other", sizes="100")
    assert nothing_new.status_code == 200
    assert (await add(service, asset, "other", sizes="100")).headers["idempotency-replayed"] == "true"
