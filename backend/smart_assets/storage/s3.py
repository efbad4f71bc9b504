"""Objects in an S3 bucket: Amazon's own, or a server's that speaks its protocol.

What such servers do with conditions and checksums differs, so it is tried once, on an object of our own, before the
first write (`_Server`), and whether they take forms at all, before the first is given away. What cannot be tried is
whether a condition holds in a race: AWS says so of all three, while SeaweedFS 4.48 keeps it for PutObject, and lets
several CompleteMultipartUpload of one key through.

Parts of an upload that nobody could abort (the process was killed, say) stay in the bucket, unseen: a lifecycle rule
`AbortIncompleteMultipartUpload` removes them.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import math
import threading
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, BinaryIO, Final, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import urllib3.exceptions
from boto3.session import Session
from botocore import UNSIGNED
from botocore import exceptions as sdk
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from botocore.response import StreamingBody
from urllib3.filepost import encode_multipart_formdata

from smart_assets.disposition import content_disposition
from smart_assets.expiry import Validity
from smart_assets.settings import GiB, KiB, MiB, S3Settings, Settings, storage_variables
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
    pieces,
)
from smart_assets.storage.errors import (
    InvalidKey,
    ObjectExists,
    ObjectNotFound,
    StorageError,
    StorageFull,
    StorageNotConfigured,
    StorageUnavailable,
    Unsupported,
    WriteNotVerified,
)
from smart_assets.storage.keys import MAX_KEY_BYTES, Visibility, validate_key, visibility_of
from smart_assets.storage.pattern import Pattern, show_samples
from smart_assets.storage.presign import AMAZON, amazon_signature, object_url, signable_get, signable_post
from smart_assets.threads import Threads, cancelled_since_now

logger = logging.getLogger(__name__)

_MAX_OBJECT_BYTES: Final = 5 * GiB  # of one CopyObject, which a change of visibility is
_MAX_S3_KEY_BYTES: Final = 1024
_MAX_EXPIRY_SECONDS: Final = 604_800
_CHUNK_BYTES: Final = 1 * MiB
_WRITES_AT_A_CONFLICT: Final = 3
_SMALL_BYTES: Final = 1 * MiB  # up to here the SDK's own way costs about as much as all the rest: see `pattern`
_PIECE_BYTES: Final = 256 * KiB

_PUBLIC: Final = "public/"
_DEFAULT_REGION: Final = "us-east-1"
_UNTYPED: Final = "application/octet-stream"

# Of each object: what it holds, and which write it came from.
_MD5: Final = "smart-assets-md5"
_WRITE: Final = "smart-assets-write"

_CONDITION: Final = "if-none-match"

_NOBODY: Final = ("-", "-")
"""Credentials that sign nothing: to look up the real ones can take long."""
_NO_CREDENTIALS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


class _Place(NamedTuple):
    bucket: str
    key: str

    @property
    def arguments(self) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.key}


@dataclass(frozen=True)
class _Address:
    """Where callers reach a bucket, up to the slash before a key, and the region its signatures are for."""

    base_url: str
    region: str


@dataclass(frozen=True)
class _Server:
    """What was found out about the server: which operations honour `If-None-Match: *`, and what is checked."""

    puts_if_absent: bool
    completes_if_absent: bool
    copies_if_absent: bool
    verifies_md5: bool
    etag_is_md5: bool


@dataclass(frozen=True)
class _Content:
    """What is to be written: a file of this machine or in memory, and which call wants it."""

    file: BinaryIO
    size: int
    md5: bytes
    content_type: str
    write: str
    is_cancelled: Callable[[], bool]

    @property
    def metadata(self) -> dict[str, str]:
        return {_MD5: self.md5.hex(), _WRITE: self.write}

    @property
    def headers(self) -> dict[str, str]:
        """What is said of this content and no other, as it goes over the wire."""
        metadata = {f"x-amz-meta-{name}": value for name, value in self.metadata.items()}
        return {"content-type": self.content_type, "content-md5": _base64(self.md5), **metadata}

    @property
    def is_small(self) -> bool:
        """Whether it is held in memory, and the first attempt is made without the SDK."""
        return self.size <= _SMALL_BYTES


class S3Storage(StorageBackend):
    """One bucket, or two: public objects may have one of their own.

    A write carries its MD5, which the server compares with what it received; where it does not do that, the object is
    looked up afterwards. From `multipart_bytes` on it goes in parts, each held in memory while it is sent; a small one
    is held there whole, and anything else is streamed. Two writers to one key are told apart where the server honours
    `If-None-Match`, and `capabilities.create_if_absent` is False until that is known. Where it does that for whole
    objects only, nothing is sent in parts.
    """

    late_write_seconds = LATE_WRITE_SECONDS
    capabilities = Capabilities(
        max_object_bytes=_MAX_OBJECT_BYTES,
        create_if_absent=False,
        signed_urls=True,
        presigned_uploads=True,
        caps_uploads=True,
    )

    def __init__(self, name: str, settings: S3Settings, *, public_cache_seconds: int) -> None:
        """Nothing is connected, or looked up, before it is needed."""
        super().__init__(name)
        self.capabilities = replace(
            type(self).capabilities,
            max_key_bytes=min(MAX_KEY_BYTES, _MAX_S3_KEY_BYTES - len(settings.prefix.encode())),
            public_access=settings.public_url is not None or settings.public_access != "none",
        )
        self._settings = settings
        # Private objects lie in the first, public ones in the last.
        self._buckets = [bucket for bucket in (settings.bucket, settings.public_bucket) if bucket]
        self._cache_control = {
            Visibility.PUBLIC: f"public, max-age={public_cache_seconds}",
            Visibility.PRIVATE: "private, no-cache",  # a cache must not outlive a signature
        }
        self._threads = Threads(f"storage-{name}", settings.max_connections, wait_seconds=TURN_SECONDS)
        self._starting, self._building = threading.Lock(), threading.Lock()
        self._session: Any = None
        self._endpoint: str | None = settings.endpoint_url
        self._addresses: dict[str, _Address] = {}
        self._built: Any = None
        self._arguments: dict[str, dict[str, Any]] = {}
        self._lasting_credentials: Any = None
        self._patterns: dict[Visibility, Pattern] = {}
        self._server: _Server | None = None
        self._knows_forms = False
        self._failure: Exception | None = None
        self._trying = asyncio.Lock()
        self._known_buckets: set[str] = set()
        self._with_parts_left: set[str] = set()

    @classmethod
    def from_settings(cls, name: str, own: S3Settings, settings: Settings) -> Self:
        """The bucket of its settings."""
        return cls(name, own, public_cache_seconds=settings.public_cache_seconds)

    async def close(self) -> None:
        """Close the connections, and let the threads end."""
        with self._building:
            client, self._built = self._built, None
        if client is not None:
            _close(client)
        self._threads.close()

    # ── Primitives ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _put(self, key: str, source: Source, *, content_type: str, give_away: bool) -> StoredObject:
        return await self._threads.run(partial(self._write, key, source, content_type, cancelled_since_now()))

    async def _read(self, key: str, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        if start == end:
            await self._stat(key)  # there is no way to ask for no bytes
            return
        with ExitStack() as opened:
            body, size = await self._threads.run(partial(self._open, key, start, end, opened))
            received = 0
            while received != size:
                # The SDK raises where the connection ends before the size that was announced.
                chunk = await self._threads.run(partial(body.read, _CHUNK_BYTES))
                if not chunk:
                    break
                received += len(chunk)
                yield chunk

    async def _stat(self, key: str) -> StoredObject:
        return await self._threads.run(partial(self._look_up, key))

    async def _delete(self, key: str) -> bool:
        return await self._threads.run(partial(self._remove, key))

    async def _discard(self, key: str) -> None:
        await self._threads.run(partial(self._remove_unseen, key))

    async def _list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        for bucket, within in self._listed(prefix):
            token: str | None = ""
            while token is not None:
                records, token = await self._threads.run(partial(self._page, bucket, within, token))
                for record in records:
                    yield record

    async def _move(self, key: str, target: str) -> StoredObject:
        await self._prepare()
        return await self._threads.run(partial(self._copy_and_remove, key, target))

    async def _prepare(self) -> None:
        if self._server is not None:
            return
        failure = self._failure
        async with self._trying:
            if self._server is not None:
                return
            if self._failure is not None and self._failure is not failure:
                raise self._failure  # of the attempt this call has been waiting for: each its own would take forever
            await self._find_out()

    async def _find_out(self) -> None:
        try:
            self._server = await self._threads.run(self._try_server)
        except Exception as error:
            self._failure = error
            raise
        self._failure = None
        self.capabilities = replace(
            self.capabilities,
            create_if_absent=self._server.puts_if_absent,
            verifies_writes=self._server.verifies_md5,
        )

    async def _find_out_about_forms(self) -> None:
        takes, caps = await self._threads.run(self._try_forms)
        self.capabilities = replace(self.capabilities, presigned_uploads=takes, caps_uploads=caps)
        self._knows_forms = True

    async def _check(self) -> None:
        async with self._trying:
            await self._find_out()
            await self._find_out_about_forms()
        await self._threads.run(self._check_as_set_up)

    async def _ping(self) -> None:
        await self._threads.run(lambda: self._client().head_bucket(Bucket=self._buckets[0]))

    # ── URLs ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _public_url(self, key: str) -> str | None:
        if self._settings.public_url is not None:
            return object_url(self._settings.public_url, key)
        place = self._place(key)
        if not self._addresses:
            with self._call("url", key):
                self._start()
        return object_url(self._addresses[place.bucket].base_url, place.key)

    async def _signed_url(self, key: str, validity: Validity, filename: str | None) -> SignedUrl:
        if validity.seconds > _MAX_EXPIRY_SECONDS:
            raise Unsupported(f"a signed URL lives {_MAX_EXPIRY_SECONDS} seconds at most", storage=self.name, key=key)
        sign = partial(self._sign, self._place(key), validity, filename)
        # With credentials that do not change there is nothing to wait for.
        return sign() if self._lasting_credentials is not None else await self._threads.run(sign)

    def _sign(self, place: _Place, validity: Validity, filename: str | None) -> SignedUrl:
        credentials, ends = self._credentials()
        if ends is not None:
            validity = validity.ending_by(ends)
        address = self._addresses[place.bucket]
        parameters = {}
        if credentials.token:
            parameters["X-Amz-Security-Token"] = credentials.token
        if filename is not None:
            parameters["response-content-disposition"] = content_disposition(filename)
        signable = signable_get(
            AMAZON,
            object_url(address.base_url, place.key),
            identity=credentials.access_key,
            region=address.region,
            validity=validity,
            parameters=parameters,
        )
        sign = amazon_signature(credentials.secret_key, address.region, validity)
        return SignedUrl(
            signable.url(sign(signable.string_to_sign)), expires_at=datetime.fromtimestamp(validity.expires, tz=UTC)
        )

    async def _presigned_upload(self, key: str, max_bytes: int, validity: Validity) -> PresignedUpload:
        if validity.seconds > _MAX_EXPIRY_SECONDS:
            raise Unsupported(f"a form lives {_MAX_EXPIRY_SECONDS} seconds at most", storage=self.name, key=key)
        async with self._trying:
            if not self._knows_forms:
                await self._find_out_about_forms()
        self._need("presigned_uploads", "uploads past the service")
        return await self._threads.run(partial(self._sign_form, self._place(key), max_bytes, validity))

    def _sign_form(self, place: _Place, max_bytes: int, validity: Validity) -> PresignedUpload:
        """A form, because a signed PUT says nothing of the size."""
        credentials, ends = self._credentials()
        if ends is not None:
            validity = Validity(validity.begins, min(validity.expires, math.floor(ends)))
        address = self._addresses[place.bucket]
        fields = {"Content-Type": _UNTYPED}
        if credentials.token:
            fields["x-amz-security-token"] = credentials.token
        if self._settings.encryption:
            fields["x-amz-server-side-encryption"] = self._settings.encryption
            if self._settings.kms_key_id:
                fields["x-amz-server-side-encryption-aws-kms-key-id"] = self._settings.kms_key_id
        form = signable_post(
            AMAZON,
            bucket=place.bucket,
            key=place.key,
            identity=credentials.access_key,
            region=address.region,
            validity=validity,
            max_bytes=max_bytes,
            fields=fields,
        )
        signature = amazon_signature(credentials.secret_key, address.region, validity)(form.string_to_sign)
        expires_at = datetime.fromtimestamp(validity.expires, tz=UTC)
        return PresignedUpload("POST", address.base_url, expires_at, form.fields(signature))

    def _credentials(self) -> tuple[Any, float | None]:
        """The credentials of the moment, and when they end (Unix seconds), where they do."""
        if self._lasting_credentials is not None:
            return self._lasting_credentials, None
        self._client()
        credentials: Any = self._session.get_credentials()
        frozen = credentials.get_frozen_credentials()
        if not isinstance(credentials, RefreshableCredentials):
            self._lasting_credentials = frozen
            return frozen, None
        # New credentials are set before their later end is: asked for in this order, the end is never too late.
        expires = credentials._expiry_time  # noqa: SLF001 - said nowhere else
        return credentials.get_frozen_credentials(), expires and expires.timestamp()  # type: ignore[no-untyped-call]

    # ── The SDK ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self) -> Any:
        """The SDK's session, and in `_addresses` where callers reach the buckets as it sees it.

        Reads AWS's own settings, and asks nobody over the network: a tenth of a second, once.
        """
        with self._starting:
            if self._session is None:
                settings = self._settings
                # Its own: the SDK's default session is everybody's, and none is safe to use in two threads.
                session = Session(  # type: ignore[no-untyped-call]
                    settings.access_key_id,
                    settings.secret_access_key and settings.secret_access_key.get_secret_value(),
                    settings.session_token and settings.session_token.get_secret_value(),
                    region_name=settings.region,
                )
                self._endpoint = settings.endpoint_url or self._configured_endpoint(session)
                self._addresses = self._resolve(session)
                self._session = session
            return self._session

    def _configured_endpoint(self, session: Any) -> str | None:
        """Where the server is by AWS's own settings (`AWS_ENDPOINT_URL_S3`, say); None for AWS."""
        told, built_in = (
            self._new_client(
                session, None, credentials=_NOBODY, ignore_configured_endpoint_urls=ignore
            ).meta.endpoint_url
            for ignore in (False, True)
        )
        return None if told == built_in else str(told)

    def _resolve(self, session: Any) -> dict[str, _Address]:
        client = self._new_client(session, self._settings.signing_endpoint_url or self._endpoint, credentials=_NOBODY)
        addresses = {}
        for bucket in self._buckets:
            url = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "-"}))
            region = parse_qs(url.query)["X-Amz-Credential"][0].split("/")[2]
            addresses[bucket] = _Address(f"{url.scheme}://{url.netloc}{url.path.removesuffix('/-')}", region)
        client.close()
        return addresses

    def _client(self) -> Any:
        """The one client; made when first asked for, in whichever thread that is."""
        session = self._start()
        with self._building:
            if self._built is None:
                if session.get_credentials() is None:
                    raise sdk.NoCredentialsError
                client = self._new_client(session, self._endpoint)
                self._arguments = self._arguments_of_writes(client.meta.service_model)
                self._built = client
            return self._built

    def _new_client(
        self,
        session: Any,
        endpoint: str | None,
        *,
        credentials: tuple[str, str] | None = None,
        unsigned: bool = False,
        ignore_configured_endpoint_urls: bool = False,
    ) -> Any:
        settings = self._settings
        style = settings.addressing_style
        if style == "auto":
            style = "path" if endpoint else "virtual"
        config = Config(  # type: ignore[no-untyped-call]
            signature_version=UNSIGNED if unsigned else "s3v4",
            # Said outright, and regional: left to itself, the SDK signs for AWS's old global address, which redirects.
            s3={"addressing_style": style, "us_east_1_regional_endpoint": "regional"},
            ignore_configured_endpoint_urls=ignore_configured_endpoint_urls,
            # Content-MD5 is what every server knows; of the newer checksums many know none.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=settings.max_connections,
            connect_timeout=settings.connect_timeout_seconds,
            read_timeout=settings.timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": 3},
        )
        key, secret = credentials or (None, None)
        try:
            client = session.client(
                "s3",
                region_name=session.region_name or _DEFAULT_REGION,
                endpoint_url=endpoint,
                aws_access_key_id=key,
                aws_secret_access_key=secret,
                config=config,
            )
        except ValueError as error:  # a host name with an underscore, say
            raise StorageNotConfigured(
                f"the storage {self.name} has an endpoint or a region that its SDK refuses",
                storage=self.name,
                missing=tuple(f"{storage_variables(self.name)}{setting}" for setting in ("ENDPOINT_URL", "REGION")),
            ) from error
        client.meta.events.register("before-parse.s3", self._see_that_it_is_whole)
        client.meta.events.register("before-send.s3.PutObject", show_samples)
        return client

    def _see_that_it_is_whole(self, response_dict: dict[str, Any], **_: object) -> None:
        """Raise where a connection ended amid an answer's headers.

        Python's HTTP client takes those it got for all there are, and an empty body for what should follow. A date
        every server sends, and some send it last; and no server marks the end of a body by ending the connection.
        """
        if response_dict["status_code"] >= 300 or _is_whole(response_dict["headers"], response_dict["status_code"]):
            return
        if isinstance(response_dict["body"], StreamingBody):
            response_dict["body"].close()  # type: ignore[no-untyped-call]
        raise StorageUnavailable(f"the storage {self.name} broke off an answer", storage=self.name)

    def _arguments_of_writes(self, model: Any) -> dict[str, dict[str, Any]]:
        """What the settings add to each operation that makes an object, as far as it takes it."""
        settings = self._settings
        own = {
            "StorageClass": settings.storage_class,
            "ServerSideEncryption": settings.encryption,
            "SSEKMSKeyId": settings.kms_key_id,
        }
        arguments = settings.extra_args | {argument: value for argument, value in own.items() if value is not None}
        takes = {
            operation: model.operation_model(operation).input_shape.members
            for operation in ("PutObject", "CreateMultipartUpload", "CopyObject")
        }
        unknown = sorted(arguments.keys() - takes["PutObject"])
        if unknown:
            variable = f"{storage_variables(self.name)}EXTRA_ARGS"
            raise StorageNotConfigured(
                f"{variable} has what PutObject does not take: {', '.join(unknown)}",
                storage=self.name,
                missing=(variable,),
            )
        taken = {
            operation: {argument: value for argument, value in arguments.items() if argument in members}
            for operation, members in takes.items()
        }
        taken["CopyObject"].pop("Tagging", None)  # a copy keeps the tags of what it copies
        return taken

    # ── What the threads do: writing ────────────────────────────────────────────────────────────────────────────────

    def _write(self, key: str, source: Source, content_type: str, is_cancelled: Callable[[], bool]) -> StoredObject:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            md5 = hashlib.file_digest(file, _md5).digest()
            content = _Content(file, size, md5, content_type, uuid4().hex, is_cancelled)
            write = self._put_in_parts if self._goes_in_parts(size) else self._put_whole
            for attempt in range(_WRITES_AT_A_CONFLICT):
                file.seek(0)
                try:
                    etag = write(key, content)
                    break
                except sdk.ClientError as error:
                    if self._landed(key, content, error):
                        return self._look_up(key)
                    # Somebody else removed or wrote the key in the same moment; the one to try again is asked to.
                    if _code(error) != "ConditionalRequestConflict" or attempt == _WRITES_AT_A_CONFLICT - 1:
                        raise
                    time.sleep(0.1 * 2**attempt)
        if self._found.verifies_md5:
            return self._record(key, size, etag, content_type=content_type)
        return self._look_up(key)

    def _goes_in_parts(self, size: int) -> bool:
        # To overwrite nothing counts for more than parts do: one PutObject takes whatever a copy takes.
        never_overwrites = self._found.completes_if_absent or not self._found.puts_if_absent
        return size >= self._settings.multipart_bytes and never_overwrites

    def _put_whole(self, key: str, content: _Content) -> str:
        etag = self._put_small(key, content) if content.is_small else None
        if etag is None:
            etag = self._put_by_sdk(key, content)
        if self._found.etag_is_md5 and etag != content.md5.hex():
            with suppress(Exception):
                self._client().delete_object(**self._place(key).arguments)
            raise self._not_verified(key)
        return etag

    def _put_small(self, key: str, content: _Content) -> str | None:
        """The ETag, at the first attempt and a fraction of what the SDK costs; None where that is to try.

        What comes of anything but a success is left to it: it waits, goes where the bucket is, and says what is wrong.
        """
        visibility = visibility_of(key)
        pattern = self._patterns.get(visibility)
        if pattern is None:
            pattern = self._new_pattern(visibility)
            if pattern is None:
                return None
            self._patterns[visibility] = pattern
        data = content.file.read()
        request = pattern.request(
            self._place(key).key,
            data,
            content.headers | ({_CONDITION: "*"} if self._found.puts_if_absent else {}),
            body=_stoppable(data, content.is_cancelled),
            credentials=self._credentials()[0],
            now=datetime.now(UTC),
        )
        try:
            # Over the SDK's connections: through its proxies, with its certificates and timeouts.
            answer = self._client()._endpoint.http_session.send(request)  # noqa: SLF001 - nothing else leads there
        except _NETWORK:
            return None
        if answer.status_code == 412:
            raise ObjectExists("the key is taken")
        if answer.status_code != 200:
            self._patterns.pop(visibility, None)  # asked for anew: the SDK may learn that the bucket is elsewhere
            return None
        return _unquoted(answer.headers) if _is_whole(answer.headers) else None

    def _new_pattern(self, visibility: Visibility) -> Pattern | None:
        key = check_key(visibility)
        content = _Content(io.BytesIO(), 0, _md5().digest(), _UNTYPED, "", lambda: False)
        put = partial(self._put_object, key, content)
        return Pattern.of(put, self._place(key).key, varying={*content.headers, _CONDITION})

    def _put_by_sdk(self, key: str, content: _Content) -> str:
        content.file.seek(0)
        return _unquoted(self._put_object(key, content, _Stoppable(content.file, content.is_cancelled)))

    def _put_object(self, key: str, content: _Content, body: object) -> dict[str, Any]:
        answer: dict[str, Any] = self._client().put_object(
            **self._place(key).arguments,
            **self._headers("PutObject", key, content.content_type, content.metadata),
            **_if_absent(self._found.puts_if_absent),
            Body=body,
            ContentMD5=_base64(content.md5),
        )
        return answer

    def _put_in_parts(self, key: str, content: _Content) -> str:
        place, client = self._place(key), self._client()
        headers = self._headers("CreateMultipartUpload", key, content.content_type, content.metadata)
        self._with_parts_left.add(key)  # until it is known how it ended: also where the answer to this is lost
        created = client.create_multipart_upload(**place.arguments, **headers)
        upload = {**place.arguments, "UploadId": created["UploadId"]}
        try:
            parts = [self._put_part(key, upload, number, part) for number, part in self._parts(content)]
            answer = client.complete_multipart_upload(
                **upload, MultipartUpload={"Parts": parts}, **_if_absent(self._found.completes_if_absent)
            )
        except BaseException:
            self._tidy_up(key, created, abort=True)
            raise
        self._tidy_up(key, created, abort=False)
        return _unquoted(answer)

    def _parts(self, content: _Content) -> Iterator[tuple[int, bytes]]:
        number = 1
        while part := content.file.read(self._settings.part_bytes):
            if content.is_cancelled():
                raise CancelledError
            yield number, part
            number += 1

    def _put_part(self, key: str, upload: dict[str, Any], number: int, part: bytes) -> dict[str, Any]:
        md5 = _md5(part).digest()
        answer = self._client().upload_part(**upload, PartNumber=number, Body=part, ContentMD5=_base64(md5))
        if self._found.etag_is_md5 and _unquoted(answer) != md5.hex():
            raise self._not_verified(key)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def _tidy_up(self, key: str, created: dict[str, Any], *, abort: bool) -> None:
        """Leave no parts behind; what cannot be removed now is for `_discard`."""
        place = self._place(key)
        try:
            if created["ResponseMetadata"].get("RetryAttempts"):
                self._remove_parts(place)  # an attempt whose answer got lost may have begun an upload of its own
            elif abort:
                self._client().abort_multipart_upload(**place.arguments, UploadId=created["UploadId"])
        except (sdk.ClientError, sdk.BotoCoreError, StorageError) as error:
            if not (isinstance(error, sdk.ClientError) and _code(error) == "NoSuchUpload"):
                logger.warning(
                    "parts of an upload are left for its clean-up",
                    extra={"storage": self.name, "key": key, "error": repr(error)},
                )
                return
        self._with_parts_left.discard(key)

    def _landed(self, key: str, content: _Content, error: sdk.ClientError) -> bool:
        """Whether the object is this very write's: the answer got lost, and the next attempt found it there."""
        # For the SDK's first attempt at a small one there was another before.
        retried = content.is_small or error.response["ResponseMetadata"].get("RetryAttempts", 0)
        if not retried or _code(error) not in {"PreconditionFailed", "NoSuchUpload"}:
            return False
        try:
            return bool(self._head(key)["Metadata"].get(_WRITE) == content.write)
        except ObjectNotFound:
            return False

    def _headers(self, operation: str, key: str, content_type: str, metadata: dict[str, str]) -> dict[str, Any]:
        """What an object is written with: the settings' own, and what callers of its URL are told."""
        self._client()  # without which there are no arguments yet
        settings = self._arguments[operation]
        visibility = visibility_of(key)
        open_by_acl = visibility is Visibility.PUBLIC and self._settings.public_access == "acl"
        return {
            **settings,
            **({"ACL": "public-read"} if open_by_acl else {}),
            "ContentType": content_type,
            "ContentDisposition": content_disposition(None),
            "CacheControl": self._cache_control[visibility],
            "Metadata": {**settings.get("Metadata", {}), **metadata},
        }

    def _copy_and_remove(self, key: str, target: str) -> StoredObject:
        source, destination, client = self._place(key), self._place(target), self._client()
        was = self._head(key)
        if self._found.copies_if_absent or self._copied(target, was) is None:
            try:
                client.copy_object(
                    **destination.arguments,
                    **self._headers("CopyObject", target, was.get("ContentType", _UNTYPED), was["Metadata"]),
                    **_if_absent(self._found.copies_if_absent),
                    CopySource=source.arguments,
                    MetadataDirective="REPLACE",
                )
            except sdk.ClientError as error:
                if _code(error) == "NoSuchKey":
                    raise ObjectNotFound("there is no such object", key=key) from error
                if _code(error) != "PreconditionFailed":
                    raise
        # What is there now decides: it may be of a move that was broken off, or another's that was faster.
        there = self._copied(target, was)
        if there is None:
            raise ObjectNotFound("the object was removed while it was moved", key=target)
        client.delete_object(**source.arguments)
        return self._found_record(target, there)

    def _copied(self, target: str, was: dict[str, Any]) -> dict[str, Any] | None:
        """The same object at the target, None where there is nothing; ObjectExists for another one."""
        try:
            found = self._head(target)
        except ObjectNotFound:
            return None
        if _identity(found) != _identity(was):
            raise ObjectExists("the key is taken", key=target)
        return found

    # ── What the threads do: the rest ───────────────────────────────────────────────────────────────────────────────

    def _open(self, key: str, start: int, end: int | None, opened: ExitStack) -> tuple[Any, int | None]:
        """The stream, closed with `opened`, and how many bytes it will give where that is known."""
        partly = {} if (start, end) == (0, None) else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        try:
            answer = self._client().get_object(**self._place(key).arguments, **partly)
        except sdk.ClientError as error:
            if _status(error) == 416:
                return io.BytesIO(), 0
            raise
        opened.callback(answer["Body"].close)  # the rest is not waited for: the connection is cut
        if partly and answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
            raise StorageError(f"the storage {self.name} gives whole objects only", storage=self.name, key=key)
        return answer["Body"], answer.get("ContentLength")

    def _look_up(self, key: str) -> StoredObject:
        return self._found_record(key, self._head(key))

    def _found_record(self, key: str, found: dict[str, Any]) -> StoredObject:
        return self._record(
            key,
            found["ContentLength"],
            _unquoted(found),
            modified=found["LastModified"],
            content_type=found.get("ContentType"),
        )

    def _head(self, key: str) -> dict[str, Any]:
        place = self._place(key)
        try:
            found: dict[str, Any] = self._client().head_object(**place.arguments)
        except sdk.ClientError as error:
            if _status(error) == 404:
                self._make_sure_of(place.bucket)
                raise ObjectNotFound("there is no such object", key=key) from error
            raise
        self._known_buckets.add(place.bucket)
        return found

    def _make_sure_of(self, bucket: str) -> None:
        """Raise where there is no such bucket: an answer without a body says of that just what it says of an object."""
        if bucket in self._known_buckets:
            return
        try:
            self._client().head_bucket(Bucket=bucket)
        except sdk.ClientError as error:
            if _status(error) == 404:
                raise self._error(None, "NoSuchBucket", 404) from error
            # Whoever may not ask for the bucket itself has just been told about an object of it.
        self._known_buckets.add(bucket)

    def _remove(self, key: str) -> bool:
        try:
            self._head(key)
        except ObjectNotFound:
            return False
        self._client().delete_object(**self._place(key).arguments)
        return True

    def _remove_unseen(self, key: str) -> None:
        place = self._place(key)
        if key in self._with_parts_left:
            self._remove_parts(place)
            self._with_parts_left.discard(key)
        self._client().delete_object(**place.arguments)

    def _remove_parts(self, place: _Place) -> None:
        pages = self._client().get_paginator("list_multipart_uploads").paginate(Bucket=place.bucket, Prefix=place.key)
        for page in pages:
            for upload in page.get("Uploads", ()):
                if upload["Key"] == place.key:
                    self._client().abort_multipart_upload(**place.arguments, UploadId=upload["UploadId"])

    def _listed(self, prefix: str) -> Iterator[tuple[str, str]]:
        """The buckets in which keys of that prefix lie, and what those begin with there."""
        private, public = self._buckets[0], self._buckets[-1]
        if private == public:
            yield private, prefix
            return
        if not prefix.startswith(_PUBLIC):
            yield private, prefix
        if prefix.startswith(_PUBLIC) or _PUBLIC.startswith(prefix):
            yield public, max(prefix, _PUBLIC, key=len)

    def _page(self, bucket: str, prefix: str, token: str) -> tuple[list[StoredObject], str | None]:
        following = {"ContinuationToken": token} if token else {}
        page = self._client().list_objects_v2(Bucket=bucket, Prefix=self._settings.prefix + prefix, **following)
        records = []
        for entry in page.get("Contents", ()):
            with suppress(InvalidKey):  # not one of ours, or the mark of a folder
                key = validate_key(entry["Key"].removeprefix(self._settings.prefix))
                if self._place(key).bucket == bucket:
                    records.append(self._record(key, entry["Size"], _unquoted(entry), modified=entry["LastModified"]))
        return records, page.get("NextContinuationToken") if page.get("IsTruncated") else None

    # ── What the threads do: finding out, and checking ──────────────────────────────────────────────────────────────

    def _try_server(self) -> _Server:
        """Try what the server does with conditions and checksums, on an object that is removed again."""
        key = check_key(Visibility.PRIVATE)
        client, place, condition = self._client(), self._place(key), _if_absent(True)
        put = partial(
            client.put_object,
            **place.arguments,
            **self._headers("PutObject", key, "text/plain", {}),
            ContentMD5=_base64(_md5(b"probe").digest()),
        )
        copy = partial(
            client.copy_object,
            **place.arguments,
            **self._headers("CopyObject", key, "text/plain", {}),
            CopySource=place.arguments,
            MetadataDirective="REPLACE",
        )
        etag_is_md5 = _unquoted(put(Body=b"probe")) == _md5(b"probe").hexdigest()
        try:
            return _Server(
                puts_if_absent=_answer(partial(put, Body=b"probe", **condition)) == 412,
                completes_if_absent=self._completes_if_absent(key),
                copies_if_absent=_answer(partial(copy, **condition)) == 412,
                verifies_md5=_answer(partial(put, Body=b"other")) == 400,
                etag_is_md5=etag_is_md5,
            )
        finally:
            client.delete_object(**place.arguments)

    def _try_forms(self) -> tuple[bool, bool]:
        """Whether the server takes forms, and whether it holds them to their size: not all that speak S3 do."""
        place, client = self._place(check_key(Visibility.PRIVATE)), self._client()
        now = math.floor(time.time())
        form = self._sign_form(place, len(b"probe"), Validity(now, now + 60))
        # Over the address the service itself uses: from here, that for callers may not be reachable.
        url = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": place.bucket, "Key": "-"}))
        address = f"{url.scheme}://{url.netloc}{url.path.removesuffix('-')}"
        try:
            takes = self._posted(address, form.fields, b"probe")
            return takes, takes and not self._posted(address, form.fields, b"probe and more")
        finally:
            client.delete_object(**place.arguments)

    def _posted(self, address: str, fields: Mapping[str, str], content: bytes) -> bool:
        """Whether a form is taken; StorageUnavailable where the server cannot say now."""
        body, content_type = encode_multipart_formdata([*fields.items(), ("file", ("probe", content))])
        request: Any = AWSRequest("POST", address, {"Content-Type": content_type}, body)  # type: ignore[no-untyped-call]
        answer = self._client()._endpoint.http_session.send(request.prepare())  # noqa: SLF001 - as above
        if answer.status_code in _BUSY_STATUSES:
            raise StorageUnavailable(f"the storage {self.name} is busy or not well ({answer.status_code})")
        return 200 <= int(answer.status_code) < 300

    def _completes_if_absent(self, key: str) -> bool:
        client, place = self._client(), self._place(key)
        headers = self._headers("CreateMultipartUpload", key, "text/plain", {})
        upload = {
            **place.arguments,
            "UploadId": client.create_multipart_upload(**place.arguments, **headers)["UploadId"],
        }
        complete = partial(client.complete_multipart_upload, **upload, **_if_absent(True))
        try:
            etag = client.upload_part(**upload, PartNumber=1, Body=b"probe")["ETag"]
            return _answer(partial(complete, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})) == 412
        finally:
            with suppress(sdk.ClientError):  # completed after all
                client.abort_multipart_upload(**upload)

    def _check_as_set_up(self) -> None:
        settings = self._settings
        self._check_region()
        self._check_object(check_key(Visibility.PRIVATE), is_open=False)
        if settings.public_access != "none" or settings.public_bucket is not None:
            self._check_object(check_key(Visibility.PUBLIC), is_open=True if settings.public_access != "none" else None)

    def _check_region(self) -> None:
        """The SDK follows a bucket to its region; a signed URL cannot."""
        if self._endpoint is not None:
            return
        for bucket in self._buckets:
            actual = self._client().head_bucket(Bucket=bucket).get("BucketRegion")
            if actual not in {None, self._addresses[bucket].region}:
                raise StorageError(
                    f"the bucket of the storage {self.name} lies in {actual}: set "
                    f"{storage_variables(self.name)}REGION to it"
                )

    def _check_object(self, key: str, *, is_open: bool | None) -> None:
        """Write, read and remove an object; strangers are given it as `is_open` says (None: not asked)."""
        data = b"smart-assets"
        self._write(key, data, "text/plain", lambda: False)
        try:
            with ExitStack() as opened:
                if self._open(key, 0, None, opened)[0].read() != data:
                    raise StorageError(f"the storage {self.name} gives other bytes than it was given")
            if is_open is not None and self._strangers_get(key) is not is_open:
                raise StorageError(self._openness(is_open))
        finally:
            self._client().delete_object(**self._place(key).arguments)
        try:
            self._head(key)
        except ObjectNotFound:
            return
        except sdk.ClientError as error:
            if _status(error) != 403:
                raise
            raise StorageError(
                f"the credentials of the storage {self.name} need s3:ListBucket on the bucket: without it a missing "
                "object looks like a forbidden one"
            ) from error
        raise StorageError(f"the storage {self.name} still has an object that was removed")

    def _strangers_get(self, key: str) -> bool:
        # Over the address the service itself uses: from here, that for callers may not be reachable.
        with self._building:
            client = self._new_client(self._session, self._endpoint, unsigned=True)
        try:
            client.head_object(**self._place(key).arguments)
            return True
        except sdk.ClientError as error:
            if _status(error) in {401, 403, 404}:
                return False
            raise
        finally:
            _close(client)

    def _openness(self, should_be_open: bool) -> str:  # noqa: FBT001
        if not should_be_open:
            return (
                f"anybody can read private objects of the storage {self.name}: its bucket must open no more than "
                f"`{self._settings.prefix}public/*`"
            )
        remedy = {
            "policy": "a bucket policy that allows everybody s3:GetObject on "
            f"`{self._settings.prefix}public/*`, and a public access block that lets it",
            "acl": "to take ACLs (object ownership), and a public access block that lets them",
        }[self._settings.public_access]
        return f"strangers are refused public objects of the storage {self.name}: its bucket needs {remedy}"

    # ── Names and errors ────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _found(self) -> _Server:
        assert self._server is not None, "prepared before anything is written"  # noqa: S101
        return self._server

    def _place(self, key: str) -> _Place:
        private, public = self._buckets[0], self._buckets[-1]
        return _Place(public if visibility_of(key) is Visibility.PUBLIC else private, self._settings.prefix + key)

    def _record(self, key: str, size: int, etag: str, **details: Any) -> StoredObject:
        return StoredObject(key=key, size=size, etag=etag or None, url=self.url(key), **details)

    def _not_verified(self, key: str) -> StorageError:
        return WriteNotVerified(f"the storage {self.name} has other bytes than were sent", storage=self.name, key=key)

    def _translate(self, error: Exception, key: str | None) -> StorageError | None:
        if isinstance(error, sdk.ClientError):
            return self._error(key, _code(error), _status(error))
        if isinstance(error, (sdk.NoCredentialsError, sdk.PartialCredentialsError)):
            return StorageNotConfigured(
                f"the storage {self.name} finds no credentials", storage=self.name, missing=_NO_CREDENTIALS
            )
        if isinstance(error, _CREDENTIALS):
            return StorageError(f"the credentials of the storage {self.name} cannot be got: see AWS's own settings")
        if isinstance(error, _NETWORK):
            return StorageUnavailable(f"the storage {self.name} cannot be reached")
        if isinstance(error, sdk.BotoCoreError):
            return StorageError(f"the storage {self.name} is set up in a way that its SDK refuses")
        return None

    def _error(self, key: str | None, code: str, status: int) -> StorageError:
        if status == 412:
            return ObjectExists("the key is taken")
        if status == 507 or code in _FULL:
            return StorageFull(f"no room left on the storage {self.name}")
        if code in _CORRUPTED:
            return WriteNotVerified(f"the storage {self.name} received other bytes than were sent")
        if code in _SENTENCES:
            return StorageError(_SENTENCES[code].format(name=self.name, variables=storage_variables(self.name)))
        if status == 404 and code != "NoSuchUpload":
            if key is not None:
                return ObjectNotFound("there is no such object")
            return StorageError(_SENTENCES["NoSuchBucket"].format(name=self.name))
        if code in _BUSY or status == 429 or (status >= 500 and status != 501):
            return StorageUnavailable(f"the storage {self.name} is busy or not well ({code})")
        if status in {401, 403}:
            return StorageError(_SENTENCES["AccessDenied"].format(name=self.name))
        return StorageError(f"the storage {self.name} refused a request ({code})")


