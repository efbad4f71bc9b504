"""Holding a storage against the catalogue, in both directions: bytes without a row, rows without their bytes.

The storage is listed into a table of its own, in a temporary file: so neither side has to fit in memory, or to come in
any order. Whatever looks wrong is looked at again before it is told, because assets come and go meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final, Literal, get_args
from uuid import UUID

from smart_assets.assets.objects import object_keys, original_key, variant_key
from smart_assets.assets.together import all_or_first_error
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, AssetState, JsonObject
from smart_assets.catalogue.repository import Repository
from smart_assets.maintenance.marker import MARKERS, NOT_OURS, Marker, Owner
from smart_assets.scratch import ScratchDirectory
from smart_assets.storage.base import StorageBackend, StoredObject
from smart_assets.storage.errors import ObjectNotFound, StorageError
from smart_assets.storage.keys import parse_asset_key, parse_incoming_key
from smart_assets.threads import Threads

logger = logging.getLogger(__name__)

MOST_ORPHANS: Final = 0.5
"""A larger share of the assets' objects is not removed: then it is the catalogue that lacks rows."""

_PAGE: Final = 500
_AT_ONCE: Final = 8

AUDIT: Final = "audit"
"""The job, of which each storage is a part; its outcome is what was found wrong and left, by kind."""

Problem = Literal["orphan", "missing", "size", "hash", "unreadable"]
PROBLEMS: Final[tuple[Problem, ...]] = get_args(Problem)
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
    """What an audit of one storage found. Sizes in bytes.

    `at_work` are the rows a living process is at work on, `unsettled` those that were left half done, `foreign` the
    objects that are neither an asset's or a ticket's, by their keys, nor a marker.
    """

    storage: str
    objects: int = 0
    bytes: int = 0
    assets: int = 0
    at_work: int = 0
    unsettled: int = 0
    foreign: int = 0
    findings: list[Finding] = field(default_factory=list)
    owner: Owner | None = None
    left: str | None = None
    """Why what was left half done was not finished, where there was any."""
    refused: str | None = None
    """Why orphans were not removed, where that was asked for."""
    error: str | None = None
    """Why it could not be audited."""

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong (any more)."""
        fits = not self.unsettled and all(finding.removed for finding in self.findings)
        return fits and self.error is None and self.owner != "another"


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
        lease_seconds: float,
        progress: Progress = lambda *_: None,
    ) -> None:
        """Objects younger than `grace_seconds` are nobody's orphans yet; who gives no sign of life for `lease_seconds`
        is at work on nothing."""
        self._database = database
        self._backend = backend
        self._marker = marker
        self._threads = threads
        self._temporary_dir = temporary_dir
        self._grace = timedelta(seconds=grace_seconds)
        self._lease_seconds = lease_seconds
        self._progress = progress
        self._report = Report(backend.name)
        self._own = 0
        self._young = 0
        self._half_done: set[UUID] = set()

    async def run(
        self, *, verify: bool = False, delete_orphans: bool = False, dry_run: bool = False, claimed: bool = False
    ) -> Report:
        """Compare both sides.

        `verify` reads every original and compares its hash. `delete_orphans` removes what nobody knows, where the
        storage is this catalogue's, it is no more than MOST_ORPHANS of what is there, and nothing of it is newer than
        all this catalogue knows, unless somebody said that this is right (`claimed`); with `dry_run` it is only said
        that it would be.
        """
        beats = await self._database.read(lambda catalogue: catalogue.beats())
        try:
            with (
                closing(ScratchDirectory(self._temporary_dir)) as scratch,
                closing(_Listing(scratch.path)) as listing,
            ):
                await self._list(listing)
                await self._look_for_orphans(listing)
                await self._look_for_missing(listing, verify=verify)
            await self._look_who_is_at_work(beats)
            self._report.owner = await self._marker.owner()
            if delete_orphans:
                await self._remove_orphans(claimed=claimed, dry_run=dry_run)
            if not dry_run:
                await self._mark()
                await self._put_down()
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
        known = await self._known([record.key for record in page])
        for record in page:
            if record.key.startswith(MARKERS):
                continue
            if parse_asset_key(record.key) is None and parse_incoming_key(record.key) is None:
                self._report.foreign += 1
                continue
            self._own += 1
            if record.key not in known:
                await self._look_for_its_age(record.key)

    async def _known(self, keys: Sequence[str]) -> set[str]:
        """Those of which some row of an asset or a ticket knows, at this very moment."""
        assets = {parsed.asset_id for key in keys if (parsed := parse_asset_key(key))}
        tickets = {ticket_id for key in keys if (ticket_id := parse_incoming_key(key))}
        storage = self._backend.name

        def look(catalogue: Repository) -> set[str]:
            open_tickets = catalogue.find_tickets(tickets).values() if tickets else ()
            incoming = {ticket.incoming for ticket in open_tickets if ticket.storage == storage}
            rows = catalogue.get_all_in_any_state(assets) if assets else {}
            return {key for key in keys if key in incoming or _belongs(key, rows, storage)}

        return await self._database.read(look)

    async def _look_for_its_age(self, key: str) -> None:
        """An object nobody knows is an orphan where it is there still, and old enough to be one."""
        try:
            stored = await self._backend.stat(key)
        except ObjectNotFound:
            return
        age = datetime.now(UTC) - stored.modified if stored.modified else timedelta.max
        if age >= self._grace:
            self._report.findings.append(Finding("orphan", key, stored.size))
        else:
            self._young += 1

    async def _remove_orphans(self, *, claimed: bool, dry_run: bool) -> None:
        report = self._report
        orphans = [(place, finding) for place, finding in enumerate(report.findings) if finding.problem == "orphan"]
        report.refused = await self._why_not([finding.key for _, finding in orphans], claimed=claimed)
        if report.refused is not None or dry_run:
            return
        known: set[int] = set()
        try:
            for done, (place, finding) in enumerate(orphans, 1):
                if await self._is_orphan(finding.key):
                    await self._backend.delete(finding.key)
                    report.findings[place] = replace(finding, removed=True)
                else:
                    known.add(place)
                self._progress("removing orphans", done, len(orphans))
        finally:
            report.findings = [finding for place, finding in enumerate(report.findings) if place not in known]

    async def _mark(self) -> None:
        """Note the run on the storage; one that is nobody's yet, and holds nothing else, becomes this catalogue's."""
        if self._report.owner == "this":
            await self._marker.advance()
        elif self._report.owner == "nobody":
            orphans = any(finding.problem == "orphan" for finding in self._report.findings)
            if not (orphans or self._young or self._report.unsettled):
                await self._marker.claim()

    async def _put_down(self) -> None:
        """Have metrics say what is wrong; without `verify`, nothing of what only that finds."""
        now = datetime.now(UTC)
        left = Counter(finding.problem for finding in self._report.findings if not finding.removed)
        outcome: JsonObject = {"ended_at": now.isoformat(), **{str(problem): count for problem, count in left.items()}}
        await self._database.write(lambda catalogue: catalogue.note_part(AUDIT, self._backend.name, now, outcome))

    async def _is_orphan(self, key: str) -> bool:
        """Whether nobody knows it at this very moment."""
        return not await self._known([key])

    async def _why_not(self, orphans: Sequence[str], *, claimed: bool) -> str | None:
        """Why orphans must not be removed; None where they may be."""
        if len(orphans) > MOST_ORPHANS * self._own:
            return (
                f"{len(orphans)} of {self._own} objects have no row, more than {MOST_ORPHANS:.0%}: "
                "it rather looks as if the catalogue had lost rows"
            )
        match self._report.owner:
            case "another":
                return NOT_OURS
            case "nobody":
                return (
                    "the storage has no marker yet, so its objects may be another catalogue's: a run that finds "
                    "nothing without a row sets one, and so does `--claim`"
                )
        newest = await self._database.read(lambda catalogue: catalogue.newest_id())
        newer = sum(newest is None or _id_in(key) > newest for key in orphans)
        if newer and not claimed:
            return (
                f"{newer} of {len(orphans)} orphans are newer than anything this catalogue knows (restored from a "
                "backup, or a copy?): `--claim` says that they are nobody's"
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
            self._half_done.add(record.id)
            return
        for key, size in _objects(record).items():
            listed = listing.size_of(key)
            if listed != size and (finding := await self._look_again(record, key, size)):
                self._report.findings.append(finding)
        if verify and (finding := await self._verify(record)):
            self._report.findings.append(finding)

    async def _look_who_is_at_work(self, before: dict[str, int]) -> None:
        """Tell rows that are being worked on from those that were left: who lives has beaten since `before`, or does
        within a lease's length."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._lease_seconds
        while True:
            unsettled, living = await self._database.read(partial(_at_work, ids=self._half_done, before=before))
            self._half_done &= unsettled.keys()
            self._report.at_work = sum(lease in living for lease in unsettled.values())
            self._report.unsettled = len(unsettled) - self._report.at_work
            if not self._report.unsettled or loop.time() > deadline:
                return
            await asyncio.sleep(self._lease_seconds / 20)

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


