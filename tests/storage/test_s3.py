"""What needs no real server of the S3 backend: settings, addresses, credentials, and servers that do less than AWS."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from pydantic import ValidationError

from smart_assets.settings import S3Settings, Settings
from smart_assets.storage.base import PresignedUpload
from smart_assets.storage.errors import (
    ObjectExists,
    ObjectNotFound,
    StorageError,
    StorageFull,
    StorageNotConfigured,
    StorageUnavailable,
    Unsupported,
    WriteNotVerified,
)
from smart_assets.storage.factory import get_storage_backend
from smart_assets.storage.keys import Visibility
from smart_assets.storage.s3 import S3Storage
from tests.contracts.storage import PNG, image, large_image, open_descriptors, read

MiB = 1024 * 1024
KEYS = {"access_key_id": "AKIAEXAMPLE", "secret_access_key": "secret"}
IN_PARTS = {"multipart_bytes": 5 * MiB, "part_bytes": 5 * MiB}


def s3(**settings: Any) -> S3Storage:
    return S3Storage("s3", S3Settings(**{"bucket": "photos", **settings}), public_cache_seconds=60)


@asynccontextmanager
async def opened(server: FakeServer, **settings: Any) -> AsyncIterator[S3Storage]:
    storage = s3(**{"endpoint_url": server.address, **KEYS, **settings})
    yield storage
    await storage.close()


# ── A server that does only what a test wants of it ─────────────────────────────────────────────────────────────────


class FakeServer(ThreadingHTTPServer):
    """Objects in memory, for whoever signs, be it wrongly. What real servers do is the live tests' business."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.uploads: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.faults: dict[tuple[str, str], list[Fault]] = {}
        self.honours_conditions = self.checks_md5 = self.honours_ranges = True
        self.completes_over_others = False
        self.takes_forms = self.caps_forms = True
        self.etag: Callable[[bytes], str] = lambda data: hashlib.md5(data).hexdigest()
        self.bucket_region: str | None = None
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stage(self, method: str, part: str, *faults: Fault) -> None:
        """The next requests of that method whose path and query hold `part` meet these, one each."""
        self.faults[method, part] = list(faults)

    def count(self, method: str, part: str) -> int:
        return sum(1 for asked, path, _ in self.requests if asked == method and part in path)

    def sent(self, method: str, part: str) -> list[dict[str, str]]:
        """The headers of such requests, in small letters."""
        return [headers for asked, path, headers in self.requests if asked == method and part in path]


Fault = Callable[["_Handler"], bool]
"""Does something to a request; True where that was all."""


def refuse(status: int, code: str) -> Fault:
    def fault(handler: _Handler) -> bool:
        handler.rfile.read(int(handler.headers.get("content-length", 0)))
        handler.error(status, code)
        return True

    return fault


