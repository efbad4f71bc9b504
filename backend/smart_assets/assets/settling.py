"""Closing what was begun: the bytes follow what a row says, then the row says that they have.

Used by those who begin (uploads, the library) and by `maintenance.reconcile` for those who did not live to finish.
Everything here may be done again from the start, at any point.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime

from smart_assets import observability
from smart_assets.assets.objects import object_keys
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, AssetState
from smart_assets.errors import Busy, SmartAssetsError
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import ObjectNotFound, StorageError
from smart_assets.storage.registry import Storages
from smart_assets.visibility import Visibility

logger = logging.getLogger(__name__)


class Settling:
    """Finishes deletions and changes of visibility."""

    def __init__(self, database: Database, storages: Storages) -> None:
        """Over the catalogue and the storages of this process."""
        self._database = database
        self._storages = storages

    async def finish_deleting(self, record: AssetRecord) -> bool:
        """Remove the bytes of a row that is `deleting` (or of a `pending` one of our own), then the row.

        False where bytes are left: the row then stays, is `deleting`, and is tried again later.
        """
        try:
            backend = self._storages.get(record.storage)
        except StorageError:
            logger.exception("an asset to delete lies in a storage that is not configured", extra=_names(record))
            return False
        if await backend.cleanup_failed_assets(object_keys(record)):
            if record.state is AssetState.PENDING:
                await self._database.write(lambda catalogue: catalogue.give_up_pending(record.id, record.lease))
            return False
        await self._database.write(
            lambda catalogue: catalogue.remove(record.id, AssetState.PENDING, AssetState.DELETING)
        )
        return True

    async def finish_moving(self, record: AssetRecord, finished: AssetRecord) -> AssetRecord:
        """Carry out the change of visibility that `record`, which is `moving`, announces; `finished` is the row then.

        On its way to public a failure is undone. On its way to private nothing is: the row stays `moving`, is shown as
        private, and is settled as private later. Either way the error comes out, and no public copy stays.
        """
        backend = self._storages.get(record.storage)
        target = finished.visibility
        try:
            await _set_visibility(backend, record, target)
        except BaseException:
            if target is Visibility.PUBLIC:
                await self._undo_publishing(record)
            raise
        if not await self._database.write(lambda catalogue: catalogue.finish_moving(finished)):
            raise Busy("the change took too long and was undone by another process; try again")
        return finished

    async def _undo_publishing(self, record: AssetRecord) -> None:
        try:
            await self.settle_as_private(record)
        except SmartAssetsError:
            # The row stays `moving`, so it is shown as private, and is settled in the background.
            observability.BACKGROUND_FAILURES.labels("undo_publishing").inc()
            logger.exception("could not undo a change to public", extra=_names(record))

    async def settle_as_private(self, record: AssetRecord) -> None:
        """End an unfinished change of visibility with every byte private, whichever way it was going.

        Nobody was told that the asset is public, or is going to be; and a public copy of a private image must never
        stay. Raises StorageError where that cannot be done now.
        """
        backend = self._storages.get(record.storage)
        await _set_visibility(backend, record, Visibility.PRIVATE, missing_is_an_error=False)
        changed = record.visibility is not Visibility.PRIVATE
        settled = replace(
            record,
            visibility=Visibility.PRIVATE,
            version=record.version + changed,
            updated_at=datetime.now(UTC) if changed else record.updated_at,
        )
        await self._database.write(lambda catalogue: catalogue.finish_moving(settled))


async def _set_visibility(
    backend: StorageBackend, record: AssetRecord, target: Visibility, *, missing_is_an_error: bool = True
) -> None:
    # An object may be at either key; moving the one that is not there says so, or that it was moved before.
    origin = Visibility.PUBLIC if target is Visibility.PRIVATE else Visibility.PRIVATE
    for key in object_keys(replace(record, visibility=origin)):
        try:
            await backend.set_visibility(key, target)
        except ObjectNotFound:
            logger.exception("an object of an asset is missing", extra={"key": key, **_names(record)})
            if missing_is_an_error:
                raise


def _names(record: AssetRecord) -> dict[str, str]:
    return {"asset": str(record.id), "storage": record.storage, "state": record.state}
