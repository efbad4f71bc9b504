"""Keeping the library: finding assets, changing what may be changed, letting them go."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from smart_assets.assets.lease import Lease
from smart_assets.assets.metadata import check_metadata
from smart_assets.assets.objects import first_id_at
from smart_assets.assets.settling import Settling
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, AssetState, JobRun, JsonObject, VariantRecord
from smart_assets.catalogue.repository import AssetFilter, StorageTotals
from smart_assets.errors import AssetBusy, AssetNotFound, PreconditionFailed, VariantNotFound
from smart_assets.storage.errors import StorageError, StorageNotConfigured, StorageUnavailable
from smart_assets.storage.registry import Storages
from smart_assets.visibility import Visibility

RETENTION = "retention"
"""The job that removes what is to go: see `maintenance.retention`."""

_MISSING: Any = object()


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a caller wants changed; what is left out stays. `metadata` is merged as RFC 7396 says."""

    filename: str | None = _MISSING
    tags: tuple[str, ...] = _MISSING
    metadata: JsonObject = _MISSING
    visibility: Visibility = _MISSING
    expires_at: datetime | None = _MISSING
    pinned: bool = _MISSING

    def apply(self, record: AssetRecord) -> AssetRecord:
        """The record as it is to be; InvalidParameter where its metadata would break the rules."""
        given = {name: value for name, value in vars(self).items() if value is not _MISSING}
        if "metadata" in given:
            given["metadata"] = check_metadata(merge_patch(record.metadata, given["metadata"]))
        return replace(record, **given)


@dataclass(frozen=True, kw_only=True)
class Period:
    """When assets were made: in the last `days`, at `after` or later, before `before`; what is None does not matter."""

    days: int | None = None
    after: datetime | None = None
    before: datetime | None = None

    def limit(self, criteria: AssetFilter) -> AssetFilter:
        """`criteria`, and made in this period."""
        starts = [] if self.days is None else [datetime.now(UTC) - timedelta(days=self.days)]
        if self.after is not None:
            starts.append(self.after)
        if starts:
            criteria = replace(criteria, since=first_id_at(max(starts)))
        return criteria if self.before is None else replace(criteria, until=first_id_at(self.before))


@dataclass(frozen=True)
class Page:
    """A piece of a list, and the id after which the next piece begins (None: this was the last)."""

    records: tuple[AssetRecord, ...]
    next_after: UUID | None


@dataclass(frozen=True)
class Statistics:
    """What there is, by storage, the deletions whose bytes are still owed, and when retention last ran."""

    storages: tuple[StorageTotals, ...] = field(default_factory=tuple)
    deletions_owed: int = 0
    last_cleanup: JobRun | None = None


