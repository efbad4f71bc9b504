"""Objects in S3 buckets, on a server that checks signatures, policies, conditions and checksums."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from smart_assets.settings import S3Settings
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import StorageError, StorageUnavailable
from smart_assets.storage.keys import Visibility
from smart_assets.storage.s3 import S3Storage
from tests.contracts.remote import Connect, RemoteStorageContract
from tests.contracts.storage import PNG, image, inapplicable, large_image, listed
from tests.live.seaweed import S3Server
from tests.wire import Wire

MiB = 1024 * 1024
PREFIX = "/some where/ünd+so%20/"
IN_PARTS = {"multipart_bytes": 5 * MiB, "part_bytes": 5 * MiB}


def s3(server: S3Server, **settings: Any) -> S3Storage:
    """A backend for the server's bucket; `settings` are those of the S3 group."""
    given = {
        "bucket": server.bucket,
        "region": server.region,
        "endpoint_url": server.endpoint_url,
        "access_key_id": server.access_key_id,
        "secret_access_key": server.secret_access_key,
        **settings,
    }
    return S3Storage("s3", S3Settings(**given), public_cache_seconds=3600)


@asynccontextmanager
async def opened(server: S3Server, **settings: Any) -> AsyncIterator[S3Storage]:
    storage = s3(server, **settings)
    yield storage
    await storage.close()


@pytest.fixture
def administrator(seaweed: S3Server) -> Iterator[Any]:
    """The SDK's own client."""
    with closing(seaweed.client()) as client:
        yield client


@pytest.fixture(scope="module")
def open_bucket(seaweed: S3Server) -> str:
    """One of whose objects strangers may read those under `site/public/`."""
    return seaweed.new_bucket(open_prefix="site/public/")


@pytest.fixture(scope="module")
def public_bucket(seaweed: S3Server) -> str:
    """One of whose objects strangers may read all."""
    return seaweed.new_bucket(open_prefix="")


@pytest.fixture
def key() -> str:
    return f"private/{uuid4()}.png"


class S3Contract(RemoteStorageContract):
    """A subclass says in `more` what else is set."""

    secrets = ("key-",)

    @pytest.fixture
    def more(self) -> dict[str, Any]:
        return {}

    @pytest.fixture
    def connect(self, seaweed: S3Server, more: dict[str, Any]) -> Connect:
        def connect(
            *,
            address: str | None = None,
            wrong_secret: bool = False,
            missing_bucket: bool = False,
            timeout_seconds: float = 30.0,
        ) -> StorageBackend:
            wrong: dict[str, Any] = {"endpoint_url": address} if address is not None else {}
            if wrong_secret:
                wrong["secret_access_key"] = "not the secret"
            if missing_bucket:
                wrong |= {"bucket": "there-is-none", "public_bucket": None}
            return s3(seaweed, **(more | wrong | {"timeout_seconds": timeout_seconds}))

        return connect

    @pytest.fixture
    def server_address(self, seaweed: S3Server) -> str | None:
        return seaweed.endpoint_url if seaweed.is_ours else None

    async def unfinished(self, storage: StorageBackend) -> list[str]:
        assert isinstance(storage, S3Storage)
        pages = storage._client().get_paginator("list_multipart_uploads").paginate(Bucket=storage._buckets[0])
        return [upload["UploadId"] for page in pages for upload in page.get("Uploads", ())]


class TestS3(S3Contract):
    """As it is by default: as a whole."""


class TestS3InParts(S3Contract):
    """Large ones in parts."""

    heavy = False

    @pytest.fixture
    def more(self) -> dict[str, Any]:
        return IN_PARTS

    @pytest.fixture(autouse=True)
    def _but_for_a_race(self, seaweed: S3Server, request: pytest.FixtureRequest) -> None:
        sentence = self.test_of_many_writers_to_one_key_exactly_one_wins.__name__
        if seaweed.is_ours and request.node.name.startswith(sentence) and "8 MB" in request.node.name:
            inapplicable("of several conditional completions of one key SeaweedFS 4.48 lets more than one through")


class S3SetUpOtherwise(S3Contract):
    """In another way: what happens on the way to the server is the same in all of them."""

    heavy = False

    @pytest.fixture
    def wire(self) -> Wire:
        inapplicable("said of this backend elsewhere")


class TestS3OpenByPolicy(S3SetUpOtherwise):
    """Strangers may read what is public, at the bucket."""

    @pytest.fixture
    def more(self, open_bucket: str) -> dict[str, Any]:
        return {"bucket": open_bucket, "prefix": "site", "public_access": "policy"}


