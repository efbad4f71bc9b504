"""Google Cloud Storage, as far as it goes without a server; `tests/live` has the rest."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest
import requests
import urllib3
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.api_core import exceptions as answers
from google.auth import credentials
from google.auth import exceptions as auth_exceptions
from google.auth.compute_engine import _metadata
from google.cloud.storage._signing import generate_signed_url_v4
from google.oauth2 import credentials as oauth2
from google.oauth2 import service_account
from hypothesis import given
from hypothesis import strategies as st

from smart_assets.disposition import content_disposition
from smart_assets.expiry import Validity
from smart_assets.settings import GcsSettings
from smart_assets.storage.errors import (
    InvalidKey,
    ObjectExists,
    ObjectNotFound,
    StorageError,
    StorageNotConfigured,
    StorageUnavailable,
    Unsupported,
    WriteNotVerified,
)
from smart_assets.storage.gcs import GcsStorage
from smart_assets.storage.keys import validate_key

ACCOUNT = "assets@tests.iam.gserviceaccount.com"
KEY = "private/2026/11/20/a b+ü%2F?#.png"

Make = Callable[..., GcsStorage]
auth: Any = auth_exceptions  # untyped


@cache
def key_file() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return json.dumps(
        {
            "type": "service_account",
            "client_email": ACCOUNT,
            "private_key": pem.decode(),
            "token_uri": "http://127.0.0.1:9/token",
        }
    )


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes a storage of bucket `b`, with a key of its own; closed afterwards."""
    storages = []

    def make(**settings: Any) -> GcsStorage:
        settings = {"bucket": "b", "credentials_json": key_file(), **settings}
        storage = GcsStorage("gcs", GcsSettings.model_validate(settings), 3600)
        storages.append(storage)
        return storage

    yield make
    for storage in storages:
        await storage.close()


@pytest.fixture
def _nothing_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which Google's default chain finds no credentials."""
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setattr(_metadata, "_NO_GCE_CHECK", True)


# ── Credentials ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def missing(storage: GcsStorage) -> tuple[str, ...]:
    with pytest.raises(StorageNotConfigured) as caught:
        await storage.stat(KEY)
    assert "/" not in caught.value.detail
    return caught.value.missing


@pytest.mark.usefixtures("_nothing_found")
async def test_without_any_credentials_it_says_what_would_help(make: Make) -> None:
    assert await missing(make(credentials_json=None)) == ("GOOGLE_APPLICATION_CREDENTIALS",)


@pytest.mark.usefixtures("_nothing_found")
async def test_googles_own_variable_that_leads_nowhere_is_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")
    assert await missing(make(credentials_json=None)) == ("GOOGLE_APPLICATION_CREDENTIALS",)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "{}", '{"client_email": "a", "token_uri": "b", "private_key": "c"}']
)
async def test_what_is_no_key_is_named_by_its_variable(make: Make, tmp_path: Path, text: str) -> None:
    file = tmp_path / "key.json"
    file.write_text(text)
    variable = await missing(make(credentials_json=None, credentials_file=file))
    assert variable == ("ASSETS_GCS__CREDENTIALS_FILE",)
    if text:
        assert await missing(make(credentials_json=text)) == ("ASSETS_GCS__CREDENTIALS_JSON",)


async def test_a_key_file_that_is_not_there_is_named_by_its_variable(make: Make, tmp_path: Path) -> None:
    storage = make(credentials_json=None, credentials_file=tmp_path / "none.json")
    assert await missing(storage) == ("ASSETS_GCS__CREDENTIALS_FILE",)


def test_without_a_bucket_there_is_no_storage() -> None:
    with pytest.raises(StorageNotConfigured) as caught:
        GcsStorage("gcs", GcsSettings(), 3600)
    assert caught.value.missing == ("ASSETS_GCS__BUCKET",)


# ── URLs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def keys() -> st.SearchStrategy[str]:
    def is_key(text: str) -> bool:
        try:
            return validate_key(text) == text
        except InvalidKey:
            return False

    return (
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
        .map(lambda text: f"private/{text}")
        .filter(is_key)
    )


