"""Objects as block blobs of Azure Blob Storage.

What the service does differently from other object stores, and what follows here:

-   A container is open or closed as a whole, so public objects may have a container of their own.
-   Blocks of a large blob lie, unseen, under the blob's own name until they are committed. There is no call that takes
    them away: the service drops them after a week, or when something else is committed under that name. To commit
    nothing would show an empty blob for a moment and take another writer's blocks along, so a write that fails does
    not do it; `cleanup_failed_assets` does, because whoever calls it says that nothing of that key is to stay. Only
    blocks sent after another writer won stay with the winner's blob for that week.
-   A request that is sent again because its answer was lost meets what it did itself the first time. So each blob
    carries a random mark in its metadata, by which a write recognises its own.
-   A signed URL is signed with the account's key, or with a user delegation key, which the service gives for at most
    seven days to who has a token.

In memory at a time: one block of each upload, or the whole of what is sent in one piece (the SDK takes no less), and
4 MiB of each download.
"""

from __future__ import annotations

import binascii
import hashlib
import logging
import random
import re
import threading
import time
from base64 import b64decode
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Final, Literal, Self
from uuid import uuid4

import requests
from azure.core import MatchConditions
from azure.core.credentials import AccessToken, TokenCredential
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    DecodeError,
    DeserializationError,
    HttpResponseError,
    IncompleteReadError,
    ResourceModifiedError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline import PipelineResponse
from azure.core.pipeline.transport import HttpRequest, HttpResponse, RequestsTransport
from azure.storage.blob import (
    BlobBlock,
    BlobClient,
    BlobProperties,
    BlobServiceClient,
    ContentSettings,
    ExponentialRetry,
    StandardBlobTier,
    UserDelegationKey,
    generate_blob_sas,
)

from smart_assets.disposition import content_disposition
from smart_assets.expiry import Validity
from smart_assets.settings import AzureSettings, Settings, storage_variables
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
    ObjectExists,
    ObjectNotFound,
    StorageError,
    StorageFull,
    StorageNotConfigured,
    StorageUnavailable,
    WriteNotVerified,
)
from smart_assets.storage.keys import Visibility, visibility_of
from smart_assets.storage.presign import object_url
from smart_assets.threads import Threads

_CHUNK_BYTES: Final = 4 * 1024 * 1024
_PAGE: Final = 5000
_MAX_BLOCKS: Final = 50_000
# "Copy Blob From URL" answers when it is done, and takes no more than this; beyond it there is "Copy Blob", polled.
_SYNCHRONOUS_COPY_BYTES: Final = 256 * 1024 * 1024
_COPY_SECONDS: Final = 600
_SOURCE_SECONDS: Final = 3600
_COPY_POLL_SECONDS: Final = 0.2

_SKEW_SECONDS: Final = 900  # by which the service's clock may be behind

_MARK: Final = "upload"
_REQUEST_ID: Final = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

# A delegation key is asked for with the longest life the service gives, but for the difference of two clocks. It is
# good from before the earliest begin of what it signs: an hour's window, and an hour by which `ending_by` shifts it.
_KEY_SECONDS: Final = 7 * 86_400 - 300
_KEY_HEAD_SECONDS: Final = 3 * 3600
_KEY_RENEWAL_SECONDS: Final = 3600
_KEY_RETRY_SECONDS: Final = 60

# The last: an answer, but for some of its headers.
_NO_ANSWER: Final = (
    ServiceRequestError,
    ServiceResponseError,
    IncompleteReadError,
    requests.RequestException,
    DeserializationError,
)

_ABSENT: Final = {"BlobNotFound", "CannotVerifyCopySource", "ResourceNotFound"}
# What the service calls it when a blob is there already; without its blocks, another writer's blob took them along.
_TAKEN: Final = {"BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet", "UnauthorizedBlobOverwrite"}
_NOT_CREATED: Final = _TAKEN | {"InvalidBlockList"}
_PENDING_COPY: Final = "PendingCopyOperation"

_BUSY: Final = {
    "AccountBeingCreated",
    "ContainerBeingDeleted",
    "InternalError",
    "OperationTimedOut",
    "ServerBusy",
    "SystemInUse",
    _PENDING_COPY,
}
_BUSY_STATUSES: Final = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}

