"""The library's descriptions, taken along and made rows of again."""

import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, AssetState, VariantRecord
from smart_assets.catalogue.repository import AssetFilter
from smart_assets.errors import Busy
from smart_assets.formats import ImageFormat
from smart_assets.maintenance import transfer
from smart_assets.maintenance.transfer import Import, Refused, Report, exported, line_of, record_of
from smart_assets.storage.errors import StorageError, StorageUnavailable
from tests import images
from tests.catalogue.test_repository import a_record
from tests.conftest import Service, problem_of
from tests.staging import FaultyStorage

HOLIDAY = images.jpeg(320, 240, seed=21)
EVERYTHING = AssetFilter()


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[Database]:
    """Another catalogue, with nothing in it."""
    database = Database.open(f"sqlite:///{tmp_path}/empty.sqlite3")
    yield database
    await database.close()


async def lines_of(service: Service, **query: Any) -> list[Any]:
    answer = await service.client.get("/api/v1/assets/export", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.content.splitlines()]


async def import_into(database: Database, service: Service, content: bytes, *, dry_run: bool = False) -> Report:
    work = Import(database, service.runtime.storages, service.runtime.threads)
    return await work.run(io.BytesIO(content), dry_run=dry_run)


async def export_of(service: Service) -> bytes:
    return (await service.client.get("/api/v1/assets/export")).content


async def rows_of(database: Database) -> tuple[AssetRecord, ...]:
    return await database.read(lambda catalogue: catalogue.list(EVERYTHING, limit=1000))


async def a_library(service: Service) -> None:
    """Assets of every kind, and one that is gone."""
    await service.uploaded(HOLIDAY, sizes="100,50x50", fit="cover", tags="trip,été", expires_at="2090-01-01T00:00:00Z")
    asset = await service.uploaded(HOLIDAY, visibility="private", filename="Grüße \u2028 x.jpg")
    change = {"pinned": True, "metadata": {"a": [1, None, {"b": "ü"}]}, "filename": "Grüße\u2028.jpg"}
    assert (await service.client.patch(f"/api/v1/assets/{asset['id']}", json=change)).status_code == 200
    gone = await service.uploaded(images.png(30, 20))
    await service.client.delete(f"/api/v1/assets/{gone['id']}")
    await service.uploaded(images.png(30, 20))


# ── Out ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_export_has_a_line_for_each_asset_oldest_first(service: Service) -> None:
    assert await lines_of(service) == []
    await a_library(service)
    lines = await lines_of(service)
    listed = (await service.client.get("/api/v1/assets", params={"order": "asc"})).json()["items"]
    assert [line["id"] for line in lines] == [asset["id"] for asset in listed]
    for line, asset in zip(lines, listed, strict=True):
        assert line["format"] == "smart-assets/asset/1"
        for name in ("filename", "storage", "visibility", "sha256", "tags", "metadata", "pinned", "thumbhash"):
            assert line[name] == asset[name]


async def test_an_export_is_of_what_is_asked_for(service: Service) -> None:
    await a_library(service)
    everything = await lines_of(service)
    assert await lines_of(service, tag="trip") == everything[:1]
    assert await lines_of(service, visibility="private") == everything[1:2]
    assert await lines_of(service, created_before=everything[1]["created_at"]) == everything[:1]
    assert await lines_of(service, q="GRÜSSE", days=1) == everything[1:2]
    assert await lines_of(service, storage="memory") == []
    problem_of(
        await service.client.get("/api/v1/assets/export", params={"storage": "x"}), 422, "storage_not_configured"
    )
    problem_of(await service.client.get("/api/v1/assets/export", params={"limit": 1}), 422, "invalid_parameter")


