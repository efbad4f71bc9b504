"""Azure Blob Storage, as far as no server is needed: URLs, delegation keys, credentials, settings and errors."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import anyio
import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import CredentialUnavailableError
from azure.storage.blob import UserDelegationKey
from hypothesis import given
from hypothesis import strategies as st

from smart_assets.disposition import content_disposition
from smart_assets.expiry import expiry_window
from smart_assets.settings import AzureSettings, Settings
from smart_assets.storage.azure import AzureStorage
from smart_assets.storage.errors import (
    InvalidKey,
    ObjectNotFound,
    StorageError,
    StorageFull,
    StorageNotConfigured,
    StorageUnavailable,
    Unsupported,
    WriteNotVerified,
)
from smart_assets.storage.factory import get_storage_backend
from smart_assets.storage.keys import Visibility, validate_key
from tests.contracts.storage import PNG, image, listed, read
from tests.wire import Wire

MiB = 1024 * 1024
DAY = 86_400
SECRET = b"the secret of an account"
KEY = b64encode(SECRET).decode()
ACCOUNT_URL = "https://holidays.blob.core.windows.net"
OBJECT = "private/2026/11/20/holiday photo.png"


def storage_with(**more: Any) -> AzureStorage:
    """One of a service that nobody asks; None leaves a setting out."""
    given: dict[str, Any] = {"account_url": ACCOUNT_URL, "account_key": KEY, "container": "images", **more}
    given = {name: value for name, value in given.items() if value is not None}
    return AzureStorage("azure", AzureSettings(**given), public_cache_seconds=3600)


def fields(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query, strict_parsing=True))


def instant(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


# ── Signed URLs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def is_key(text: str) -> bool:
    try:
        validate_key(text)
    except InvalidKey:
        return False
    return True


KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60).filter(is_key)


def signature(url: str, resource: str, secret: bytes, *more: str) -> str:
    """As "Create a service SAS" and "Create a user delegation SAS" say; `more` are the fields only the latter has."""
    sent = fields(url)
    delegated = bool(more)
    lines = [
        *(sent[name] for name in ("sp", "st", "se")),
        f"/blob/{resource}",
        *(more or [""]),
        "",
        sent.get("spr", ""),
        sent["sv"],
        "b",
        "",
        "",
        *(["", ""] if delegated else []),
        "",
        sent.get("rscd", ""),
        "",
        "",
        "",
    ]
    return b64encode(hmac.digest(secret, "\n".join(lines).encode(), hashlib.sha256)).decode()


@given(key=KEYS, expiry=st.integers(1, 7 * DAY), filename=st.none() | st.text(max_size=40))
async def test_a_url_is_signed_as_the_vendor_says_and_holds_just_the_key(
    key: str, expiry: int, filename: str | None
) -> None:
    storage = storage_with(prefix="ü b")
    before = time.time()
    signed = await storage.generate_signed_url(key, expiry, filename=filename)
    sent = fields(signed.url)
    assert sent["sig"] == signature(signed.url, f"holidays/images/ü b/{key}", SECRET)
    assert (sent["sp"], sent["sr"], sent["spr"]) == ("r", "b", "https")
    assert unquote(urlsplit(signed.url).path) == f"/images/ü b/{key}"
    assert sent.get("rscd") == (content_disposition(filename) if filename else None)
    assert instant(sent["st"]) <= before
    assert instant(sent["se"]) == signed.expires_at.timestamp() <= time.time() + expiry
    assert instant(sent["se"]) - instant(sent["st"]) == expiry
    await storage.close()


async def test_urls_say_https_only_where_it_is_spoken() -> None:
    local = storage_with(account_url="http://127.0.0.1:10000/devstoreaccount1")
    signed = await local.generate_signed_url(OBJECT)
    assert "spr" not in fields(signed.url)
    assert fields(signed.url)["sig"] == signature(signed.url, f"devstoreaccount1/images/{OBJECT}", SECRET)
    outside = storage_with(
        account_url="http://127.0.0.1:10000/devstoreaccount1", signing_endpoint_url="https://blobs.example/x"
    )
    url = (await outside.generate_signed_url(OBJECT)).url
    assert url.startswith("https://blobs.example/x/images/private/2026/11/20/holiday%20photo.png?")
    assert fields(url)["spr"] == "https"


async def test_a_connection_string_says_where_the_account_is_and_who_signs() -> None:
    text = f"DefaultEndpointsProtocol=https;AccountName=holidays;AccountKey={KEY};EndpointSuffix=core.windows.net"
    by_string = await storage_with(connection_string=text, account_url=None, account_key=None).generate_signed_url(
        OBJECT, 7 * DAY
    )
    by_url = await storage_with().generate_signed_url(OBJECT, 7 * DAY)
    assert urlsplit(by_string.url).netloc == urlsplit(by_url.url).netloc == "holidays.blob.core.windows.net"
    assert fields(by_string.url)["sig"] == signature(by_string.url, f"holidays/images/{OBJECT}", SECRET)


# ── Public addresses ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, None),
        ({"public_container": "open"}, None),
        ({"public_container": "open", "public_access": "policy"}, f"{ACCOUNT_URL}/open/public/a%20b%23.png"),
        (
            {
                "public_container": "open",
                "public_access": "policy",
                "prefix": "team",
                "signing_endpoint_url": "http://outside/x",
            },
            "http://outside/x/open/team/public/a%20b%23.png",
        ),
        ({"public_url": "https://cdn.example/images/"}, "https://cdn.example/images/public/a%20b%23.png"),
        (
            {"public_container": "open", "public_access": "policy", "public_url": "cdn.example", "prefix": "team"},
            "https://cdn.example/team/public/a%20b%23.png",
        ),
    ],
)
async def test_a_public_object_has_the_address_that_the_settings_say(
    settings: dict[str, Any], address: str | None
) -> None:
    storage = storage_with(**settings)
    assert storage.url("public/a b#.png") == address
    assert storage.url("private/a b#.png") is None
    assert storage.capabilities.public_access == (address is not None)


# ── Delegation keys ─────────────────────────────────────────────────────────────────────────────────────────────────


class Directory:
    """Stands for the service that gives delegation keys: counts, and fails where a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[float, float]] = []
        self.error: Exception | None = None
        self.now = 1_795_000_000.0
        monkeypatch.setattr("time.time", lambda: self.now)

    def key(self, start: datetime, end: datetime) -> UserDelegationKey:
        self.asked.append((start.timestamp(), end.timestamp()))
        if self.error is not None:
            raise self.error
        key = UserDelegationKey()  # type: ignore[no-untyped-call]
        key.signed_oid, key.signed_tid = "object", "tenant"
        key.signed_start, key.signed_expiry = (f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in (start, end))
        key.signed_service, key.signed_version = "b", "2026-10-06"
        key.value = b64encode(f"delegation {len(self.asked)}".encode()).decode()
        return key


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Directory:
    return Directory(monkeypatch)


