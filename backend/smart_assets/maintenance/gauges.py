"""How the service is at this moment: what metrics say of the catalogue and the disk, looked up at each scrape.

It is the same for every process and every replica over one catalogue: whoever adds it up counts it twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version

from prometheus_client.core import GaugeMetricFamily, Metric

from smart_assets import observability, threads
from smart_assets.assets.library import RETENTION
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetState, JobRun
from smart_assets.catalogue.repository import Repository, StorageTotals
from smart_assets.errors import SmartAssetsError
from smart_assets.maintenance.audit import AUDIT, PROBLEMS
from smart_assets.settings import Settings

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 3
"""How long a scrape waits for the catalogue; a scraper waits ten for all of it."""

_SAMPLE_SECONDS = 1
_UNSETTLED = [state for state in AssetState if state is not AssetState.READY]


@dataclass(frozen=True)
class _Catalogue:
    totals: tuple[StorageTotals, ...]
    unsettled: Mapping[tuple[str, AssetState], int]
    retention: JobRun | None
    audit: JobRun | None


def _look(catalogue: Repository) -> _Catalogue:
    return _Catalogue(
        catalogue.totals(), catalogue.count_unsettled(), catalogue.last_run(RETENTION), catalogue.last_run(AUDIT)
    )


class Gauges:
    """What is looked up for a scrape. Close it when done."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._looking: asyncio.Task[_Catalogue] | None = None

    async def now(self) -> list[Metric]:
        """The families of metrics; those of a catalogue that does not answer are left out, and told by one of them."""
        observability.hand_on()
        families = self._of_the_machine()
        found = await self._catalogue()
        families.append(
            _gauge("smart_assets_catalogue_up", "Whether the catalogue answers.", {(): int(found is not None)})
        )
        return families + (_of_the_catalogue(found) if found is not None else [])

    async def close(self) -> None:
        """Wait for what is still being looked up."""
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError, SmartAssetsError):
                await self._looking

    async def _catalogue(self) -> _Catalogue | None:
        # One look at a time: scrapes of a catalogue that hangs must not take up all its connections.
        if self._looking is None:
            self._looking = asyncio.create_task(self._database.read(_look))
        looking = self._looking
        await asyncio.wait({looking}, timeout=_LOOK_SECONDS)
        if not looking.done():
            return None
        self._looking = None
        try:
            return looking.result()
        except SmartAssetsError:  # logged where it was met
            return None

    def _of_the_machine(self) -> list[Metric]:
        families = [
            _gauge("smart_assets_build_info", "The version that runs.", {(version("smart-assets"),): 1}, "version"),
            _gauge(
                "smart_assets_render_memory_limit_bytes",
                "Memory all images in work may take together, in all processes over one data directory.",
                {(): self._settings.imaging.memory_budget_bytes},
            ),
        ]
        with suppress(OSError):  # it is gone: the catalogue says so
            disk = os.statvfs(self._settings.data_dir)
            families.append(
                _gauge(
                    "smart_assets_data_dir_free_bytes",
                    "Room left in the data directory.",
                    {(): disk.f_bavail * disk.f_frsize},
                )
            )
        return families


async def keep_current() -> None:
    """Hand on every second what was counted, and how many wait in this process's queues, until cancelled.

    Queues are looked at, not counted where they wait: that would cost each call more than the whole of this does.
    """
    try:
        while True:
            observability.hand_on()
            for name, length in threads.waiting().items():
                observability.QUEUED.labels(name).set(length)
            await asyncio.sleep(_SAMPLE_SECONDS)
    finally:
        observability.hand_on()
        for name in threads.waiting():
            observability.QUEUED.labels(name).set(0)


def _of_the_catalogue(found: _Catalogue) -> list[Metric]:
    storages = {totals.storage for totals in found.totals} | {storage for storage, _ in found.unsettled}
    families = [
        _gauge(
            "smart_assets_assets",
            "Assets there are.",
            {(totals.storage,): totals.assets for totals in found.totals},
            "storage",
        ),
        _gauge(
            "smart_assets_stored_bytes",
            "Bytes of originals and sizes together.",
            {(totals.storage,): totals.bytes for totals in found.totals},
            "storage",
        ),
        _gauge(
            "smart_assets_unsettled_assets",
            "Assets in the middle of an upload, a move or change, or a deletion: under way, or owed.",
            {
                (storage, state): found.unsettled.get((storage, state), 0)
                for storage in sorted(storages)
                for state in _UNSETTLED
            },
            "storage",
            "state",
        ),
    ]
    if found.retention is not None and found.retention.finished_at is not None:
        outcome = found.retention.outcome or {}
        families += [
            _gauge(
                "smart_assets_retention_timestamp_seconds",
                "When retention last ended.",
                {(): found.retention.finished_at.timestamp()},
            ),
            _gauge(
                "smart_assets_retention_complete",
                "Whether it did all it was to do.",
                {(): int(outcome.get("result") == "done")},
            ),
        ]
    if found.audit is not None:
        families += _of_the_audits(found.audit.outcome or {})
    return families


def _of_the_audits(audits: Mapping[str, Mapping[str, object]]) -> list[Metric]:
    found: dict[tuple[str, ...], float] = {}
    ended: dict[tuple[str, ...], float] = {}
    for storage, audit in sorted(audits.items()):
        ended[(storage,)] = datetime.fromisoformat(str(audit["ended_at"])).timestamp()
        for problem in PROBLEMS:
            found[(storage, problem)] = float(str(audit.get(problem, 0)))
    return [
        _gauge(
            "smart_assets_audit_findings",
            "What the last `smart-assets reconcile` found wrong and left: orphans, and what assets lack.",
            found,
            "storage",
            "problem",
        ),
        _gauge("smart_assets_audit_timestamp_seconds", "When that was.", ended, "storage"),
    ]


def _gauge(name: str, help_text: str, values: Mapping[tuple[str, ...], float], *labels: str) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for of, value in values.items():
        family.add_metric(of, value)
    return family
