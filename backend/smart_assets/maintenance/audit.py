"""Holding a storage against the catalogue, in both directions: bytes without a row, rows without their bytes.

The storage is listed into a table of its own, in a temporary file: so neither side has to fit in memory, or to come in
any order. Whatever looks wrong is looked at again before it is told, because assets come and go meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final, Literal
from uuid import UUID, uuid4

from smart_assets.assets.objects import object_keys, original_key, variant_key
from smart_assets.assets.together import all_or_first_error
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, AssetState
from smart_assets.catalogue.repository import Repository
from smart_assets.formats import PIXEL, ImageFormat
from smart_assets.scratch import ScratchDirectory
from smart_assets.storage.base import StorageBackend, StoredObject
from smart_assets.storage.errors import ObjectExists, ObjectNotFound, StorageError
from smart_assets.storage.keys import Visibility, parse_asset_key
from smart_assets.threads import Threads

MOST_ORPHANS: Final = 0.5
"""A larger share of a storage's objects is not removed: then it is the catalogue that lacks rows."""

_MARKERS: Final = "smart-assets/catalogue-"
_OURS: Final = tuple(f"{visibility}/" for visibility in Visibility)
_PAGE: Final = 500
_AT_ONCE: Final = 8

Problem = Literal["orphan", "missing", "size", "hash", "unreadable"]
Progress = Callable[[str, int, int | None], None]
"""What is being done, how much of it is done, and of how much (None where that is not known)."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: an object nobody knows (`orphan`), or one an asset lacks, or has otherwise than its row
    says. `removed` says that it was put right."""

    problem: Problem
    key: str
    size: int | None = None
    removed: bool = False


@dataclass
class Report:
    """What an audit of one storage found. Sizes in bytes."""

    storage: str
    objects: int = 0
    bytes: int = 0
    assets: int = 0
    unsettled: int = 0
    foreign: int = 0
    findings: list[Finding] = field(default_factory=list)
    refused: str | None = None
    """Why orphans were not removed, where that was asked for."""
    error: str | None = None
    """Why it could not be audited."""

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong (any more)."""
        return self.error is None and not self.unsettled and all(finding.removed for finding in self.findings)


class Marker:
    """The object by which a storage says whose it is: its key holds the catalogue's id, and how often that tidied up.

    A fresh database has another id; one restored from a backup has tidied up less often than the storage says.
    """

    def __init__(self, database: Database, backend: StorageBackend) -> None:
        """Of this catalogue, on that storage."""
        self._database = database
        self._backend = backend

    async def _own(self) -> tuple[UUID, int]:
        candidate, storage = uuid4(), self._backend.name
        return await self._database.write(lambda rows: (rows.identity(candidate), rows.runs(storage)))

    async def _there(self) -> set[str]:
        async with aclosing(self._backend.list(_MARKERS)) as records:
            return {record.key async for record in records}

    async def is_missing(self) -> bool:
        """Whether the storage is nobody's yet."""
        return not await self._there()

    async def is_ours(self) -> bool:
        """Whether the storage is this catalogue's alone, as it was when it last tidied up."""
        catalogue, runs = await self._own()
        there = await self._there()
        # A run that was killed between one marker and the next left both.
        return _marker(catalogue, runs) in there and there <= {_marker(catalogue, run) for run in range(runs + 2)}

    async def claim(self) -> None:
        """Make the storage this catalogue's, whatever it said before."""
        await self._replace(*await self._own())

    async def advance(self) -> None:
        """Note, on both sides, that this catalogue tidies up once more: older states of it may not any longer."""
        catalogue, runs = await self._own()
        await self._set(_marker(catalogue, runs + 1))
        await self._database.write(lambda rows: rows.note_run(self._backend.name, runs + 1))
        await self._replace(catalogue, runs + 1)

    async def _replace(self, catalogue: UUID, runs: int) -> None:
        await self._set(_marker(catalogue, runs))
        for key in await self._there() - {_marker(catalogue, runs)}:
            await self._backend.delete(key)

    async def _set(self, key: str) -> None:
        with suppress(ObjectExists):
            await self._backend.upload(key, PIXEL, content_type=ImageFormat.PNG.media_type)


def _marker(catalogue: UUID, runs: int) -> str:
    return f"{_MARKERS}{catalogue}-{runs}.png"


