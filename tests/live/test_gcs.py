"""Google Cloud Storage: fake-gcs-server behind our verifying proxy, or the real one.

The real one where SMART_ASSETS_LIVE_GCS_BUCKET names a bucket with nothing in it that matters, with Google's default
credentials; SMART_ASSETS_LIVE_GCS_PUBLIC_BUCKET may name another, which `allUsers` may read.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from typing import Any, ClassVar
from uuid import uuid4

import anyio
import httpx
import pytest
from google.auth import compute_engine
from google.auth.compute_engine import _metadata
from google.oauth2 import service_account

from smart_assets.settings import GcsSettings
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import ObjectExists, StorageError, StorageUnavailable, WriteNotVerified
from smart_assets.storage.gcs import GcsStorage
from smart_assets.storage.keys import Visibility, with_visibility
from tests.contracts.remote import Connect, RemoteStorageContract
from tests.contracts.storage import PNG, image, large_image, listed, read
from tests.live.gcs_proxy import AUDIENCE, PART_MULTIPLE, Account, GcsProxy
from tests.live.gcs_server import Gcs
from tests.wire import Wire


class GcsContract(RemoteStorageContract):
    secrets = ("PRIVATE", "gserviceaccount", "googleapis.com")
    heavy = False
    options: ClassVar[dict[str, Any]] = {}
    server: Gcs

    @pytest.fixture(autouse=True)
    def _server(self, gcs: Gcs, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = gcs
        if gcs.application_credentials:
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", gcs.application_credentials)

    @pytest.fixture
    def server_address(self, gcs: Gcs) -> str | None:
        return gcs.address

    @pytest.fixture
    def configured(self, gcs: Gcs) -> dict[str, Any]:
        """Settings besides the address."""
        return {"bucket": gcs.bucket, "credentials_json": gcs.credentials_json, **self.options}

    @pytest.fixture
    def connect(self, gcs: Gcs, configured: dict[str, Any]) -> Connect:
        def connect(
            *,
            address: str | None = None,
            wrong_secret: bool = False,
            missing_bucket: bool = False,
            timeout_seconds: float = 30.0,
        ) -> StorageBackend:
            settings = {
                "endpoint_url": address or gcs.address,
                "timeout_seconds": timeout_seconds,
                "connect_timeout_seconds": min(timeout_seconds, 1.0),
                **configured,
            }
            if wrong_secret:
                email = gcs.account.email if gcs.proxy else "nobody@nowhere.iam.gserviceaccount.com"
                settings["credentials_json"] = Account(email).key_file(gcs.proxy.token_uri if gcs.proxy else AUDIENCE)
            if missing_bucket:
                settings["bucket"] = settings["public_bucket"] = "smart-assets-there-is-no-such-bucket"
            return made(**settings)

        return connect

    async def unfinished(self, storage: StorageBackend) -> list[str]:
        # One whose address never arrived cannot be given up; it holds nothing, and is forgotten after a week.
        return self.server.proxy.unfinished() if self.server.proxy else []


class TestGcs(GcsContract):
    """As most will use it: public objects in a managed folder that is open to all."""

    heavy = True

    @pytest.fixture
    def configured(self, gcs: Gcs) -> dict[str, Any]:
        public_access = "policy" if gcs.proxy else "none"
        return {"bucket": gcs.bucket, "credentials_json": gcs.credentials_json, "public_access": public_access}


class TestGcsWithPrefix(GcsContract):
    """Beside others in a bucket, closed to strangers, and in small parts."""

    options: ClassVar[dict[str, Any]] = {"prefix": "team a+b/ü", "resumable_bytes": PART_MULTIPLE}


class TestGcsWithPublicBucket(GcsContract):
    """Public objects in a bucket of their own."""

    @pytest.fixture
    def configured(self, gcs: Gcs) -> dict[str, Any]:
        if gcs.public_bucket is None:
            pytest.skip("no public bucket is named")
        return {
            "bucket": gcs.bucket,
            "public_bucket": gcs.public_bucket,
            "public_access": "policy",
            "credentials_json": gcs.credentials_json,
        }


class TestGcsOnGooglesMachines(GcsContract):
    """With the credentials of the machine: no key is at hand, and IAM signs."""

    @pytest.fixture(autouse=True)
    def _machine(self, gcs: Gcs, monkeypatch: pytest.MonkeyPatch) -> None:
        run_on_a_machine_of(gcs, monkeypatch)

    @pytest.fixture
    def configured(self, gcs: Gcs) -> dict[str, Any]:
        return {"bucket": gcs.bucket}

    async def test_a_signed_url_lives_as_long_as_asked_but_for_a_window(
        self, signing: StorageBackend, key: str
    ) -> None:
        before = time.time()
        for asked, lives in ((10, 10), (3600, 3600), (43_200, 43_200), (86_400, 43_200), (604_800, 43_200)):
            expires = (await signing.generate_signed_url(key, asked)).expires_at.timestamp()
            assert before + lives - min(lives // 10, 3600) - 1 <= expires <= time.time() + lives
        not_after = before + 100.5
        for asked in (3600, 86_400):
            signed = await signing.generate_signed_url(key, asked, not_after=not_after)
            assert signed.expires_at.timestamp() <= not_after + 1


def made(**settings: Any) -> GcsStorage:
    return GcsStorage("gcs", GcsSettings.model_validate(settings), 3600)


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[GcsStorage]:
    storage = made(**settings)
    yield storage
    await storage.close()


def connected(gcs: Gcs, **settings: Any) -> AbstractAsyncContextManager[GcsStorage]:
    ours = {"bucket": gcs.bucket, "endpoint_url": gcs.address, "credentials_json": gcs.credentials_json}
    return opened(**{**ours, "connect_timeout_seconds": 1, **settings})


def run_on_a_machine_of(gcs: Gcs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Google's default chain find the metadata server, and IAM, at the proxy."""
    if gcs.address is None:
        pytest.skip("the machine's own credentials are what they are")
    host = gcs.address.removeprefix("http://")
    monkeypatch.setattr(_metadata, "_GCE_METADATA_HOST", host)
    monkeypatch.setenv("GCE_METADATA_IP", host)
    monkeypatch.setenv("CLOUDSDK_CONFIG", "/nonexistent")
    monkeypatch.setattr("smart_assets.storage.gcs.IAM_URL", gcs.address)


