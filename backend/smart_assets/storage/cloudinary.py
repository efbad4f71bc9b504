"""Objects at Cloudinary, which takes images only.

Public objects are of its type `upload`, which anybody may fetch, all others of its type `authenticated`. The public id
is the key, escaped (see `public_id_of`). Writing, removing, moving and looking up go through the SDK to the Upload API,
which is not rationed; reading goes to that API's download address; listing alone is rationed, by the hour, as it has to
go to the Admin API.

Memory: the SDK encodes a whole request at once, so a file is in memory twice while it is sent; one of more than
`ASSETS_CLOUDINARY__LARGE_BYTES` goes in parts of that size, one of which is. Reading holds a piece at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, Final, Self, TypeVar
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit
from uuid import uuid4

import httpx
import urllib3
from pydantic import SecretStr

from smart_assets.disposition import MAX_CHARACTERS, cut_filename
from smart_assets.expiry import Validity
from smart_assets.formats import PIXEL, ImageFormat
from smart_assets.settings import CloudinarySettings, Settings, storage_variables
from smart_assets.storage.base import (
    LATE_WRITE_SECONDS,
    TURN_SECONDS,
    Capabilities,
    SignedUrl,
    Source,
    StorageBackend,
    StoredObject,
    check_key,
    pieces,
)
from smart_assets.storage.errors import (
    InvalidKey,
    ObjectExists,
    ObjectNotFound,
    ObjectRefused,
    StorageError,
    StorageNotConfigured,
    StorageUnavailable,
    Unsupported,
    WriteNotVerified,
)
from smart_assets.storage.keys import Visibility, validate_key, visibility_of, with_visibility
from smart_assets.threads import Threads, cancelled_since_now

try:
    import cloudinary
    import cloudinary.utils
    from cloudinary import exceptions
except ValueError as error:  # the SDK reads the environment for itself when it is imported
    raise StorageNotConfigured(
        "the SDK cannot read CLOUDINARY_URL, which must begin with cloudinary://", missing=("CLOUDINARY_URL",)
    ) from error

MAX_PUBLIC_ID: Final = 255

T = TypeVar("T")

_UPLOAD: Final = "upload"
_AUTHENTICATED: Final = "authenticated"
_API_URL: Final = "https://api.cloudinary.com"
_CDN_HOST: Final = "res.cloudinary.com"

_PAGE: Final = 500  # the most the Admin API lists at once
_READ_SECONDS: Final = 3600
_MAY_LAND_SECONDS: Final = LATE_WRITE_SECONDS
_BUSY: Final = {408, 420, 423, 425, 429}
_PAUSES: Final = (0.2, 0.8)
"""Seconds, at most, before a call that failed is tried again."""

# What an address may end with to say which format is to be delivered.
_FORMATS: Final = {image_format.extension for image_format in ImageFormat} | {"jpeg"}

# A folder of `v` and digits would be taken for a version.
_ESCAPED: Final = re.compile(r"[^A-Za-z0-9/-]|(?<![^/])v(?=[0-9])")
_OPEN_END: Final = re.compile(r"(?<![^/])v\Z")  # a digit may follow, or not
_ESCAPES: Final = re.compile(r"(?:_[0-9A-F]{2})+")


def public_id_of(path: str) -> str:
    """A path as a public id: letters, digits, `-` and `/` stay, every other byte of its UTF-8 becomes `_XX`.

    No two paths have the same one. Cloudinary forbids `?&#\\%<>+`, makes `_` of other special characters, and wants no
    extension in the id of an image (what follows the last dot of an address is the format to deliver): so `a.png` is
    `a_2Epng`.
    """
    return _ESCAPED.sub(lambda found: "".join(f"_{byte:02X}" for byte in found[0].encode()), path)


def path_of(public_id: str) -> str | None:
    """The path that `public_id_of` made a public id of; None where it made it of none."""
    try:
        path = _ESCAPES.sub(lambda found: bytes.fromhex(found[0].replace("_", "")).decode(), public_id)
    except UnicodeDecodeError:
        return None
    return path if public_id_of(path) == public_id else None


def public_id_prefix_of(prefix: str) -> str:
    """What the public ids of all paths begin with that begin with `prefix`; others' may begin so too."""
    return public_id_of(_OPEN_END.sub("", prefix))