class Audit:
    """Of one storage."""

    def __init__(
        self,
        database: Database,
        backend: StorageBackend,
        marker: Marker,
        threads: Threads,
        *,
        temporary_dir: Path,
        grace_seconds: float,
        progress: Progress = lambda *_: None,
    ) -> None:
        """Objects younger than `grace_seconds` are nobody's orphans yet."""
        self._database = database
        self._backend = backend
        self._marker = marker
        self._threads = threads
        self._temporary_dir = temporary_dir
        self._grace = timedelta(seconds=grace_seconds)
        self._progress = progress
        self._report = Report(backend.name)

    async def run(self, *, verify: bool = False, delete_orphans: bool = False, dry_run: bool = False) -> Report:
        """Compare both sides.

        `verify` reads every original and compares its hash. `delete_orphans` removes what nobody knows, where the
        storage is this catalogue's and it is no more than MOST_ORPHANS of what is there; with `dry_run` it is only
        said that it would be.
        """
        try:
            with (
                closing(ScratchDirectory(self._temporary_dir)) as scratch,
                closing(_Listing(scratch.path)) as listing,
            ):
                await self._list(listing)
                await self._look_for_orphans(listing)
                await self._look_for_missing(listing, verify=verify)
            if delete_orphans:
                await self._remove_orphans(dry_run=dry_run)
            if not dry_run:
                await self._mark()
        except StorageError as error:
            self._report.error = error.detail
        return self._report

    # ── Listing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _list(self, listing: _Listing) -> None:
        page: list[StoredObject] = []
        async with aclosing(self._backend.list()) as records:
            async for record in records:
                page.append(record)
                if len(page) == _PAGE:
                    await self._note(listing, page)
                    page = []
        await self._note(listing, page)

    async def _note(self, listing: _Listing, page: list[StoredObject]) -> None:
        await self._threads.run(lambda: listing.add(page))
        self._report.objects += len(page)
        self._report.bytes += sum(record.size for record in page)
        self._progress("listing the storage", self._report.objects, None)

    # ── Bytes without a row ─────────────────────────────────────────────────────────────────────────────────────────

    async def _look_for_orphans(self, listing: _Listing) -> None:
        done = 0
        for page in listing.pages():
            await self._look_at(page)
            done += len(page)
            self._progress("looking for objects without a row", done, self._report.objects)

    async def _look_at(self, page: Sequence[StoredObject]) -> None:
        parsed = {record.key: parse_asset_key(record.key) for record in page}
        ids = {key.asset_id for key in parsed.values() if key is not None}
        rows = await self._database.read(lambda catalogue: catalogue.get_all_in_any_state(ids))
        for record in page:
            if record.key.startswith(_MARKERS):
                continue
            if not record.key.startswith(_OURS):
                self._report.foreign += 1
                continue
            key = parsed[record.key]
            row = rows.get(key.asset_id) if key is not None else None
            if not _belongs(record.key, row, self._backend.name) and (stored := await self._still_there(record.key)):
                self._report.findings.append(Finding("orphan", record.key, stored.size))

    async def _still_there(self, key: str) -> StoredObject | None:
        """An object that looked like an orphan, where it is there still and old enough to be one."""
        try:
            stored = await self._backend.stat(key)
        except ObjectNotFound:
            return None
        age = datetime.now(UTC) - stored.modified if stored.modified else timedelta.max
        return stored if age >= self._grace else None

    async def _remove_orphans(self, *, dry_run: bool) -> None:
        report = self._report
        orphans = [finding for finding in report.findings if finding.problem == "orphan"]
        report.refused = await self._why_not(orphans)
        if report.refused is not None or dry_run:
            return
        for done, finding in enumerate(orphans, 1):
            if await self._is_orphan(finding.key):
                await self._backend.delete(finding.key)
            report.findings[report.findings.index(finding)] = replace(finding, removed=True)
            self._progress("removing orphans", done, len(orphans))

    async def _mark(self) -> None:
        """Note the run on the storage; one that is nobody's yet, and fits the catalogue, becomes its own."""
        if await self._marker.is_ours():
            await self._marker.advance()
        elif await self._marker.is_missing():
            orphans = sum(finding.problem == "orphan" and not finding.removed for finding in self._report.findings)
            if orphans <= MOST_ORPHANS * self._report.objects:
                await self._marker.claim()

    async def _is_orphan(self, key: str) -> bool:
        """Whether nobody knows it at this very moment."""
        parsed = parse_asset_key(key)
        if parsed is None:
            return True
        rows = await self._database.read(lambda catalogue: catalogue.get_all_in_any_state({parsed.asset_id}))
        return not _belongs(key, rows.get(parsed.asset_id), self._backend.name)

    async def _why_not(self, orphans: Sequence[Finding]) -> str | None:
        """Why orphans must not be removed; a storage that is nobody's yet, and fits the catalogue, becomes its own."""
        if len(orphans) > MOST_ORPHANS * self._report.objects:
            return (
                f"{len(orphans)} of {self._report.objects} objects have no row, more than {MOST_ORPHANS:.0%}: "
                "it rather looks as if the catalogue had lost rows"
            )
        if await self._marker.is_missing():
            return None
        if not await self._marker.is_ours():
            return (
                "the storage's marker names another catalogue, or a later state of this one (restored from a backup?): "
                "its objects may be somebody's; `--claim` makes the storage this catalogue's"
            )
        return None

    # ── Rows without their bytes ────────────────────────────────────────────────────────────────────────────────────

    async def _look_for_missing(self, listing: _Listing, *, verify: bool) -> None:
        after: UUID | None = None
        turns = asyncio.Semaphore(_AT_ONCE)

        async def compare(record: AssetRecord) -> None:
            async with turns:
                await self._compare(record, listing, verify=verify)

        while page := await self._database.read(partial(_page_after, storage=self._backend.name, after=after)):
            await all_or_first_error(*(compare(record) for record in page))
            after = page[-1].id
            self._report.assets += len(page)
            self._progress("looking for assets without their bytes", self._report.assets, None)

    async def _compare(self, record: AssetRecord, listing: _Listing, *, verify: bool) -> None:
        if record.state is not AssetState.READY:
            self._report.unsettled += 1
            return
        for key, size in _objects(record).items():
            listed = listing.size_of(key)
            if listed != size and (finding := await self._look_again(record, key, size)):
                self._report.findings.append(finding)
        if verify and (finding := await self._verify(record)):
            self._report.findings.append(finding)

    async def _look_again(self, record: AssetRecord, key: str, size: int) -> Finding | None:
        """What is wrong with an object at this very moment; nothing, where its row was changed meanwhile."""
        try:
            stored: StoredObject | None = await self._backend.stat(key)
        except ObjectNotFound:
            stored = None
        if (stored is not None and stored.size == size) or not await self._is_as_it_was(record):
            return None
        return Finding("missing", key, size) if stored is None else Finding("size", key, stored.size)

    async def _verify(self, record: AssetRecord) -> Finding | None:
        key, sha256 = original_key(record), hashlib.sha256()
        try:
            async with aclosing(self._backend.open(key)) as chunks:
                async for chunk in chunks:
                    sha256.update(chunk)
        except ObjectNotFound:
            return None  # told already, or gone meanwhile
        except StorageError:
            return Finding("unreadable", key, record.size_bytes)
        if sha256.hexdigest() == record.sha256 or not await self._is_as_it_was(record):
            return None
        return Finding("hash", key, record.size_bytes)

    async def _is_as_it_was(self, record: AssetRecord) -> bool:
        rows = await self._database.read(lambda catalogue: catalogue.get_all_in_any_state({record.id}))
        now = rows.get(record.id)
        return now is not None and (now.state, now.visibility, now.storage) == (
            record.state,
            record.visibility,
            record.storage,
        )