@pytest.fixture
def proxy(gcs: Gcs) -> Iterator[GcsProxy]:
    """The proxy, counting from 0; what a test opens or breaks is as before afterwards."""
    if gcs.proxy is None:
        pytest.skip("the real service cannot be looked into")
    proxy = gcs.proxy
    before = set(proxy.open_to_all), set(proxy.account.permissions)
    proxy.requests.clear()
    yield proxy
    proxy.open_to_all, proxy.account.permissions = before
    proxy.takes_at_most, proxy.copies_in_steps = None, False
    proxy.loses_answers.clear()


@pytest.fixture
def key() -> str:
    return f"private/gcs-{uuid4()}/image.png"


@pytest.fixture
async def stranger() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


# ── What it asks ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_each_call_asks_once_and_nobody_asks_for_acls_or_the_bucket(gcs: Gcs, proxy: GcsProxy, key: str) -> None:
    async with connected(gcs) as storage:
        await storage.upload(key, image(), content_type=PNG)
        await storage.stat(key)
        assert await read(storage, key) == image()
        await listed(storage, key)
        moved = await storage.set_visibility(key, Visibility.PUBLIC)
        await storage.delete(moved.key)
        await storage.ping()
    # A move looks the object up, copies it and removes it.
    assert proxy.requests == Counter(
        {
            "token": 1,
            "objects.insert": 1,
            "objects.get": 4,
            "objects.list": 1,
            "objects.rewrite": 1,
            "objects.delete": 2,
        }
    )


async def test_objects_are_written_with_the_class_and_the_key_of_the_settings(
    gcs: Gcs, proxy: GcsProxy, key: str
) -> None:
    kms_key = "projects/p/locations/l/keyRings/r/cryptoKeys/k"
    async with connected(gcs, storage_class="NEARLINE", kms_key=kms_key) as storage:
        for data in (image(), large_image()):
            await storage.upload(key, data, content_type=PNG)
            at = key
            for visibility in (Visibility.PRIVATE, Visibility.PUBLIC):
                at = (await storage.set_visibility(at, visibility)).key
                resource = proxy.resource(gcs.bucket, at)
                assert (resource["storageClass"], proxy.kms_keys[gcs.bucket, at]) == ("NEARLINE", kms_key)
                assert (resource["contentType"], resource["contentDisposition"]) == (PNG, "inline")
            assert resource["cacheControl"] == "public, max-age=3600"
            await storage.delete(at)


async def test_the_emulator_of_the_sdks_variable_is_used_without_credentials(
    gcs: Gcs, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gcs.upstream is None:
        pytest.skip("there is no emulator")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.upstream.removeprefix("http://"))
    async with opened(bucket=gcs.bucket) as storage:
        await storage.check()
        assert not storage.capabilities.signed_urls
        for data in (image(), large_image()):
            await storage.upload(key, data, content_type=PNG)
            assert await read(storage, key) == data
            await storage.delete(key)