def lose_the_answer(handler: _Handler) -> bool:
    """The server does it, and nobody hears of it."""
    handler.mute = True
    return False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer
    mute = False

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        if self.mute:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str) -> None:
        self.answer(status, body=f"<Error><Code>{code}</Code><Message>at /secret/path</Message></Error>".encode())

    def handle_request(self) -> None:
        server, headers = self.server, {name.lower(): value for name, value in self.headers.items()}
        with server.lock:
            server.requests.append((self.command, self.path, headers))
            staged = next(
                (f for (m, part), f in server.faults.items() if m == self.command and part in self.path and f), []
            )
            fault = staged.pop(0) if staged else None
        if fault is not None and fault(self):
            return
        body = self.rfile.read(int(headers.get("content-length", 0)))
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        if headers.get("content-type", "").startswith("multipart/form-data") and server.takes_forms:
            self.answer(400 if b"probe and more" in body and server.caps_forms else 204)
            return
        if "authorization" not in headers:
            self.error(403, "AccessDenied")
            return
        with server.lock:
            getattr(self, f"on_{self.command.lower()}")(unquote(parts.path), query, headers, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request  # noqa: N815

    def refused(self, key: str, headers: dict[str, str], body: bytes) -> bool:
        sent = headers.get("content-md5")
        if sent and self.server.checks_md5 and sent != b64encode(hashlib.md5(body).digest()).decode():
            self.error(400, "BadDigest")
        elif headers.get("if-none-match") == "*" and self.server.honours_conditions and key in self.server.objects:
            self.error(412, "PreconditionFailed")
        else:
            return False
        return True

    def store(self, key: str, body: bytes, headers: dict[str, str]) -> dict[str, str]:
        kept = {
            n: v for n, v in headers.items() if n.startswith("x-amz-meta-") or n in {"content-type", "cache-control"}
        }
        self.server.objects[key] = (body, {"ETag": f'"{self.server.etag(body)}"', **kept})
        return {"ETag": f'"{self.server.etag(body)}"'}

    def on_put(self, key: str, query: dict[str, list[str]], headers: dict[str, str], body: bytes) -> None:
        if self.refused(key, headers, body):
            return
        if "uploadId" in query:
            self.server.uploads[query["uploadId"][0]][query["partNumber"][0]] = body
            self.answer(200, {"ETag": f'"{self.server.etag(body)}"'})
        elif "x-amz-copy-source" in headers:
            source = unquote(headers["x-amz-copy-source"])
            etag = self.store(key, self.server.objects[f"/{source.lstrip('/')}"][0], headers)["ETag"]
            self.answer(200, body=f"<CopyObjectResult><ETag>{etag}</ETag></CopyObjectResult>".encode())
        else:
            self.answer(200, self.store(key, body, headers))

    def on_post(self, key: str, query: dict[str, list[str]], headers: dict[str, str], body: bytes) -> None:
        if "uploads" in query:
            upload = f"upload-{len(self.server.requests)}"
            self.server.uploads[upload] = {"": json.dumps({"key": key, "headers": headers}).encode()}
            self.answer(200, body=f"<R><UploadId>{upload}</UploadId></R>".encode())
            return
        upload = query["uploadId"][0]
        if upload not in self.server.uploads:
            self.error(404, "NoSuchUpload")
        elif self.server.completes_over_others or not self.refused(key, headers, body):
            pieces = self.server.uploads.pop(upload)
            begun = json.loads(pieces.pop(""))["headers"]
            etag = self.store(key, b"".join(pieces[number] for number in sorted(pieces, key=int)), begun)["ETag"]
            self.answer(200, body=f"<R><ETag>{etag}</ETag></R>".encode())

    def on_get(self, key: str, query: dict[str, list[str]], headers: dict[str, str], _body: bytes) -> None:
        if "uploads" in query:
            begun = [(upload, json.loads(pieces[""])["key"]) for upload, pieces in self.server.uploads.items()]
            found = "".join(
                f"<Upload><Key>{name.removeprefix('/photos/')}</Key><UploadId>{upload}</UploadId></Upload>"
                for upload, name in begun
            )
            self.answer(200, body=f"<R>{found}</R>".encode())
        elif "list-type" in query:
            self.answer(200, body=b"<R></R>")  # as if nothing were there
        elif key not in self.server.objects:
            self.error(404, "NoSuchKey")
        else:
            data, kept = self.server.objects[key]
            status = 200
            if "range" in headers and self.server.honours_ranges:
                first, _, last = headers["range"].removeprefix("bytes=").partition("-")
                data, status = data[int(first) : int(last or len(data)) + 1], 206
            self.answer(status, {"Last-Modified": format_datetime(datetime.now(UTC), usegmt=True), **kept}, data)

    def on_head(self, key: str, query: dict[str, list[str]], headers: dict[str, str], body: bytes) -> None:
        if key.strip("/").count("/") == 0:
            self.answer(200, {"x-amz-bucket-region": self.server.bucket_region} if self.server.bucket_region else {})
        elif key in self.server.objects:
            self.on_get(key, query, headers, body)
        else:
            self.answer(404)

    def on_delete(self, key: str, query: dict[str, list[str]], _headers: dict[str, str], _body: bytes) -> None:
        if "uploadId" in query:
            gone = self.server.uploads.pop(query["uploadId"][0], None)
            self.answer(204) if gone else self.error(404, "NoSuchUpload")
        else:
            self.server.objects.pop(key, None)
            self.answer(204)


@pytest.fixture(autouse=True)
def _no_time_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# ── Settings ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({}, ("ASSETS_S3__BUCKET",)),
        ({"bucket": "photos", "access_key_id": "AKIA"}, ("ASSETS_S3__SECRET_ACCESS_KEY",)),
        ({"secret_access_key": "secret"}, ("ASSETS_S3__BUCKET", "ASSETS_S3__ACCESS_KEY_ID")),
    ],
)
def test_incomplete_settings_are_refused_with_what_is_missing(
    settings: dict[str, Any], missing: tuple[str, ...]
) -> None:
    with pytest.raises(StorageNotConfigured) as caught:
        get_storage_backend("s3", Settings(s3=S3Settings(**settings)))
    assert caught.value.missing == missing


@pytest.mark.parametrize(
    "name", ["Bucket", "Key", "Body", "ACL", "GrantRead", "ContentMD5", "ContentEncoding", "CacheControl", "IfMatch"]
)
def test_extra_arguments_cannot_say_what_an_object_holds_or_who_may_read_it(name: str) -> None:
    with pytest.raises(ValidationError, match=f"may not hold {name}"):
        S3Settings(bucket="photos", extra_args={"Tagging": "a=b", name: "x"})


async def test_an_extra_argument_that_is_none_is_named(server: FakeServer) -> None:
    async with opened(server, extra_args={"StorageKlass": "GLACIER"}) as storage:
        with pytest.raises(StorageNotConfigured, match="StorageKlass") as caught:
            await storage.upload("private/a.png", image(), content_type=PNG)
        assert caught.value.missing == ("ASSETS_S3__EXTRA_ARGS",)


async def test_an_endpoint_that_is_none_is_named() -> None:
    storage = s3(endpoint_url="http://host_name:9000", **KEYS)
    with pytest.raises(StorageNotConfigured) as caught:
        await storage.ping()
    assert "ASSETS_S3__ENDPOINT_URL" in caught.value.missing
    await storage.close()