@given(key=keys(), filename=st.none() | st.text(max_size=20), endpoint=st.sampled_from([None, "http://127.0.0.1:4443"]))
def test_a_signed_url_is_what_googles_own_sdk_signs(key: str, filename: str | None, endpoint: str | None) -> None:
    async def sign() -> tuple[str, datetime]:
        settings = {"bucket": "b", "credentials_json": key_file(), "signing_endpoint_url": endpoint}
        storage = GcsStorage("gcs", GcsSettings.model_validate(settings), 3600)
        signed = await storage.generate_signed_url(key, 3600, filename=filename)
        await storage.close()
        return signed.url, signed.expires_at

    url, expires_at = anyio.run(sign)
    key_credentials = service_account.Credentials.from_service_account_info(json.loads(key_file()))  # type: ignore[no-untyped-call]
    theirs: str = generate_signed_url_v4(  # type: ignore[no-untyped-call]
        key_credentials,
        resource="/b/" + quote(key, safe="/~"),
        expiration=3600,
        api_access_endpoint=endpoint or "https://storage.googleapis.com",
        response_disposition=None if filename is None else content_disposition(filename),
        _request_timestamp=f"{expires_at - timedelta(seconds=3600):%Y%m%dT%H%M%SZ}",
    )
    assert url.partition("?")[0] == theirs.partition("?")[0]
    assert sorted(url.partition("?")[2].split("&")) == sorted(
        theirs.partition("?")[2].replace("x-goog-signature", "X-Goog-Signature").split("&")
    )


async def test_a_signed_url_ends_within_seven_days(make: Make) -> None:
    storage = make()
    signed = await storage.generate_signed_url(KEY, 604_800)
    assert "X-Goog-Expires=604800&" in signed.url
    assert datetime.now(UTC) < signed.expires_at <= datetime.now(UTC) + timedelta(days=7)
    with pytest.raises(Unsupported, match="seven days"):
        await storage.generate_signed_url(KEY, 604_801)


async def test_signed_urls_name_the_bucket_the_prefix_and_where_callers_reach_it(make: Make) -> None:
    storage = make(prefix="team", public_bucket="p", signing_endpoint_url="https://assets.example.org")
    for key, bucket in ((KEY, "b"), (KEY.replace("private", "public"), "p")):
        url = (await storage.generate_signed_url(key)).url
        name = "2026/11/20/a%20b%2B%C3%BC%252F%3F%23.png"
        assert url.startswith(f"https://assets.example.org/{bucket}/team/{key.partition('/')[0]}/{name}?")


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, None),
        ({"public_bucket": "p"}, None),
        ({"public_access": "policy"}, "https://storage.googleapis.com/b/public/%C3%BC%20.png"),
        ({"public_access": "policy", "public_bucket": "p"}, "https://storage.googleapis.com/p/public/%C3%BC%20.png"),
        ({"public_access": "policy", "prefix": "team"}, "https://storage.googleapis.com/b/team/public/%C3%BC%20.png"),
        ({"public_access": "policy", "endpoint_url": "http://gcs:4443"}, "http://gcs:4443/b/public/%C3%BC%20.png"),
        (
            {"public_url": "https://cdn.example.org/x/", "prefix": "team"},
            "https://cdn.example.org/x/public/%C3%BC%20.png",
        ),
    ],
)
def test_the_address_of_a_public_object_is_as_the_settings_say(settings: dict[str, str], url: str | None) -> None:
    storage = GcsStorage("gcs", GcsSettings.model_validate({"bucket": "b", **settings}), 3600)
    assert storage.url("public/ü .png") == url
    assert storage.capabilities.public_access == (url is not None)
    assert storage.url("private/ü .png") is None


# ── Credentials without a private key ───────────────────────────────────────────────────────────────────────────────


