"""What metrics say is true, also of several processes; and what the documents say of metrics is."""

from __future__ import annotations

import ast
import asyncio
import fcntl
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from smart_assets import observability, threads
from smart_assets.assets.objects import new_asset_id
from smart_assets.errors import CatalogueUnavailable
from smart_assets.maintenance import gauges
from smart_assets.maintenance.audit import Audit
from smart_assets.maintenance.gauges import Gauges
from smart_assets.maintenance.marker import Marker
from smart_assets.storage.keys import AssetKey, Visibility
from tests import images
from tests.conftest import Service, StartService
from tests.staging import FaultyStorage

ROOT = Path(__file__).parent.parent
HOLIDAY = images.jpeg(64, 48)
LONG_AGO = datetime(2026, 1, 31, tzinfo=UTC)
UPLOADS = "smart_assets_uploads"


async def samples(service: Service) -> dict[str, float]:
    """Every sample of `/metrics`, by its name and labels as they are written."""
    text = (await service.client.get("/metrics")).text
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


async def audit(service: Service) -> None:
    """What `smart-assets reconcile` does of `local`."""
    runtime = service.runtime
    backend = runtime.storages.get("local")
    await Audit(
        runtime.database,
        backend,
        Marker(runtime.database, backend),
        runtime.threads,
        temporary_dir=runtime.temporary_dir,
        grace_seconds=0,
        lease_seconds=1,
    ).run()


# ── What is counted ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_every_file_is_counted_with_how_it_ended(start_service: StartService, faulty: FaultyStorage) -> None:
    async with start_service() as service:
        before = await samples(service)

        async def since() -> dict[str, float]:
            now = await samples(service)
            found = {name: value - before.get(name, 0) for name, value in now.items() if name.startswith(UPLOADS)}
            return {name.removeprefix(UPLOADS): value for name, value in found.items() if value}

        await service.uploaded(HOLIDAY)
        await service.upload(HOLIDAY, storage="direct")
        faulty.fail("put")
        await service.upload(HOLIDAY, storage="faulty")
        three = [("files", ("a.jpg", content)) for content in (HOLIDAY, b"no image", HOLIDAY)]
        await service.client.post("/api/v1/assets/batch", files=three)
        assert await since() == {
            '_total{outcome="ok",storage="local"}': 1,
            '_total{outcome="ok",storage="direct"}': 1,
            '_total{outcome="storage_unavailable",storage="faulty"}': 1,
            '_total{outcome="unsupported_image",storage="local"}': 3,
        }
        taken = 'smart_assets_upload_bytes_total{storage="local"}'
        assert (await samples(service))[taken] - before.get(taken, 0) == len(HOLIDAY)


async def test_an_upload_that_is_cancelled_is_counted_too(start_service: StartService, faulty: FaultyStorage) -> None:
    async with start_service() as service:
        name = 'smart_assets_uploads_total{outcome="cancelled",storage="faulty"}'
        before = (await samples(service)).get(name, 0)
        hang = faulty.hang("put")
        upload = asyncio.create_task(service.upload(HOLIDAY, storage="faulty"))
        await hang.reached.wait()
        upload.cancel()
        await asyncio.wait({upload})
        assert (await samples(service))[name] == before + 1


async def test_each_stage_of_an_upload_is_timed(service: Service) -> None:
    await service.uploaded(HOLIDAY, sizes="20")
    timed = {
        stage: count
        for name, count in (await samples(service)).items()
        for stage in re.findall(r'^smart_assets_upload_stage_seconds_count\{stage="(\w+)"\}', name)
    }
    assert timed.keys() == {"read", "probe", "intend", "render", "store", "commit"}
    assert all(timed.values())


async def test_what_is_handed_on_late_is_counted_as_if_it_had_not_been(service: Service) -> None:
    route = "/nowhere/{at_all}"
    for seconds in (0.0005, 0.02, 0.02, 1000):
        observability.count_request("GET", route, 200, seconds)
    observability.count_request("GET", route, 404, 0)
    found = {name: value for name, value in (await samples(service)).items() if route in name}
    assert found[f'smart_assets_requests_total{{method="GET",route="{route}",status="200"}}'] == 4
    assert found[f'smart_assets_requests_total{{method="GET",route="{route}",status="404"}}'] == 1
    buckets = {le: found[f'smart_assets_request_seconds_bucket{{le="{le}",route="{route}"}}'] for le in LES}
    assert buckets == {"0.0005": 2, "0.01": 2, "0.025": 4, "30.0": 4, "+Inf": 5}
    assert found[f'smart_assets_request_seconds_sum{{route="{route}"}}'] == pytest.approx(1000.0405)


LES = ("0.0005", "0.01", "0.025", "30.0", "+Inf")


