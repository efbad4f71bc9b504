"""A storage's marker: the object by which it says whose it is, and how new a catalogue must be to tidy it up."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Final, Literal
from uuid import UUID, uuid4

from smart_assets import observability
from smart_assets.catalogue.database import Database
from smart_assets.formats import PIXEL, ImageFormat
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import ObjectExists

logger = logging.getLogger(__name__)

MARK_SECONDS: Final = 600
"""So often a service raises the markers: a copy of the catalogue that is younger may be taken for the catalogue."""

MARKERS: Final = "smart-assets/catalogue-"
"""What the keys of all markers begin with."""

_MARKER: Final = re.compile(re.escape(MARKERS) + r"(?P<catalogue>[0-9a-f-]{36})-(?P<runs>\d{1,18})\.png", re.ASCII)

Owner = Literal["nobody", "this", "another"]
"""Whose a storage says it is: nobody's yet, this catalogue's, or another's, which a later state of this one is too."""

NOT_OURS: Final = (
    "the storage's marker names another catalogue, or a later state of this one (restored from a backup, or a copy?): "
    "its objects may be somebody's; `--claim` makes the storage this catalogue's"
)


class Marker:
    """The object by which a storage says whose it is: its key holds the catalogue's id, and how often that raised it.

    A fresh database has another id; one restored from a backup, or copied, has raised the marker less often than the
    storage says. A catalogue notes the number before the storage has it: so none is ever behind its own marker,
    wherever it is stopped and however many of its processes do so at once.
    """

    def __init__(self, database: Database, backend: StorageBackend) -> None:
        """Of this catalogue, on that storage."""
        self._database = database
        self._backend = backend

    async def owner(self) -> Owner:
        """Whose the storage says it is."""
        there = await self._there()
        # Read after them, so that it is no older than the youngest of them.
        catalogue, runs = await self._database.read(lambda rows: (rows.known_identity(), rows.runs(self._backend.name)))
        if not there:
            return "nobody"
        ours = all(marker is not None and marker[0] == catalogue and marker[1] <= runs for marker in there.values())
        return "this" if ours else "another"

    async def claim(self) -> None:
        """Make the storage this catalogue's, as it is now: whatever it said before, and no earlier state's any more."""
        there, catalogue = await self._there(), await self._identity()
        known = [marker[1] for marker in there.values() if marker is not None and marker[0] == catalogue]
        runs = await self._raise(catalogue, beyond=max(known, default=0))
        for key in there.keys() - {_marker(catalogue, runs)}:
            await self._backend.delete(key)

    async def advance(self) -> None:
        """Raise the marker of a storage that is this catalogue's: its earlier states may not tidy up any longer."""
        catalogue = await self._identity()
        runs = await self._raise(catalogue)
        for key, marker in (await self._there()).items():
            # Only lower ones of our own: who was faster has set a higher one, and another catalogue's must be seen.
            if marker is not None and marker[0] == catalogue and marker[1] < runs:
                await self._backend.delete(key)

    async def _identity(self) -> UUID:
        candidate = uuid4()
        return await self._database.write(lambda rows: rows.identity(candidate))

    async def _there(self) -> dict[str, tuple[UUID, int] | None]:
        async with aclosing(self._backend.list(MARKERS)) as records:
            return {record.key: _parsed(record.key) async for record in records}

    async def _raise(self, catalogue: UUID, *, beyond: int = 0) -> int:
        storage = self._backend.name
        runs = await self._database.write(lambda rows: rows.next_run(storage, beyond=beyond))
        with suppress(ObjectExists):
            await self._backend.upload(_marker(catalogue, runs), PIXEL, content_type=ImageFormat.PNG.media_type)
        return runs


def _marker(catalogue: UUID, runs: int) -> str:
    return f"{MARKERS}{catalogue}-{runs}.png"


def _parsed(key: str) -> tuple[UUID, int] | None:
    """The catalogue a marker names, and how often that raised it; None where it is none."""
    match = _MARKER.fullmatch(key)
    return (UUID(match["catalogue"]), int(match["runs"])) if match else None


async def keep_marked(database: Database, backends: Sequence[StorageBackend]) -> None:
    """Raise the markers of those storages that are this catalogue's, at once and every MARK_SECONDS, until cancelled.

    One process of all does so each time. A storage without a marker gets none: that is for somebody who looked.
    """
    seen: dict[str, int] = {}
    while True:
        for backend in backends:
            try:
                seen[backend.name] = await _mark_again(database, backend, seen.get(backend.name))
            except Exception as error:  # noqa: BLE001 - a storage that is away is in nobody's way
                observability.BACKGROUND_FAILURES.labels("mark_storage").inc()
                logger.warning(
                    "could not raise a storage's marker", extra={"storage": backend.name, "error": repr(error)}
                )
        await asyncio.sleep(MARK_SECONDS)


async def _mark_again(database: Database, backend: StorageBackend, seen: int | None) -> int:
    """Raise a marker, unless another process has since it was `seen` here; the number it is at."""
    runs = await database.read(lambda rows: rows.runs(backend.name))
    if runs == seen or seen is None:
        marker = Marker(database, backend)
        match await marker.owner():
            case "this":
                await marker.advance()
            case "another":
                logger.warning("the storage is not this catalogue's", extra={"storage": backend.name, "why": NOT_OURS})
            case "nobody":
                pass
    return await database.read(lambda rows: rows.runs(backend.name))