class Library:
    """The use-cases over assets that are there. `owner` None means: of everybody."""

    def __init__(self, database: Database, storages: Storages, lease: Lease, settling: Settling) -> None:
        """Everything it needs is built, and closed, by `runtime`."""
        self._database = database
        self._storages = storages
        self._lease = lease
        self._settling = settling

    async def get(self, asset_id: UUID, owner: str | None) -> AssetRecord:
        """The asset, or AssetNotFound: also where it is another's."""
        record = await self._database.read(lambda catalogue: catalogue.get(asset_id, owner))
        if record is None:
            raise AssetNotFound("there is no such asset")
        return record

    async def list(
        self,
        criteria: AssetFilter,
        *,
        period: Period | None = None,
        limit: int = 50,
        after: UUID | None = None,
        newest_first: bool = True,
    ) -> Page:
        """A page of assets in order of creation. Stable while assets come and go: `after` is an id, not a position."""
        if period is not None:
            criteria = period.limit(criteria)
        found = await self._database.read(
            lambda catalogue: catalogue.list(criteria, limit=limit + 1, after=after, newest_first=newest_first)
        )
        records = found[:limit]
        return Page(records, records[-1].id if len(found) > limit else None)

    async def change(
        self, asset_id: UUID, owner: str | None, changes: Changes, *, versions: frozenset[int] | None = None
    ) -> AssetRecord:
        """Change an asset, all of `changes` or none.

        With `versions` only where the asset is at one of them, else PreconditionFailed. AssetBusy while another change
        of visibility, or a deletion, is under way. A change of visibility moves every object; going private returns
        only when no public copy is left at the storage.
        """
        while True:
            record = await self.get(asset_id, owner)
            if versions is not None and record.version not in versions:
                raise PreconditionFailed(f"the asset is at version {record.version} now: fetch it again")
            if record.state is not AssetState.READY:
                raise AssetBusy("another change of this asset is under way")
            wanted = changes.apply(record)
            if wanted == record:
                return record
            wanted = replace(wanted, version=record.version + 1, updated_at=datetime.now(UTC))
            if wanted.visibility is not record.visibility:
                changed = await asyncio.shield(self._change_visibility(record, wanted))
            else:
                changed = await self._write(record, wanted)
            if changed is not None:
                return changed
            # Somebody was faster: look at what it is now, and at what was asked, once more.

    async def _write(self, record: AssetRecord, wanted: AssetRecord) -> AssetRecord | None:
        written = await self._database.write(lambda catalogue: catalogue.change(wanted, record.version))
        return wanted if written else None

    async def _change_visibility(self, record: AssetRecord, wanted: AssetRecord) -> AssetRecord | None:
        self._storages.get(record.storage)  # not configured any more: said before the row is `moving`
        with self._lease.claim() as claim:
            moving = replace(record, state=AssetState.MOVING, target_visibility=wanted.visibility, lease=claim)
            begun = await self._database.write(
                lambda catalogue: catalogue.begin_moving(record.id, wanted.visibility, record.version, claim)
            )
            if not begun:
                return None
            try:
                finished = await self._settling.finish_moving(moving, replace(wanted, lease=claim))
            except StorageError as error:
                raise StorageUnavailable(
                    "the storage did not carry out the change of visibility; it will be settled, try again then"
                ) from error
        return replace(finished, state=AssetState.READY, lease=None, target_visibility=None)

    async def delete(self, asset_id: UUID, owner: str | None) -> None:
        """Delete an asset: gone for callers at once.

        Returns when the bytes are gone too, or, where they lie beyond a network that does not answer now, or in a
        storage that is not configured any more, are sure to be removed as soon as it is. AssetNotFound the second time.
        """
        record = await self.get(asset_id, owner)
        gone = await asyncio.shield(self._delete(asset_id, owner))
        if not gone and self._is_at_hand(record.storage):
            # What delivery reads straight from disk it would still hand out.
            raise StorageUnavailable("the bytes could not be removed yet; they will be")

    def _is_at_hand(self, storage: str) -> bool:
        try:
            return self._storages.get(storage).capabilities.at_hand
        except StorageNotConfigured:
            return False

    async def _delete(self, asset_id: UUID, owner: str | None) -> bool:
        with self._lease.claim() as claim:
            # The row as the claim finds it: it may have changed its visibility, and so its keys, since it was read.
            deleting = await self._database.write(lambda catalogue: catalogue.begin_deleting(asset_id, claim))
            if deleting is None:
                await self.get(asset_id, owner)
                raise AssetBusy("another change of this asset is under way")
            return await self._settling.finish_deleting(deleting)

    async def statistics(self) -> Statistics:
        """Totals by storage, without counting anything."""
        return await self._database.read(
            lambda catalogue: Statistics(catalogue.totals(), catalogue.count_deleting(), catalogue.last_run(RETENTION))
        )


def find_variant(record: AssetRecord, size: str) -> VariantRecord:
    """The generated size a caller calls `size`, or VariantNotFound.

    Its full name is one size's only; what it was asked for as, or its name without the extension, may be several's:
    then the first is meant.
    """
    for variant in record.made_variants:
        if size == variant.full_name:
            return variant
    for variant in record.made_variants:
        if size in {variant.size, variant.name}:
            return variant
    raise VariantNotFound(f"the asset has no size {size}")


def merge_patch(target: Mapping[str, Any], patch: Mapping[str, Any]) -> JsonObject:
    """`target` with `patch` merged into it as RFC 7396 says: null removes, objects merge, the rest replaces."""
    merged = dict(target)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            inner = merged.get(name)
            merged[name] = merge_patch(inner if isinstance(inner, Mapping) else {}, value)
        else:
            merged[name] = value
    return merged
