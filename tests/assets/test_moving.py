"""An asset goes to another storage whole, or stays where it is; meanwhile it can be read."""

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from smart_assets.assets import uploads
from smart_assets.assets.delivery import Grant
from smart_assets.assets.objects import object_keys
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import CatalogueUnavailable, NoSpace
from smart_assets.storage.base import Source, StoredObject
from smart_assets.storage.errors import StorageError, StorageFull, StorageNotConfigured, StorageUnavailable
from tests import images
from tests.conftest import Service, StartService, problem_of
from tests.staging import FaultyStorage

HOLIDAY = images.jpeg(320, 240, seed=11)
LARGE = images.with_film(HOLIDAY) + bytes(1_200_000)
SIZES = "100,50"


def at(asset: Any) -> str:
    return f"/api/v1/assets/{asset['id']}"


async def move(service: Service, asset: Any, storage: str) -> Any:
    answer = await service.client.post(f"{at(asset)}/move", params={"storage": storage})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def row(service: Service, asset: Any) -> AssetRecord:
    found = await service.runtime.database.read(lambda catalogue: catalogue.get_in_any_state(UUID(asset["id"])))
    assert found is not None
    return found


async def totals(service: Service) -> dict[str, tuple[int, int]]:
    told = (await service.client.get("/api/v1/stats")).json()
    return {each["name"]: (each["count"], each["bytes"]) for each in told["storages"] if each["count"]}


async def is_as_it_was(service: Service, asset: Any) -> bool:
    """Whether a move that failed changed nothing that anybody could see, or not see."""
    now = (await service.client.get(at(asset))).json()
    record = await row(service, asset)
    content = await service.client.get(f"{at(asset)}/content")
    return (now, record.state, record.lease, content.content, len(service.temporary_files())) == (
        asset,
        "ready",
        None,
        HOLIDAY,
        0,
    )


# ── What a move is ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("visibility", ["public", "private"])
async def test_everything_goes_there_and_nothing_stays(
    service: Service, distant: FaultyStorage, visibility: str
) -> None:
    asset = await service.uploaded(HOLIDAY, sizes=SIZES, visibility=visibility, tags="trip")
    keys = set(service.stored_files())
    before = await totals(service)
    answer = await service.client.post(f"{at(asset)}/move?storage=distant")
    assert answer.status_code == 200
    moved = answer.json()
    assert answer.headers["etag"] == '"v2"'
    assert moved == asset | {"storage": "distant", "updated_at": moved["updated_at"]}
    assert moved["updated_at"] > asset["updated_at"]
    assert service.stored_files() == []
    assert await distant.keys() == keys
    assert all(key.startswith(f"{visibility}/") for key in keys)
    assert await totals(service) == {"distant": before["local"]}
    assert (await service.client.get(f"{at(asset)}/content")).content == HOLIDAY
    assert (await service.client.get(at(asset))).json() == moved


async def test_there_and_back_it_is_the_same_asset(service: Service, distant: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, sizes=SIZES)
    await move(service, asset, "distant")
    back = await move(service, asset, "local")
    assert back == asset | {"updated_at": back["updated_at"]}
    assert await distant.keys() == set()
    assert (await service.client.get(asset["url"])).content == HOLIDAY
    assert len(service.stored_files()) == 3


async def test_an_address_from_before_lives_on(service: Service, distant: FaultyStorage) -> None:
    public = await service.uploaded(HOLIDAY, sizes=SIZES)
    private = await service.uploaded(HOLIDAY, visibility="private")
    for asset in (public, private):
        await move(service, asset, "distant")
    for url in (public["url"], public["variants"][0]["url"], private["url"]):
        answer = await service.client.get(url)
        assert (answer.status_code, answer.headers["location"][:22]) == (302, "https://bucket.example")
    problem_of(await service.client.get(private["url"].partition("?")[0]), 403, "signature_required")
    for asset in (public, private):
        await move(service, asset, "memory")
        assert (await service.client.get(asset["url"])).content == HOLIDAY