class TestS3WithAPublicBucket(S3SetUpOtherwise):
    """Public objects lie in a bucket of their own."""

    @pytest.fixture
    def more(self, public_bucket: str) -> dict[str, Any]:
        return {"public_bucket": public_bucket, "public_access": "policy"}


class TestS3Virtual(S3SetUpOtherwise):
    """The bucket in the host's name, as AWS wants it; and keys under a prefix of every kind of characters."""

    @pytest.fixture
    def more(self, seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        if not seaweed.is_ours:
            return {"addressing_style": "virtual", "prefix": PREFIX}
        real = socket.getaddrinfo

        def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
            # Not every system knows that all of `localhost` is this machine.
            name = host.decode() if isinstance(host, bytes) else host
            return real("127.0.0.1" if str(name).endswith("localhost") else host, *args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        endpoint = f"http://localhost:{urlsplit(str(seaweed.endpoint_url)).port}"
        return {"addressing_style": "virtual", "prefix": PREFIX, "endpoint_url": endpoint}


# ── How objects are written ─────────────────────────────────────────────────────────────────────────────────────────

WRITTEN_WITH = {
    "encryption": "AES256",
    "storage_class": "STANDARD_IA",
    "extra_args": {"Metadata": {"album": "7"}, "Tagging": "team=web"},
}


@pytest.mark.parametrize("data", [image(), large_image()], ids=["whole", "in parts"])
async def test_an_object_is_written_and_moved_as_the_settings_say(
    seaweed: S3Server, administrator: Any, key: str, data: bytes
) -> None:
    async with opened(seaweed, **IN_PARTS, **WRITTEN_WITH) as storage:
        stored = await storage.upload(key, data, content_type=PNG)
        found = [administrator.head_object(Bucket=seaweed.bucket, Key=key)]
        assert found[0]["ETag"].strip('"') == stored.etag
        moved = await storage.set_visibility(key, Visibility.PUBLIC)
        found.append(administrator.head_object(Bucket=seaweed.bucket, Key=moved.key))
        for head, cache in zip(found, ("private, no-cache", "public, max-age=3600"), strict=True):
            assert (head["ServerSideEncryption"], head["StorageClass"]) == ("AES256", "STANDARD_IA")
            assert (head["ContentType"], head["ContentDisposition"], head["CacheControl"]) == (PNG, "inline", cache)
            assert head["Metadata"]["album"] == "7"
        tags = administrator.get_object_tagging(Bucket=seaweed.bucket, Key=moved.key)["TagSet"]
        assert tags == [{"Key": "team", "Value": "web"}]
        assert await storage.delete(moved.key)


async def test_public_objects_lie_in_the_bucket_of_their_own_and_no_others(
    seaweed: S3Server, administrator: Any, key: str
) -> None:
    public_bucket = seaweed.new_bucket(open_prefix="")
    async with opened(seaweed, public_bucket=public_bucket, prefix="site") as storage:
        await storage.upload(key, image(), content_type=PNG)
        public = (await storage.set_visibility(key, Visibility.PUBLIC)).key

        def keys(bucket: str) -> list[str]:
            found = administrator.list_objects_v2(Bucket=bucket, Prefix="site/")
            return [entry["Key"] for entry in found.get("Contents", ())]

        assert (keys(seaweed.bucket), keys(public_bucket)) == ([], [f"site/{public}"])
        assert storage.url(public) is None, "that bucket is not said to be open"
        for prefix in ("", "p", "public", "public/", public):
            assert list(await listed(storage, prefix)) == [public]
        assert await listed(storage, "private/") == {}
        await storage.set_visibility(public, Visibility.PRIVATE)
        assert (keys(seaweed.bucket), keys(public_bucket)) == ([f"site/{key}"], [])
        assert await storage.delete(key)


async def test_what_others_keep_in_the_bucket_is_not_listed(seaweed: S3Server, administrator: Any) -> None:
    bucket, public_bucket = seaweed.new_bucket(), seaweed.new_bucket(open_prefix="")
    for key in ("other.png", "site2/a.png", "site/", "site/private/folder/"):
        administrator.put_object(Bucket=bucket, Key=key, Body=b"")
    administrator.put_object(Bucket=public_bucket, Key="site/private/a.png", Body=b"")
    async with opened(seaweed, bucket=bucket, public_bucket=public_bucket, prefix="site") as storage:
        await storage.upload("private/mine.png", image(), content_type=PNG)
        assert list(await listed(storage, "")) == ["private/mine.png"]
        assert await storage.delete("private/mine.png")


# ── What is found out ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_the_server_can_is_declared_when_it_is_known(seaweed: S3Server) -> None:
    async with opened(seaweed) as storage:
        assert not storage.capabilities.create_if_absent
        assert not storage.capabilities.verifies_writes
        await storage.check()
        assert storage.capabilities.create_if_absent
        assert storage.capabilities.verifies_writes


async def test_finding_out_and_checking_leave_nothing(seaweed: S3Server, administrator: Any) -> None:
    bucket = seaweed.new_bucket(open_prefix="public/")
    async with opened(seaweed, bucket=bucket, public_access="policy") as storage:
        await storage.check()
    assert "Contents" not in administrator.list_objects_v2(Bucket=bucket)
    assert "Uploads" not in administrator.list_multipart_uploads(Bucket=bucket)


@pytest.mark.parametrize(
    ("open_prefix", "settings", "told"),
    [
        ("", {}, "anybody can read private objects"),
        (None, {"public_access": "policy"}, r"a bucket policy that allows everybody s3:GetObject on `public/\*`"),
        ("public/", {"public_access": "policy", "prefix": "site"}, r"on `site/public/\*`"),
        (None, {"public_access": "acl"}, "needs to take ACLs"),
    ],
)
async def test_a_bucket_that_is_not_as_open_as_the_settings_say_fails_the_check(
    seaweed: S3Server, open_prefix: str | None, settings: dict[str, Any], told: str
) -> None:
    bucket = seaweed.new_bucket(open_prefix=open_prefix)
    async with opened(seaweed, bucket=bucket, **settings) as storage:
        with pytest.raises(StorageError, match=told):
            await storage.check()
        await storage.ping()


# ── Uploads in parts ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_parts_that_could_not_be_removed_go_with_the_clean_up(
    seaweed: S3Server, administrator: Any, key: str
) -> None:
    bucket = seaweed.new_bucket()

    def unfinished() -> list[str]:
        return [upload["Key"] for upload in administrator.list_multipart_uploads(Bucket=bucket).get("Uploads", ())]

    address = urlsplit(str(seaweed.endpoint_url))
    async with (
        Wire(str(address.hostname), int(address.port or 80)) as wire,
        opened(seaweed, bucket=bucket, endpoint_url=wire.address, timeout_seconds=1, **IN_PARTS) as storage,
    ):
        await storage.upload(f"{key}.first", image(), content_type=PNG)
        midway = wire.stall(up=6 * MiB)
        uploading = asyncio.create_task(storage.upload(key, large_image(), content_type=PNG))
        await midway.reached.wait()
        wire.refuse()
        storage.late_write_seconds = 0  # that it may still land is the base class's business
        with pytest.raises(StorageUnavailable):
            await uploading
        assert unfinished() == [key]
        assert await storage.cleanup_failed_assets([key]) == (key,)
        wire.restore()
        assert await storage.cleanup_failed_assets([key]) == ()
        assert unfinished() == []


# ── Addresses ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_signed_and_public_addresses_are_those_callers_reach(seaweed: S3Server, open_bucket: str) -> None:
    address = urlsplit(str(seaweed.endpoint_url))
    async with (
        Wire(str(address.hostname), int(address.port or 80)) as wire,
        opened(
            seaweed,
            bucket=open_bucket,
            prefix="site",
            public_access="policy",
            signing_endpoint_url=wire.address,
        ) as storage,
        httpx.AsyncClient(trust_env=False) as stranger,
    ):
        await storage.upload("public/a b.png", image(), content_type=PNG)
        url = storage.url("public/a b.png")
        assert url == f"{wire.address}/{open_bucket}/site/public/a%20b.png"
        assert (await stranger.get(url)).content == image()
        await storage.set_visibility("public/a b.png", Visibility.PRIVATE)
        signed = (await storage.generate_signed_url("private/a b.png")).url
        assert signed.startswith(f"{wire.address}/{open_bucket}/site/private/a%20b.png?")
        assert (await stranger.get(signed)).content == image()
        assert await storage.delete("private/a b.png")


async def test_a_cdn_stands_for_the_public_objects_only(seaweed: S3Server, open_bucket: str) -> None:
    cdn = f"{seaweed.endpoint_url}/{open_bucket}/site"  # a path of the bucket does for one
    async with (
        opened(seaweed, bucket=open_bucket, prefix="site", public_url=cdn) as storage,
        httpx.AsyncClient(trust_env=False) as stranger,
    ):
        await storage.upload("public/żółć+%#?.png", image(), content_type=PNG)
        url = storage.url("public/żółć+%#?.png")
        assert url is not None
        assert url.startswith(f"{cdn}/public/")
        assert (await stranger.get(url)).content == image()
        assert storage.url("private/a.png") is None
        assert await storage.delete("public/żółć+%#?.png")
