"""What is to go goes, for the right reason and in the right order, and nothing else does."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import REGISTRY

from smart_assets.assets.objects import created_at, first_id_at, object_keys
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, AssetState, JobRun
from smart_assets.errors import Busy, ConfigurationError
from smart_assets.maintenance.marker import Marker
from smart_assets.maintenance.retention import AT_ONCE, FAILURES_IN_A_ROW, Reason, Report, Retention
from smart_assets.settings import RetentionSettings, load_settings
from smart_assets.storage.errors import StorageUnavailable
from smart_assets.visibility import Visibility
from tests import images
from tests.catalogue.test_repository import a_record, keep
from tests.conftest import Service, StartService, problem_of
from tests.staging import FaultyStorage

HOLIDAY = images.jpeg(64, 48, seed=8)
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
YEAR = 365 * DAY
SIZE = a_record().total_bytes
COMMAND = str(Path(sys.executable).with_name("smart-assets"))


@pytest.fixture
async def service(start_service: StartService, faulty: FaultyStorage, distant: FaultyStorage) -> AsyncIterator[Service]:
    async with start_service() as running:
        yield running


async def stored(service: Service, age: timedelta = timedelta(0), storage: str = "faulty", **changes: Any) -> UUID:
    """An asset of a storage that was uploaded so long before NOW, with its bytes; its id. It never expires."""
    asset_id = UUID(int=first_id_at(NOW - age).int + random.getrandbits(64))
    record = a_record(id=asset_id, storage=storage, created_at=created_at(asset_id), **({"expires_at": None} | changes))
    with suppress(Exception):  # a storage that is not there
        backend = service.runtime.storages.get(storage)
        for key in object_keys(record):
            await backend.upload(key, HOLIDAY, content_type="image/jpeg")
    await keep(service.runtime.database, record)
    return asset_id


def retention(service: Service, now: datetime = NOW, **settings: Any) -> Retention:
    """Of these settings, at that time."""
    means = service.runtime.retention._means
    return Retention(
        RetentionSettings(**settings),
        means.database,
        means.storages,
        means.lease,
        means.settling,
        now=lambda: now,
    )


async def ran(service: Service, ago: timedelta, **outcome: Any) -> None:
    """The last run was so long before NOW, and its clock was right."""
    then = NOW - ago
    run = JobRun("retention", then, then, {"clock": then.isoformat(), **outcome})
    await service.runtime.database.write(lambda catalogue: catalogue.note_run(run))


async def left(service: Service) -> list[UUID]:
    """The assets callers still see, in the order of their upload."""
    there = await service.runtime.database.read(
        lambda catalogue: catalogue._connection.exec_driver_sql(
            "SELECT id FROM assets WHERE state IN ('ready', 'moving') ORDER BY id"
        ).scalars()
    )
    return [UUID(asset_id) for asset_id in there]


async def bytes_left(service: Service, faulty: FaultyStorage) -> bool:
    """Whether the objects of the assets that are left are there, and no others."""
    records = await service.runtime.database.read(
        lambda catalogue: catalogue.page_of_storage("faulty", after=None, limit=1000)
    )
    return await faulty.keys() == {key for record in records for key in object_keys(record)}


def told(report: Report) -> list[tuple[str, str, int, int]]:
    return [
        (storage.storage, removal.reason.value, removal.assets, removal.bytes)
        for storage in report.storages
        for removal in storage.removals
    ]


# ── The rules ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_has_expired_goes_with_its_bytes(service: Service, faulty: FaultyStorage) -> None:
    kept = [
        await stored(service),
        await stored(service, expires_at=NOW + timedelta(seconds=1)),
    ]
    await stored(service, expires_at=NOW)
    await stored(service, 3 * DAY, expires_at=NOW - DAY)
    report = await retention(service).run()
    assert told(report) == [("faulty", "expired", 2, 2 * SIZE)]
    assert sorted(await left(service)) == sorted(kept)
    assert await bytes_left(service, faulty)


async def test_what_is_too_old_goes_and_what_is_just_as_old_as_it_may_be_stays(
    service: Service, faulty: FaultyStorage
) -> None:
    await ran(service, HOUR)
    await stored(service, 31 * DAY)
    await stored(service, 30 * DAY + timedelta(milliseconds=1))
    kept = [await stored(service, 30 * DAY), await stored(service)]
    assert told(await retention(service, days=30).run()) == [("faulty", "age", 2, 2 * SIZE)]
    assert await left(service) == kept
    assert await bytes_left(service, faulty)


@pytest.mark.parametrize(("limit", "gone"), [(3 * SIZE, 0), (3 * SIZE - 1, 1), (2 * SIZE, 1), (SIZE + 1, 2), (1, 3)])
@pytest.mark.parametrize("batch", [1, 2, 200])
async def test_of_a_storage_that_holds_too_much_the_oldest_go_until_it_does_not(
    service: Service, faulty: FaultyStorage, limit: int, gone: int, batch: int
) -> None:
    new, old, middle = [await stored(service, age) for age in (DAY, 9 * DAY, 5 * DAY)]
    report = await retention(service, max_size_bytes=limit, batch=batch).run()
    assert await left(service) == [old, middle, new][gone:]
    assert (report.assets, report.bytes, report.result) == (gone, gone * SIZE, "done")
    assert await bytes_left(service, faulty)


async def test_a_limit_is_each_storages_own(service: Service) -> None:
    here = [await stored(service, age) for age in (2 * DAY, DAY)]
    there = [await stored(service, age, "distant") for age in (4 * DAY, 3 * DAY)]
    assert told(await retention(service, max_size_bytes=2 * SIZE).run()) == []
    assert told(await retention(service, max_size_bytes={"distant": SIZE}).run()) == [("distant", "size", 1, SIZE)]
    assert await left(service) == [there[1], *here]


async def test_pinned_ones_stay_for_whatever_reason_they_would_go(service: Service) -> None:
    await ran(service, HOUR)
    pinned = [
        await stored(service, 50 * DAY, pinned=True),
        await stored(service, 45 * DAY, pinned=True, expires_at=NOW - HOUR),
        await stored(service, DAY, pinned=True),
    ]
    await stored(service, 40 * DAY)
    report = await retention(service, days=30, max_size_bytes=SIZE).run()
    assert told(report) == [("faulty", "age", 1, SIZE)]
    assert report.storages[0].over_bytes == 2 * SIZE
    assert await left(service) == pinned


@pytest.mark.parametrize("batch", [1, 3, 200])
async def test_a_dry_run_says_what_a_run_then_does_and_changes_nothing(
    service: Service, faulty: FaultyStorage, batch: int
) -> None:
    """Each asset for one reason: the first of several."""
    await ran(service, HOUR)
    before = (await (await service.client.get("/api/v1/stats")).aread()).decode()
    for age in (60, 50, 40, 20, 15, 10, 5):
        await stored(service, age * DAY)
        await stored(service, age * DAY, expires_at=NOW - HOUR)
        await stored(service, age * DAY, pinned=True, expires_at=NOW - HOUR)
    rules = retention(service, days=30, max_size_bytes=9 * SIZE, batch=batch)
    rows, objects = await service.rows(), await faulty.keys()
    foretold = await rules.run(dry_run=True)
    assert told(foretold) == [
        ("faulty", "expired", 7, 7 * SIZE),
        ("faulty", "age", 3, 3 * SIZE),
        ("faulty", "size", 2, 2 * SIZE),
    ]
    assert (await service.rows(), await faulty.keys()) == (rows, objects)
    assert (
        f'"last_cleanup":{before.partition(""""last_cleanup":""")[2]}'
        in (await service.client.get("/api/v1/stats")).text
    )
    report = await rules.run()
    assert report == replace(foretold, dry_run=False)
    assert len(await left(service)) == 9
    assert await bytes_left(service, faulty)
    assert told(await rules.run()) == []


@pytest.mark.parametrize("dry_run", [True, False])
async def test_where_there_is_nothing_nothing_goes(service: Service, dry_run: bool) -> None:
    report = await retention(service, days=1, max_size_bytes=1).run(dry_run=dry_run)
    assert (report.storages, report.result) == ([], "done")


async def test_no_more_than_a_batch_is_looked_up_at_a_time(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    await ran(service, HOUR)
    for day in range(7):
        await stored(service, (40 + day) * DAY, expires_at=NOW - HOUR if day % 2 else None)
        await stored(service, day * DAY)
    pages: list[int] = []
    read = Database.read

    async def watched(self: Database, work: Callable[..., Any]) -> Any:
        found = await read(self, work)
        if isinstance(found, tuple):
            pages.append(len(found))
        return found

    monkeypatch.setattr(Database, "read", watched)
    await retention(service, days=30, max_size_bytes=3 * SIZE, batch=2).run()
    assert len(await left(service)) == 3
    assert max(pages) == 2


# ── What happens meanwhile ──────────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_pinned_or_changed_or_taken_up_when_its_turn_comes_is_left_to_the_next_run(
    service: Service, distant: FaultyStorage
) -> None:
    pinned, kept, tagged, gone, moving, last = [
        await stored(service, storage="distant", owner="default", expires_at=NOW - HOUR) for _ in range(6)
    ]
    hang = distant.hang("list")  # between listing what is to go, and the first of them
    running = asyncio.create_task(retention(service).run())
    await hang.reached.wait()
    for asset, change in ((pinned, {"pinned": True}), (kept, {"expires_at": None}), (tagged, {"tags": ["x"]})):
        answer = await service.client.patch(f"/api/v1/assets/{asset}", json=change)
        assert answer.status_code == 200, answer.text
    assert (await service.client.delete(f"/api/v1/assets/{gone}")).status_code == 204
    await service.runtime.database.write(lambda rows: rows.begin_moving(moving, Visibility.PRIVATE, 1, "x/1"))
    hang.release()
    report = await running
    (removal,) = report.storages[0].removals
    assert (removal.assets, removal.changed, removal.failed, report.result) == (1, 5, 0, "done")
    assert set(await left(service)) == {pinned, kept, tagged, moving}
    distant.relent()
    await service.runtime.database.write(
        lambda rows: rows._connection.exec_driver_sql("UPDATE assets SET state = 'ready', lease = NULL")
    )
    assert (await retention(service).run()).assets == 2
    assert set(await left(service)) == {pinned, kept}
    assert last not in await left(service)


async def test_while_one_run_is_under_way_another_is_refused_and_a_dry_one_is_not(
    service: Service, faulty: FaultyStorage
) -> None:
    await stored(service, expires_at=NOW - HOUR)
    hang = faulty.hang("delete")
    running = asyncio.create_task(retention(service).run())
    await hang.reached.wait()
    with pytest.raises(Busy):
        await retention(service).run()
    assert await retention(service, days=1).run_if_due() is None
    answer = await service.client.post("/api/v1/maintenance/retention")
    problem_of(answer, 503, "busy")
    assert int(answer.headers["retry-after"]) > 0
    assert (await service.client.post("/api/v1/maintenance/retention?dry_run=true")).status_code == 200
    hang.release()
    assert (await running).assets == 1
    assert (await service.client.post("/api/v1/maintenance/retention")).status_code == 200


async def test_a_run_that_is_cut_off_is_shown_as_unfinished_and_its_deletions_are_finished(
    service: Service, faulty: FaultyStorage
) -> None:
    for _ in range(AT_ONCE + 3):
        await stored(service, expires_at=NOW - HOUR)
    hang = faulty.hang("delete")
    running = asyncio.create_task(retention(service).run())
    await hang.reached.wait()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    faulty.relent()
    states = [state for _, state in await service.rows()]
    assert "deleting" in states
    assert "ready" in states
    cleanup = (await service.client.get("/api/v1/stats")).json()["last_cleanup"]
    assert (cleanup["finished_at"], cleanup["result"], cleanup["assets"]) == (None, "unfinished", None)
    await service.settle()
    assert {state for _, state in await service.rows()} == {"ready"}
    assert await bytes_left(service, faulty)
    report = await retention(service, NOW + timedelta(seconds=1)).run_if_due()
    assert report is not None, "a run that was killed is made up for at once"
    assert await service.rows() == []
    assert await faulty.keys() == set()


# ── Storages that do not play along ─────────────────────────────────────────────────────────────────────────────────


def failures(reason: Reason = Reason.EXPIRED, storage: str = "faulty") -> float:
    labels = {"storage": storage, "reason": reason.value}
    return REGISTRY.get_sample_value("smart_assets_retention_failures_total", labels) or 0


async def test_a_deletion_that_is_refused_is_owed_and_counted_and_the_others_go(
    service: Service, faulty: FaultyStorage
) -> None:
    for _ in range(5):
        await stored(service, expires_at=NOW - HOUR)
    faulty.fail("delete", at=3)
    before = failures()
    report = await retention(service, batch=2).run()
    (removal,) = report.storages[0].removals
    assert (removal.assets, removal.failed, report.failed, report.result) == (4, 1, 1, "incomplete")
    assert failures() == before + 1
    stats = (await service.client.get("/api/v1/stats")).json()
    assert (stats["deletions_owed"], stats["count"]) == (1, 0)
    assert stats["last_cleanup"]["result"] == "incomplete"
    assert stats["last_cleanup"]["failed"] == 1
    faulty.relent()
    await service.settle()
    assert await service.rows() == []
    assert await faulty.keys() == set()


async def test_what_is_owed_is_not_made_up_for_by_newer_ones(service: Service, faulty: FaultyStorage) -> None:
    """A storage that refuses deletions is still as full; that must not cost it everything it holds."""
    assets = [await stored(service, age * DAY) for age in (4, 3, 2, 1)]
    faulty.fail("delete")
    report = await retention(service, max_size_bytes=2 * SIZE, batch=1).run()
    assert (report.assets, report.failed) == (0, 2)
    assert await left(service) == assets[2:]


async def test_a_storage_that_refuses_everything_is_left_alone_after_a_while(
    service: Service, faulty: FaultyStorage
) -> None:
    for _ in range(40):
        await stored(service, expires_at=NOW - HOUR)
    await stored(service, storage="distant", expires_at=NOW - HOUR)
    faulty.fail("delete")
    report = await retention(service, batch=30).run()
    there, here = report.storages
    assert (there.storage, there.removals[0].assets, there.error) == ("distant", 1, None)
    assert FAILURES_IN_A_ROW <= here.removals[0].failed < FAILURES_IN_A_ROW + AT_ONCE
    assert "in a row" in (here.error or "")
    assert len(await left(service)) == 40 - here.removals[0].failed
    faulty.relent()
    assert (await retention(service).run()).result == "done"
    assert await left(service) == []


async def test_a_storage_that_does_not_answer_loses_nothing(service: Service, distant: FaultyStorage) -> None:
    asset = await stored(service, storage="distant", expires_at=NOW - HOUR)
    distant.fail("list", error=StorageUnavailable("it is away"))
    report = await retention(service).run()
    assert (report.result, report.storages[0].error) == ("incomplete", "it cannot be asked whose it is: it is away")
    assert await left(service) == [asset]
    distant.relent()
    assert (await retention(service).run()).assets == 1


async def test_a_storage_that_is_not_configured_any_more_is_told_of_and_left_alone(service: Service) -> None:
    asset = await stored(service, storage="gone", expires_at=NOW - HOUR)
    await stored(service, expires_at=NOW - HOUR)
    report = await retention(service).run()
    assert (report.assets, report.result) == (1, "incomplete")
    assert "no storage 'gone'" in (report.storages[1].error or "")
    assert await left(service) == [asset]


async def test_a_catalogue_that_is_not_the_storages_own_removes_nothing(service: Service) -> None:
    """It may be a copy, or restored from a backup, and know nothing of what was pinned since."""
    asset = await stored(service, storage="distant", expires_at=NOW - HOUR)
    backend = service.runtime.storages.get("distant")
    await Marker(service.runtime.database, backend).claim()
    await service.runtime.database.write(
        lambda catalogue: catalogue._connection.exec_driver_sql("UPDATE tidied SET runs = runs - 1")
    )
    for dry_run in (True, False):
        report = await retention(service).run(dry_run=dry_run)
        assert "another catalogue" in (report.storages[0].error or "")
        assert report.result == "incomplete"
    assert await left(service) == [asset]
    await Marker(service.runtime.database, backend).claim()
    assert (await retention(service).run()).assets == 1


async def test_who_does_not_serve_leaves_alone_what_lives_in_the_service(service: Service) -> None:
    asset = await stored(service, expires_at=NOW - HOUR)
    tool = retention(service)
    tool._means = replace(tool._means, serves=False)
    assert (await tool.run()).result == "incomplete"
    assert await left(service) == [asset]


# ── The clock ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_clock_a_year_ahead_empties_no_library(service: Service) -> None:
    await ran(service, HOUR)
    kept = [await stored(service, day * DAY, expires_at=NOW + 90 * DAY) for day in range(6)]
    for ahead in (YEAR, YEAR + HOUR):
        report = await retention(service, NOW + ahead, days=30).run()
        assert [removal.reason for removal in report.removals if removal.refused] == [Reason.EXPIRED, Reason.AGE]
        assert (report.assets, report.result) == (0, "incomplete")
    assert sorted(await left(service)) == sorted(kept)
    rightly = await retention(service, NOW + DAY, days=3).run()
    assert (rightly.assets, rightly.result) == (3, "done"), "set right, it goes on where it was"


async def test_what_a_doubtful_clock_would_remove_goes_when_somebody_has_looked_and_says_so(service: Service) -> None:
    for day in range(6):
        await stored(service, (40 + day) * DAY)
    rules = retention(service, days=30)
    for dry_run in (True, False):
        report = await rules.run(dry_run=dry_run)
        (removal,) = report.storages[0].removals
        assert removal.refused is not None
        assert removal.assets == (6 if dry_run else 0), "how much it would be, is told"
        assert report.assets == 0
    assert (await rules.run(dry_run=True, confirm=True)).assets == 6
    assert (await rules.run(confirm=True)).assets == 6
    await stored(service, 31 * DAY)
    assert (await rules.run()).assets == 1, "from here on the clock is known"


@pytest.mark.parametrize(
    ("ago", "days", "gone"),
    [
        pytest.param(HOUR, 1, 6, id="everything, an hour after the last run"),
        pytest.param(7 * DAY, 1, 6, id="everything, a week after"),
        pytest.param(8 * DAY, 1, 0, id="everything, longer after"),
        pytest.param(8 * DAY, 8, 3, id="half of it, longer after"),
        pytest.param(-8 * DAY, 1, 0, id="everything, the last run lying ahead"),
        pytest.param(None, 1, 0, id="everything, by the first run of all"),
        pytest.param(None, 8, 3, id="half of it, by the first run of all"),
    ],
)
async def test_how_much_goes_by_age_hangs_on_when_the_last_run_was(
    service: Service, ago: timedelta | None, days: int, gone: int
) -> None:
    for day in (3, 4, 5, 10, 11, 12):
        await stored(service, day * DAY)
    if ago is not None:
        await ran(service, ago)
    assert (await retention(service, days=days).run()).assets == gone


async def test_the_first_run_of_all_believes_an_end_that_an_owner_has_set(service: Service) -> None:
    await stored(service, expires_at=NOW - HOUR)
    assert (await retention(service).run()).assets == 1


async def test_a_limit_has_nothing_to_do_with_the_clock(service: Service) -> None:
    await stored(service)
    assert (await retention(service, NOW + YEAR, max_size_bytes=1).run()).assets == 1


async def test_a_storage_nobody_could_look_at_does_not_make_the_clock_known(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ran(service, YEAR)
    await stored(service, 40 * DAY)
    rules = retention(service, days=30)
    with monkeypatch.context() as broken:
        broken.setattr("smart_assets.catalogue.repository.Repository.count_older", None)
        assert (await rules.run()).storages[0].error == "something went wrong"
    assert (await rules.run()).assets == 0


# ── By itself ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def last_run(service: Service) -> JobRun | None:
    return await service.runtime.database.read(lambda catalogue: catalogue.last_run("retention"))


async def test_nothing_at_all_is_done_where_nothing_ever_goes(service: Service) -> None:
    await stored(service, YEAR)
    assert await retention(service).run_if_due() is None
    assert await last_run(service) is None
    await stored(service, expires_at=NOW + YEAR)
    assert await retention(service).run_if_due() is not None


@pytest.mark.parametrize(
    ("ago", "finished", "due"),
    [
        (timedelta(minutes=10), True, False),
        (timedelta(minutes=10), False, True),
        (timedelta(minutes=59), True, True),
        (-DAY, True, True),
    ],
    ids=["just now", "just now and killed", "long enough ago", "by a clock that was ahead"],
)
async def test_of_all_processes_one_runs_in_each_interval(
    service: Service, ago: timedelta, finished: bool, due: bool
) -> None:
    then = NOW - ago
    run = JobRun("retention", then, then if finished else None, {})
    await service.runtime.database.write(lambda catalogue: catalogue.note_run(run))
    assert (await retention(service, days=1).run_if_due() is not None) == due


async def test_a_service_removes_by_itself_what_has_expired(start_service: StartService) -> None:
    async with start_service(retention={"interval_seconds": 1}) as service:
        soon = (datetime.now(UTC) + timedelta(milliseconds=300)).isoformat()
        asset = await service.uploaded(HOLIDAY, expires_at=soon)
        kept = await service.uploaded(HOLIDAY)
        for _ in range(300):
            if len(await service.rows()) == 1:
                break
            await asyncio.sleep(0.05)
        problem_of(await service.client.get(f"/api/v1/assets/{asset['id']}"), 404, "asset_not_found")
        assert (await service.client.get(kept["url"])).status_code == 200
        assert len(service.stored_files()) == 1


async def test_what_fails_is_counted_and_tried_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = asyncio.Semaphore(0)

    async def broken(self: Retention) -> None:
        tries.release()
        raise RuntimeError("staged")

    def failed() -> float:
        return REGISTRY.get_sample_value("smart_assets_background_failures_total", {"task": "retention"}) or 0

    before = failed()
    monkeypatch.setattr(Retention, "run_if_due", broken)
    job = retention(service, interval_seconds=1)
    job._settings = job._settings.model_copy(update={"interval_seconds": 0.01})
    running = asyncio.create_task(job.run_periodically())
    for _ in range(3):
        await tries.acquire()
    running.cancel()
    assert failed() >= before + 2


# ── Asked for ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_operator_may_run_it_and_the_statistics_say_so(
    start_service: StartService, faulty: FaultyStorage
) -> None:
    async with start_service(retention={"days": 30, "max_size_bytes": {"local": 5}}) as service:
        stats = (await service.client.get("/api/v1/stats")).json()
        assert stats["retention"] == {
            "retention_days": 30,
            "max_size_bytes": {"local": 5},
            "interval_seconds": 3600,
        }
        assert stats["last_cleanup"] is None
        asset = await service.uploaded(HOLIDAY, sizes="16")
        size = len(HOLIDAY) + asset["variants"][0]["size_bytes"]
        for dry_run in (True, False):
            answer = await service.client.post(f"/api/v1/maintenance/retention?dry_run={dry_run}")
            assert answer.status_code == 200, answer.text
            report = answer.json()
            assert report["storages"] == [
                {
                    "storage": "local",
                    "removals": [
                        {"reason": "size", "assets": 1, "bytes": size, "failed": 0, "changed": 0, "refused": None}
                    ],
                    "over_bytes": 0,
                    "error": None,
                }
            ]
            assert (report["dry_run"], report["assets"], report["bytes"]) == (dry_run, 1, size)
            stats = (await service.client.get("/api/v1/stats")).json()
            assert (stats["last_cleanup"] is None) == dry_run
        assert stats["last_cleanup"] == {
            "started_at": report["started_at"],
            "finished_at": report["finished_at"],
            "result": "done",
            "assets": 1,
            "bytes": size,
            "failed": 0,
        }
        assert service.stored_files() == []
        problem_of(await service.client.get(f"/api/v1/assets/{asset['id']}"), 404, "asset_not_found")


async def test_it_needs_a_key_where_keys_are_on_wherever_it_is_asked_from(start_service: StartService) -> None:
    key = "a-key-of-sixteen-characters"
    async with start_service(api_keys=(key,)) as service:
        problem_of(await service.client.post("/api/v1/maintenance/retention"), 401, "unauthorized")
        headers = {"Authorization": f"Bearer {key}"}
        answer = await service.client.post("/api/v1/maintenance/retention", headers=headers)
        assert (answer.status_code, answer.json()["storages"]) == (200, [])


@pytest.mark.parametrize("query", ["dry_run=perhaps", "dryrun=true", "confirm="])
async def test_what_it_does_not_understand_it_does_not_do(service: Service, query: str) -> None:
    problem_of(await service.client.post(f"/api/v1/maintenance/retention?{query}"), 422, "invalid_parameter")
    assert await last_run(service) is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ASSETS_RETENTION__DAYS", "0"),
        ("ASSETS_RETENTION__DAYS", "a month"),
        ("ASSETS_RETENTION__MAX_SIZE_BYTES", "0"),
        ("ASSETS_RETENTION__MAX_SIZE_BYTES", "10GB"),
        ("ASSETS_RETENTION__MAX_SIZE_BYTES", '{"local": 0}'),
        ("ASSETS_RETENTION__MAX_SIZE_BYTES", '{"local": true}'),
        ("ASSETS_RETENTION__MAX_SIZE_BYTES", "[1]"),
        ("ASSETS_RETENTION__BATCH", "0"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"^{variable}:"):
        load_settings()


def test_a_limit_is_a_number_or_numbers_by_storage_and_empty_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"": (None, None), "7": (7, 7), '{"s3": 7}': (None, 7), "{}": (None, None)}
    for value, expected in limits.items():
        monkeypatch.setenv("ASSETS_RETENTION__MAX_SIZE_BYTES", value)
        monkeypatch.setenv("ASSETS_RETENTION__DAYS", "")
        rules = load_settings().retention
        assert (rules.max_size_of("local"), rules.max_size_of("s3"), rules.days) == (*expected, None)
        assert rules.has_rules == bool(any(expected))


async def test_a_limit_for_a_storage_there_is_not_refuses_to_start(start_service: StartService) -> None:
    with pytest.raises(ConfigurationError, match="ASSETS_RETENTION__MAX_SIZE_BYTES names lokal"):
        async with start_service(retention={"max_size_bytes": {"lokal": 5}}):
            pass


def test_every_setting_of_retention_is_documented() -> None:
    document = (Path(__file__).parents[2] / "docs/retention.md").read_text(encoding="utf-8")
    for name in RetentionSettings.model_fields:
        assert f"`ASSETS_RETENTION__{name.upper()}`" in document


# ── The command ─────────────────────────────────────────────────────────────────────────────────────────────────────


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, "retention", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


async def test_the_command_says_what_goes_and_what_does_not(start_service: StartService, tmp_path: Path) -> None:
    async with start_service() as service:
        for _ in range(3):
            await stored(service, storage="local", expires_at=NOW - YEAR)
        await stored(service, storage="gone", expires_at=NOW - YEAR)
        dry, again, wet, twice = [
            await asyncio.to_thread(command, tmp_path, *arguments)
            for arguments in (["--dry-run"], ["--dry-run", "--json"], [], [])
        ]
        assert (dry.returncode, again.returncode, wet.returncode, twice.returncode) == (1, 1, 1, 1)
        assert '"storage": "local"' in again.stdout
        for answer, words in ((dry, ["local", "expired", "3"]), (wet, ["local", "expired", "3", "3,231"])):
            assert any(all(word in line for word in words) for line in answer.stdout.splitlines()), answer.stdout
            assert "gone: there is no storage 'gone'" in answer.stdout
            assert answer.stderr == ""
        assert len(await left(service)) == 1
        assert service.stored_files() == []


async def test_the_command_where_there_is_nothing_to_do_and_where_it_cannot(
    start_service: StartService, tmp_path: Path
) -> None:
    answer = await asyncio.to_thread(command, tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "there is no catalogue" in answer.stderr
    assert not (tmp_path / "data").exists()
    async with start_service() as service:
        answer = await asyncio.to_thread(command, tmp_path)
        assert (answer.returncode, answer.stdout, answer.stderr) == (0, "nothing is to go\n", "")
        async with service.runtime.database.job("retention"):
            answer = await asyncio.to_thread(command, tmp_path)
        assert answer.returncode == 2
        assert "under way" in answer.stderr


async def test_of_a_command_that_is_killed_every_asset_is_whole_or_gone_in_the_end(
    start_service: StartService, tmp_path: Path
) -> None:
    count = 1000
    async with start_service() as service:
        first = await stored(service, storage="local", expires_at=NOW - YEAR)
        source = service.data_dir / "assets"
        (record,) = await service.runtime.database.read(
            lambda catalogue: catalogue.page_of_storage("local", after=None, limit=2)
        )
        copies: list[AssetRecord] = []
        for number in range(1, count):
            copy = replace(record, id=UUID(int=first.int + number), state=AssetState.PENDING, lease="x/1")
            copies.append(copy)
            for old, new in zip(object_keys(record), object_keys(copy), strict=True):
                shutil.copy(source / old, source / new)
        await keep(service.runtime.database, *copies)
    process = subprocess.Popen([COMMAND, "retention"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if sum(1 for _ in source.rglob("*.original.jpg")) < count - 20:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL
    async with start_service(lease_seconds=1) as service:
        for _ in range(600):
            if {state for _, state in await service.rows()} == {"ready"}:
                break
            await asyncio.sleep(0.05)
        records = await service.runtime.database.read(
            lambda catalogue: catalogue.page_of_storage("local", after=None, limit=count)
        )
        assert 0 < len(records) < count
        assert service.stored_files() == sorted(key for each in records for key in object_keys(each))
        run = await last_run(service)
        assert run is not None
        assert run.finished_at is None
        assert (await service.client.post("/api/v1/maintenance/retention")).json()["assets"] == len(records)
        assert await service.leaves_nothing()
