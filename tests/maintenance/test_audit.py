"""Storages held against the catalogue, in both directions."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TextIO
from uuid import UUID

import pytest

from smart_assets.catalogue.repository import Repository
from smart_assets.errors import CatalogueUnavailable
from smart_assets.maintenance.audit import Audit, Finding, Report
from smart_assets.maintenance.marker import Marker, _mark_again
from smart_assets.maintenance.report import print_tables
from smart_assets.settings import CreditSettings
from smart_assets.storage.errors import StorageError
from smart_assets.storage.keys import AssetKey, Visibility, incoming_key, parse_asset_key
from tests import images
from tests.conftest import Service, StartService
from tests.staging import DistantStorage, FaultyStorage

HOLIDAY = images.jpeg(64, 48, seed=5)


@pytest.fixture
async def service(start_service: StartService) -> AsyncIterator[Service]:
    async with start_service(reconcile_grace_seconds=0) as running:
        yield running


async def audit(service: Service, storage: str = "local", *, grace: float = 0, **wishes: bool) -> Report:
    backend = service.runtime.storages.get(storage)
    looking = Audit(
        service.runtime.database,
        backend,
        Marker(service.runtime.database, backend),
        service.runtime.threads,
        temporary_dir=service.data_dir / "tmp",
        grace_seconds=grace,
        lease_seconds=service.runtime.settings.lease_seconds,
    )
    return await looking.run(**wishes)


def path_of(service: Service, asset: Any) -> Path:
    """Where the original of a public asset lies."""
    key: str = asset["url"].partition("/assets/")[2]
    return service.data_dir / "assets" / key


def stray_key(asset: Any, *, milliseconds: int = -1) -> str:
    """The key of an original of no asset there is, as one made so much later than `asset` would have it."""
    return str(AssetKey(Visibility.PUBLIC, UUID(int=UUID(asset["id"]).int + (milliseconds << 80)), "original", "jpg"))


def orphan(service: Service, asset: Any, *, age: timedelta = timedelta(0), milliseconds: int = -1) -> str:
    """A copy of an asset's original under the id of an asset there is not; its key."""
    key = stray_key(asset, milliseconds=milliseconds)
    stray = service.data_dir / "assets" / key
    stray.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path_of(service, asset), stray)
    then = (datetime.now(UTC) - age).timestamp()
    os.utime(stray, (then, then))
    return key


def marker(service: Service, storage: str = "local") -> Marker:
    return Marker(service.runtime.database, service.runtime.storages.get(storage))


def markers(service: Service) -> list[str]:
    return [key for key in service.stored_files() if key.startswith("smart-assets/")]


async def sql(service: Service, *statements: str) -> None:
    """Change the catalogue behind the service's back."""
    await service.runtime.database.write(
        lambda catalogue: [catalogue._connection.exec_driver_sql(statement) for statement in statements]
    )


def hexadecimal(asset: Any) -> str:
    return UUID(asset["id"]).hex


def told(report: Report) -> list[tuple[str, str]]:
    return [(finding.problem, finding.key) for finding in report.findings]


async def test_what_fits_is_right(service: Service) -> None:
    await service.uploaded(HOLIDAY, sizes="32,16", visibility="private")
    await service.uploaded(HOLIDAY)
    report = await audit(service, verify=True)
    assert report.is_right
    assert (report.objects, report.assets, report.findings) == (4, 2, [])
    assert report.bytes == sum(path.stat().st_size for path in (service.data_dir / "assets").rglob("*.jpg"))