async def test_bytes_that_nobody_compares_on_the_way_are_noticed_and_removed(
    gcs: Gcs, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gcs.upstream is None:
        pytest.skip("the real service compares them")
    host, _, port = gcs.upstream.removeprefix("http://").partition(":")
    async with Wire(host, int(port)) as wire:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", wire.address)
        async with opened(bucket=gcs.bucket, resumable_bytes=PART_MULTIPLE) as storage:
            for data in (image(side=200), image(side=400)):  # in one request, and in parts
                wire.corrupt(up=50_000)
                with pytest.raises(WriteNotVerified):
                    await storage.upload(key, data, content_type=PNG)
                assert not await storage.exists(key)
        assert wire.corrupted == 2


async def test_who_is_not_google_is_the_only_one_asked(
    gcs: Gcs, proxy: GcsProxy, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    for credentials in (service_account.Credentials, compute_engine.Credentials):
        monkeypatch.setattr(
            credentials, "_build_regional_access_boundary_lookup_url", lambda *_args, **_options: asked.append(1)
        )
    run_on_a_machine_of(gcs, monkeypatch)
    for settings in ({}, {"credentials_json": None}):
        async with connected(gcs, **settings) as storage:
            await storage.check()
    assert asked == []


# ── Answers that are lost, and parts that are not taken ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("data", [image(), large_image()], ids=["in one request", "in parts"])
async def test_an_upload_finds_itself_when_its_answer_was_lost(
    gcs: Gcs, proxy: GcsProxy, key: str, data: bytes
) -> None:
    async with connected(gcs) as storage:
        proxy.loses_answers.update({"objects.insert": 1, "objects.resume": 1})
        await storage.upload(key, data, content_type=PNG)
        assert await read(storage, key) == data
        with pytest.raises(ObjectExists):
            await storage.upload(key, data, content_type=PNG)
    assert proxy.unfinished() == []


async def test_a_move_whose_copy_was_made_and_not_answered_comes_to_its_end(
    gcs: Gcs, proxy: GcsProxy, key: str
) -> None:
    async with connected(gcs) as storage:
        await storage.upload(key, image(), content_type=PNG)
        proxy.loses_answers.update({"objects.rewrite": 1, "objects.delete": 1})
        moved = await storage.set_visibility(key, Visibility.PUBLIC)
        assert not await storage.exists(key)
        assert await read(storage, moved.key) == image()
        assert await storage.delete(moved.key)


async def test_a_copy_that_the_server_makes_in_steps_comes_to_its_end(gcs: Gcs, proxy: GcsProxy, key: str) -> None:
    proxy.copies_in_steps = True
    async with connected(gcs) as storage:
        await storage.upload(key, image(), content_type=PNG)
        moved = await storage.set_visibility(key, Visibility.PUBLIC)
        assert await read(storage, moved.key) == image()
        assert proxy.requests["objects.rewrite"] == 2
        assert await storage.delete(moved.key)


async def test_what_is_not_taken_of_a_part_is_sent_again(gcs: Gcs, proxy: GcsProxy, key: str) -> None:
    proxy.takes_at_most = 3 * PART_MULTIPLE + 1
    async with connected(gcs, resumable_bytes=5 * PART_MULTIPLE + 7) as storage:
        await storage.upload(key, large_image(), content_type=PNG)
        assert await read(storage, key) == large_image()


async def test_an_upload_of_which_nothing_is_taken_ends(gcs: Gcs, proxy: GcsProxy, key: str) -> None:
    proxy.takes_at_most = 0
    async with connected(gcs, timeout_seconds=1) as storage:
        with pytest.raises(StorageUnavailable):
            await storage.upload(key, large_image(), content_type=PNG)
        assert not await storage.exists(key)
    assert proxy.requests["objects.giveUp"] == 1


async def test_of_many_large_uploads_to_one_key_one_wins_and_the_others_leave_nothing(
    gcs: Gcs, proxy: GcsProxy, key: str
) -> None:
    winners = []
    async with connected(gcs) as storage:

        async def write(seed: int) -> None:
            with suppress(ObjectExists):
                await storage.upload(key, large_image(seed), content_type=PNG)
                winners.append(seed)

        async with anyio.create_task_group() as writers:
            for seed in range(6):
                writers.start_soon(write, seed)
        assert len(winners) == 1
        assert await read(storage, key) == large_image(winners[0])
    assert proxy.unfinished() == []


async def test_an_object_replaced_while_it_is_read_is_not_mixed_with_its_successor(
    gcs: Gcs, proxy: GcsProxy, key: str
) -> None:
    async with connected(gcs) as storage:
        await storage.upload(key, large_image(1), content_type=PNG)
        async with aclosing(storage.open(key)) as chunks:
            assert large_image(1).startswith(await anext(chunks))
            await storage.delete(key)
            await storage.upload(key, large_image(2), content_type=PNG)
            with pytest.raises(StorageUnavailable):
                await anext(chunks)


# ── Signing through IAM ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_iam_is_asked_once_for_a_url_and_not_at_all_for_a_list(
    gcs: Gcs, proxy: GcsProxy, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on_a_machine_of(gcs, monkeypatch)
    async with opened(bucket=gcs.bucket, endpoint_url=gcs.address) as storage:
        await storage.upload(key, image(), content_type=PNG)
        await listed(storage, "private/")
        assert proxy.requests["signBlob"] == 0
        urls = {(await storage.generate_signed_url(key, 604_800)).url for _ in range(20)}
        assert len(urls) <= 2, "a window lasts an hour, and one may have ended meanwhile"
        assert proxy.requests["signBlob"] == len(urls)


async def test_who_may_not_sign_hears_which_permission_is_missing(
    gcs: Gcs, proxy: GcsProxy, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on_a_machine_of(gcs, monkeypatch)
    proxy.account.permissions.discard("iam.serviceAccounts.signBlob")
    async with opened(bucket=gcs.bucket, endpoint_url=gcs.address) as storage:
        for call in (storage.generate_signed_url(key), storage.check()):
            with pytest.raises(StorageError, match=r"iam\.serviceAccounts\.signBlob.*serviceAccountTokenCreator"):
                await call
        assert await listed(storage, "private/smart-assets-check") == {}


async def test_another_account_signs_where_the_settings_name_it(
    gcs: Gcs, proxy: GcsProxy, key: str, stranger: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on_a_machine_of(gcs, monkeypatch)
    signer = proxy.add_account("signer@smart-assets-tests.iam.gserviceaccount.com", "storage.objects.get")
    async with opened(bucket=gcs.bucket, endpoint_url=gcs.address, signing_account=signer.email) as storage:
        await storage.upload(key, image(), content_type=PNG)
        signed = await storage.generate_signed_url(key)
        assert "signer%40" in signed.url
        assert (await stranger.get(signed.url)).content == image()
        signer.permissions.clear()
        with pytest.raises(StorageError, match=r"storage\.objects\.get"):
            await storage.check()


# ── Checking ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_check_finds_private_objects_that_strangers_can_read(gcs: Gcs, proxy: GcsProxy) -> None:
    proxy.open_to_all.add((gcs.bucket, ""))
    async with connected(gcs) as storage:
        with pytest.raises(StorageError, match="strangers can read private objects"):
            await storage.check()
        assert await listed(storage, "private/smart-assets-check") == {}


async def test_check_finds_public_objects_that_strangers_cannot_read(gcs: Gcs, proxy: GcsProxy) -> None:
    proxy.open_to_all.discard((gcs.bucket, "public/"))
    async with connected(gcs, public_access="policy") as storage:
        with pytest.raises(StorageError, match="strangers cannot read public objects"):
            await storage.check()
        assert await listed(storage, "public/smart-assets-check") == {}


@pytest.mark.parametrize("verb", ["create", "get", "delete"])
async def test_check_finds_a_permission_that_is_missing(gcs: Gcs, proxy: GcsProxy, verb: str) -> None:
    proxy.account.permissions.discard(f"storage.objects.{verb}")
    async with connected(gcs) as storage:
        with pytest.raises(StorageError, match=r"roles/storage\.objectUser"):
            await storage.check()


async def test_what_others_keep_in_the_bucket_is_not_listed(gcs: Gcs, proxy: GcsProxy, key: str) -> None:
    folder = key.rpartition("/")[0]
    prefix = f"team-{uuid4()}"
    async with (
        connected(gcs, prefix=prefix) as storage,
        connected(gcs) as others,
    ):
        await storage.upload(key, image(), content_type=PNG)
        await others.upload(f"{prefix}-2/{key}", image(), content_type=PNG)
        proxy.put(gcs.bucket, f"{prefix}/{folder}/")  # as the console makes a folder
        assert list(await listed(storage, "")) == [key]
        assert await listed(storage, with_visibility(key, Visibility.PUBLIC)) == {}