async def test_without_any_credentials_it_says_which_are_missing(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    async with opened(server, access_key_id=None, secret_access_key=None) as storage:
        for call in (
            lambda: storage.upload("private/a.png", image(), content_type=PNG),
            lambda: storage.generate_signed_url("private/a.png"),
            storage.check,
            storage.ping,
        ):
            with pytest.raises(StorageNotConfigured) as caught:
                await call()
            assert caught.value.missing == ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    assert server.requests == []


# ── Addresses ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, "https://photos.s3.us-east-1.amazonaws.com"),
        ({"region": "eu-west-1"}, "https://photos.s3.eu-west-1.amazonaws.com"),
        ({"region": "eu-west-1", "addressing_style": "path"}, "https://s3.eu-west-1.amazonaws.com/photos"),
        ({"region": "eu-west-1", "bucket": "my.photos"}, "https://s3.eu-west-1.amazonaws.com/my.photos"),
        ({"region": "cn-north-1"}, "https://photos.s3.cn-north-1.amazonaws.com.cn"),
        ({"endpoint_url": "http://minio:9000"}, "http://minio:9000/photos"),
        ({"endpoint_url": "s3.example.com/"}, "https://s3.example.com/photos"),
        ({"endpoint_url": "s3.example.com", "addressing_style": "virtual"}, "https://photos.s3.example.com"),
        (
            {"endpoint_url": "http://minio:9000", "signing_endpoint_url": "s3.example.com"},
            "https://s3.example.com/photos",
        ),
        ({"endpoint_url": "http://[::1]:9000"}, "http://[::1]:9000/photos"),
        ({"endpoint_url": "http://minio:9000", "prefix": "/site/"}, "http://minio:9000/photos/site"),
        ({"endpoint_url": "http://minio:9000", "public_bucket": "open"}, "http://minio:9000/open"),
    ],
)
async def test_public_and_signed_urls_begin_with_the_address_of_the_bucket(
    settings: dict[str, Any], address: str
) -> None:
    storage = s3(public_access="policy", **KEYS, **settings)
    assert storage.url("public/a b+c.png") == f"{address}/public/a%20b%2Bc.png"
    assert storage.url("private/a.png") is None
    signed = await storage.generate_signed_url("public/a.png")
    assert signed.url.startswith(f"{address}/public/a.png?")
    region = settings.get("region", "us-east-1")
    assert f"%2F{region}%2Fs3%2Faws4_request&" in signed.url
    await storage.close()


async def test_awss_own_settings_say_where_the_server_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://minio:9000")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "garage")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    storage = s3(public_access="policy")
    assert storage.url("public/a.png") == "http://minio:9000/photos/public/a.png"
    signed = await storage.generate_signed_url("private/a.png")
    assert "X-Amz-Credential=AKIA%2F" in signed.url
    assert "%2Fgarage%2Fs3" in signed.url
    await storage.close()


def test_a_cdn_is_an_address_of_public_objects_though_the_bucket_is_closed() -> None:
    storage = s3(public_url="cdn.example.com/images/", prefix="site", **KEYS)
    assert storage.capabilities.public_access
    assert storage.url("public/a b.png") == "https://cdn.example.com/images/public/a%20b.png"
    assert storage.url("private/a.png") is None


def test_public_objects_have_no_address_where_nothing_is_open() -> None:
    storage = s3(public_bucket="open", **KEYS)
    assert not storage.capabilities.public_access
    assert storage.url("public/a.png") is None


# ── Signed URLs and credentials ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_signed_url_lives_a_week_at_most() -> None:
    storage = s3(**KEYS)
    with pytest.raises(Unsupported, match="604800"):
        await storage.generate_signed_url("private/a.png", 604_801)
    await storage.close()


async def test_leave_to_write_ends_with_the_credentials_behind_it(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)

    def credentials(handler: _Handler) -> bool:
        body = {"AccessKeyId": "ASIA", "SecretAccessKey": "s", "Token": "t", "Expiration": f"{ends:%Y-%m-%dT%H:%M:%SZ}"}
        handler.answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())
        return True

    server.stage("GET", "/credentials", *[credentials] * 3)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.address}/credentials")
    async with opened(server, access_key_id=None, secret_access_key=None) as storage:
        for wanted in (timedelta(hours=1), timedelta(hours=3)):
            expires_at = datetime.now(UTC).replace(microsecond=0) + wanted
            leave = await storage.presign_upload("private/a.png", max_bytes=9, expires_at=expires_at)
            assert leave.expires_at == min(ends, expires_at)
            assert leave.fields["x-amz-security-token"] == "t"


async def test_leave_to_write_says_how_the_bucket_wants_it_encrypted(server: FakeServer) -> None:
    async with opened(server, encryption="aws:kms", kms_key_id="a-key") as storage:
        leave = await storage.presign_upload("private/a", max_bytes=9, expires_at=datetime.now(UTC) + timedelta(days=1))
        assert leave.fields["x-amz-server-side-encryption"] == "aws:kms"
        assert leave.fields["x-amz-server-side-encryption-aws-kms-key-id"] == "a-key"
        with pytest.raises(Unsupported, match="604800"):
            await storage.presign_upload("private/a", max_bytes=9, expires_at=datetime.now(UTC) + timedelta(days=8))


async def test_whether_a_server_takes_forms_is_found_out_once(server: FakeServer) -> None:
    async def leave(storage: S3Storage) -> PresignedUpload:
        return await storage.presign_upload("private/a", max_bytes=9, expires_at=datetime.now(UTC) + timedelta(hours=1))

    async with opened(server) as storage:
        server.stage("POST", "/photos", refuse(503, "SlowDown"))
        with pytest.raises(StorageUnavailable):
            await leave(storage)
        for _ in range(3):
            assert (await leave(storage)).url == f"{server.address}/photos"
        assert server.count("POST", "/photos") == 3
        assert storage.capabilities.caps_uploads
    server.caps_forms = False
    async with opened(server) as storage:
        await leave(storage)
        assert (storage.capabilities.presigned_uploads, storage.capabilities.caps_uploads) == (True, False)
    server.takes_forms = False
    async with opened(server) as storage:
        for _ in range(2):
            with pytest.raises(Unsupported):
                await leave(storage)
        assert (storage.capabilities.presigned_uploads, storage.capabilities.caps_uploads) == (False, False)
    assert server.objects == {}


