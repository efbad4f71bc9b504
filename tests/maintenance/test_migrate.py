"""Moving many assets: all that were meant, nothing twice, and gone on with by doing it again."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from smart_assets.assets.objects import created_at
from smart_assets.catalogue.models import AssetState
from smart_assets.cli import app
from smart_assets.commands import migrate as migrating
from smart_assets.errors import CatalogueUnavailable, ConfigurationError
from smart_assets.maintenance import migrate
from smart_assets.maintenance.migrate import Migration, Report, Which
from smart_assets.settings import Settings
from smart_assets.storage.errors import StorageFull
from smart_assets.storage.factory import register_backend
from smart_assets.storage.local import LocalStorage
from smart_assets.visibility import Visibility
from tests import images
from tests.catalogue.test_repository import a_record
from tests.conftest import Service, StartService
from tests.staging import DistantStorage, FaultyStorage

HOLIDAY = images.jpeg(64, 48, seed=5)
PATIENCE = 20


@pytest.fixture
async def service(start_service: StartService) -> AsyncIterator[Service]:
    async with start_service(lease_seconds=1) as running:
        yield running


@pytest.fixture
def cellar() -> Iterator[None]:
    """A second storage on this machine's disk."""

    def load(name: str, settings: Settings) -> LocalStorage:
        return LocalStorage(name, settings.data_dir / "cellar", settings.temporary_dir)

    undo = register_backend("cellar", load)
    yield
    undo()


def migration(service: Service, which: Which | None = None, **more: Any) -> Migration:
    """From `local` to `distant`."""
    target = service.runtime.storages.get("distant")
    return Migration(service.runtime.database, "local", target, which or Which(), **more)


async def run(service: Service, which: Which | None = None, *, patience: float = PATIENCE, **more: Any) -> Report:
    planned = migration(service, which, **more)
    await planned.count()
    return await planned.run(service.runtime.moving, concurrency=3, patience_seconds=patience)


async def upload_some(service: Service, number: int, **query: Any) -> list[Any]:
    return [await service.uploaded(HOLIDAY, **query) for _ in range(number)]


async def at_local(service: Service) -> set[str]:
    return {item["id"] for item in (await service.client.get("/api/v1/assets?storage=local&limit=200")).json()["items"]}


async def test_all_of_them_are_moved(service: Service, distant: FaultyStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "PAGE", 3)
    assets = await upload_some(service, 7, sizes="32")
    total = sum(asset["size_bytes"] + asset["variants"][0]["size_bytes"] for asset in assets)
    told: list[int] = []
    report = await run(service, progress=lambda report: told.append(report.moved))
    assert (report.found, report.moved, report.failed, report.owed) == (7, 7, 0, 0)
    assert (report.found_bytes, report.moved_bytes) == (total, total)
    assert report.is_done
    assert told == list(range(1, 8))
    assert service.stored_files() == []
    assert len(await distant.keys()) == 14
    again = await run(service)
    assert (again.found, again.moved, again.is_done) == (0, 0, True)


async def test_only_those_that_meet_every_criterion_are_moved(service: Service, distant: FaultyStorage) -> None:
    old, *_ = await upload_some(service, 2, visibility="private", tags="trip,sea")
    (public,) = await upload_some(service, 1, tags="trip")
    await upload_some(service, 1, visibility="private")
    young, *_ = await upload_some(service, 1, visibility="private", tags="trip")
    after = datetime.fromisoformat(old["created_at"]) + timedelta(milliseconds=1)
    which = Which(Visibility.PRIVATE, "trip", before=datetime.fromisoformat(young["created_at"]), after=after)
    looked = await migration(service, which).look()
    assert (looked.found, looked.moved, distant.calls["put"]) == (1, 0, 0)
    report = await run(service, which)
    assert (report.found, report.moved) == (1, 1)
    assert {old["id"], public["id"], young["id"]} <= await at_local(service)
    assert len(await at_local(service)) == 4