async def test_nothing_a_caller_sends_becomes_a_label(service: Service) -> None:
    async def ask(number: int) -> None:
        name = f"invented-{number}"
        await service.client.request(name.upper(), f"/{name}")
        await service.client.request(name.upper(), "/api/v1/assets")
        await service.client.get(f"/api/v1/assets/{name}", headers={"X-Request-ID": name})
        await service.client.get(f"/assets/public/{name}")
        await service.upload(HOLIDAY, storage=name)
        await service.upload(HOLIDAY, sizes=name, format=name)

    async def series() -> set[str]:
        return {name for name in await samples(service) if name.startswith(("smart_assets_request", UPLOADS))}

    await ask(0)
    await series()  # counts itself
    before = await series()
    for number in range(1, 6):
        await ask(number)
    assert await series() == before
    assert not any("invented" in name.lower() for name in await samples(service))


async def test_who_waits_for_a_thread_is_counted_under_its_queue() -> None:
    pool = threads.Threads("of-this-test", 1)
    release = asyncio.Event()
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

    first = asyncio.create_task(pool.run(work))
    await begun.wait()
    others = [asyncio.create_task(pool.run(lambda: None)) for _ in range(3)]
    await asyncio.sleep(0)
    assert threads.waiting()["of-this-test"] == 3
    release.set()
    await asyncio.gather(first, *others)
    assert threads.waiting()["of-this-test"] == 0
    pool.close()


# ── What is looked up ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_there_is_and_what_is_owed_is_looked_up(start_service: StartService, faulty: FaultyStorage) -> None:
    async with start_service() as service:
        await service.uploaded(HOLIDAY)
        owed = await service.uploaded(HOLIDAY, storage="faulty")
        faulty.fail("delete")
        # What is not at hand is owed when the storage refuses it.
        await service.client.delete(f"/api/v1/assets/{owed['id']}")
        found = await samples(service)
        assert found['smart_assets_assets{storage="local"}'] == 1
        assert found['smart_assets_stored_bytes{storage="local"}'] == len(HOLIDAY)
        assert found['smart_assets_unsettled_assets{state="deleting",storage="faulty"}'] == 1
        assert found['smart_assets_unsettled_assets{state="deleting",storage="local"}'] == 0
        assert found["smart_assets_catalogue_up"] == 1
        assert found["smart_assets_processes"] >= 1
        assert found["smart_assets_data_dir_free_bytes"] > 0


async def test_what_an_audit_left_is_told_until_the_next_one(service: Service) -> None:
    assert not any("audit" in name for name in await samples(service))
    local = service.runtime.storages.get("local")
    key = str(AssetKey(Visibility.PUBLIC, new_asset_id(), "original", "jpg"))
    await local.upload(key, HOLIDAY, content_type="image/jpeg")
    await audit(service)
    found = await samples(service)
    orphans = 'smart_assets_audit_findings{problem="orphan",storage="local"}'
    assert found[orphans] == 1
    assert found['smart_assets_audit_findings{problem="missing",storage="local"}'] == 0
    await service.runtime.database.write(
        lambda catalogue: catalogue.note_part("audit", "another", LONG_AGO, {"ended_at": str(LONG_AGO), "orphan": 7})
    )
    await local.delete(key)
    await audit(service)
    found = await samples(service)
    assert found[orphans] == 0
    assert found['smart_assets_audit_findings{problem="orphan",storage="another"}'] == 7


async def test_a_catalogue_that_does_not_answer_is_told_and_the_rest_is_there(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_work: object) -> None:
        raise CatalogueUnavailable("staged")

    with monkeypatch.context() as staged:
        staged.setattr(service.runtime.database, "read", refuse)
        found = await samples(service)
    assert found["smart_assets_catalogue_up"] == 0
    assert "smart_assets_render_memory_limit_bytes" in found
    assert not any(name.startswith("smart_assets_unsettled") for name in found)
    assert (await samples(service))["smart_assets_catalogue_up"] == 1