async def test_where_it_is_already_it_is_left_as_it_is(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    assert await move(service, asset, "local") == asset


async def test_a_large_file_goes_through_a_temporary_one(service: Service, distant: FaultyStorage) -> None:
    asset = await service.uploaded(LARGE)
    await move(service, asset, "distant")
    assert (await service.client.get(f"{at(asset)}/content")).content == LARGE
    await move(service, asset, "local")
    assert (await service.client.get(asset["url"])).content == LARGE
    assert service.temporary_files() == []


async def test_of_two_moves_at_once_one_is_done(service: Service, distant: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, sizes=SIZES)
    answers = await asyncio.gather(
        *(service.client.post(f"{at(asset)}/move?storage={storage}") for storage in ("distant", "memory"))
    )
    assert sorted(answer.status_code for answer in answers) in ([200, 200], [200, 409])
    now = (await service.client.get(at(asset))).json()["storage"]
    assert {name: count for name, (count, _) in (await totals(service)).items()} == {now: 1}
    assert len(await distant.keys()) == (3 if now == "distant" else 0)
    assert service.stored_files() == []


# ── What is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("storage=nowhere", "storage_not_configured"),
        ("storage=s3", "storage_not_configured"),
        ("storage=direct", "unsupported"),
        ("storage=", "invalid_parameter"),
        ("", "invalid_parameter"),
        ("storage=memory&to=local", "invalid_parameter"),
    ],
)
async def test_a_target_that_is_none_is_refused(service: Service, query: str, code: str) -> None:
    asset = await service.uploaded(HOLIDAY)
    problem_of(await service.client.post(f"{at(asset)}/move?{query}"), 422, code)
    assert await is_as_it_was(service, asset)


async def test_what_one_process_alone_would_know_is_no_target_where_there_are_several(
    start_service: StartService,
) -> None:
    async with start_service(workers=2) as service:
        asset = await service.uploaded(HOLIDAY)
        problem_of(await service.client.post(f"{at(asset)}/move?storage=memory"), 422, "storage_not_configured")


async def test_an_asset_that_is_not_there_is_not_moved(service: Service) -> None:
    for asset_id in ("0190a0c2-0000-7000-8000-000000000000", "x"):
        answer = await service.client.post(f"/api/v1/assets/{asset_id}/move?storage=memory")
        problem_of(answer, 404, "asset_not_found")


async def test_what_the_target_is_too_small_for_is_refused_before_anything_is_changed(
    service: Service, distant: FaultyStorage
) -> None:
    distant.capabilities = replace(distant.capabilities, max_object_bytes=len(HOLIDAY) - 1)
    asset = await service.uploaded(HOLIDAY, sizes=SIZES)
    problem = problem_of(await service.client.post(f"{at(asset)}/move?storage=distant"), 422, "unsupported")
    assert str(len(HOLIDAY)) in problem["detail"]
    assert distant.calls["put"] == 0
    assert await is_as_it_was(service, asset)