def _id_in(key: str) -> UUID:
    """The asset's id, or the ticket's: both are in the order of time."""
    parsed = parse_asset_key(key)
    found = parsed.asset_id if parsed is not None else parse_incoming_key(key)
    if found is None:
        raise ValueError(key)
    return found


def _page_after(catalogue: Repository, *, storage: str, after: UUID | None) -> tuple[AssetRecord, ...]:
    return catalogue.page_of_storage(storage, after=after, limit=_PAGE)


def _at_work(catalogue: Repository, *, ids: set[UUID], before: dict[str, int]) -> tuple[dict[UUID, str], set[str]]:
    """The lease (or nothing) each row that is still unsettled is under, and the leases that have beaten since."""
    unsettled: dict[UUID, str] = {}
    remaining = list(ids)
    for start in range(0, len(remaining), _PAGE):
        rows = catalogue.get_all_in_any_state(remaining[start : start + _PAGE]).values()
        unsettled |= {row.id: (row.lease or "").partition("/")[0] for row in rows if row.state is not AssetState.READY}
    return unsettled, {lease for lease, beat in catalogue.beats().items() if before.get(lease) != beat}


def _objects(record: AssetRecord) -> dict[str, int]:
    """The keys under which there must be an object, and its size in bytes."""
    return {original_key(record): record.size_bytes} | {
        variant_key(record, variant): variant.size_bytes for variant in record.made_variants
    }


def _belongs(key: str, rows: Mapping[UUID, AssetRecord], storage: str) -> bool:
    """Whether an object of that key is a row's to look after: at either visibility while somebody is at work on it, and
    at both storages of a move."""
    parsed = parse_asset_key(key)
    row = rows.get(parsed.asset_id) if parsed is not None else None
    if row is None or storage not in {row.storage, row.settled_at}:
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
