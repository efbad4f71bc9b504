"""Deleting many assets at once.

First all rows are marked, which is quick and makes the assets gone for callers; then the bytes are removed, those of
each storage in their own time. A storage that hangs holds up neither the others nor, for longer than WAIT_SECONDS, the
answer: what it still has is owed, as after any deletion it does not answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

from smart_assets import observability
from smart_assets.assets.lease import Lease
from smart_assets.assets.settling import Settling, names
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import AssetBusy, AssetNotFound, SmartAssetsError
from smart_assets.storage.errors import StorageNotConfigured, StorageUnavailable
from smart_assets.storage.registry import Storages

logger = logging.getLogger(__name__)

WAIT_SECONDS: Final = 20
"""For so long the answer waits for bytes to be gone."""

_MARKED_AT_ONCE: Final = 100
_REMOVED_AT_ONCE: Final = 8

Status = Literal["deleted", "not_found", "busy", "failed"]


@dataclass(frozen=True)
class Deletion:
    """What became of one id. `failed`: the asset is gone and its bytes are not yet, or it could not be marked."""

    status: Status
    error: SmartAssetsError | None = None


@dataclass(frozen=True)
class _Begun:
    """An asset that is `deleting`, under a claim that is held until `holding` is closed."""

    record: AssetRecord
    holding: ExitStack


_NOT_FOUND: Final = Deletion("not_found", AssetNotFound("there is no such asset"))
_BUSY: Final = Deletion("busy", AssetBusy("another change of this asset is under way"))
_NOT_GONE: Final = Deletion("failed", StorageUnavailable("the bytes could not be removed yet; they will be"))


class Deletions:
    """The use-case; one for the process."""

    def __init__(self, database: Database, storages: Storages, lease: Lease, settling: Settling) -> None:
        """Everything it needs is built, and closed, by `runtime`."""
        self._database = database
        self._storages = storages
        self._lease = lease
        self._settling = settling
        self._at_work: set[asyncio.Task[None]] = set()

    async def delete(self, ids: Sequence[str], owner: str | None) -> list[Deletion]:
        """Delete the assets of these ids; what became of each, in their order.

        One that stands twice has the same result twice, and what is no id is not found. Raises only where nothing was
        done.
        """
        parsed = [_parsed(text) for text in ids]
        wanted = list(dict.fromkeys(each for each in parsed if each is not None))
        begun: list[_Begun] = []
        results: dict[UUID, Deletion] = {}
        try:
            for start in range(0, len(wanted), _MARKED_AT_ONCE):
                results |= await self._mark_if_possible(wanted[start : start + _MARKED_AT_ONCE], owner, begun)
        except BaseException:
            for each in begun:
                each.holding.close()
            raise
        gone = await self._remove(begun)
        for each in begun:
            if each.record.id not in gone and self._is_at_hand(each.record.storage):
                # What delivery reads straight from disk it would still hand out.
                results[each.record.id] = _NOT_GONE
        return [results[each] if each is not None else _NOT_FOUND for each in parsed]

    async def close(self) -> None:
        """Stop what is still being removed; another process, or the next, goes on with it."""
        for task in self._at_work:
            task.cancel()
        if self._at_work:
            await asyncio.wait(self._at_work)

    async def _mark_if_possible(
        self, ids: Sequence[UUID], owner: str | None, begun: list[_Begun]
    ) -> dict[UUID, Deletion]:
        try:
            return await self._mark(ids, owner, begun)
        except SmartAssetsError as error:
            if not begun:
                raise
            return dict.fromkeys(ids, Deletion("failed", error))

    async def _mark(self, ids: Iterable[UUID], owner: str | None, begun: list[_Begun]) -> dict[UUID, Deletion]:
        """Let the assets be gone for callers, each under a claim of its own; `begun` gets those that are."""
        with ExitStack() as claims:
            holding = {asset_id: ExitStack() for asset_id in ids}
            claim = {
                asset_id: claims.enter_context(own).enter_context(self._lease.claim())
                for asset_id, own in holding.items()
            }

            def mark(catalogue: Repository) -> dict[UUID, AssetRecord | Deletion]:
                marked: dict[UUID, AssetRecord | Deletion] = dict.fromkeys(holding, _NOT_FOUND)
                found = [record for each in holding if (record := catalogue.get(each, owner)) is not None]
                # In one order, whoever asks: two at once must not wait for each other's rows in a ring.
                for record in sorted(found, key=lambda record: (record.storage, record.id)):
                    marked[record.id] = catalogue.begin_deleting(record.id, claim[record.id]) or _BUSY
                return marked

            results = {}
            for asset_id, outcome in (await self._database.write(mark)).items():
                if isinstance(outcome, AssetRecord):
                    begun.append(_Begun(outcome, holding[asset_id].pop_all()))
                    outcome = Deletion("deleted")
                results[asset_id] = outcome
        return results

    async def _remove(self, begun: Sequence[_Begun]) -> set[UUID]:
        """Remove the bytes, each storage's beside the others'; the ids of those that are gone when the time is up."""
        queues: dict[str, deque[_Begun]] = {}
        for each in begun:
            queues.setdefault(each.record.storage, deque()).append(each)
        gone: set[UUID] = set()
        tasks = [
            asyncio.create_task(self._work_off(queue, gone))
            for queue in queues.values()
            for _ in range(min(len(queue), _REMOVED_AT_ONCE))
        ]
        self._at_work.update(tasks)
        for task in tasks:
            task.add_done_callback(self._at_work.discard)
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=WAIT_SECONDS)
        finally:
            # The rest is given up, to `maintenance.reconcile`; what a storage is at, it ends.
            for queue in queues.values():
                while queue:
                    queue.popleft().holding.close()
        return set(gone)

    async def _work_off(self, queue: deque[_Begun], gone: set[UUID]) -> None:
        while queue:
            each = queue.popleft()
            with each.holding:
                try:
                    if await self._settling.finish_deleting(each.record):
                        gone.add(each.record.id)
                except Exception:
                    observability.BACKGROUND_FAILURES.labels("bulk_delete").inc()
                    logger.exception("could not finish a deletion yet", extra=names(each.record))

    def _is_at_hand(self, storage: str) -> bool:
        try:
            return self._storages.get(storage).capabilities.at_hand
        except StorageNotConfigured:
            return False


def _parsed(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