async def test_bytes_without_a_row_are_told_and_left_alone(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    key = orphan(service, asset)
    report = await audit(service)
    assert not report.is_right
    assert told(report) == [("orphan", key)]
    assert key in service.stored_files()


async def test_bytes_of_the_other_visibility_or_of_no_size_of_the_asset_are_orphans_too(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    original = path_of(service, asset)
    strays = [
        Path(str(original).replace("/public/", "/private/")),
        original.with_name(original.name.replace(".original.", ".999.")),
    ]
    for stray in strays:
        stray.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(original, stray)
    report = await audit(service)
    root = service.data_dir / "assets"
    assert sorted(told(report)) == sorted(("orphan", stray.relative_to(root).as_posix()) for stray in strays)


async def test_what_lies_elsewhere_in_a_shared_bucket_is_nobodys_business(service: Service) -> None:
    await service.uploaded(HOLIDAY)
    theirs = ["reports/2026.pdf", "private/trip/hôtel & beach.jpg", "public/2026/01/02/logo.original.jpg"]
    for key in theirs:
        path = service.data_dir / "assets" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"theirs")
    await audit(service)
    report = await audit(service, delete_orphans=True)
    assert report.is_right
    assert report.refused is None
    assert report.foreign == 3
    assert set(theirs) <= set(service.stored_files())


async def test_young_bytes_are_nobodys_orphans_yet(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    orphan(service, asset, age=timedelta(minutes=59))
    old = orphan(service, asset, age=timedelta(minutes=61), milliseconds=-2)
    assert told(await audit(service, grace=3600)) == [("orphan", old)]
    assert await marker(service).owner() == "nobody"


async def test_orphans_are_removed_when_asked_for_and_nothing_else(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, sizes="32")
    await audit(service)
    key = orphan(service, asset)
    report = await audit(service, delete_orphans=True)
    assert report.is_right
    assert report.refused is None
    assert report.findings == [Finding("orphan", key, len(HOLIDAY), removed=True)]
    assert key not in service.stored_files()
    assert (await audit(service, verify=True)).is_right


async def test_a_dry_run_says_what_it_would_do_and_does_nothing(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    key = orphan(service, asset)
    before = service.stored_files()
    report = await audit(service, delete_orphans=True, dry_run=True)
    assert told(report) == [("orphan", key)]
    assert not report.findings[0].removed
    assert service.stored_files() == before, "no marker either"


async def test_orphans_stay_where_no_run_has_found_the_storage_without_any(service: Service) -> None:
    key = orphan(service, await service.uploaded(HOLIDAY))
    for _ in range(2):
        report = await audit(service, delete_orphans=True)
        assert "has no marker yet" in str(report.refused)
        assert key in service.stored_files()
    assert markers(service) == []
    await marker(service).claim()
    assert (await audit(service, delete_orphans=True)).is_right
    assert key not in service.stored_files()


async def test_a_fresh_catalogue_empties_no_bucket(service: Service) -> None:
    for _ in range(3):
        await service.uploaded(HOLIDAY)
    assert (await audit(service)).is_right
    await sql(service, "DELETE FROM assets", "DELETE FROM identity", "DELETE FROM tidied")
    for number in range(6):  # that there is much else says nothing about the rows
        (service.data_dir / f"assets/{number}.pdf").write_bytes(b"theirs")
    before = service.stored_files()
    report = await audit(service, delete_orphans=True)
    assert "3 of 3 objects" in str(report.refused)
    for _ in range(4):  # now that most of what is there is known, the marker is what is left to say no
        await service.uploaded(HOLIDAY)
    report = await audit(service, delete_orphans=True)
    assert "another catalogue" in str(report.refused)
    assert set(before) <= set(service.stored_files())
    assert not report.is_right
    assert not (await audit(service)).is_right
    assert (await audit(service)).owner == "another", "said by every run"


async def test_a_fresh_catalogue_empties_no_bucket_that_was_never_looked_at(service: Service) -> None:
    for _ in range(2):
        await service.uploaded(HOLIDAY)
    before = service.stored_files()
    await sql(service, "DELETE FROM assets")
    for _ in range(3):
        await service.uploaded(HOLIDAY)
    for grace in (3600, 0):  # the young ones keep the storage from becoming this catalogue's too
        report = await audit(service, delete_orphans=True, grace=grace)
        assert "has no marker yet" in str(report.refused)
    assert set(before) <= set(service.stored_files())


async def test_a_restored_catalogue_removes_nothing_until_the_storage_is_claimed(service: Service) -> None:
    kept = [await service.uploaded(HOLIDAY) for _ in range(3)]
    await audit(service)
    newer = await service.uploaded(HOLIDAY)
    await audit(service)
    # As after restoring a backup made between the two audits, and going on: the newer row is gone, and so is the note.
    await sql(service, f"DELETE FROM assets WHERE id = '{hexadecimal(newer)}'", "UPDATE tidied SET runs = runs - 1")
    kept.append(await service.uploaded(HOLIDAY))
    report = await audit(service, delete_orphans=True)
    assert "restored" in str(report.refused)
    assert len([key for key in service.stored_files() if key.endswith(".jpg")]) == len(kept) + 1
    await marker(service).claim()
    assert (await audit(service, delete_orphans=True)).is_right
    assert len([key for key in service.stored_files() if key.endswith(".jpg")]) == len(kept)


async def test_what_is_newer_than_all_the_catalogue_knows_is_removed_only_by_who_says_so(service: Service) -> None:
    kept = [await service.uploaded(HOLIDAY) for _ in range(2)]
    await audit(service)
    lost = orphan(service, kept[-1], milliseconds=1)
    report = await audit(service, delete_orphans=True)
    assert "newer than anything" in str(report.refused)
    assert lost in service.stored_files()
    assert (await audit(service, delete_orphans=True, claimed=True)).is_right
    assert lost not in service.stored_files()


async def test_a_claim_shuts_out_the_state_that_was_claimed_from(service: Service) -> None:
    await audit(service)
    await audit(service)
    await sql(service, "UPDATE tidied SET runs = 1")
    report = await audit(service)
    assert (report.owner, report.findings, report.is_right) == ("another", [], False)
    await marker(service).claim()
    assert await marker(service).owner() == "this"
    await sql(service, "UPDATE tidied SET runs = 2")  # as the catalogue was that the copy was made of
    assert await marker(service).owner() == "another"


async def test_several_that_raise_the_marker_at_once_never_shut_themselves_out(service: Service) -> None:
    await audit(service)
    slow, fast = marker(service), marker(service)
    reached, go, there = asyncio.Event(), asyncio.Event(), slow._there

    async def slowly() -> dict[str, tuple[UUID, int] | None]:
        reached.set()
        await go.wait()
        return await there()

    slow._there = slowly  # type: ignore[method-assign]
    raising = asyncio.create_task(slow.advance())
    await reached.wait()
    await fast.advance()
    go.set()
    await raising
    assert await marker(service).owner() == "this"
    assert len(markers(service)) == 1


@pytest.mark.parametrize("operation", ["put", "delete"])
async def test_whoever_dies_while_raising_the_marker_is_not_shut_out(
    service: Service, faulty: FaultyStorage, operation: Literal["put", "delete"]
) -> None:
    await marker(service, "faulty").claim()
    for after in (False, True):
        faulty.relent()
        faulty.fail(operation, after=after, error=StorageError("staged"))
        with pytest.raises(StorageError):
            await marker(service, "faulty").advance()
        faulty.relent()
        assert await marker(service, "faulty").owner() == "this"


async def test_the_note_of_a_run_comes_before_its_marker(
    service: Service, faulty: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await marker(service, "faulty").claim()
    before = await faulty.keys()

    def next_run(*_: object, **__: object) -> int:
        raise CatalogueUnavailable("staged")

    monkeypatch.setattr(Repository, "next_run", next_run)
    with pytest.raises(CatalogueUnavailable):
        await marker(service, "faulty").advance()
    assert await faulty.keys() == before


async def test_a_service_raises_the_marker_when_it_starts_and_sets_none(start_service: StartService) -> None:
    async def marked_again(service: Service, before: list[str]) -> bool:
        for _ in range(500):
            if markers(service) not in (before, []) and len(markers(service)) == 1:
                return True
            await asyncio.sleep(0.01)
        return False

    async with start_service() as service:
        backend = service.runtime.storages.get("local")
        await _mark_again(service.runtime.database, backend, None)
        assert markers(service) == []
        await audit(service)
        before = markers(service)
    async with start_service() as service:
        assert await marked_again(service, before)
        runs = await service.runtime.database.read(lambda catalogue: catalogue.runs("local"))
        before = markers(service)
        backend = service.runtime.storages.get("local")
        assert await _mark_again(service.runtime.database, backend, runs - 1) == runs, (
            "another process has just done so"
        )
        assert markers(service) == before
        assert await _mark_again(service.runtime.database, backend, runs) == runs + 1


async def test_a_restored_catalogue_is_told_from_the_one_that_was_served_since(
    start_service: StartService, tmp_path: Path
) -> None:
    async with start_service(reconcile_grace_seconds=0) as service:
        for _ in range(3):
            await service.uploaded(HOLIDAY)
        await audit(service)
    backup = copied(tmp_path)
    async with start_service(reconcile_grace_seconds=0) as service:  # nobody looks at anything meanwhile
        await _mark_again(service.runtime.database, service.runtime.storages.get("local"), None)
        await service.uploaded(HOLIDAY)
        everything = images_in(service)
    for file in (tmp_path / "data").glob("catalogue.sqlite3*"):
        file.unlink()
    shutil.copy(backup, tmp_path / "data/catalogue.sqlite3")
    async with start_service(reconcile_grace_seconds=0) as service:
        await service.uploaded(HOLIDAY)  # it can be used, whatever the marker says
    ran = run(tmp_path, "reconcile", "--delete-orphans")
    assert ran.returncode == 1
    assert "restored from a backup" in ran.stdout
    assert set(everything) <= set(images_in(service))
    assert run(tmp_path, "reconcile", "--delete-orphans", "--claim").returncode == 0
    assert len(images_in(service)) == 4


async def test_a_row_without_its_bytes_is_told(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, sizes="32")
    path_of(service, asset).unlink()
    report = await audit(service)
    assert [problem for problem, _ in told(report)] == ["missing"]
    assert report.findings[0].key.endswith(".original.jpg")


async def test_bytes_of_another_size_are_told_and_of_another_hash_when_they_are_read(service: Service) -> None:
    first, second = await service.uploaded(HOLIDAY), await service.uploaded(HOLIDAY)
    for asset, damaged in ((first, HOLIDAY[:-1]), (second, HOLIDAY[:-1] + b"x")):
        path_of(service, asset).chmod(0o600)
        path_of(service, asset).write_bytes(damaged)
    assert [problem for problem, _ in told(await audit(service))] == ["size"]
    assert sorted(problem for problem, _ in told(await audit(service, verify=True))) == ["hash", "hash", "size"]


async def test_what_is_under_way_is_neither_missing_nor_an_orphan_nor_wrong(
    start_service: StartService, faulty: FaultyStorage
) -> None:
    hang = faulty.hang("put", at=2)
    async with start_service(lease_seconds=1) as service:
        uploading = asyncio.create_task(service.upload(HOLIDAY, storage="faulty", sizes="32"))
        await hang.reached.wait()
        report = await audit(service, "faulty", dry_run=True)
        assert report.is_right
        assert (report.findings, report.at_work, report.unsettled) == ([], 1, 0)
        hang.release()
        assert (await uploading).status_code == 201


@pytest.mark.usefixtures("passes_by_hand")
async def test_what_a_dead_process_left_is_told(start_service: StartService) -> None:
    async with start_service(lease_seconds=1) as service:
        asset = await service.uploaded(HOLIDAY)
        await service.runtime.reconciler.pass_once()
        # Only just: the service has not yet seen that this lease does not beat.
        await sql(
            service,
            "INSERT INTO leases VALUES ('dead', 1)",
            f"UPDATE assets SET state = 'deleting', lease = 'dead/1' WHERE id = '{hexadecimal(asset)}'",
        )
        service.runtime.reconciler._watch._lease_seconds = 100
        report = await audit(service)
        assert not report.is_right
        assert (report.at_work, report.unsettled) == (0, 1)
        assert markers(service) == [], "who knows whose they are"


async def test_what_is_on_its_way_to_another_visibility_is_no_orphan_at_either(
    service: Service, faulty: FaultyStorage
) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes="32")
    hang = faulty.hang("move", after=True)
    url = f"/api/v1/assets/{asset['id']}"
    changing = asyncio.create_task(service.client.patch(url, json={"visibility": "private"}))
    await hang.reached.wait()
    assert any(key.startswith("private/") for key in await faulty.keys())
    assert (await audit(service, "faulty", dry_run=True)).findings == []
    hang.release()
    assert (await changing).status_code == 200


async def test_what_somebody_knows_by_now_is_neither_removed_nor_told(service: Service, faulty: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    for _ in range(2):
        await service.uploaded(HOLIDAY, storage="faulty")
    await audit(service, "faulty")
    strays = [stray_key(asset, milliseconds=-number) for number in (1, 2)]
    for key in strays:
        await faulty.inner.upload(key, HOLIDAY, content_type="image/jpeg")
    faulty.relent()
    hang = faulty.hang("delete", at=1)
    auditing = asyncio.create_task(audit(service, "faulty", delete_orphans=True))
    await hang.reached.wait()
    removed, known = sorted(strays)

    def insert(catalogue: Repository) -> None:
        record, parsed = catalogue.get(UUID(asset["id"])), parse_asset_key(known)
        assert record is not None
        assert parsed is not None
        catalogue.insert_pending([replace(record, id=parsed.asset_id)])

    await service.runtime.database.write(insert)
    hang.release()
    report = await auditing
    assert report.findings == [Finding("orphan", removed, len(HOLIDAY), removed=True)]
    assert known in await faulty.keys()
    assert removed not in await faulty.keys()


async def test_an_orphan_that_could_not_be_removed_is_not_said_to_be(service: Service, faulty: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    await service.uploaded(HOLIDAY, storage="faulty")
    await audit(service, "faulty")
    await faulty.inner.upload(stray_key(asset), HOLIDAY, content_type="image/jpeg")
    faulty.fail("delete")
    report = await audit(service, "faulty", delete_orphans=True)
    assert report.error == "staged"
    assert report.findings == [Finding("orphan", stray_key(asset), len(HOLIDAY))]


@pytest.mark.parametrize("switched", [False, True])
async def test_what_is_on_its_way_to_another_storage_is_no_orphan_at_either(
    start_service: StartService, faulty: FaultyStorage, switched: bool
) -> None:
    faulty.inner.capabilities = faulty.capabilities = DistantStorage().capabilities
    async with start_service(reconcile_grace_seconds=0, lease_seconds=1) as service:
        asset = await service.uploaded(HOLIDAY, sizes="32")
        for key in service.stored_files():
            await faulty.upload(key, service.data_dir / "assets" / key, content_type="image/jpeg")
        await service.runtime.database.write(lambda catalogue: catalogue.beat("another", 1))
        storage, target = ("faulty", "local") if switched else ("local", "faulty")
        await sql(
            service,
            f"UPDATE assets SET state = 'moving', storage = '{storage}', target_storage = '{target}', "
            f"lease = 'another/1' WHERE id = '{hexadecimal(asset)}'",
        )
        for name in ("local", "faulty"):
            assert (await audit(service, name, delete_orphans=True)).findings == []


async def test_an_asset_deleted_while_it_is_looked_at_misses_nothing(service: Service, faulty: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    (key,) = await faulty.keys()
    await faulty.inner.delete(key)  # so that there is a reason to look again
    faulty.relent()
    hang = faulty.hang("stat", at=1, after=False)
    auditing = asyncio.create_task(audit(service, "faulty"))
    await hang.reached.wait()
    assert (await service.client.delete(f"/api/v1/assets/{asset['id']}")).status_code == 204
    hang.release()
    assert (await auditing).findings == []


async def test_a_storage_that_fails_is_told_and_the_audit_ends(service: Service, faulty: FaultyStorage) -> None:
    faulty.fail("list")
    report = await audit(service, "faulty")
    assert report.error == "staged"
    assert not report.is_right


async def test_a_listing_longer_than_a_page_is_compared_whole(service: Service, faulty: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    for number in range(1, 1101):
        await faulty.inner.upload(stray_key(asset, milliseconds=-number), b"x", content_type="image/jpeg")
    report = await audit(service, "faulty", delete_orphans=True)
    assert len(report.findings) == 1100
    assert "lost rows" in str(report.refused)


def run(
    folder: Path, *arguments: str, stdout: TextIO | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from smart_assets.cli import main; main()", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "ASSETS_LEASE_SECONDS": "1", "ASSETS_RECONCILE_GRACE_SECONDS": "0", **environment},
        stdout=stdout or subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )


def copied(folder: Path) -> Path:
    """A copy of the catalogue, as a backup makes it."""
    copy = folder / "copy.sqlite3"
    with (
        closing(sqlite3.connect(folder / "data/catalogue.sqlite3")) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
    return copy


def images_in(service: Service) -> list[str]:
    return [key for key in service.stored_files() if key.endswith(".jpg")]


async def test_the_command_tells_people_and_machines_and_exits_with_1_where_something_is_wrong(
    start_service: StartService, tmp_path: Path
) -> None:
    async with start_service() as service:
        asset = await service.uploaded(HOLIDAY, sizes="32")
        assert run(tmp_path, "reconcile").returncode == 0
        key = orphan(service, asset)
    ran = run(tmp_path, "reconcile")
    assert ran.returncode == 1, ran.stderr
    assert f"local: orphan: {key}" in ran.stdout
    ran = run(tmp_path, "reconcile", "--storage", "local", "--storage", "local", "--json", "--dry-run")
    assert ran.returncode == 1
    report = json.loads(ran.stdout)
    assert len(report["storages"]) == 1
    assert report["right"] is False
    assert report["storages"][0]["findings"] == [
        {"problem": "orphan", "key": key, "size": len(HOLIDAY), "removed": False}
    ]
    ran = run(tmp_path, "reconcile", "--delete-orphans", "--verify", "--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.loads(ran.stdout)["storages"][0]["findings"][0]["removed"] is True
    assert run(tmp_path, "reconcile").returncode == 0


async def test_the_command_finds_an_account_that_is_not_the_sum_of_its_ledger(
    start_service: StartService, tmp_path: Path
) -> None:
    async with start_service(credits=CreditSettings(per_original=1)) as service:
        body = {"owner": "default", "amount": 5}
        assert (await service.client.post("/api/v1/credits", json=body)).status_code == 201
        await service.uploaded(HOLIDAY)
        assert run(tmp_path, "reconcile").returncode == 0
        await service.runtime.database.write(
            lambda catalogue: catalogue._connection.exec_driver_sql("UPDATE credit_accounts SET balance = 7")
        )
    ran = run(tmp_path, "reconcile")
    assert ran.returncode == 1, ran.stderr
    said = "credits of default: balance 7, reserved 0, spent 1; by the ledger and the assets balance 4, reserved 0"
    assert said in ran.stdout
    report = json.loads(run(tmp_path, "reconcile", "--json").stdout)
    assert report["right"] is False
    assert report["storages"][0]["right"] is True
    (wrong,) = report["wrong_accounts"]
    assert (wrong["balance"], wrong["should_be"]["balance"]) == (7, 4)


def could_not_look(ran: subprocess.CompletedProcess[str], *words: str) -> None:
    assert ran.returncode == 2
    assert ran.stderr.startswith("smart-assets: ")
    assert len(ran.stderr.strip().splitlines()) == 1, ran.stderr
    assert ran.stdout == ""
    for word in words:
        assert word in ran.stderr


@pytest.mark.parametrize("storage", ["memory", "direct", "nope", "s3"])
async def test_a_storage_that_cannot_be_looked_at_is_one_sentence(
    storage: str, start_service: StartService, tmp_path: Path
) -> None:
    async with start_service():
        could_not_look(run(tmp_path, "reconcile", "--storage", storage), storage)


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_where_there_is_no_catalogue_none_is_made(options: tuple[str, ...], tmp_path: Path) -> None:
    could_not_look(run(tmp_path, "reconcile", *options), "there is no catalogue")
    assert list(tmp_path.iterdir()) == []


async def test_a_catalogue_of_another_version_is_left_as_it_is(start_service: StartService, tmp_path: Path) -> None:
    async with start_service() as service:
        await sql(service, "UPDATE alembic_version SET version_num = '0001'")
    could_not_look(run(tmp_path, "reconcile", "--dry-run"), "not of this version")


async def test_a_catalogue_that_stays_locked_is_one_sentence(start_service: StartService, tmp_path: Path) -> None:
    async with start_service() as service:
        await service.uploaded(HOLIDAY)
    with closing(sqlite3.connect(tmp_path / "data/catalogue.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        could_not_look(run(tmp_path, "reconcile", "--claim"), "does not answer")
        assert run(tmp_path, "reconcile", "--dry-run").returncode == 0, "who only reads waits for nobody"


@pytest.mark.parametrize("options", [(), ("--json",)])
async def test_a_report_that_nobody_can_take_is_one_sentence(
    options: tuple[str, ...], start_service: StartService, tmp_path: Path
) -> None:
    async with start_service():
        with Path("/dev/full").open("w") as full:
            ran = run(tmp_path, "reconcile", *options, stdout=full)
    assert ran.returncode == 2
    assert ran.stderr == "smart-assets: No space left on device\n"


def test_to_claim_and_to_change_nothing_is_refused(tmp_path: Path) -> None:
    ran = run(tmp_path, "reconcile", "--claim", "--dry-run")
    assert ran.returncode == 2
    assert "--claim changes something" in " ".join(ran.stderr.split())


async def test_what_was_left_half_done_is_finished_first_and_by_a_dry_run_not(
    start_service: StartService, tmp_path: Path
) -> None:
    async with start_service() as service:
        kept, left = await service.uploaded(HOLIDAY), await service.uploaded(HOLIDAY)
        assert run(tmp_path, "reconcile").returncode == 0
        key = images_in(service)
        await sql(service, f"UPDATE assets SET state = 'pending', lease = 'dead/1' WHERE id = '{hexadecimal(left)}'")
        # Before the service comes to it.
        copy = copied(tmp_path)
    for file in (tmp_path / "data").glob("catalogue.sqlite3*"):
        file.unlink()
    shutil.copy(copy, tmp_path / "data/catalogue.sqlite3")
    before = contents(tmp_path / "data/catalogue.sqlite3")
    ran = run(tmp_path, "reconcile", "--dry-run", "--json")
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["storages"][0]["unsettled"] == 1
    assert contents(tmp_path / "data/catalogue.sqlite3") == before
    assert images_in(service) == key
    assert run(tmp_path, "reconcile").returncode == 0
    assert len(images_in(service)) == 1
    assert kept["id"] in images_in(service)[0]


async def test_rows_of_a_copy_of_the_catalogue_are_not_finished(start_service: StartService, tmp_path: Path) -> None:
    async with start_service() as service:
        asset = await service.uploaded(HOLIDAY)
        copy = copied(tmp_path)
        with closing(sqlite3.connect(copy)) as catalogue, catalogue:  # as it was before the upload was closed
            catalogue.execute("UPDATE assets SET state = 'pending', lease = 'dead/1'")
        elsewhere = f"sqlite:///{copy}"
        for _ in range(2):
            ran = run(tmp_path, "reconcile", ASSETS_DATABASE_URL=elsewhere)
            assert ran.returncode == 1
            assert "was not finished: local has no marker yet" in ran.stdout
        await audit(service)
        ran = run(tmp_path, "reconcile", ASSETS_DATABASE_URL=elsewhere)
        assert ran.returncode == 1
        assert "was not finished: the storage's marker names another catalogue, or a later state" in ran.stdout
        assert path_of(service, asset).exists()


async def test_rows_of_a_storage_that_is_not_configured_are_told_and_not_waited_for(
    start_service: StartService, tmp_path: Path
) -> None:
    async with start_service() as service:
        asset = await service.uploaded(HOLIDAY)
        await service.uploaded(HOLIDAY)
        await sql(
            service,
            f"UPDATE assets SET storage = 's3', state = 'deleting', lease = 'dead/1' WHERE id = '{hexadecimal(asset)}'",
        )
        path_of(service, asset).unlink()
    ran = run(tmp_path, "reconcile", "--json", ASSETS_LEASE_SECONDS="1000")
    assert ran.returncode == 1
    local, s3 = json.loads(ran.stdout)["storages"]
    assert (local["storage"], local["right"]) == ("local", True)
    assert (s3["storage"], s3["right"], s3["assets"]) == ("s3", False, 1)
    assert "ASSETS_S3__BUCKET" in s3["error"]
    assert run(tmp_path, "reconcile", "--storage", "local", ASSETS_LEASE_SECONDS="1000").returncode == 0


def test_figures_are_never_cut() -> None:
    out = io.StringIO()
    findings = [Finding("orphan", "k")] * 1500
    print_tables([Report("cloudinary", objects=2_400_000, bytes=1_234_567_890_123, findings=findings)], [], out)
    for figure in ("2,400,000", "1,234,567,890,123", "1,500"):
        assert figure in out.getvalue()


async def test_a_directory_of_others_that_must_not_be_read_is_passed_over(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.uploaded(HOLIDAY)
    for directory in ("lost+found", "private"):
        (service.data_dir / "assets" / directory).mkdir()
    opened, shut = os.open, {"lost+found"}

    def refusing(path: Any, *arguments: Any, **options: Any) -> int:
        if path in shut:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)  # root may read everything
    assert (await audit(service)).is_right
    shut.add("private")
    assert "refuses access" in str((await audit(service)).error)


def contents(catalogue: Path) -> list[str]:
    with closing(sqlite3.connect(catalogue)) as connection:
        return list(connection.iterdump())


async def test_the_rows_of_a_running_services_memory_are_left_alone(
    start_service: StartService, tmp_path: Path
) -> None:
    async with start_service() as service:
        await service.uploaded(HOLIDAY, storage="memory")
        assert run(tmp_path, "reconcile").returncode == 0
        assert len(await service.rows()) == 1


async def test_what_came_with_an_open_ticket_is_no_orphan(service: Service, distant: FaultyStorage) -> None:
    def leave(key: str) -> Any:
        return distant.inner.upload(key, HOLIDAY, content_type="image/jpeg")

    await service.uploaded(HOLIDAY, storage="distant")
    answer = await service.client.post(
        "/api/v1/upload-tickets", params={"storage": "distant"}, json={"upload": "bucket"}
    )
    open_ticket = incoming_key(UUID(answer.json()["id"]))
    await leave(open_ticket)
    await leave("private/incoming/no ticket at all")
    report = await audit(service, "distant")
    assert (report.findings, report.foreign) == ([], 1)
    strays = [incoming_key(UUID(int=UUID(answer.json()["id"]).int - number)) for number in (1, 2)]
    for stray in strays:
        await leave(stray)
    report = await audit(service, "distant", delete_orphans=True)
    assert report.refused is None
    assert {(finding.key, finding.removed) for finding in report.findings} == {(stray, True) for stray in strays}
    left = await distant.keys()
    assert open_ticket in left
    assert left.isdisjoint(strays)


async def test_a_ticket_for_one_storage_knows_nothing_of_another(service: Service, distant: FaultyStorage) -> None:
    answer = await service.client.post(
        "/api/v1/upload-tickets", params={"storage": "distant"}, json={"upload": "bucket"}
    )
    key = incoming_key(UUID(answer.json()["id"]))
    await service.runtime.storages.get("local").upload(key, HOLIDAY, content_type="image/jpeg")
    report = await audit(service)
    assert [(finding.problem, finding.key) for finding in report.findings] == [("orphan", key)]
