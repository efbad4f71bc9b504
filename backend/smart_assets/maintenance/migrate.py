"""Moving many assets from one storage to another, each as `assets.moving` moves one.

A page at a time, in the order of their ids; several side by side. What was moved is not found at the old storage any
more, so a run that was broken off, however it was, is gone on with by running it again: there is no list of what is
done, and none that could be wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

from smart_assets.assets.moving import Moving, unfit
from smart_assets.assets.objects import first_id_at
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord
from smart_assets.catalogue.repository import AssetFilter, Repository
from smart_assets.errors import AssetBusy, AssetNotFound, ConfigurationError, SmartAssetsError
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import Unsupported
from smart_assets.visibility import Visibility

PAGE: Final = 200

MOST_IN_A_ROW: Final = 50
"""After so many failures without a success between them it gives up: what is wrong is not wrong with an asset."""

MOST_LISTED: Final = 10_000
"""So many failures are listed; the rest are counted."""

_LOOK_SECONDS: Final = 0.2


@dataclass(frozen=True)
class Which:
    """Which of a storage's assets: those that meet every criterion given. Times are of creation."""

    visibility: Visibility | None = None
    tag: str | None = None
    before: datetime | None = None
    after: datetime | None = None

    @classmethod
    def parse(cls, criteria: Sequence[str]) -> Which:
        """From `name=value`, each name at most once. A date without a time is its midnight in UTC.

        ConfigurationError says what cannot be read.
        """
        given: dict[str, Any] = {}
        for criterion in criteria:
            name, equals, value = criterion.partition("=")
            if not (equals and value) or name not in _READERS:
                raise ConfigurationError(f"--where {criterion}: give one of {', '.join(f'{n}=…' for n in _READERS)}")
            if name in given:
                raise ConfigurationError(f"--where {criterion}: {name} was given before")
            try:
                given[name] = _READERS[name](value)
            except ValueError:
                raise ConfigurationError(f"--where {criterion}: {value!r} cannot be read; {_FORMS[name]}") from None
        return cls(**given)

    def filter(self, storage: str) -> AssetFilter:
        """As the library's, but for `before`."""
        since = first_id_at(self.after) if self.after is not None else None
        return AssetFilter(storage=storage, visibility=self.visibility, tag=self.tag, since=since)

    @property
    def end(self) -> UUID | None:
        """The first id that is too young."""
        return first_id_at(self.before) if self.before is not None else None

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return self == Which()


def _moment(text: str) -> datetime:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise
        return moment
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


_READERS: dict[str, Callable[[str], Any]] = {
    "visibility": Visibility,
    "tag": str,
    "before": _moment,
    "after": _moment,
}
_DATE = "write 2026-01-31, or 2026-01-31T10:00:00Z"
_FORMS = {"visibility": "public or private", "before": _DATE, "after": _DATE}


@dataclass(frozen=True)
class Failure:
    """An asset that stayed where it was, and why."""

    id: str
    code: str
    detail: str