_CREDENTIALS: Final = (
    "the storage refuses its credentials: check the account's key or the credential's roles, and this machine's clock"
)
_ENDED_EARLY: Final = "the storage ended a transfer before its end"
_SENTENCES: Final = {
    "AccountIsDisabled": "the storage's account is disabled",
    "AuthenticationFailed": _CREDENTIALS,
    "AuthorizationFailure": "the storage denies access: check the account's key, and its rules for networks",
    "AuthorizationPermissionMismatch": "the storage denies access: its credentials lack a role for this",
    "AuthorizationProtocolMismatch": "the storage takes nothing but HTTPS",
    "BlobArchived": "the object is in the archive tier and has to be rehydrated first",
    "BlobImmutableDueToLegalHold": "the object is under a legal hold",
    "BlobImmutableDueToPolicy": "the object is kept by an immutability policy",
    "ContainerDisabled": "the storage's container is disabled",
    "ContainerNotFound": "the storage's container does not exist",
    "InsufficientAccountPermissions": "the storage denies access: the account lacks the permission",
    "InvalidAuthenticationInfo": _CREDENTIALS,
    "InvalidBlobTier": "the account does not know the access tier",
    "InvalidUri": "the storage does not take such a key",
    "KeyBasedAuthenticationNotPermitted": "the account does not take its keys, only tokens",
    "LeaseIdMissing": "somebody holds a lease on the object",
    "NoAuthenticationInformation": _CREDENTIALS,
    "RequestBodyTooLarge": "the storage does not take so much in one piece",
}


