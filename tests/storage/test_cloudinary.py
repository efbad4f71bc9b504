"""Objects at Cloudinary, that is at our fake of it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import anyio
import cloudinary
import httpx
import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

import smart_assets.storage.cloudinary as module
from smart_assets.settings import CloudinarySettings, MiB
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.cloudinary import CloudinaryStorage, path_of, public_id_of, public_id_prefix_of
from smart_assets.storage.errors import (
    ObjectExists,
    ObjectNotFound,
    ObjectRefused,
    StorageError,
    StorageNotConfigured,
    StorageUnavailable,
    Unsupported,
    WriteNotVerified,
)
from smart_assets.storage.keys import Visibility
from tests.cloudinary_fake import Account, CloudinaryFake, Fault, Hold, cloudinary_fake
from tests.cloudinary_fake import _public_id as as_cloudinary_writes_it
from tests.contracts.remote import Connect, RemoteStorageContract
from tests.contracts.storage import PNG, image, large_image, listed, read
from tests.wire import Wire


@pytest.fixture(scope="module")
def listening() -> Iterator[CloudinaryFake]:
    with cloudinary_fake() as fake:
        yield fake


@pytest.fixture(autouse=True)
def _no_time_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSES", (0, 0))


@pytest.fixture
def fake(listening: CloudinaryFake) -> Iterator[CloudinaryFake]:
    yield listening
    listening.forget()


@pytest.fixture
def account(fake: CloudinaryFake) -> Account:
    return fake.account("demo-cloud")


class ObservedStorage(CloudinaryStorage):
    """Is closed when the fake, which lives in this process too, has hung up as well."""

    fake: CloudinaryFake

    async def close(self) -> None:
        await super().close()
        await self.fake.has_hung_up()


class TestCloudinaryStorage(RemoteStorageContract):
    own_headers = False
    named_downloads = False
    objects_past_one_page = 501

    @pytest.fixture
    def server_address(self, fake: CloudinaryFake) -> str:
        return fake.url

    @pytest.fixture
    def connect(self, fake: CloudinaryFake, account: Account) -> Connect:
        self.secrets = (account.api_key, account.api_secret)

        def connect(
            *,
            address: str | None = None,
            wrong_secret: bool = False,
            missing_bucket: bool = False,
            timeout_seconds: float = 30.0,
        ) -> StorageBackend:
            cloud = "another-cloud" if missing_bucket else account.cloud_name
            storage = ObservedStorage(
                "cloudinary",
                CloudinarySettings(
                    cloud_name=cloud,
                    api_key=account.api_key,
                    api_secret="not-the-secret" if wrong_secret else account.api_secret,
                    api_url=address or fake.url,
                    delivery_url=f"{address or fake.url}/{cloud}",
                    large_bytes=5 * MiB,
                    max_bytes=100_000_000,
                    connect_timeout_seconds=min(timeout_seconds, 5),
                    timeout_seconds=timeout_seconds,
                ),
            )
            storage.fake = fake
            return storage

        return connect

    def unsigned_address(self, storage: StorageBackend, signed_url: str, key: str) -> str:
        assert isinstance(storage, CloudinaryStorage)
        return storage._address(key)


Make = Callable[..., CloudinaryStorage]


@pytest.fixture
async def make(fake: CloudinaryFake, account: Account) -> AsyncIterator[Make]:
    """Makes storages of the account, with other settings where they are given, and closes them; None leaves one out."""
    made: list[CloudinaryStorage] = []

    def make(of: Account = account, **settings: Any) -> CloudinaryStorage:
        given = {
            "cloud_name": of.cloud_name,
            "api_key": of.api_key,
            "api_secret": of.api_secret,
            "api_url": fake.url,
            "delivery_url": f"{fake.url}/{of.cloud_name}",
            "timeout_seconds": 10,
        }
        said = {name: value for name, value in {**given, **settings}.items() if value is not None}
        made.append(CloudinaryStorage("cloudinary", CloudinarySettings.model_validate(said)))
        return made[-1]

    yield make
    for storage in made:
        await storage.close()


@pytest.fixture
def storage(make: Make) -> CloudinaryStorage:
    return make()


@pytest.fixture
async def stranger() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        yield client


def ids(account: Account) -> set[tuple[str, str]]:
    """The type and the public id of everything the account holds."""
    return set(account.assets)


# ── Public ids ──────────────────────────────────────────────────────────────────────────────────────────────────────

PATHS = st.lists(
    st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=12),
    min_size=1,
    max_size=4,
).map("/".join) | st.from_regex(r"(v?[0-9]{0,2}[a_.~-]?/){0,3}v?[0-9]{0,2}[a_.~-]", fullmatch=True)


@given(PATHS)
def test_every_path_has_a_public_id_of_its_own_that_cloudinary_leaves_as_it_is(path: str) -> None:
    public_id = public_id_of(path)
    assert path_of(public_id) == path
    assert re.fullmatch("[A-Za-z0-9/_-]+", public_id)
    if len(public_id) <= 255 and "//" not in f"/{path}/":
        assert as_cloudinary_writes_it(public_id) == public_id


@given(PATHS, st.integers(0, 60))
def test_the_public_ids_of_a_prefix_begin_alike(path: str, length: int) -> None:
    assert public_id_of(path).startswith(public_id_prefix_of(path[:length]))


@given(st.from_regex(r"[a_.%/v0-9A-F-]{0,20}", fullmatch=True))
def test_a_public_id_that_is_not_ours_is_nobodys(public_id: str) -> None:
    path = path_of(public_id)
    assert path is None or public_id_of(path) == public_id


async def test_the_public_id_is_the_key_and_not_the_filename(storage: CloudinaryStorage, account: Account) -> None:
    await storage.upload("public/2026/11/20/a-b.original.png", image(1), content_type=PNG)
    await storage.upload("private/v2/żółć & co.png", image(2), content_type=PNG)
    assert ids(account) == {
        ("upload", "public/2026/11/20/a-b_2Eoriginal_2Epng"),
        ("authenticated", "private/_762/_C5_BC_C3_B3_C5_82_C4_87_20_26_20co_2Epng"),
    }


async def test_a_prefix_keeps_two_apart_that_share_an_account(make: Make, account: Account) -> None:
    one, other = make(prefix="team_one"), make(prefix="team_one/v2")
    for seed, storage in enumerate((one, other)):
        await storage.upload("public/a.png", image(seed), content_type=PNG)
    assert ids(account) == {("upload", "team_5Fone/public/a_2Epng"), ("upload", "team_5Fone/_762/public/a_2Epng")}
    for seed, storage in enumerate((one, other)):
        assert await read(storage, "public/a.png") == image(seed)
    assert list(await listed(other, "")) == ["public/a.png"]
    assert list(await listed(one, "public/")) == ["public/a.png"]


async def test_a_key_whose_public_id_would_be_too_long_is_refused_at_once(make: Make, account: Account) -> None:
    storage = make(prefix="p")
    longest = f"private/{'x' * 245}"
    assert storage.capabilities.max_key_bytes == len(longest) == 253
    await storage.upload(longest, image(), content_type=PNG)
    account.calls.clear()
    for key in (f"{longest}x", f"private/{'x' * 242}.y", f"private/{'写' * 28}"):
        for call in (storage.upload(key, image(), content_type=PNG), storage.stat(key), storage.delete(key)):
            with pytest.raises(Unsupported):
                await call
        assert await storage.cleanup_failed_assets([key]) == ()
    with pytest.raises(Unsupported, match="253 bytes"):
        await storage.set_visibility(f"public/{'x' * 246}", Visibility.PRIVATE)
    assert account.calls == []


async def test_what_others_keep_in_the_account_is_not_listed(storage: CloudinaryStorage, account: Account) -> None:
    for key in ("public/a.png", "private/a.png"):
        await storage.upload(key, image(), content_type=PNG)
    ours = list(account.assets.values())
    for kind, public_id in (
        ("upload", "public/holiday_photo"),
        ("upload", "public/a.png"),
        ("upload", "private/b_2Epng"),
        ("authenticated", "public/b_2Epng"),
        ("upload", "public/_ff"),
        ("upload", "public/_FF"),
        ("upload", "public/_2E_2E"),
        ("upload", "samples/dog"),
    ):
        account.assets[kind, public_id] = type(ours[0])(**{**vars(ours[0]), "kind": kind, "public_id": public_id})
    assert (await listed(storage, "")).keys() == {"public/a.png", "private/a.png"}
    assert (await listed(storage, "pub")).keys() == {"public/a.png"}


# ── The account ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "api", "address"),
    [
        ("cloudinary://K:S@Cloud", "https://api.cloudinary.com", "https://res.cloudinary.com/Cloud"),
        (
            "cloudinary://K:S@cloud?upload_prefix=http://127.0.0.1:9/",
            "http://127.0.0.1:9",
            "https://res.cloudinary.com/cloud",
        ),
        ("cloudinary://K:S@cloud?secure=false", "https://api.cloudinary.com", "https://res.cloudinary.com/cloud"),
        ("cloudinary://K:S@cloud?private_cdn=true", "https://api.cloudinary.com", "https://cloud-res.cloudinary.com"),
        ("cloudinary://K:S@cloud/img.example.com", "https://api.cloudinary.com", "https://img.example.com"),
        (
            "cloudinary://K:S@cloud?secure_distribution=img.example.com",
            "https://api.cloudinary.com",
            "https://img.example.com/cloud",
        ),
    ],
)
async def test_the_account_is_read_from_its_url(url: str, api: str, address: str) -> None:
    storage = CloudinaryStorage("cloudinary", CloudinarySettings.model_validate({"url": url}))
    assert storage.url("public/a.png") == f"{address}/image/upload/v1/public/a_2Epng.png"
    signed = (await storage.generate_signed_url("private/a.png")).url
    assert signed.startswith(f"{api}/v1_1/{'Cloud' if 'Cloud' in url else 'cloud'}/image/download?")
    assert dict(parse_qsl(urlsplit(signed).query))["api_key"] == "K"
    await storage.close()


async def test_key_and_secret_are_percent_decoded(make: Make, account: Account, fake: CloudinaryFake) -> None:
    account.api_secret = "a/b@c:d%"
    url = f"cloudinary://{account.api_key}:a%2Fb%40c%3Ad%25@{account.cloud_name}?upload_prefix={fake.url}"
    storage = make(url=url, cloud_name=None, api_key=None, api_secret=None, api_url=None)
    await storage.check()


async def test_the_account_in_three_parts_goes_before_the_url(make: Make) -> None:
    await make(url="cloudinary://another:account@elsewhere?upload_prefix=http://127.0.0.1:9").check()


@pytest.mark.parametrize(
    "url", ["https://K:S@cloud", "cloudinary://cloud", "cloudinary://K@cloud", "cloudinary://K:S@", "cloudinary"]
)
def test_a_url_that_is_none_is_not_configured(url: str) -> None:
    with pytest.raises(StorageNotConfigured) as caught:
        CloudinaryStorage("cloudinary", CloudinarySettings.model_validate({"url": url}))
    assert caught.value.missing == ("CLOUDINARY_URL",)


async def test_two_accounts_in_one_process_do_not_mix(make: Make, fake: CloudinaryFake, account: Account) -> None:
    other = fake.account("other", signature_algorithm="sha256")
    storages = make(), make(other, signature_algorithm="sha256")

    async def live(storage: CloudinaryStorage, seed: int) -> None:
        for number in range(10):
            key = f"private/{number}.png"
            await storage.upload(key, image(seed), content_type=PNG)
            assert await read(storage, key) == image(seed)
            await storage.set_visibility(key, Visibility.PUBLIC)
            await storage.stat(f"public/{number}.png")

    async with anyio.create_task_group() as group:
        for seed, storage in enumerate(storages):
            group.start_soon(live, storage, seed)
    for seed, holder in enumerate((account, other)):
        assert len(holder.assets) == 10
        assert {asset.data for asset in holder.assets.values()} == {image(seed)}


STORY = """
import asyncio, sys
from smart_assets.settings import load_settings
from smart_assets.storage.factory import get_storage_backend
from smart_assets.storage.keys import Visibility
from tests.contracts.storage import PNG, image, large_image, listed, read

