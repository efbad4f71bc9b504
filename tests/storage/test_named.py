"""Storages with names of the operator's own: several of one type, each with its type's settings."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from smart_assets.errors import ConfigurationError
from smart_assets.maintenance.audit import Audit
from smart_assets.maintenance.marker import Marker
from smart_assets.observability import metrics_registry
from smart_assets.runtime import prepare
from smart_assets.settings import PLAIN_NAMES, S3Settings, Settings, load_settings, misspelt_variables
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import StorageNotConfigured
from smart_assets.storage.factory import (
    StorageType,
    configured_storages,
    get_storage_backend,
    storage_names,
    temporary_directories,
)
from tests import images
from tests.conftest import Service, StartService, problem_of
from tests.contracts.storage import StorageContract

HOLIDAY = images.jpeg(64, 48, seed=11)
Set = Callable[..., None]


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Set:
    """Sets variables of named storages: `media__TYPE="s3"`."""

    def set_them(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"ASSETS_STORAGES__{name}", value)

    return set_them


class TestNamedStorage(StorageContract):
    """A local one, by a name of its own, as the settings make it."""

    heavy = False

    @pytest.fixture
    async def storage(self, tmp_path: Path) -> AsyncIterator[StorageBackend]:
        settings = Settings(data_dir=tmp_path / "data", storages={"media": {"type": "local"}})
        storage = get_storage_backend("media", settings)
        yield storage
        await storage.close()


# ── Setting them up ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_named_storage_has_its_types_settings(variables: Set) -> None:
    variables(
        media__TYPE="s3",
        media__BUCKET="pictures",
        media__SECRET_ACCESS_KEY="hush-hush",
        media__ACCESS_KEY_ID="me",
        media__MAX_CONNECTIONS="3",
        media__EXTRA_ARGS='{"Tagging": "a=b"}',
        ARCHIVE__type="local",
        ARCHIVE__directory="/srv/archive",
    )
    settings = load_settings()
    media, archive = settings.storages["media"], settings.storages["archive"]
    assert isinstance(media, S3Settings)
    assert (media.bucket, media.max_connections, media.extra_args) == ("pictures", 3, {"Tagging": "a=b"})
    assert archive.kind == "local"
    assert settings.storage("media") is media
    assert "hush-hush" not in repr(settings)
    assert storage_names(settings) == tuple(sorted([*StorageType, "archive", "media"]))
    assert settings.s3.bucket is None, "the plain one is another"


def test_they_come_from_a_dotenv_file_too_and_the_environment_goes_before(variables: Set, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "ASSETS_STORAGES__media__TYPE=s3\nASSETS_STORAGES__media__BUCKET=from-the-file\nASSETS_STORAGES__media__REGION=r\n"
    )
    variables(MEDIA__BUCKET="from-the-environment")
    media = load_settings().storages["media"]
    assert isinstance(media, S3Settings)
    assert (media.bucket, media.region) == ("from-the-environment", "r")


def test_or_as_one_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"my-media": {"type": "s3", "bucket": "b", "extra_args": {"Tagging": "a=b"}}}
    monkeypatch.setenv("ASSETS_STORAGES", json.dumps(given))
    media = load_settings().storages["my-media"]
    assert isinstance(media, S3Settings)
    assert (media.bucket, media.extra_args) == ("b", {"Tagging": "a=b"})


@pytest.mark.parametrize("name", ["a" * 63, "0", "a-b_c", "2026"])
def test_names_that_are_taken(name: str, variables: Set) -> None:
    variables(**{f"{name}__TYPE": "memory"})
    assert name in storage_names(load_settings())


@pytest.mark.parametrize("name", ["a" * 64, "-a", "_a", "ä", "a b", "a.b", "a/b", "Media", "a__b", "a_", "a\n", ""])
def test_names_that_are_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSETS_STORAGES", json.dumps({name: {"type": "memory"}}))
    with pytest.raises(ConfigurationError, match="cannot name a storage"):
        load_settings()


@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_a_plain_name_cannot_be_taken(name: str, variables: Set) -> None:
    variables(**{f"{name}__TYPE": "local"})
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"ASSETS_STORAGES__{name}: is a storage already")


def test_the_plain_names_are_the_types() -> None:
    assert sorted(StorageType) == list(PLAIN_NAMES)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"media__TYPE": "ftp"}, f"ASSETS_STORAGES__media__TYPE: must be one of {', '.join(PLAIN_NAMES)}"),
        ({"media__BUCKET": "b"}, f"ASSETS_STORAGES__media__TYPE: must be one of {', '.join(PLAIN_NAMES)}"),
        ({"media": "s3"}, f"ASSETS_STORAGES__media__TYPE: must be one of {', '.join(PLAIN_NAMES)}"),
        ({"media__TYPE": "s3", "media__CONTAINER": "c"}, "ASSETS_STORAGES__media__CONTAINER: is not a setting"),
        ({"media__TYPE": "local", "media__BUCKET": "b"}, "ASSETS_STORAGES__media__BUCKET: is not a setting"),
        (
            {"media__TYPE": "memory", "media__MAX_BYTES": "much"},
            "ASSETS_STORAGES__media__MAX_BYTES: Input should be a valid integer",
        ),
        (
            {"media__TYPE": "s3", "media__EXTRA_ARGS": '{"ACL": "public-read"}'},
            "ASSETS_STORAGES__media__EXTRA_ARGS: may not hold ACL",
        ),
        (
            {"media__TYPE": "memory", "media__MAX_BYTES": "1", "MEDIA__MAX_BYTES": "2"},
            "ASSETS_STORAGES__MEDIA__MAX_BYTES is set 2 times",
        ),
    ],
)
def test_what_is_wrong_with_one_is_said_by_its_variable(given: dict[str, str], sentence: str, variables: Set) -> None:
    variables(**given)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("own", "missing"),
    [
        ({"type": "s3"}, ("BUCKET",)),
        ({"type": "s3", "bucket": "b", "access_key_id": "k"}, ("SECRET_ACCESS_KEY",)),
        ({"type": "cloudinary"}, ("URL",)),
        ({"type": "cloudinary", "cloud_name": "c"}, ("API_KEY", "API_SECRET")),
        ({"type": "gcs"}, ("BUCKET",)),
        ({"type": "azure"}, ("CONTAINER", "CONNECTION_STRING")),
        ({"type": "azure", "account_url": "a.blob.core.windows.net"}, ("CONTAINER",)),
    ],
)
def test_a_named_storage_says_exactly_what_is_missing(own: dict[str, str], missing: tuple[str, ...]) -> None:
    settings = Settings(storages={"media": own})
    with pytest.raises(StorageNotConfigured) as caught:
        get_storage_backend("media", settings)
    assert caught.value.missing == tuple(f"ASSETS_STORAGES__media__{setting}" for setting in missing)
    assert all(variable in caught.value.detail for variable in caught.value.missing)
    (status,) = (status for status in configured_storages(settings) if status.name == "media")
    assert (status.type, status.configured, status.missing) == (own["type"], False, caught.value.missing)


@pytest.mark.parametrize(
    ("own", "variable"),
    [
        ({"type": "cloudinary", "url": "http://k:hush@cloud"}, "URL"),
        ({"type": "azure", "container": "c", "connection_string": "hush"}, "CONNECTION_STRING"),
        (
            {"type": "azure", "container": "c", "account_url": "a.blob.core.windows.net", "account_key": "hush?"},
            "ACCOUNT_KEY",
        ),
    ],
)
def test_what_a_backend_cannot_use_is_named_by_its_variable(own: dict[str, str], variable: str) -> None:
    with pytest.raises(StorageNotConfigured) as caught:
        get_storage_backend("media", Settings(storages={"media": own}))
    assert f"ASSETS_STORAGES__media__{variable}" in caught.value.detail
    assert "hush" not in caught.value.detail


async def test_a_vendors_own_variable_is_not_taken_for_an_account_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        "DefaultEndpointsProtocol=https;AccountName=first;AccountKey=c2VjcmV0;EndpointSuffix=core.windows.net",
    )
    second = {"type": "azure", "account_url": "second.blob.core.windows.net", "account_key": "c2VjcmV0"}
    settings = Settings(azure={"container": "c"}, storages={"media": {**second, "container": "c"}})
    for name, account in (("azure", "first"), ("media", "second")):
        storage = get_storage_backend(name, settings)
        assert f"//{account}." in (await storage.generate_signed_url("private/a.png")).url
        await storage.close()


def test_memory_of_another_name_is_of_one_process_too() -> None:
    with pytest.raises(StorageNotConfigured) as caught:
        get_storage_backend("quick", Settings(workers=2, storages={"quick": {"type": "memory"}}))
    assert caught.value.missing == ("ASSETS_WORKERS=1",)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(StorageNotConfigured) as caught:
        get_storage_backend("media", Settings(storages={"media": {"type": "s3", "bucket": "b"}}))
    assert caught.value.missing == ("the extra smart-assets[s3]",)


def test_misspelt_variables_are_pointed_out_by_the_name_they_were_given(
    variables: Set, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables(media__TYPE="s3", media__BUCKET="b", media__BUCKTE="b", media__CONTAINER="c", other__DIRECTORY="/x")
    monkeypatch.setenv("ASSETS_STORAGE__media__REGION", "r")
    sentences = misspelt_variables()
    assert [sentence.partition(" ")[0] for sentence in sentences] == [
        "ASSETS_STORAGES__media__BUCKTE",
        "ASSETS_STORAGES__media__CONTAINER",
        "ASSETS_STORAGE__media__REGION",
    ]
    assert "ASSETS_STORAGE__media__REGION is not a setting; did you mean ASSETS_STORAGES__media__REGION?" in sentences
    assert "ASSETS_STORAGES__media__BUCKTE is not a setting; did you mean ASSETS_STORAGES__media__BUCKET?" in sentences


# ── Places of their own ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("one", "other", "culprit"),
    [
        ("same", "same", "two"),
        ("outer", "outer/inner", "two"),
        ("outer/inner", "outer", "two"),
        ("outer", "link/inner", "two"),
        ("data", "elsewhere", "one"),
        ("data/assets/sub", "elsewhere", "one"),
        ("data/tmp", "elsewhere", "one"),
        (".", "elsewhere", "one"),
    ],
)
def test_two_local_storages_need_directories_of_their_own(tmp_path: Path, one: str, other: str, culprit: str) -> None:
    (tmp_path / "outer").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "outer")
    settings = Settings(
        data_dir=tmp_path / "data",
        storages={
            "one": {"type": "local", "directory": tmp_path / one},
            "two": {"type": "local", "directory": tmp_path / other},
        },
    )
    with pytest.raises(ConfigurationError, match=f"set ASSETS_STORAGES__{culprit}__DIRECTORY to another"):
        prepare(settings)


def test_by_default_each_has_one_and_siblings_are_not_nested(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path / "data",
        storages={
            "a": {"type": "local"},
            "a-b": {"type": "local"},
            "b": {"type": "local", "directory": tmp_path / "data2"},
        },
    )
    prepare(settings)
    data = tmp_path / "data"
    assert temporary_directories(settings) == (
        data / "tmp",
        data / "storages/a/tmp",
        data / "storages/a-b/tmp",
        tmp_path / "data2/tmp",
    )


AZURE = "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=c2VjcmV0;EndpointSuffix=core.windows.net"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"type": "s3", "bucket": "b"}, {"type": "s3", "bucket": "b"}),
        ({"type": "s3", "bucket": "b", "prefix": "x/"}, {"type": "s3", "bucket": "b", "prefix": "/x"}),
        ({"type": "s3", "bucket": "b", "public_bucket": "p"}, {"type": "s3", "bucket": "c", "public_bucket": "p"}),
        ({"type": "gcs", "bucket": "b"}, {"type": "gcs", "bucket": "b"}),
        ({"type": "cloudinary", "url": "cloudinary://k:s@c"}, {"type": "cloudinary", "url": "cloudinary://k:s@c?x=y"}),
        (
            {"type": "azure", "connection_string": AZURE, "container": "c"},
            {"type": "azure", "account_url": "https://a.blob.core.windows.net/", "container": "c"},
        ),
    ],
)
def test_two_storages_in_one_place_are_refused(one: dict[str, str], other: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ASSETS_STORAGES__two__PREFIX"):
        prepare(Settings(data_dir=tmp_path / "data", storages={"one": one, "two": other}))
    prepare(Settings(data_dir=tmp_path / "data", storages={"one": one, "two": {**other, "prefix": "other"}}))


def test_the_one_with_the_plain_name_keeps_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ASSETS_STORAGES__a__PREFIX"):
        prepare(Settings(data_dir=tmp_path / "data", s3={"bucket": "b"}, storages={"a": {"type": "s3", "bucket": "b"}}))


# ── A service with two local storages more ──────────────────────────────────────────────────────────────────────────

STORAGES = ("local", "media", "archive")


@pytest.fixture
def named(tmp_path: Path) -> dict[str, Any]:
    return {
        "storages": {"media": {"type": "local"}, "archive": {"type": "local", "directory": tmp_path / "elsewhere"}},
        "reconcile_grace_seconds": 0,
    }


@pytest.fixture
async def several(start_service: StartService, named: dict[str, Any]) -> AsyncIterator[Service]:
    async with start_service(**named) as running:
        yield running


def images_in(service: Service, storage: str) -> set[str]:
    """The keys of the images that lie in a local storage."""
    roots = {
        "local": service.data_dir / "assets",
        "media": service.data_dir / "storages/media/assets",
        "archive": service.data_dir.parent / "elsewhere/assets",
    }
    keys = {path.relative_to(roots[storage]).as_posix() for path in roots[storage].rglob("*") if path.is_file()}
    return {key for key in keys if not key.startswith("smart-assets/")}


@pytest.mark.parametrize("visibility", ["public", "private"])
@pytest.mark.parametrize("storage", STORAGES)
async def test_an_image_lies_where_it_was_sent_and_is_given_from_there(
    several: Service, storage: str, visibility: str
) -> None:
    asset = await several.uploaded(HOLIDAY, storage=storage, visibility=visibility, sizes="32")
    assert asset["storage"] == storage
    assert [name for name in STORAGES if images_in(several, name)] == [storage]
    for url in (asset["url"], asset["variants"][0]["url"]):
        answer = await several.client.get(url)
        assert answer.status_code == 200
        assert answer.headers["cache-control"].startswith(visibility)
    assert (await several.client.get(f"/api/v1/assets/{asset['id']}/content")).content == HOLIDAY
    if visibility == "private":
        problem_of(await several.client.get(asset["url"].partition("?")[0]), 403, "signature_required")


@pytest.mark.parametrize("storage", STORAGES)
async def test_it_changes_its_visibility_and_goes_from_there(several: Service, storage: str) -> None:
    asset = await several.uploaded(HOLIDAY, storage=storage)
    beside = await several.uploaded(HOLIDAY, storage="local")
    private = (await several.client.patch(f"/api/v1/assets/{asset['id']}", json={"visibility": "private"})).json()
    assert (await several.client.get(asset["url"])).status_code == 404
    assert (await several.client.get(private["url"])).content == HOLIDAY
    assert (await several.client.delete(f"/api/v1/assets/{asset['id']}")).status_code == 204
    assert (await several.client.get(private["url"])).status_code == 404
    assert not any(asset["id"] in key for name in STORAGES for key in images_in(several, name))
    assert (await several.client.get(beside["url"])).content == HOLIDAY


async def test_the_service_lists_and_counts_them_by_name(several: Service) -> None:
    for storage in ("media", "media", "archive"):
        await several.uploaded(HOLIDAY, storage=storage)
    storages = {found["name"]: found for found in (await several.client.get("/api/v1/storages")).json()["storages"]}
    assert storages.keys() == {*PLAIN_NAMES, "media", "archive"}
    assert {storages[name]["type"] for name in STORAGES} == {"local"}
    assert storages["media"]["configured"]
    listed = (await several.client.get("/api/v1/assets", params={"storage": "media"})).json()["items"]
    assert [asset["storage"] for asset in listed] == ["media", "media"]
    found = (await several.client.get("/api/v1/stats")).json()["storages"]
    by_name = {totals.get("name", totals.get("storage")): totals["count"] for totals in found}
    assert (by_name["media"], by_name["archive"]) == (2, 1)
    labels = {
        dict(sample.labels).get("storage") for metric in metrics_registry().collect() for sample in metric.samples
    }
    assert {"media", "archive"} <= labels


@pytest.mark.parametrize("name", ["Media", "MEDIA", "nowhere"])
async def test_a_name_is_asked_for_as_it_is(several: Service, name: str) -> None:
    problem = problem_of(await several.upload(HOLIDAY, storage=name), 422, "storage_not_configured")
    assert "archive" in problem["detail"]


async def test_each_has_a_marker_and_an_audit_of_its_own(several: Service) -> None:
    runtime = several.runtime
    for name in STORAGES:
        await several.uploaded(HOLIDAY, storage=name)
    for name in STORAGES:
        backend = runtime.storages.get(name)
        marker = Marker(runtime.database, backend)
        await marker.claim()
        assert await marker.owner() == "this"
        audit = Audit(
            runtime.database,
            backend,
            marker,
            runtime.threads,
            temporary_dir=several.data_dir / "tmp",
            grace_seconds=0,
            lease_seconds=runtime.settings.lease_seconds,
        )
        report = await audit.run(verify=True)
        assert (report.is_right, report.assets, report.findings) == (True, 1, [])


async def test_what_dead_processes_left_is_swept_from_each(several: Service) -> None:
    left = several.data_dir.parent / "elsewhere/tmp/process-dead"
    left.mkdir()
    (left / "half").write_bytes(b"x")
    await several.settle()
    assert not left.exists()


async def test_a_named_storage_may_be_the_default(start_service: StartService, named: dict[str, Any]) -> None:
    async with start_service(**named, default_storage="archive") as service:
        assert (await service.uploaded(HOLIDAY))["storage"] == "archive"
        assert (await service.client.get("/health/ready")).status_code == 200


async def test_the_row_remembers_the_name_over_a_restart_and_while_the_storage_is_away(
    start_service: StartService, named: dict[str, Any]
) -> None:
    async with start_service(**named) as service:
        asset = await service.uploaded(HOLIDAY, storage="media")
    async with start_service() as service:
        there = (await service.client.get(f"/api/v1/assets/{asset['id']}")).json()
        assert there["storage"] == "media"
        problem_of(await service.client.get(asset["url"]), 422, "storage_not_configured")
    async with start_service(**named) as service:
        assert (await service.client.get(asset["url"])).content == HOLIDAY


async def test_memory_and_direct_by_other_names_keep_to_their_own_limits(start_service: StartService) -> None:
    storages = {
        "quick": {"type": "memory", "max_bytes": len(HOLIDAY)},
        "back": {"type": "direct", "max_bytes": len(HOLIDAY)},
    }
    async with start_service(storages=storages) as service:
        quick = await service.uploaded(HOLIDAY, storage="quick")
        assert (await service.client.get(quick["url"])).content == HOLIDAY
        problem_of(await service.upload(HOLIDAY, storage="quick"), 507, "storage_full")
        await service.uploaded(HOLIDAY, storage="memory")
        back = await service.uploaded(HOLIDAY, storage="back")
        assert back["url"].startswith("data:")
        larger = images.jpeg(200, 200, seed=1)
        problem_of(await service.upload(larger, storage="back"), 413, "body_too_large")
        await service.uploaded(larger, storage="direct")
    async with start_service(storages=storages) as service:
        assert (await service.client.get(f"/api/v1/assets/{quick['id']}")).status_code == 404


async def test_no_answer_holds_a_named_storages_secret(start_service: StartService) -> None:
    storages = {"media": {"type": "s3", "bucket": "b", "access_key_id": "key-id", "secret_access_key": "hush-hush"}}
    async with start_service(storages=storages) as service:
        answer: httpx.Response = await service.client.get("/api/v1/storages")
        assert answer.status_code == 200
        assert "hush-hush" not in answer.text
        assert "key-id" not in answer.text


async def test_a_ticket_may_lead_to_a_named_storage(start_service: StartService) -> None:
    account = {"type": "azure", "account_url": "http://127.0.0.1:9/pictures", "account_key": "a2V5", "container": "c"}
    storages = {"media": {"type": "local"}, "archive": account | {"prefix": "p"}}
    async with start_service(storages=storages) as service:
        answer = await service.client.post("/api/v1/upload-tickets", params={"storage": "media"})
        asset = await service.client.post(answer.json()["url"], files={"file": ("a.jpg", HOLIDAY)})
        assert (asset.status_code, asset.json()["storage"]) == (201, "media")
        query = {"storage": "archive"}
        ticket = (await service.client.post("/api/v1/upload-tickets", params=query, json={"upload": "bucket"})).json()
        assert ticket["url"].startswith(f"http://127.0.0.1:9/pictures/c/p/private/incoming/{ticket['id']}?")
