"""Starting: what is refused, and what the operator is told."""

from __future__ import annotations

import asyncio
import logging
import sys

import pytest
from prometheus_client import REGISTRY

from smart_assets.errors import ConfigurationError
from smart_assets.storage.errors import StorageError
from smart_assets.storage.factory import register_backend
from tests.conftest import StartService
from tests.staging import DistantStorage, FaultyStorage


async def test_a_default_storage_that_is_not_set_up_refuses_to_start(start_service: StartService) -> None:
    with pytest.raises(ConfigurationError, match=r"ASSETS_DEFAULT_STORAGE is s3, but .*ASSETS_S3__BUCKET"):
        async with start_service(default_storage="s3"):
            pass


@pytest.mark.parametrize("error", [StorageError("the bucket does not exist"), RuntimeError("a bug")], ids=repr)
async def test_a_storage_that_cannot_be_used_is_told_of_at_the_start_and_counted(
    start_service: StartService, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    storage = FaultyStorage("faulty", DistantStorage("faulty"))
    storage.fail("check", error=error)
    undo = register_backend("faulty", lambda _name, _settings: storage)

    def failures() -> float:
        return REGISTRY.get_sample_value("smart_assets_background_failures_total", {"task": "check_storage"}) or 0

    before = failures()
    try:
        with caplog.at_level(logging.ERROR):
            async with start_service() as service:
                for _ in range(100):
                    await asyncio.sleep(0.01)
                    if failures() > before:
                        break
                assert (await service.client.get("/health/ready")).status_code == 200
    finally:
        undo()
    assert failures() == before + 1
    (told,) = [record for record in caplog.records if getattr(record, "storage", None) == "faulty"]
    assert "could not be checked" in told.message or "the bucket does not exist" in told.__dict__["detail"]


@pytest.mark.parametrize("url", ["postgresql://ann:sesame@127.0.0.1/assets", "postgres://127.0.0.1/assets"])
async def test_postgresql_without_its_library_says_what_to_install(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"smart-assets\[postgres\]") as refused:
        async with start_service(database_url=url):
            pass
    assert "sesame" not in str(refused.value)


async def test_a_database_url_that_cannot_be_read_is_not_repeated(start_service: StartService) -> None:
    with pytest.raises(ConfigurationError, match="ASSETS_DATABASE_URL") as refused:
        async with start_service(database_url="postgresql://ann:ses@me@db:port/assets"):
            pass
    assert "ses" not in str(refused.value)
