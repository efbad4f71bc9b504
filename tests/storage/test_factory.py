"""From a name to a backend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smart_assets.settings import Settings
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import StorageNotConfigured
from smart_assets.storage.factory import (
    StorageType,
    configured_storages,
    get_storage_backend,
    register_backend,
    storage_names,
)
from smart_assets.storage.memory import MemoryStorage
from tests.contracts.storage import PNG, image


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


CONFIGURED = {
    StorageType.S3: {"s3": {"bucket": "b"}},
    StorageType.CLOUDINARY: {"cloudinary": {"url": "cloudinary://key:secret@cloud"}},
    StorageType.GCS: {"gcs": {"bucket": "b"}},
    StorageType.AZURE: {"azure": {"account_url": "https://a.blob.core.windows.net", "container": "c"}},
}


@pytest.mark.parametrize("kind", [kind for kind in StorageType if kind not in CONFIGURED])
async def test_every_kind_without_an_account_takes_an_image(kind: StorageType, settings: Settings) -> None:
    storage = get_storage_backend(kind, settings)
    assert storage.name == kind
    assert (await storage.upload("public/a.png", image(), content_type=PNG)).size == len(image())
    await storage.close()


@pytest.mark.parametrize("kind", CONFIGURED)
async def test_every_kind_with_an_account_is_built_from_its_settings(kind: StorageType, tmp_path: Path) -> None:
    storage = get_storage_backend(kind, Settings(data_dir=tmp_path, **CONFIGURED[kind]))  # type: ignore[arg-type]
    assert storage.name == kind
    await storage.close()


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("s3", ("ASSETS_S3__BUCKET",)),
        ("cloudinary", ("CLOUDINARY_URL",)),
        ("gcs", ("ASSETS_GCS__BUCKET",)),
        ("azure", ("ASSETS_AZURE__CONTAINER", "AZURE_STORAGE_CONNECTION_STRING")),
    ],
)
def test_a_storage_that_is_not_set_up_says_exactly_what_is_missing(
    kind: str, missing: tuple[str, ...], settings: Settings
) -> None:
    with pytest.raises(StorageNotConfigured) as caught:
        get_storage_backend(kind, settings)
    assert caught.value.missing == missing
    assert all(variable in caught.value.detail for variable in missing)


@pytest.mark.parametrize(
    ("half_set_up", "missing"),
    [
        ({"s3": {"bucket": "b", "access_key_id": "k"}}, ("ASSETS_S3__SECRET_ACCESS_KEY",)),
        ({"s3": {"bucket": ""}}, ("ASSETS_S3__BUCKET",)),
        (
            {"cloudinary": {"cloud_name": "c"}},
            ("ASSETS_CLOUDINARY__API_KEY", "ASSETS_CLOUDINARY__API_SECRET"),
        ),
        (
            {"azure": {"account_url": "a.blob.core.windows.net", "container": "c", "public_access": "policy"}},
            ("ASSETS_AZURE__PUBLIC_CONTAINER",),
        ),
    ],
)
def test_a_storage_half_set_up_says_what_is_still_missing(
    half_set_up: dict[str, Any], missing: tuple[str, ...]
) -> None:
    with pytest.raises(StorageNotConfigured) as caught:
        get_storage_backend(next(iter(half_set_up)), Settings(**half_set_up))
    assert caught.value.missing == missing


@pytest.mark.parametrize(
    ("kind", "module"),
    [("s3", "boto3"), ("cloudinary", "cloudinary"), ("gcs", "google.cloud.storage"), ("azure", "azure.identity")],
)
def test_a_missing_extra_is_named(kind: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StorageNotConfigured) as caught:
        get_storage_backend(kind, Settings(**CONFIGURED[StorageType(kind)]))  # type: ignore[arg-type]
    assert caught.value.missing == (f"the extra smart-assets[{kind}]",)


async def test_vendors_own_variables_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDINARY_URL", "cloudinary://key:secret@cloud")
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=c2VjcmV0;EndpointSuffix=core.windows.net",
    )
    settings = Settings(azure={"container": "c"})
    for kind in ("cloudinary", "azure"):
        await get_storage_backend(kind, settings).close()


async def test_local_keeps_its_assets_in_the_data_directory(settings: Settings) -> None:
    storage = get_storage_backend("local", settings)
    await storage.upload("public/a.png", image(), content_type=PNG)
    assert (settings.data_dir / "assets/public/a.png").read_bytes() == image()
    assert not [path for path in settings.temporary_dir.rglob("*") if path.is_file()]
    await storage.close()


@pytest.mark.parametrize("name", ["nope", "", "Local", "__class__", "smart_assets.storage.local", "x" * 10_000])
def test_an_unknown_name_is_answered_with_those_there_are(name: str, settings: Settings) -> None:
    with pytest.raises(StorageNotConfigured, match="azure, cloudinary, direct, gcs, local, memory, s3") as caught:
        get_storage_backend(name, settings)
    assert len(caught.value.detail) < 200


def test_a_data_directory_that_cannot_be_made_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file stands here")
    with pytest.raises(StorageNotConfigured) as caught:
        get_storage_backend("local", Settings(data_dir=tmp_path / "data"))
    assert caught.value.missing == ("ASSETS_DATA_DIR",)
    assert str(tmp_path) not in caught.value.detail


def test_no_backend_is_imported_until_it_is_asked_for() -> None:
    program = """