async def test_a_catalogue_that_hangs_is_asked_once_however_often_it_is_scraped(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smart_assets.maintenance.gauges._LOOK_SECONDS", 0.01)
    asked, release = 0, asyncio.Event()
    read = service.runtime.database.read

    async def hang(work: Any) -> Any:
        nonlocal asked
        if work is gauges._look:  # the background reads too
            asked += 1
            await release.wait()
        return await read(work)

    monkeypatch.setattr(service.runtime.database, "read", hang)
    for _ in range(3):
        assert (await samples(service))["smart_assets_catalogue_up"] == 0
    assert asked == 1
    release.set()
    monkeypatch.setattr("smart_assets.maintenance.gauges._LOOK_SECONDS", 60)
    assert (await samples(service))["smart_assets_catalogue_up"] == 1


# ── Several processes ───────────────────────────────────────────────────────────────────────────────────────────────

COUNT = """
import os, sys
from pathlib import Path
from smart_assets import observability
observability.UPLOADS.labels("local", "ok").inc({count})
observability.UPLOAD_STAGE_SECONDS.labels("store").observe({seconds})
observability.RENDER_MEMORY.inc(1000)
print(os.getpid())
"""


def counted_in_a_process(directory: Path, count: int, seconds: float) -> int:
    """The id of a process that counted, and has ended."""
    environment = os.environ | {observability.METRICS_DIRECTORY: str(directory)}
    program = COUNT.format(count=count, seconds=seconds)
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return int(ended.stdout)


def of_all(directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    with monkeypatch.context() as among_several:
        among_several.setenv(observability.METRICS_DIRECTORY, str(directory))
        families = list(observability.metrics_registry().collect())
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in families
        for sample in family.samples
        if sample.value
    }


def test_what_the_dead_counted_stays_in_one_file_for_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = [counted_in_a_process(tmp_path, 3, 0.002), counted_in_a_process(tmp_path, 4, 2.0)]
    before = of_all(tmp_path, monkeypatch)
    assert before["smart_assets_uploads_total['local', 'ok']"] == 7
    assert before["smart_assets_upload_stage_seconds_count['store']"] == 2
    assert before["smart_assets_upload_stage_seconds_bucket['0.0025', 'store']"] == 1
    assert before.pop("smart_assets_render_memory_bytes[]") == 2000  # the living's: the dead hold none
    for pid in dead:
        observability.bury(pid, tmp_path)
        after = of_all(tmp_path, monkeypatch)
        after.pop("smart_assets_render_memory_bytes[]", None)
        assert after == before
    assert "smart_assets_render_memory_bytes[]" not in of_all(tmp_path, monkeypatch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counter_dead.db", "histogram_dead.db"]


def test_nobody_is_buried_while_somebody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = counted_in_a_process(tmp_path, 3, 0.002)
    with observability._locked(tmp_path, fcntl.LOCK_SH):
        observability.bury(pid, tmp_path)
    assert (tmp_path / f"counter_{pid}.db").exists()
    assert of_all(tmp_path, monkeypatch)["smart_assets_uploads_total['local', 'ok']"] == 3
    observability.bury(pid, tmp_path)
    assert of_all(tmp_path, monkeypatch)["smart_assets_uploads_total['local', 'ok']"] == 3


def test_the_files_of_metrics_have_no_holes_that_a_full_disk_could_not_fill(tmp_path: Path) -> None:
    pid = counted_in_a_process(tmp_path, 1, 1)
    files = {path.name: path.stat() for path in tmp_path.iterdir()}
    assert files.keys() == {f"{kind}_{pid}.db" for kind in ("counter", "gauge_livesum", "histogram")}
    assert all(file.st_blocks * 512 >= file.st_size for file in files.values())


# ── The documents ───────────────────────────────────────────────────────────────────────────────────────────────────


async def everything(service: Service) -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels of every metric there may be."""
    runtime = service.runtime
    await audit(service)
    await runtime.retention.run()
    metrics = [metric for metric in vars(observability).values() if isinstance(metric, MetricWrapperBase)]
    looked_up: list[Any] = list(await Gauges(runtime.settings, runtime.database).now())
    return {
        metric._name + ("_total" if metric._type == "counter" else ""): (metric._type, frozenset(metric._labelnames))
        for metric in metrics
    } | {family.name: (family.type, frozenset(family._labelnames)) for family in looked_up}


async def test_every_metric_is_in_the_document_and_nothing_else_is(service: Service) -> None:
    rows = re.findall(
        r"^\| `(smart_assets_\w+)` \| (\w+) \| (.*?) ?\| .+ \|$",
        (ROOT / "docs/observability.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    documented = {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert documented == await everything(service)


async def test_every_metric_an_alert_asks_for_is_there(service: Service) -> None:
    suffixes = {"histogram": ("_bucket", "_count", "_sum")}
    known = await everything(service)
    there = {name + suffix for name, (kind, _) in known.items() for suffix in suffixes.get(kind, ("",))}
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 10
    for rule in rules:
        asked = set(re.findall(r"smart_assets_\w+", rule["expr"]))
        assert asked <= there, rule["alert"]
        assert asked or rule["expr"].startswith("up{")
        labels = set().union(*(known[re.sub(r"_(bucket|count|sum)$", "", name)][1] for name in asked))
        used = set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", rule["expr"])) - {"job"}
        grouped = {label for by in re.findall(r"by \((.+?)\)", rule["expr"]) for label in by.split(", ")} - {"le"}
        assert used | grouped <= labels, rule["alert"]
        assert {"severity"} == rule["labels"].keys()
        assert {"summary"} == rule["annotations"].keys()


def test_every_field_of_the_log_is_in_the_document() -> None:
    page = (ROOT / "docs/observability.md").read_text(encoding="utf-8").partition("## Logs")[2]
    documented = set(re.findall(r"`([a-z_]+)`", page))
    given: set[str] = set()
    for file in (ROOT / "backend").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "extra" and isinstance(node.value, ast.Dict):
                given |= {str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)}
    assert len(given) > 15
    assert given <= documented


async def test_what_is_answered_is_prometheus_format(service: Service) -> None:
    await service.uploaded(HOLIDAY)
    answer = await service.client.get("/metrics", headers={"Accept": "text/plain; version=0.0.4"})
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert families["smart_assets_uploads"].type == "counter"
    openmetrics = await service.client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert openmetrics.text.count("# EOF") == 1
    assert openmetrics.text.endswith("# EOF\n")