def _page_after(catalogue: Repository, *, storage: str, after: UUID | None) -> tuple[AssetRecord, ...]:
    return catalogue.page_of_storage(storage, after=after, limit=_PAGE)


def _objects(record: AssetRecord) -> dict[str, int]:
    """The keys under which there must be an object, and its size in bytes."""
    return {original_key(record): record.size_bytes} | {
        variant_key(record, variant): variant.size_bytes for variant in record.made_variants
    }


def _belongs(key: str, row: AssetRecord | None, storage: str) -> bool:
    """Whether an object of that key is a row's to look after: at either visibility while somebody is at work on it."""
    if row is None or row.storage != storage:
        return False
    if row.state is AssetState.READY:
        return key in object_keys(row)
    # Whoever settles the row removes, or moves, what lies at any of its keys.
    return any(key.endswith(known.partition("/")[2]) for known in object_keys(row))


class _Listing:
    """What a storage listed: key and size of each object, in a file."""

    def __init__(self, directory: Path) -> None:
        self._connection = sqlite3.connect(directory / "listing.sqlite3", isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=OFF")
        self._connection.execute("PRAGMA synchronous=OFF")
        self._connection.execute("CREATE TABLE objects (key TEXT PRIMARY KEY, size INTEGER) WITHOUT ROWID")

    def add(self, records: Sequence[StoredObject]) -> None:
        """Note them."""
        rows = [(record.key, record.size) for record in records]
        self._connection.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?)", rows)

    def size_of(self, key: str) -> int | None:
        """In bytes; None where it was not listed."""
        row = self._connection.execute("SELECT size FROM objects WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def pages(self) -> Iterator[list[StoredObject]]:
        """All of them, by key."""
        cursor = self._connection.execute("SELECT key, size FROM objects ORDER BY key")
        while page := cursor.fetchmany(_PAGE):
            yield [StoredObject(key, size) for key, size in page]

    def close(self) -> None:
        """Forget them."""
        self._connection.close()