async def test_a_dry_run_says_what_the_target_would_not_take(service: Service, distant: FaultyStorage) -> None:
    distant.capabilities = replace(distant.capabilities, max_object_bytes=len(HOLIDAY))
    await upload_some(service, 2)
    large = await service.uploaded(images.jpeg(640, 480))
    report = await migration(service).look()
    assert (report.found, [failure.id for failure in report.failures]) == (3, [large["id"]])
    assert not report.is_done
    assert len(service.stored_files()) == 3
    moved = await run(service)
    assert (moved.moved, moved.failed, moved.failures) == (2, 1, report.failures)
    assert await at_local(service) == {large["id"]}


async def test_one_that_fails_stays_and_the_others_go(service: Service, distant: FaultyStorage) -> None:
    assets = await upload_some(service, 5)
    distant.fail("put", at=3, error=StorageFull("staged"))
    report = await run(service)
    assert (report.moved, report.failed, report.stopped) == (4, 1, None)
    (failure,) = report.failures
    assert failure.code == "storage_full"
    assert await at_local(service) == {failure.id} <= {asset["id"] for asset in assets}
    distant.relent()
    assert (await run(service)).is_done
    assert await at_local(service) == set()


async def test_it_gives_up_where_nothing_works(
    service: Service, distant: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "MOST_IN_A_ROW", 4)
    monkeypatch.setattr(migrate, "MOST_LISTED", 2)
    await upload_some(service, 12)
    distant.fail("put")
    report = await run(service)
    assert 4 <= report.failed <= 4 + 3  # those that were under way are finished
    assert len(report.failures) == 2
    assert report.stopped is not None
    assert len(await at_local(service)) == 12


async def test_asked_to_stop_it_finishes_what_it_has_begun(service: Service, distant: FaultyStorage) -> None:
    await upload_some(service, 8)
    planned = migration(service)
    hang = distant.hang("put", at=3)
    running = asyncio.create_task(planned.run(service.runtime.moving, concurrency=3, patience_seconds=PATIENCE))
    await hang.reached.wait()
    planned.stop("it was asked to")
    hang.release()
    report = await running
    assert 1 <= report.moved <= 5
    assert (report.failed, report.stopped, report.is_done) == (0, "it was asked to", False)
    assert len(await at_local(service)) == 8 - report.moved
    assert [state for _, state in await service.rows()] == ["ready"] * 8


async def test_one_deleted_meanwhile_is_no_failure(service: Service, distant: FaultyStorage) -> None:
    assets = await upload_some(service, 4)
    hang = distant.hang("put", at=1)
    planned = migration(service)
    await planned.count()
    running = asyncio.create_task(planned.run(service.runtime.moving, concurrency=1, patience_seconds=PATIENCE))
    await hang.reached.wait()
    await service.client.delete(f"/api/v1/assets/{assets[3]['id']}")
    hang.release()
    report = await running
    assert (report.found, report.moved, report.is_done) == (3, 3, True)


@pytest.mark.parametrize("switched", [False, True])
async def test_what_another_run_left_when_it_died_is_gone_on_with(
    service: Service, distant: FaultyStorage, switched: bool
) -> None:
    await upload_some(service, 3)
    storage, target = ("distant", "local") if switched else ("local", "distant")
    key = service.stored_files()[0]
    if switched:
        await distant.upload(key, service.data_dir / "assets" / key, content_type="image/jpeg")
    await service.runtime.database.write(
        lambda catalogue: catalogue._connection.exec_driver_sql(
            "UPDATE assets SET state = 'moving', lease = 'dead/1', storage = ?, target_storage = ? "
            "WHERE id = (SELECT min(id) FROM assets)",
            (storage, target),
        )
    )
    report = await run(service)
    assert report.is_done
    assert report.moved == (2 if switched else 3)
    assert service.stored_files() == []
    assert len(await distant.keys()) == 3
    assert [state for _, state in await service.rows()] == ["ready"] * 3