async def test_a_session_token_is_part_of_a_signed_url() -> None:
    storage = s3(**KEYS, session_token="a/token+=")
    assert "&X-Amz-Security-Token=a%2Ftoken%2B%3D&" in (await storage.generate_signed_url("private/a.png")).url
    await storage.close()


async def test_a_signed_url_ends_with_the_credentials_behind_it(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
    given = Counter[str]()

    def credentials(handler: _Handler) -> bool:
        given["times"] += 1
        body = {"AccessKeyId": "ASIA", "SecretAccessKey": "s", "Token": "t", "Expiration": f"{ends:%Y-%m-%dT%H:%M:%SZ}"}
        handler.answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())
        return True

    server.stage("GET", "/credentials", *[credentials] * 3)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.address}/credentials")
    async with opened(server, access_key_id=None, secret_access_key=None) as storage:
        longer = [await storage.generate_signed_url("private/a.png", 86_400) for _again in range(2)]
        assert longer[0] == longer[1]
        assert longer[0].expires_at == ends
        query = parse_qs(urlsplit(longer[0].url).query)
        began = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%S%z")
        assert began + timedelta(seconds=int(query["X-Amz-Expires"][0])) == ends
        assert query["X-Amz-Security-Token"] == ["t"]
        shorter = await storage.generate_signed_url("private/a.png", 3600)
        assert datetime.now(UTC) < shorter.expires_at <= datetime.now(UTC) + timedelta(hours=1)
    assert given["times"] == 1


# ── Servers that do less ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_server_without_conditions_is_not_said_to_tell_who_came_first(server: FakeServer) -> None:
    server.honours_conditions = False
    async with opened(server) as storage:
        with pytest.raises(Unsupported):
            await storage.upload("private/a.png", image(), content_type=PNG, exclusive=True)
        assert not storage.capabilities.create_if_absent
        await storage.upload("private/a.png", image(), content_type=PNG)
        assert "if-none-match" not in server.sent("PUT", "private/a.png")[-1], "no server is sent what it does not know"


async def test_nothing_goes_in_parts_where_only_whole_objects_overwrite_nothing(server: FakeServer) -> None:
    server.completes_over_others = True
    async with opened(server, **IN_PARTS) as storage:
        await storage.upload("private/a.png", large_image(), content_type=PNG, exclusive=True)
        assert storage.capabilities.create_if_absent
        assert server.count("PUT", "private/a.png?partNumber") == 0
        assert await read(storage, "private/a.png") == large_image()


async def test_a_move_does_not_overwrite_where_the_server_has_no_conditions(server: FakeServer) -> None:
    server.honours_conditions = False
    async with opened(server) as storage:
        await storage.upload("private/a.png", image(1), content_type=PNG)
        await storage.upload("public/a.png", image(2), content_type=PNG)
        with pytest.raises(ObjectExists):
            await storage.set_visibility("private/a.png", Visibility.PUBLIC)
        assert await read(storage, "public/a.png") == image(2)
        await storage.delete("public/a.png")
        await storage.set_visibility("private/a.png", Visibility.PUBLIC)
        assert await read(storage, "public/a.png") == image(1)


@pytest.mark.parametrize("data", [image(), large_image()], ids=["whole", "in parts"])
async def test_what_a_server_that_checks_nothing_has_is_asked_for_again(server: FakeServer, data: bytes) -> None:
    server.checks_md5 = False
    server.etag = lambda _data: "opaque"
    async with opened(server, **IN_PARTS) as storage:
        stored = await storage.upload("private/a.png", data, content_type=PNG)
        assert not storage.capabilities.verifies_writes
        assert stored.size == len(data)
        assert stored.modified is not None, "the record is the server's"
        assert server.count("HEAD", "private/a.png") == 1

        def cut_short(handler: _Handler) -> bool:
            handler.server.objects["/photos/private/b.png"] = (data[:-1], {"ETag": '"opaque"'})
            return False

        server.stage("HEAD", "private/b.png", cut_short)
        with pytest.raises(WriteNotVerified):
            await storage.upload("private/b.png", data, content_type=PNG)
        assert "/photos/private/b.png" not in server.objects


@pytest.mark.parametrize("data", [image(), large_image()], ids=["whole", "in parts"])
async def test_an_etag_that_is_not_the_md5_of_what_was_sent_is_an_error(server: FakeServer, data: bytes) -> None:
    async with opened(server, **IN_PARTS) as storage:
        await storage.upload("private/a.png", image(), content_type=PNG)
        server.etag = lambda data: hashlib.md5(data + b"!").hexdigest()
        with pytest.raises(WriteNotVerified):
            await storage.upload("private/b.png", data, content_type=PNG)
        assert "/photos/private/b.png" not in server.objects
        assert server.uploads == {}


async def test_a_server_that_ignores_ranges_is_an_error_and_not_the_whole_object(server: FakeServer) -> None:
    async with opened(server) as storage:
        await storage.upload("private/a.png", image(), content_type=PNG)
        assert await read(storage, "private/a.png", 1, 3) == image()[1:3]
        server.honours_ranges = False
        with pytest.raises(StorageError, match="whole objects only"):
            await read(storage, "private/a.png", 1, 3)


