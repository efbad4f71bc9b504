"""Objects in Google Cloud Storage: in one bucket, or public ones in a bucket of their own."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Final, Protocol, Self
from urllib.parse import quote
from uuid import uuid4

import google.auth
import google.auth.credentials
import google_crc32c
import requests
import urllib3
from anyio import CancelScope
from google.api_core import exceptions as answers
from google.api_core.retry import Retry
from google.auth import exceptions as auth
from google.auth.transport.requests import AuthorizedSession, Request
from google.cloud import storage
from google.cloud.storage.exceptions import InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from google.oauth2 import service_account
from requests.adapters import HTTPAdapter

from smart_assets.disposition import content_disposition
from smart_assets.expiry import Validity
from smart_assets.settings import GcsSettings, KiB, MiB, Settings, storage_variables
from smart_assets.storage.base import (
    LATE_WRITE_SECONDS,
    TURN_SECONDS,
    Capabilities,
    PresignedUpload,
    SignedUrl,
    Source,
    StorageBackend,
    StoredObject,
    check_key,
)
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
from smart_assets.storage.keys import Visibility, validate_key, visibility_of
from smart_assets.storage.presign import GOOGLE, object_url, signable_get, signable_post
from smart_assets.threads import Threads

GOOGLE_URL: Final = "https://storage.googleapis.com"
IAM_URL = "https://iamcredentials.googleapis.com"
EMULATOR: Final = "STORAGE_EMULATOR_HOST"

_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)

_LONGEST_SECONDS: Final = 604_800
# "The key used for signing will remain valid for at least 12 hours after the blob is signed" (IAM's signBlob).
_LONGEST_BY_IAM_SECONDS: Final = 43_200

_READ_BYTES: Final = 4 * MiB
_PAGE: Final = 1000
_SINGLE_REQUEST_BYTES: Final = 8 * MiB  # the SDK's own limit
_PART_MULTIPLE: Final = 256 * KiB  # the server's
_MAX_SIGNATURES: Final = 4096
_MACHINES_ACCOUNT: Final = "default"  # the account of Google's machines, until they have asked for its name

# On each object written in a single request: says whose write it was, when the answer to it was lost.
_WRITE: Final = "smart-assets-write"

_LISTED: Final = "items(name,size,generation,timeCreated,contentType),nextPageToken"
_OVERLOADED: Final = {"rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded", "dailyLimitExceeded"}


class GcsStorage(StorageBackend):
    """A bucket, or two where public objects have their own; a move between them is a copy on the server.

    A write carries its CRC32C, which the server checks before there is an object, and the condition that there be
    none. Small objects go in one request, for which the SDK makes one whole copy in memory, of at most 8 MiB; larger
    ones in parts of `resumable_bytes`, one in memory at a time. What is left of an upload broken off is not an object
    and cannot be listed; it is given up at once, or else forgotten by Google after a week.

    The etag is the generation: uploads, look-ups and lists all tell it, with customers' keys too. Access is the
    bucket's own affair: nothing here reads or sets an ACL.
    """

    late_write_seconds = LATE_WRITE_SECONDS

    def __init__(self, name: str, settings: GcsSettings, public_cache_seconds: int) -> None:
        """`public_cache_seconds`: how long caches may keep a public object."""
        super().__init__(name)
        if settings.bucket is None:
            raise StorageNotConfigured(
                f"the storage {name} has no bucket", storage=name, missing=settings.missing(name)
            )
        emulator = os.environ.get(EMULATOR)
        self._settings = settings
        self._private_bucket = settings.bucket
        self._public_bucket = settings.public_bucket or settings.bucket
        self._anonymous = bool(emulator) and not (settings.credentials_file or settings.credentials_json)
        self._endpoint = settings.endpoint_url or (_with_scheme(emulator) if emulator else None)
        self._address = settings.signing_endpoint_url or self._endpoint or GOOGLE_URL
        self._public_cache = f"public, max-age={public_cache_seconds}"
        self.capabilities = Capabilities(
            signed_urls=not self._anonymous,
            presigned_uploads=not self._anonymous,
            caps_uploads=not self._anonymous,
            verifies_writes=True,
            public_access=settings.public_url is not None or settings.public_access == "policy",
        )
        self._timeout = (settings.connect_timeout_seconds, settings.timeout_seconds)
        # Tried again for about as long as one waits for a connection: the caller has a deadline of its own.
        self._retry: Retry = DEFAULT_RETRY.with_delay(initial=0.2, maximum=2.0).with_timeout(
            settings.connect_timeout_seconds
        )
        self._threads = Threads(f"storage-{name}", settings.max_connections, wait_seconds=TURN_SECONDS)
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._signatures: OrderedDict[bytes, bytes] = OrderedDict()

    @classmethod
    def from_settings(cls, name: str, own: GcsSettings, settings: Settings) -> Self:
        """As its settings say; asks nobody yet."""
        return cls(name, own, settings.public_cache_seconds)

    async def close(self) -> None:
        """Close the connections and let the threads end."""
        self._threads.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # ── Primitives ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _put(self, key: str, source: Source, *, content_type: str, give_away: bool) -> StoredObject:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size <= min(self._settings.resumable_bytes, _SINGLE_REQUEST_BYTES):
            return await self._threads.run(partial(self._write, key, source, content_type))
        # Each part may take its time: what it is given to be tried again begins with it.
        patient = self._retry.with_timeout(sum(self._timeout))
        upload = _ResumableUpload(self._connect, source, size, self._settings.resumable_bytes, self._timeout, patient)
        try:
            await self._threads.run(lambda: upload.begin(self._new(key, content_type, source)))
            while not upload.finished:
                await self._threads.run(upload.send)
        except BaseException:
            with CancelScope(shield=True):
                await self._threads.run(upload.give_up)
            raise
        return await self._threads.run(partial(self._verified, key, upload.uploaded))

    async def _read(self, key: str, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        if start == end:
            await self._stat(key)
            return
        whole = start == 0
        checksum: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]
        stop = start + _READ_BYTES if end is None else min(start + _READ_BYTES, end)
        piece = await self._threads.run(partial(self._fetch, key, start, stop, None))
        end = piece.size if end is None else min(end, piece.size)
        while start < end:
            if len(piece.data) != min(stop, end) - start:
                raise StorageUnavailable("the object came incomplete")
            checksum.update(piece.data)
            yield piece.data
            start = stop
            if start < end:
                stop = min(start + _READ_BYTES, end)
                # Of the same generation: of an object replaced meanwhile nothing is mixed in.
                piece = await self._threads.run(partial(self._fetch, key, start, stop, piece.generation))
        if whole and end == piece.size and piece.crc32c not in {None, _base64(checksum.digest())}:
            raise StorageUnavailable("the object came with other bytes than it has")

    async def _stat(self, key: str) -> StoredObject:
        return await self._threads.run(partial(self._look_up, key))

    async def _delete(self, key: str) -> bool:
        return await self._threads.run(partial(self._remove, key))

    async def _list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        for bucket in self._buckets_of(prefix):
            pages = self._pages(bucket, prefix)
            while (page := await self._threads.run(partial(next, pages, None))) is not None:
                for record in page:
                    yield record

    async def _move(self, key: str, target: str) -> StoredObject:
        return await self._threads.run(partial(self._copy_and_remove, key, target))

    async def _ping(self) -> None:
        # The cheapest question there is: a look-up, which costs a tenth of a list.
        with suppress(ObjectNotFound):
            await self._threads.run(partial(self._look_up, f"{Visibility.PRIVATE}/.ping"))

    def _public_url(self, key: str) -> str | None:
        if self._settings.public_url:
            return object_url(self._settings.public_url, key)
        return self._object_url(self._address, key)

    async def _signed_url(self, key: str, validity: Validity, filename: str | None) -> SignedUrl:
        if validity.seconds > _LONGEST_SECONDS:
            raise Unsupported("Google Cloud Storage signs URLs for seven days at most")
        return await self._threads.run(partial(self._sign, key, validity, filename))

    async def _presigned_upload(self, key: str, max_bytes: int, validity: Validity) -> PresignedUpload:
        return await self._threads.run(partial(self._sign_form, key, max_bytes, validity))

    # ── What the threads do ─────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, key: str, source: Source, content_type: str) -> StoredObject:
        data = source if isinstance(source, bytes) else source.read_bytes()
        blob = self._new(key, content_type, data)
        expected, write = blob.crc32c, str(uuid4())
        blob.metadata = {_WRITE: write}
        try:
            blob.upload_from_file(
                io.BytesIO(data),
                size=len(data),
                content_type=content_type,
                if_generation_match=0,
                checksum=None,  # the metadata holds it already
                timeout=self._timeout,
                retry=self._retry,
            )
        except answers.PreconditionFailed as taken:
            # Tried again after the answer was lost, the write finds itself.
            try:
                blob = self._reloaded(key)
            except ObjectNotFound:
                raise taken from None
            if (blob.metadata or {}).get(_WRITE) != write:
                raise
        return self._verified(key, _Uploaded(expected, blob.crc32c, blob.generation), blob)

    def _verified(self, key: str, uploaded: _Uploaded, blob: Any = None) -> StoredObject:
        """The record. Google has compared the checksums before; what stands in for it may not have."""
        if uploaded.reported != uploaded.expected:
            with suppress(answers.NotFound, answers.PreconditionFailed):
                self._blob(key).delete(
                    if_generation_match=uploaded.generation, timeout=self._timeout, retry=self._retry
                )
            raise WriteNotVerified("Google Cloud Storage reports another checksum than that of what was sent")
        return self._record(key, blob or self._reloaded(key))

    def _fetch(self, key: str, start: int, end: int, generation: str | None) -> _Piece:
        connection = self._connect()
        query = {"alt": "media"} | ({"generation": generation} if generation else {})
        # gzip: what somebody stored compressed comes as it lies there, and not unpacked without regard to the range.
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "gzip"}
        url = f"{connection.client.api_endpoint}/download/storage/v1{self._blob(key).path}"

        def attempt() -> _Piece:
            with connection.session.get(
                url, params=query, headers=headers, timeout=self._timeout, stream=True
            ) as response:
                if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    return _Piece(b"", 0, None, None)
                if not response.ok:
                    raise answers.from_http_response(response)  # type: ignore[no-untyped-call]
                return _Piece.of(response, start, end)

        try:
            piece: _Piece = self._retry(attempt)()
        except answers.NotFound as error:
            if generation is None or _is_bucket_missing(error):
                raise
            raise StorageUnavailable("the object was replaced or removed while it was read") from error
        return piece

    def _look_up(self, key: str) -> StoredObject:
        return self._record(key, self._reloaded(key))

    def _remove(self, key: str) -> bool:
        try:
            self._blob(key).delete(timeout=self._timeout, retry=self._retry)
        except answers.NotFound as error:
            if _is_bucket_missing(error):
                raise
            return False
        return True

    def _pages(self, bucket: str, prefix: str) -> Iterator[list[StoredObject]]:
        blobs = self._connect().client.list_blobs(
            bucket,
            prefix=f"{self._settings.prefix}{prefix}",
            fields=_LISTED,
            page_size=_PAGE,
            timeout=self._timeout,
            retry=self._retry,
        )
        for page in blobs.pages:
            yield [
                self._record(key, blob)
                for blob in page
                if _is_key(key := blob.name.removeprefix(self._settings.prefix)) and self._bucket_of(key) == bucket
            ]

    def _copy_and_remove(self, key: str, target: str) -> StoredObject:
        source = self._reloaded(key)
        copy = self._new(target, source.content_type)
        # What is not said here anew the copy would not have.
        copy.storage_class = self._settings.storage_class or source.storage_class
        if source.content_encoding:
            copy.content_encoding = source.content_encoding
        if source.metadata:
            copy.metadata = source.metadata
        try:
            with _told_from_a_missing_bucket():
                token, _, _ = copy.rewrite(source, if_generation_match=0, timeout=self._timeout, retry=self._retry)
                while token is not None:  # between places or classes a large object is copied in steps
                    token, _, _ = copy.rewrite(
                        source, token=token, if_generation_match=0, timeout=self._timeout, retry=self._retry
                    )
        except answers.PreconditionFailed as error:
            # A move broken off after the copy, or another object; one still being moved here is not told from the
            # former, so that of two movers both may come to the end.
            copy = self._reloaded(target)
            if (copy.size, copy.crc32c) != (source.size, source.crc32c):
                raise ObjectExists("the key is taken", key=target) from error
        try:
            source.delete(if_generation_match=source.generation, timeout=self._timeout, retry=self._retry)
        except answers.NotFound:
            pass  # somebody else has come to the end
        except answers.PreconditionFailed as error:
            raise StorageError("the object was replaced while it was moved") from error
        return self._record(target, copy)

    # ── Signing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _who_signs(self) -> _Signer:
        signer = self._connect().signer
        if signer is None:
            raise Unsupported(
                f"the credentials of the storage {self.name} are no service account's, and URLs are signed by one: "
                f"name it in {storage_variables(self.name)}SIGNING_ACCOUNT"
            )
        return signer

    def _sign_form(self, key: str, max_bytes: int, validity: Validity) -> PresignedUpload:
        signer = self._who_signs()
        validity = Validity(validity.begins, min(validity.expires, validity.begins + signer.longest_seconds))
        bucket = self._bucket_of(key)
        form = signable_post(
            GOOGLE,
            bucket=bucket,
            key=f"{self._settings.prefix}{key}",
            identity=signer.account,
            region="auto",
            validity=validity,
            max_bytes=max_bytes,
            fields={"Content-Type": "application/octet-stream"},
        )
        fields = form.fields(signer.sign(form.string_to_sign).hex())
        expires_at = datetime.fromtimestamp(validity.expires, tz=UTC)
        return PresignedUpload("POST", f"{self._address}/{bucket}/", expires_at, fields)

    def _sign(self, key: str, validity: Validity, filename: str | None) -> SignedUrl:
        signer = self._who_signs()
        if signer.longest_seconds < validity.seconds:
            validity = Validity.of(time.time(), signer.longest_seconds, not_after=validity.expires)
        signable = signable_get(
            GOOGLE,
            self._object_url(self._address, key),
            identity=signer.account,
            region="auto",
            validity=validity,
            parameters={} if filename is None else {"response-content-disposition": content_disposition(filename)},
        )
        signature = self._signature(signer, signable.string_to_sign)
        return SignedUrl(signable.url(signature.hex()), datetime.fromtimestamp(validity.expires, tz=UTC))

    def _signature(self, signer: _Signer, string: bytes) -> bytes:
        """Kept as long as there is room: within a window the string is the same, and IAM is asked for it once."""
        with self._lock:
            if string in self._signatures:
                self._signatures.move_to_end(string)
                return self._signatures[string]
        signature = signer.sign(string)
        with self._lock:
            self._signatures[string] = signature
            if len(self._signatures) > _MAX_SIGNATURES:
                self._signatures.popitem(last=False)
        return signature

    # ── Checking ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _check(self) -> None:
        data = uuid4().bytes
        for visibility in Visibility:
            key = check_key(visibility)
            try:
                await self._threads.run(partial(self._write, key, data, "application/octet-stream"))
                await self._check_object(key, data)
                await self._check_delete(key)
            except BaseException:
                with CancelScope(shield=True), suppress(Exception):
                    await self._delete(key)
                raise

    async def _check_object(self, key: str, data: bytes) -> None:
        if b"".join([chunk async for chunk in self._read(key, 0, None)]) != data:
            raise StorageError("an object came back with other bytes than were written")
        url = self._object_url(self._endpoint or GOOGLE_URL, key)
        if visibility_of(key) is Visibility.PUBLIC:
            if self._settings.public_access == "policy" and await self._strangers_get(url) != data:
                raise StorageError(
                    f"{storage_variables(self.name)}PUBLIC_ACCESS says `policy`, but strangers cannot read public "
                    "objects: give `allUsers` the role `roles/storage.legacyObjectReader` on the public bucket, or on "
                    "a managed folder `public/`"
                )
            return
        # To an emulator without credentials the service is a stranger itself.
        if not self._anonymous and await self._strangers_get(url) is not None:
            raise StorageError("strangers can read private objects: take `allUsers` out of the bucket's IAM policy")
        if self.capabilities.signed_urls:
            await self._check_signing(key, data)

    async def _check_delete(self, key: str) -> None:
        if not await self._delete(key):
            raise StorageError("an object that had just been written was gone")

    async def _check_signing(self, key: str, data: bytes) -> None:
        try:
            signed = await self._signed_url(key, Validity.of(time.time(), 60), None)
        except Unsupported:
            return  # found out: `capabilities` says so from now on
        # An address of its own may well be out of this machine's reach.
        if self._settings.signing_endpoint_url is None and await self._strangers_get(signed.url) != data:
            raise StorageError(
                "a signed URL was refused: the account that signs needs `storage.objects.get` on the bucket, and this "
                "machine's clock must be right"
            )

    async def _strangers_get(self, url: str) -> bytes | None:
        """What anybody gets there; None where it is refused."""

        def fetch() -> bytes | None:
            with _mount(requests.Session(), _Adapter()) as session:
                response = session.get(url, timeout=self._timeout, allow_redirects=False)
            if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR or response.status_code == 429:
                raise answers.from_http_response(response)  # type: ignore[no-untyped-call]
            return response.content if response.ok else None

        return await self._threads.run(fetch)

    # ── What was said, translated ───────────────────────────────────────────────────────────────────────────────────

    def _translate(self, error: Exception, key: str | None) -> StorageError | None:
        match error:
            case answers.GoogleAPICallError():
                return _translate_answer(error)
            case InvalidResponse():
                return _translate_answer(answers.from_http_response(error.response))  # type: ignore[no-untyped-call]
            case answers.RetryError() | requests.RequestException() | urllib3.exceptions.HTTPError():
                return StorageUnavailable("Google Cloud Storage does not answer")
            case auth.DefaultCredentialsError():
                return StorageNotConfigured(
                    f"the storage {self.name} has no credentials: Google's default chain finds none",
                    missing=("GOOGLE_APPLICATION_CREDENTIALS",),
                )
            case auth.GoogleAuthError():
                if _is_passing(error):
                    return StorageUnavailable("Google's token service does not answer")
                return StorageError("Google does not accept the credentials of the storage")
            case OSError():
                return StorageError("the file to be stored could not be read")
        return None

    # ── The way there ───────────────────────────────────────────────────────────────────────────────────────────────

    def _connect(self) -> _Connection:
        """The one connection, made when it is first needed: finding credentials takes files, or requests."""
        with self._lock:
            if self._connection is None:
                self._connection = self._connection_made()
                if self._connection.signer is None:
                    self.capabilities = replace(
                        self.capabilities, signed_urls=False, presigned_uploads=False, caps_uploads=False
                    )
            return self._connection

    def _connection_made(self) -> _Connection:
        tokens = (_SilentRequest if self._endpoint else Request)(_mount(requests.Session(), _Adapter()))
        try:
            credentials, project = self._credentials(tokens)
            session = AuthorizedSession(credentials, auth_request=tokens)  # type: ignore[no-untyped-call]
            _mount(session, _CarefulAdapter(pool_maxsize=self._settings.max_connections))
            client: Any = storage.Client(  # type: ignore[no-untyped-call]
                project=self._settings.project or project,
                credentials=credentials,
                _http=session,
                client_options={"api_endpoint": self._endpoint} if self._endpoint else None,
            )
            # Else a thread of the SDK's asks for the bucket itself, for the sake of traces, again and again where the
            # credentials may not see it.
            client._bucket_metadata_cache = None  # noqa: SLF001
            return _Connection(client, session, tokens, self._signer(credentials, session, tokens))
        except BaseException:
            tokens.session.close()
            raise

    def _credentials(self, tokens: Request) -> tuple[Any, str | None]:
        """The credentials, and the project they name."""
        variables = storage_variables(self.name)
        if self._settings.credentials_json is not None:
            text, variable = self._settings.credentials_json.get_secret_value(), f"{variables}CREDENTIALS_JSON"
        elif self._settings.credentials_file is not None:
            variable = f"{variables}CREDENTIALS_FILE"
            try:
                text = self._settings.credentials_file.read_text()
            except OSError as error:
                raise StorageNotConfigured(f"the file in {variable} cannot be read", missing=(variable,)) from error
        elif self._anonymous:
            return google.auth.credentials.AnonymousCredentials(), None  # type: ignore[no-untyped-call]
        else:
            return google.auth.default(scopes=_SCOPES, request=tokens)
        try:
            info = json.loads(text)
            key: Any = service_account.Credentials.from_service_account_info(info, scopes=_SCOPES)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, AttributeError) as error:
            raise StorageNotConfigured(f"{variable} is not a service account's key", missing=(variable,)) from error
        return key, key.project_id

    def _signer(self, credentials: Any, session: AuthorizedSession, tokens: Request) -> _Signer | None:
        """Who signs URLs; None where the credentials are nobody's whose signature Google knows."""
        if isinstance(credentials, service_account.Credentials):
            return _OwnSigner(credentials, _LONGEST_SECONDS)
        account = self._settings.signing_account
        if account is None and isinstance(credentials, google.auth.credentials.Signing):
            return _OwnSigner(credentials, _LONGEST_BY_IAM_SECONDS)
        if account is None:
            account = getattr(credentials, "service_account_email", None)
        if account is None:
            return None
        return _IamSigner(account, credentials, session, tokens, self._timeout, self._retry)

    # ── Names ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _bucket_of(self, key: str) -> str:
        return self._public_bucket if visibility_of(key) is Visibility.PUBLIC else self._private_bucket

    def _buckets_of(self, prefix: str) -> tuple[str, ...]:
        """The buckets in which there can be keys that begin so."""
        public = f"{Visibility.PUBLIC}/"
        if prefix.startswith(public):
            return (self._public_bucket,)
        either = public.startswith(prefix) and self._public_bucket != self._private_bucket
        return (self._private_bucket, self._public_bucket) if either else (self._private_bucket,)

    def _object_url(self, base: str, key: str) -> str:
        return object_url(f"{base}/{self._bucket_of(key)}", f"{self._settings.prefix}{key}")

    def _blob(self, key: str) -> Any:
        bucket = self._connect().client.bucket(self._bucket_of(key))
        return bucket.blob(f"{self._settings.prefix}{key}", kms_key_name=self._settings.kms_key)

    def _new(self, key: str, content_type: str | None, source: Source | None = None) -> Any:
        """One to be written, with the headers and the checksum it is going to have."""
        public = visibility_of(key) is Visibility.PUBLIC
        blob = self._blob(key)
        blob.content_type = content_type
        blob.content_disposition = "inline"
        # A cache must never outlive a signature.
        blob.cache_control = self._public_cache if public else "private, no-cache"
        if self._settings.storage_class:
            blob.storage_class = self._settings.storage_class
        if source is not None:
            blob.crc32c = _crc32c(source)
        return blob

    def _reloaded(self, key: str) -> Any:
        """What is there; ObjectNotFound where nothing is."""
        blob = self._blob(key)
        with _told_from_a_missing_bucket():
            blob.reload(timeout=self._timeout, retry=self._retry)
        return blob

    def _record(self, key: str, blob: Any) -> StoredObject:
        return StoredObject(
            key=key,
            size=blob.size,
            etag=str(blob.generation),
            modified=blob.time_created,
            content_type=blob.content_type,
            url=self.url(key),
        )