@pytest.fixture
async def delegated(directory: Directory) -> AsyncIterator[AzureStorage]:
    storage = storage_with(account_key=None)
    storage._service.get_user_delegation_key = directory.key  # type: ignore[method-assign, assignment]
    yield storage
    await storage.close()


async def test_a_url_is_signed_with_a_delegation_key(delegated: AzureStorage, directory: Directory) -> None:
    signed = await delegated.generate_signed_url(OBJECT, filename="photo.png")
    sent = fields(signed.url)
    delegation = [*(sent[name] for name in ("skoid", "sktid", "skt", "ske", "sks", "skv")), "", "", "", "", ""]
    assert sent["sig"] == signature(signed.url, f"holidays/images/{OBJECT}", b"delegation 1", *delegation)
    assert sent["spr"] == "https"
    assert instant(sent["skt"]) <= instant(sent["st"])
    assert instant(sent["se"]) == signed.expires_at.timestamp() <= instant(sent["ske"])


async def test_leave_to_write_is_to_create_one_blob_and_is_signed_with_a_delegation_key(
    delegated: AzureStorage, directory: Directory
) -> None:
    expires_at = datetime.fromtimestamp(directory.now + 3600, tz=UTC)
    leave = await delegated.presign_upload(OBJECT, max_bytes=9, expires_at=expires_at)
    sent = fields(leave.url)
    delegation = [*(sent[name] for name in ("skoid", "sktid", "skt", "ske", "sks", "skv")), "", "", "", "", ""]
    assert sent["sig"] == signature(leave.url, f"holidays/images/{OBJECT}", b"delegation 1", *delegation)
    assert (sent["sp"], sent["sr"]) == ("c", "b")
    assert instant(sent["se"]) == leave.expires_at.timestamp() == expires_at.timestamp()
    assert not delegated.capabilities.caps_uploads