async def test_a_bucket_in_another_region_fails_the_check(server: FakeServer) -> None:
    # The SDK follows it there; a signed URL cannot.
    async with opened(server, region="eu-west-1") as storage:
        await storage.ping()
        server.bucket_region = "eu-central-1"
        storage._endpoint = None  # as if it were AWS, where it is asked
        with pytest.raises(StorageError, match="lies in eu-central-1: set ASSETS_S3__REGION"):
            await storage.check()


# ── What is asked before the first write ────────────────────────────────────────────────────────────────────────────


async def test_it_is_asked_once_for_all_that_wait(server: FakeServer) -> None:
    async with opened(server) as storage:
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(storage.upload(f"private/{number}.png", image(), content_type=PNG))
        assert server.count("POST", "uploads") == 1
        assert not [path for path in server.objects if "smart-assets-check" in path]
        await storage.check()
        assert server.count("POST", "uploads") == 2, "a check asks again"


async def test_all_that_wait_hear_of_one_failure_and_the_next_call_tries_again(server: FakeServer) -> None:
    async with opened(server) as storage:
        server.stage("PUT", "smart-assets-check", refuse(403, "AccessDenied"))
        calls = [storage.upload(f"private/{number}.png", image(), content_type=PNG) for number in range(8)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StorageError}
        assert server.count("PUT", "smart-assets-check") == 1
        await storage.upload("private/a.png", image(), content_type=PNG)


async def test_who_waits_is_served_though_the_one_that_asks_is_cancelled(server: FakeServer) -> None:
    async with opened(server) as storage:
        first, second = (
            asyncio.create_task(storage.upload(f"private/{number}.png", image(), content_type=PNG))
            for number in range(2)
        )
        await asyncio.sleep(0.01)
        first.cancel()
        assert (await second).size == len(image())
        with pytest.raises(asyncio.CancelledError):
            await first


# ── Answers that get lost, and conflicts ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("data", [image(), large_image()], ids=["whole", "in parts"])
async def test_an_object_written_by_an_attempt_whose_answer_got_lost_is_ours(server: FakeServer, data: bytes) -> None:
    async with opened(server, **IN_PARTS) as storage:
        await storage.upload("private/a.png", image(), content_type=PNG)
        server.stage(
            *("POST", "private/b.png?uploadId") if len(data) > 5 * MiB else ("PUT", "private/b.png"), lose_the_answer
        )
        stored = await storage.upload("private/b.png", data, content_type=PNG)
        assert not any(server.faults.values()), "it got lost"
        assert stored.size == len(data)
        assert await read(storage, "private/b.png") == data


async def test_an_object_that_was_there_before_is_not_taken_for_ours_when_an_answer_got_lost(
    server: FakeServer,
) -> None:
    async with opened(server) as storage:
        await storage.upload("private/a.png", image(), content_type=PNG)
        server.stage("PUT", "private/a.png", lose_the_answer)
        with pytest.raises(ObjectExists):
            await storage.upload("private/a.png", image(), content_type=PNG)


@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
async def test_an_upload_in_parts_begun_twice_leaves_none_of_them(server: FakeServer, fails: bool) -> None:
    async with opened(server, **IN_PARTS) as storage:
        await storage.upload("private/a.png", image(), content_type=PNG)
        server.stage("POST", "private/b.png?uploads", lose_the_answer)
        if fails:
            server.stage("PUT", "partNumber=2", refuse(403, "AccessDenied"))
            with pytest.raises(StorageError):
                await storage.upload("private/b.png", large_image(), content_type=PNG)
        else:
            await storage.upload("private/b.png", large_image(), content_type=PNG)
        assert server.count("POST", "private/b.png?uploads") == 2
        assert server.uploads == {}


async def test_an_upload_in_parts_that_may_have_begun_goes_with_the_clean_up(server: FakeServer) -> None:
    async with opened(server, **IN_PARTS) as storage:
        await storage.upload("private/a.png", image(), content_type=PNG)
        server.stage("POST", "private/b.png?uploads", *[lose_the_answer] * 3)
        with pytest.raises(StorageUnavailable):
            await storage.upload("private/b.png", large_image(), content_type=PNG)
        assert len(server.uploads) == 3
        left = await storage.cleanup_failed_assets(["private/b.png", "private/c.png"])
        assert left == ("private/b.png",), "it may still land"
        assert server.uploads == {}
        assert server.count("GET", "uploads") == 1, "nobody asks where there can be none"


async def test_a_conflict_is_tried_again(server: FakeServer) -> None:
    conflict = refuse(409, "ConditionalRequestConflict")
    async with opened(server) as storage:
        await storage.upload("private/a.png", image(), content_type=PNG)
        server.stage("PUT", "private/b.png", conflict, conflict)
        assert (await storage.upload("private/b.png", image(), content_type=PNG)).size == len(image())
        server.stage("PUT", "private/c.png", *[conflict] * 9)
        with pytest.raises(StorageUnavailable):
            await storage.upload("private/c.png", image(), content_type=PNG)


# ── Small objects ───────────────────────────────────────────────────────────────────────────────────────────────────