@dataclass(frozen=True)
class _Connection:
    """What all calls share."""

    client: Any
    session: AuthorizedSession
    tokens: Request
    signer: _Signer | None

    def close(self) -> None:
        self.session.close()  # type: ignore[no-untyped-call]
        self.tokens.session.close()


class _SilentRequest(Request):
    """Fetches tokens, and nothing else.

    For every service account google-auth asks Google's IAM, in a thread of its own, from which regions it may be used;
    it lets that be where the transport cannot be copied. A server that is not Google's has no use for the answer, and
    its credentials are not for Google's eyes.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        raise TypeError("not to be copied")


class _Adapter(HTTPAdapter):
    """Leaves no connection open when it is closed.

    urllib3 closes a pool's when nobody refers to the pool any more, and the traceback of an error may for long.
    """

    def close(self) -> None:
        pools = self.poolmanager.pools
        for key in pools.keys():  # noqa: SIM118 - it cannot be iterated over
            pools[key].close()
        super().close()


class _CarefulAdapter(_Adapter):
    """Takes no answer for whole that was cut off amid its headers.

    Python's HTTP client takes what it has of them for all, and an answer without a length for one that ends with its
    connection: empty. Google's have a length, or come in chunks.
    """

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        response = super().send(request, *args, **kwargs)
        if response.raw.length_remaining is None and not response.raw.chunked:
            response.close()
            raise requests.ConnectionError("an answer was cut off", request=request)
        return response


def _mount(session: requests.Session, adapter: _Adapter) -> requests.Session:
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)
    return session


@dataclass(frozen=True)
class _Piece:
    """A part of an object; `size` and `crc32c` are the whole object's."""

    data: bytes
    size: int
    generation: str | None
    crc32c: str | None

    @classmethod
    def of(cls, response: requests.Response, start: int, end: int) -> Self:
        data: bytes = response.raw.read(decode_content=False)
        size = int(response.headers.get("Content-Range", f"/{len(data)}").rpartition("/")[2])
        if response.status_code == HTTPStatus.OK:  # the range was ignored: there is nothing, or less than asked for
            data = data[start:end]
        hashes = dict(part.strip().split("=", 1) for part in response.headers.get("X-Goog-Hash", "").split(",") if part)
        return cls(data, size, response.headers.get("X-Goog-Generation"), hashes.get("crc32c"))


