"""Moving an asset to another storage: its id, its description and its `/assets` URLs stay.

    look     before anything is changed: can the other storage keep it, and is there nothing else under its keys
    begin    one transaction: `moving`, with the target; reading goes on at the storage the row is at
    copy     every object under the same key, verified by hash
    switch   one transaction: the row is at the target, and names the other storage as the one to be emptied
    remove   the old copies, then `ready`

At any moment the row says which storage has the asset, and which one holds copies that are to go: by that alone
`Settling.settle_move` ends a move from wherever it was broken off.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from smart_assets.assets.fetching import fetch
from smart_assets.assets.lease import Lease
from smart_assets.assets.objects import original_key, variant_key
from smart_assets.assets.settling import ClaimLost, Settling
from smart_assets.assets.spool import MEMORY_BYTES, Spool
from smart_assets.assets.together import all_or_first_error
from smart_assets.assets.uploads import check_reserve
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, AssetState
from smart_assets.errors import AssetBusy, AssetNotFound, Busy
from smart_assets.settings import Settings
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import ObjectExists, ObjectNotFound, StorageError, Unsupported, WriteNotVerified
from smart_assets.storage.registry import Storages
from smart_assets.threads import Threads

_COPIES_AT_ONCE = 4
"""Objects of one asset; each may hold as much as a spool keeps in memory."""


@dataclass(frozen=True)
class Part:
    """One object of an asset. `sha256` is None where no row knows it: then it is taken while the object is read."""

    key: str
    size: int
    media_type: str
    sha256: str | None = None


class Moving:
    """The use-case; one for the process."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storages: Storages,
        lease: Lease,
        settling: Settling,
        threads: Threads,
        temporary_dir: Path,
    ) -> None:
        """Everything it needs is built, and closed, by `runtime`; `temporary_dir` is this process's own."""
        self._data_dir = settings.data_dir
        self._database = database
        self._storages = storages
        self._lease = lease
        self._settling = settling
        self._threads = threads
        self._temporary_dir = temporary_dir

    async def move(self, asset_id: UUID, owner: str | None, storage: str) -> AssetRecord:
        """Move an asset to `storage`; one that is there already is left as it is.

        Returns when the row says so and the old copies are gone; or, where those cannot be removed now (then the asset
        returned still is `moving`), are sure to be removed as soon as they can be. Until then it can be read, and not
        be changed. Whatever else goes wrong is undone: the asset stays where it was, and the error comes out. Only a
        catalogue that went away just then leaves open which of both it was; whole it is either way.

        AssetNotFound, AssetBusy, StorageNotConfigured; Unsupported where the storage cannot keep it; StorageError where
        something else lies under its keys there, or an object of it is not what its row says.
        """
        target = self._storages.get(storage)
        if not target.capabilities.persistent:
            raise Unsupported(f"the storage {storage} keeps nothing: no asset can be moved there", storage=storage)
        while True:
            record = await self._database.read(lambda catalogue: catalogue.get(asset_id, owner))
            if record is None:
                raise AssetNotFound("there is no such asset")
            if record.state is not AssetState.READY:
                raise AssetBusy("another change of this asset is under way")
            if record.storage == storage:
                return record
            source = self._storages.get(record.storage)
            why_not = unfit(record, target)
            if why_not is not None:
                raise Unsupported(why_not, storage=storage)
            self._check_room(record, target)
            await self._look(record, source, target)
            moved = await asyncio.shield(self._move(record, source, target))
            if moved is not None:
                return moved
            # Somebody was faster: look at what it is now.

    def _check_room(self, record: AssetRecord, target: StorageBackend) -> None:
        """NoSpace where the disk is about full. What goes elsewhere, and through memory, takes nothing of it."""
        needs_disk = max(part.size for part in parts_of(record)) > MEMORY_BYTES
        if needs_disk or (target.capabilities.at_hand and not target.capabilities.one_process):
            check_reserve(self._data_dir)

    async def _look(self, record: AssetRecord, source: StorageBackend, target: StorageBackend) -> None:
        """Raise ObjectExists where something else lies under a key of the asset at the target: it is not ours.

        What an earlier try left there is the same, and is taken for the copy it is.
        """
        for part in parts_of(record):
            try:
                found = await target.stat(part.key)
            except ObjectNotFound:
                continue
            if found.size == part.size:
                wanted = part.sha256 or await _sha256(source, part.key)
                if await _sha256(target, part.key) == wanted:
                    continue
            raise _taken(target, part.key)

    async def _move(self, record: AssetRecord, source: StorageBackend, target: StorageBackend) -> AssetRecord | None:
        """The asset as it is then; None where it is no longer as `record` says, and nothing was begun."""
        with self._lease.claim() as claim:
            begun = await self._database.write(
                lambda catalogue: catalogue.begin_moving_to(record.id, target.name, record.version, claim)
            )
            if not begun:
                return None
            moving = replace(record, state=AssetState.MOVING, target_storage=target.name, lease=claim)
            try:
                await self._copy(moving, source, target)
                moved = await self._switch(moving)
            except ClaimLost:
                await self._settling.leave_nothing_astray(moving)
                raise Busy("the move took too long and was taken over by another process; try again") from None
            except BaseException:
                await self._settling.settle_at_once(record.id, claim)
                raise
            done = await self._settling.settle_at_once(record.id, claim)
        return replace(moved, state=AssetState.READY, target_storage=None, lease=None) if done else moved

    async def _switch(self, moving: AssetRecord) -> AssetRecord:
        now = datetime.now(UTC)
        moved = await self._database.write(lambda catalogue: catalogue.switch_storage(moving, now))
        if moved is None:
            raise ClaimLost
        return moved

    async def _copy(self, record: AssetRecord, source: StorageBackend, target: StorageBackend) -> None:
        turns = asyncio.Semaphore(_COPIES_AT_ONCE)

        async def copy(part: Part) -> None:
            async with turns, self._fetched(record, source, part) as spool:
                if not await self._database.read(lambda catalogue: catalogue.is_claimed(record)):
                    raise ClaimLost
                await _put(target, part, spool)

        await all_or_first_error(*map(copy, parts_of(record)))

    @asynccontextmanager
    async def _fetched(self, record: AssetRecord, source: StorageBackend, part: Part) -> AsyncIterator[Spool]:
        """An object of the source, whole and as the row says, in memory or in a temporary file."""
        async with Spool(self._temporary_dir, part.size, self._threads) as spool:
            try:
                await fetch(source, part.key, spool, size=part.size, sha256=part.sha256)
            except ObjectNotFound:
                if not await self._database.read(lambda catalogue: catalogue.is_claimed(record)):
                    raise ClaimLost from None  # who has it now may have moved or removed it
                raise StorageError("an object of the asset is missing", storage=source.name, key=part.key) from None
            yield spool