@dataclass
class Report:
    """What came of a run; `bytes` of originals and variants together, `seconds` it took.

    `owed` counts the assets of the target that may still have copies at the source, which are sure to be removed.
    """

    source: str
    target: str
    dry_run: bool
    found: int = 0
    found_bytes: int = 0
    moved: int = 0
    moved_bytes: int = 0
    failed: int = 0
    owed: int = 0
    seconds: float = 0
    stopped: str | None = None
    """Why it ended before the last asset, where it did."""
    failures: list[Failure] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be done: for a dry run, whether all of it could be."""
        return not (self.failed or self.owed or self.stopped)


class Migration:
    """One run from `source` to `target`."""

    def __init__(
        self,
        database: Database,
        source: str,
        target: StorageBackend,
        which: Which,
        *,
        progress: Callable[[Report], None] = lambda _: None,
    ) -> None:
        """`progress` is told whenever something has come of an asset."""
        self._database = database
        self._target = target
        self._which = which
        self._progress = progress
        self._stop = asyncio.Event()
        self._later: list[AssetRecord] = []
        self._in_a_row = 0
        self.report = Report(source, target.name, dry_run=False)

    def stop(self, why: str) -> None:
        """Begin with no further asset; those that are being moved are moved."""
        self.report.stopped = self.report.stopped or why
        self._stop.set()

    async def count(self) -> None:
        """Fill in what there is to do. Without criteria by the totals that are kept, else page by page."""
        report = self.report
        if self._which.is_all:
            totals = await self._database.read(lambda catalogue: catalogue.totals())
            for of in totals:
                if of.storage == report.source:
                    report.found, report.found_bytes = of.assets, of.bytes
            return
        async for record in self._records():
            report.found += 1
            report.found_bytes += record.total_bytes

    async def look(self) -> Report:
        """A dry run: what would be moved, and what the target would not take. Changes nothing."""
        self.report.dry_run = True
        async for record in self._records():
            self.report.found += 1
            self.report.found_bytes += record.total_bytes
            if why_not := unfit(record, self._target):
                self._note_failure(record, Unsupported(why_not))
            self._progress(self.report)
        return self.report

    async def run(self, moving: Moving, *, concurrency: int, patience_seconds: float) -> Report:
        """Move them, so many side by side.

        Assets that somebody else is at work on are tried again at the end, for up to `patience_seconds`; so long, too,
        it is waited for old copies to go that this run, or one before it, still owes.
        """
        began = time.monotonic()
        records, turn = self._records(), asyncio.Lock()
        workers = [self._work(moving, records, turn) for _ in range(concurrency)]
        # None of them is cancelled for another's sake: what is being moved is moved.
        errors = [result for result in await asyncio.gather(*workers, return_exceptions=True) if result is not None]
        if errors:
            raise errors[0]
        deadline = time.monotonic() + patience_seconds
        await self._try_again(moving, deadline)
        await self._wait_for_what_is_owed(deadline)
        self.report.seconds = time.monotonic() - began
        return self.report

    async def _records(self) -> AsyncGenerator[AssetRecord, None]:
        criteria, end = self._which.filter(self.report.source), self._which.end
        after: UUID | None = None
        while not self._stop.is_set():
            page = await self._database.read(partial(_page, criteria=criteria, after=after))
            for record in page:
                if end is not None and record.id >= end:
                    return
                yield record
            if len(page) < PAGE:
                return
            after = page[-1].id

    async def _work(self, moving: Moving, records: AsyncGenerator[AssetRecord, None], turn: asyncio.Lock) -> None:
        try:
            while not self._stop.is_set():
                async with turn:
                    record = await anext(records, None)
                if record is None:
                    return
                if not await self._move(moving, record):
                    self._later.append(record)
        except BaseException:
            self._stop.set()
            raise

    async def _move(self, moving: Moving, record: AssetRecord, *, last_try: bool = False) -> bool:
        """Whether something has come of it: False where another is at work on the asset, unless it is the last try."""
        report = self.report
        try:
            moved = await moving.move(record.id, None, report.target)
        except AssetNotFound:
            report.found -= 1  # deleted meanwhile
            report.found_bytes -= record.total_bytes
        except AssetBusy as error:
            if not last_try:
                return False
            self._note_failure(record, error)
        except SmartAssetsError as error:
            self._note_failure(record, error)
            self._in_a_row += 1
            if self._in_a_row == MOST_IN_A_ROW:
                self.stop(f"{MOST_IN_A_ROW} assets in a row could not be moved")
        else:
            self._in_a_row = 0
            report.moved += 1
            report.moved_bytes += moved.total_bytes
        self._progress(report)
        return True

    async def _try_again(self, moving: Moving, deadline: float) -> None:
        while self._later and not self._stop.is_set():
            await self._pause()
            records, self._later = self._later, []
            last_try = time.monotonic() >= deadline
            self._later = [record for record in records if not await self._move(moving, record, last_try=last_try)]

    async def _wait_for_what_is_owed(self, deadline: float) -> None:
        report = self.report
        while True:
            report.owed = await self._database.read(
                lambda catalogue: catalogue.count_moves(storage=report.target, other=report.source)
            )
            if not report.owed or self._stop.is_set() or time.monotonic() >= deadline:
                return
            await self._pause()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), _LOOK_SECONDS)

    def _note_failure(self, record: AssetRecord, error: SmartAssetsError) -> None:
        self.report.failed += 1
        if len(self.report.failures) < MOST_LISTED:
            self.report.failures.append(Failure(str(record.id), error.code, error.detail))


def _page(catalogue: Repository, *, criteria: AssetFilter, after: UUID | None) -> tuple[AssetRecord, ...]:
    return catalogue.list(criteria, limit=PAGE, after=after, newest_first=False)
