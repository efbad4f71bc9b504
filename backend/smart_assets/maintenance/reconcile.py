"""Finishing what a process that is gone, or a storage that was, left half done.

Acts only on what the catalogue's own rows name: `pending` and `deleting` ones are removed with their bytes, `moving`
ones end private, at the storage their row is at, or as they were before sizes were to be added. Rows in the hands of a
living process are left alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import UUID

from smart_assets import observability, scratch
from smart_assets.assets.idempotency import KEPT
from smart_assets.assets.lease import Lease
from smart_assets.assets.settling import Settling, names
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, AssetState
from smart_assets.catalogue.repository import Repository
from smart_assets.maintenance.tickets import TICKETS, TicketSweep
from smart_assets.threads import Threads

logger = logging.getLogger(__name__)

BATCH = 100
KEYS_AT_ONCE = 10_000
MOST_PUT_OFF_SECONDS = 600

RECHECKS = 40
"""For so many passes (ten times a lease's length) rows taken over are looked at again: see `Settling.recheck`."""


class LeaseWatch:
    """Tells living leases from dead ones: dead is whose beat did not change for `lease_seconds` of our own clock.

    No clock of another machine is looked at, and none that jumps, so a process is never taken for dead because its
    clock, or ours, was set.
    """

    def __init__(self, lease_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` must never go back."""
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._seen: dict[str, tuple[int, float]] = {}
        self._own_beat = clock()

    def beaten(self) -> None:
        """Our own lease was just renewed."""
        if self._kept_from_writing():
            self._seen.clear()
        self._own_beat = self._clock()

    def _kept_from_writing(self) -> bool:
        """Whether our own beat is overdue. What keeps us from writing may keep the others too: nobody is judged then,
        and afterwards they get all their time again."""
        return self._clock() - self._own_beat > self._lease_seconds / 2

    def living(self, beats: dict[str, int]) -> set[str]:
        """The leases among `beats` (of all there are) whose processes live, as far as we can know."""
        if self._kept_from_writing():
            return set(beats)
        now = self._clock()
        self._seen = {
            lease: (beat, self._seen[lease][1] if self._seen.get(lease, (None,))[0] == beat else now)
            for lease, beat in beats.items()
        }
        return {lease for lease, (_, since) in self._seen.items() if now - since < self._lease_seconds}


class Reconciler:
    """Renews this process's lease and finishes what others left, until stopped."""

    def __init__(
        self,
        database: Database,
        settling: Settling,
        lease: Lease,
        threads: Threads,
        *,
        lease_seconds: float,
        temporary_dirs: Sequence[Path],
        tickets: TicketSweep,
    ) -> None:
        """`temporary_dirs` are where the processes of this machine have their scratch directories; `tickets` clears up
        after those whose time is over."""
        self._database = database
        self._settling = settling
        self._lease = lease
        self._threads = threads
        self._temporary_dirs = temporary_dirs
        self._tickets = tickets
        self._interval = lease_seconds / 4
        self._watch = LeaseWatch(lease_seconds)
        self._after: dict[str, UUID] = {}
        self._put_off: dict[str, dict[UUID, tuple[float, float]]] = {}
        self._at_work: dict[str, asyncio.Task[int]] = {}
        self._taken_over: dict[UUID, tuple[AssetRecord, int]] = {}

    async def run(self) -> None:
        """Beat and look around, four times in a lease's length, each in its own time: a slow storage stops no beat."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._repeat("lease", self._beat))
                group.create_task(self._repeat("reconcile", self.pass_once))
                group.create_task(self._repeat(TICKETS, self._tickets.pass_once))
        finally:
            for task in self._at_work.values():
                task.cancel()
            if self._at_work:
                await asyncio.wait(self._at_work.values())

    async def _repeat(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        """Do `work` again and again. What fails is logged and counted, and tried again."""
        while True:
            try:
                await work()
            except Exception:
                observability.BACKGROUND_FAILURES.labels(name).inc()
                logger.exception("background work failed", extra={"task": name})
            await asyncio.sleep(self._interval)

    async def _beat(self) -> None:
        await self._lease.renew()
        self._watch.beaten()

    async def pass_once(self) -> int:
        """Settle a batch of abandoned rows of each storage; how many were settled.

        The next pass goes on behind this one's rows, and from the first again after the last, so that rows that cannot
        be settled now are in nobody's way.
        """
        beats, living, abandoned = await self._database.read(self._look)
        self._put_off = {
            storage: rows for storage, rows in self._put_off.items() if storage in abandoned or storage in self._at_work
        }
        for storage, records in abandoned.items():
            self._note(storage, records)
        settled = await self._settle_side_by_side(abandoned)
        await self._free_keys()
        if dead := {lease: beat for lease, beat in beats.items() if lease not in living}:
            await self._database.write(lambda catalogue: catalogue.drop_leases(dead))
        for directory in self._temporary_dirs:
            await self._threads.run(partial(scratch.sweep, directory))
        return settled

    def _look(self, catalogue: Repository) -> tuple[dict[str, int], set[str], dict[str, tuple[AssetRecord, ...]]]:
        """Every beat, who lives, and of each storage a batch of rows nobody is at work on: as they are at one moment.

        Storages at which something is being settled still have to wait.
        """
        beats = catalogue.beats()  # first: a claim on a row of this moment is held by now, or will never be again
        living = self._living(beats)
        abandoned = {
            storage: catalogue.abandoned(
                own_lease=self._lease.id,
                held=self._lease.held,
                living=living,
                storage=storage,
                after=self._after.get(storage),
                limit=BATCH,
            )
            for storage in catalogue.unsettled_storages()
            if storage not in self._at_work
        }
        return beats, living, abandoned

    def _living(self, beats: dict[str, int]) -> set[str]:
        return self._watch.living(beats) | {self._lease.id}

    def _note(self, storage: str, records: Sequence[AssetRecord]) -> None:
        """Go on behind these rows of a storage next time; forget what was put off and is not there any more."""
        was_the_first_page = self._after.pop(storage, None) is None
        if len(records) == BATCH:
            self._after[storage] = records[-1].id
        elif was_the_first_page:  # all there are: the others were settled elsewhere
            there = {record.id for record in records}
            put_off = self._put_off.get(storage, {})
            self._put_off[storage] = {asset_id: due for asset_id, due in put_off.items() if asset_id in there}

    async def _settle_side_by_side(self, abandoned: Mapping[str, Sequence[AssetRecord]]) -> int:
        """Settle rows, those of each storage in a task of its own: one that hangs holds up nobody else's.

        Waits for no task longer than until the next pass; it goes on, and until it has ended its storage gets no other.
        """
        looked_at: dict[str, Sequence[AssetRecord]] = {record.settled_at: () for record, _ in self._taken_over.values()}
        begun = []
        for storage, records in (looked_at | dict(abandoned)).items():
            if storage not in self._at_work:
                task = self._at_work[storage] = asyncio.create_task(self._settle_storage(storage, records))
                begun.append(task)
        if begun:
            await asyncio.wait(begun, timeout=self._interval)
        return sum(task.result() for task in begun if task.done())

    async def _settle_storage(self, storage: str, records: Sequence[AssetRecord]) -> int:
        try:
            settled = 0
            for record in records:
                if self._is_due(record):
                    done = await self._settle(record)
                    self._put_off_or_forget(record, done=done)
                    settled += done
            await self._recheck(storage)
            return settled
        finally:
            del self._at_work[storage]

    async def _free_keys(self) -> None:
        """Free the keys and tickets of requests that died, and forget the keys that were kept long enough."""
        before = datetime.now(UTC) - KEPT

        def free(catalogue: Repository) -> tuple[int, int]:
            catalogue.forget_keys(before, KEYS_AT_ONCE)
            living = self._living(catalogue.beats())  # as they are now: a process that has just begun lives too
            own, held = self._lease.id, self._lease.held
            return (
                catalogue.free_abandoned_keys(own_lease=own, held=held, living=living),
                catalogue.free_abandoned_tickets(own_lease=own, held=held, living=living),
            )

        keys, tickets = await self._database.write(free)
        if keys:
            observability.REPAIRS.labels("freed_key").inc(keys)
            logger.info("freed the idempotency keys of requests that died", extra={"keys": keys})
        if tickets:
            observability.REPAIRS.labels("freed_ticket").inc(tickets)
            logger.info("freed the upload tickets of requests that died", extra={"tickets": tickets})

    def _is_due(self, record: AssetRecord) -> bool:
        """Whether it is time to try a row (again)."""
        _, due = self._put_off.get(record.settled_at, {}).get(record.id, (0, 0))
        return time.monotonic() >= due

    def _put_off_or_forget(self, record: AssetRecord, *, done: bool) -> None:
        """What could not be settled is tried again ever more rarely, but for good."""
        put_off = self._put_off.setdefault(record.settled_at, {})
        if done:
            put_off.pop(record.id, None)
            return
        delay = min(put_off.get(record.id, (self._interval / 2, 0))[0] * 2, MOST_PUT_OFF_SECONDS)
        # Not all at once, where a storage has been away and many rows wait for it.
        put_off[record.id] = (delay, time.monotonic() + delay * random.SystemRandom().uniform(0.5, 1))

    async def _recheck(self, storage: str) -> None:
        """Look again at rows taken over from processes that may only have been stopped."""
        for asset_id, (record, left) in list(self._taken_over.items()):
            if record.settled_at != storage:
                continue
            if left:
                self._taken_over[asset_id] = (record, left - 1)
            else:
                del self._taken_over[asset_id]
            try:
                await self._settling.recheck(record)
            except Exception as error:  # noqa: BLE001 - one row must not keep the others waiting
                observability.BACKGROUND_FAILURES.labels("recheck").inc()
                logger.warning("could not look at an asset again", extra={**names(record), "error": repr(error)})

    async def _settle(self, record: AssetRecord) -> bool:
        with self._lease.claim() as claim:
            try:
                taken = await self._database.write(lambda catalogue: catalogue.take_over(record, claim))
                if taken is None:
                    return False
                if not (record.lease or "").startswith(self._lease.id):
                    self._taken_over[record.id] = (record, RECHECKS)
                done = await self._finish(taken, claim)
                if done is None:
                    return False
            except Exception as error:  # noqa: BLE001 - one row must not keep the others waiting
                observability.BACKGROUND_FAILURES.labels("reconcile").inc()
                logger.warning("could not settle an asset yet", extra={**names(record), "error": repr(error)})
                return False
        observability.REPAIRS.labels(done).inc()
        logger.info("settled an asset left half done", extra={**names(record), "done": done})
        return True

    async def _finish(self, taken: AssetRecord, claim: str) -> str | None:
        """Do what a row taken over needs, and what that was; None where it stays, to be tried again."""
        if taken.state is not AssetState.MOVING:
            return "removed" if await self._settling.finish_deleting(taken) else None
        if taken.target_storage is not None:
            return "settled_move" if await self._settling.settle_move(taken.id, claim) else None
        if taken.is_growing:
            return "sizes_undone" if await self._settling.undo_growing(taken) else None
        await self._settling.settle_as_private(taken)
        return "made_private"