@dataclass(frozen=True)
class Account:
    """Whose images, and where.

    `api_url` ends before `/v1_1`, `delivery_url` before `/image`.
    """

    cloud_name: str
    api_key: str
    api_secret: SecretStr
    api_url: str
    delivery_url: str

    @classmethod
    def of(cls, settings: CloudinarySettings, name: str) -> Self:
        """As the settings of the storage `name` say: the three parts before the URL, and addresses before both.

        StorageNotConfigured where the URL cannot be read.
        """
        if settings.cloud_name and settings.api_key and settings.api_secret:
            cloud, key, secret = settings.cloud_name, settings.api_key, settings.api_secret.get_secret_value()
            options: dict[str, str] = {}
        else:
            cloud, key, secret, options = _account_in(settings.url, name, settings.url_variable(name))
        return cls(
            cloud,
            key,
            SecretStr(secret),
            settings.api_url or options.get("upload_prefix", _API_URL).rstrip("/"),
            settings.delivery_url or _delivery_url(cloud, options),
        )


def _account_in(url: SecretStr | None, name: str, variable: str) -> tuple[str, str, str, dict[str, str]]:
    """`cloudinary://key:secret@cloud/distribution?option=value`, percent-decoded."""
    parts = urlsplit(url.get_secret_value() if url else "")
    credentials, _, cloud = parts.netloc.rpartition("@")  # not `.hostname`, which is in lower case
    key, _, secret = credentials.partition(":")
    if parts.scheme != "cloudinary" or not (cloud and key and secret):
        raise StorageNotConfigured(
            f"the storage {name} is not configured: {variable} must read cloudinary://key:secret@cloud",
            storage=name,
            missing=(variable,),
        )
    options = {option: values[0] for option, values in parse_qs(parts.query).items()}
    distribution = parts.path.strip("/")
    if distribution:
        options |= {"private_cdn": "true", "secure_distribution": distribution}
    return unquote(cloud), unquote(key), unquote(secret), options


def _delivery_url(cloud: str, options: Mapping[str, str]) -> str:
    """As the SDK takes it from these options, for https."""
    private = options.get("private_cdn", "").lower() == "true"
    host = options.get("secure_distribution", f"{cloud}-{_CDN_HOST}" if private else _CDN_HOST)
    return f"https://{host}" if private else f"https://{host}/{cloud}"