async def test_an_asset_of_a_storage_that_is_not_configured_any_more_is_not_moved(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    await service.runtime.database.write(
        lambda catalogue: catalogue._connection.exec_driver_sql("UPDATE assets SET storage = 'gone'")
    )
    problem_of(await service.client.post(f"{at(asset)}/move?storage=memory"), 422, "storage_not_configured")


async def test_a_disk_without_room_refuses_what_needs_some(
    service: Service, distant: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = await service.uploaded(HOLIDAY), await service.uploaded(LARGE)
    back = await service.uploaded(HOLIDAY, storage="distant")
    monkeypatch.setattr(uploads, "RESERVE_BYTES", 2**60)
    for asset, storage in ((large, "distant"), (back, "local")):
        problem_of(await service.client.post(f"{at(asset)}/move?storage={storage}"), 507, "storage_full")
    await move(service, small, "distant")  # a full disk can be emptied by moving, too


# ── What fails is undone ────────────────────────────────────────────────────────────────────────────────────────────


ERRORS = [
    (StorageUnavailable("staged"), 503, "storage_unavailable"),
    (StorageFull("staged"), 507, "storage_full"),
    (StorageError("staged"), 502, "storage_error"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before the bytes landed", "after the bytes landed"])
@pytest.mark.parametrize("position", [1, 2, 3])
@pytest.mark.parametrize(("error", "status", "code"), ERRORS, ids=[code for *_, code in ERRORS])
async def test_a_copy_that_fails_leaves_it_where_it_was(
    service: Service,
    distant: FaultyStorage,
    error: StorageError,
    status: int,
    code: str,
    position: int,
    after: bool,
) -> None:
    asset = await service.uploaded(HOLIDAY, sizes=SIZES, visibility="private")
    distant.fail("put", at=position, after=after, error=error)
    problem_of(await service.client.post(f"{at(asset)}/move?storage=distant"), status, code)
    assert await distant.keys() == set()
    assert await is_as_it_was(service, asset)
    distant.relent()
    await move(service, asset, "distant")


@pytest.mark.parametrize("position", [1, 2, 3])
async def test_bytes_that_arrive_as_others_are_noticed(service: Service, distant: FaultyStorage, position: int) -> None:
    asset = await service.uploaded(HOLIDAY, sizes=SIZES)
    distant.spoil(at=position)
    problem_of(await service.client.post(f"{at(asset)}/move?storage=distant"), 502, "storage_error")
    assert await distant.keys() == set()
    assert await is_as_it_was(service, asset)


async def test_bytes_that_are_cut_short_are_noticed(service: Service, distant: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, sizes=SIZES)
    distant.shorten(at=2)
    problem_of(await service.client.post(f"{at(asset)}/move?storage=distant"), 502, "storage_error")
    assert await distant.keys() == set()
    assert await is_as_it_was(service, asset)


@pytest.mark.parametrize("damage", ["longer", "shorter", "other", "missing"])
async def test_an_original_that_is_not_what_its_row_says_stays(
    service: Service, distant: FaultyStorage, damage: str
) -> None:
    asset = await service.uploaded(HOLIDAY)
    path = service.data_dir / "assets" / service.stored_files()[0]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"longer": HOLIDAY + b"x", "shorter": HOLIDAY[:-1], "other": HOLIDAY[:-1] + b"x"}[damage])
    problem_of(await service.client.post(f"{at(asset)}/move?storage=distant"), 502, "storage_error")
    assert await distant.keys() == set()
    assert (await row(service, asset)).state == "ready"


async def test_a_source_that_does_not_answer_leaves_it_where_it_was(service: Service, faulty: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes=SIZES)
    faulty.fail("read", at=2)
    problem_of(await service.client.post(f"{at(asset)}/move?storage=local"), 503, "storage_unavailable")
    assert service.stored_files() == []
    faulty.relent()
    assert await is_as_it_was(service, asset)


async def test_what_else_lies_under_its_key_is_left_alone(service: Service, distant: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, sizes=SIZES)
    for key in service.stored_files():
        size = (service.data_dir / "assets" / key).stat().st_size
        for content in (b"another's", bytes(size)):
            await distant.inner.upload(key, content, content_type="image/jpeg")
            problem_of(await service.client.post(f"{at(asset)}/move?storage=distant"), 502, "storage_error")
            assert await distant.keys() == {key}
            assert await is_as_it_was(service, asset)
            await distant.inner.delete(key)


@pytest.mark.parametrize("create_if_absent", [True, False])
async def test_what_an_earlier_try_left_is_taken_for_the_copy_it_is(
    service: Service, distant: FaultyStorage, create_if_absent: bool
) -> None:
    distant.capabilities = replace(distant.capabilities, create_if_absent=create_if_absent)
    asset = await service.uploaded(HOLIDAY, sizes=SIZES)
    for key in service.stored_files()[:2]:
        await distant.inner.upload(key, service.data_dir / "assets" / key, content_type="image/jpeg")
    await move(service, asset, "distant")
    assert len(await distant.keys()) == 3
    assert service.stored_files() == []


async def test_a_move_whose_caller_goes_away_is_finished(service: Service, distant: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, sizes=SIZES)
    hang = distant.hang("put", at=2)
    task = asyncio.create_task(service.client.post(f"{at(asset)}/move?storage=distant"))
    await hang.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hang.release()
    while (await row(service, asset)).state != "ready":
        await asyncio.sleep(0.01)
    assert (await row(service, asset)).storage == "distant"
    assert service.stored_files() == []


async def test_a_catalogue_that_fails_at_the_switch_leaves_it_where_it_was(
    service: Service, distant: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = await service.uploaded(HOLIDAY, sizes=SIZES)

    def away(*_: Any) -> None:
        raise CatalogueUnavailable("staged")

    with monkeypatch.context() as staged:
        staged.setattr(Repository, "switch_storage", away)
        problem_of(await service.client.post(f"{at(asset)}/move?storage=distant"), 503, "busy")
    assert await distant.keys() == set()
    assert await is_as_it_was(service, asset)


async def test_a_switch_whose_answer_was_lost_is_never_undone(
    service: Service, distant: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = await service.uploaded(HOLIDAY, sizes=SIZES)
    switched: list[bool] = []
    kind = type(service.runtime.database)
    switch, write = Repository.switch_storage, kind.write

    def note(*arguments: Any) -> Any:
        switched.append(True)
        return switch(*arguments)

    async def lose_the_answer(database: Database, work: Any) -> Any:
        lost = False

        def watched(catalogue: Repository) -> Any:
            nonlocal lost
            before = len(switched)
            result = work(catalogue)
            lost = len(switched) > before  # this one, and no other that was committed along with it
            return result

        result = await write(database, watched)
        if lost:
            raise CatalogueUnavailable("staged")
        return result

    with monkeypatch.context() as staged:
        staged.setattr(Repository, "switch_storage", note)
        staged.setattr(kind, "write", lose_the_answer)
        problem_of(await service.client.post(f"{at(asset)}/move?storage=distant"), 503, "busy")
    record = await row(service, asset)
    assert (record.state, record.storage, record.target_storage) == ("ready", "distant", None)
    assert service.stored_files() == []
    assert len(await distant.keys()) == 3
    assert (await move(service, asset, "distant"))["storage"] == "distant"


@pytest.mark.parametrize("is_gone", [False, True], ids=["undone by another", "deleted since"])
async def test_a_move_that_was_taken_over_leaves_nothing_astray(
    service: Service, distant: FaultyStorage, is_gone: bool
) -> None:
    asset = await service.uploaded(HOLIDAY, sizes=SIZES)
    hang = distant.hang("put", at=2)
    task = asyncio.create_task(service.client.post(f"{at(asset)}/move?storage=distant"))
    await hang.reached.wait()
    statement = "UPDATE assets SET state = 'ready', target_storage = NULL, lease = NULL"
    await service.runtime.database.write(
        lambda catalogue: catalogue._connection.exec_driver_sql("DELETE FROM assets" if is_gone else statement)
    )
    hang.release()
    problem_of(await task, 503, "busy")
    assert await distant.keys() == set()
    if is_gone:
        assert service.stored_files() == []
    else:
        assert await is_as_it_was(service, asset)


# ── While it moves ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_while_it_moves_it_can_be_read_and_not_changed(service: Service, distant: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, sizes=SIZES, visibility="private")
    hang = distant.hang("put", at=2)
    task = asyncio.create_task(service.client.post(f"{at(asset)}/move?storage=distant"))
    await hang.reached.wait()
    assert (await service.client.get(at(asset))).json() == asset
    assert (await service.client.get("/api/v1/assets")).json()["items"] == [asset]
    assert (await service.client.get(f"{at(asset)}/content")).content == HOLIDAY
    assert (await service.client.get(asset["url"])).content == HOLIDAY
    for change in ({"visibility": "public"}, {"filename": "x.jpg"}):
        problem_of(await service.client.patch(at(asset), json=change), 409, "asset_busy")
    problem_of(await service.client.delete(at(asset)), 409, "asset_busy")
    for storage in ("local", "memory", "distant"):
        problem_of(await service.client.post(f"{at(asset)}/move?storage={storage}"), 409, "asset_busy")
    await service.settle()  # whose own tasks are left alone
    hang.release()
    assert (await task).status_code == 200


async def test_reading_that_began_before_the_switch_goes_on_after_it(service: Service, distant: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, storage="memory")
    begun = await service.runtime.delivery.content(await row(service, asset), None)
    await move(service, asset, "distant")
    assert b"".join([piece async for piece in begun.read(0, begun.size)]) == HOLIDAY


async def test_an_address_looked_up_just_before_the_switch_is_answered(
    service: Service, distant: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = await service.uploaded(HOLIDAY)
    before = await row(service, asset)
    await move(service, asset, "distant")
    delivery = service.runtime.delivery
    look = delivery._record

    async def as_it_was(key: Any) -> AssetRecord:
        monkeypatch.setattr(delivery, "_record", look)
        return before

    monkeypatch.setattr(delivery, "_record", as_it_was)
    found = await delivery.look_up(object_keys(before)[0], Grant(60))
    assert type(found).__name__ == "Redirect"


# ── The old copies ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("position", [1, 2, 3])
async def test_old_copies_that_cannot_be_removed_are_owed(
    service: Service, faulty: FaultyStorage, distant: FaultyStorage, position: int
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes=SIZES)
    faulty.relent()
    faulty.fail("delete", at=position)
    assert (await move(service, asset, "distant"))["storage"] == "distant"
    assert len(await faulty.keys()) == 1
    assert (await service.client.get(f"{at(asset)}/content")).content == HOLIDAY
    problem_of(await service.client.delete(at(asset)), 409, "asset_busy")
    faulty.relent()
    await service.settle()
    assert await faulty.keys() == set()
    record = await row(service, asset)
    assert (record.state, record.storage, record.target_storage) == ("ready", "distant", None)
    assert (await service.client.delete(at(asset))).status_code == 204
    assert await distant.keys() == set()


async def test_a_storage_that_is_gone_when_it_is_to_be_emptied_is_waited_for(
    service: Service, faulty: FaultyStorage, distant: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes=SIZES)
    get = service.runtime.storages.get

    def without(name: str) -> Any:
        if name == "faulty" and distant.calls["put"] == 3:
            raise StorageNotConfigured("staged")
        return get(name)

    monkeypatch.setattr(service.runtime.storages, "get", without)
    await move(service, asset, "distant")
    await service.settle()
    assert (await row(service, asset)).target_storage == "faulty"
    assert (await service.client.get(f"{at(asset)}/content")).content == HOLIDAY
    monkeypatch.undo()
    service.runtime.reconciler._put_off.clear()
    await service.settle()
    assert (await row(service, asset)).state == "ready"
    assert await faulty.keys() == set()


async def test_a_copy_that_may_still_land_keeps_the_row_until_it_cannot(
    service: Service, distant: FaultyStorage
) -> None:
    distant.late_write_seconds = 60
    asset = await service.uploaded(HOLIDAY, sizes=SIZES)
    distant.fail("put", at=2)
    problem_of(await service.client.post(f"{at(asset)}/move?storage=distant"), 503, "storage_unavailable")
    record = await row(service, asset)
    assert (record.state, record.storage, record.target_storage) == ("moving", "local", "distant")
    await distant.inner.upload(service.stored_files()[1], b"late", content_type="image/jpeg")
    distant._late_writes.clear()  # the time has passed
    service.runtime.reconciler._put_off.clear()
    await service.settle()
    assert await distant.keys() == set()
    assert await is_as_it_was(service, asset)


# ── What forgets at a restart ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("there", [True, False], ids=["to memory", "from memory"])
@pytest.mark.parametrize("switched", [False, True])
async def test_a_move_that_memory_was_part_of_leaves_no_byte_after_a_restart_but_those_of_its_row(
    start_service: StartService, there: bool, switched: bool
) -> None:
    async with start_service() as service:
        asset = await service.uploaded(HOLIDAY, sizes=SIZES)
        storage, target = ("local", "memory") if there != switched else ("memory", "local")
        await service.runtime.database.write(
            lambda catalogue: catalogue._connection.exec_driver_sql(
                f"UPDATE assets SET state = 'moving', storage = '{storage}', target_storage = '{target}', lease = 'x/1'"
            )
        )
    async with start_service() as service:
        await service.settle()
        if storage == "local":
            assert await is_as_it_was(service, asset)
            assert len(service.stored_files()) == 3
        else:
            assert await service.leaves_nothing()


async def test_a_disk_that_fills_up_while_a_file_is_fetched_leaves_it_where_it_was(
    service: Service, distant: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = await service.uploaded(HOLIDAY)
    put = FaultyStorage._put

    async def full(storage: FaultyStorage, key: str, source: Source, **how: Any) -> StoredObject:
        await put(storage, key, source, **how)
        raise NoSpace("staged")

    monkeypatch.setattr(FaultyStorage, "_put", full)
    problem_of(await service.client.post(f"{at(asset)}/move?storage=distant"), 507, "storage_full")
    assert await distant.keys() == set()
    assert await is_as_it_was(service, asset)