class Impersonated(credentials.AnonymousCredentials, credentials.Signing):
    """Credentials that have IAM sign, as impersonated ones do."""

    def __init__(self, refused: Exception | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.asked = 0
        self._refused = refused

    def sign_bytes(self, message: bytes) -> bytes:
        self.asked += 1
        if self._refused:
            raise self._refused
        return message[-8:]

    signer = None
    signer_email = ACCOUNT


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Has Google's default chain find the credentials given."""
    return lambda chosen: monkeypatch.setattr("google.auth.default", lambda **_options: (chosen, None))


async def test_who_impersonates_an_account_has_it_sign_once_a_window_for_twelve_hours(
    make: Make, found: Callable[[Any], None]
) -> None:
    impersonated = Impersonated()
    found(impersonated)
    storage = make(credentials_json=None)
    signed = [await storage.generate_signed_url(KEY, 86_400) for _ in range(20)]
    assert quote(ACCOUNT, safe="") in signed[0].url
    assert signed[0].expires_at <= datetime.now(UTC) + timedelta(hours=12)
    assert impersonated.asked == len({url.url for url in signed}) <= 2


async def test_leave_to_write_that_another_account_signs_ends_within_twelve_hours(
    make: Make, found: Callable[[Any], None]
) -> None:
    found(Impersonated())
    storage = make(credentials_json=None)
    leave = await storage.presign_upload(KEY, max_bytes=9, expires_at=datetime.now(UTC) + timedelta(days=1))
    assert timedelta(hours=11) < leave.expires_at - datetime.now(UTC) <= timedelta(hours=12)
    assert leave.fields["x-goog-credential"].startswith(f"{ACCOUNT}/")


async def test_who_may_not_have_it_sign_hears_which_permission_is_missing(
    make: Make, found: Callable[[Any], None]
) -> None:
    found(Impersonated(auth.TransportError("Error calling sign_bytes: {'error': {'code': 403}}")))
    with pytest.raises(StorageError, match=r"iam\.serviceAccounts\.signBlob") as caught:
        await make(credentials_json=None).generate_signed_url(KEY)
    assert type(caught.value) is StorageError
    found(Impersonated(auth.TransportError(requests.ConnectionError())))
    with pytest.raises(StorageUnavailable):
        await make(credentials_json=None).generate_signed_url(KEY)


async def test_credentials_of_a_person_sign_nothing_and_the_setting_that_helps_is_named(
    make: Make, found: Callable[[Any], None]
) -> None:
    found(oauth2.Credentials("token"))  # type: ignore[no-untyped-call]
    storage = make(credentials_json=None)
    for _again in range(2):
        with pytest.raises(Unsupported):
            await storage.generate_signed_url(KEY)
        with pytest.raises(Unsupported):
            await storage.presign_upload(KEY, max_bytes=9, expires_at=datetime.now(UTC) + timedelta(hours=1))
    assert not storage.capabilities.signed_urls
    assert not storage.capabilities.presigned_uploads
    with pytest.raises(Unsupported, match="ASSETS_GCS__SIGNING_ACCOUNT"):
        await storage._signed_url(KEY, Validity.of(0, 60), None)


# ── Errors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def answer(status: int, message: str = "", reason: str = "") -> Exception:
    response = requests.Response()
    response.status_code = status
    response._content = json.dumps(
        {"error": {"code": status, "message": message, "errors": [{"reason": reason}]}}
    ).encode()
    response.request = requests.Request("GET", "http://127.0.0.1:9/secret").prepare()
    error: Exception = answers.from_http_response(response)  # type: ignore[no-untyped-call]
    return error


MISMATCH = 'Provided CRC32C "a" doesn\'t match calculated CRC32C "b".'


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answer(404, "No such object: b/key"), ObjectNotFound),
        (answer(404, "The specified bucket does not exist."), StorageError),
        (answer(412, "At least one of the pre-conditions you specified did not hold."), ObjectExists),
        (answer(401, "Invalid Credentials"), StorageError),
        (answer(403, "a@b does not have storage.objects.get access", "forbidden"), StorageError),
        (answer(403, "Quota exceeded", "rateLimitExceeded"), StorageUnavailable),
        (answer(400, MISMATCH, "invalid"), WriteNotVerified),
        (answer(400, "Invalid argument", "invalid"), StorageError),
        (answer(408), StorageUnavailable),
        (answer(429), StorageUnavailable),
        *((answer(status), StorageUnavailable) for status in (500, 502, 503, 504)),
        (answers.RetryError("timeout", ValueError()), StorageUnavailable),  # type: ignore[no-untyped-call]
        (requests.ConnectionError("http://127.0.0.1:9/secret"), StorageUnavailable),
        (requests.Timeout(), StorageUnavailable),
        (urllib3.exceptions.ProtocolError(), StorageUnavailable),
        (auth.DefaultCredentialsError("/secret"), StorageNotConfigured),
        (auth.RefreshError("invalid_grant: secret"), StorageError),
        (auth.RefreshError("busy", retryable=True), StorageUnavailable),
        (auth.RefreshError(auth.TransportError("secret")), StorageUnavailable),
        (auth.TransportError(requests.ConnectionError()), StorageUnavailable),
        (OSError("/secret"), StorageError),
    ],
    ids=repr,
)
def test_what_the_sdk_raises_is_translated_and_tells_nothing(error: Exception, kind: type[StorageError]) -> None:
    translated = GcsStorage("gcs", GcsSettings(bucket="b"), 3600)._translate(error, KEY)
    assert type(translated) is kind
    assert "secret" not in translated.detail
    assert "127.0.0.1" not in translated.detail


def test_a_bug_is_not_translated() -> None:
    assert GcsStorage("gcs", GcsSettings(bucket="b"), 3600)._translate(KeyError("bug"), KEY) is None