LARGER = bytes(2 * MiB)
BY_THE_SDK = "amz-sdk-request"
OF_ONE_REQUEST = re.compile(
    r"authorization|content-length|content-md5|expect|x-amz-content-sha256|x-amz-date|amz-sdk-.*|x-amz-meta-smart-assets-.*"
)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prefix": "a b/ż", "session_token": "a token"},
        {"storage_class": "STANDARD_IA", "encryption": "aws:kms", "kms_key_id": "key", "public_access": "acl"},
        {
            "extra_args": {
                "Metadata": {"Album": "7  and 8"},
                "Tagging": "team=web",
                "BucketKeyEnabled": True,
                "ObjectLockMode": "GOVERNANCE",
                "ObjectLockRetainUntilDate": "2030-01-01",
            }
        },
    ],
)
async def test_a_small_object_is_written_just_as_the_sdk_writes_a_larger_one(
    server: FakeServer, settings: dict[str, Any]
) -> None:
    async with opened(server, **settings) as storage:
        for visibility in Visibility:
            for data, name in ((image(), "small.png"), (LARGER, "larger.png")):
                stored = await storage.upload(f"{visibility}/{name}", data, content_type=PNG)
                assert stored.etag == hashlib.md5(data).hexdigest()
                assert await read(storage, f"{visibility}/{name}") == data
            (small,), (larger,) = (server.sent("PUT", f"{visibility}/{name}") for name in ("small.png", "larger.png"))
            assert BY_THE_SDK not in small
            assert BY_THE_SDK in larger
            assert small["x-amz-content-sha256"] == hashlib.sha256(image()).hexdigest()
            assert small["content-md5"] == b64encode(hashlib.md5(image()).digest()).decode()
            assert small["x-amz-meta-smart-assets-md5"] == hashlib.md5(image()).hexdigest()
            same, as_the_sdk = (
                {name: value for name, value in sent.items() if not OF_ONE_REQUEST.fullmatch(name)}
                for sent in (small, larger)
            )
            assert same == as_the_sdk
            assert same["if-none-match"] == "*"


async def test_every_request_goes_through_the_proxy_that_the_environment_names(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with opened(server, endpoint_url="http://s3.invalid:9000") as storage:
        await storage.upload("private/a.png", image(), content_type=PNG)
        assert await read(storage, "private/a.png") == image()
    assert {urlsplit(path).netloc for _, path, _ in server.requests} == {"s3.invalid:9000"}
    assert {headers["host"] for _, _, headers in server.requests} == {"s3.invalid:9000"}


async def test_a_taken_key_is_asked_about_once(server: FakeServer) -> None:
    async with opened(server) as storage:
        await storage.upload("private/a.png", image(1), content_type=PNG)
        with pytest.raises(ObjectExists):
            await storage.upload("private/a.png", image(2), content_type=PNG)
        assert server.count("PUT", "private/a.png") == 2
        assert server.count("HEAD", "private/a.png") == 0
        assert await read(storage, "private/a.png") == image(1)


async def test_a_refusal_is_left_to_the_sdk_and_the_next_write_is_not(server: FakeServer) -> None:
    async with opened(server) as storage:
        for number in range(3):
            server.stage("PUT", "private/1.png", refuse(403, "AccessDenied"))
            await storage.upload(f"private/{number}.png", image(), content_type=PNG)
        tries = [[BY_THE_SDK in sent for sent in server.sent("PUT", f"private/{number}.png")] for number in range(3)]
        assert tries == [[False], [False, True], [False]]


@pytest.mark.parametrize("at_first", [False, True])
async def test_what_a_check_finds_out_holds_for_the_next_write(server: FakeServer, at_first: bool) -> None:
    async with opened(server) as storage:
        for name, honoured in (("a", at_first), ("b", not at_first)):
            server.honours_conditions = honoured
            await storage.check()
            await storage.upload(f"private/{name}.png", image(), content_type=PNG)
            sent = server.sent("PUT", f"private/{name}.png")[0]
            assert sent.get("if-none-match") == ("*" if honoured else None)
            assert BY_THE_SDK not in sent


async def test_an_answer_cut_amid_its_headers_is_no_success(server: FakeServer) -> None:
    def cut(handler: _Handler) -> bool:
        etag = hashlib.md5(handler.rfile.read(int(handler.headers["content-length"]))).hexdigest()
        handler.wfile.write(f'HTTP/1.1 200 OK\r\nETag: "{etag}"\r\nContent-Length: 0\r\n'.encode())
        handler.close_connection = True
        return True

    async with opened(server) as storage:
        server.stage("PUT", "private/a.png", cut)
        await storage.upload("private/a.png", image(), content_type=PNG)
        assert not any(server.faults.values()), "it was cut"
        assert await read(storage, "private/a.png") == image()


async def test_where_the_sdk_finds_the_bucket_the_next_write_goes_at_once(server: FakeServer) -> None:
    def elsewhere(handler: _Handler) -> bool:
        if "/eu-central-1/s3/" in handler.headers["authorization"]:
            return False
        handler.rfile.read(int(handler.headers.get("content-length", 0)))
        code = b"<Error><Code>PermanentRedirect</Code></Error>"
        handler.answer(301, {"x-amz-bucket-region": "eu-central-1"}, code)
        return True

    async with opened(server, public_bucket="open") as storage:
        server.stage("PUT", "/open/", *[elsewhere] * 9)
        for name in ("a", "b", "c"):
            await storage.upload(f"public/{name}.png", image(), content_type=PNG)
    assert [server.count("PUT", f"public/{name}.png") for name in ("b", "c")] == [1, 1]
    assert BY_THE_SDK not in server.sent("PUT", "public/c.png")[0]


class Renewals:
    """Credentials that end so soon that each use asks for new ones; they are numbered."""

    def __init__(self, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given = 0
        self.asked, self.go = threading.Event(), threading.Event()
        self.go.set()
        server.stage("GET", "/credentials", *[self.answer] * 100)
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.address}/credentials")

    def answer(self, handler: _Handler) -> bool:
        self.asked.set()
        self.go.wait(60)
        self.given += 1
        body = {
            "AccessKeyId": f"ASIA{self.given}",
            "SecretAccessKey": "s",
            "Token": f"token {self.given}",
            "Expiration": f"{datetime.now(UTC) + timedelta(minutes=5):%Y-%m-%dT%H:%M:%SZ}",
        }
        handler.answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())
        return True


