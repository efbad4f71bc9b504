"""Storages held against the catalogue, in both directions."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from smart_assets.assets.objects import new_asset_id
from smart_assets.maintenance.audit import Audit, Finding, Marker, Report
from tests import images
from tests.conftest import Service, StartService
from tests.staging import FaultyStorage

HOLIDAY = images.jpeg(64, 48, seed=5)


@pytest.fixture
async def service(start_service: StartService) -> AsyncIterator[Service]:
    async with start_service(reconcile_grace_seconds=0) as running:
        yield running


async def audit(service: Service, storage: str = "local", *, grace: float = 0, **wishes: bool) -> Report:
    backend = service.runtime.storages.get(storage)
    marker = Marker(service.runtime.database, backend)
    looking = Audit(
        service.runtime.database,
        backend,
        marker,
        service.runtime.threads,
        temporary_dir=service.data_dir / "tmp",
        grace_seconds=grace,
    )
    return await looking.run(**wishes)


def path_of(service: Service, asset: Any) -> Path:
    """Where the original of a public asset lies."""
    key: str = asset["url"].partition("/assets/")[2]
    return service.data_dir / "assets" / key


def orphan(service: Service, asset: Any, *, age: timedelta = timedelta(0)) -> str:
    """A copy of an asset's original under the id of an asset there is not; its key."""
    original = path_of(service, asset)
    stray = original.with_name(original.name.replace(asset["id"], str(new_asset_id())))
    shutil.copy(original, stray)
    then = (datetime.now(UTC) - age).timestamp()
    os.utime(stray, (then, then))
    return stray.relative_to(service.data_dir / "assets").as_posix()


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
        service.data_dir / "assets/public/not one of ours.jpg",
    ]
    for stray in strays:
        stray.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(original, stray)
    report = await audit(service)
    root = service.data_dir / "assets"
    assert sorted(told(report)) == sorted(("orphan", stray.relative_to(root).as_posix()) for stray in strays)


async def test_what_lies_elsewhere_in_a_shared_bucket_is_nobodys_business(service: Service) -> None:
    await service.uploaded(HOLIDAY)
    (service.data_dir / "assets/reports").mkdir()
    (service.data_dir / "assets/reports/2026.pdf").write_bytes(b"theirs")
    report = await audit(service, delete_orphans=True)
    assert report.is_right
    assert report.foreign == 1
    assert (service.data_dir / "assets/reports/2026.pdf").exists()


