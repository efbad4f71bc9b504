"""Objects in containers of Azure Blob Storage, against a server that checks signatures and conditions."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import httpx
import pytest
import requests
from azure.core.credentials import AccessToken
from azure.storage.blob import AccountSasPermissions, BlobServiceClient, ResourceTypes, generate_account_sas

from smart_assets.settings import AzureSettings
from smart_assets.storage import azure
from smart_assets.storage.azure import AzureStorage
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import ObjectExists, StorageError, StorageUnavailable, Unsupported
from smart_assets.storage.keys import Visibility, with_visibility
from tests.contracts.remote import Connect, RemoteStorageContract
from tests.contracts.storage import PNG, image, large_image, listed, read
from tests.live.azurite import ACCOUNT, AzureServer, running
from tests.live.process import program

KiB = 1024
CACHE_SECONDS = 3600
RUN = uuid4().hex[:8]
WRONG_KEY = b64encode(b"not the account's key").decode()

IN_BLOCKS = {"single_put_bytes": 64 * KiB, "block_bytes": 64 * KiB}
"""Everything but the smallest images is sent in blocks."""


def settings_for(server: AzureServer, **more: Any) -> AzureSettings:
    return AzureSettings(**{"connection_string": server.connection_string, "container": server.container, **more})


class AzureContract(RemoteStorageContract):
    """A subclass says in `more` what else is set."""

    objects_past_one_page = 101

    @pytest.fixture(autouse=True)
    def _small_pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(azure, "_PAGE", 100)

    @pytest.fixture
    def more(self, azurite: AzureServer) -> dict[str, Any]:
        return {}

    @pytest.fixture
    def connect(self, azurite: AzureServer, more: dict[str, Any]) -> Connect:
        self._server = azurite

        def connect(
            *,
            address: str | None = None,
            wrong_secret: bool = False,
            missing_bucket: bool = False,
            timeout_seconds: float = 30.0,
        ) -> StorageBackend:
            text = azurite.connection_string
            if address is not None and azurite.address is not None:
                text = text.replace(azurite.address, address)
            if wrong_secret:
                parts = [part for part in text.split(";") if not part.startswith("AccountKey=")]
                text = ";".join([*parts, f"AccountKey={WRONG_KEY}"])
            given = {**more, "connection_string": text, "timeout_seconds": timeout_seconds}
            if missing_bucket:
                given |= {"container": "there-is-none", "public_container": "nor-is-this"}
            return AzureStorage("azure", settings_for(azurite, **given), public_cache_seconds=CACHE_SECONDS)

        return connect

    @pytest.fixture
    def server_address(self, azurite: AzureServer) -> str | None:
        return azurite.address

    @pytest.fixture
    def folder(self) -> str:
        return f"private/contract-{RUN}-{uuid4()}"

    async def unfinished(self, storage: StorageBackend) -> list[str]:
        def look() -> list[str]:
            with self._server.client() as client:
                return [
                    name
                    for container in {self._server.container, self._server.public_container}
                    for name in uncommitted(client, container)
                    if RUN in name
                ]

        return await anyio.to_thread.run_sync(look)


def uncommitted(client: BlobServiceClient, container: str) -> set[str]:
    """The names under which there is nothing but blocks."""
    blobs = client.get_container_client(container)
    return {blob.name for blob in blobs.list_blobs(include="uncommittedblobs")} - {
        blob.name for blob in blobs.list_blobs()
    }


class TestAzure(AzureContract):
    secrets = (WRONG_KEY,)


class TestAzureWithAPublicContainer(AzureContract):
    heavy = False

    @pytest.fixture
    def more(self, azurite: AzureServer) -> dict[str, Any]:
        return {"public_container": azurite.public_container, "public_access": "policy"}


class TestAzureInBlocksBelowAPrefix(AzureContract):
    heavy = False

    @pytest.fixture
    def more(self, azurite: AzureServer) -> dict[str, Any]:
        # Blocks are larger than what a connection carries before a fault meets it.
        return {
            "single_put_bytes": 64 * KiB,
            "block_bytes": 2048 * KiB,
            "prefix": f"teams/{RUN} ö+%20/",
            "access_tier": "Cool",
        }


# ── What is Azure's own ─────────────────────────────────────────────────────────────────────────────────────────────

Make = Callable[..., AzureStorage]


@pytest.fixture
async def make(azurite: AzureServer) -> AsyncIterator[Make]:
    """Makes backends of the settings given, and closes them."""
    made: list[AzureStorage] = []

    def make(**more: Any) -> AzureStorage:
        made.append(AzureStorage("azure", settings_for(azurite, **more), public_cache_seconds=CACHE_SECONDS))
        return made[-1]

    yield make
    for storage in made:
        await storage.close()


@pytest.fixture
def service(azurite: AzureServer) -> Iterator[BlobServiceClient]:
    with azurite.client() as client:
        yield client


@pytest.fixture
def key() -> str:
    return f"private/{RUN}-{uuid4()}/image.png"


@pytest.fixture
def public_key(key: str) -> str:
    return with_visibility(key, Visibility.PUBLIC)


@pytest.fixture
async def stranger() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        yield client


@pytest.mark.parametrize("way", [{}, IN_BLOCKS], ids=["one piece", "blocks"])
async def test_a_blob_carries_the_md5_of_the_whole_its_type_and_its_tier(
    make: Make, service: BlobServiceClient, azurite: AzureServer, key: str, tmp_path: Path, way: dict[str, int]
) -> None:
    file = tmp_path / "upload"
    file.write_bytes(image(1, 200))
    stored = await make(**way, access_tier="Cool", prefix="pre/fix").upload(key, file, content_type=PNG)
    there = service.get_blob_client(azurite.container, f"pre/fix/{key}").get_blob_properties()
    assert bytes(there.content_settings.content_md5 or b"") == hashlib.md5(image(1, 200)).digest()
    assert there.content_settings.content_type == PNG
    assert there.content_settings.content_disposition == "inline"
    assert there.content_settings.cache_control == "private, no-cache"
    assert str(there.blob_tier) == "Cool"
    assert there.etag.strip('"') == stored.etag
    assert there.last_modified == stored.modified


async def test_upload_stat_and_list_tell_the_same_etag(make: Make, key: str) -> None:
    for name, way in (("piece", {}), ("blocks", IN_BLOCKS)):
        storage = make(**way)
        stored = await storage.upload(f"{key}.{name}", image(1, 200), content_type=PNG)
        assert stored.etag
        assert '"' not in stored.etag
        found = await storage.stat(stored.key)
        assert found == stored == (await listed(storage, stored.key))[stored.key]


async def test_of_many_writers_in_blocks_one_wins_and_the_blob_is_all_its_own(make: Make, key: str) -> None:
    storage, winners = make(**IN_BLOCKS), []

    async def write(seed: int) -> None:
        with suppress(ObjectExists):
            await storage.upload(key, image(seed, 300), content_type=PNG)
            winners.append(seed)

    async with anyio.create_task_group() as group:
        for seed in range(12):
            group.start_soon(write, seed)
    assert len(winners) == 1
    assert await read(storage, key) == image(winners[0], 300)


async def test_of_a_writer_in_one_piece_and_one_in_blocks_one_wins(make: Make, key: str) -> None:
    storages = [make(), make(**IN_BLOCKS)]
    for turn in range(5):
        results = await asyncio.gather(
            *(
                storage.upload(f"{key}.{turn}", image(seed, 200), content_type=PNG)
                for seed, storage in enumerate(storages)
            ),
            return_exceptions=True,
        )
        [winner] = [seed for seed, result in enumerate(results) if not isinstance(result, Exception)]
        assert await read(storages[0], f"{key}.{turn}") == image(winner, 200)


async def test_a_taken_key_is_refused_before_any_block_is_sent(
    make: Make, service: BlobServiceClient, azurite: AzureServer, key: str
) -> None:
    storage = make(**IN_BLOCKS)
    await storage.upload(key, image(), content_type=PNG)
    with pytest.raises(ObjectExists):
        await storage.upload(key, large_image(), content_type=PNG)
    assert service.get_blob_client(azurite.container, key).get_block_list("uncommitted")[1] == []


def lose_answers(storage: AzureStorage, method: str, address_has: str, *, count: int = 1) -> list[str]:
    """Let that many requests be answered, and the answers be lost on the way; which they were is in the list."""
    request = storage._session.request
    lost: list[str] = []

    def losing(verb: str, url: str, **options: Any) -> requests.Response:
        answer = request(verb, url, **options)
        if verb == method and address_has in url and len(lost) < count:
            lost.append(url)
            answer.close()
            raise requests.exceptions.ReadTimeout
        return answer

    storage._session.request = losing  # type: ignore[assignment, method-assign]
    return lost


@pytest.mark.parametrize(
    ("way", "address_has"), [({}, "image.png"), (IN_BLOCKS, "comp=blocklist")], ids=["one piece", "blocks"]
)
async def test_a_write_whose_answer_was_lost_is_recognised_when_it_is_sent_again(
    make: Make, key: str, way: dict[str, int], address_has: str
) -> None:
    storage = make(**way)
    lost = lose_answers(storage, "PUT", address_has)
    stored = await storage.upload(key, image(1, 200), content_type=PNG)
    assert len(lost) == 1
    assert stored == await storage.stat(key)
    with pytest.raises(ObjectExists):  # and another's, of the same bytes, is not taken for it
        await storage.upload(key, image(1, 200), content_type=PNG)


async def test_a_move_whose_answer_was_lost_is_made(make: Make, key: str, public_key: str) -> None:
    storage = make()
    await storage.upload(key, image(), content_type=PNG)
    lost = lose_answers(storage, "PUT", "public/")
    assert (await storage.set_visibility(key, Visibility.PUBLIC)).key == public_key
    assert lost
    assert not await storage.exists(key)
    assert await read(storage, public_key) == image()


async def test_a_failed_upload_leaves_no_blob_and_clean_up_takes_its_blocks_too(
    make: Make, service: BlobServiceClient, azurite: AzureServer, key: str
) -> None:
    storage = make(**IN_BLOCKS)
    storage.late_write_seconds = 0  # that it may still land is the base class's business
    lost = lose_answers(storage, "PUT", "comp=block&", count=2)
    with pytest.raises(StorageUnavailable):
        await storage.upload(key, large_image(), content_type=PNG)
    assert len(lost) == 2
    assert not await storage.exists(key)
    assert await listed(storage, key) == {}
    assert uncommitted(service, azurite.container) >= {key}
    assert await storage.cleanup_failed_assets([key]) == ()
    assert key not in uncommitted(service, azurite.container)
    blob = service.get_blob_client(azurite.container, key)
    blob.stage_block("x" * 37, b"x")
    assert [block.id for block in blob.get_block_list("uncommitted")[1]] == ["x" * 37], "the others are gone"
    blob.commit_block_list([])
    assert await storage.delete(key)


async def test_clean_up_of_what_was_never_written_makes_nothing(make: Make, key: str) -> None:
    storage = make()
    seen = lose_answers(storage, "PUT", "", count=9)
    assert await storage.cleanup_failed_assets([key]) == ()
    assert seen == []


async def test_an_object_that_was_replaced_while_it_is_read_is_not_mixed_with_the_other(
    make: Make, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure, "_CHUNK_BYTES", 64 * KiB)
    storage = make()
    await storage.upload(key, image(1, 300), content_type=PNG)
    async with aclosing(storage.open(key)) as chunks:
        assert image(1, 300).startswith(await anext(chunks))
        await storage.delete(key)
        await storage.upload(key, image(2, 300), content_type=PNG)
        with pytest.raises(StorageUnavailable):
            await anext(chunks)


async def test_a_blob_with_snapshots_is_deleted_with_them(
    make: Make, service: BlobServiceClient, azurite: AzureServer, key: str
) -> None:
    storage = make()
    await storage.upload(key, image(), content_type=PNG)
    service.get_blob_client(azurite.container, key).create_snapshot()
    assert await storage.delete(key)
    blobs = service.get_container_client(azurite.container).list_blobs(key, include=["snapshots"])
    assert list(blobs) == []


# ── Moving ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("copy", ["synchronous", "asynchronous"])
@pytest.mark.parametrize("containers", [1, 2])
async def test_a_move_keeps_bytes_type_md5_and_tier_and_rewrites_the_cache_rule(
    make: Make,
    service: BlobServiceClient,
    azurite: AzureServer,
    key: str,
    public_key: str,
    containers: int,
    copy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if copy == "asynchronous":
        monkeypatch.setattr(azure, "_SYNCHRONOUS_COPY_BYTES", 0)
    target = azurite.public_container if containers == 2 else azurite.container
    storage = make(public_container=target, access_tier="Cool", **IN_BLOCKS)
    await storage.upload(key, image(1, 200), content_type=PNG)
    moved = await storage.set_visibility(key, Visibility.PUBLIC)
    there = service.get_blob_client(target, public_key).get_blob_properties()
    assert bytes(there.content_settings.content_md5 or b"") == hashlib.md5(image(1, 200)).digest()
    assert there.content_settings.content_type == PNG
    assert there.content_settings.content_disposition == "inline"
    assert there.content_settings.cache_control == f"public, max-age={CACHE_SECONDS}"
    assert str(there.blob_tier) == "Cool"
    assert moved == await storage.stat(public_key)
    assert await read(storage, public_key) == image(1, 200)
    assert not await storage.exists(key)


async def test_a_move_that_was_broken_off_is_carried_to_its_end(
    make: Make, service: BlobServiceClient, azurite: AzureServer, key: str, public_key: str
) -> None:
    storage = make()
    await storage.upload(key, image(), content_type=PNG)
    source = service.get_blob_client(azurite.container, key)
    left_over = service.get_blob_client(azurite.container, public_key)
    left_over.upload_blob(source.download_blob().readall())
    moved = await storage.set_visibility(key, Visibility.PUBLIC)
    assert moved == await storage.stat(public_key)
    assert moved.content_type == PNG
    there = left_over.get_blob_properties().content_settings
    assert (there.content_type, there.cache_control) == (PNG, f"public, max-age={CACHE_SECONDS}")
    assert not await storage.exists(key)


async def test_a_move_of_what_somebody_else_stored_without_an_md5_still_overwrites_nothing(
    make: Make, service: BlobServiceClient, azurite: AzureServer, key: str, public_key: str
) -> None:
    storage = make()
    for name in (key, public_key):
        blob = service.get_blob_client(azurite.container, name)
        blob.stage_block("block", name.encode())
        blob.commit_block_list(["block"])  # type: ignore[list-item]
    with pytest.raises(ObjectExists):
        await storage.set_visibility(key, Visibility.PUBLIC)
    assert await read(storage, key) == key.encode()
    assert await storage.delete(public_key)
    assert (await storage.set_visibility(key, Visibility.PUBLIC)).size == len(key)


# ── Two containers ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_public_objects_lie_in_their_own_container_and_lists_look_where_keys_may_be(
    make: Make,
    service: BlobServiceClient,
    azurite: AzureServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(azure, "_PAGE", 2)
    prefix = f"{RUN}-{uuid4()}/"
    storage = make(public_container=azurite.public_container, prefix=prefix)
    keys = {f"{visibility}/{number}.png" for visibility in Visibility for number in range(5)}
    for key in keys | {"other/1.png", "pu/1.png", "publicity/1.png"}:
        await storage.upload(key, image(), content_type=PNG)
    names = {blob.name for blob in service.get_container_client(azurite.public_container).list_blobs(prefix)}
    assert names == {f"{prefix}public/{number}.png" for number in range(5)}
    # Left from before there was a container for it: nothing leads there any more.
    service.get_blob_client(azurite.container, f"{prefix}public/old.png").upload_blob(b"old")
    everything = keys | {"other/1.png", "pu/1.png", "publicity/1.png"}
    for asked in ("", "p", "pu", "public", "public/", "public/1", "private/", "other", "x"):
        assert (await listed(storage, asked)).keys() == {key for key in everything if key.startswith(asked)}, asked


async def test_what_others_keep_in_the_container_is_none_of_its_business(make: Make, key: str) -> None:
    one, other = make(prefix=f"{RUN}/one"), make(prefix=f"{RUN}/other")
    await one.upload(key, image(1), content_type=PNG)
    await other.upload(key, image(2), content_type=PNG)
    assert (await listed(one, "")).keys() == {key}
    assert await other.delete(key)
    assert await read(one, key) == image(1)


# ── Checking ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_check_leaves_nothing(make: Make) -> None:
    storage = make(prefix=f"{RUN}-{uuid4()}")
    await storage.check()
    assert await listed(storage, "") == {}


async def test_a_container_of_private_objects_that_anybody_may_read_is_an_error(
    make: Make, azurite: AzureServer
) -> None:
    with pytest.raises(StorageError, match="anybody can fetch private objects"):
        await make(container=azurite.public_container).check()


async def test_a_public_container_that_is_closed_is_an_error_where_it_is_said_to_be_open(
    make: Make, azurite: AzureServer
) -> None:
    open_to_all = make(public_container=azurite.public_container, public_access="policy")
    await open_to_all.check()
    with pytest.raises(StorageError, match="strangers are refused"):
        await make(public_container=azurite.container, public_access="policy").check()
    await make(public_container=azurite.container).check()


async def test_a_cdn_that_shows_private_objects_is_an_error(make: Make, azurite: AzureServer) -> None:
    if azurite.address is None:
        pytest.skip("needs a server in which containers may be opened")
    container = azurite.new_container(is_open=True)
    public_url = f"{azurite.address}/{ACCOUNT}/{container}"
    await make(public_container=container, public_url=public_url).check()
    with pytest.raises(StorageError, match="anybody can fetch private objects"):
        await make(container=container, public_url=public_url).check()


# ── Signed URLs ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_urls_are_signed_for_where_callers_reach_the_account(
    make: Make, azurite: AzureServer, key: str, public_key: str, stranger: httpx.AsyncClient
) -> None:
    if azurite.address is None:
        pytest.skip("a real account has one address")
    outside = f"{azurite.address.replace('127.0.0.1', 'localhost')}/{ACCOUNT}"
    storage = make(
        signing_endpoint_url=outside, public_container=azurite.public_container, public_access="policy", prefix="ö/ü"
    )
    await storage.upload(key, image(), content_type=PNG)
    await storage.upload(public_key, image(), content_type=PNG)
    signed, public = (await storage.generate_signed_url(key, 60)).url, storage.url(public_key)
    for url in (signed, public):
        assert url is not None
        assert url.startswith(f"{outside}/")
        assert (await stranger.get(url)).content == image()
    await storage.check()


async def test_with_a_shared_access_signature_it_works_but_signs_no_urls(
    make: Make, azurite: AzureServer, key: str
) -> None:
    parts = dict(part.split("=", 1) for part in azurite.connection_string.split(";"))
    signature = generate_account_sas(
        parts["AccountName"],
        parts["AccountKey"],
        ResourceTypes(container=True, object=True),
        AccountSasPermissions(read=True, write=True, delete=True, list=True, create=True),
        datetime.now(UTC) + timedelta(hours=1),
    )
    storage = make(connection_string=f"BlobEndpoint={parts['BlobEndpoint']};SharedAccessSignature={signature}")
    await storage.check()
    await storage.upload(key, image(), content_type=PNG)
    await storage.set_visibility(key, Visibility.PUBLIC)
    assert (await storage.set_visibility(with_visibility(key, Visibility.PUBLIC), Visibility.PRIVATE)).key == key
    assert await read(storage, key) == image()
    with pytest.raises(Unsupported):
        await storage.generate_signed_url(key)
    assert await storage.delete(key)


# ── Tokens instead of keys ──────────────────────────────────────────────────────────────────────────────────────────


class DirectoryOfOurs:
    """Stands for Azure's default chain: gives tokens that Azurite takes, which looks at all but their signature."""

    def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        now = int(time.time())
        claims = {
            "aud": "https://storage.azure.com",
            "iss": "https://sts.windows.net/tenant/",
            "iat": now,
            "nbf": now - 60,
            "exp": now + 3600,
            "oid": "object-id",
            "tid": "tenant-id",
        }
        parts = [urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "none"}, claims)]
        return AccessToken(b".".join([*parts, b"c2lnbmF0dXJl"]).decode(), now + 3600)

    def close(self) -> None:
        pass


