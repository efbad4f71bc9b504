"""What a process that is gone left half done is finished by one that lives, and nothing else is touched."""

import asyncio
import time
from datetime import UTC, datetime

import pytest

from smart_assets.assets.objects import object_keys
from smart_assets.catalogue.models import AssetRecord, AssetState, KeyRecord
from smart_assets.catalogue.repository import Repository
from smart_assets.maintenance.reconcile import BATCH, LeaseWatch
from smart_assets.storage.keys import Visibility, with_visibility
from tests import images
from tests.catalogue.test_repository import a_record
from tests.conftest import Service, StartService
from tests.staging import FaultyStorage

HOLIDAY = images.jpeg(64, 48)
DEAD = "a-process-that-is-gone/1"


async def leave_behind(service: Service, record: AssetRecord, moved: int = 0) -> None:
    """What a process that dies leaves: bytes, the first `moved` objects at their new place, and a row in its hands."""
    backend = service.runtime.storages.get("local")
    for number, key in enumerate(object_keys(record)):
        target = record.target_visibility if number < moved else record.visibility
        assert target is not None
        await backend.upload(with_visibility(key, target), HOLIDAY, content_type="image/jpeg")

    await put_a_row(service, record)


async def put_a_row(service: Service, record: AssetRecord) -> None:
    """A row that is not `pending`, as it is."""

    def write(catalogue: Repository) -> None:
        catalogue.insert_pending([record])
        catalogue._connection.exec_driver_sql(
            "UPDATE assets SET state = ?, target_visibility = ? WHERE id = ?",
            (record.state.value, record.target_visibility and record.target_visibility.value, record.id.hex),
        )

    await service.runtime.database.write(write)


@pytest.mark.parametrize("state", [AssetState.PENDING, AssetState.DELETING])
async def test_a_dead_upload_or_deletion_goes_without_a_trace(service: Service, state: AssetState) -> None:
    await leave_behind(service, a_record(state=state, lease=DEAD))
    await service.settle()
    assert await service.leaves_nothing()


@pytest.mark.parametrize("target", Visibility)
@pytest.mark.parametrize("moved", [0, 1, 2])
async def test_a_dead_change_of_visibility_ends_private(service: Service, target: Visibility, moved: int) -> None:
    origin = Visibility.PUBLIC if target is Visibility.PRIVATE else Visibility.PRIVATE
    record = a_record(state=AssetState.MOVING, visibility=origin, target_visibility=target, lease=DEAD)
    await leave_behind(service, record, moved)
    await service.settle()
    assert all(key.startswith("private/") for key in service.stored_files())
    assert len(service.stored_files()) == 2
    assert [state for _, state in await service.rows()] == ["ready"]


@pytest.mark.parametrize("switched", [False, True], ids=["not switched yet", "switched"])
@pytest.mark.parametrize("copied", [0, 1, 2])
@pytest.mark.parametrize("visibility", Visibility)
async def test_a_dead_move_ends_where_its_row_is(
    service: Service, faulty: FaultyStorage, switched: bool, copied: int, visibility: Visibility
) -> None:
    storage, other = ("faulty", "local") if switched else ("local", "faulty")
    record = a_record(state=AssetState.MOVING, visibility=visibility, storage=storage, target_storage=other, lease=DEAD)
    keys = object_keys(record)
    for name, there in ((storage, keys), (other, keys[:copied])):
        for key in there:
            await service.runtime.storages.get(name).upload(key, HOLIDAY, content_type="image/jpeg")
    await put_a_row(service, record)
    await service.settle()
    assert await faulty.keys() == (set(keys) if switched else set())
    assert service.stored_files() == ([] if switched else sorted(keys))
    row = await service.runtime.database.read(lambda catalogue: catalogue.get(record.id))
    assert row is not None
    assert (row.state, row.storage, row.target_storage, row.lease) == ("ready", storage, None, None)


async def test_a_move_that_was_switched_after_it_was_looked_at_is_not_undone(
    service: Service, faulty: FaultyStorage
) -> None:
    """Its process was only stopped: the row that is taken over is the one there is, not the one that was read."""
    seen = a_record(state=AssetState.MOVING, target_storage="faulty", lease=DEAD)
    for name in ("local", "faulty"):
        for key in object_keys(seen):
            await service.runtime.storages.get(name).upload(key, HOLIDAY, content_type="image/jpeg")
    await put_a_row(service, seen)
    await service.runtime.database.write(lambda catalogue: catalogue.switch_storage(seen, datetime.now(UTC)))
    assert await service.runtime.reconciler._settle(seen)
    assert len(await faulty.keys()) == 2
    assert service.stored_files() == []


