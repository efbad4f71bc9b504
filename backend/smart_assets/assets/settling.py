"""Closing what was begun: the row says first what is to happen, under a claim; the bytes follow; the row is closed.

Used by those who begin (uploads, the library) and by `maintenance.reconcile` for those who did not live to finish.
Everything here may be done again from the start, at any point.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from smart_assets import observability
from smart_assets.assets.lease import Lease
from smart_assets.assets.objects import object_keys, required_keys, variant_key
from smart_assets.assets.together import all_or_first_error
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, AssetState
from smart_assets.errors import Busy, CatalogueUnavailable
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import ObjectNotFound, StorageNotConfigured, StorageUnavailable
from smart_assets.storage.registry import Storages
from smart_assets.visibility import Visibility

logger = logging.getLogger(__name__)

CATALOGUE_RETRIES = 10
_MOVES_AT_ONCE = 8


class Settling:
    """Finishes uploads that failed, deletions, changes of visibility, sizes that were to be added, and moves."""

    def __init__(self, database: Database, storages: Storages, lease: Lease) -> None:
        """Over the catalogue and the storages of this process, under its lease."""
        self._database = database
        self._storages = storages
        self._lease = lease

    async def undo_upload(self, record: AssetRecord) -> bool:
        """Remove what an upload wrote, and its `pending` row, claimed as `record` says; False where bytes are left.

        Nothing is removed of an asset that turns out to be `ready`: the upload was closed, and only its answer lost.
        """
        state = await self._database.write(lambda catalogue: catalogue.give_up_pending(record))
        if state is AssetState.READY:
            return True
        # Whatever else the row says, or where it is gone: nobody else writes these keys, and nobody misses them.
        return await self.finish_deleting(replace(record, state=AssetState.DELETING))

    async def finish_deleting(self, record: AssetRecord) -> bool:
        """Remove the bytes of a row that is `deleting`, claimed as `record` says, then the row.

        False where bytes are left: the row stays, and is tried again later.
        """
        try:
            backend = self._storages.get(record.storage)
        except StorageNotConfigured:
            logger.warning("the storage of a deleted asset is not configured any more", extra=names(record))
            return False
        if await backend.cleanup_failed_assets(object_keys(record)):
            return False
        await self._database.write(lambda catalogue: catalogue.remove(record))
        return True

    async def finish_moving(self, record: AssetRecord, finished: AssetRecord) -> AssetRecord:
        """Carry out the change of visibility that `record`, which is `moving`, announces; `finished` is the row then.

        On its way to public whatever fails is undone. On its way to private nothing is: the row stays `moving`, is
        shown as private, and is settled as private later. Either way the error comes out, and no public copy stays.
        """
        target = finished.visibility
        try:
            await self._set_visibility(record, target, required=required_keys(record))
            await self._close(finished)
        except ClaimLost:
            await self._align(record)
            raise Busy("the change took too long and was taken over by another process; try again") from None
        except BaseException:
            if target is Visibility.PUBLIC:
                await self._undo_publishing(record)
            raise
        return finished

    async def _close(self, finished: AssetRecord) -> None:
        if not await self._database.write(lambda catalogue: catalogue.finish_moving(finished)):
            raise ClaimLost

    async def settle_as_private(self, record: AssetRecord) -> None:
        """End an unfinished change of visibility with every byte private, whichever way it was going.

        Nobody was told that the asset is public, or is going to be; and a public copy of a private image must never
        stay. Raises StorageError where that cannot be done now.
        """
        try:
            await self._set_visibility(record, Visibility.PRIVATE)
            backend = self._storages.get(record.storage)
            if any(backend.may_still_land(key) for key in object_keys(replace(record, visibility=Visibility.PUBLIC))):
                raise StorageUnavailable("a public copy may still land: it is removed again later")
            await self._close(_as_private(record))
        except ClaimLost:
            await self._align(record)

    async def undo_growing(self, record: AssetRecord) -> bool:
        """Remove what was written of the sizes `record`, claimed as it says, was about to get; the rest stays.

        False where bytes are left: the row stays `moving`, and is tried again later. Nothing is removed of what turns
        out to be closed: only the answer was lost.
        """
        if not await self._database.read(lambda catalogue: catalogue.is_claimed(record)):
            await self._remove_strays(record)
            return True
        backend = self._storages.get(record.storage)
        if await backend.cleanup_failed_assets([variant_key(record, each) for each in record.planned_variants]):
            return False
        as_before = replace(record, variants=record.made_variants)
        await self._database.write(lambda catalogue: catalogue.finish_growing(as_before, 0))
        return True

    async def _undo_publishing(self, record: AssetRecord) -> None:
        """Make private again what was made public; never raises."""
        try:
            for _ in range(CATALOGUE_RETRIES):
                # A catalogue that is away for a moment is waited for: public bytes hang on it.
                with suppress(CatalogueUnavailable):
                    await self.settle_as_private(record)
                    return
                await asyncio.sleep(1)
        except Exception:
            logger.exception("could not undo a change to public yet", extra=names(record))
        # The row is still `moving` under our claim: it is shown as private, and settled in the background.
        observability.BACKGROUND_FAILURES.labels("undo_publishing").inc()

    async def _align(self, record: AssetRecord) -> None:
        """Put every object where its row says, after the claim on the row was lost and bytes may have been moved.

        Who lost a claim may touch the bytes only under a new one. Waits for whoever has the row now.
        """
        for _ in range(CATALOGUE_RETRIES):
            current = await self._database.read(lambda catalogue: catalogue.get_in_any_state(record.id))
            if current is None:  # deleted meanwhile: nobody misses what is at either key
                await self._storages.get(record.storage).cleanup_failed_assets(_keys_at_both(record))
                return
            if current.state is AssetState.READY and await self._aligned(current):
                return
            await asyncio.sleep(1)
        observability.BACKGROUND_FAILURES.labels("align").inc()
        logger.error("objects may not lie where their row says", extra=names(record))

    async def _remove_strays(self, record: AssetRecord) -> None:
        """Remove what lies at keys that `record`, whose claim was lost, names and its row does not any more.

        Under a claim on the row, so that nobody is about to write there. Waits for whoever has the row now.
        """
        backend = self._storages.get(record.storage)
        for _ in range(CATALOGUE_RETRIES):
            current = await self._database.read(lambda catalogue: catalogue.get_in_any_state(record.id))
            if current is None:  # deleted meanwhile: nobody misses what is at either key
                await backend.cleanup_failed_assets(_keys_at_both(record))
                return
            strays = _strays(record, current)
            if current.state is AssetState.READY and (not strays or await self._removed(backend, current, strays)):
                return
            await asyncio.sleep(1)
        observability.BACKGROUND_FAILURES.labels("remove_strays").inc()
        logger.error("objects may lie where no row says", extra=names(record))

    async def _removed(self, backend: StorageBackend, current: AssetRecord, strays: list[str]) -> bool:
        with self._lease.claim() as claim:
            claimed = replace(current, state=AssetState.MOVING, lease=claim)
            if not await self._database.write(lambda catalogue: catalogue.begin_growing(claimed)):
                return False
            left = await backend.cleanup_failed_assets(strays)
            await self._database.write(lambda catalogue: catalogue.finish_growing(claimed, 0))
        return not left

    async def settle_move(
        self, asset_id: UUID, claim: str, *, visibilities: Collection[Visibility] | None = None
    ) -> bool:
        """End a move between storages: empty the storage the row is not at, then make the row `ready` where it is.

        That undoes a move whose row was not switched yet, and finishes one whose row was. False where bytes are left
        at the other storage, or it is not configured any more: the row stays `moving`, and is tried again later.
        Bytes are looked for at the asset's own visibility, unless others are given. Raises ClaimLost where the row is
        not under the claim (any more).
        """
        record = await self._database.write(lambda catalogue: catalogue.hold_move(asset_id, claim))
        if record is None or record.target_storage is None:
            raise ClaimLost
        try:
            backend = self._storages.get(record.target_storage)
        except StorageNotConfigured:
            logger.warning("a storage that copies are to be removed from is not configured", extra=names(record))
            return False
        keys = [
            key
            for visibility in visibilities or (record.visibility,)
            for key in object_keys(replace(record, visibility=visibility))
        ]
        turns = asyncio.Semaphore(_MOVES_AT_ONCE)

        async def remove(key: str) -> bool:
            async with turns:
                # Each time: who was taken for dead must not remove what somebody has copied there since.
                if not await self._database.read(lambda catalogue: catalogue.is_claimed(record)):
                    raise ClaimLost
                return not await backend.cleanup_failed_assets([key])

        if not all(await all_or_first_error(*map(remove, keys))):
            return False
        if not await self._database.write(lambda catalogue: catalogue.close_move(record)):
            raise ClaimLost
        return True

    async def settle_at_once(self, asset_id: UUID, claim: str) -> bool:
        """`settle_move`, waiting for a catalogue that is away for a moment; never raises.

        False where the move is not settled yet: then the row says what is owed, and the background does it.
        """
        try:
            for _ in range(CATALOGUE_RETRIES):
                with suppress(CatalogueUnavailable):
                    return await self.settle_move(asset_id, claim)
                await asyncio.sleep(1)
        except ClaimLost:
            return False  # another process is at it, or has done it
        except Exception:
            logger.exception("could not settle a move yet", extra={"asset": str(asset_id)})
        observability.BACKGROUND_FAILURES.labels("settle_move").inc()
        return False

    async def leave_nothing_astray(self, record: AssetRecord) -> None:
        """Leave nothing of an asset at either storage of a move but what its row has there; waits for whoever has it.

        For who lost the claim on a move, `record`, and may have written since.
        """
        for _ in range(CATALOGUE_RETRIES):
            current = await self._database.read(lambda catalogue: catalogue.get_in_any_state(record.id))
            if current is None:  # deleted meanwhile: nobody misses what is at either place
                for storage in _storages_of(record):
                    await self._storages.get(storage).cleanup_failed_assets(_keys_at_both(record))
                return
            others = _storages_of(record) - {current.storage}
            if current.state is AssetState.READY and all([await self._emptied(current, other) for other in others]):
                return
            await asyncio.sleep(1)
        observability.BACKGROUND_FAILURES.labels("leave_nothing_astray").inc()
        logger.error("copies of an asset may be left at another storage", extra=names(record))

    async def _emptied(self, current: AssetRecord, storage: str) -> bool:
        """Remove whatever another storage has of a `ready` asset, as the end of a move that began now."""
        with self._lease.claim() as claim:
            begun = await self._database.write(
                lambda catalogue: catalogue.begin_moving_to(current.id, storage, current.version, claim)
            )
            try:
                # What cannot be removed now is owed by the row from here on.
                if begun:
                    await self.settle_move(current.id, claim, visibilities=tuple(Visibility))
            except ClaimLost:
                return False
            return begun

    async def recheck(self, record: AssetRecord) -> None:
        """Undo what a process did after all whose row, `record`, was taken over because it seemed dead.

        It may only have been stopped, and its last write or move may land any time after it goes on.
        """
        current = await self._database.read(lambda catalogue: catalogue.get_in_any_state(record.id))
        if current is not None and current.state is not AssetState.READY:
            return  # somebody is at work on it
        for storage in sorted(_storages_of(record)):
            is_there = current is not None and current.storage == storage
            right = set(object_keys(current)) if current is not None and is_there else set()
            stray = await self._stray(record, storage, right)
            if stray is None:
                continue
            if current is None or not is_there:
                await self.leave_nothing_astray(record)
            elif storage == record.storage and stray in _strays(record, current):
                await self._remove_strays(record)
            else:
                await self._align(record)
            return

    async def _stray(self, record: AssetRecord, storage: str, right: Collection[str]) -> str | None:
        """A key of `record` at which a storage has an object, and which is not `right`."""
        backend = self._storages.get(storage)
        for key in _keys_at_both(record):
            if key not in right and await backend.exists(key):
                logger.warning("a process taken for dead went on", extra={"key": key, **names(record)})
                return key
        return None

    async def _aligned(self, current: AssetRecord) -> bool:
        with self._lease.claim() as claim:
            begun = await self._database.write(
                lambda catalogue: catalogue.begin_moving(current.id, current.visibility, current.version, claim)
            )
            if not begun:
                return False
            claimed = replace(current, state=AssetState.MOVING, target_visibility=current.visibility, lease=claim)
            try:
                await self._set_visibility(claimed, current.visibility)
                await self._close(claimed)
            except ClaimLost:
                return False
            return True

    async def _set_visibility(
        self, record: AssetRecord, target: Visibility, *, required: frozenset[str] = frozenset()
    ) -> None:
        """Move every object of the asset, as long as its row is under `record`'s claim.

        ObjectNotFound where one of `required` (keys as `record` has them) is gone, ClaimLost where the claim is.
        """
        backend = self._storages.get(record.storage)
        # An object may be at either key; moving one that is not there says so, or that it was moved before.
        origin = Visibility.PUBLIC if target is Visibility.PRIVATE else Visibility.PRIVATE
        keys = zip(object_keys(record), object_keys(replace(record, visibility=origin)), strict=True)
        turns = asyncio.Semaphore(_MOVES_AT_ONCE)

        async def move(known_as: str, key: str) -> None:
            async with turns:
                if not await self._database.read(lambda catalogue: catalogue.is_claimed(record)):
                    raise ClaimLost
                try:
                    await backend.set_visibility(key, target)
                except ObjectNotFound:
                    if not await self._database.read(lambda catalogue: catalogue.is_claimed(record)):
                        raise ClaimLost from None  # who has it now may have moved or removed it
                    if known_as in required:
                        raise
                    logger.warning("an object of an asset is missing", extra={"key": key, **names(record)})

        await all_or_first_error(*(move(known_as, key) for known_as, key in keys))


class ClaimLost(Exception):
    """Another process took the row over."""


def _as_private(record: AssetRecord) -> AssetRecord:
    """The row once its unfinished change has ended private."""
    changed = record.visibility is not Visibility.PRIVATE
    return replace(
        record,
        visibility=Visibility.PRIVATE,
        version=record.version + changed,
        updated_at=datetime.now(UTC) if changed else record.updated_at,
    )


def _strays(record: AssetRecord, current: AssetRecord) -> list[str]:
    """The keys `record` names, at either visibility, that its row, now `current`, does not."""
    known: set[str] = set()
    if record.storage == current.storage:
        known.update(_keys_at_both(current))
    return [key for key in _keys_at_both(record) if key not in known]


def _keys_at_both(record: AssetRecord) -> list[str]:
    return [key for visibility in Visibility for key in object_keys(replace(record, visibility=visibility))]


def _storages_of(record: AssetRecord) -> set[str]:
    """Where its bytes may be: at both ends of a move."""
    return {record.storage, record.settled_at}


def names(record: AssetRecord) -> dict[str, str]:
    """What a log line says of an asset."""
    other = {"other_storage": record.target_storage} if record.target_storage else {}
    return {"asset": str(record.id), "storage": record.storage, "state": record.state, **other}