class AzureStorage(StorageBackend):
    """One container of an account, or two: what is public may have its own.

    Creates with `If-None-Match: *`, in one piece or in blocks, each sent with its MD5, which the service checks on
    receipt; the MD5 of the whole is kept with the blob.
    """

    late_write_seconds = LATE_WRITE_SECONDS

    def __init__(self, name: str, settings: AzureSettings, *, public_cache_seconds: int) -> None:
        """Asks nobody. StorageNotConfigured where settings are missing, or are none that the SDK takes."""
        super().__init__(name)
        container = settings.container
        missing = settings.missing(name)
        if container is None or missing:
            raise StorageNotConfigured(
                f"the storage {name} is not configured: {' and '.join(missing)} missing",
                storage=name,
                missing=missing,
            )
        self._settings = settings
        self._containers = {
            Visibility.PRIVATE: container,
            Visibility.PUBLIC: settings.public_container or container,
        }
        self._cache_control = {
            Visibility.PRIVATE: "private, no-cache",
            Visibility.PUBLIC: f"public, max-age={public_cache_seconds}",
        }
        self._tier = StandardBlobTier(settings.access_tier) if settings.access_tier else None
        self._session = _session(settings.max_connections)
        self._service, self._chain = _connect(name, settings, self._session)
        self._account_key: str | None = getattr(self._service.credential, "account_key", None)
        self._delegation = _DelegationKeys(self._service) if self._chain is not None else None
        self._endpoint = f"{self._service.scheme}://{self._service.primary_hostname}"
        self._outer_endpoint = settings.signing_endpoint_url or self._endpoint
        self._threads = Threads(f"storage-{name}", settings.max_connections, wait_seconds=TURN_SECONDS)
        signs = self._account_key is not None or self._delegation is not None
        self.capabilities = Capabilities(
            max_object_bytes=max(settings.single_put_bytes, _MAX_BLOCKS * settings.block_bytes),
            signed_urls=signs,
            presigned_uploads=signs,
            verifies_writes=True,
            public_access=settings.public_url is not None or settings.public_access == "policy",
        )

    @classmethod
    def from_settings(cls, name: str, own: AzureSettings, settings: Settings) -> Self:
        """The containers of its settings."""
        return cls(name, own, public_cache_seconds=settings.public_cache_seconds)

    async def close(self) -> None:
        """Close the connections, and let the threads end."""
        self._threads.close()
        self._service.close()
        self._session.close()
        if self._chain is not None:
            self._chain.close()

    # ── Primitives ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _put(self, key: str, source: Source, *, content_type: str, give_away: bool) -> StoredObject:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        write = _Write(self._blob(key))
        if size <= self._settings.single_put_bytes:
            return await self._threads.run(partial(self._put_whole, key, write, source, content_type))
        blocks = pieces(source, self._settings.block_bytes)
        try:
            await self._threads.run(write.refuse_taken)
            # One trip to a thread for each block: a cancelled upload ends between two.
            while await self._threads.run(partial(write.send_next, blocks)):
                pass
            return await self._threads.run(partial(self._commit, key, write, content_type))
        finally:
            blocks.close()

    async def _read(self, key: str, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        if start == end:
            await self._stat(key)
            return
        blob, etag, position = self._blob(key), None, start
        while end is None or position < end:
            length = _CHUNK_BYTES if end is None else min(_CHUNK_BYTES, end - position)
            chunk = await self._threads.run(partial(_fetch, blob, position, length, etag))
            if chunk is None:
                break
            yield chunk.data
            etag, position = chunk.etag, position + len(chunk.data)
            if position >= chunk.object_size:
                break

    async def _stat(self, key: str) -> StoredObject:
        return self._record(key, await self._threads.run(self._blob(key).get_blob_properties))

    async def _delete(self, key: str) -> bool:
        return await self._threads.run(partial(_delete, self._blob(key)))

    async def _discard(self, key: str) -> None:
        await self._threads.run(partial(_purge, self._blob(key)))

    async def _list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        for container, visibilities in self._places(prefix):
            pages = (
                self._service.get_container_client(container)
                .list_blobs(self._settings.prefix + prefix or None, results_per_page=_PAGE)
                .by_page()
            )
            while (page := await self._threads.run(partial(_next_page, pages))) is not None:
                for properties in page:
                    key = properties.name.removeprefix(self._settings.prefix)
                    if visibility_of(key) in visibilities:
                        yield self._record(key, properties)

    async def _move(self, key: str, target: str) -> StoredObject:
        try:
            return await self._threads.run(partial(self._copy_and_delete, key, target))
        except ResourceNotFoundError as error:
            raise _refusal(error) from error

    async def _check(self) -> None:
        await self._threads.run(self._probe)

    async def _ping(self) -> None:
        await self._threads.run(partial(_find, self._blob("private/ping")))

    def _public_url(self, key: str) -> str | None:
        if self._settings.public_url is not None:
            return object_url(self._settings.public_url, self._settings.prefix + key)
        return self._address(self._outer_endpoint, key) if self._settings.public_access == "policy" else None

    async def _signed_url(self, key: str, validity: Validity, filename: str | None) -> SignedUrl:
        delegation = await self._delegated(validity)
        return self._signed(self._outer_endpoint, key, validity, delegation, filename)

    async def _presigned_upload(self, key: str, max_bytes: int, validity: Validity) -> PresignedUpload:
        # To create, and not to write: what is there already is not replaced. The size cannot be limited.
        validity = Validity(validity.begins - _SKEW_SECONDS, validity.expires)
        delegation = await self._delegated(validity)
        signed = self._signed(self._outer_endpoint, key, validity, delegation, None, permission="c")
        headers = {"x-ms-blob-type": "BlockBlob", "Content-Type": "application/octet-stream"}
        return PresignedUpload("PUT", signed.url, signed.expires_at, headers=headers)

    async def _delegated(self, validity: Validity) -> _DelegationKey | None:
        """The user delegation key, where it is one that signs."""
        if self._delegation is None:
            return None
        now = time.time()
        delegation = self._delegation.at_hand(validity.expires, now)
        return delegation or await self._threads.run(partial(self._delegation.ask, validity.expires, now))

    def _translate(self, error: Exception, key: str | None) -> StorageError | None:
        if isinstance(error, _NO_ANSWER):
            return StorageUnavailable("the storage cannot be reached, or does not answer in time")
        if isinstance(error, DecodeError):
            return StorageError("what answers at the storage's address is not Azure Blob Storage")
        if isinstance(error, HttpResponseError):
            inner = error.inner_exception
            if error.status_code is None and isinstance(inner, AzureError):
                return self._translate(inner, key)
            return _refusal(error)
        if isinstance(error, AzureError):
            return StorageError("the storage's answer makes no sense")
        if isinstance(error, OSError):
            return StorageError("the file to be stored cannot be read")
        return None

    # ── Writing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _put_whole(self, key: str, write: _Write, source: Source, content_type: str) -> StoredObject:
        data = source if isinstance(source, bytes) else source.read_bytes()
        write.size = len(data)
        create = partial(write.blob.upload_blob, data, length=len(data), overwrite=False)
        return self._created(key, write, content_type, create)

    def _commit(self, key: str, write: _Write, content_type: str) -> StoredObject:
        blocks = [BlobBlock(block_id) for block_id in write.block_ids]
        create = partial(write.blob.commit_block_list, blocks, match_condition=MatchConditions.IfMissing)
        return self._created(key, write, content_type, create)

    def _created(
        self, key: str, write: _Write, content_type: str, create: Callable[..., dict[str, Any]]
    ) -> StoredObject:
        """The record of what `create` makes. ObjectExists where the key is taken, and not by this very write."""
        headers = self._headers(key, content_type)
        if write.block_ids:
            headers.content_md5 = bytearray(write.md5.digest())
        try:
            answer = create(
                validate_content=True,
                content_settings=headers,
                metadata={_MARK: write.mark},
                standard_blob_tier=self._tier,
            )
        except HttpResponseError as error:
            if _code(error) not in _NOT_CREATED:
                raise
            there = _find(write.blob)
            if there is None:
                raise StorageUnavailable("the object was removed while it was written") from error
            if there.metadata.get(_MARK) != write.mark:
                raise ObjectExists("the key is taken") from error
            return self._record(key, there)
        return StoredObject(
            key, write.size, _unquoted(answer["etag"]), answer["last_modified"], content_type, self.url(key)
        )

    def _headers(self, key: str, content_type: str | None) -> ContentSettings:
        return ContentSettings(
            content_type=content_type,
            content_disposition=content_disposition(None),
            cache_control=self._cache_control[visibility_of(key)],
        )

    # ── Moving ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _copy_and_delete(self, key: str, target: str) -> StoredObject:
        source, copy = self._blob(key), self._blob(target)
        found = source.get_blob_properties()
        headers = self._headers(target, found.content_settings.content_type)
        # What is not set again is forgotten, the MD5 too.
        headers.content_md5 = found.content_settings.content_md5
        if self._copy(key, found, copy):
            there = _copied(copy)
            _verify_copy(found, there, copy)
        else:
            there = _copied(copy)
            _refuse_other(found, there, target)
        while there.content_settings != headers:
            try:
                changed = copy.set_http_headers(headers, etag=there.etag, match_condition=MatchConditions.IfNotModified)
            except ResourceModifiedError:  # by somebody who makes the same move
                there = _copied(copy)
                _refuse_other(found, there, target)
            else:
                there.etag, there.last_modified = changed["etag"], changed["last_modified"]
                there.content_settings = headers
        # What lies there by now and is not what was copied is somebody else's.
        with suppress(ResourceNotFoundError, ResourceModifiedError):
            source.delete_blob("include", etag=found.etag, match_condition=MatchConditions.IfNotModified)
        return self._record(target, there)

    def _copy(self, key: str, found: BlobProperties, copy: BlobClient) -> bool:
        """Copy within the service; False where something is there already, perhaps from a move that was broken off."""
        try:
            copy.start_copy_from_url(
                self._source_url(key),
                match_condition=MatchConditions.IfMissing,
                standard_blob_tier=self._tier,
                requires_sync=True if found.size <= _SYNCHRONOUS_COPY_BYTES else None,
            )
        except HttpResponseError as error:
            if _code(error) not in _TAKEN | {_PENDING_COPY}:
                raise
            return False
        return True

    def _source_url(self, key: str) -> str:
        """Where the service itself may read the object for a while."""
        if self._account_key is None and self._delegation is None:
            return self._blob(key).url  # with the connection string's own shared access signature
        now = int(time.time())
        validity = Validity(now - _SOURCE_SECONDS, now + _SOURCE_SECONDS)
        delegation = self._delegation.ask(validity.expires, now) if self._delegation is not None else None
        return self._signed(self._endpoint, key, validity, delegation, None).url

    # ── Checking ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _probe(self) -> None:
        for visibility in Visibility:
            key = check_key(visibility)
            data = key.encode()
            try:
                self._put_whole(key, _Write(self._blob(key)), data, "text/plain")
                chunk = _fetch(self._blob(key), 0, len(data), None)
                if chunk is None or chunk.data != data:
                    raise StorageError("what is written to the storage comes back changed")
                if visibility is Visibility.PUBLIC:
                    self._probe_public(key, data)
                else:
                    self._probe_private(key, data)
            finally:
                _delete(self._blob(key))

    def _probe_private(self, key: str, data: bytes) -> None:
        addresses = [self._address(self._endpoint, key)]
        if self._settings.public_url is not None:
            addresses.append(object_url(self._settings.public_url, self._settings.prefix + key))
        if any(self._is_given(address, data) for address in addresses):
            raise StorageError(
                f"anybody can fetch private objects of the storage {self.name}: turn off the container's public "
                "access, and let its CDN reach public objects only"
            )
        if not self.capabilities.signed_urls:
            return
        now = time.time()
        validity = Validity.of(now, 60)
        delegation = self._delegation.ask(validity.expires, now) if self._delegation is not None else None
        signed = self._signed(self._outer_endpoint, key, validity, delegation, None)
        # Where callers reach the account this machine may not.
        if self._outer_endpoint == self._endpoint and not self._is_given(signed.url, data):
            raise StorageError(
                f"the storage {self.name} refuses the URLs signed for it: check the account's key or the credential's "
                "roles, and this machine's clock"
            )

    def _probe_public(self, key: str, data: bytes) -> None:
        url = self.url(key)
        if url is not None and not self._is_given(url, data):
            raise StorageError(
                f"strangers are refused public objects of the storage {self.name}: allow anonymous access to blobs, in "
                "the account and in the public container, or look at what stands in front of it"
            )

    def _is_given(self, url: str, data: bytes) -> bool:
        """Whether a stranger is given just these bytes."""
        timeouts = self._settings.connect_timeout_seconds, self._settings.timeout_seconds
        answer = self._session.get(url, timeout=timeouts, auth=_without_credentials)
        return answer.status_code == HTTPStatus.OK and answer.content == data

    # ── Where things are ────────────────────────────────────────────────────────────────────────────────────────────

    def _blob(self, key: str) -> BlobClient:
        return self._service.get_blob_client(self._containers[visibility_of(key)], self._settings.prefix + key)

    def _address(self, endpoint: str, key: str) -> str:
        return object_url(f"{endpoint}/{self._containers[visibility_of(key)]}", self._settings.prefix + key)

    def _places(self, prefix: str) -> list[tuple[str, set[Visibility]]]:
        """The containers where keys that begin so may lie, and which of those found there are looked at."""
        visibilities = {visibility_of(prefix)} | ({Visibility.PUBLIC} if "public/".startswith(prefix) else set())
        places: dict[str, set[Visibility]] = {}
        for visibility in visibilities:
            places.setdefault(self._containers[visibility], set()).add(visibility)
        return list(places.items())

    def _record(self, key: str, properties: BlobProperties) -> StoredObject:
        return StoredObject(
            key=key,
            size=properties.size,
            etag=_unquoted(properties.etag),
            modified=properties.last_modified,
            content_type=properties.content_settings.content_type,
            url=self.url(key),
        )

    def _signed(
        self,
        endpoint: str,
        key: str,
        validity: Validity,
        delegation: _DelegationKey | None,
        filename: str | None,
        *,
        permission: Literal["r", "c"] = "r",
    ) -> SignedUrl:
        if delegation is not None:
            validity = validity.ending_by(delegation.ends)
        expires = datetime.fromtimestamp(validity.expires, tz=UTC)
        signature = generate_blob_sas(
            self._service.account_name or "",
            self._containers[visibility_of(key)],
            self._settings.prefix + key,
            account_key=self._account_key,
            user_delegation_key=delegation.key if delegation is not None else None,
            permission=permission,
            start=datetime.fromtimestamp(validity.begins, tz=UTC),
            expiry=expires,
            protocol="https" if endpoint.startswith("https://") else None,
            content_disposition=content_disposition(filename) if filename else None,
        )
        return SignedUrl(f"{self._address(endpoint, key)}?{signature}", expires)


# ── Blobs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Write:
    """One write of a blob; `size` and `md5` of what was sent in blocks so far, in their order."""

    blob: BlobClient
    mark: str = field(default_factory=lambda: uuid4().hex)
    size: int = 0
    md5: Any = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))
    block_ids: list[str] = field(default_factory=list)

    def refuse_taken(self) -> None:
        """ObjectExists where there is a blob: blocks would stay with it when they are refused."""
        if _find(self.blob) is not None:
            raise ObjectExists("the key is taken")

    def send_next(self, blocks: Iterator[bytes]) -> bool:
        """Send the next block; False where there is none."""
        block = next(blocks, None)
        if block is None:
            return False
        # All of one length, as the service wants them; two writers to one key never send the same.
        block_id = f"{self.mark}{len(self.block_ids):05}"
        self.blob.stage_block(block_id, block, length=len(block), validate_content=True)
        self.block_ids.append(block_id)
        self.size += len(block)
        self.md5.update(block)
        return True


