"""Finishing what a process that is gone, or a storage that was, left half done.

Acts only on what the catalogue's own rows name: `pending` and `deleting` ones are removed with their bytes, `moving`
ones end private. Rows in the hands of a living process are left alone.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from anyio import to_thread

from smart_assets import observability
from smart_assets.assets.lease import Lease
from smart_assets.assets.settling import Settling
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, AssetState
from smart_assets.errors import SmartAssetsError

logger = logging.getLogger(__name__)

BATCH = 100


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

    def living(self, beats: dict[str, int]) -> set[str]:
        """The leases among `beats` (of all there are) whose processes live, as far as we can know."""
        now = self._clock()
        self._seen = {
            lease: (beat, self._seen[lease][1] if self._seen.get(lease, (None,))[0] == beat else now)
            for lease, beat in beats.items()
        }
        return {lease for lease, (_, since) in self._seen.items() if now - since < self._lease_seconds}


class Reconciler:
    """Renews this process's lease and finishes what others left, until stopped."""

    def __init__(
        self, database: Database, settling: Settling, lease: Lease, lease_seconds: float, temporary_dir: Path
    ) -> None:
        """`temporary_dir` holds a directory for each process on this machine, by the id of its lease."""
        self._database = database
        self._settling = settling
        self._lease = lease
        self._temporary_dir = temporary_dir
        self._lease_seconds = lease_seconds
        self._interval = lease_seconds / 4
        self._watch = LeaseWatch(lease_seconds)

    async def run(self) -> None:
        """Beat and look around four times in a lease's length. Failures are logged and counted, and tried again."""
        while True:
            try:
                await self._lease.renew()
                await self.pass_once()
            except Exception:
                observability.BACKGROUND_FAILURES.labels("reconcile").inc()
                logger.exception("a reconciliation pass failed")
            await asyncio.sleep(self._interval)

    async def pass_once(self) -> int:
        """Settle a batch of abandoned rows; how many were settled."""
        beats = await self._database.read(lambda catalogue: catalogue.beats())
        living = self._watch.living(beats) | {self._lease.id}
        others = living - {self._lease.id}
        held = self._lease.held
        abandoned = await self._database.read(lambda catalogue: catalogue.abandoned(others, held, BATCH))
        settled = 0
        for record in abandoned:
            if record.id in self._lease.held:
                continue  # taken up by one of our own tasks after `held` was read
            with self._lease.hold(record.id):
                settled += await self._settle(record)
        if dead := set(beats) - living:
            await self._database.write(lambda catalogue: catalogue.drop_leases(dead))
        await to_thread.run_sync(self._sweep_temporary_files, living)
        return settled

    async def _settle(self, record: AssetRecord) -> bool:
        taken = await self._database.write(lambda catalogue: catalogue.take_over(record, self._lease.id))
        if taken is None:
            return False
        try:
            if taken.state is AssetState.MOVING:
                await self._settling.settle_as_private(taken)
            elif not await self._settling.finish_deleting(taken):
                return False
        except SmartAssetsError:
            observability.BACKGROUND_FAILURES.labels("reconcile").inc()
            logger.exception("could not settle an asset", extra={"asset": str(record.id), "state": record.state})
            return False
        observability.REPAIRS.labels("made_private" if taken.state is AssetState.MOVING else "removed").inc()
        logger.info("settled an asset left half done", extra={"asset": str(record.id), "was": record.state})
        return True

    def _sweep_temporary_files(self, living: set[str]) -> None:
        """Remove what processes that are gone left in the temporary folder: their directories, and single files."""
        for path in self._temporary_dir.iterdir():
            with suppress(FileNotFoundError):  # its process lives and was faster
                untouched = time.time() - path.stat().st_mtime > self._lease_seconds
                if path.is_dir() and path.name not in living and untouched:
                    shutil.rmtree(path, ignore_errors=True)
                elif path.is_file() and untouched:
                    path.unlink()