async def test_what_somebody_else_is_at_work_on_is_told_when_patience_ends(
    service: Service, distant: FaultyStorage
) -> None:
    busy = a_record(state=AssetState.READY, lease=None)
    owed = a_record(state=AssetState.READY, lease=None, storage="distant")

    def hold(catalogue: Any) -> None:
        catalogue.insert_pending([busy, owed])
        catalogue.beat("another", 1)
        for record, target in ((busy, "distant"), (owed, "local")):
            assert catalogue.begin_moving_to(record.id, target, record.version, "another/1")

    await service.runtime.database.write(hold)
    report = await run(service, patience=0)
    assert [(failure.id, failure.code) for failure in report.failures] == [(str(busy.id), "asset_busy")]
    assert (report.owed, report.is_done) == (1, False)


async def test_a_catalogue_that_goes_away_ends_it(
    service: Service, distant: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await upload_some(service, 3)

    def away(*_: Any, **__: Any) -> None:
        raise CatalogueUnavailable("staged")

    monkeypatch.setattr(migrate, "_page", away)
    with pytest.raises(CatalogueUnavailable):
        await migration(service).run(service.runtime.moving, concurrency=2, patience_seconds=0)


# ── What is asked for ───────────────────────────────────────────────────────────────────────────────────────────────


def test_criteria_are_read() -> None:
    which = Which.parse(["visibility=private", "tag=a=b", "before=2026-01-31", "after=2026-01-02T03:04:05+01:00"])
    assert which == Which(
        Visibility.PRIVATE,
        "a=b",
        datetime(2026, 1, 31, tzinfo=UTC),
        datetime.fromisoformat("2026-01-02T02:04:05+00:00"),
    )
    assert which.end is not None
    assert created_at(which.end) == which.before
    assert Which.parse([]).is_all


@pytest.mark.parametrize(
    "criteria",
    [
        ["tag"],
        ["tag="],
        ["=x"],
        ["owner=ann"],
        ["visibility=secret"],
        ["before=soon"],
        ["after=2026-01-31T10:00"],
        ["tag=a", "tag=b"],
    ],
)
def test_criteria_that_mean_nothing_are_refused(criteria: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="--where"):
        Which.parse(criteria)


# ── The command ─────────────────────────────────────────────────────────────────────────────────────────────────────


Command = Callable[..., Any]


@pytest.fixture
def command(start_service: StartService, cellar: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """`smart-assets migrate`, over a library of three."""

    async def prepare() -> None:
        async with start_service() as service:
            await upload_some(service, 3, sizes="32")

    asyncio.run(prepare())
    monkeypatch.setenv("ASSETS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ASSETS_LEASE_SECONDS", "1")
    return lambda *arguments: CliRunner().invoke(app, ["migrate", *arguments])


def files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*.*"))


def test_the_command_moves_and_reports(command: Command, tmp_path: Path) -> None:
    looked = command("--from", "local", "--to", "cellar", "--dry-run")
    assert (looked.exit_code, looked.stderr) == (0, "")
    assert looked.stdout.startswith("would move 3 of 3 assets")
    assert files(tmp_path / "data" / "assets") == 6
    answer = command("--from", "local", "--to", "cellar")
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout.startswith("moved 3 assets (")
    assert (files(tmp_path / "data" / "assets"), files(tmp_path / "data" / "cellar")) == (0, 6)
    again = command("--from", "local", "--to", "cellar", "--json")
    assert (again.exit_code, json.loads(again.stdout)["moved"], json.loads(again.stdout)["done"]) == (0, 0, True)


def test_the_command_says_what_stayed(command: Command, tmp_path: Path) -> None:
    original = next((tmp_path / "data" / "assets").rglob("*.original.jpg"))
    original.write_bytes(b"x" * original.stat().st_size)
    answer = command("--from", "local", "--to", "cellar")
    assert answer.exit_code == 1
    assert answer.stdout.startswith("moved 2 assets (")
    assert "storage_error" in answer.stdout
    told = json.loads(command("--from", "local", "--to", "cellar", "--json").stdout)
    assert (told["done"], told["failed"]) == (False, 1)
    assert original.name.startswith(told["failures"][0]["id"])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--from", "local", "--to", "local"], "both"),
        (["--from", "local", "--to", "nowhere"], "nowhere"),
        (["--from", "local", "--to", "s3"], "ASSETS_S3__BUCKET"),
        (["--from", "local", "--to", "memory"], "memory"),
        (["--from", "direct", "--to", "local"], "direct"),
        (["--from", "local", "--to", "cellar", "--where", "colour=red"], "colour=red"),
    ],
)
def test_what_cannot_be_begun_is_one_sentence(command: Command, arguments: list[str], word: str) -> None:
    answer = command(*arguments)
    assert (answer.exit_code, answer.stdout) == (2, "")
    (line,) = answer.stderr.strip().splitlines()
    assert line.startswith("smart-assets: ")
    assert word in line