@dataclass(frozen=True)
class _Chunk:
    data: bytes
    etag: str
    object_size: int


def _fetch(blob: BlobClient, start: int, length: int, etag: str | None) -> _Chunk | None:
    """Up to `length` bytes from `start` of the blob of that etag; None past its end."""
    pinned: dict[str, Any] = {} if etag is None else {"etag": etag, "match_condition": MatchConditions.IfNotModified}
    try:
        download = blob.download_blob(start, length, max_concurrency=1, decompress=False, **pinned)
        data = download.readall()
    except HttpResponseError as error:
        if error.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return None
        raise
    except ValueError as error:  # an answer without some of its headers
        raise StorageUnavailable(_ENDED_EARLY) from error
    if len(data) != download.size:
        raise StorageUnavailable(_ENDED_EARLY)
    object_size = int(str(download.properties.content_range).rpartition("/")[2])
    return _Chunk(data, download.properties.etag, object_size)


def _find(blob: BlobClient) -> BlobProperties | None:
    try:
        return blob.get_blob_properties()
    except ResourceNotFoundError as error:
        if _code(error) not in _ABSENT:
            raise
        return None


def _delete(blob: BlobClient) -> bool:
    try:
        blob.delete_blob("include")
    except ResourceNotFoundError as error:
        if _code(error) not in _ABSENT:
            raise
        return False
    return True


