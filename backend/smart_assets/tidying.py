"""`smart-assets reconcile`: audits of the storages, one after the other, with a progress bar and a report."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from smart_assets.errors import ConfigurationError
from smart_assets.maintenance.audit import Audit, Marker, Report
from smart_assets.maintenance.report import as_json, print_tables
from smart_assets.observability import configure_logging
from smart_assets.runtime import Runtime, running
from smart_assets.settings import Settings
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import StorageNotConfigured
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
    """Audit, and say what was found on standard output; whether all is right. Progress goes to standard error."""
    configure_logging("error", settings.log_format)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        reports = asyncio.run(_tidy_up(settings, wishes, progress))
    if json:
        typer.echo(as_json(reports))
    else:
        print_tables(reports, Console())
    return all(report.is_right for report in reports)


async def _tidy_up(settings: Settings, wishes: Wishes, progress: Progress) -> list[Report]:
    async with running(settings, serves=False) as runtime:
        backends = [runtime.storages.get(name) for name in wishes.storages or _configured(runtime)]
        for backend in backends:
            if not backend.capabilities.persistent or backend.capabilities.one_process:
                raise ConfigurationError(f"the storage {backend.name} keeps nothing that could be looked at from here")
        if not wishes.dry_run:
            await _wait_for_the_dead(runtime, progress)
        return [await _audit(runtime, backend, wishes, progress) for backend in backends]


def _configured(runtime: Runtime) -> list[str]:
    names = []
    for name in storage_names():
        try:
            capabilities = runtime.storages.get(name).capabilities
        except StorageNotConfigured:
            continue
        if capabilities.persistent and not capabilities.one_process:
            names.append(name)
    return names


async def _wait_for_the_dead(runtime: Runtime, progress: Progress) -> None:
    """Let the background finish what dead processes left; what living ones are at work on is theirs."""
    unsettled = await runtime.database.read(lambda catalogue: catalogue.count_unsettled())
    task = progress.add_task("finishing what was left half done", total=unsettled, visible=bool(unsettled))
    deadline = asyncio.get_running_loop().time() + LEASES_TO_WAIT * runtime.settings.lease_seconds
    while unsettled and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.2)
        left = await runtime.database.read(lambda catalogue: catalogue.count_unsettled())
        progress.update(task, completed=unsettled - left)
        if not left:
            break
    progress.remove_task(task)


async def _audit(runtime: Runtime, backend: StorageBackend, wishes: Wishes, progress: Progress) -> Report:
    marker = Marker(runtime.database, backend)
    if wishes.claim and not wishes.dry_run:
        await marker.claim()
    task = progress.add_task(backend.name, total=None)

    def show(what: str, done: int, total: int | None) -> None:
        progress.update(task, description=f"{backend.name}: {what}", completed=done, total=total)

    audit = Audit(
        runtime.database,
        backend,
        marker,
        runtime.threads,
        temporary_dir=runtime.settings.temporary_dir,
        grace_seconds=runtime.settings.reconcile_grace_seconds,
        progress=show,
    )
    report = await audit.run(verify=wishes.verify, delete_orphans=wishes.delete_orphans, dry_run=wishes.dry_run)
    progress.remove_task(task)
    return report
