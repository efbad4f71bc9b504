"""The doctor without servers: what it tries, says, cleans up, and how the command ends."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smart_assets.commands.doctor import as_json, check_up, print_tables
from smart_assets.errors import ConfigurationError
from smart_assets.maintenance import machine
from smart_assets.maintenance.doctor import Examination, Step, examine, is_meant
from smart_assets.maintenance.faults import Diagnosis, Fault, diagnose, diagnosis
from smart_assets.maintenance.machine import examine_machine
from smart_assets.runtime import database_url, make_directories
from smart_assets.settings import (
    CloudinarySettings,
    GcsSettings,
    LocalStorageSettings,
    MemoryStorageSettings,
    S3Settings,
    Settings,
)
from smart_assets.storage.errors import ObjectExists, StorageError, StorageFull, StorageUnavailable
from smart_assets.storage.factory import get_storage_backend
from smart_assets.storage.local import LocalStorage
from smart_assets.storage.memory import MemoryStorage
from tests import images
from tests.conftest import StartService
from tests.staging import FaultyStorage

COMMAND = [sys.executable, "-m", "smart_assets.cli", "doctor"]
HOLIDAY = images.jpeg(64, 48, seed=12)


def outcomes(found: Examination) -> dict[str, str]:
    return {step.name: step.outcome for step in found.steps}


def step(found: Examination, name: str) -> Step:
    (there,) = (step for step in found.steps if step.name == name)
    return there


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# ── A storage ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_local_storage_that_is_well_is_as_it_was(tmp_path: Path) -> None:
    storage = LocalStorage("local", tmp_path / "assets", tmp_path / "tmp")
    await storage.upload("private/mine.png", b"mine", content_type="image/png")
    found = await examine(storage, "local", None)
    await storage.close()
    assert found.is_well
    tried = [name for name, outcome in outcomes(found).items() if outcome == "ok"]
    assert tried == [
        "put",
        "odd key",
        "empty object",
        "8 MB object",
        "get",
        "range",
        "stat",
        "list",
        "overwrite refused",
        "delete",
        "gone afterwards",
        "as it is set up",
    ]
    assert all(step.detail for step in found.steps if step.outcome == "skipped"), "each says why"
    assert files_in(tmp_path / "assets") == [tmp_path / "assets/private/mine.png"]
    assert files_in(tmp_path / "tmp") == []


async def test_what_a_killed_examination_left_on_a_disk_goes_with_a_later_one(tmp_path: Path) -> None:
    storage = LocalStorage("local", tmp_path / "assets", tmp_path / "tmp")
    for key, age in (("old", 7200), ("young", 60)):
        await storage.upload(f"private/smart-assets-check/{key}", b"left", content_type="image/png")
        then = time.time() - age
        os.utime(tmp_path / f"assets/private/smart-assets-check/{key}", (then, then))
    assert (await examine(storage, "local", None)).is_well
    await storage.close()
    assert [path.name for path in files_in(tmp_path / "assets")] == ["young"]


async def test_a_storage_that_keeps_nothing_is_only_given_something() -> None:
    found = await examine(get_storage_backend("direct", Settings()), "direct", Settings().direct)
    assert outcomes(found) == {"clock": "skipped", "put": "ok", "everything else": "skipped"}


@pytest.mark.parametrize(
    ("operation", "fails"),
    [
        ("put", "put"),
        ("read", "odd key"),
        ("stat", "stat"),
        ("list", "list"),
        ("delete", "delete"),
        ("check", "as it is set up"),
    ],
)
async def test_what_fails_is_the_step_that_is_said_to(operation: Any, fails: str) -> None:
    storage = FaultyStorage()
    storage.fail(operation, at=1, error=StorageError("it is broken"))
    found = await examine(storage, "memory", None)
    assert [step.name for step in found.steps if step.outcome == "failed"] == [fails]
    assert step(found, fails).detail == "it is broken"
    assert await storage.keys() == set()


async def test_where_nothing_can_be_written_nothing_else_is_tried() -> None:
    storage = FaultyStorage()
    storage.fail("put")
    found = await examine(storage, "memory", None)
    assert outcomes(found) == {"clock": "skipped", "put": "failed", "everything else": "skipped"}


@pytest.mark.parametrize("operation", ["put", "read", "list", "stat"])
async def test_an_examination_that_is_broken_off_leaves_nothing(operation: Any) -> None:
    storage = FaultyStorage()
    hang = storage.hang(operation, at=1, after=operation == "put")
    examination = asyncio.create_task(examine(storage, "memory", None))
    await hang.reached.wait()
    assert await storage.keys(), "there is something to remove"
    examination.cancel()
    with pytest.raises(asyncio.CancelledError):
        await examination
    assert await storage.keys() == set()


async def test_what_cannot_be_removed_is_named() -> None:
    storage = FaultyStorage()
    storage.fail("delete", error=StorageError("no"))
    found = await examine(storage, "memory", None)
    assert step(found, "tidy up").outcome == "failed"
    assert all(key in step(found, "tidy up").detail for key in await storage.keys())


async def test_a_storage_that_overwrites_is_found_out() -> None:
    class Overwriting(MemoryStorage):
        async def _put(self, key: str, *source: Any, **how: Any) -> Any:
            self._objects.pop(key, None)
            return await super()._put(key, *source, **how)

    found = await examine(Overwriting("memory", 64 * 1024 * 1024), "memory", None)
    assert [step.name for step in found.steps if step.outcome == "failed"] == ["overwrite refused"]


async def test_a_storage_that_changes_bytes_is_found_out() -> None:
    storage = FaultyStorage()
    storage.shorten(at=1)
    found = await examine(storage, "memory", None)
    assert step(found, "put").outcome == "failed"


async def test_a_full_one_names_its_limit() -> None:
    own = MemoryStorageSettings(max_bytes=1000)
    settings = Settings(storages={"quick": own})
    found = await examine(get_storage_backend("quick", settings), "memory", own)
    large = step(found, "8 MB object")
    assert large.diagnosis is not None
    assert (large.diagnosis.fault, large.diagnosis.settings) == (
        Fault.FULL,
        ("ASSETS_STORAGES__quick__MAX_BYTES",),
    )
    assert outcomes(found)["delete"] == "ok", "what does not need it goes on"


# ── Naming the fault ────────────────────────────────────────────────────────────────────────────────────────────────


def caused(error: StorageError, cause: BaseException) -> StorageError:
    error.__cause__ = cause
    return error


def botocore(code: str) -> Exception:
    error = Exception(code)
    error.response = {"Error": {"Code": code}}  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("storage", "own", "error", "expected"),
    [
        (
            "s3",
            S3Settings(bucket="b"),
            caused(StorageError("refused"), botocore("SignatureDoesNotMatch")),
            (Fault.CREDENTIALS, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        ),
        (
            "media",
            S3Settings(bucket="b"),
            caused(StorageError("refused"), botocore("AuthorizationHeaderMalformed")),
            (Fault.REGION, ("ASSETS_STORAGES__media__REGION",)),
        ),
        (
            "gcs",
            GcsSettings(bucket="b"),
            StorageError("the bucket of the storage does not exist"),
            (Fault.NO_BUCKET, ("ASSETS_GCS__BUCKET",)),
        ),
        (
            "cloudinary",
            CloudinarySettings(),
            StorageError("cloudinary refuses the request: this machine's clock is off by more than an hour"),
            (Fault.CLOCK, ()),
        ),
        (
            "local",
            None,
            caused(StorageFull("no room"), OSError(errno.ENOSPC, "full")),
            (Fault.FULL, ("ASSETS_DATA_DIR",)),
        ),
        (
            "archive",
            LocalStorageSettings(),
            caused(StorageError("refuses access"), PermissionError(errno.EACCES, "no")),
            (Fault.DISK, ("ASSETS_STORAGES__archive__DIRECTORY",)),
        ),
        ("gcs", GcsSettings(bucket="b"), StorageUnavailable("away"), (Fault.ADDRESS, ("ASSETS_GCS__ENDPOINT_URL",))),
        ("s3", S3Settings(bucket="b"), ObjectExists("what?"), (Fault.UNKNOWN, ())),
    ],
)
def test_the_fault_and_its_cure(storage: str, own: Any, error: StorageError, expected: tuple[Fault, Any]) -> None:
    found = diagnose(error, storage, own)
    assert (found.fault, found.settings) == expected


@pytest.mark.parametrize("fault", Fault)
def test_every_fault_has_a_cure(fault: Fault) -> None:
    assert diagnosis(fault, "s3", S3Settings(bucket="b")).cure


def test_with_a_wrong_clock_no_secret_is_suspected() -> None:
    error = caused(StorageError("refused"), botocore("SignatureDoesNotMatch"))
    assert diagnose(error, "s3", S3Settings(bucket="b"), skewed=True).fault is Fault.CLOCK


@pytest.mark.parametrize(
    ("name", "own", "meant"),
    [
        ("s3", S3Settings(), False),
        ("s3", S3Settings(region="r"), True),
        ("s3", S3Settings(bucket="b"), True),
        ("media", S3Settings(), True),
        ("memory", MemoryStorageSettings(), True),
    ],
)
def test_what_nobody_has_begun_to_set_up_is_passed_over(name: str, own: Any, meant: bool) -> None:
    assert is_meant(name, own) is meant


# ── The machine ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def looked_at(settings: Settings) -> Examination:
    return await examine_machine(settings, database_url(settings), lambda: make_directories(settings))


async def test_a_machine_without_a_catalogue_is_well_and_gets_none(tmp_path: Path) -> None:
    found = await looked_at(Settings(data_dir=tmp_path / "data"))
    assert found.is_well
    assert outcomes(found)["catalogue"] == "skipped"
    assert files_in(tmp_path) == []


async def test_a_data_directory_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    found = await looked_at(Settings(data_dir=tmp_path / "data"))
    assert outcomes(found) == {"data directory": "failed"}
    diagnosed = step(found, "data directory").diagnosis
    assert diagnosed is not None
    assert (diagnosed.fault, diagnosed.settings) == (Fault.DISK, ("ASSETS_DATA_DIR",))


async def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = SimpleNamespace(f_bavail=0, f_frsize=4096, f_files=10, f_favail=5)
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    found = await looked_at(Settings(data_dir=tmp_path / "data"))
    assert [step.name for step in found.steps if step.outcome == "failed"] == ["free space"]


async def test_a_catalogue_over_a_network_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    device = tmp_path.stat().st_dev
    mounts.write_text(f"1 2 {os.major(device)}:{os.minor(device)} / {tmp_path} rw - nfs4 server:/ rw\n")
    monkeypatch.setattr(machine, "_MOUNTS", mounts)
    found = await looked_at(Settings(data_dir=tmp_path / "data"))
    assert [step.name for step in found.steps if step.outcome == "failed"] == ["file system"]
    assert "nfs4" in step(found, "file system").detail


async def test_a_catalogue_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/catalogue.sqlite3").write_text("no database at all, but text of some length")
    found = await looked_at(Settings(data_dir=tmp_path / "data"))
    assert outcomes(found)["catalogue"] == "failed"
    diagnosed = step(found, "catalogue").diagnosis
    assert diagnosed is not None
    assert diagnosed.settings == ("ASSETS_DATABASE_URL",)


# ── The command ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_it_works_beside_a_running_service_and_disturbs_nothing(
    start_service: StartService, capsys: pytest.CaptureFixture[str]
) -> None:
    async with start_service(storages={"media": {"type": "local"}}) as service:
        asset = await service.uploaded(HOLIDAY, storage="media")
        rows, kept = await service.rows(), files_in(service.data_dir / "storages/media/assets")
        settings = service.runtime.settings
        assert await asyncio.to_thread(check_up, settings, ["media", "local"], json=True)
        report = json.loads(capsys.readouterr().out)
        subjects = [found["subject"] for found in report["examinations"]]
        assert subjects == ["this machine", "media", "local"]
        (catalogue,) = (step for step in report["examinations"][0]["steps"] if step["name"] == "catalogue")
        assert (catalogue["outcome"], catalogue["detail"]) == ("ok", "1 assets")
        assert await service.rows() == rows
        assert files_in(service.data_dir / "storages/media/assets") == kept
        assert (await service.client.get(asset["url"])).content == HOLIDAY


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def test_the_command_says_that_all_is_well(tmp_path: Path) -> None:
    told = run(tmp_path)
    assert told.returncode == 0, told.stdout + told.stderr
    for subject in ("this machine", "local", "memory", "direct"):
        assert subject in told.stdout.splitlines()
    assert "s3" not in told.stdout, "nobody has begun to set it up"
    assert told.stderr == ""


def test_a_storage_half_set_up_ends_it_with_1_and_says_what_is_missing(tmp_path: Path) -> None:
    told = run(tmp_path, "--json", "--storage", "media", ASSETS_STORAGES__media__TYPE="s3")
    assert told.returncode == 1
    report = json.loads(told.stdout)
    (media,) = (found for found in report["examinations"] if found["subject"] == "media")
    assert (media["type"], media["well"]) == ("s3", False)
    assert media["steps"][0]["fault"] == "not_configured"
    assert media["steps"][0]["settings"] == ["ASSETS_STORAGES__media__BUCKET"]


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (("--storage", "nowhere"), {}, "there is no storage 'nowhere'"),
        ((), {"ASSETS_STORAGES__media__TYPE": "ftp"}, "ASSETS_STORAGES__media__TYPE: must be one of"),
        ((), {"ASSETS_DEFAULT_STORAGE": "media"}, "ASSETS_DEFAULT_STORAGE is media"),
        (
            (),
            {
                "ASSETS_STORAGES__a__TYPE": "local",
                "ASSETS_STORAGES__a__DIRECTORY": "/tmp/x",
                "ASSETS_STORAGES__b__TYPE": "local",
                "ASSETS_STORAGES__b__DIRECTORY": "/tmp/x/y",
            },
            "set ASSETS_STORAGES__b__DIRECTORY to another",
        ),
    ],
)
def test_an_operators_mistake_ends_it_with_2_and_one_sentence(
    arguments: tuple[str, ...], environment: dict[str, str], words: str, tmp_path: Path
) -> None:
    told = run(tmp_path, *arguments, **environment)
    assert told.returncode == 2
    assert words in told.stderr
    assert "Traceback" not in told.stdout + told.stderr
    assert told.stdout == ""


async def test_a_name_that_is_none_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no storage"):
        check_up(Settings(data_dir=tmp_path / "data"), ["nowhere"], json=True)
    assert not (tmp_path / "data").exists()


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    settings = Settings(data_dir=tmp_path / "data", s3={"bucket": "b"})
    assert not check_up(settings, None, json=False)
    said = capsys.readouterr().out
    assert "the extra smart-assets[s3] missing" in said
    assert "set, or install, what is missing (the extra smart-assets[s3])" in said


def test_people_read_what_machines_do() -> None:
    failed = Step(
        "put", "failed", "no [bold]room[/bold]", 0.5, Diagnosis(Fault.FULL, "make room", ("ASSETS_DATA_DIR",))
    )
    found = [Examination("media", "local", [failed, Step("sign", "skipped", "why not")])]
    text = io.StringIO()
    print_tables(found, text)
    said = text.getvalue()
    assert "media (local)" in said
    assert "no [bold]room[/bold]" in said
    assert "→ put: make room (ASSETS_DATA_DIR)" in said
    assert "1 tried, 1 failed" in said
    report = json.loads(as_json(found))
    assert report["well"] is False
    assert report["examinations"][0]["steps"][0]["fault"] == "full"


def test_a_backend_that_raises_what_none_should_is_a_finding(tmp_path: Path) -> None:
    class Broken(MemoryStorage):
        async def _put(self, *given: Any, **how: Any) -> Any:
            raise KeyError("password=hush")

    found = asyncio.run(examine(Broken("memory", 1), "memory", None))
    assert step(found, "put").outcome == "failed"
    assert "KeyError" in step(found, "put").detail
    assert "hush" not in repr(found)