import sys
from smart_assets.settings import Settings
from smart_assets.storage.factory import get_storage_backend
from smart_assets.storage.factory import StorageType, configured_storages
backends = set(StorageType)
loaded = lambda: {name for name in backends if f"smart_assets.storage.{name}" in sys.modules}
assert loaded() == set(), loaded()
get_storage_backend("direct", Settings())
assert loaded() == {"direct"}, loaded()
configured_storages(Settings())
sdks = {"boto3", "cloudinary", "google.cloud.storage", "azure.storage.blob"} & sys.modules.keys()
assert not sdks, sdks
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def load(name: str, settings: Settings) -> StorageBackend:
    return MemoryStorage(name, settings.memory.max_bytes)


def test_one_more_kind_is_registered_by_name_and_taken_back(settings: Settings) -> None:
    undo = register_backend("toy", load)
    try:
        assert get_storage_backend("toy", settings).name == "toy"
        assert storage_names(settings) == (*sorted(StorageType), "toy")
        with pytest.raises(ValueError, match="already"):
            register_backend("toy", load)
    finally:
        undo()
    with pytest.raises(StorageNotConfigured):
        get_storage_backend("toy", settings)


def test_a_built_in_kind_cannot_be_replaced() -> None:
    with pytest.raises(ValueError, match="already"):
        register_backend("local", load)


def test_the_storages_say_what_they_can_and_what_they_miss(settings: Settings) -> None:
    def refuse(name: str, settings: Settings) -> StorageBackend:
        raise StorageNotConfigured("no bucket", storage=name, missing=("ASSETS_TOY__BUCKET",))

    undo = register_backend("toy", refuse)
    try:
        statuses = {status.name: status for status in configured_storages(settings)}
    finally:
        undo()
    assert [name for name, status in statuses.items() if status.default] == ["local"]
    assert all(status.type == name for name, status in statuses.items())
    assert statuses["direct"].capabilities is not None
    assert not statuses["direct"].capabilities.persistent
    assert (statuses["toy"].configured, statuses["toy"].missing) == (False, ("ASSETS_TOY__BUCKET",))
    assert statuses["toy"].capabilities is None


def test_who_has_the_backends_open_is_asked_for_those(settings: Settings) -> None:
    asked = []

    def get(name: str) -> StorageBackend:
        asked.append(name)
        return MemoryStorage(name, 1)

    configured_storages(settings, get)
    assert asked == sorted(StorageType)