@pytest.mark.parametrize("switched", [False, True], ids=["undone", "finished"])
async def test_a_copy_that_lands_when_its_move_was_settled_long_ago_is_removed(
    service: Service, faulty: FaultyStorage, switched: bool
) -> None:
    storage, other = ("faulty", "local") if switched else ("local", "faulty")
    record = a_record(state=AssetState.MOVING, storage=storage, target_storage=other, lease=DEAD)
    for key in object_keys(record):
        await service.runtime.storages.get(storage).upload(key, HOLIDAY, content_type="image/jpeg")
    await put_a_row(service, record)
    await service.settle()
    await service.runtime.storages.get(other).upload(object_keys(record)[1], HOLIDAY, content_type="image/jpeg")
    await service.settle()
    assert not await service.runtime.storages.get(other).exists(object_keys(record)[1])
    assert [state for _, state in await service.rows()] == ["ready"]
    assert len(await faulty.keys()) + len(service.stored_files()) == 2


@pytest.mark.usefixtures("passes_by_hand")
async def test_a_move_waits_for_the_storage_that_is_to_be_emptied_and_holds_up_no_other(
    start_service: StartService, faulty: FaultyStorage
) -> None:
    async with start_service(lease_seconds=3600) as service:
        service.runtime.reconciler._interval = 0.2
        hang = faulty.hang("delete")
        for _ in range(2):
            await put_a_row(service, a_record(state=AssetState.MOVING, target_storage="faulty", lease=DEAD))
        await leave_behind(service, a_record(state=AssetState.PENDING, lease=DEAD))
        await service.runtime.reconciler.pass_once()
        assert service.stored_files() == []
        assert [state for _, state in await service.rows()] == ["moving", "moving"]
        hang.release()


@pytest.mark.usefixtures("passes_by_hand")
async def test_however_much_is_owed_at_one_storage_the_others_are_looked_after(
    start_service: StartService, faulty: FaultyStorage
) -> None:
    async with start_service(lease_seconds=3600) as service:
        faulty.fail("delete")
        owed = [a_record(lease=DEAD, storage="faulty") for _ in range(BATCH + 1)]
        await service.runtime.database.write(lambda catalogue: catalogue.insert_pending(owed))
        await leave_behind(service, a_record(state=AssetState.PENDING, lease=DEAD))
        await service.settle()
        assert service.stored_files() == []
        assert len(await service.rows()) == len(owed)


@pytest.mark.usefixtures("passes_by_hand")
async def test_a_key_that_a_process_took_which_has_just_begun_stays_its_own(
    start_service: StartService, faulty: FaultyStorage
) -> None:
    async with start_service(lease_seconds=3600) as service:
        reconciler, database = service.runtime.reconciler, service.runtime.database
        await database.write(lambda catalogue: catalogue.insert_pending([a_record(lease=DEAD, storage="faulty")]))
        reconciler._interval = 0.2
        hang = faulty.hang("delete")
        passing = asyncio.create_task(reconciler.pass_once())
        await hang.reached.wait()
        key = KeyRecord(owner="default", key="k", request="r", created_at=datetime.now(UTC), claim="another/1")

        def begin(catalogue: Repository) -> None:
            catalogue.beat("another", 1)
            assert catalogue.claim_key(key)

        await database.write(begin)
        await passing
        hang.release()
        assert await database.read(lambda catalogue: catalogue.find_key("default", "k")) is not None


async def test_what_a_process_taken_for_dead_did_after_all_is_undone(service: Service) -> None:
    """It was only stopped: its last move, and its last write, land when its rows have long been settled."""
    moving = a_record(
        state=AssetState.MOVING, visibility=Visibility.PRIVATE, target_visibility=Visibility.PUBLIC, lease=DEAD
    )
    await leave_behind(service, moving)
    await service.settle()
    pending = a_record(lease=DEAD)
    await leave_behind(service, pending)
    await service.settle()
    backend = service.runtime.storages.get("local")
    await backend.set_visibility(object_keys(moving)[1], Visibility.PUBLIC)
    await backend.upload(object_keys(pending)[0], HOLIDAY, content_type="image/jpeg")
    await service.settle()
    assert service.stored_files() == sorted(object_keys(moving))


