"""Removing what is to go: assets that have expired, that are too old, or that are too much for their storage.

Pinned ones never go. Each goes the way it would if its owner deleted it: the row is `deleting` under a claim, the bytes
follow, then the row; killed in between, it is finished by `maintenance.reconcile`. Nothing is ever in memory but a
batch of each storage.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal
from uuid import UUID

from smart_assets import observability
from smart_assets.assets.lease import Lease
from smart_assets.assets.library import RETENTION
from smart_assets.assets.objects import first_id_at
from smart_assets.assets.settling import Settling, names
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, JobRun
from smart_assets.catalogue.repository import Repository, StorageTotals
from smart_assets.errors import Busy, SmartAssetsError
from smart_assets.maintenance.marker import Marker
from smart_assets.settings import RetentionSettings
from smart_assets.storage.errors import StorageError, StorageNotConfigured
from smart_assets.storage.registry import Storages

logger = logging.getLogger(__name__)

AT_ONCE: Final = 8
"""Assets of a storage that are removed at a time."""

FAILURES_IN_A_ROW: Final = 10
"""After so many that could not be removed a storage is left alone until the next run."""

FAMILIAR: Final = timedelta(days=7)
"""As long as a run is no farther from the last one than this, the clock is taken for right."""

_FIRST_RUN_SECONDS: Final = 60
_LOG_SECONDS: Final = 60
_NOT_OURS: Final = (
    "its marker names another catalogue, or a later state of this one (restored from a backup, or a copy?): nothing of "
    "it is removed; `smart-assets reconcile --claim` makes the storage this catalogue's"
)


_Pages = Callable[[Repository, AssetRecord | None], Sequence[AssetRecord]]
"""What comes behind an asset, or first."""


class Reason(StrEnum):
    """Why an asset goes; of several reasons, the first."""

    EXPIRED = "expired"
    AGE = "age"
    SIZE = "size"


@dataclass
class Removal:
    """What went of a storage for a reason, or would have, in a dry run.

    `failed` could not be removed now: if their bytes are owed, they are gone for callers, and counted in `stats`.
    `changed` were somebody else's just then, and are left to the next run. `refused`: why none of them went.
    """

    reason: Reason
    assets: int = 0
    bytes: int = 0
    failed: int = 0
    changed: int = 0
    refused: str | None = None


@dataclass
class StorageReport:
    """What went of a storage; `error` is why the rest did not, or would not.

    `over_bytes` is by how much it still holds more than it may: what is left is pinned, or at work.
    """

    storage: str
    removals: list[Removal] = field(default_factory=list)
    over_bytes: int = 0
    error: str | None = None

    @property
    def is_worth_telling(self) -> bool:
        """Whether anything was to go."""
        return bool(self.removals or self.over_bytes or self.error)


@dataclass
class Report:
    """What a run did, or would have done; `storages` names those of which something was to go."""

    dry_run: bool
    started_at: datetime
    finished_at: datetime | None = None
    storages: list[StorageReport] = field(default_factory=list)

    @property
    def removals(self) -> Iterable[Removal]:
        """Of all storages."""
        return (removal for storage in self.storages for removal in storage.removals)

    @property
    def assets(self) -> int:
        """How many went."""
        return sum(removal.assets for removal in self.removals if not removal.refused)

    @property
    def bytes(self) -> int:
        """How much went, originals and sizes."""
        return sum(removal.bytes for removal in self.removals if not removal.refused)

    @property
    def failed(self) -> int:
        """How many could not be removed."""
        return sum(removal.failed for removal in self.removals)

    @property
    def result(self) -> Literal["done", "incomplete"]:
        """`done` where everything that was to go went."""
        stayed = any(removal.failed or removal.refused for removal in self.removals)
        return "incomplete" if stayed or any(storage.error for storage in self.storages) else "done"

    def summary(self) -> dict[str, Any]:
        """What is remembered of it."""
        return {"result": self.result, "assets": self.assets, "bytes": self.bytes, "failed": self.failed}

    def to_json(self) -> dict[str, Any]:
        """All of it, for machines; times in RFC 3339."""
        return {
            "dry_run": self.dry_run,
            "started_at": _rfc3339(self.started_at),
            "finished_at": self.finished_at and _rfc3339(self.finished_at),
            **self.summary(),
            "storages": [asdict(storage) for storage in self.storages],
        }


Progress = Callable[[str, Removal], None]
"""Told after each batch how far a storage's removal has come."""


@dataclass(frozen=True)
class _Means:
    settings: RetentionSettings
    database: Database
    storages: Storages
    lease: Lease
    settling: Settling
    serves: bool