async def test_an_export_goes_page_by_page_and_has_no_asset_twice(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_PAGE", 2)
    made = [(await service.uploaded(HOLIDAY))["id"] for _ in range(5)]
    seen: list[str] = []
    pages = exported(service.runtime.database, EVERYTHING)
    async for page in pages:
        seen += [json.loads(line)["id"] for line in page.splitlines()]
        if len(seen) == 2:  # comes and goes meanwhile
            await service.client.delete(f"/api/v1/assets/{made[1]}")
            await service.client.delete(f"/api/v1/assets/{made[3]}")
            await service.client.patch(f"/api/v1/assets/{made[0]}", json={"filename": "later.jpg"})
    assert seen == [made[0], made[1], made[2], made[4]]


def test_a_line_says_all_a_row_knows() -> None:
    record = replace(
        a_record(lease=None),
        state=AssetState.READY,
        thumbhash="nycGHYg0a2qJunm/fGaWqIh5sHkE",
        dominant_color="#8a7b66",
        pinned=True,
        version=7,
        updated_at=datetime(2027, 1, 1, 1, 2, 3, 456789, tzinfo=UTC),
    )
    line = line_of(record)
    assert line.count(b"\n") == 1
    assert record_of(line) == record
    planned = VariantRecord("30", "30", ImageFormat.PNG)
    assert record_of(line_of(replace(record, variants=(*record.variants, planned)))) == record


# ── In ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_catalogue_is_made_anew_of_an_export(service: Service, empty: Database) -> None:
    await a_library(service)
    report = await import_into(empty, service, await export_of(service))
    assert (report.lines, report.imported, report.known, report.is_right) == (3, 3, 0, True)
    assert await rows_of(empty) == await rows_of(service.runtime.database)
    totals = [await each.read(lambda catalogue: catalogue.totals()) for each in (empty, service.runtime.database)]
    assert totals[0] == totals[1]
    tagged = await empty.read(lambda catalogue: catalogue.list(AssetFilter(tag="été"), limit=10))
    assert len(tagged) == 1


async def test_it_may_be_done_again_and_leaves_what_is_there_alone(service: Service, empty: Database) -> None:
    await a_library(service)
    content = await export_of(service)
    first, *_ = content.splitlines(keepends=True)
    assert (await import_into(empty, service, first + first)).imported == 1
    changed = content.replace(b'"tags":[]', b'"tags":["x"]').replace("été".encode(), b"other")
    report = await import_into(empty, service, changed)
    assert (report.lines, report.imported, report.known, report.is_right) == (3, 2, 1, True)
    assert (await rows_of(empty))[-1].tags == ("trip", "été")
    again = await import_into(empty, service, content)
    assert (again.imported, again.known, again.is_right) == (0, 3, True)


async def test_a_dry_run_says_the_same_and_writes_nothing(service: Service, empty: Database) -> None:
    await a_library(service)
    report = await import_into(empty, service, await export_of(service), dry_run=True)
    assert (report.imported, report.is_right) == (3, True)
    assert await rows_of(empty) == ()


async def test_no_row_is_made_where_the_bytes_are_not_as_it_says(service: Service, empty: Database) -> None:
    for _ in range(4):
        await service.uploaded(HOLIDAY, sizes="100")
    content = await export_of(service)
    originals = [key for key in service.stored_files() if ".original." in key]
    sized = [key for key in service.stored_files() if ".100." in key]
    (service.data_dir / "assets" / originals[0]).unlink()
    (service.data_dir / "assets" / sized[1]).unlink()
    cut = service.data_dir / "assets" / sized[2]
    cut.unlink()
    cut.write_bytes(b"short")
    report = await import_into(empty, service, content)
    assert (report.imported, report.is_right) == (1, False)
    assert [(finding.line, finding.problem) for finding in report.findings] == [
        (1, "missing"),
        (2, "missing"),
        (3, "damaged"),
    ]
    assert all(str(finding.id) in finding.detail for finding in report.findings)
    assert len(await rows_of(empty)) == 1


async def test_assets_of_storages_that_are_not_there_have_no_row(service: Service, empty: Database) -> None:
    await service.uploaded(HOLIDAY)
    await service.uploaded(HOLIDAY, storage="memory")
    content = (await export_of(service)).replace(b'"storage":"local"', b'"storage":"attic"')
    report = await import_into(empty, service, content)
    assert [finding.problem for finding in report.findings] == ["not_configured", "missing"]
    assert await rows_of(empty) == ()


async def test_a_storage_that_does_not_answer_ends_it_and_what_was_done_stays(
    service: Service, distant: FaultyStorage, empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_BATCH", 1)
    for _ in range(3):
        await service.uploaded(HOLIDAY, storage="distant")
    content = await export_of(service)
    distant.relent()
    distant.fail("stat", at=1, error=StorageError("staged"))
    distant.fail("stat", at=3)
    with pytest.raises(StorageUnavailable):
        await import_into(empty, service, content)
    assert len(await rows_of(empty)) == 1
    distant.relent()
    report = await import_into(empty, service, content)
    assert (report.imported, report.known, report.is_right) == (2, 1, True)


async def test_an_object_that_cannot_be_looked_at_is_told_and_the_rest_goes_on(
    service: Service, distant: FaultyStorage, empty: Database
) -> None:
    for _ in range(3):
        await service.uploaded(HOLIDAY, storage="distant")
    content = await export_of(service)
    distant.relent()
    distant.fail("stat", at=2, error=StorageError("staged"))
    report = await import_into(empty, service, content)
    assert (report.imported, [finding.problem for finding in report.findings]) == (2, ["unreadable"])


async def test_one_import_at_a_time(service: Service, empty: Database) -> None:
    async with empty.job("import"):
        with pytest.raises(Busy):
            await import_into(empty, service, b"")
    assert (await import_into(empty, service, b"")).lines == 0


# ── What is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_lines_that_are_none_are_refused_by_their_numbers_and_the_others_taken(
    service: Service, empty: Database
) -> None:
    await service.uploaded(HOLIDAY)
    (good,) = (await export_of(service)).splitlines()
    too_long = b'{"format":"' + bytes(transfer.LONGEST_LINE * 3) + b'"}'
    other = good.replace(b"asset/1", b"asset/2")
    content = b"\xef\xbb\xbf" + b"\n".join([b"", b"words", other, too_long, b"\xff", b"[]", good])
    report = await import_into(empty, service, content)
    assert (report.lines, report.imported) == (6, 1)
    assert [(finding.line, finding.problem) for finding in report.findings] == [
        (number, "refused") for number in (2, 3, 4, 5, 6)
    ]
    assert report.findings[1].detail == "format: is not smart-assets/asset/1"
    assert "longer" in report.findings[2].detail


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", "smart-assets/asset/2"),
        ("id", "019aa0c2-0000-4000-8000-000000000000"),
        ("id", "nonsense"),
        ("id", "ffffffff-ffff-7fff-bfff-ffffffffffff"),
        ("created_at", "2020-01-01T00:00:00Z"),
        ("created_at", "2020-01-01T00:00:00"),
        ("owner", ""),
        ("owner", "x" * 65),
        ("storage", "a\nb"),
        ("visibility", "secret"),
        ("filename", "a\0b"),
        ("image_format", "svg"),
        ("size_bytes", 0),
        ("size_bytes", True),
        ("size_bytes", "12"),
        ("size_bytes", 2**63),
        ("width", 0),
        ("sha256", "0" * 63),
        ("variants", [{"size": "1"}]),
        ("variants", [["800", "800", "webp", 1, 1, 1]]),
        ("tags", ["a", "a"]),
        ("tags", ["x"] * 51),
        ("tags", [""]),
        ("metadata", []),
        ("metadata", {"a": float("nan")}),
        ("metadata", {"a": "x" * 20_000}),
        ("metadata", {"a": "\0"}),
        ("dominant_color", "red"),
        ("thumbhash", "<"),
        ("expires_at", "tomorrow"),
        ("pinned", 1),
        ("version", 0),
        ("more", 1),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_no_export_says_is_refused(name: str, value: object) -> None:
    line = json.loads(line_of(a_record()))
    record_of(json.dumps(line).encode())
    with pytest.raises(Refused, match=name if name != "created_at" else "created_at|id"):
        record_of(json.dumps(line | {name: value}).encode())


@pytest.mark.parametrize("name", ["original", "../../x", "A", "x" * 65])
def test_a_size_whose_name_could_not_be_in_a_key_is_refused(name: str) -> None:
    line = json.loads(line_of(a_record()))
    line["variants"][0]["name"] = name
    with pytest.raises(Refused, match="variants"):
        record_of(json.dumps(line).encode())


def test_two_sizes_that_would_share_a_key_are_refused() -> None:
    line = json.loads(line_of(a_record()))
    line["variants"] *= 2
    with pytest.raises(Refused, match="variants"):
        record_of(json.dumps(line).encode())


@pytest.mark.parametrize("name", json.loads(line_of(a_record())))
def test_what_is_missing_is_named(name: str) -> None:
    line = json.loads(line_of(a_record()))
    del line[name]
    with pytest.raises(Refused, match=name):
        record_of(json.dumps(line).encode())


async def test_findings_are_counted_and_the_first_of_them_kept(service: Service, empty: Database) -> None:
    report = await import_into(empty, service, b"x\n" * (transfer.MOST_FINDINGS + 7))
    assert len(report.findings) == transfer.MOST_FINDINGS
    assert report.problems == {"refused": transfer.MOST_FINDINGS + 7}