@dataclass(frozen=True)
class _Uploaded:
    """What was sent, and what the server says it has: CRC32C in base64."""

    expected: str
    reported: str | None
    generation: int


class _ResumableUpload:
    """An upload in parts, each sent again from where the server has come to when an answer was lost.

    https://cloud.google.com/storage/docs/performing-resumable-uploads
    """

    def __init__(
        self,
        connect: Callable[[], _Connection],
        source: Source,
        size: int,
        part_bytes: int,
        timeout: tuple[float, float],
        retry: Retry,
    ) -> None:
        self._connect = connect
        self._source = source
        self._size = size
        self._part_bytes = part_bytes // _PART_MULTIPLE * _PART_MULTIPLE
        self._timeout = timeout
        self._retry = retry
        self._url = ""
        self._expected = ""
        self._answer: dict[str, Any] = {}
        self._received = 0
        self._unanswered = False

    @property
    def finished(self) -> bool:
        """Whether the server has it all, and has made an object of it."""
        return bool(self._answer)

    @property
    def uploaded(self) -> _Uploaded:
        return _Uploaded(self._expected, self._answer.get("crc32c"), int(self._answer["generation"]))

    def begin(self, blob: Any) -> None:
        """From here on there is something to give up."""
        self._expected = blob.crc32c
        self._url = blob.create_resumable_upload_session(
            content_type=blob.content_type,
            size=self._size,
            if_generation_match=0,
            checksum=None,  # the metadata holds it already
            timeout=self._timeout,
            retry=self._retry,
        )

    def send(self) -> None:
        """One part, or what the server did not take of it."""
        self._retry(self._step)()

    def give_up(self) -> None:
        """Let the server forget what it has; where it cannot be told, it forgets by itself."""
        if self._url and not self.finished:
            with suppress(requests.RequestException, auth.GoogleAuthError):
                self._connect().session.delete(self._url, headers={"Content-Length": "0"}, timeout=self._timeout)

    def _step(self) -> None:
        if self._unanswered:
            self._put(b"", f"bytes */{self._size}")
            if self.finished:
                return
        part = self._part()
        before, self._unanswered = self._received, True
        self._put(part, f"bytes {before}-{before + len(part) - 1}/{self._size}")
        if self._received == before and not self.finished:
            raise answers.ServiceUnavailable("nothing of a part was taken")  # type: ignore[no-untyped-call]

    def _put(self, data: bytes, content_range: str) -> None:
        response = self._connect().session.put(
            self._url, data=data, headers={"Content-Range": content_range}, timeout=self._timeout
        )
        if response.status_code == HTTPStatus.PERMANENT_REDIRECT:
            received = response.headers.get("Range", "")
            self._received = int(received.rpartition("-")[2]) + 1 if received else 0
        elif response.status_code in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
            raise StorageUnavailable("Google Cloud Storage has forgotten an upload halfway")
        elif not response.ok:
            raise answers.from_http_response(response)  # type: ignore[no-untyped-call]
        else:
            self._answer = response.json()
        self._unanswered = False

    def _part(self) -> bytes:
        if isinstance(self._source, bytes):
            return self._source[self._received : self._received + self._part_bytes]
        with self._source.open("rb") as file:
            file.seek(self._received)
            return file.read(self._part_bytes)