def _purge(blob: BlobClient) -> None:
    """Remove the blob, and the blocks of uploads that were broken off: they go when something else is committed."""
    try:
        _, uncommitted = blob.get_block_list("uncommitted")
    except ResourceNotFoundError as error:
        if _code(error) not in _ABSENT:
            raise
        return
    if uncommitted:
        blob.commit_block_list([])
    _delete(blob)


def _copied(copy: BlobClient) -> BlobProperties:
    """What is at the end of a copy, which is waited for. StorageUnavailable, and nothing there, where it failed."""
    deadline = time.monotonic() + _COPY_SECONDS
    there = copy.get_blob_properties()
    while there.copy.status == "pending":
        if time.monotonic() > deadline:
            copy.abort_copy(there)
        time.sleep(_COPY_POLL_SECONDS)
        there = copy.get_blob_properties()
    if there.copy.status in {"aborted", "failed"}:
        _delete(copy)
        raise StorageUnavailable("the storage broke off a copy")
    return there


def _verify_copy(found: BlobProperties, there: BlobProperties, copy: BlobClient) -> None:
    """WriteNotVerified, and nothing there, where a copy is not what was copied."""
    md5, other_md5 = found.content_settings.content_md5, there.content_settings.content_md5
    if found.size != there.size or (md5 and other_md5 and md5 != other_md5):
        copy.delete_blob(etag=there.etag, match_condition=MatchConditions.IfNotModified)
        raise WriteNotVerified("the copy is not what was copied")


