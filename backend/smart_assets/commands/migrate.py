"""`smart-assets migrate`: moves a storage's assets to another one, with a progress bar and a report."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Final

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from smart_assets.commands.reconcile import LEASES_TO_WAIT
from smart_assets.errors import ConfigurationError
from smart_assets.maintenance.marker import Marker
from smart_assets.maintenance.migrate import Migration, Report, Which
from smart_assets.observability import configure_logging
from smart_assets.runtime import Sight, looking, running
from smart_assets.settings import Settings
from smart_assets.storage.errors import StorageNotConfigured

SHOWN: Final = 20
LINE_SECONDS: Final = 30
"""So often a line says how far it is, where there is no terminal for a bar."""


@dataclass(frozen=True)
class Wishes:
    """What is asked for."""

    source: str
    target: str
    where: Sequence[str] = ()
    dry_run: bool = False
    concurrency: int = 4


def migrate(settings: Settings, wishes: Wishes, *, json: bool) -> bool:
    """Move, and say what came of it on standard output; whether nothing is left to be done.

    Progress goes to standard error. Raises SmartAssetsError where nothing could be begun, or the catalogue went away.
    """
    # What goes wrong is said once, by the report.
    configure_logging("critical", settings.log_format)
    report = asyncio.run(_migrate(settings, wishes))
    typer.echo(as_json(report) if json else "\n".join(lines_of(report)))
    return report.is_done


async def _migrate(settings: Settings, wishes: Wishes) -> Report:
    which = Which.parse(wishes.where)
    if wishes.source == wishes.target:
        raise ConfigurationError(f"--from and --to are both {wishes.source}")
    async with looking(settings, read_only=wishes.dry_run) as sight:
        await _check(sight, wishes)
        if wishes.dry_run:
            return await Migration(sight.database, wishes.source, sight.storages.get(wishes.target), which).look()
    async with running(settings, serves=False) as runtime:
        console = Console(stderr=True)
        with _shown(console) as show:
            migration = Migration(
                runtime.database, wishes.source, runtime.storages.get(wishes.target), which, progress=show
            )
            with _stopped_by_signals(migration):
                await migration.count()
                return await migration.run(
                    runtime.moving,
                    concurrency=wishes.concurrency,
                    patience_seconds=LEASES_TO_WAIT * settings.lease_seconds,
                )


async def _check(sight: Sight, wishes: Wishes) -> None:
    """ConfigurationError, or StorageError, where these are no storages to move between from here."""
    backends = [sight.storages.get(name) for name in (wishes.source, wishes.target)]
    for backend in backends:
        if not backend.capabilities.lasting:
            raise ConfigurationError(
                f"the storage {backend.name} keeps nothing that could be moved from here, or to it"
            )
    if not wishes.dry_run:
        # While it runs, what dead processes left is finished, wherever that is.
        for name in await sight.database.read(lambda catalogue: catalogue.count_by_storage(unsettled=True)):
            with suppress(StorageNotConfigured):  # nothing of it can be touched
                backends.append(sight.storages.get(name))
    for backend in {backend.name: backend for backend in backends if backend.capabilities.lasting}.values():
        if await Marker(sight.database, backend).owner() == "another":
            # A copy of a catalogue would remove what the catalogue itself still needs.
            raise ConfigurationError(
                f"the marker of {backend.name} names another catalogue, or a later state of this one, so nothing is "
                "moved; `smart-assets reconcile --claim` makes the storage this catalogue's"
            )


@contextmanager
def _stopped_by_signals(migration: Migration) -> Iterator[None]:
    """The first Ctrl-C, or SIGTERM, lets what is being moved be moved; a second one does not wait."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        migration.stop("it was asked to stop")
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


# ── What it says ────────────────────────────────────────────────────────────────────────────────────────────────────


class _Show:
    """Says how far it is: a bar on a terminal, else a line now and then."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task = progress.add_task("moving", total=None, rate="") if progress is not None else None
        self._began = self._said = time.monotonic()

    def __call__(self, report: Report) -> None:
        done = report.moved + report.failed
        now = time.monotonic()
        rate = f"{decimal(round(report.moved_bytes / max(now - self._began, 0.001)))}/s"
        if self._progress is not None and self._task is not None:
            total = max(report.found, done)
            self._progress.update(self._task, completed=done, total=total, rate=rate)
        elif now - self._said >= LINE_SECONDS:
            self._said = now
            left = (report.found - done) * (now - self._began) / max(done, 1)
            typer.echo(f"{done:,} of {report.found:,} assets, {rate}, about {left:,.0f} s left", err=True)


@contextmanager
def _shown(console: Console) -> Iterator[_Show]:
    if not console.is_terminal:
        yield _Show(None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Show(progress)


def as_json(report: Report) -> str:
    """All of it, and whether nothing is left to be done."""
    return json.dumps({"done": report.is_done, **asdict(report)}, indent=2)


def lines_of(report: Report) -> list[str]:
    """The figures, then what is left: the first of it."""
    way = f"from {report.source} to {report.target}"
    if report.dry_run:
        fit = report.found - report.failed
        lines = [f"would move {fit:,} of {report.found:,} assets ({decimal(report.found_bytes)} in all) {way}"]
    else:
        seconds = max(report.seconds, 0.001)
        rate = f"{report.moved / seconds:,.1f} assets/s, {decimal(round(report.moved_bytes / seconds))}/s"
        lines = [f"moved {report.moved:,} assets ({decimal(report.moved_bytes)}) {way} in {seconds:,.1f} s: {rate}"]
    lines += [f"  not {failure.id}: {failure.code}: {failure.detail}" for failure in report.failures[:SHOWN]]
    if report.failed > SHOWN:
        lines.append(f"  … and {report.failed - SHOWN:,} more: --json lists them")
    if report.owed:
        lines.append(
            f"{report.owed:,} assets of {report.target} may still have copies in {report.source}: the service, when it "
            "runs, goes on removing them; until then these assets can be read, and not be changed"
        )
    if report.stopped is not None:
        lines.append(f"stopped before the end: {report.stopped}; run it again to go on")
    return lines