async def test_a_living_process_is_left_alone(service: Service) -> None:
    await service.runtime.database.write(lambda catalogue: catalogue.beat("another", 1))
    await leave_behind(service, a_record(lease="another/7"))
    assert await service.runtime.reconciler.pass_once() == 0
    assert len(service.stored_files()) == 2


async def test_a_ready_asset_is_left_alone(service: Service) -> None:
    await service.uploaded(HOLIDAY)
    assert await service.runtime.reconciler.pass_once() == 0
    assert len(service.stored_files()) == 1


async def test_an_asset_of_a_storage_that_is_not_there_is_kept_for_later(service: Service) -> None:
    await service.runtime.database.write(
        lambda catalogue: catalogue.insert_pending([a_record(lease=DEAD, storage="gone")])
    )
    await service.settle()
    assert [state for _, state in await service.rows()] == ["deleting"]


async def test_a_restart_finishes_what_the_crash_left(start_service: StartService) -> None:
    async with start_service() as service:
        await leave_behind(service, a_record(lease=DEAD))
        left = service.data_dir / "tmp" / "process-of-the-dead"
        left.mkdir()
        (left / "upload-x").write_bytes(b"x")
    async with start_service() as service:
        await service.settle()
        assert await service.leaves_nothing()
        assert not left.exists()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def beating(watch: LeaseWatch, clock: Clock, seconds: int) -> None:
    """Time in which our own beat comes through."""
    for _ in range(seconds):
        clock.now += 1
        watch.beaten()


def test_a_lease_is_dead_when_its_beat_stood_still_long_enough() -> None:
    clock = Clock()
    watch = LeaseWatch(15, clock)
    assert watch.living({"a": 1, "b": 7}) == {"a", "b"}
    beating(watch, clock, 14)
    assert watch.living({"a": 2, "b": 7}) == {"a", "b"}
    beating(watch, clock, 1)
    assert watch.living({"a": 2, "b": 7}) == {"a"}
    beating(watch, clock, 14)
    assert watch.living({"a": 2, "b": 8}) == {"b"}, "a beat again: b lives; a's stood still"


def test_who_cannot_write_itself_judges_nobody() -> None:
    clock = Clock()
    watch = LeaseWatch(15, clock)
    watch.living({"a": 1})
    clock.now += 60  # something holds the catalogue's lock: nobody's beat comes through
    assert watch.living({"a": 1}) == {"a"}
    watch.beaten()
    assert watch.living({"a": 1}) == {"a"}, "it has all its time again"
    beating(watch, clock, 15)
    assert watch.living({"a": 1}) == set()


def test_a_lease_first_seen_has_all_its_time() -> None:
    clock = Clock()
    watch = LeaseWatch(15, clock)
    beating(watch, clock, 1000)
    assert watch.living({"new": 1}) == {"new"}


@pytest.mark.usefixtures("passes_by_hand")
async def test_a_deletion_that_is_refused_is_tried_ever_more_rarely_and_for_good(
    start_service: StartService, faulty: FaultyStorage
) -> None:
    async with start_service(lease_seconds=3600) as service:
        asset = await service.uploaded(HOLIDAY, storage="faulty")
        faulty.fail("delete")
        assert (await service.client.delete(f"/api/v1/assets/{asset['id']}")).status_code == 503
        reconciler = service.runtime.reconciler
        reconciler._interval = 1
        delays: list[float] = []
        for _ in range(14):
            assert await reconciler.pass_once() == 0
            refused = faulty.calls["delete"]
            await reconciler.pass_once()
            assert faulty.calls["delete"] == refused, "not its time yet"
            ((asset_id, (delay, due)),) = reconciler._put_off["faulty"].items()
            assert time.monotonic() < due <= time.monotonic() + delay
            delays.append(delay)
            reconciler._put_off["faulty"][asset_id] = (delay, 0)
        assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600, 600]
        assert (await service.client.get("/api/v1/stats")).json()["deletions_owed"] == 1
        faulty.relent()
        assert await reconciler.pass_once() == 1
        assert reconciler._put_off["faulty"] == {}
        assert (await service.client.get("/api/v1/stats")).json()["deletions_owed"] == 0
        assert await faulty.keys() == set()
