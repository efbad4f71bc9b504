"""The doctor before real servers: well ones, and ones with a fault staged for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smart_assets.maintenance.doctor import Examination, Step, examine
from smart_assets.maintenance.faults import Fault
from smart_assets.settings import Settings
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import StorageError
from smart_assets.storage.factory import get_storage_backend, storage_type
from tests.cloudinary_fake import CloudinaryFake
from tests.live.azurite import AzureServer
from tests.live.gcs_server import Gcs
from tests.live.places import PLACES, Place
from tests.live.rewriting import Rewriting, rewriting
from tests.live.seaweed import S3Server

DISTANT = [name for name in PLACES if name.partition(",")[0] not in {"local", "memory", "direct"}]


async def examined(settings: Settings, name: str) -> tuple[Examination, list[str]]:
    """What the doctor finds, and what it leaves."""
    backend = get_storage_backend(name, settings)
    try:
        found = await examine(backend, storage_type(name, settings), settings.storage(name))
        well = found.is_well or await _answers(backend)
        return found, [record.key async for record in backend.list("private/smart-assets-check/")] if well else []
    finally:
        await backend.close()


async def _answers(backend: StorageBackend) -> bool:
    try:
        await backend.ping()
    except StorageError:
        return False
    return True


def step(found: Examination, name: str) -> Step:
    (there,) = (step for step in found.steps if step.name == name)
    return there


def failed(found: Examination, name: str) -> tuple[Fault, tuple[str, ...]]:
    """The fault, and what cures it."""
    there = step(found, name)
    assert there.outcome == "failed", found.steps
    assert there.diagnosis is not None
    return there.diagnosis.fault, there.diagnosis.settings


def s3(server: S3Server, **more: Any) -> Settings:
    return Settings(
        s3={
            "bucket": server.bucket,
            "region": server.region,
            "endpoint_url": server.endpoint_url,
            "access_key_id": server.access_key_id,
            "secret_access_key": server.secret_access_key,
            **more,
        }
    )


@pytest.fixture
def altered(seaweed: S3Server) -> Iterator[Rewriting]:
    """SeaweedFS behind a proxy that changes what it carries."""
    if not seaweed.is_ours:
        pytest.skip("needs a server on this machine")
    with rewriting(str(seaweed.endpoint_url)) as changes:
        yield changes


# ── Well ones ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", DISTANT)
async def test_a_storage_that_is_well_passes_all_and_keeps_nothing(where: str, request: pytest.FixtureRequest) -> None:
    place: Place = PLACES[where](request)
    found, left = await examined(Settings(**place.settings), place.storage)
    assert found.is_well, found.steps
    assert left == []
    outcomes = {step.name: step.outcome for step in found.steps}
    promised = ("clock", "put", "odd key", "8 MB object", "get", "range", "stat", "list", "sign", "signed link")
    kept = ("unsigned fetch refused", "expired link refused", "delete", "gone afterwards", "as it is set up")
    assert [outcomes[name] for name in (*promised, *kept)] == ["ok"] * (len(promised) + len(kept))
    is_open = "open" in where or place.storage == "cloudinary"  # whose public images are always open
    assert outcomes["public fetch"] == ("ok" if is_open else "skipped")
    images_only = place.storage == "cloudinary"
    assert outcomes["empty object"] == ("skipped" if images_only else "ok")
    assert outcomes["upload by a stranger"] == ("skipped" if images_only else "ok")
    assert outcomes["overwrite refused"] == ("skipped" if images_only else "ok")


async def test_a_named_storage_is_cured_by_its_own_variables(seaweed: S3Server) -> None:
    own = {**s3(seaweed).s3.model_dump(), "type": "s3", "secret_access_key": "wrong", "extra_args": {}}
    found, _ = await examined(Settings(storages={"media": own}), "media")
    assert failed(found, "put") == (
        Fault.CREDENTIALS,
        ("ASSETS_STORAGES__media__ACCESS_KEY_ID", "ASSETS_STORAGES__media__SECRET_ACCESS_KEY"),
    )


# ── S3 ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wrong", "fault", "cured_by"),
    [
        ({"secret_access_key": "wrong"}, Fault.CREDENTIALS, ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")),
        ({"access_key_id": "nobody"}, Fault.CREDENTIALS, ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")),
        ({"bucket": "there-is-none"}, Fault.NO_BUCKET, ("BUCKET",)),
        (
            {"addressing_style": "virtual", "endpoint_url": "http://storage.invalid"},
            Fault.PATH_STYLE,
            ("ADDRESSING_STYLE", "ENDPOINT_URL"),
        ),
        ({"endpoint_url": "http://127.0.0.1:9", "connect_timeout_seconds": 1}, Fault.ADDRESS, ("ENDPOINT_URL",)),
    ],
)
async def test_what_is_wrong_with_a_bucket_is_named(
    wrong: dict[str, Any], fault: Fault, cured_by: tuple[str, ...], seaweed: S3Server
) -> None:
    found, _ = await examined(s3(seaweed, **wrong), "s3")
    assert failed(found, "put") == (fault, tuple(f"ASSETS_S3__{setting}" for setting in cured_by))
    assert step(found, "everything else").outcome == "skipped"
    assert seaweed.secret_access_key not in repr(found)


async def test_a_clock_that_is_off_is_measured(altered: Rewriting, seaweed: S3Server) -> None:
    altered.ahead_seconds = 7200
    found, left = await examined(s3(seaweed, endpoint_url=altered.address), "s3")
    assert failed(found, "clock") == (Fault.CLOCK, ())
    assert "behind the server's" in step(found, "clock").detail
    assert left == []


async def test_with_a_clock_that_is_off_a_refused_signature_is_no_wrong_secret(
    altered: Rewriting, seaweed: S3Server
) -> None:
    altered.ahead_seconds = -7200
    found, _ = await examined(s3(seaweed, endpoint_url=altered.address, secret_access_key="wrong"), "s3")
    assert "ahead of the server's" in step(found, "clock").detail
    assert failed(found, "put")[0] is Fault.CLOCK


@pytest.mark.parametrize(
    ("header", "refusal", "step", "fault", "cured_by"),
    [
        ("Content-MD5", (501, "NotImplemented"), "put", Fault.CHECKSUMS, "EXTRA_ARGS"),
        ("Authorization", (400, "AuthorizationHeaderMalformed"), "put", Fault.REGION, "REGION"),
        ("Authorization", (403, "RequestTimeTooSkewed"), "put", Fault.CLOCK, None),
        ("x-amz-acl", (400, "AccessControlListNotSupported"), "public fetch", Fault.ACLS, "PUBLIC_ACCESS"),
        ("x-amz-acl", (403, "AccessDenied"), "public fetch", Fault.ACLS, "PUBLIC_ACCESS"),
    ],
)
async def test_what_a_server_refuses_is_named(
    header: str,
    refusal: tuple[int, str],
    step: str,
    fault: Fault,
    cured_by: str | None,
    altered: Rewriting,
    seaweed: S3Server,
) -> None:
    altered.refuses_header, altered.refusal = header, refusal
    found, _ = await examined(s3(seaweed, endpoint_url=altered.address, public_access="acl"), "s3")
    assert failed(found, step) == (fault, (f"ASSETS_S3__{cured_by}",) if cured_by else ())


async def test_a_cache_before_signed_links_is_found(altered: Rewriting, seaweed: S3Server) -> None:
    altered.remembers = True
    found, left = await examined(s3(seaweed, signing_endpoint_url=altered.address), "s3")
    assert failed(found, "expired link refused")[0] is Fault.EXPIRY
    assert failed(found, "gone afterwards")[0] is Fault.EXPIRY
    assert failed(found, "unsigned fetch refused")[0] is Fault.OPEN
    assert left == []


@pytest.mark.parametrize("elsewhere", ["http://127.0.0.1:9", "the filer's"])
async def test_a_wrong_address_for_callers_is_named(elsewhere: str, seaweed: S3Server, gcs: Gcs) -> None:
    address = elsewhere if elsewhere.startswith("http") else gcs.address
    found, left = await examined(s3(seaweed, signing_endpoint_url=address), "s3")
    assert failed(found, "signed link") == (Fault.SIGNING_ADDRESS, ("ASSETS_S3__SIGNING_ENDPOINT_URL",))
    assert left == []


async def test_private_objects_that_anybody_may_read_are_found(seaweed: S3Server) -> None:
    found, left = await examined(s3(seaweed, bucket=seaweed.new_bucket(open_prefix="")), "s3")
    assert failed(found, "unsigned fetch refused") == (Fault.OPEN, ("ASSETS_S3__PUBLIC_BUCKET",))
    assert failed(found, "as it is set up")[0] is Fault.OPEN
    assert left == []


async def test_public_objects_that_nobody_may_read_are_found(seaweed: S3Server) -> None:
    found, left = await examined(s3(seaweed, bucket=seaweed.new_bucket(), public_access="policy"), "s3")
    assert failed(found, "public fetch") == (Fault.CLOSED, ("ASSETS_S3__PUBLIC_ACCESS",))
    assert failed(found, "as it is set up")[0] is Fault.CLOSED
    assert left == []


# ── The others ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_wrong_with_a_container_is_named(azurite: AzureServer) -> None:
    if not azurite.is_ours:
        pytest.skip("needs a server on this machine")
    wrong_key = azurite.connection_string.replace(azurite.account_key, "c2VjcmV0")
    for own, fault, variable in (
        # Azurite's word for a wrong key is Azure's for a lack of permission.
        ({"connection_string": wrong_key, "container": azurite.container}, Fault.PERMISSION, "CONNECTION_STRING"),
        ({"connection_string": azurite.connection_string, "container": "none"}, Fault.NO_BUCKET, "CONTAINER"),
    ):
        found, _ = await examined(Settings(azure=own), "azure")
        assert failed(found, "put") == (fault, (f"ASSETS_AZURE__{variable}",))
        assert azurite.account_key not in repr(found)


async def test_a_container_open_to_all_is_found(azurite: AzureServer) -> None:
    own = {"connection_string": azurite.connection_string, "container": azurite.new_container(is_open=True)}
    found, left = await examined(Settings(azure=own), "azure")
    assert failed(found, "unsigned fetch refused") == (Fault.OPEN, ("ASSETS_AZURE__PUBLIC_CONTAINER",))
    assert left == []


async def test_what_is_wrong_with_a_bucket_of_googles_is_named(gcs: Gcs) -> None:
    if gcs.proxy is None:
        pytest.skip("needs a server on this machine")
    own = {"bucket": gcs.bucket, "endpoint_url": gcs.address, "credentials_json": gcs.credentials_json}
    found, _ = await examined(Settings(gcs={**own, "bucket": "there-is-none"}), "gcs")
    assert failed(found, "put") == (Fault.NO_BUCKET, ("ASSETS_GCS__BUCKET",))
    stranger = gcs.proxy.add_account("outsider@smart-assets-tests.iam.gserviceaccount.com")
    mine = {**own, "credentials_json": stranger.key_file(gcs.proxy.token_uri)}
    found, _ = await examined(Settings(gcs=mine), "gcs")
    assert failed(found, "put")[0] is Fault.PERMISSION
    opened = gcs.proxy.make_bucket("open-to-all-by-mistake")
    gcs.proxy.open_to_all.add((opened, ""))
    found, left = await examined(Settings(gcs={**own, "bucket": opened}), "gcs")
    assert failed(found, "unsigned fetch refused") == (Fault.OPEN, ("ASSETS_GCS__PUBLIC_BUCKET",))
    assert left == []


async def test_what_is_wrong_with_an_account_of_cloudinarys_is_named(cloudinary: CloudinaryFake) -> None:
    account = cloudinary.account("doctored")
    own = {"api_url": cloudinary.url, "delivery_url": f"{cloudinary.url}/{account.cloud_name}"}
    own |= {"cloud_name": account.cloud_name, "api_key": account.api_key, "api_secret": "wrong"}
    found, _ = await examined(Settings(cloudinary=own), "cloudinary")
    assert failed(found, "put") == (Fault.CREDENTIALS, ("ASSETS_CLOUDINARY__API_KEY", "ASSETS_CLOUDINARY__API_SECRET"))
    account.guarded = False
    found, _ = await examined(Settings(cloudinary={**own, "api_secret": account.api_secret}), "cloudinary")
    assert failed(found, "as it is set up")[0] is Fault.OPEN
    assert account.assets == {}


# ── The command ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_says_it_to_machines_and_to_people(seaweed: S3Server, tmp_path: Path) -> None:
    environment = os.environ | {
        "ASSETS_STORAGES__media__TYPE": "s3",
        "ASSETS_STORAGES__media__BUCKET": seaweed.bucket,
        "ASSETS_STORAGES__media__REGION": seaweed.region,
        "ASSETS_STORAGES__media__ENDPOINT_URL": str(seaweed.endpoint_url or ""),
        "ASSETS_STORAGES__media__ACCESS_KEY_ID": seaweed.access_key_id,
        "ASSETS_STORAGES__media__SECRET_ACCESS_KEY": seaweed.secret_access_key,
    }
    command = [sys.executable, "-m", "smart_assets.cli", "doctor", "--storage", "media"]
    for wrong in ({}, {"ASSETS_STORAGES__media__SECRET_ACCESS_KEY": "wrong"}):
        told = subprocess.run(
            [*command, "--json"], cwd=tmp_path, env=environment | wrong, capture_output=True, text=True, timeout=100
        )
        assert told.returncode == bool(wrong), told.stdout + told.stderr
        report = json.loads(told.stdout)
        assert [found["subject"] for found in report["examinations"]] == ["this machine", "media"]
        assert report["well"] is not bool(wrong)
        assert told.stderr == ""
        shown = subprocess.run(
            command, cwd=tmp_path, env=environment | wrong, capture_output=True, text=True, timeout=100
        )
        assert shown.returncode == bool(wrong)
        assert "media (s3)" in shown.stdout
        assert ("ASSETS_STORAGES__media__SECRET_ACCESS_KEY" in shown.stdout) is bool(wrong)
        assert seaweed.secret_access_key not in told.stdout + shown.stdout