async def test_renewed_credentials_sign_the_next_write(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    Renewals(server, monkeypatch)
    async with opened(server, access_key_id=None, secret_access_key=None) as storage:
        for number in range(3):
            await storage.upload(f"private/{number}.png", image(), content_type=PNG)
    used = [server.sent("PUT", f"private/{number}.png")[0] for number in range(3)]
    assert all(BY_THE_SDK not in sent for sent in used)
    numbers = [int(sent["x-amz-security-token"].removeprefix("token ")) for sent in used]
    assert len(set(numbers)) == 3
    for sent, number in zip(used, numbers, strict=True):
        assert f"Credential=ASIA{number}/" in sent["authorization"]


# ── Broken off ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Pause:
    """A fault that reads a little of a request, then waits for `go`; `received` says how much there was in the end."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.received: int | None = None

    def __call__(self, handler: _Handler) -> bool:
        size = int(handler.headers["content-length"])
        body = handler.rfile.read(1024)
        self.reached.set()
        self.go.wait(60)
        body += handler.rfile.read(size - len(body))
        self.received = len(body)
        if self.received == size:
            handler.answer(200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        else:
            handler.close_connection = True
        return True


@pytest.mark.parametrize("size", [32 * MiB, 1024], ids=["with bytes to come", "all sent"])
async def test_a_cancelled_upload_is_cut_and_waited_for_once_all_is_sent(server: FakeServer, size: int) -> None:
    async with opened(server) as storage:
        await storage.upload("private/a.png", image(), content_type=PNG)
        pause = Pause()
        server.stage("PUT", "private/b.png", pause)
        uploading = asyncio.create_task(storage.upload("private/b.png", bytes(size), content_type=PNG))
        await asyncio.to_thread(pause.reached.wait)
        uploading.cancel()
        await asyncio.sleep(0.05)
        assert not uploading.done() or size > 1024
        pause.go.set()
        with pytest.raises(asyncio.CancelledError):
            await uploading
        if size == 1024:
            assert pause.received == size, "the call ends only when the server has answered"
        else:
            while pause.received is None:
                await asyncio.sleep(0.01)
            assert pause.received < size
        assert server.count("PUT", "private/b.png") == 1


async def test_an_upload_cancelled_while_it_waits_for_credentials_writes_nothing(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewals = Renewals(server, monkeypatch)
    async with opened(server, access_key_id=None, secret_access_key=None) as storage:
        await storage.upload("private/a.png", image(), content_type=PNG)
        renewals.go.clear()
        renewals.asked.clear()
        uploading = asyncio.create_task(storage.upload("private/b.png", image(), content_type=PNG))
        await asyncio.to_thread(renewals.asked.wait)
        uploading.cancel()
        await asyncio.sleep(0.05)
        renewals.go.set()
        with pytest.raises(asyncio.CancelledError):
            await uploading
        await storage.upload("private/c.png", image(), content_type=PNG)
        assert sorted(server.objects) == ["/photos/private/a.png", "/photos/private/c.png"]


async def test_a_cancelled_upload_whose_answer_gets_lost_is_not_tried_again(server: FakeServer) -> None:
    reached, go = threading.Event(), threading.Event()

    def lose_it_later(handler: _Handler) -> bool:
        reached.set()
        go.wait(60)
        return lose_the_answer(handler)

    async with opened(server) as storage:
        await storage.upload("private/a.png", image(), content_type=PNG)
        server.stage("PUT", "private/b.png", lose_it_later)
        uploading = asyncio.create_task(storage.upload("private/b.png", image(), content_type=PNG))
        await asyncio.to_thread(reached.wait)
        uploading.cancel()
        await asyncio.sleep(0.05)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await uploading
        assert server.count("PUT", "private/b.png") == 1


async def test_a_cancelled_upload_in_parts_sends_no_more_of_them_and_leaves_none(server: FakeServer) -> None:
    async with opened(server, **IN_PARTS) as storage:
        await storage.upload("private/a.png", image(), content_type=PNG)
        pause = Pause()
        server.stage("PUT", "partNumber=1", pause)
        uploading = asyncio.create_task(storage.upload("private/b.png", bytes(32 * MiB), content_type=PNG))
        await asyncio.to_thread(pause.reached.wait)
        uploading.cancel()
        await asyncio.sleep(0.05)
        pause.go.set()
        with pytest.raises(asyncio.CancelledError):
            await uploading
        assert server.count("PUT", "partNumber=2") == 0
        assert server.uploads == {}


# ── Moves ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_move_broken_off_between_copy_and_removal_is_carried_to_its_end(server: FakeServer) -> None:
    async with opened(server) as storage:
        await storage.upload("private/a.png", image(), content_type=PNG)
        server.stage("DELETE", "private/a.png", refuse(403, "AccessDenied"))
        with pytest.raises(StorageError):
            await storage.set_visibility("private/a.png", Visibility.PUBLIC)
        assert {"/photos/private/a.png", "/photos/public/a.png"} == set(server.objects)
        moved = await storage.set_visibility("private/a.png", Visibility.PUBLIC)
        assert (moved.key, moved.size) == ("public/a.png", len(image()))
        assert set(server.objects) == {"/photos/public/a.png"}
        assert server.objects["/photos/public/a.png"][1]["cache-control"] == "public, max-age=60"


async def test_only_public_objects_are_opened_by_an_acl_and_only_where_that_is_how(server: FakeServer) -> None:
    for access, acl in (("acl", "public-read"), ("policy", None)):
        server.objects.clear()
        server.requests.clear()
        async with opened(server, public_access=access, **IN_PARTS) as storage:
            await storage.upload("private/a.png", image(), content_type=PNG)
            await storage.upload("public/b.png", image(), content_type=PNG)
            await storage.upload("public/c.png", large_image(), content_type=PNG)
            await storage.set_visibility("private/a.png", Visibility.PUBLIC)
            await storage.set_visibility("public/b.png", Visibility.PRIVATE)
        sent = {
            path.partition("?")[0]: headers.get("x-amz-acl")
            for method, path, headers in server.requests
            if method in {"PUT", "POST"}
            and "smart-assets-check" not in path
            and "partNumber" not in path
            and "uploadId" not in path
        }
        assert sent == {
            "/photos/private/a.png": None,
            "/photos/public/b.png": acl,
            "/photos/public/c.png": acl,
            "/photos/public/a.png": acl,
            "/photos/private/b.png": None,
        }


# ── Errors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


REFUSALS: tuple[tuple[int, str, type[StorageError], str], ...] = (
    (403, "AccessDenied", StorageError, "lack a permission"),
    (403, "InvalidAccessKeyId", StorageError, "does not know its access key"),
    (403, "SignatureDoesNotMatch", StorageError, "secret access key"),
    (403, "RequestTimeTooSkewed", StorageError, "clock"),
    (400, "ExpiredToken", StorageError, "expired"),
    (403, "SomethingNew", StorageError, "lack a permission"),
    (404, "NoSuchBucket", StorageError, "bucket"),
    (400, "AuthorizationHeaderMalformed", StorageError, "ASSETS_S3__REGION"),
    (400, "AccessControlListNotSupported", StorageError, "ASSETS_S3__PUBLIC_ACCESS"),
    (501, "NotImplemented", StorageError, "cannot do"),
    (400, "InvalidStorageClass", StorageError, "InvalidStorageClass"),
    (412, "PreconditionFailed", ObjectExists, "taken"),
    (400, "BadDigest", WriteNotVerified, "other bytes"),
    (507, "InsufficientStorage", StorageFull, "no room"),
    (403, "QuotaExceeded", StorageFull, "no room"),
    (503, "SlowDown", StorageUnavailable, "busy"),
    (500, "InternalError", StorageUnavailable, "busy"),
    (429, "TooManyRequests", StorageUnavailable, "busy"),
    (400, "RequestTimeout", StorageUnavailable, "busy"),
    (409, "OperationAborted", StorageUnavailable, "busy"),
)


async def test_a_refusal_is_translated_and_says_no_more_than_it_should(server: FakeServer) -> None:
    async with opened(server) as storage:
        await storage.upload("private/a.png", image(), content_type=PNG)
        for status, code, kind, told in REFUSALS:
            server.stage("PUT", "private/b.png", *[refuse(status, code)] * 4)
            with pytest.raises(StorageError, match=told) as caught:
                await storage.upload("private/b.png", image(), content_type=PNG)
            assert type(caught.value) is kind, code
            assert (caught.value.storage, caught.value.key) == ("s3", "private/b.png")
            for secret in ("127.0.0.1", "/secret/path", "photos", "AKIAEXAMPLE"):
                assert secret not in caught.value.detail


async def test_what_the_credentials_may_not_see_is_not_said_to_be_missing(server: FakeServer) -> None:
    async with opened(server) as storage:
        server.stage("HEAD", "private/a.png", refuse(403, ""))
        with pytest.raises(StorageError) as caught:
            await storage.exists("private/a.png")
        assert not isinstance(caught.value, ObjectNotFound)


async def test_without_the_permission_to_list_the_check_says_so(server: FakeServer) -> None:
    async with opened(server) as storage:
        server.stage("HEAD", "smart-assets-check", refuse(403, ""), refuse(403, ""))
        with pytest.raises(StorageError, match="s3:ListBucket"):
            await storage.check()


async def test_an_answer_without_a_date_is_one_that_was_cut(server: FakeServer) -> None:
    def cut(handler: _Handler) -> bool:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        return True

    async with opened(server) as storage:
        server.stage("GET", "list-type=2", cut)
        with pytest.raises(StorageUnavailable):
            [record async for record in storage.list()]


async def test_a_download_whose_headers_were_cut_leaves_no_connection_open(server: FakeServer) -> None:
    def cut(handler: _Handler) -> bool:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\n")
        handler.close_connection = True
        return True

    async with opened(server) as storage:
        await storage.upload("private/a.png", image(), content_type=PNG)
        before = open_descriptors()
        server.stage("GET", "private/a.png", *[cut] * 3)
        for _again in range(3):
            with pytest.raises(StorageUnavailable):
                await read(storage, "private/a.png")
        async with asyncio.timeout(60):  # the server closes its ends a moment later
            while open_descriptors() > before:
                await asyncio.sleep(0.01)