class CloudinaryStorage(StorageBackend):
    """Images of one account. Nothing is taken from the SDK's own configuration, which is the whole process's.

    Writes never overwrite one another as a rule, but of two at the same moment both may succeed: Cloudinary promises
    nothing there. A write is verified by the MD5 that Cloudinary gives of what it has. An upload in parts that is
    broken off leaves no object; Cloudinary drops the parts itself, and knows no way to ask for it.

    Signed URLs are of the API's own host, no CDN before them; Cloudinary's signed delivery URLs never expire. Objects
    have the headers Cloudinary gives them. A public object that was removed or went private may be served from the CDN
    for the seconds or minutes that an invalidation takes there.
    """

    def __init__(self, name: str, settings: CloudinarySettings) -> None:
        """StorageNotConfigured where the account's URL cannot be read."""
        super().__init__(name)
        self._settings = settings
        self._account = Account.of(settings, name)
        self._threads = Threads(f"storage-{name}", settings.max_connections, wait_seconds=TURN_SECONDS)
        self._uploads = _Uploader(self._account, settings)
        self._opening = asyncio.Lock()
        self._opened: httpx.AsyncClient | None = None
        self._unanswered: dict[str, float] = {}
        self.capabilities = Capabilities(
            arbitrary_bytes=False,
            max_object_bytes=settings.max_bytes,
            max_key_bytes=MAX_PUBLIC_ID - len(public_id_of(settings.prefix)),
            create_if_absent=False,
            signed_urls=True,
            verifies_writes=True,
            public_access=True,
            links_public=settings.public_access == "cdn",
        )

    @classmethod
    def from_settings(cls, name: str, own: CloudinarySettings, settings: Settings) -> Self:  # noqa: ARG003 - all have it
        """The account that its settings name."""
        return cls(name, own)

    async def close(self) -> None:
        """Close the connections and let the threads end."""
        self._threads.close()
        self._uploads.close()
        if self._opened is not None:
            await self._opened.aclose()

    # ── Primitives ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _put(self, key: str, source: Source, *, content_type: str, give_away: bool) -> StoredObject:
        upload = partial(self._uploads.upload, self._public_id(key), _type_of(key), source, cancelled_since_now())
        try:
            answer, md5 = await _patiently(partial(self._threads.run, upload), _found_nobody)
        except exceptions.Error as error:
            if _may_have_been_sent(error):
                self._unanswered[key] = time.monotonic() + _MAY_LAND_SECONDS
            raise
        if answer.get("existing"):
            raise ObjectExists("the key is taken")
        if answer.get("etag") != md5:
            await self.cleanup_failed_assets([key])
            raise WriteNotVerified(f"{self.name} reports other bytes than were sent")
        return _record(key, answer)

    async def _read(self, key: str, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        if start == end:
            await self._stat(key)
            return
        asked = {} if (start, end) == (0, None) else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        url = self._download_url(key, _an_hour_from_now())
        async with self._get(url, headers={"Accept-Encoding": "identity", **asked}) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                return
            await self._expect_success(response)
            # Nothing says that Cloudinary minds a range: where it does not, the whole comes.
            partial_content = response.status_code == httpx.codes.PARTIAL_CONTENT
            position = start if partial_content else 0
            async for piece in response.aiter_raw():
                wanted = piece[max(start - position, 0) : None if end is None else max(end - position, 0)]
                position += len(piece)
                if wanted:
                    yield wanted
                if end is not None and position >= end:
                    return

    async def _stat(self, key: str) -> StoredObject:
        # `explicit` changes nothing where it is asked for nothing, and answers with what is there.
        return _record(key, await self._call_api("explicit", self._public_id(key), type=_type_of(key)))

    async def _delete(self, key: str) -> bool:
        answer = await self._call_api("destroy", self._public_id(key), type=_type_of(key), invalidate=True)
        if answer.get("result") not in {"ok", "not found"}:
            raise StorageError(f"{self.name} did not remove the object")
        return bool(answer["result"] == "ok")

    async def _discard(self, key: str) -> None:
        if await self._delete(key):
            self._unanswered.pop(key, None)
        elif time.monotonic() < self._unanswered.get(key, 0):
            raise StorageUnavailable("the answer to its upload was lost: it may still arrive")
        now = time.monotonic()
        self._unanswered = {late: until for late, until in self._unanswered.items() if now < until}

    async def _list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        begins = public_id_prefix_of(f"{self._settings.prefix}{prefix}")
        for visibility, of_type in ((Visibility.PUBLIC, _UPLOAD), (Visibility.PRIVATE, _AUTHENTICATED)):
            if not _may_begin(prefix, visibility):
                continue
            cursor: str | None = None
            while True:
                page = await self._page(of_type, begins, cursor)
                for found in page["resources"]:
                    key = self._key(found["public_id"])
                    if key is not None and key.startswith(prefix) and visibility_of(key) is visibility:
                        yield _record(key, found)
                cursor = page.get("next_cursor")
                if cursor is None:
                    break

    async def _move(self, key: str, target: str) -> StoredObject:
        try:
            renamed = await self._call_api(
                "rename",
                self._public_id(key),
                self._public_id(target),
                type=_type_of(key),
                to_type=_type_of(target),
                overwrite=False,
                invalidate=True,
            )
        except ObjectExists:
            return await self._finish_move(key, target)
        return _record(target, renamed)

    async def _finish_move(self, key: str, target: str) -> StoredObject:
        """Where both are there: the same object, of which one goes, or two, of which both stay."""
        there, here = await self._stat(target), await self._stat(key)
        if here.etag is None or (here.etag, here.size) != (there.etag, there.size):
            raise ObjectExists("the key is taken", key=target)
        await self._delete(key)
        return there

    async def _ping(self) -> None:
        # That there is no such object is the answer of a server that found the signature right.
        with suppress(ObjectNotFound):
            async with self._get(self._download_url("private/smart-assets-ping", _an_hour_from_now())) as response:
                await self._expect_success(response)

    async def _check(self) -> None:
        private = f"{check_key(Visibility.PRIVATE)}.png"
        public = with_visibility(private, Visibility.PUBLIC)
        try:
            await self._put(private, PIXEL, content_type=ImageFormat.PNG.media_type, give_away=False)
            if b"".join([piece async for piece in self._read(private, 0, None)]) != PIXEL:
                raise StorageError(f"{self.name} gives back other bytes than were written")
            if await self._status_for_strangers(self._address(private)) < httpx.codes.BAD_REQUEST:
                raise StorageError(f"{self.name} gives private images to strangers: restrict `authenticated` delivery")
            await self._move(private, public)
            status = await self._status_for_strangers(self._public_url(public))
            if status != httpx.codes.OK:
                raise StorageError(
                    f"{self.name} refuses public images to strangers (status {status}): look at "
                    f"{storage_variables(self.name)}PUBLIC_URL, __DELIVERY_URL and __TRANSFORMATION, and whether the "
                    "account restricts the delivery type `upload`"
                )
            if not await self._delete(public):
                raise StorageError(f"{self.name} does not find what it has just moved")
        finally:
            await self.cleanup_failed_assets([private, public])

    async def _remove_old_checks(self) -> None:
        """Nothing: listing is rationed here, and `reconcile` lists what was left."""

    # ── Addresses ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _public_url(self, key: str) -> str:
        base = self._settings.public_url or f"{self._account.delivery_url}/image/{_UPLOAD}"
        return "/".join(part for part in (base, self._settings.transformation, self._delivered(key)) if part)

    def _address(self, key: str) -> str:
        """Where the object would be delivered, were it open."""
        return f"{self._account.delivery_url}/image/{_type_of(key)}/{self._delivered(key)}"

    def _delivered(self, key: str) -> str:
        """The id, and the format where the key has one; `v1/` so that no folder is taken for a transformation."""
        extension = key.rpartition("/")[2].rpartition(".")[2].lower()
        suffix = f".{extension}" if extension in _FORMATS else ""
        return f"v1/{self._public_id(key)}{suffix}"

    async def _signed_url(self, key: str, validity: Validity, filename: str | None) -> SignedUrl:
        return SignedUrl(self._download_url(key, validity, filename), datetime.fromtimestamp(validity.expires, tz=UTC))

    def _download_url(self, key: str, validity: Validity, filename: str | None = None) -> str:
        """The SDK's `private_download_url`, but that it tells no time of its own; delivered as it was uploaded.

        Without `attachment` a browser shows the image. How Cloudinary words the header of a `target_filename` is its
        own affair.
        """
        name = cut_filename((filename or "").replace("\\", "/").rpartition("/")[2], MAX_CHARACTERS)
        parameters = {
            "timestamp": str(validity.begins),
            "expires_at": str(validity.expires),
            "public_id": self._public_id(key),
            "type": _type_of(key),
            "target_filename": name,
        }
        signed = cloudinary.utils.sign_request(parameters, self._uploads.options)  # type: ignore[no-untyped-call]
        return f"{self._api('image/download')}?{urlencode(signed, quote_via=quote)}"

    def _api(self, path: str) -> str:
        return f"{self._account.api_url}/{cloudinary.API_VERSION}/{self._account.cloud_name}/{path}"

    # ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_key(self, key: str) -> None:
        super()._check_key(key)
        if len(self._public_id(key)) > MAX_PUBLIC_ID:
            raise Unsupported(
                f"{self.name} takes keys of up to {self.capabilities.max_key_bytes} bytes, of which all but letters, "
                "digits, '-' and '/' count three times",
                storage=self.name,
                key=key,
            )

    def _public_id(self, key: str) -> str:
        return public_id_of(f"{self._settings.prefix}{key}")

    def _key(self, public_id: str) -> str | None:
        """The key of a public id; None where it is somebody else's."""
        path = path_of(public_id)
        if path is None or not path.startswith(self._settings.prefix):
            return None
        try:
            return validate_key(path.removeprefix(self._settings.prefix))
        except InvalidKey:
            return None

    # ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _call_api(self, method: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        """One of the SDK's methods, which may be called again where nobody knows what came of it; its answer."""
        call = partial(self._uploads.call, method, *arguments, **options)
        try:
            return await _patiently(partial(self._threads.run, call), _may_pass)
        except exceptions.Error as error:
            raise self._sdk_error(error) from error

    async def _client(self) -> httpx.AsyncClient:
        async with self._opening:
            if self._opened is None:
                # Reading the certificates takes long enough to do it elsewhere than on the event loop.
                certificates = await self._threads.run(partial(httpx.create_ssl_context, trust_env=False))
                connections = self._settings.max_connections
                self._opened = httpx.AsyncClient(
                    verify=certificates,
                    trust_env=False,
                    follow_redirects=True,
                    limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
                    timeout=httpx.Timeout(
                        self._settings.timeout_seconds, connect=self._settings.connect_timeout_seconds, pool=None
                    ),
                )
            return self._opened

    @asynccontextmanager
    async def _get(
        self, url: str, *, auth: tuple[str, str] | None = None, **options: Any
    ) -> AsyncIterator[httpx.Response]:
        client = await self._client()

        async def ask() -> httpx.Response:
            response = await client.send(client.build_request("GET", url, **options), auth=auth, stream=True)
            if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                await response.aclose()
                raise self._refusal(response.status_code)
            return response

        response = await _patiently(ask, _may_pass)
        try:
            yield response
        finally:
            await response.aclose()

    async def _page(self, of_type: str, prefix: str, cursor: str | None) -> dict[str, Any]:
        query = {"prefix": prefix, "max_results": str(_PAGE)} | ({"next_cursor": cursor} if cursor else {})
        credentials = (self._account.api_key, self._account.api_secret.get_secret_value())
        async with self._get(self._api(f"resources/image/{of_type}"), params=query, auth=credentials) as response:
            await self._expect_success(response)
            page = json.loads(await response.aread())
            if not isinstance(page, dict) or "resources" not in page:
                raise self._refusal(response.status_code)
            return page

    async def _status_for_strangers(self, url: str) -> int:
        async with self._get(url) as response:
            return response.status_code

    async def _expect_success(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        message = _message_in(await response.aread())
        if message is not None and response.status_code == httpx.codes.NOT_FOUND:
            raise ObjectNotFound("there is no such object")
        if message is not None and response.status_code == httpx.codes.BAD_REQUEST:
            raise self._bad_request(message)
        raise self._refusal(response.status_code, retry_after=_seconds_until_reset(response))

    # ── Errors ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _translate(self, error: Exception, key: str | None) -> StorageError | None:
        match error:
            case exceptions.Error():
                return self._sdk_error(error)
            case httpx.TransportError():
                return StorageUnavailable(f"the storage {self.name} cannot be reached, or does not answer")
            case json.JSONDecodeError() | httpx.HTTPError() | httpx.InvalidURL():
                return self._refusal(200)
            case OSError():
                return StorageError(f"the file for the storage {self.name} could not be read")
        return None

    def _sdk_error(self, error: exceptions.Error) -> StorageError:
        match error:
            case exceptions.NotFound():
                return ObjectNotFound("there is no such object")
            case exceptions.AlreadyExists():
                return ObjectExists("the key is taken")
            case exceptions.BadRequest():
                return self._bad_request(str(error))
            case exceptions.AuthorizationRequired():
                return self._refusal(401)
            case exceptions.NotAllowed():
                return self._refusal(403)
            case exceptions.RateLimited() | exceptions.GeneralError():
                return self._refusal(503)
        return self._refusal(_status_told(error))

    def _bad_request(self, message: str) -> StorageError:
        if "already exists" in message:
            return ObjectExists("the key is taken")
        if message.startswith("Stale request"):
            return StorageError(f"{self.name} refuses the request: this machine's clock is off by more than an hour")
        if "Invalid image" in message or "Empty file" in message:
            return ObjectRefused(f"{self.name} takes images only, and says that this is none")
        if message.startswith("File size too large"):
            return StorageError(
                f"{self.name} takes no file so large: {storage_variables(self.name)}MAX_BYTES is the plan's limit"
            )
        return StorageError(f"{self.name} refuses the request")

    def _refusal(self, status: int, *, retry_after: int | None = None) -> StorageError:
        """The error for an answer of that status which says nothing more."""
        if status in _BUSY or status >= 500:
            return StorageUnavailable(
                f"the storage {self.name} cannot answer now, or its ration of calls is used up",
                retry_after=retry_after,
            )
        if status in {401, 403}:
            return StorageError(
                f"{self.name} refuses access: look at the cloud name, the API key and its secret, the signature "
                "algorithm, and what the key is allowed to do"
            )
        return StorageError(
            f"{self.name} gave an answer that is not Cloudinary's: look at {storage_variables(self.name)}API_URL"
        )


class _Uploader:
    """The SDK's calls, for one account. Every method blocks; all may be used from many threads at once."""

    def __init__(self, account: Account, settings: CloudinarySettings) -> None:
        """Opens nothing yet."""
        self._large_bytes = settings.large_bytes
        self._lock = threading.Lock()
        self._sdk: ModuleType | None = None
        self._pool: urllib3.PoolManager | None = None
        self._silence_seconds = settings.timeout_seconds
        self._connections = settings.max_connections
        # Whatever is left out here, the SDK takes from its configuration of the whole process.
        self.options: Final[Mapping[str, Any]] = {
            "resource_type": "image",
            "cloud_name": account.cloud_name,
            "api_key": account.api_key,
            "api_secret": account.api_secret.get_secret_value(),
            "oauth_token": None,
            "upload_prefix": account.api_url,
            "upload_preset": "",
            "signature_algorithm": settings.signature_algorithm,
            "signature_version": 2,
            "timeout": urllib3.Timeout(connect=settings.connect_timeout_seconds, read=settings.timeout_seconds),
        }

    def call(self, method: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        """One of the SDK's methods; its answer, or what it raises."""
        answer: dict[str, Any] = getattr(self._module(), method)(*arguments, **{**self.options, **options})
        return answer

    def upload(
        self, public_id: str, of_type: str, source: Source, cancelled: Callable[[], bool]
    ) -> tuple[dict[str, Any], str]:
        """Cloudinary's answer, and the MD5 of what was sent. Looks between two parts whether it is `cancelled`."""
        options = {
            "public_id": public_id,
            "type": of_type,
            "overwrite": False,
            "use_filename": False,
            "unique_filename": False,
            "discard_original_filename": True,
        }
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        md5 = hashlib.md5(usedforsecurity=False)
        if size <= self._large_bytes:
            data = source if isinstance(source, bytes) else source.read_bytes()
            md5.update(data)
            # A name and bytes: the SDK takes a text for a path to read, or an address to fetch.
            return self.call("upload", ("file", data), **options), md5.hexdigest()
        answer: dict[str, Any] = {}
        upload_id, position = uuid4().hex, 0
        for part in pieces(source, self._large_bytes):
            if cancelled():
                raise StorageUnavailable("the upload was broken off")
            md5.update(part)
            headers = {
                "Content-Range": f"bytes {position}-{position + len(part) - 1}/{size}",
                "X-Unique-Upload-Id": upload_id,
            }
            answer = self.call("upload_large_part", ("file", part), http_headers=headers, **options)
            position += len(part)
        return answer, md5.hexdigest()

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            if self._pool is not None:
                for key in self._pool.pools.keys():  # noqa: SIM118 - it cannot be iterated over
                    self._pool.pools[key].close()  # `clear` leaves that to the garbage collector
                self._pool.clear()

    def _module(self) -> ModuleType:
        """The SDK's uploader, loaded a second time for a pool of connections of its own.

        The one everybody imports has one for the whole process: it keeps a single connection, goes through whatever
        CLOUDINARY_API_PROXY names, and cannot be closed.
        """
        with self._lock:
            if self._sdk is None:
                spec = find_spec("cloudinary.uploader")
                if spec is None or spec.loader is None:
                    raise StorageNotConfigured("the SDK of Cloudinary is incomplete")
                module = module_from_spec(spec)
                spec.loader.exec_module(module)
                self._pool = _pool(self._connections, self._silence_seconds)
                vars(module)["_http"] = self._pool
                self._sdk = module
            return self._sdk


def _pool(connections: int, silence_seconds: float) -> urllib3.PoolManager:
    """Connections on which a server may stay silent so long, also while it is being sent to.

    urllib3 applies the time for connecting to the sending too, which on a slow line is over before an image is.
    """

    class Patient(urllib3.HTTPConnectionPool):
        def _validate_conn(self, conn: Any) -> None:
            super()._validate_conn(conn)
            if conn.is_closed:
                conn.connect()
            conn.timeout = silence_seconds

    class PatientAndSecure(urllib3.HTTPSConnectionPool):
        def _validate_conn(self, conn: Any) -> None:
            super()._validate_conn(conn)
            conn.timeout = silence_seconds

    certificates: dict[str, Any] = cloudinary.CERT_KWARGS
    pool = urllib3.PoolManager(maxsize=connections, retries=urllib3.Retry(0), **certificates)
    pool.pool_classes_by_scheme = {"http": Patient, "https": PatientAndSecure}
    return pool


async def _patiently(call: Callable[[], Awaitable[T]], is_worth_it: Callable[[Exception], bool]) -> T:
    """What a call answers, made again, a few times and after a moment, where it fails in a way that is worth it."""
    for pause in _PAUSES:
        try:
            return await call()
        except Exception as error:
            if not is_worth_it(error):
                raise
        await asyncio.sleep(pause * random.SystemRandom().uniform(0.5, 1))  # apart from others that failed with it
    return await call()


def _found_nobody(error: Exception) -> bool:
    """Whether a call was never sent, as there was no connection to send it on."""
    never_connected = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    return isinstance(_reason(error), never_connected)


def _may_have_been_sent(error: exceptions.Error) -> bool:
    """Whether a call that failed may be carried out all the same: it was not refused, and its answer was lost."""
    if type(error) is not exceptions.Error:
        return isinstance(error, exceptions.GeneralError)
    return not _found_nobody(error)


def _may_pass(error: Exception) -> bool:
    """Whether the connection broke, or the server failed: not where it took its time, or says how often it answers."""
    match error:
        case httpx.TransportError():
            return not isinstance(error, httpx.TimeoutException)
        case StorageUnavailable() | exceptions.GeneralError():
            return True
        case exceptions.Error() if type(error) is exceptions.Error:
            return not isinstance(_reason(error), urllib3.exceptions.TimeoutError) and _status_told(error) >= 500
    return False


def _reason(error: Exception) -> object:
    """What urllib3 says went wrong."""
    return getattr(error.__context__, "reason", error.__context__)


def _status_told(error: exceptions.Error) -> int:
    """The status of an answer that is not Cloudinary's, which the SDK tells in words; 503 for half of one, or none."""
    told = re.match(r"Error parsing server response \((\d+)\) - b(?!''|['\"]\{)", str(error))
    return int(told[1]) if told else 503


def _type_of(key: str) -> str:
    return _UPLOAD if visibility_of(key) is Visibility.PUBLIC else _AUTHENTICATED


def _may_begin(prefix: str, visibility: Visibility) -> bool:
    """Whether keys of that visibility may begin with `prefix`."""
    public = f"{Visibility.PUBLIC}/"
    if visibility is Visibility.PUBLIC:
        return prefix.startswith(public) or public.startswith(prefix)
    return not prefix.startswith(public)


def _an_hour_from_now() -> Validity:
    return Validity.of(time.time(), _READ_SECONDS)


def _record(key: str, answer: Mapping[str, Any]) -> StoredObject:
    if "bytes" not in answer:
        raise StorageError("the answer does not say what is there")
    image_format = answer.get("format")
    created = answer.get("created_at")
    return StoredObject(
        key=key,
        size=answer["bytes"],
        etag=answer.get("etag"),
        modified=datetime.fromisoformat(created) if created else None,
        content_type=f"image/{'jpeg' if image_format == 'jpg' else image_format}" if image_format else None,
    )


def _message_in(body: bytes) -> str | None:
    """What Cloudinary says is wrong; None where somebody else answers."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, TypeError, LookupError):
        return None


def _seconds_until_reset(response: httpx.Response) -> int | None:
    """Until the ration of calls is full again."""
    try:
        reset = parsedate_to_datetime(response.headers["X-FeatureRateLimit-Reset"])
        return max(1, int((reset - datetime.now(UTC)).total_seconds()) + 1)
    except (LookupError, TypeError, ValueError):
        return None