class Retention:
    """The job that carries the rules out."""

    def __init__(
        self,
        settings: RetentionSettings,
        database: Database,
        storages: Storages,
        lease: Lease,
        settling: Settling,
        *,
        serves: bool = True,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """A tool's, which does not serve, leaves storages alone that live in the service's process."""
        self._means = _Means(settings, database, storages, lease, settling, serves)
        self._settings = settings
        self._database = database
        self._now = now

    async def run(
        self, *, dry_run: bool = False, confirm: bool = False, progress: Progress = lambda _storage, _removal: None
    ) -> Report:
        """Remove what is to go; with `dry_run` only find out what that is. `confirm`: the clock is right, go on.

        Raises Busy while another process, or task, is at it. What is wrong with a storage is in the report.
        """
        if dry_run:
            clock = _Clock(await self._last(), confirmed=confirm)
            return await self._carry_out(Report(dry_run=True, started_at=self._now()), clock, progress)
        report = await self._run_alone(lambda _last: True, confirm=confirm, progress=progress)
        if report is None:
            raise Busy("retention is under way already; try again when it has ended", retry_after=30)
        return report

    async def run_periodically(self) -> None:
        """Remove what is to go, soon after the start and then ever again, until cancelled.

        Of all processes one does so each time. Nothing at all is done where there is no rule and nothing expires.
        """
        interval = self._settings.interval_seconds
        # Not all processes at once, where several were started together.
        await asyncio.sleep(min(interval, _FIRST_RUN_SECONDS) * random.SystemRandom().uniform(0.25, 1))
        while True:
            try:
                await self.run_if_due()
            except Exception:
                observability.BACKGROUND_FAILURES.labels(RETENTION).inc()
                logger.exception("background work failed", extra={"task": RETENTION})
            await asyncio.sleep(interval * random.SystemRandom().uniform(0.95, 1.05))

    async def run_if_due(self) -> Report | None:
        """Remove what is to go, unless nothing ever is, or somebody does so now or has within the interval."""
        if self._settings.has_rules or await self._database.read(Repository.anything_expires):
            return await self._run_alone(self._is_due)
        return None

    def _is_due(self, last: JobRun | None) -> bool:
        """Whether the last run is an interval ago, or was killed, or lies in the future: then the clock was wrong."""
        if last is None or last.finished_at is None:
            return True
        since = (self._now() - last.started_at).total_seconds()
        return not 0 <= since < 0.9 * self._settings.interval_seconds

    async def _last(self) -> JobRun | None:
        return await self._database.read(lambda catalogue: catalogue.last_run(RETENTION))

    async def _run_alone(
        self,
        is_due: Callable[[JobRun | None], bool],
        *,
        confirm: bool = False,
        progress: Progress = lambda _storage, _removal: None,
    ) -> Report | None:
        """A run that removes, put down when it begins and when it ends; None where it is not due, or another's turn."""
        async with self._database.job(RETENTION) as mine:
            last = await self._last() if mine else None
            if not mine or not is_due(last):
                return None
            report = Report(dry_run=False, started_at=self._now())
            clock = _Clock(last, confirmed=confirm)
            begun = JobRun(RETENTION, report.started_at, None, clock.to_json())
            await self._database.write(lambda catalogue: catalogue.note_run(begun))
            await self._carry_out(report, clock, progress)
            ended = replace(begun, finished_at=report.finished_at, outcome=clock.to_json() | report.summary())
            await self._database.write(lambda catalogue: catalogue.note_run(ended))
            if report.assets or report.result != "done":
                logger.info("retention has run", extra=report.summary())
            return report

    async def _carry_out(self, report: Report, clock: _Clock, progress: Progress) -> Report:
        """Look after the storages side by side: one that is slow keeps no other waiting."""
        totals = await self._database.read(lambda catalogue: catalogue.totals())
        sweeps = [_Sweep(self._means, each, report, clock, progress) for each in totals if each.assets]
        async with asyncio.TaskGroup() as group:
            for sweep in sweeps:
                group.create_task(sweep.run())
        report.storages = [sweep.report for sweep in sweeps if sweep.report.is_worth_telling]
        report.finished_at = self._now()
        clock.look_back(report, judged=all(sweep.is_judged for sweep in sweeps))
        return report


class _Clock:
    """How far the clock is trusted: in everything, as long as it goes on from where it was at the last run."""

    def __init__(self, last: JobRun | None, *, confirmed: bool) -> None:
        """`last` is the run before; `confirmed`: somebody says that the clock is right."""
        known = ((last.outcome if last else None) or {}).get("clock")
        self._known = datetime.fromisoformat(known) if known else None
        self._confirmed = confirmed

    def is_doubtful(self, reason: Reason, now: datetime) -> bool:
        """Whether too much must not go for that reason. What expires was given its end by its owner, so the very
        first run believes it."""
        if self._confirmed or reason is Reason.SIZE:
            return False
        return reason is Reason.AGE if self._known is None else abs(now - self._known) > FAMILIAR

    def look_back(self, report: Report, *, judged: bool) -> None:
        """Trust the clock from here on, unless a run that would not have was not carried out, or not looked at."""
        now = report.started_at
        doubtful = any(self.is_doubtful(reason, now) for reason in Reason)
        if not doubtful or (judged and not any(removal.refused for removal in report.removals)):
            self._known = now

    def to_json(self) -> dict[str, Any]:
        """For the next run."""
        return {"clock": self._known and self._known.isoformat()}


class _Sweep:
    """A run over one storage."""

    def __init__(self, means: _Means, totals: StorageTotals, report: Report, clock: _Clock, progress: Progress) -> None:
        self.report = StorageReport(totals.storage)
        self.is_judged = False
        self._means = means
        self._name = totals.storage
        self._assets = totals.assets
        self._dry_run = report.dry_run
        self._now = report.started_at
        self._clock = clock
        self._progress = progress
        days = means.settings.days
        self._cutoff = None if days is None else first_id_at(self._now - timedelta(days=days))
        self._refused: dict[Reason, str] = {}
        self._is_usable: bool | None = None
        self._failures = 0
        self._logged = time.monotonic()

    async def run(self) -> None:
        """Carry out one rule after the other. Never raises."""
        try:
            await self._judge()
            await self._remove_expired()
            await self._remove_old()
            await self._remove_what_is_too_much()
        except _LeftAlone:
            pass
        except Exception as error:
            observability.BACKGROUND_FAILURES.labels(RETENTION).inc()
            logger.exception("retention failed at a storage", extra={"storage": self._name})
            self.report.error = error.detail if isinstance(error, SmartAssetsError) else "something went wrong"
        if self.report.error is not None:
            logger.warning("retention is held up", extra={"storage": self._name, "why": self.report.error})

    # ── The clock ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _judge(self) -> None:
        """Refuse what a clock that may be wrong would have removed, where that is more than half of the storage."""
        half = self._assets // 2
        now, cutoff, name = self._now, self._cutoff, self._name

        def too_many(catalogue: Repository) -> list[Reason]:
            found = []
            if (
                self._clock.is_doubtful(Reason.EXPIRED, now)
                and catalogue.count_expired(name, now, at_most=half + 1) > half
            ):
                found.append(Reason.EXPIRED)
            if (
                cutoff is not None
                and self._clock.is_doubtful(Reason.AGE, now)
                and catalogue.count_older(name, cutoff, at_most=half + 1) > half
            ):
                found.append(Reason.AGE)
            return found

        for reason in await self._means.database.read(too_many):
            self._refused[reason] = (
                f"by the clock ({_rfc3339(now)}) more than half of the assets would go, and no run of the last "
                f"{FAMILIAR.days} days vouches for it: see what would go by a dry run, then confirm it"
            )
            if not self._dry_run:
                observability.BACKGROUND_FAILURES.labels(RETENTION).inc()
                logger.error(
                    "retention was refused",
                    extra={"storage": name, "reason": reason.value, "why": self._refused[reason]},
                )
        self.is_judged = True

    # ── The rules ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _remove_expired(self) -> None:
        def page(catalogue: Repository, last: AssetRecord | None) -> Sequence[AssetRecord]:
            after = (last.expires_at, last.id) if last is not None and last.expires_at is not None else None
            return catalogue.expired(self._name, self._now, after=after, limit=self._means.settings.batch)

        await self._remove_all(Reason.EXPIRED, page)

    async def _remove_old(self) -> None:
        if self._cutoff is not None:
            await self._remove_all(Reason.AGE, self._oldest_before(self._cutoff))

    def _oldest_before(self, before: UUID | None) -> _Pages:
        def page(catalogue: Repository, last: AssetRecord | None) -> Sequence[AssetRecord]:
            after = last.id if last is not None else None
            return catalogue.oldest(self._name, before=before, after=after, limit=self._means.settings.batch)

        return page

    async def _remove_all(self, reason: Reason, pages: _Pages) -> None:
        """Remove whatever the pages hold, but for what goes for an earlier reason."""
        removal = Removal(reason, refused=self._refused.get(reason))
        if removal.refused and not self._dry_run:
            self.report.removals.append(removal)
            return
        last = None
        while page := await self._page(pages, last):
            last = page[-1]
            await self._remove([record for record in page if not self._goes_before(record, reason)], removal)
        self._note(removal)

    async def _remove_what_is_too_much(self) -> None:
        """Remove the oldest until the storage holds no more than it may."""
        limit = self._means.settings.max_size_of(self._name)
        if limit is None:
            return
        removal = Removal(Reason.SIZE)
        pages = self._oldest_before(None)
        last = None
        while (excess := await self._bytes(removal) - limit) > 0 and (page := await self._page(pages, last)):
            chosen = []
            for last in page:
                if not self._goes_before(last, Reason.SIZE):
                    chosen.append(last)
                    excess -= last.total_bytes
                if excess <= 0:
                    break
            await self._remove(chosen, removal)
        self.report.over_bytes = max(0, excess)
        self._note(removal)

    async def _page(self, pages: _Pages, last: AssetRecord | None) -> Sequence[AssetRecord]:
        return await self._means.database.read(lambda catalogue: pages(catalogue, last))

    async def _bytes(self, removal: Removal) -> int:
        """What the storage holds; in a dry run, what it would by now."""
        there = await self._means.database.read(lambda catalogue: catalogue.bytes_of(self._name))
        if not self._dry_run:
            return there
        return there - sum(each.bytes for each in (*self.report.removals, removal) if not each.refused)

    def _goes_before(self, record: AssetRecord, reason: Reason) -> bool:
        """Whether an asset goes for a reason that comes before this one."""
        if reason is Reason.EXPIRED:
            return False
        if Reason.EXPIRED not in self._refused and record.expires_at is not None and record.expires_at <= self._now:
            return True
        if reason is Reason.AGE or Reason.AGE in self._refused:
            return False
        return self._cutoff is not None and record.id < self._cutoff

    def _note(self, removal: Removal) -> None:
        if removal != Removal(removal.reason):
            self.report.removals.append(removal)

    # ── Removing ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _remove(self, records: Sequence[AssetRecord], removal: Removal) -> None:
        """Remove a batch, some at a time. Raises _LeftAlone where the storage is not to be touched (any more)."""
        if not records:
            return
        if not await self._usable() and not self._dry_run:
            raise _LeftAlone
        if self._dry_run:
            removal.assets += len(records)
            removal.bytes += sum(record.total_bytes for record in records)
        else:
            await self._remove_side_by_side(records, removal)
        self._progress(self._name, removal)
        if time.monotonic() - self._logged > _LOG_SECONDS:
            self._logged = time.monotonic()
            logger.info("retention is at work", extra={"storage": self._name, **asdict(removal)})

    async def _remove_side_by_side(self, records: Sequence[AssetRecord], removal: Removal) -> None:
        waiting = iter(records)

        async def take_turns() -> None:
            for record in waiting:
                if self._failures < FAILURES_IN_A_ROW:
                    await self._remove_one(record, removal)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_ONCE, len(records))):
                group.create_task(take_turns())
        if self._failures >= FAILURES_IN_A_ROW:
            self.report.error = f"it refused {self._failures} deletions in a row: the rest waits for the next run"
            self._note(removal)
            raise _LeftAlone

    async def _remove_one(self, record: AssetRecord, removal: Removal) -> None:
        """Remove an asset, if it still is what it was when it was listed. Never raises."""
        labels = (self._name, removal.reason.value)
        try:
            with self._means.lease.claim() as claim:
                deleting = await self._means.database.write(
                    lambda catalogue: catalogue.begin_deleting(record.id, claim, version=record.version)
                )
                if deleting is None:
                    removal.changed += 1
                    return
                gone = await self._means.settling.finish_deleting(deleting)
        except Exception as error:  # noqa: BLE001 - one asset must not keep the others
            observability.BACKGROUND_FAILURES.labels(RETENTION).inc()
            logger.warning("could not remove an asset", extra={**names(record), "error": repr(error)})
            gone = False
        if gone:
            self._failures = 0
            removal.assets += 1
            removal.bytes += record.total_bytes
            observability.RETENTION_ASSETS.labels(*labels).inc()
            observability.RETENTION_BYTES.labels(*labels).inc(record.total_bytes)
        else:
            self._failures += 1
            removal.failed += 1
            observability.RETENTION_FAILURES.labels(*labels).inc()

    async def _usable(self) -> bool:
        """Whether the storage may be tidied up by this catalogue, from this process; asked once, when it matters."""
        if self._is_usable is None:
            self.report.error = await self._objection()
            self._is_usable = self.report.error is None
        return self._is_usable

    async def _objection(self) -> str | None:
        try:
            backend = self._means.storages.get(self._name)
            if not backend.capabilities.one_process:
                owner = await Marker(self._means.database, backend).owner()
                return _NOT_OURS if owner == "another" else None
            return None if self._means.serves else "only the service itself can: it lives in its process"
        except StorageNotConfigured as error:
            return error.detail
        except StorageError as error:
            return f"it cannot be asked whose it is: {error.detail}"


class _LeftAlone(Exception):
    """The storage is not to be touched, or not any more, in this run; the report says why."""


def _rfc3339(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