async def main():
    storage = get_storage_backend("cloudinary", load_settings())
    for key, data in (("private/a.png", image()), ("private/b.png", large_image())):
        await storage.upload(key, data, content_type=PNG)
        assert await read(storage, key) == data
        await storage.set_visibility(key, Visibility.PUBLIC)
    assert len(await listed(storage, "public/")) == 2
    await storage.check()
    await storage.ping()
    print((await storage.generate_signed_url("private/a.png")).url)
    for key in ("public/a.png", "public/b.png"):
        assert await storage.delete(key)
    await storage.close()

asyncio.run(main())
"""


def run_story(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", STORY],
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'backend'}", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_nothing_leaks_in_from_the_environment(fake: CloudinaryFake, account: Account, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    done = run_story(
        tmp_path,
        ASSETS_CLOUDINARY__CLOUD_NAME=account.cloud_name,
        ASSETS_CLOUDINARY__API_KEY=account.api_key,
        ASSETS_CLOUDINARY__API_SECRET=account.api_secret,
        ASSETS_CLOUDINARY__API_URL=fake.url,
        ASSETS_CLOUDINARY__DELIVERY_URL=f"{fake.url}/{account.cloud_name}",
        ASSETS_CLOUDINARY__LARGE_BYTES=str(5 * MiB),
        CLOUDINARY_URL=f"cloudinary://another:secret@elsewhere?upload_prefix={nowhere}",
        CLOUDINARY_CLOUD_NAME="elsewhere",
        CLOUDINARY_API_KEY="another",
        CLOUDINARY_API_SECRET="another secret",
        CLOUDINARY_OAUTH_TOKEN="token",
        CLOUDINARY_UPLOAD_PREFIX=nowhere,
        CLOUDINARY_UPLOAD_PRESET="preset",
        CLOUDINARY_API_PROXY=nowhere,
        CLOUDINARY_SIGNATURE_ALGORITHM="sha256",
        CLOUDINARY_SIGNATURE_VERSION="1",
        CLOUDINARY_TIMEOUT="0.000001",
        HTTP_PROXY=nowhere,
        HTTPS_PROXY=nowhere,
        ALL_PROXY=nowhere,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{fake.url}/v1_1/{account.cloud_name}/")
    assert all("upload_preset" not in parameters for parameters in account.called("upload"))
    assert account.assets == {}


def test_the_url_of_the_vendors_own_variable_is_enough(fake: CloudinaryFake, account: Account, tmp_path: Path) -> None:
    done = run_story(
        tmp_path,
        CLOUDINARY_URL=f"cloudinary://{account.api_key}:{account.api_secret}@{account.cloud_name}?upload_prefix={fake.url}",
        ASSETS_CLOUDINARY__DELIVERY_URL=f"{fake.url}/{account.cloud_name}",
    )
    assert done.returncode == 0, done.stderr


def test_a_variable_that_the_sdk_itself_cannot_read_is_named(tmp_path: Path) -> None:
    done = run_story(tmp_path, CLOUDINARY_URL="https://key:secret@cloud")
    assert "StorageNotConfigured: the SDK cannot read CLOUDINARY_URL" in done.stderr


async def test_the_process_wide_configuration_stays_as_it_was(storage: CloudinaryStorage) -> None:
    before = dict(vars(cloudinary._config))
    await storage.check()
    assert vars(cloudinary._config) == before


# ── Writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_bytes_that_are_no_image_are_refused_and_the_detail_says_so(
    storage: CloudinaryStorage, account: Account, tmp_path: Path
) -> None:
    assert not storage.capabilities.arbitrary_bytes
    file = tmp_path / "http:"
    file.write_bytes(b"<svg/>")
    for source in (b"plain words", b"", file):
        with pytest.raises(ObjectRefused, match="takes images only"):
            await storage.upload("public/a.png", source, content_type=PNG)
    assert ids(account) == set()


async def test_a_file_larger_than_the_plan_allows_is_refused_before_and_after(make: Make, account: Account) -> None:
    account.max_bytes = len(image()) - 1
    with pytest.raises(StorageError, match="ASSETS_CLOUDINARY__MAX_BYTES"):
        await make().upload("public/a.png", image(), content_type=PNG)
    account.calls.clear()
    with pytest.raises(Unsupported, match=f"{account.max_bytes} bytes"):
        await make(max_bytes=account.max_bytes).upload("public/a.png", image(), content_type=PNG)
    assert account.calls == []


@pytest.mark.parametrize("size", ["one request", "parts"])
async def test_a_taken_key_is_noticed_and_the_first_bytes_stay(make: Make, account: Account, size: str) -> None:
    data = image(1) if size == "one request" else large_image(1)
    storage = make(large_bytes=5 * MiB)
    assert not storage.capabilities.create_if_absent
    await storage.upload("public/a.png", image(), content_type=PNG)
    with pytest.raises(ObjectExists):
        await storage.upload("public/a.png", data, content_type=PNG)
    with pytest.raises(ObjectExists):
        await storage.upload("public/a.png", image(), content_type=PNG)
    assert await read(storage, "public/a.png") == image()
    with pytest.raises(Unsupported):
        await storage.upload("public/b.png", image(), content_type=PNG, exclusive=True)


async def test_a_large_image_goes_in_parts(make: Make, account: Account, tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(large_image())
    storage = make(large_bytes=5 * MiB)
    for key, source in (("private/a.png", large_image()), ("public/b.png", file)):
        account.calls.clear()
        stored = await storage.upload(key, source, content_type=PNG)
        assert len(account.called("upload")) == 2
        assert (stored.size, stored.etag) == (len(large_image()), hashlib.md5(large_image()).hexdigest())
        assert await read(storage, key) == large_image()
    assert account.parts == {}


async def test_sending_may_take_longer_than_connecting(make: Make, fake: CloudinaryFake) -> None:
    server = urlsplit(fake.url)
    assert server.hostname is not None
    assert server.port is not None
    async with Wire(server.hostname, server.port) as wire:
        storage = make(api_url=wire.address, connect_timeout_seconds=0.2, max_bytes=20 * MiB)
        midway = wire.stall(up=100_000)
        upload = asyncio.create_task(storage.upload("private/a.png", image(0, 2500), content_type=PNG))
        await midway.reached.wait()
        await asyncio.sleep(0.6)
        midway.release()
        await upload


async def test_an_upload_cancelled_between_two_parts_sends_no_more(
    make: Make, fake: CloudinaryFake, account: Account
) -> None:
    storage, hold = make(large_bytes=5 * MiB), Hold()
    fake.stage("upload", Fault(hold=hold))
    task = asyncio.create_task(storage.upload("private/a.png", large_image(), content_type=PNG))
    await asyncio.to_thread(hold.reached.wait, 60)
    task.cancel()
    hold.released.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(account.called("upload")) == 1
    assert ids(account) == set()
    assert await storage.cleanup_failed_assets(["private/a.png"]) == ()


@pytest.mark.parametrize("cheat", [{"etag": "0" * 32}, {"etag": None}, {"bytes": 1}])
async def test_an_upload_that_is_not_what_was_sent_is_removed_again(
    storage: CloudinaryStorage, fake: CloudinaryFake, account: Account, cheat: dict[str, Any]
) -> None:
    fake.stage("upload", Fault(cheat=cheat))
    with pytest.raises(WriteNotVerified):
        await storage.upload("private/a.png", image(), content_type=PNG)
    assert ids(account) == set()


async def test_an_upload_whose_answer_was_lost_is_an_error_and_can_be_removed(
    make: Make, fake: CloudinaryFake, account: Account
) -> None:
    storage = make(timeout_seconds=0.3)
    fake.stage("upload", Fault(lost=True))
    with pytest.raises(StorageUnavailable):
        await storage.upload("private/a.png", image(), content_type=PNG)
    assert ids(account) == {("authenticated", "private/a_2Epng")}
    assert await storage.cleanup_failed_assets(["private/a.png"]) == ()
    assert ids(account) == set()
    assert await storage.cleanup_failed_assets(["private/a.png"]) == ()


async def test_an_upload_that_may_still_arrive_is_not_called_gone(
    storage: CloudinaryStorage, fake: CloudinaryFake, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ["private/a.png", "private/b.png"]
    for seconds, left in ((60, ("private/a.png",)), (0, ())):
        monkeypatch.setattr(module, "_MAY_LAND_SECONDS", seconds)
        fake.stage("upload", Fault(status=500))
        with pytest.raises(StorageUnavailable):
            await storage.upload(keys[0], image(), content_type=PNG)
        assert await storage.cleanup_failed_assets(keys) == left


async def test_an_upload_that_was_refused_or_never_sent_is_gone_at_once(
    make: Make, fake: CloudinaryFake, account: Account
) -> None:
    storage = make()
    for fault in (Fault(status=401), Fault(status=420), Fault(status=400)):
        fake.stage("upload", fault)
        with pytest.raises(StorageError):
            await storage.upload("private/a.png", image(), content_type=PNG)
        assert await storage.cleanup_failed_assets(["private/a.png"]) == ()
    unreachable = make(api_url="http://127.0.0.1:9")
    with pytest.raises(StorageUnavailable):
        await unreachable.upload("private/a.png", image(), content_type=PNG)
    assert unreachable._unanswered == {}


# ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_range_is_cut_out_where_the_server_sends_all(storage: CloudinaryStorage, account: Account) -> None:
    account.ranges = False
    data = large_image()
    await storage.upload("private/a.png", data, content_type=PNG)
    size = len(data)
    for start, end in (
        (0, 1),
        (5, None),
        (size - 1, None),
        (1000, 3_000_000),
        (size - 3, size + 9),
        (size, None),
        (7, 7),
    ):
        assert await read(storage, "private/a.png", start, end) == data[start:end]


async def test_only_listing_takes_of_the_ration(storage: CloudinaryStorage, account: Account) -> None:
    account.admin_calls_left = 0
    key = "private/a.png"
    await storage.upload(key, image(), content_type=PNG)
    assert await storage.exists(key)
    assert await read(storage, key, 3, 9) == image()[3:9]
    await storage.set_visibility(key, Visibility.PUBLIC)
    assert await storage.delete("public/a.png")
    await storage.ping()
    await storage.check()
    assert account.called("resources") == []
    with pytest.raises(StorageUnavailable, match="ration") as caught:
        await listed(storage, "")
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 3601


async def test_a_list_asks_for_no_more_than_it_needs(storage: CloudinaryStorage, account: Account) -> None:
    keys = {f"{visibility}/{number}.png" for visibility in ("public", "private") for number in range(5)}
    for key in keys:
        await storage.upload(key, image(), content_type=PNG)
    account.page = 2
    for prefix, calls in (("", 6), ("public/", 3), ("private/3", 1), ("elsewhere", 1), ("p", 6)):
        account.calls.clear()
        assert (await listed(storage, prefix)).keys() == {key for key in keys if key.startswith(prefix)}
        assert len(account.called("resources")) == calls, prefix


# ── Removing and moving ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_removed_object_is_gone_from_the_cdn_too(
    storage: CloudinaryStorage, stranger: httpx.AsyncClient
) -> None:
    for remove in (
        lambda: storage.delete("public/a.png"),
        lambda: storage.cleanup_failed_assets(["public/a.png"]),
        lambda: storage.set_visibility("public/a.png", Visibility.PRIVATE),
    ):
        await storage.upload("public/a.png", image(), content_type=PNG)
        url = storage.url("public/a.png")
        assert url is not None
        assert (await stranger.get(url)).status_code == 200
        await remove()
        assert (await stranger.get(url)).status_code == 404


async def test_a_move_never_overwrites_another_object(storage: CloudinaryStorage) -> None:
    await storage.upload("private/a.png", image(1), content_type=PNG)
    await storage.upload("public/a.png", image(2), content_type=PNG)
    with pytest.raises(ObjectExists):
        await storage.set_visibility("private/a.png", Visibility.PUBLIC)
    assert await read(storage, "private/a.png") == image(1)
    assert await read(storage, "public/a.png") == image(2)


async def test_a_move_that_was_broken_off_is_carried_to_its_end(storage: CloudinaryStorage, account: Account) -> None:
    for key in ("private/a.png", "public/a.png"):
        await storage.upload(key, image(), content_type=PNG)
    moved = await storage.set_visibility("private/a.png", Visibility.PUBLIC)
    assert (moved.key, moved.size) == ("public/a.png", len(image()))
    assert ids(account) == {("upload", "public/a_2Epng")}


async def test_a_move_whose_answer_was_lost_can_be_repeated(make: Make, fake: CloudinaryFake) -> None:
    storage = make(timeout_seconds=0.3)
    await storage.upload("private/a.png", image(), content_type=PNG)
    fake.stage("rename", Fault(lost=True))
    with pytest.raises(StorageUnavailable):
        await storage.set_visibility("private/a.png", Visibility.PUBLIC)
    assert (await storage.set_visibility("private/a.png", Visibility.PUBLIC)).key == "public/a.png"


# ── Addresses ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_public_address_takes_the_transformation_and_the_domain_of_the_settings(
    make: Make, account: Account, fake: CloudinaryFake, stranger: httpx.AsyncClient
) -> None:
    cdn = f"{fake.url}/{account.cloud_name}"
    plain = make()
    await plain.upload("public/a.b.jpg", image(), content_type=PNG)
    await plain.upload("public/none", image(), content_type=PNG)
    optimised = make(transformation="f_auto,q_auto")
    assert plain.url("public/a.b.jpg") == f"{cdn}/image/upload/v1/public/a_2Eb_2Ejpg.jpg"
    assert plain.url("public/none") == f"{cdn}/image/upload/v1/public/none"
    assert optimised.url("public/a.b.jpg") == f"{cdn}/image/upload/f_auto,q_auto/v1/public/a_2Eb_2Ejpg.jpg"
    for url in (plain.url("public/none"), optimised.url("public/a.b.jpg")):
        assert url is not None
        assert (await stranger.get(url)).status_code == 200
    own = make(public_url="https://img.example.com/", transformation="q_auto")
    assert own.url("public/a.png") == "https://img.example.com/q_auto/v1/public/a_2Epng.png"


@pytest.mark.parametrize("public_access", ["none", "cdn"])
async def test_public_images_are_open_always_and_linked_where_the_settings_say_so(
    make: Make, public_access: str
) -> None:
    capabilities = make(public_access=public_access).capabilities
    assert (capabilities.public_access, capabilities.links_public) == (True, public_access == "cdn")


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
async def test_a_signed_url_is_signed_as_cloudinary_says(
    make: Make, account: Account, stranger: httpx.AsyncClient, algorithm: str
) -> None:
    account.signature_algorithm = algorithm
    storage = make(signature_algorithm=algorithm)
    await storage.upload("private/a.png", image(), content_type=PNG)
    signed = await storage.generate_signed_url("private/a.png", 3600, filename="C:\\my photo & co.png")
    parameters = dict(parse_qsl(urlsplit(signed.url).query, strict_parsing=True))
    given, key = parameters.pop("signature"), parameters.pop("api_key")
    joined = "&".join(f"{name}={parameters[name]}".replace("&", "%26") for name in sorted(parameters))
    assert key == account.api_key
    assert given == hashlib.new(algorithm, (joined + account.api_secret).encode()).hexdigest()
    assert int(parameters["expires_at"]) - int(parameters.pop("timestamp")) == 3600
    assert parameters == {
        "public_id": "private/a_2Epng",
        "type": "authenticated",
        "expires_at": str(int(signed.expires_at.timestamp())),
        "target_filename": "my photo & co.png",
    }
    answer = await stranger.get(signed.url)
    assert answer.content == image()
    assert answer.headers["content-disposition"].startswith("inline")


# ── Checks and errors ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_check_leaves_nothing(storage: CloudinaryStorage, account: Account) -> None:
    await storage.check()
    assert ids(account) == set()


async def test_a_check_notices_private_images_that_strangers_get(storage: CloudinaryStorage, account: Account) -> None:
    account.guarded = False
    with pytest.raises(StorageError, match="gives private images to strangers"):
        await storage.check()
    assert ids(account) == set()


async def test_a_check_notices_public_images_that_strangers_do_not_get(make: Make, account: Account) -> None:
    for wrong in ({"transformation": "nonsense"}, {"delivery_url": f"{make()._account.api_url}/elsewhere"}):
        with pytest.raises(StorageError, match="refuses public images to strangers"):
            await make(**wrong).check()
    assert ids(account) == set()


async def test_a_ping_asks_for_credentials_and_nothing_else(make: Make, fake: CloudinaryFake, account: Account) -> None:
    await make().ping()
    assert [action for action, _ in account.calls] == ["download"]
    with pytest.raises(StorageError, match="API key"):
        await make(api_secret="another secret").ping()
    fake.stage("download", Fault(status=404, page="<h1>Not Found</h1>"))
    with pytest.raises(StorageError, match="not Cloudinary's"):
        await make().ping()


@pytest.mark.parametrize(
    ("fault", "expected", "words"),
    [
        (Fault(status=400, message="Some parameter is wrong"), StorageError, "refuses the request"),
        (Fault(status=400, message="Stale request - reported time is…"), StorageError, "clock"),
        (Fault(status=401), StorageError, "API key"),
        (Fault(status=403), StorageError, "API key"),
        (Fault(status=404), ObjectNotFound, "no such object"),
        (Fault(status=420), StorageUnavailable, "ration"),
        (Fault(status=429), StorageUnavailable, "ration"),
        (Fault(status=500), StorageUnavailable, "cannot answer now"),
        (Fault(status=503), StorageUnavailable, "cannot answer now"),
        (Fault(status=504), StorageUnavailable, "cannot answer now"),
        (Fault(status=502, page="<h1>Bad Gateway</h1>"), StorageUnavailable, "cannot answer now"),
        (Fault(status=404, page="<h1>Not Found</h1>"), StorageError, "not Cloudinary's"),
        (Fault(status=200, page="<h1>Welcome</h1>"), StorageError, "not Cloudinary's"),
        (Fault(status=200, page="{}"), StorageError, "."),
        (Fault(lost=True), StorageUnavailable, "."),
    ],
    ids=lambda value: (
        f"{value.status} {value.message if value.page is None else value.page}" if isinstance(value, Fault) else ""
    ),
)
@pytest.mark.parametrize("action", ["explicit", "rename", "destroy", "resources"])
async def test_whatever_is_answered_is_translated(
    make: Make, fake: CloudinaryFake, action: Any, fault: Fault, expected: type[StorageError], words: str
) -> None:
    storage = make(timeout_seconds=0.3 if fault.lost else 10)
    key = "private/a.png"
    await storage.upload(key, image(), content_type=PNG)
    calls: dict[str, Callable[[], Any]] = {
        "explicit": lambda: storage.stat(key),
        "rename": lambda: storage.set_visibility(key, Visibility.PUBLIC),
        "destroy": lambda: storage.delete(key),
        "resources": lambda: listed(storage, key),
    }
    for _ in range(3):
        fake.stage(action, fault)
    with pytest.raises(expected, match=words) as caught:
        await calls[action]()
    assert type(caught.value) is expected
    assert not re.search("://|<|127.0.0.1", caught.value.detail)


@pytest.mark.parametrize(
    ("fault", "is_tried_again"),
    [
        (Fault(status=500), True),
        (Fault(status=503), True),
        (Fault(status=502, page="<h1>Bad Gateway</h1>"), True),
        (Fault(status=420), False),
        (Fault(status=401), False),
        (Fault(status=400), False),
        (Fault(lost=True), False),  # it took its time, and would again
    ],
    ids=lambda value: f"{value.status}" if isinstance(value, Fault) else "",
)
@pytest.mark.parametrize("action", ["explicit", "rename", "destroy", "resources", "download"])
async def test_what_may_pass_is_tried_again_where_that_does_no_harm(
    make: Make, fake: CloudinaryFake, account: Account, action: Any, fault: Fault, is_tried_again: bool
) -> None:
    storage = make(timeout_seconds=0.3 if fault.lost else 10)
    key = "private/a.png"
    await storage.upload(key, image(), content_type=PNG)
    calls: dict[str, Callable[[], Any]] = {
        "explicit": lambda: storage.stat(key),
        "rename": lambda: storage.set_visibility(key, Visibility.PUBLIC),
        "destroy": lambda: storage.delete(key),
        "resources": lambda: listed(storage, key),
        "download": lambda: read(storage, key),
    }
    fake.stage(action, fault)
    if is_tried_again:
        await calls[action]()
        assert fake.left_to_fail == 0
    else:
        fake.stage(action, fault)
        with pytest.raises(StorageError):
            await calls[action]()
        assert fake.left_to_fail == 1


async def test_an_upload_that_may_have_arrived_is_not_sent_again(
    storage: CloudinaryStorage, fake: CloudinaryFake
) -> None:
    for _ in range(2):
        fake.stage("upload", Fault(status=500))
    with pytest.raises(StorageUnavailable):
        await storage.upload("private/a.png", image(), content_type=PNG)
    assert fake.left_to_fail == 1


async def test_an_upload_that_found_nobody_is_sent_again(
    make: Make, fake: CloudinaryFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = make()
    connect, attempts = urllib3.connection.HTTPConnection.connect, []

    def refuse_twice(connection: urllib3.connection.HTTPConnection) -> None:
        attempts.append(connection)
        if len(attempts) < 3:
            raise urllib3.exceptions.NewConnectionError(connection, "nobody is there")
        connect(connection)

    monkeypatch.setattr(urllib3.connection.HTTPConnection, "connect", refuse_twice)
    await storage.upload("private/a.png", image(), content_type=PNG)
    assert len(attempts) == 3


async def test_a_key_that_is_taken_meanwhile_is_taken(storage: CloudinaryStorage, fake: CloudinaryFake) -> None:
    await storage.upload("private/a.png", image(), content_type=PNG)
    for status, message in ((409, "Conflict"), (400, "to_public_id(public/a) already exists")):
        fake.stage("upload", Fault(status=status, message=message))
        with pytest.raises(ObjectExists):
            await storage.upload("public/b.png", image(), content_type=PNG)