class _Signer(Protocol):
    """Signs as `account`, such that the signature is good for `longest_seconds` at least."""

    @property
    def account(self) -> str: ...

    @property
    def longest_seconds(self) -> int: ...

    def sign(self, string: bytes) -> bytes: ...


@dataclass(frozen=True)
class _OwnSigner:
    """Credentials that sign themselves: by a private key, or, where they impersonate, by asking IAM."""

    credentials: Any
    longest_seconds: int

    @property
    def account(self) -> str:
        return str(self.credentials.signer_email)

    def sign(self, string: bytes) -> bytes:
        try:
            signature: bytes = self.credentials.sign_bytes(string)
        except auth.TransportError as error:
            if error.args and isinstance(error.args[0], str):  # not a transport's error, but what IAM answered
                raise _may_not_sign() from error
            raise
        return signature


@dataclass(frozen=True)
class _IamSigner:
    """Asks IAM to sign with a key that Google keeps, and changes."""

    named: str
    credentials: Any
    session: AuthorizedSession
    tokens: Request
    timeout: tuple[float, float]
    retry: Retry
    longest_seconds: int = _LONGEST_BY_IAM_SECONDS

    @property
    def account(self) -> str:
        if self.named != _MACHINES_ACCOUNT:
            return self.named
        if self.credentials.service_account_email == _MACHINES_ACCOUNT:
            self.credentials.refresh(self.tokens)
        return str(self.credentials.service_account_email)

    def sign(self, string: bytes) -> bytes:
        return self.retry(partial(self._ask, string))()

    def _ask(self, string: bytes) -> bytes:
        response = self.session.post(
            f"{IAM_URL}/v1/projects/-/serviceAccounts/{quote(self.account, safe='@')}:signBlob",
            json={"payload": base64.b64encode(string).decode()},
            timeout=self.timeout,
        )
        if response.status_code in {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}:
            raise _may_not_sign()
        if not response.ok:
            raise answers.from_http_response(response)  # type: ignore[no-untyped-call]
        return base64.b64decode(response.json()["signedBlob"])