def test_without_a_catalogue_none_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASSETS_DATA_DIR", str(tmp_path / "none"))
    answer = CliRunner().invoke(app, ["migrate", "--from", "local", "--to", "memory"])
    assert answer.exit_code == 2
    assert "there is no catalogue" in answer.stderr
    assert not (tmp_path / "none").exists()


def test_piped_it_says_a_line_now_and_then(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrating, "LINE_SECONDS", 0)
    answer = command("--from", "local", "--to", "cellar", "--concurrency", "1")
    lines = answer.stderr.splitlines()
    assert [line[:15] for line in lines] == [f"{done} of 3 assets, " for done in (1, 2, 3)]
    assert "about 0 s left" in lines[-1]


async def test_a_signal_lets_it_finish_what_it_has_begun(service: Service, distant: FaultyStorage) -> None:
    planned = migration(service)
    with migrating._stopped_by_signals(planned):
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(planned._stop.wait(), PATIENCE)
    assert planned.report.stopped == "it was asked to stop"


def test_nothing_is_moved_while_a_copy_would_finish_what_is_not_its_own(command: Command, tmp_path: Path) -> None:
    marker = tmp_path / "data" / "assets" / "smart-assets/catalogue-0190a0c2-0000-4000-8000-000000000000-7.png"
    marker.parent.mkdir(parents=True)
    marker.write_bytes(b"x")
    with closing(sqlite3.connect(tmp_path / "data" / "catalogue.sqlite3")) as catalogue:
        catalogue.execute("UPDATE assets SET storage = 'attic'")
        catalogue.execute(
            "UPDATE assets SET state = 'deleting', storage = 'local' WHERE id = (SELECT min(id) FROM assets)"
        )
        catalogue.commit()
    undo = register_backend("attic", lambda name, _: DistantStorage(name))
    try:
        answer = command("--from", "attic", "--to", "cellar")
    finally:
        undo()
    assert answer.exit_code == 2
    assert "the marker of local names another catalogue" in answer.stderr
    assert files(tmp_path / "data" / "assets") == 6 + 1


@pytest.mark.parametrize("storage", ["local", "cellar"])
def test_nothing_is_moved_by_a_copy_of_the_catalogue(command: Command, tmp_path: Path, storage: str) -> None:
    """It would remove what the catalogue itself still needs."""
    marker = "smart-assets/catalogue-0190a0c2-0000-4000-8000-000000000000-7.png"
    path = tmp_path / "data" / {"local": "assets"}.get(storage, storage) / marker
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    for more in ([], ["--dry-run"]):
        answer = command("--from", "local", "--to", "cellar", *more)
        assert answer.exit_code == 2
        assert f"the marker of {storage} names another catalogue" in answer.stderr
    with closing(sqlite3.connect(tmp_path / "data" / "catalogue.sqlite3")) as catalogue:
        assert catalogue.execute("SELECT DISTINCT storage FROM assets").fetchall() == [("local",)]