async def test_one_delegation_key_signs_many_urls(delegated: AzureStorage, directory: Directory) -> None:
    urls = set()

    async def sign(number: int) -> None:
        urls.add((await delegated.generate_signed_url(f"private/{number}.png", DAY)).url)

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(sign, number)
    assert len(urls) == 50
    assert len(directory.asked) == 1
    [(start, end)] = directory.asked
    assert start < directory.now < end <= directory.now + 7 * DAY


async def test_links_of_a_day_take_a_new_key_before_theirs_ends_and_no_earlier(
    delegated: AzureStorage, directory: Directory
) -> None:
    began = directory.now
    for hour in range(15 * 24):
        directory.now = began + hour * 3600
        signed = await delegated.generate_signed_url(OBJECT, DAY)
        assert directory.now + DAY - 3600 <= signed.expires_at.timestamp() <= directory.now + DAY
        assert signed.expires_at.timestamp() <= directory.asked[-1][1]
    assert len(directory.asked) == 3


async def test_links_of_a_week_end_no_later_than_the_key_which_is_renewed_hourly_for_them(
    delegated: AzureStorage, directory: Directory
) -> None:
    began, links = directory.now, set()
    for minute in range(0, 6 * 60, 5):
        directory.now = began + minute * 60
        signed = await delegated.generate_signed_url(OBJECT, 7 * DAY)
        start, end = directory.asked[-1]
        window_end = expiry_window(directory.now, 7 * DAY) / 1000
        assert signed.expires_at.timestamp() == min(window_end, end) >= directory.now + 7 * DAY - 3600 - 600
        assert instant(fields(signed.url)["st"]) >= start
        links.add((window_end, end, signed.url))
    assert len(directory.asked) <= 6
    assert len(links) == len({url for _, _, url in links}) <= 12, "the same for all calls of a window and a key"


async def test_a_key_that_cannot_be_renewed_signs_until_it_ends_and_is_asked_for_once_a_minute(
    delegated: AzureStorage, directory: Directory
) -> None:
    began = directory.now
    await delegated.generate_signed_url(OBJECT, DAY)
    [(_, end)] = directory.asked
    directory.error = ClientAuthenticationError("not now")
    directory.now = end - 1800
    for _again in range(10):
        signed = await delegated.generate_signed_url(OBJECT, DAY)
        assert signed.expires_at.timestamp() == end
    assert len(directory.asked) == 2
    directory.now += 61
    await delegated.generate_signed_url(OBJECT, DAY)
    assert len(directory.asked) == 3
    directory.now = end
    with pytest.raises(StorageError):
        await delegated.generate_signed_url(OBJECT, DAY)
    directory.error = None
    assert (await delegated.generate_signed_url(OBJECT, DAY)).expires_at.timestamp() > end
    assert began < end


# ── Credentials ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Chain:
    """Stands for Azure's default chain."""

    error: Exception | None = None
    closed = 0

    def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        if self.error is not None:
            raise self.error
        return AccessToken("token", int(time.time()) + 3600)

    def close(self) -> None:
        type(self).closed += 1


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> type[Chain]:
    class Mine(Chain):
        pass

    monkeypatch.setattr("azure.identity.DefaultAzureCredential", Mine)
    return Mine


@pytest.mark.parametrize(
    "error",
    [
        CredentialUnavailableError("EnvironmentCredential: incomplete"),
        ClientAuthenticationError("DefaultAzureCredential failed to retrieve a token from the included credentials."),
    ],
)
async def test_where_there_are_no_credentials_at_all_it_is_not_configured(chain: type[Chain], error: Exception) -> None:
    chain.error = error
    storage = storage_with(account_key=None)
    for call in (storage.stat(OBJECT), storage.generate_signed_url(OBJECT), storage.check(), storage.ping()):
        with pytest.raises(StorageNotConfigured) as caught:
            await call
        assert caught.value.missing == ("ASSETS_AZURE__ACCOUNT_KEY",)
    await storage.close()
    assert chain.closed == 1


