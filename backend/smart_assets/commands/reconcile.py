"""`smart-assets reconcile`: audits of the storages, one after the other, with a progress bar and a report."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from smart_assets.commands.progress import on_stderr
from smart_assets.errors import ConfigurationError
from smart_assets.maintenance.audit import Audit, Report
from smart_assets.maintenance.marker import NOT_OURS, Marker
from smart_assets.maintenance.report import Difference, as_json, print_tables
from smart_assets.observability import configure_logging
from smart_assets.runtime import Sight, looking, running
from smart_assets.settings import Settings
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import StorageError, StorageNotConfigured
from smart_assets.storage.factory import storage_names

LEASES_TO_WAIT = 2.5
"""How many lengths of a lease to wait for what the dead left: one until they are known to be, the rest to do it."""


@dataclass(frozen=True)
class Wishes:
    """What is asked for; `storages` None means every one that is configured."""

    storages: Sequence[str] | None = None
    dry_run: bool = False
    verify: bool = False
    delete_orphans: bool = False
    claim: bool = False


def tidy_up(settings: Settings, wishes: Wishes, *, json: bool) -> bool:
    """Audit, and say what was found on standard output; whether all is right. Progress goes to standard error.

    Raises SmartAssetsError where it could not look, and OSError where it could not say what it saw.
    """
    # What goes wrong is said once, by whoever hears the error.
    configure_logging("critical", settings.log_format)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with on_stderr(*columns) as progress:
        reports, differences = asyncio.run(_tidy_up(settings, wishes, progress))
    if json:
        typer.echo(as_json(reports, differences))
    else:
        print_tables(reports, differences, sys.stdout)
    sys.stdout.flush()
    return all(report.is_right for report in reports) and not differences


async def _tidy_up(settings: Settings, wishes: Wishes, progress: Progress) -> tuple[list[Report], Sequence[Difference]]:
    async with looking(settings, read_only=wishes.dry_run) as sight:
        backends, unreachable = await _chosen(sight, wishes)
        if wishes.claim and not wishes.dry_run:
            for backend in backends:
                await Marker(sight.database, backend).claim()
        left = None if wishes.dry_run else await _finish_what_was_left(sight, backends, progress)
        reports = [await _audit(sight, backend, wishes, progress) for backend in backends]
        for report in reports:
            report.left = left if report.unsettled else None
        differences = await sight.database.read(lambda catalogue: catalogue.accounts_that_differ())
        return reports + unreachable, differences


async def _chosen(sight: Sight, wishes: Wishes) -> tuple[list[StorageBackend], list[Report]]:
    """The storages to look at; and of those that rows name and no setting does, what there is to say of them."""
    rows = await sight.database.read(lambda catalogue: catalogue.count_by_storage())
    backends, unreachable = [], []
    for name in dict.fromkeys(wishes.storages or (*storage_names(sight.settings), *rows)):
        try:
            backend = sight.storages.get(name)
        except StorageNotConfigured as error:
            if wishes.storages:
                raise
            if name in rows:
                unreachable.append(Report(name, assets=rows[name], error=error.detail))
            continue
        if backend.capabilities.lasting:
            backends.append(backend)
        elif wishes.storages:
            raise ConfigurationError(f"the storage {name} keeps nothing that could be looked at from here")
    return backends, unreachable


async def _finish_what_was_left(sight: Sight, backends: Sequence[StorageBackend], progress: Progress) -> str | None:
    """Finish what dead processes left; what living ones are at work on is theirs. Why that was not done, if it was not.

    To finish an upload is to remove its bytes, and a copy of the catalogue may show one half done that was confirmed
    since. So nothing is, unless each storage that would be touched says that it is this catalogue's, as it is now.
    """
    if not await _unsettled(sight, {backend.name for backend in backends}):
        return None
    for name in await sight.database.read(lambda catalogue: catalogue.count_by_storage(unsettled=True)):
        try:
            backend = sight.storages.get(name)
        except StorageNotConfigured:
            continue  # nothing of it can be touched
        if backend.capabilities.one_process:
            continue
        try:
            owner = await Marker(sight.database, backend).owner()
        except StorageError as error:
            return f"{name} cannot be asked whose it is: {error.detail}"
        if owner == "another":
            return NOT_OURS
        if owner == "nobody":
            return (
                f"{name} has no marker yet, so its objects may be another catalogue's: the service, when it runs, "
                "finishes what was left; `--claim` makes the storage this catalogue's"
            )
    async with running(sight.settings, serves=False):
        await _wait_for_the_dead(sight, {backend.name for backend in backends}, progress)
    return "they could not be finished yet"


async def _wait_for_the_dead(sight: Sight, storages: set[str], progress: Progress) -> None:
    """Let the background finish what dead processes left in these storages."""
    unsettled = left = await _unsettled(sight, storages)
    task = progress.add_task("finishing what was left half done", total=unsettled)
    deadline = asyncio.get_running_loop().time() + LEASES_TO_WAIT * sight.settings.lease_seconds
    while left and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.2)
        left = await _unsettled(sight, storages)
        progress.update(task, completed=unsettled - left)
    progress.remove_task(task)


async def _unsettled(sight: Sight, storages: set[str]) -> int:
    rows = await sight.database.read(lambda catalogue: catalogue.count_by_storage(unsettled=True))
    return sum(count for name, count in rows.items() if name in storages)


async def _audit(sight: Sight, backend: StorageBackend, wishes: Wishes, progress: Progress) -> Report:
    task = progress.add_task(backend.name, total=None)

    def show(what: str, done: int, total: int | None) -> None:
        progress.update(task, description=f"{backend.name}: {what}", completed=done, total=total)

    audit = Audit(
        sight.database,
        backend,
        Marker(sight.database, backend),
        sight.threads,
        temporary_dir=sight.settings.temporary_dir,
        grace_seconds=sight.settings.reconcile_grace_seconds,
        lease_seconds=sight.settings.lease_seconds,
        progress=show,
    )
    report = await audit.run(
        verify=wishes.verify, delete_orphans=wishes.delete_orphans, dry_run=wishes.dry_run, claimed=wishes.claim
    )
    progress.remove_task(task)
    return report
