"""Whoever is at work on a row is alone at it, and whoever lost it undoes nothing of the one who has it."""

import asyncio
import threading
from pathlib import Path
from uuid import UUID

import pytest

from smart_assets.assets import settling
from smart_assets.catalogue.models import AssetRecord, AssetState
from smart_assets.catalogue.repository import Repository
from smart_assets.runtime import running
from smart_assets.settings import Settings
from smart_assets.storage.factory import register_backend
from tests import images
from tests.catalogue.test_repository import a_record
from tests.conftest import Service, StartService, problem_of
from tests.staging import FaultyStorage

HOLIDAY = images.jpeg(320, 240, seed=3)
ANOTHER = "another-process/1"


async def take_over(service: Service, asset_id: str) -> AssetRecord:
    """What another process does that thinks this one is dead."""
    record = await service.runtime.database.read(lambda catalogue: catalogue.get_in_any_state(UUID(asset_id)))
    assert record is not None
    taken = await service.runtime.database.write(lambda catalogue: catalogue.take_over(record, ANOTHER))
    assert taken is not None
    return taken


@pytest.mark.parametrize("step", ["insert_pending", "mark_ready"])
async def test_an_upload_cancelled_in_a_transaction_is_whole_or_gone(
    service: Service, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    loop, begun, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    original = getattr(Repository, step)

    def slow(self: Repository, argument: object) -> object:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(60)
        return original(self, argument)

    with monkeypatch.context() as staged:
        staged.setattr(Repository, step, slow)
        task = asyncio.create_task(service.upload(HOLIDAY, sizes="64"))
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0.05)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.sleep(0.1)
    await service.settle()
    if step == "insert_pending":
        assert await service.leaves_nothing()
        return
    # The transaction was committed, so only the answer is lost: the asset is there, and whole.
    (asset,) = (await service.client.get("/api/v1/assets")).json()["items"]
    assert len(service.stored_files()) == 2
    for shown in (asset, *asset["variants"]):
        assert (await service.client.get(shown["url"])).status_code == 200


@pytest.mark.parametrize("target", ["public", "private"])
async def test_losers_do_not_loosen_the_hold_of_who_is_at_work(
    service: Service, faulty: FaultyStorage, target: str
) -> None:
    origin = "private" if target == "public" else "public"
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="100,50", visibility=origin)
    url = f"/api/v1/assets/{asset['id']}"
    faulty.relent()
    hang = faulty.hang("move", at=2)
    winner = asyncio.create_task(service.client.patch(url, json={"visibility": target}))
    await hang.reached.wait()
    problem_of(await service.client.delete(url), 409, "asset_busy")
    problem_of(await service.client.patch(url, json={"visibility": target}), 409, "asset_busy")
    assert await service.runtime.reconciler.pass_once() == 0
    hang.release()
    assert (await winner).status_code == 200
    keys = await faulty.keys()
    assert len(keys) == 3
    assert all(key.startswith(f"{target}/") for key in keys)
    changed = (await service.client.get(url)).json()
    assert changed["visibility"] == target
    assert (await service.client.get(changed["url"])).content == HOLIDAY


@pytest.mark.parametrize("target", ["public", "private"])
async def test_a_deletion_removes_the_bytes_where_they_lie_when_it_begins(
    service: Service, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    origin = "private" if target == "public" else "public"
    asset = await service.uploaded(HOLIDAY, sizes="64", visibility=origin)
    url = f"/api/v1/assets/{asset['id']}"
    library, get = service.runtime.library, service.runtime.library.get

    async def get_then_change(asset_id: UUID, owner: str | None) -> AssetRecord:
        record = await get(asset_id, owner)
        monkeypatch.setattr(library, "get", get)
        assert (await service.client.patch(url, json={"visibility": target})).status_code == 200
        return record

    monkeypatch.setattr(library, "get", get_then_change)
    assert (await service.client.delete(url)).status_code == 204
    assert await service.leaves_nothing()


async def test_losing_the_row_while_going_public_leaves_nothing_public(service: Service, faulty: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="100,50", visibility="private")
    url = f"/api/v1/assets/{asset['id']}"
    faulty.relent()
    hang = faulty.hang("move", at=3)  # the last: none of them asks any more whether the row is still its own
    slow = asyncio.create_task(service.client.patch(url, json={"visibility": "public"}))
    await hang.reached.wait()
    taken = await take_over(service, asset["id"])
    await service.runtime.library._settling.settle_as_private(taken)
    hang.release()
    problem_of(await slow, 503, "busy")
    keys = await faulty.keys()
    assert len(keys) == 3
    assert all(key.startswith("private/") for key in keys)
    assert (await service.client.get(url)).json()["visibility"] == "private"


@pytest.mark.parametrize("target", ["public", "private"])
async def test_bytes_that_went_with_the_row_are_no_fault_of_the_storage(
    service: Service, faulty: FaultyStorage, target: str
) -> None:
    """Stopped in the middle of a change; another process took the row over, and the asset was deleted there."""
    origin = "private" if target == "public" else "public"
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="100,50", visibility=origin)
    faulty.relent()
    hang = faulty.hang("move", at=3)  # the last: none of them asks any more whether the row is still its own
    url = f"/api/v1/assets/{asset['id']}"
    slow = asyncio.create_task(service.client.patch(url, json={"visibility": target}))
    await hang.reached.wait()
    await service.runtime.library._settling.settle_as_private(await take_over(service, asset["id"]))
    assert (await service.client.delete(url)).status_code == 204
    hang.release()
    problem_of(await slow, 503, "busy")
    assert await faulty.keys() == set()