async def test_credentials_that_the_directory_refuses_are_an_error(chain: type[Chain]) -> None:
    chain.error = ClientAuthenticationError("… AADSTS7000215: Invalid client secret is provided: secret-word")
    storage = storage_with(account_key=None)
    with pytest.raises(StorageError, match="refuses its credentials") as caught:
        await storage.stat(OBJECT)
    assert type(caught.value) is StorageError
    assert "secret-word" not in caught.value.detail
    await storage.close()


def test_azures_library_of_credentials_is_not_imported_until_a_token_is_asked_for() -> None:
    script = f"""
import sys
from smart_assets.settings import AzureSettings
from smart_assets.storage.azure import AzureStorage
AzureStorage("azure", AzureSettings(account_url={ACCOUNT_URL!r}, container="images"), public_cache_seconds=1)
assert "azure.identity" not in sys.modules
assert "msal" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# ── Settings ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"container": None}, "ASSETS_AZURE__CONTAINER"),
        ({"account_url": None}, "AZURE_STORAGE_CONNECTION_STRING"),
        ({"public_access": "policy"}, "ASSETS_AZURE__PUBLIC_CONTAINER"),
        ({"account_key": "not-base-64-secret"}, "ASSETS_AZURE__ACCOUNT_KEY"),
        ({"account_url": "https://blobs.example"}, "ASSETS_AZURE__ACCOUNT_URL"),
        ({"account_url": "https://blobs.example", "account_key": None}, "ASSETS_AZURE__ACCOUNT_URL"),
        ({"account_url": "http://holidays.blob.core.windows.net", "account_key": None}, "ASSETS_AZURE__ACCOUNT_URL"),
        ({"connection_string": "secret-word"}, "AZURE_STORAGE_CONNECTION_STRING"),
        ({"connection_string": "a=b;secret-word=c"}, "AZURE_STORAGE_CONNECTION_STRING"),
        ({"connection_string": "AccountName=holidays"}, "AZURE_STORAGE_CONNECTION_STRING"),
        ({"connection_string": "AccountName=holidays;AccountKey=secret-word"}, "AZURE_STORAGE_CONNECTION_STRING"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_it_is_made_and_no_secret_is_told(
    settings: dict[str, Any], missing: str
) -> None:
    with pytest.raises(StorageNotConfigured, match="is not configured") as caught:
        storage_with(**settings)
    assert caught.value.missing == (missing,)
    assert missing in caught.value.detail
    assert "secret" not in caught.value.detail
    assert KEY not in caught.value.detail


async def test_the_factory_makes_it_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"AccountName=holidays;AccountKey={KEY}")
    monkeypatch.setenv("ASSETS_AZURE__CONTAINER", "images")
    storage = get_storage_backend("azure", Settings())
    assert isinstance(storage, AzureStorage)
    assert storage.capabilities.signed_urls
    assert storage.capabilities.create_if_absent
    assert storage.capabilities.verifies_writes
    assert not storage.capabilities.public_access
    await storage.close()


async def test_with_a_shared_access_signature_it_signs_no_urls() -> None:
    text = "BlobEndpoint=https://holidays.blob.core.windows.net;SharedAccessSignature=sv=2026-10-06&sp=r&sig=x"
    storage = storage_with(connection_string=text)
    with pytest.raises(Unsupported):
        await storage.generate_signed_url(OBJECT)
    with pytest.raises(Unsupported):
        await storage.presign_upload(OBJECT, max_bytes=9, expires_at=datetime.now(UTC) + timedelta(hours=1))
    await storage.close()


async def test_an_object_of_more_blocks_than_a_blob_may_have_is_unsupported() -> None:
    assert storage_with(block_bytes=4 * MiB).capabilities.max_object_bytes == 50_000 * 4 * MiB


# ── Errors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def staged() -> AsyncIterator[tuple[Wire, AzureStorage]]:
    """A backend whose every request gets the answer staged."""
    async with Wire("127.0.0.1", 1) as wire:
        storage = storage_with(account_url=f"{wire.address}/holidays")
        yield wire, storage
        await storage.close()


def answer(wire: Wire, status: int, code: str) -> None:
    body = f"<?xml version='1.0' encoding='utf-8'?><Error><Code>{code}</Code><Message>http://secret</Message></Error>"
    headers = {"Content-Type": "application/xml", "x-ms-request-id": "1", "x-ms-version": "2026-10-06"}
    wire.answer(status, {**headers, **({"x-ms-error-code": code} if code else {})}, body.encode())


@pytest.mark.parametrize(
    ("status", "code", "expected", "words"),
    [
        (403, "AuthenticationFailed", StorageError, "credentials"),
        (401, "InvalidAuthenticationInfo", StorageError, "credentials"),
        (401, "", StorageError, "credentials"),
        (403, "AuthorizationFailure", StorageError, "denies access"),
        (403, "AuthorizationPermissionMismatch", StorageError, "role"),
        (403, "InsufficientAccountPermissions", StorageError, "denies access"),
        (403, "", StorageError, "denies access"),
        (403, "AccountIsDisabled", StorageError, "disabled"),
        (403, "KeyBasedAuthenticationNotPermitted", StorageError, "tokens"),
        (404, "ContainerNotFound", StorageError, "container does not exist"),
        (404, "", StorageError, "refuses"),
        (409, "ContainerBeingDeleted", StorageUnavailable, "now"),
        (409, "BlobImmutableDueToPolicy", StorageError, "immutab"),
        (412, "LeaseIdMissing", StorageError, "lease"),
        (400, "InvalidUri", StorageError, "key"),
        (413, "RequestBodyTooLarge", StorageError, "so much"),
        (418, "SomethingNew", StorageError, "SomethingNew"),
        (503, "ServerBusy", StorageUnavailable, "now"),
        (500, "OperationTimedOut", StorageUnavailable, "now"),
        (500, "InternalError", StorageUnavailable, "now"),
        (429, "", StorageUnavailable, "now"),
        (507, "", StorageFull, "room"),
    ],
)
async def test_what_the_service_says_is_translated(
    staged: tuple[Wire, AzureStorage], status: int, code: str, expected: type[StorageError], words: str
) -> None:
    wire, storage = staged
    answer(wire, status, code)
    calls: list[Callable[[], Any]] = [
        lambda: storage.upload(OBJECT, image(), content_type=PNG),
        lambda: storage.stat(OBJECT),
        lambda: read(storage, OBJECT),
        lambda: storage.delete(OBJECT),
        lambda: listed(storage, ""),
        lambda: storage.set_visibility(OBJECT, Visibility.PUBLIC),
        lambda: storage.ping(),
    ]
    # Where each would be asked again, one is enough.
    for call in calls if status < 500 else calls[:1]:
        with pytest.raises(StorageError, match=words) as caught:
            await call()
        assert type(caught.value) is expected
        assert caught.value.storage == "azure"
        assert "secret" not in caught.value.detail


async def test_an_object_that_is_not_there_is_not_found(staged: tuple[Wire, AzureStorage]) -> None:
    wire, storage = staged
    answer(wire, 404, "BlobNotFound")
    for call in (storage.stat(OBJECT), read(storage, OBJECT), storage.set_visibility(OBJECT, Visibility.PUBLIC)):
        with pytest.raises(ObjectNotFound):
            await call
    assert not await storage.delete(OBJECT)
    assert not await storage.exists(OBJECT)
    await storage.ping()


async def test_bytes_that_the_service_finds_changed_are_said_to_be(staged: tuple[Wire, AzureStorage]) -> None:
    wire, storage = staged
    answer(wire, 400, "Md5Mismatch")
    with pytest.raises(WriteNotVerified):
        await storage.upload(OBJECT, image(), content_type=PNG)


async def test_what_is_not_azure_at_all_is_an_error(staged: tuple[Wire, AzureStorage]) -> None:
    wire, storage = staged
    wire.answer(200, {"Content-Type": "text/html"}, b"<html>Welcome to the hotel's network</html>")
    for call in (storage.stat(OBJECT), storage.upload(OBJECT, image(), content_type=PNG), listed(storage, "")):
        with pytest.raises(StorageError):
            await call


async def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Any) -> None:
    storage = storage_with()
    with pytest.raises(StorageError, match="cannot be read"):
        await storage.upload(OBJECT, tmp_path, content_type=PNG)
    await storage.close()
