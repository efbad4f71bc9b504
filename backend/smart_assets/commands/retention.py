"""`smart-assets retention`: a run of retention beside a service that may be running, with a report of it."""

from __future__ import annotations

import asyncio
import sys
from json import dumps

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from smart_assets.assets.lease import Lease
from smart_assets.assets.settling import Settling
from smart_assets.commands.progress import on_stderr
from smart_assets.maintenance.report import print_removals
from smart_assets.maintenance.retention import Removal, Report, Retention
from smart_assets.observability import configure_logging
from smart_assets.runtime import looking, running
from smart_assets.settings import Settings


def retire(settings: Settings, *, dry_run: bool, confirm: bool, json: bool) -> bool:
    """Remove what is to go, and say what went on standard output; whether all of it did. Progress to standard error.

    Raises SmartAssetsError where it could not run, and OSError where it could not say what it did.
    """
    # What goes wrong is said once, in the report.
    configure_logging("critical", settings.log_format)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn())
    with on_stderr(*columns) as progress:
        report = asyncio.run(_retire(settings, progress, dry_run=dry_run, confirm=confirm))
    if json:
        typer.echo(dumps(report.to_json(), indent=2))
    else:
        print_removals(report, sys.stdout)
    sys.stdout.flush()
    return report.result == "done"


async def _retire(settings: Settings, progress: Progress, *, dry_run: bool, confirm: bool) -> Report:
    tasks = {}

    def show(storage: str, removal: Removal) -> None:
        name = f"{storage}: {removal.reason}"
        if name not in tasks:
            tasks[name] = progress.add_task(name, total=None, done="")
        progress.update(tasks[name], done=f"{removal.assets:,} assets, {decimal(removal.bytes)}")

    async with looking(settings, read_only=dry_run) as sight:  # which makes no catalogue where there is none
        if dry_run:
            lease = Lease(sight.database)
            settling = Settling(sight.database, sight.storages, lease)
            retention = Retention(settings.retention, sight.database, sight.storages, lease, settling, serves=False)
            return await retention.run(dry_run=True, confirm=confirm, progress=show)
        async with running(settings, serves=False) as runtime:
            return await runtime.retention.run(confirm=confirm, progress=show)