@pytest.fixture
def over_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AzureServer]:
    """An Azurite that takes tokens, which it does over HTTPS only."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    # fmt: off
    subprocess.run(
        [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )
    # fmt: on
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.setattr("azure.identity.DefaultAzureCredential", DirectoryOfOurs)
    with running(tmp_path, "--oauth", "basic", "--cert", certificate, "--key", key) as server:
        with server.client() as client:
            client.create_container(server.container)
            client.create_container(server.public_container, public_access="blob")
        yield server


async def test_with_tokens_it_works_and_asks_for_one_key_to_sign_many_urls(over_https: AzureServer, key: str) -> None:
    # That the service takes what such a key signed is not shown here: Azurite 3.35.0 leaves two fields out of what it
    # verifies that the SDK's version has. `tests/storage/test_azure.py` verifies it by the book.
    settings = AzureSettings(
        account_url=f"{over_https.address}/{ACCOUNT}",
        container=over_https.container,
        public_container=over_https.public_container,
        public_access="policy",
        **IN_BLOCKS,
    )
    storage = AzureStorage("azure", settings, public_cache_seconds=CACHE_SECONDS)
    asked = lose_answers(storage, "POST", "comp=userdelegationkey", count=1)
    try:
        await storage.upload(key, image(1, 200), content_type=PNG)
        await storage.set_visibility(key, Visibility.PUBLIC)
        await storage.set_visibility(with_visibility(key, Visibility.PUBLIC), Visibility.PRIVATE)
        assert await read(storage, key) == image(1, 200)
        urls = await asyncio.gather(*(storage.generate_signed_url(key, 86_400) for _call in range(20)))
        assert len({signed.url for signed in urls}) == 1
        week = await storage.generate_signed_url(key, 604_800)
        assert week.expires_at <= datetime.now(UTC) + timedelta(days=7)
        assert "skoid=object-id" in week.url
        assert "spr=https" in week.url
        assert len(asked) == 1, "its answer was lost, so it was asked for again, and that was all"
        assert await storage.delete(key)
    finally:
        await storage.close()