async def test_young_bytes_are_nobodys_orphans_yet(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    orphan(service, asset, age=timedelta(minutes=59))
    old = orphan(service, asset, age=timedelta(minutes=61))
    assert told(await audit(service, grace=3600)) == [("orphan", old)]


async def test_orphans_are_removed_when_asked_for_and_nothing_else(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, sizes="32")
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


async def test_a_fresh_catalogue_empties_no_bucket(service: Service, start_service: StartService) -> None:
    for _ in range(3):
        await service.uploaded(HOLIDAY)
    assert (await audit(service)).is_right
    await service.runtime.database.write(
        lambda catalogue: [
            catalogue._connection.exec_driver_sql(f"DELETE FROM {table}") for table in ("assets", "identity", "tidied")
        ]
    )
    before = service.stored_files()
    report = await audit(service, delete_orphans=True)
    assert "lost rows" in str(report.refused)
    for _ in range(4):  # now that most of what is there is known, the marker is what is left to say no
        await service.uploaded(HOLIDAY)
    report = await audit(service, delete_orphans=True)
    assert "another catalogue" in str(report.refused)
    assert set(before) <= set(service.stored_files())
    assert not report.is_right


async def test_a_restored_catalogue_removes_nothing_until_the_storage_is_claimed(service: Service) -> None:
    kept = [await service.uploaded(HOLIDAY) for _ in range(3)]
    await audit(service)
    newer = await service.uploaded(HOLIDAY)
    await audit(service)
    # As after restoring a backup made between the two audits: the newer row is gone, and so is the note of the run.
    await service.runtime.database.write(
        lambda catalogue: (
            catalogue._connection.exec_driver_sql("DELETE FROM assets WHERE id = ?", (newer["id"].replace("-", ""),)),
            catalogue._connection.exec_driver_sql("UPDATE tidied SET runs = runs - 1"),
        )
    )
    report = await audit(service, delete_orphans=True)
    assert "restored" in str(report.refused)
    assert len([key for key in service.stored_files() if key.endswith(".jpg")]) == len(kept) + 1
    await Marker(service.runtime.database, service.runtime.storages.get("local")).claim()
    assert (await audit(service, delete_orphans=True)).is_right
    assert len([key for key in service.stored_files() if key.endswith(".jpg")]) == len(kept)


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


async def test_what_is_under_way_is_neither_missing_nor_an_orphan(service: Service, faulty: FaultyStorage) -> None:
    await service.uploaded(HOLIDAY, storage="faulty")
    hang = faulty.hang("put", at=3)
    uploading = asyncio.create_task(service.upload(HOLIDAY, storage="faulty", sizes="32"))
    await hang.reached.wait()
    report = await audit(service, "faulty", dry_run=True)
    assert report.findings == []
    assert report.unsettled == 1
    hang.release()
    assert (await uploading).status_code == 201


async def test_a_storage_that_fails_is_told_and_the_audit_ends(service: Service, faulty: FaultyStorage) -> None:
    faulty.fail("list")
    report = await audit(service, "faulty")
    assert report.error == "staged"
    assert not report.is_right


async def test_a_listing_longer_than_a_page_is_compared_whole(service: Service, faulty: FaultyStorage) -> None:
    await service.uploaded(HOLIDAY, storage="faulty")
    for number in range(1100):
        await faulty.inner.upload(f"public/stray/{number:04}.jpg", b"x", content_type="image/jpeg")
    report = await audit(service, "faulty", delete_orphans=True)
    assert len(report.findings) == 1100
    assert "lost rows" in str(report.refused)


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from smart_assets.cli import main; main()", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "ASSETS_LEASE_SECONDS": "1", "ASSETS_RECONCILE_GRACE_SECONDS": "0", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def test_the_command_tells_people_and_machines_and_exits_with_1_where_something_is_wrong(
    start_service: StartService, tmp_path: Path
) -> None:
    async with start_service() as service:
        asset = await service.uploaded(HOLIDAY, sizes="32")
        key = orphan(service, asset)
    ran = run(tmp_path, "reconcile")
    assert ran.returncode == 1, ran.stderr
    assert f"local: orphan: {key}" in ran.stdout
    ran = run(tmp_path, "reconcile", "--storage", "local", "--json", "--dry-run")
    assert ran.returncode == 1
    report = json.loads(ran.stdout)
    assert report["right"] is False
    assert report["storages"][0]["findings"] == [
        {"problem": "orphan", "key": key, "size": len(HOLIDAY), "removed": False}
    ]
    ran = run(tmp_path, "reconcile", "--delete-orphans", "--verify", "--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.loads(ran.stdout)["storages"][0]["findings"][0]["removed"] is True
    assert run(tmp_path, "reconcile").returncode == 0


@pytest.mark.parametrize("storage", ["memory", "direct", "nope", "s3"])
def test_a_storage_that_cannot_be_looked_at_is_one_sentence(storage: str, tmp_path: Path) -> None:
    ran = run(tmp_path, "reconcile", "--storage", storage)
    assert ran.returncode == 1
    assert ran.stderr.startswith("smart-assets: ")
    assert len(ran.stderr.strip().splitlines()) == 1
    assert ran.stdout == ""


async def test_the_rows_of_a_running_services_memory_are_left_alone(
    start_service: StartService, tmp_path: Path
) -> None:
    async with start_service() as service:
        await service.uploaded(HOLIDAY, storage="memory")
        assert run(tmp_path, "reconcile").returncode == 0
        assert len(await service.rows()) == 1