def _refuse_other(found: BlobProperties, there: BlobProperties, key: str) -> None:
    """ObjectExists where what is there is another object, and not the same from a move that was broken off."""
    md5, mark = found.content_settings.content_md5, found.metadata.get(_MARK)
    is_same = (md5 and md5 == there.content_settings.content_md5) or (mark and mark == there.metadata.get(_MARK))
    if found.size != there.size or not is_same:
        raise ObjectExists("the key is taken", key=key)


def _next_page(pages: Iterator[Iterable[BlobProperties]]) -> list[BlobProperties] | None:
    page = next(pages, None)
    return None if page is None else list(page)


def _unquoted(etag: str) -> str:
    return etag.strip('"')


# ── Errors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _code(error: HttpResponseError) -> str:
    """What the service calls the error; empty where it does not say."""
    code = getattr(error, "error_code", None) or ""
    return str(getattr(code, "value", code))


def _refusal(error: HttpResponseError) -> StorageError:
    code, status = _code(error), error.status_code or 0
    if status == HTTPStatus.NOT_FOUND and code in _ABSENT:
        return ObjectNotFound("there is no such object")
    if code in _TAKEN:
        # Of a write, that is said where it is written; here a reader holds on to an object that was changed.
        return StorageUnavailable("the object was changed meanwhile")
    if code == "Md5Mismatch":
        return WriteNotVerified("the bytes were changed on their way to the storage")
    if status == HTTPStatus.INSUFFICIENT_STORAGE or "Quota" in code or "Capacity" in code:
        return StorageFull("the storage has no room")
    if code in _BUSY or status in _BUSY_STATUSES or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return StorageUnavailable("the storage cannot do it now")
    if code in _SENTENCES:
        return StorageError(_SENTENCES[code])
    if isinstance(error, ClientAuthenticationError) or status == HTTPStatus.UNAUTHORIZED:
        return StorageError(_CREDENTIALS)
    if status == HTTPStatus.FORBIDDEN:
        return StorageError("the storage denies access: check the account's key or the credential's roles")
    return StorageError(f"the storage refuses ({code or status})")


