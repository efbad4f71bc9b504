"""A process's sign of life, and the assets it is at work on.

A row that is not `ready` carries the lease of the process at work on it. As long as the lease's beat goes up, nobody
else touches the row; when it stops, any living process finishes what was begun (`maintenance.reconcile`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

from smart_assets.catalogue.database import Database


class Lease:
    """This process's lease."""

    def __init__(self, database: Database) -> None:
        """A new lease; it is in force from the first `renew`."""
        self.id = str(uuid4())
        self._database = database
        self._beat = 0
        self._held: set[UUID] = set()

    @property
    def held(self) -> frozenset[UUID]:
        """The assets some task of this process is at work on right now."""
        return frozenset(self._held)

    @contextmanager
    def hold(self, *asset_ids: UUID) -> Iterator[None]:
        """Be at work on assets. A row of this lease that nobody holds was given up, and is finished like a dead one's.

        Hold before the row says so, let go after it says something else.
        """
        self._held.update(asset_ids)
        try:
            yield
        finally:
            self._held.difference_update(asset_ids)

    async def renew(self) -> None:
        """Show that the process lives."""
        self._beat += 1
        beat = self._beat
        await self._database.write(lambda catalogue: catalogue.beat(self.id, beat))

    async def give_back(self) -> None:
        """End the lease; rows it still holds are finished by whoever comes next."""
        await self._database.write(lambda catalogue: catalogue.drop_leases([self.id]))
