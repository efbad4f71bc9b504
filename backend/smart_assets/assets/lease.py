"""A process's sign of life, and the rows it is at work on.

A row that is not `ready` names who is at work on it: a *claim*, made of the process's lease and a number of its own
for each piece of work. As long as the lease's beat goes up and the claim is held, nobody else touches the row;
otherwise any living process claims it and finishes what was begun (`maintenance.reconcile`). Whoever changes a row
says which claim it does so under, so who was too slow changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from uuid import uuid4

from smart_assets.catalogue.database import Database
from smart_assets.errors import CatalogueUnavailable, NoSpace

logger = logging.getLogger(__name__)


class Lease:
    """This process's lease, and the claims under it."""

    def __init__(self, database: Database) -> None:
        """A new lease; it is in force from the first `renew`."""
        self.id = str(uuid4())
        self._database = database
        self._beat = 0
        self._numbers = count(1)
        self._held: set[str] = set()

    @property
    def held(self) -> frozenset[str]:
        """The claims some task of this process works under right now. A row of any other of its claims was given up."""
        return frozenset(self._held)

    @contextmanager
    def claim(self) -> Iterator[str]:
        """A claim of its own for one piece of work, held as long as the context lasts."""
        claim = f"{self.id}/{next(self._numbers)}"
        self._held.add(claim)
        try:
            yield claim
        finally:
            self._held.discard(claim)

    async def renew(self) -> None:
        """Show that the process lives."""
        self._beat += 1
        beat = self._beat
        await self._database.write(lambda catalogue: catalogue.beat(self.id, beat))

    async def give_back(self) -> None:
        """End the lease, so that nobody waits for it to run out.

        Not while a task still works under it: what that one is doing must be over before another finishes it.
        """
        if self._held:
            return
        try:
            await self._database.write(lambda catalogue: catalogue.drop_lease(self.id))
        except (CatalogueUnavailable, NoSpace) as error:
            logger.warning("the lease could not be given back: it runs out", extra={"error": repr(error)})