# ── The account ─────────────────────────────────────────────────────────────────────────────────────────────────────


class _Retry(ExponentialRetry):
    """Again after about 0.2, 0.4 and 0.8 seconds; a server that stays silent is asked twice, not four times."""

    def __init__(self) -> None:
        super().__init__(retry_total=3, retry_connect=2, retry_read=1, retry_status=3)

    def get_backoff_time(self, settings: dict[str, Any]) -> float:
        seconds: float = 0.1 * 2 ** settings["count"]
        return seconds * random.SystemRandom().uniform(0.75, 1.25)


def _look_at(response: PipelineResponse[HttpRequest, HttpResponse]) -> None:
    """Make an error of an answer that ends amid its headers: Python's own HTTP client takes them for all there are.

    Every answer about a blob tells its request's id and the time.
    """
    answer, method = response.http_response, response.http_request.method
    if answer.status_code >= HTTPStatus.BAD_REQUEST:
        # Where the SDK asks again it leaves the body unread, and the connection open.
        answer.body()
    elif method in {"GET", "HEAD", "PUT"} and not (
        _REQUEST_ID.fullmatch(answer.headers.get("x-ms-request-id", ""))
        and answer.headers.get("Date", "").endswith(" GMT")
    ):
        answer.internal_response.close()
        raise ServiceResponseError("the answer ends amid its headers")


class _Adapter(requests.adapters.HTTPAdapter):
    """Closes its connections when it is closed; urllib3 does so when nobody holds the pool, and exceptions hold it."""

    def close(self) -> None:
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for address in manager.pools.keys():  # noqa: SIM118 - it cannot be iterated
                pool = manager.pools.get(address)
                if pool is not None:
                    pool.close()
        super().close()


def _session(connections: int) -> requests.Session:
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Adapter(pool_maxsize=connections))
    return session


def _without_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """What `requests` is told, or it would look for some in a file of the user's."""
    return request


