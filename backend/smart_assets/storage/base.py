"""What a storage is: one abstract class; callers know nothing else.

The public methods stand here once for all backends. They validate keys, refuse what a backend declares it cannot,
verify what was written, count and time, and translate whatever a vendor's SDK raises, around calls and around
iteration, into `storage.errors`. A backend supplies the few primitives behind them and declares its `Capabilities`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, Protocol
from uuid import uuid4

from smart_assets import observability
from smart_assets.expiry import Validity
from smart_assets.storage.errors import (
    InvalidKey,
    ObjectExists,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
    Unsupported,
    WriteNotVerified,
)
from smart_assets.storage.keys import MAX_KEY_BYTES, Visibility, validate_key, visibility_of, with_visibility
from smart_assets.threads import NoTurn

logger = logging.getLogger(__name__)

Source = bytes | Path
"""What a write takes: bytes in memory, or a file on this machine's disk, which a backend streams."""


def pieces(source: Source, length: int) -> Generator[bytes, None, None]:
    """A source's bytes, `length` of them at a time and in memory; blocks, where it is a file."""
    if isinstance(source, bytes):
        for start in range(0, len(source), length):
            yield source[start : start + length]
        return
    with source.open("rb") as file:
        while piece := file.read(length):
            yield piece


DEFAULT_EXPIRY_SECONDS: Final = 86_400
_CLEANUPS_AT_ONCE = 8

TURN_SECONDS: Final = 10
"""How long a call to a backend behind a network may wait for a thread: a server that hangs holds up nobody for good."""

LATE_WRITE_SECONDS: Final = 60
"""What backends behind a network have as `late_write_seconds`."""

_CHECKS: Final = "smart-assets-check/"
_LONGEST_CHECK: Final = timedelta(hours=1)


def check_key(visibility: Visibility) -> str:
    """A key of its own for an object that a check of a storage writes, and removes again."""
    return f"{visibility}/{_CHECKS}{uuid4().hex}"


@dataclass(frozen=True)
class Capabilities:
    """What a backend can. What it declares absent answers `Unsupported` before anything is touched."""

    persistent: bool = True
    """It keeps objects at all; `direct` does not."""
    arbitrary_bytes: bool = True
    """It takes bytes that are not an image."""
    max_object_bytes: int | None = None
    """The largest object it takes, None where only the disk says."""
    max_key_bytes: int = MAX_KEY_BYTES
    """The longest key it takes, in UTF-8; a backend that has to escape some characters may take fewer of those."""
    create_if_absent: bool = True
    """Of two writers to one key exactly one wins, and nothing is ever overwritten."""
    signed_urls: bool = False
    """It signs URLs itself; where it does not, the service's own signatures stand in."""
    presigned_uploads: bool = False
    """Strangers can be let write one object, at the backend itself: see `StorageBackend.presign_upload`."""
    caps_uploads: bool = False
    """Of such an upload the backend itself refuses what is too large."""
    verifies_writes: bool = False
    """The backend checks a checksum on receipt; where it does not, a write is read back."""
    public_access: bool = False
    """Public objects can be fetched at the backend without the service."""
    links_public: bool = True
    """Answers name that address; where not, they name the service's own, which redirects there."""
    at_hand: bool = False
    """Objects can be read without waiting for a network: see `StorageBackend.at_hand`."""
    data_urls: bool = False
    """A record's `url` is a `data:` URI that holds the bytes themselves."""
    one_process: bool = False
    """What it keeps is known to this process alone and forgotten with it."""

    @property
    def lasting(self) -> bool:
        """What it keeps is there for every process, and after each."""
        return self.persistent and not self.one_process


@dataclass(frozen=True)
class StoredObject:
    """What a backend says of an object: a record, never a bare URL (a URL is derived and identifies nothing).

    `size` in bytes; `etag` as the backend gives it, unquoted, None where it has none; `modified` in UTC; `url` where
    anybody can fetch the object without the service, or a `data:` URI, else None.
    """

    key: str
    size: int
    etag: str | None = None
    modified: datetime | None = None
    content_type: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class SignedUrl:
    """A URL for one object, and when it stops working (UTC)."""

    url: str
    expires_at: datetime


@dataclass(frozen=True)
class PresignedUpload:
    """How whoever has this may write one object until it expires (UTC).

    A POST takes a form (`multipart/form-data`) of `fields`, then the file as the field `file`; a PUT takes the bytes as
    they are. `headers` go along with either.
    """

    method: Literal["POST", "PUT"]
    url: str
    expires_at: datetime
    fields: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


