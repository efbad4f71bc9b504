"""Handing bytes out: who may, from where, and under which URL.

`/assets/{key}` answers for every storage. The key says who may, a signature proves it, then:

    at hand      the storage's own file or memory decides: no look-up on the way
    redirect     the storage serves the object itself, by a public or a freshly signed URL
    stream       the storage can do neither: the bytes go through the service
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from smart_assets.access.signing import UrlSigner
from smart_assets.assets.library import find_variant
from smart_assets.assets.objects import effective_visibility, original_key, variant_key
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, VariantRecord
from smart_assets.errors import AssetNotFound, Busy
from smart_assets.formats import ImageFormat
from smart_assets.settings import LocalStorageSettings, Settings
from smart_assets.storage.base import ObjectAtHand, SignedUrl, StorageBackend
from smart_assets.storage.errors import ObjectNotFound, StorageNotConfigured, StorageUnavailable
from smart_assets.storage.keys import ORIGINAL, AssetKey, Visibility, parse_asset_key, visibility_of
from smart_assets.storage.registry import Storages
from smart_assets.threads import Threads

CHUNK_BYTES = 512 * 1024

LOCAL = LocalStorageSettings.kind
"""The name of the storage in the data directory."""

REDIRECT_SECONDS = 3600
"""How long the storage's URL behind a redirect lives, unless the caller's own leave ends earlier."""


@dataclass(frozen=True)
class Link:
    """A URL and, where it stops working, when (UTC)."""

    url: str
    expires_at: datetime | None = None


@dataclass(frozen=True)
class Grant:
    """Leave to fetch an object.

    `max_age` is how long (in seconds) an answer may be kept; `until` (Unix seconds) when the leave ends, None for what
    anybody may fetch.
    """

    max_age: int
    until: float | None = None


@dataclass(frozen=True)
class Redirect:
    """The object is served elsewhere; `max_age` is how long (in seconds) an answer that says so may be kept."""

    url: str
    max_age: int


@dataclass(frozen=True)
class Deliverable:
    """Bytes to send. `etag` is strong and unquoted, `modified` in UTC to the second; `read` may be used once.

    `on_gateway` is where a gateway has the same file, if it is a private one and a gateway was set up for it.
    """

    size: int
    etag: str
    modified: datetime
    media_type: str
    source: ObjectAtHand | StoredBytes
    threads: Threads
    on_gateway: str | None = None

    def read_now(self, start: int, end: int) -> bytes | None:
        """The bytes, where they are in memory already and few enough for one piece; None where `read` must be used."""
        if isinstance(self.source, StoredBytes) or end - start > CHUNK_BYTES * 2:
            return None
        with _disk_errors():
            return self.source.read(start, end - start, wait=False)

    async def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to but not including `end`, in pieces."""
        if isinstance(self.source, StoredBytes):
            async with aclosing(self.source.read(start, end)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        while start < end:
            length = min(CHUNK_BYTES, end - start)
            with _disk_errors():
                piece = self.source.read(start, length, wait=False)
                if piece is None:
                    piece = await self.threads.run(partial(self.source.read, start, length, wait=True))
            if not piece:
                raise ObjectNotFound("the object ended before its size")
            yield piece
            start += len(piece)

    def close(self) -> None:
        """Give back what is held open."""
        if not isinstance(self.source, StoredBytes):
            self.source.close()


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageUnavailable("the object could not be read") from error


Place = tuple[StorageBackend, str]
"""Where an object lies: its storage, and its key there."""


@dataclass(frozen=True)
class StoredBytes:
    """An object behind a backend that streams it.

    `look_again` says where it lies just now, should it not be there any more; AssetNotFound where it is gone.
    """

    place: Place
    look_again: Callable[[], Awaitable[Place]]

    async def read(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` up to but not including `end`, in pieces, from wherever they are."""
        place = self.place
        while True:
            backend, key = place
            try:
                async with aclosing(backend.open(key, start=start, end=end)) as chunks:
                    async for chunk in chunks:
                        start += len(chunk)
                        yield chunk
                return
            except ObjectNotFound:
                now = await self.look_again()
                if now == place:
                    raise
                place = now


class Delivery:
    """Decides what an address under `/assets` gives, and makes such addresses."""

    def __init__(
        self, settings: Settings, database: Database, storages: Storages, signer: UrlSigner, threads: Threads
    ) -> None:
        """Everything it needs is built, and closed, by `runtime`."""
        self._database = database
        self._storages = storages
        self._signer = signer
        self._threads = threads
        self._default_expiry = min(settings.signed_url_seconds, settings.policy.max_signed_expiry_seconds)
        self._public_cache_seconds = settings.public_cache_seconds
        self._accel_redirect = settings.accel_redirect

    # ── Making addresses ────────────────────────────────────────────────────────────────────────────────────────────

    def link(self, record: AssetRecord, variant: VariantRecord | None, base_url: str) -> Link:
        """The URL of an asset's original or size that goes into its answer.

        A public one's is the storage's own, where anybody can fetch it there, else ours; a private one's is ours and
        signed, on every storage.
        """
        key = _key(record, variant)
        if visibility_of(key) is Visibility.PUBLIC:
            return Link(self._public_url(record, key) or f"{base_url}/assets/{key}")
        signature = self._signer.sign(key, self._default_expiry)
        return Link(f"{base_url}/assets/{key}?{signature.query}", signature.expires_at)

    def _public_url(self, record: AssetRecord, key: str) -> str | None:
        try:
            backend = self._storages.get(record.storage)
            can = backend.capabilities
            return backend.url(key) if can.links_public and can.public_access else None
        except StorageNotConfigured:
            return None  # one asset whose storage is gone must not break a whole list

    async def signed_url(self, record: AssetRecord, size: str | None, expiry_seconds: int, base_url: str) -> SignedUrl:
        """A URL good for `expiry_seconds`: the storage's own where it signs, else ours. VariantNotFound."""
        variant = find_variant(record, size) if size is not None else None
        key = _key(record, variant)
        backend = self._storages.get(record.storage)
        if backend.capabilities.signed_urls:
            return await backend.generate_signed_url(key, expiry_seconds, filename=record.filename)
        signature = self._signer.sign(key, expiry_seconds)
        return SignedUrl(f"{base_url}/assets/{key}?{signature.query}", signature.expires_at)

    # ── Answering them ──────────────────────────────────────────────────────────────────────────────────────────────

    def authorise(self, key: str, query: Mapping[str, str]) -> Grant:
        """Leave to fetch `key`; raises a signature error where there is none."""
        if visibility_of(key) is Visibility.PUBLIC:
            return Grant(self._public_cache_seconds)
        left = self._signer.verify(key, query)
        return Grant(int(left), until=float(query["exp"]))

    def at_hand(self, key: str) -> Deliverable | None:
        """The object where a storage has it at hand: the short way, without a look-up or a thread."""
        for backend in self._storages.at_hand():
            found = backend.at_hand(key)
            if found is not None:
                return self._deliverable(backend, key, found)
        return None

    async def look_up(self, key: str, grant: Grant) -> Deliverable | Redirect:
        """What the row behind `key` says; AssetNotFound where there is none, or none any more, at that visibility."""
        parsed = parse_asset_key(key)
        record = await self._record(parsed) if parsed else None
        if parsed is None or record is None:
            raise AssetNotFound("there is nothing at this address")
        size_bytes = _size_of(record, parsed)
        backend = self._storages.get(record.storage)
        if backend.capabilities.at_hand:
            # Opened just now for the first time, or in the middle of a change: its objects are at either key.
            found = backend.at_hand(key)
            if found is None and record.target_visibility is not None:
                raise Busy("the asset's visibility is being changed; try again")
            if found is None:
                if await self._place_of(parsed) == (backend, key):
                    raise AssetNotFound("there is nothing at this address")
                return await self.look_up(key, grant)  # it was moved to another storage just now
            return self._deliverable(backend, key, found)
        if record.target_visibility is not None:
            raise Busy("the asset's visibility is being changed; try again")
        if public_url := backend.url(key):
            return Redirect(public_url, grant.max_age)
        if backend.capabilities.signed_urls:
            signed = await backend.generate_signed_url(
                key, REDIRECT_SECONDS, filename=record.filename, not_after=grant.until
            )
            left = int((signed.expires_at - datetime.now(UTC)).total_seconds())
            return Redirect(signed.url, max(0, min(grant.max_age, left // 2)))
        media_type = ImageFormat.from_extension(parsed.extension).media_type
        modified = record.created_at.replace(microsecond=0)
        source = StoredBytes((backend, key), partial(self._place_of, parsed))
        return Deliverable(size_bytes, _etag(key), modified, media_type, source, self._threads)

    async def content(self, record: AssetRecord, size: str | None) -> Deliverable:
        """The bytes of an asset's original or size, through the service, whatever the storage."""
        variant = find_variant(record, size) if size is not None else None
        place = self._place(record, variant)
        image_format = variant.format if variant else record.format
        return Deliverable(
            variant.size_bytes if variant else record.size_bytes,
            _etag(place[1]),
            record.created_at.replace(microsecond=0),
            image_format.media_type,
            StoredBytes(place, partial(self._place_now, record.id, size)),
            self._threads,
        )

    def _deliverable(self, backend: StorageBackend, key: str, found: ObjectAtHand) -> Deliverable:
        seconds = found.modified_ns // 1_000_000_000
        return Deliverable(
            found.size,
            # As nginx writes it: whoever of the two answers, a copy stays good, and a download goes on. Seconds are
            # enough, because what lies under a key never changes.
            f"{seconds:x}-{found.size:x}",
            datetime.fromtimestamp(seconds, tz=UTC),
            ImageFormat.from_extension(key.rpartition(".")[2]).media_type,
            found,
            self._threads,
            self._on_gateway(backend, key),
        )

    def _on_gateway(self, backend: StorageBackend, key: str) -> str | None:
        # It has the data directory's own storage and no other, and asks nobody about what is public.
        if self._accel_redirect is None or backend.name != LOCAL or visibility_of(key) is Visibility.PUBLIC:
            return None
        return f"{self._accel_redirect}/{key}"

    def _place(self, record: AssetRecord, variant: VariantRecord | None) -> Place:
        """Where an asset's original or size lies; Busy while that may be at either visibility."""
        if record.target_visibility is not None:
            raise Busy("the asset's visibility is being changed; try again")
        return self._storages.get(record.storage), _key(record, variant)

    async def _place_now(self, asset_id: UUID, size: str | None) -> Place:
        record = await self._database.read(lambda catalogue: catalogue.get(asset_id))
        if record is None:
            raise AssetNotFound("there is no such asset")
        return self._place(record, find_variant(record, size) if size is not None else None)

    async def _place_of(self, key: AssetKey) -> Place:
        """Where the object behind an address lies just now; AssetNotFound where there is none any more."""
        record = await self._record(key)
        if record is None:
            raise AssetNotFound("there is nothing at this address")
        if record.target_visibility is not None:
            raise Busy("the asset's visibility is being changed; try again")
        return self._storages.get(record.storage), str(key)

    async def _record(self, key: AssetKey) -> AssetRecord | None:
        record = await self._database.read(lambda catalogue: catalogue.get(key.asset_id))
        if record is None or effective_visibility(record) is not key.visibility:
            return None
        return record


def _key(record: AssetRecord, variant: VariantRecord | None) -> str:
    if record.target_visibility is not None:
        record = replace(record, visibility=effective_visibility(record))
    return variant_key(record, variant) if variant else original_key(record)


def _size_of(record: AssetRecord, key: AssetKey) -> int:
    """The size in bytes of the object `key` names; AssetNotFound where the asset has no such object."""
    if key.name == ORIGINAL and key.extension == record.format.extension:
        return record.size_bytes
    for variant in record.made_variants:
        if (variant.name, variant.format.extension) == (key.name, key.extension):
            return variant.size_bytes
    raise AssetNotFound("there is nothing at this address")


def _etag(key: str) -> str:
    # What lies under a key never changes, at either visibility, so its last segment names the bytes.
    return key.rpartition("/")[2]