_FULL: Final = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
_CORRUPTED: Final = {
    "BadDigest",
    "InvalidDigest",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
}
_BUSY: Final = {
    "ConditionalRequestConflict",
    "NoSuchUpload",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
_BUSY_STATUSES: Final = {429, 500, 502, 503, 504}  # 501 says that it never can
_CLOCK: Final = "this machine's clock is too far from that of the storage {name}"
_REGION: Final = "the bucket of the storage {name} lies in another region: set {variables}REGION"
_SECRET: Final = "the storage {name} finds its secret access key wrong"  # noqa: S105
_EXPIRED: Final = "the credentials of the storage {name} have expired"
_SENTENCES: Final = {
    "AccessControlListNotSupported": "the bucket of the storage {name} takes no ACLs: open it by a policy, and set "
    "{variables}PUBLIC_ACCESS to `policy`",
    "AccessDenied": "the storage {name} refuses access: its credentials lack a permission",
    "AuthorizationHeaderMalformed": _REGION,
    "ExpiredToken": _EXPIRED,
    "IllegalLocationConstraintException": _REGION,
    "InvalidAccessKeyId": "the storage {name} does not know its access key",
    "InvalidToken": _EXPIRED,
    "InvalidBucketName": "the storage {name} takes no bucket of that name",
    "NoSuchBucket": "the bucket of the storage {name} does not exist",
    "NotImplemented": "the server of the storage {name} cannot do what its settings ask for",
    "PermanentRedirect": _REGION,
    "RequestTimeTooSkewed": _CLOCK,
    "SignatureDoesNotMatch": _SECRET,
    "301": _REGION,
}
_NETWORK: Final = (
    sdk.ConnectionError,
    sdk.HTTPClientError,
    sdk.IncompleteReadError,
    sdk.ReadTimeoutError,
    urllib3.exceptions.HTTPError,
)
_CREDENTIALS: Final = (
    sdk.CredentialRetrievalError,
    sdk.TokenRetrievalError,
    sdk.MetadataRetrievalError,
    sdk.ProfileNotFound,
    sdk.SSOError,
)


class _Stoppable:
    """A file that can be read no further once its call is cancelled.

    The connection is cut then, and the server drops what it has: less than the whole. Once it has all, the answer is
    waited for, so that nothing lands later. The SDK neither translates nor retries this error.
    """

    def __init__(self, file: BinaryIO, is_cancelled: Callable[[], bool]) -> None:
        self._file = file
        self._is_cancelled = is_cancelled

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if data and self._is_cancelled():
            raise CancelledError
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _stoppable(content: bytes, is_cancelled: Callable[[], bool]) -> Iterator[bytes]:
    """The same for bytes in memory, in pieces."""
    for piece in pieces(content, _PIECE_BYTES):
        if is_cancelled():
            raise CancelledError
        yield piece


def _is_whole(headers: Any, status: int = 200) -> bool:
    """Whether no headers are missing: see `_see_that_it_is_whole`."""
    return "date" in headers and (status == 204 or "content-length" in headers or "transfer-encoding" in headers)


def _close(client: Any) -> None:
    """Close its connections at once: of those that wait in a pool, urllib3 closes them when it is collected."""
    session = client._endpoint.http_session  # noqa: SLF001 - nothing else leads there
    for manager in (session._manager, *session._proxy_managers.values()):  # noqa: SLF001
        for key in manager.pools.keys():  # noqa: SIM118 - a container of its own kind
            manager.pools[key].close()
    client.close()


def _answer(call: Callable[[], object]) -> int:
    """200, or the status of a refusal that tells something about the server."""
    try:
        call()
    except sdk.ClientError as error:
        if _status(error) in {400, 412, 501}:
            return _status(error)
        raise
    return 200


def _if_absent(honoured: bool) -> dict[str, str]:  # noqa: FBT001
    return {"IfNoneMatch": "*"} if honoured else {}


def _identity(found: dict[str, Any]) -> tuple[int, str]:
    return found["ContentLength"], found["Metadata"].get(_MD5) or _unquoted(found)


def _md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def _base64(digest: bytes) -> str:
    return b64encode(digest).decode()


def _unquoted(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _code(error: sdk.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: sdk.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