@pytest.mark.parametrize("change", ["move?storage=memory", "variants?sizes=40"])
async def test_an_original_that_went_with_the_row_is_no_fault_of_the_storage(
    service: Service, faulty: FaultyStorage, change: str
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    url = f"/api/v1/assets/{asset['id']}"
    faulty.relent()
    hang = faulty.hang("read", at=1)
    slow = asyncio.create_task(service.client.post(f"{url}/{change}"))
    await hang.reached.wait()
    taken, settling = await take_over(service, asset["id"]), service.runtime.library._settling
    await (settling.settle_move(taken.id, ANOTHER) if "move" in change else settling.undo_growing(taken))
    assert (await service.client.delete(url)).status_code == 204
    hang.release()
    problem_of(await slow, 503, "busy")
    assert await faulty.keys() == set()


async def test_who_lost_the_row_makes_nothing_more_public(
    start_service: StartService, faulty: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it moved before it leaves to whoever has the row now."""
    monkeypatch.setattr(settling, "_MOVES_AT_ONCE", 1)
    monkeypatch.setattr(settling, "CATALOGUE_RETRIES", 0)  # it does not wait for the row to be settled
    async with start_service(lease_seconds=3600) as service:  # so that the background does not settle it meanwhile
        asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="100,50", visibility="private")
        url = f"/api/v1/assets/{asset['id']}"
        faulty.relent()
        hang = faulty.hang("move", at=1)
        slow = asyncio.create_task(service.client.patch(url, json={"visibility": "public"}))
        await hang.reached.wait()
        taken = await take_over(service, asset["id"])
        hang.release()
        problem_of(await slow, 503, "busy")
        assert faulty.calls["move"] == 1
        assert sorted(key.partition("/")[0] for key in await faulty.keys()) == ["private", "private", "public"]
        await service.runtime.library._settling.settle_as_private(taken)
        assert {key.partition("/")[0] for key in await faulty.keys()} == {"private"}


async def test_a_row_taken_over_is_not_looked_at_again_while_somebody_is_at_work_on_it(
    service: Service, faulty: FaultyStorage
) -> None:
    """Half of its bytes lie where its row does not say yet; nobody else put them there."""
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="100,50", visibility="private")
    record = await service.runtime.library.get(UUID(asset["id"]), None)
    faulty.relent()
    hang = faulty.hang("move", at=2)
    publishing = asyncio.create_task(
        service.client.patch(f"/api/v1/assets/{asset['id']}", json={"visibility": "public"})
    )
    await hang.reached.wait()
    while "public" not in {key.partition("/")[0] for key in await faulty.keys()}:
        await asyncio.sleep(0.01)
    asked = faulty.calls["stat"]
    await service.runtime.library._settling.recheck(record)
    assert faulty.calls["stat"] == asked
    hang.release()
    assert (await publishing).status_code == 200


async def test_who_lost_the_row_puts_the_bytes_where_it_says_now(service: Service, faulty: FaultyStorage) -> None:
    """Stopped on the way to private; another process settled it, and its owner published it again."""
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="100,50")
    url = f"/api/v1/assets/{asset['id']}"
    faulty.relent()
    hang = faulty.hang("move", at=3)  # the last: none of them asks any more whether the row is still its own
    slow = asyncio.create_task(service.client.patch(url, json={"visibility": "private"}))
    await hang.reached.wait()
    await service.runtime.library._settling.settle_as_private(await take_over(service, asset["id"]))
    assert (await service.client.patch(url, json={"visibility": "public"})).status_code == 200
    hang.release()
    problem_of(await slow, 503, "busy")
    keys = await faulty.keys()
    assert len(keys) == 3
    assert all(key.startswith("public/") for key in keys)
    shown = (await service.client.get(url)).json()
    assert shown["visibility"] == "public"
    for each in (shown, *shown["variants"]):
        assert (await service.client.get(each["url"])).status_code == 200


async def test_a_public_copy_does_not_stay_where_the_row_could_not_be_closed(
    service: Service, faulty: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="100", visibility="private")
    original, calls = Repository.finish_moving, []

    def fails_once(self: Repository, record: AssetRecord) -> bool:
        calls.append(record)
        if len(calls) == 1:
            raise RuntimeError
        return original(self, record)

    monkeypatch.setattr(Repository, "finish_moving", fails_once)
    answer = await service.client.patch(f"/api/v1/assets/{asset['id']}", json={"visibility": "public"})
    assert answer.status_code == 500
    assert {key.partition("/")[0] for key in await faulty.keys()} == {"private"}
    assert (await service.client.get(f"/api/v1/assets/{asset['id']}")).json()["visibility"] == "private"


async def test_a_row_that_cannot_be_settled_keeps_no_other_waiting(service: Service) -> None:
    dead = "dead/1"
    stuck = [a_record(storage="gone", lease=dead) for _ in range(150)]
    mine = a_record(lease=dead)
    await service.runtime.database.write(lambda catalogue: catalogue.insert_pending([*stuck, mine]))
    for _ in range(4):
        await service.runtime.reconciler.pass_once()
    assert str(mine.id.hex) not in {row[0] for row in await service.rows()}


async def test_a_slow_storage_does_not_stop_the_beat(tmp_path: Path, faulty: FaultyStorage) -> None:
    settings = Settings(data_dir=tmp_path / "data", lease_seconds=1)
    async with running(settings) as first, running(settings) as second:
        hang = faulty.hang("delete", at=1)
        await first.database.write(
            lambda catalogue: catalogue.insert_pending([a_record(storage="faulty", lease="dead/1")])
        )
        await asyncio.wait_for(hang.reached.wait(), 60)
        before = await first.database.read(lambda catalogue: catalogue.beats())
        await asyncio.sleep(1)
        after = await second.database.read(lambda catalogue: catalogue.beats())
        assert len(before) == 2
        assert all(after[lease] > before[lease] for lease in before)
        hang.release()


async def test_a_storage_that_is_gone_breaks_neither_the_list_nor_a_deletion(start_service: StartService) -> None:
    other = FaultyStorage("other")
    undo = register_backend("other", lambda _name, _settings: other)
    async with start_service(lease_seconds=3600) as service:
        lost, kept = await service.uploaded(HOLIDAY, storage="other"), await service.uploaded(HOLIDAY)
        undo()
        service.runtime.storages._opened.pop("other")
        items = (await service.client.get("/api/v1/assets")).json()["items"]
        assert [asset["id"] for asset in items] == [kept["id"], lost["id"]]
        url = f"/api/v1/assets/{lost['id']}"
        answer = await service.client.patch(url, json={"visibility": "private"})
        problem_of(answer, 422, "storage_not_configured")
        assert {state for _, state in await service.rows()} == {AssetState.READY}, "nothing was begun"
        assert (await service.client.delete(url)).status_code == 204
        assert (await service.client.get(url)).status_code == 404
        assert (await service.client.get("/api/v1/stats")).json()["deletions_owed"] == 1
        service.runtime.storages._opened["other"] = other
        service.runtime.reconciler._put_off.clear()  # on a busy machine the background's only pass comes this late
        await service.settle()
        assert await other.keys() == set(), "its bytes go when it is back"
        assert (await service.client.get("/api/v1/stats")).json()["deletions_owed"] == 0


async def test_a_size_that_was_never_made_hinders_no_change_of_visibility(
    service: Service, faulty: FaultyStorage
) -> None:
    faulty.fail("put", at=2)
    faulty.fail("delete")
    answer = await service.upload(HOLIDAY, storage="faulty", sizes="100", atomic="false")
    assert answer.status_code == 201
    assert [failed["size"] for failed in answer.json()["failed"]] == ["100"]
    faulty.relent()
    url = f"/api/v1/assets/{answer.json()['id']}"
    for visibility in ("private", "public"):
        assert (await service.client.patch(url, json={"visibility": visibility})).status_code == 200
    assert (await service.client.get(answer.json()["url"])).content == HOLIDAY