def _may_not_sign() -> StorageError:
    return StorageError(
        "the credentials may not sign URLs: they need `iam.serviceAccounts.signBlob` on the service account that signs "
        "(the role `roles/iam.serviceAccountTokenCreator`), with the IAM Service Account Credentials API enabled"
    )


def _translate_answer(error: answers.GoogleAPICallError) -> StorageError:
    match error:
        case answers.NotFound() if _is_bucket_missing(error):
            return StorageError("the bucket of the storage does not exist")
        case answers.NotFound():
            return ObjectNotFound("there is no such object")
        case answers.PreconditionFailed():
            return ObjectExists("the key is taken")
        case answers.Unauthorized():
            return StorageError("Google Cloud Storage does not accept the credentials of the storage")
        case answers.Forbidden() if _OVERLOADED.isdisjoint(_reasons(error)):
            return StorageError(
                "the credentials of the storage may not do this: they need the role `roles/storage.objectUser` on the "
                "bucket"
            )
        case answers.Forbidden() | answers.TooManyRequests() | answers.ServerError():
            return StorageUnavailable("Google Cloud Storage cannot do this now")
        case answers.BadRequest() if "doesn't match calculated" in error.message:
            return WriteNotVerified("Google Cloud Storage received other bytes than were sent")
    if error.code == HTTPStatus.REQUEST_TIMEOUT or (error.code or 0) < HTTPStatus.BAD_REQUEST:
        return StorageUnavailable("the request or the answer was cut off")
    return StorageError(f"Google Cloud Storage refused the request, with the status {error.code}")


@contextmanager
def _told_from_a_missing_bucket() -> Iterator[None]:
    """Of a 404, ObjectNotFound where it is about the object."""
    try:
        yield
    except answers.NotFound as error:
        raise _translate_answer(error) from error


def _is_bucket_missing(error: answers.NotFound) -> bool:
    return "bucket does not exist" in error.message


def _reasons(error: answers.GoogleAPICallError) -> set[str]:
    return {str(detail.get("reason")) for detail in error.errors if isinstance(detail, dict)}


def _is_passing(error: auth.GoogleAuthError) -> bool:
    """Whether it was the way to the tokens, or their server, and not the credentials."""
    causes = (error, *error.args)
    return error.retryable or any(isinstance(cause, auth.TransportError) for cause in causes)


def _is_key(name: str) -> bool:
    """Others may have put there what no key can name, such as the consoles' empty objects for folders."""
    try:
        validate_key(name)
    except InvalidKey:
        return False
    return True


def _crc32c(source: Source) -> str:
    checksum: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        while chunk := file.read(MiB):
            checksum.update(chunk)
    return _base64(checksum.digest())


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _with_scheme(host: str) -> str:
    return (host if "://" in host else f"http://{host}").rstrip("/")