class ObjectAtHand(Protocol):
    """An object that can be read without waiting for a network; close it when done."""

    @property
    def size(self) -> int:
        """In bytes."""
        ...

    @property
    def modified_ns(self) -> int:
        """Nanoseconds since 1970."""
        ...

    def read(self, start: int, length: int, *, wait: bool) -> bytes | None:
        """`length` bytes from `start`, fewer only past the end.

        With `wait=False`, on the event loop's own thread only: None where that would mean waiting for a disk; ask
        again with `wait=True` in a thread then. Raises OSError where the disk fails.
        """
        ...

    def close(self) -> None:
        """Give back what the object holds; more than once does no harm."""
        ...


class StorageBackend(ABC):
    """Objects by key.

    Every method raises only `storage.errors` (and what cancellation raises). Methods are safe to call from many tasks
    at once, and a cancelled call ends only when nothing of it can happen any more. `name` is what requests call the
    storage and rows remember; by default its kind.
    """

    capabilities: Capabilities
    """Of the class, or of the instance where settings decide."""

    late_write_seconds: float = 0
    """For so long after a write whose answer was lost the object may still appear."""

    def __init__(self, name: str) -> None:
        """`name` as in the settings."""
        self.name = name
        self._late_writes: dict[str, float] = {}

    # ── What callers use ────────────────────────────────────────────────────────────────────────────────────────────

    async def upload(
        self, key: str, source: Source, *, content_type: str, give_away: bool = False, exclusive: bool = False
    ) -> StoredObject:
        """Write an object that was not there; durable and verified when this returns.

        `give_away` says that the file is never changed again, so a backend on the same file system may link it
        instead of copying; the caller removes its own name for it either way. A backend with `create_if_absent` never
        overwrites; with `exclusive` the others refuse (Unsupported) instead of writing without that promise.
        Raises ObjectExists where the key is taken (with `create_if_absent`), StorageFull, WriteNotVerified, or any
        other StorageError; then whether the object is there is unknown until `cleanup_failed_assets` has said.
        """
        self._check_key(key)
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        limit = self.capabilities.max_object_bytes
        if limit is not None and size > limit:
            raise Unsupported(f"{self.name} takes objects up to {limit} bytes, this one has {size}", storage=self.name)
        with self._call("upload", key):
            await self._prepare()
            if exclusive:
                self._need("create_if_absent", "telling which of two writers came first")
            try:
                written = await self._put(key, source, content_type=content_type, give_away=give_away)
            except BaseException as error:
                self._note_late_write(key, error)
                raise
            if written.size != size:
                await self.cleanup_failed_assets([key])
                raise WriteNotVerified(
                    f"{self.name} reports {written.size} bytes where {size} were sent", storage=self.name, key=key
                )
        observability.labelled(observability.STORAGE_BYTES, self.name, "written").inc(size)
        return written

    def open(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """The object's bytes from `start` up to but not including `end` (None: its end), in chunks.

        Raises ObjectNotFound before the first chunk. A range past the end gives what there is of it. Who stops
        early closes the generator (`contextlib.aclosing`).
        """
        self._check_key(key)
        self._need("persistent", "reading")
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"no range of bytes: {start} to {end}")
        return self._chunks(key, start, end)

    async def stat(self, key: str) -> StoredObject:
        """The object's record; ObjectNotFound where there is none."""
        self._check_key(key)
        self._need("persistent", "looking up objects")
        with self._call("stat", key):
            return await self._stat(key)

    async def get_size(self, key: str) -> int:
        """The object's size in bytes; ObjectNotFound where there is none (never 0 for a missing one)."""
        return (await self.stat(key)).size

    async def exists(self, key: str) -> bool:
        """Whether there is an object of that key."""
        try:
            await self.stat(key)
        except ObjectNotFound:
            return False
        return True

    async def delete(self, key: str) -> bool:
        """Remove the object; True where there was one, False where it was gone already. Gone either way."""
        self._check_key(key)
        self._need("persistent", "deleting")
        with self._call("delete", key):
            return await self._delete(key)

    def list(self, prefix: str = "") -> AsyncGenerator[StoredObject, None]:
        """Every object whose key begins with `prefix`, in no promised order, a page at a time.

        What comes or goes meanwhile may be among them or not. Who stops early closes the generator.
        """
        self._need("persistent", "listing")
        return self._records(prefix)

    def url(self, key: str) -> str | None:
        """Where anybody can fetch a public object without the service; None where nobody can."""
        self._check_key(key)
        public = visibility_of(key) is Visibility.PUBLIC
        return self._public_url(key) if public and self.capabilities.public_access else None

    def path(self, key: str) -> Path | None:
        """Where on this machine's disk the object lies, or would; None where that is not where it lies."""
        self._check_key(key)
        return self._path(key)

    async def generate_signed_url(
        self,
        key: str,
        expiry_seconds: int = DEFAULT_EXPIRY_SECONDS,
        *,
        filename: str | None = None,
        not_after: float | None = None,
    ) -> SignedUrl:
        """A URL with which anybody may fetch the object for `expiry_seconds`, at the backend itself.

        It expires in whole seconds, never later than asked, and is the same for all calls within a window (see
        `Validity`); earlier where the credentials behind it end earlier, or at `not_after` (Unix seconds).
        `filename` is what a browser would save it as. Unsupported where the backend signs no URLs.
        """
        self._check_key(key)
        self._need("signed_urls", "signed URLs")
        if expiry_seconds < 1:
            raise Unsupported("a signed URL lives a second or more", storage=self.name, key=key)
        with self._call("sign", key):
            return await self._signed_url(key, Validity.of(time.time(), expiry_seconds, not_after=not_after), filename)

    async def presign_upload(self, key: str, *, max_bytes: int, expires_at: datetime) -> PresignedUpload:
        """What lets anybody write the object at the backend itself, until then; earlier where the credentials behind it
        end earlier.

        Nobody looks at what is written, and it has whatever type its writer says: it is not to be delivered.
        More than `max_bytes` is refused where the backend `caps_uploads`. A second upload may replace the first.
        Unsupported where the backend cannot.
        """
        self._check_key(key)
        self._need("presigned_uploads", "uploads past the service")
        validity = Validity(math.floor(time.time()), math.floor(expires_at.timestamp()))
        if validity.seconds < 1:
            raise Unsupported("leave to upload lasts a second or more", storage=self.name, key=key)
        with self._call("sign", key):
            return await self._presigned_upload(key, max_bytes, validity)

    async def set_visibility(self, key: str, visibility: Visibility) -> StoredObject:
        """Move the object to the same key under another visibility; the old key is gone when this returns.

        Safe to repeat: where the move was finished before, the record of what is there now. ObjectNotFound where the
        object is at neither key.
        """
        self._check_key(key)
        self._need("persistent", "changing visibility")
        target = with_visibility(key, visibility)
        self._check_key(target)
        with self._call("set_visibility", key):
            if target == key:
                return await self._stat(key)
            try:
                return await self._move(key, target)
            except ObjectNotFound:
                return await self._stat(target)
            except BaseException as error:
                self._note_late_write(target, error)
                raise

    async def cleanup_failed_assets(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Remove whatever is there of `keys`, as well as can be done now.

        Never raises: what fails is logged with its key and counted. Returns the keys that could not be removed, or
        whose write may still land; the caller tries those again later. Cancellation does get out: shield it.
        """
        if not self.capabilities.persistent:
            return ()
        turns = asyncio.Semaphore(_CLEANUPS_AT_ONCE)

        async def remove(key: str) -> bool:
            async with turns:
                return await self._try_to_remove(key)

        async with asyncio.TaskGroup() as group:
            removals = [(key, group.create_task(remove(key))) for key in keys]
        return tuple(key for key, removed in removals if not removed.result())

    async def _try_to_remove(self, key: str) -> bool:
        try:
            self._check_key(key)
            with self._call("cleanup", key):
                await self._discard(key)
            if self.may_still_land(key):
                logger.info(
                    "a write may still land: it is removed again later", extra={"storage": self.name, "key": key}
                )
                return False
        except (InvalidKey, Unsupported):
            return True  # it was refused when it should have been written: nothing can be there
        except Exception as error:  # noqa: BLE001 - the caller's own error must not be lost behind this one
            observability.CLEANUP_FAILURES.labels(self.name).inc()
            logger.warning(
                "could not remove an object of a failed upload",
                extra={"storage": self.name, "key": key, "error": repr(error.__cause__ or error)},
            )
            return False
        return True

    def _note_late_write(self, key: str, error: BaseException | None) -> None:
        """Remember a write that failed without an answer, so that cleaning up after it goes on for long enough."""
        if isinstance(error, asyncio.CancelledError):
            error = error.__cause__
        if not isinstance(error, Exception):
            return
        translated = error if isinstance(error, StorageError) else self._translate(error, key)
        if self.late_write_seconds and isinstance(translated, StorageUnavailable):
            now = time.monotonic()
            self._late_writes = {late: until for late, until in self._late_writes.items() if now < until}
            self._late_writes[key] = now + self.late_write_seconds

    def may_still_land(self, key: str) -> bool:
        """Whether a write to `key` was never answered, so short a time ago that it may still arrive."""
        until = self._late_writes.get(key)
        if until is not None and time.monotonic() >= until:
            del self._late_writes[key]
            return False
        return until is not None

    def at_hand(self, key: str) -> ObjectAtHand | None:
        """The object, where it can be read without waiting for a network; None where there is none, or it cannot.

        Delivery's short way: no look-up, no thread, and what is not a key is simply not there. Raises StorageError
        where the disk fails.
        """
        return None

    async def check(self) -> None:
        """Whether the backend can be used as its settings say; the StorageError says what is wrong.

        Thorough: objects are written, fetched as strangers would, and removed again, and `capabilities` that depend
        on the server are found out.
        """
        with self._call("check", None):
            await self._check()
            await self._remove_old_checks()

    async def ping(self) -> None:
        """Whether the backend answers; cheap enough to be asked every few seconds."""
        with self._call("ping", None):
            await self._ping()

    async def close(self) -> None:
        """Give back connections, threads and memory. The backend is not used afterwards."""

    # ── What a backend supplies ─────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    async def _put(self, key: str, source: Source, *, content_type: str, give_away: bool) -> StoredObject:
        """Write a new object, whole or not at all.

        The record is what the backend itself says is there now: asked for again, unless it verifies what it receives.
        """

    @abstractmethod
    def _read(self, key: str, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        """Chunks of the object's bytes, or ObjectNotFound before the first."""

    @abstractmethod
    async def _stat(self, key: str) -> StoredObject:
        """The record, or ObjectNotFound."""

    @abstractmethod
    async def _delete(self, key: str) -> bool:
        """Remove; False where nothing was there."""

    @abstractmethod
    def _list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        """Every object of the prefix."""

    async def _discard(self, key: str) -> None:
        """Remove what may be there, where nobody asks whether it was."""
        await self._delete(key)

    async def _prepare(self) -> None:
        """Find out, once, what a first write must know of the server."""

    async def _move(self, key: str, target: str) -> StoredObject:
        """Move an object: ObjectNotFound where `key` is gone.

        Where a move that was broken off left the object at both, it is carried to its end.
        """
        raise NotImplementedError

    async def _check(self) -> None:
        """Whether it can be used."""

    async def _ping(self) -> None:
        """Whether it answers."""
        await self._check()

    def _public_url(self, key: str) -> str | None:
        return None

    def _path(self, key: str) -> Path | None:
        return None

    async def _signed_url(self, key: str, validity: Validity, filename: str | None) -> SignedUrl:
        raise NotImplementedError

    async def _presigned_upload(self, key: str, max_bytes: int, validity: Validity) -> PresignedUpload:
        raise NotImplementedError

    @abstractmethod
    def _translate(self, error: Exception, key: str | None) -> StorageError | None:
        """The error of ours for what a vendor's SDK, or the system, raised; None where it is a bug."""

    async def _remove_old_checks(self) -> None:
        """Remove what checks wrote whose processes were killed before they had removed it."""
        if not self.capabilities.persistent:
            return
        old = datetime.now(UTC) - _LONGEST_CHECK
        for visibility in Visibility:
            async with aclosing(self._list(f"{visibility}/{_CHECKS}")) as records:
                left = [record.key async for record in records if record.modified is not None and record.modified < old]
            for key in left:
                await self._delete(key)

    # ── How they are held together ──────────────────────────────────────────────────────────────────────────────────

    async def _chunks(self, key: str, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        bytes_read = observability.STORAGE_BYTES.labels(self.name, "read")
        with self._call("open", key):
            async with aclosing(self._read(key, start, end)) as chunks:
                async for chunk in chunks:
                    bytes_read.inc(len(chunk))
                    yield chunk

    async def _records(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        with self._call("list", None):
            async with aclosing(self._list(prefix)) as records:
                async for record in records:
                    yield record

    def _check_key(self, key: str) -> None:
        validate_key(key)
        limit = self.capabilities.max_key_bytes
        if limit < MAX_KEY_BYTES and len(key.encode()) > limit:
            raise Unsupported(f"{self.name} takes keys of up to {limit} bytes", storage=self.name, key=key)

    def _need(self, capability: str, what: str) -> None:
        if not getattr(self.capabilities, capability):
            raise Unsupported(f"the storage {self.name} does not support {what}", storage=self.name)

    def _no_turn(self) -> StorageError:
        return StorageUnavailable(f"the storage {self.name} is busy with other calls; try again")

    @contextmanager
    def _call(self, operation: str, key: str | None) -> Iterator[None]:
        """Count and time one call, and let only errors of ours out of it."""
        outcome = "ok"
        began = time.perf_counter()
        try:
            yield
        except StorageError as error:
            outcome = "ok" if isinstance(error, (ObjectNotFound, ObjectExists)) else error.code
            error.storage = error.storage or self.name
            error.key = error.key or key
            raise
        except Exception as error:
            outcome = "error"
            translated = self._no_turn() if isinstance(error, NoTurn) else self._translate(error, key)
            if translated is None:
                raise
            outcome = translated.code
            translated.storage, translated.key = self.name, key
            raise translated from error
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            calls = observability.labelled(observability.STORAGE_SECONDS, self.name, operation, outcome)
            calls.observe(time.perf_counter() - began)