def parts_of(record: AssetRecord) -> list[Part]:
    """The objects there are of an asset, the original first."""
    original = Part(original_key(record), record.size_bytes, record.format.media_type, record.sha256)
    return [original] + [
        Part(variant_key(record, variant), variant.size_bytes, variant.format.media_type)
        for variant in record.made_variants
    ]


def unfit(record: AssetRecord, target: StorageBackend) -> str | None:
    """Why a storage cannot keep an asset, as far as it says so itself; None where it can."""
    limit, largest = target.capabilities.max_object_bytes, max(part.size for part in parts_of(record))
    if limit is not None and largest > limit:
        return f"{target.name} takes objects up to {limit} bytes, the asset has one of {largest}"
    return None


async def _put(target: StorageBackend, part: Part, spool: Spool) -> None:
    """Write an object and know, by its hash, that the target has it."""
    try:
        await target.upload(part.key, spool.source, content_type=part.media_type, give_away=True)
    except ObjectExists:
        if await _sha256(target, part.key) != spool.sha256:
            raise _taken(target, part.key) from None
        return
    # Who checks a hash on receipt need not be asked to send it all back.
    if not target.capabilities.verifies_writes and await _sha256(target, part.key) != spool.sha256:
        raise WriteNotVerified(f"{target.name} has other bytes than were sent", storage=target.name, key=part.key)


async def _sha256(backend: StorageBackend, key: str) -> str:
    digest = hashlib.sha256()
    async with aclosing(backend.open(key)) as chunks:
        async for chunk in chunks:
            digest.update(chunk)
    return digest.hexdigest()


def _taken(target: StorageBackend, key: str) -> ObjectExists:
    return ObjectExists(
        f"something else lies under the asset's key in {target.name}; nothing was changed", storage=target.name, key=key
    )
