"""Clearing up after upload tickets whose time is over: what came to lie in a storage and was never made an asset.

Acts only on what the catalogue's own rows name: the object of the ticket's own key, then the row. It goes under a
claim, like any use of the ticket, so that nobody is just completing it. What was completed is cleared up too: as long
as its URL was good, something could be uploaded again.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from smart_assets import observability
from smart_assets.assets.lease import Lease
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import TicketRecord
from smart_assets.catalogue.repository import Repository
from smart_assets.settings import TicketSettings
from smart_assets.storage.registry import Storages

logger = logging.getLogger(__name__)

TICKETS: Final = "tickets"
"""The job, of which one process of all does a part at a time."""

BATCH: Final = 100
ROWS_AT_ONCE: Final = 10_000
_FIRST_DELAY_SECONDS: Final = 5
_MOST_PUT_OFF_SECONDS: Final = 600


class TicketSweep:
    """Removes what tickets left in storages, and the tickets."""

    def __init__(self, settings: TicketSettings, database: Database, storages: Storages, lease: Lease) -> None:
        """Does nothing by itself: `reconcile.Reconciler` calls it again and again."""
        self._grace = timedelta(seconds=settings.grace_seconds)
        self._database = database
        self._storages = storages
        self._lease = lease
        self._put_off: dict[str, tuple[float, float]] = {}

    async def pass_once(self) -> int:
        """Clear up after a batch of tickets, unless another process is at it; after how many that was.

        Storages at which something failed are left alone for a while, and keep no other from their turn.
        """
        before = datetime.now(UTC) - self._grace
        if not await self._database.read(lambda catalogue: catalogue.any_ticket_over(before)):
            return 0
        async with self._database.job(TICKETS) as mine:
            if not mine:
                return 0
            swept = await self._database.write(lambda catalogue: catalogue.forget_tickets(before, ROWS_AT_ONCE))
            resting = {storage for storage in self._put_off if self._rests(storage)}
            over = await self._database.read(
                lambda catalogue: catalogue.tickets_over(before, but_for=resting, limit=BATCH)
            )
            for record in over:
                if not self._rests(record.storage):
                    swept += await self._sweep(record)
        if swept:
            observability.REPAIRS.labels("swept_ticket").inc(swept)
            logger.info("removed upload tickets whose time is over", extra={"tickets": swept})
        return swept

    async def _sweep(self, record: TicketRecord) -> bool:
        if record.incoming is None:
            return False
        with self._lease.claim() as claim:
            try:
                if not await self._database.write(lambda catalogue: catalogue.claim_ticket(record, claim)):
                    return False  # somebody uses it
                left = await self._storages.get(record.storage).cleanup_failed_assets([record.incoming])
                end = Repository.free_ticket if left else Repository.remove_ticket
                await self._database.write(lambda catalogue: end(catalogue, replace(record, claim=claim)))
            except Exception as error:  # noqa: BLE001 - one ticket must not keep the others
                observability.BACKGROUND_FAILURES.labels(TICKETS).inc()
                logger.warning(
                    "could not clear up after an upload ticket",
                    extra={"storage": record.storage, "key": record.incoming, "error": repr(error)},
                )
                left = (record.incoming,)
        self._note(record.storage, failed=bool(left))
        return not left

    def _rests(self, storage: str) -> bool:
        _, due = self._put_off.get(storage, (0, 0))
        return time.monotonic() < due

    def _note(self, storage: str, *, failed: bool) -> None:
        """Leave a storage alone at which something failed, each time for longer."""
        if not failed:
            self._put_off.pop(storage, None)
            return
        delay = min(2 * self._put_off.get(storage, (_FIRST_DELAY_SECONDS / 2, 0))[0], _MOST_PUT_OFF_SECONDS)
        self._put_off[storage] = (delay, time.monotonic() + delay * random.SystemRandom().uniform(0.5, 1))