def _connect(
    name: str, settings: AzureSettings, session: requests.Session
) -> tuple[BlobServiceClient, _DefaultChain | None]:
    """A client that has asked nobody yet; StorageNotConfigured where it cannot be made of the settings."""
    options: dict[str, Any] = {
        "transport": RequestsTransport(
            session=session,
            connection_timeout=settings.connect_timeout_seconds,
            read_timeout=settings.timeout_seconds,
        ),
        "retry_policy": _Retry(),
        "max_single_put_size": settings.single_put_bytes,
        "max_single_get_size": _CHUNK_BYTES,
        "raw_response_hook": _look_at,
        "http_logging_level": logging.DEBUG,  # each request would be 20 lines
    }

    def refuse(what: str, variable: str) -> StorageNotConfigured:
        return StorageNotConfigured(f"the storage {name} is not configured: {what}", storage=name, missing=(variable,))

    chain = None
    try:
        if settings.connection_string is not None:
            variable = settings.account_variable(name)
            text = settings.connection_string.get_secret_value().strip()
            service = BlobServiceClient.from_connection_string(text, **options)
        else:
            variable = f"{storage_variables(name)}ACCOUNT_URL"
            credential: str | _DefaultChain
            if settings.account_key is not None:
                credential = settings.account_key.get_secret_value().strip()
            else:
                credential = chain = _DefaultChain(name)
            service = BlobServiceClient(settings.account_url or "", credential, **options)
    except ValueError:  # the SDK's words may hold the settings' own
        raise refuse(f"{variable} is none that Azure's client takes", variable) from None
    if service.credential is None and "?" not in service.url:
        raise refuse(f"{variable} holds neither AccountKey nor SharedAccessSignature", variable)
    if service.credential is not None and not service.account_name:
        raise refuse(f"the account's name cannot be told from {variable}", variable)
    key = getattr(service.credential, "account_key", None)
    if key is not None:
        try:
            b64decode(key, validate=True)
        except binascii.Error:
            variable = variable if settings.connection_string is not None else f"{storage_variables(name)}ACCOUNT_KEY"
            raise refuse(f"the account's key in {variable} is not Base64", variable) from None
    return service, chain


class _DefaultChain(TokenCredential):
    """Azure's default chain of credentials, made when a token is first asked for: its library is slow to import."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._chain: Any = None

    def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        **options: Any,
    ) -> AccessToken:
        """A token; StorageNotConfigured where there are no credentials at all."""
        from azure.identity import DefaultAzureCredential

        with self._lock:
            if self._chain is None:
                self._chain = DefaultAzureCredential()
        try:
            token: AccessToken = self._chain.get_token(
                *scopes, claims=claims, tenant_id=tenant_id, enable_cae=enable_cae, **options
            )
        except ClientAuthenticationError as error:
            # An answer of the directory's, or its error's number: there were credentials, and they are wrong.
            if error.response is not None or "AADSTS" in str(error.message):
                raise
            raise StorageNotConfigured(
                f"the storage {self._name} is not configured: none of Azure's default credentials is there",
                storage=self._name,
                missing=(f"{storage_variables(self._name)}ACCOUNT_KEY",),
            ) from error
        return token

    def close(self) -> None:
        """Close its connections."""
        if self._chain is not None:
            self._chain.close()


@dataclass(frozen=True)
class _DelegationKey:
    """`ends` in Unix seconds: what is signed with it ends then too."""

    key: UserDelegationKey
    ends: int


class _DelegationKeys:
    """The user delegation key of the moment.

    The same for all that is signed within an hour, and for as long as it outlives that: so it is asked for hourly at
    most, and for links of a day about once in six.
    """

    def __init__(self, service: BlobServiceClient) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._current: _DelegationKey | None = None
        self._kept_until = 0.0

    def at_hand(self, until: int, now: float) -> _DelegationKey | None:
        """The key, for something that is to be good until then; None where it is to be asked for."""
        current = self._current
        if current is None or now >= current.ends:
            return None
        return current if until <= current.ends or now < self._kept_until else None

    def ask(self, until: int, now: float) -> _DelegationKey:
        """The key, asked for where it has to be; the present one where the service cannot give another just now."""
        with self._lock:
            current = self.at_hand(until, now)  # somebody else has asked meanwhile
            if current is not None:
                return current
            ends = int(now) + _KEY_SECONDS
            try:
                key = self._service.get_user_delegation_key(
                    datetime.fromtimestamp(int(now) - _KEY_HEAD_SECONDS, tz=UTC),
                    datetime.fromtimestamp(ends, tz=UTC),
                )
            except (AzureError, StorageError):
                if self._current is None or now >= self._current.ends:
                    raise
                self._kept_until = now + _KEY_RETRY_SECONDS
            else:
                self._current = _DelegationKey(key, ends)
                self._kept_until = now + _KEY_RENEWAL_SECONDS
            return self._current
