"""`smart-assets export` and `smart-assets import`: lines on standard output, and rows of a file's lines."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Final

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from smart_assets.assets.library import Period
from smart_assets.catalogue.repository import AssetFilter
from smart_assets.commands.progress import on_stderr
from smart_assets.errors import ConfigurationError
from smart_assets.maintenance.transfer import Import, Report, exported
from smart_assets.observability import configure_logging
from smart_assets.runtime import looking
from smart_assets.settings import Settings
from smart_assets.storage.factory import storage_names

SHOWN: Final = 20


def export_lines(settings: Settings, criteria: AssetFilter, period: Period) -> None:
    """Write the lines of the assets asked for to standard output.

    Raises SmartAssetsError where there is no catalogue to read, and OSError where nobody takes the lines.
    """
    configure_logging("critical", settings.log_format)
    asyncio.run(_export(settings, period.limit(criteria)))


async def _export(settings: Settings, criteria: AssetFilter) -> None:
    async with looking(settings, read_only=True) as sight:
        if criteria.storage is not None:
            totals = await sight.database.read(lambda catalogue: catalogue.totals())
            names = {*storage_names(settings), *(total.storage for total in totals)}
            if criteria.storage not in names:
                raise ConfigurationError(
                    f"there is no storage {criteria.storage!r}; there are: {', '.join(sorted(names))}"
                )
        with _progress("assets") as progress:
            task = progress.add_task("exporting", total=None)
            async for lines in exported(sight.database, criteria):
                sys.stdout.buffer.write(lines)
                progress.advance(task, lines.count(b"\n"))
        sys.stdout.buffer.flush()


def import_lines(settings: Settings, source: str, *, dry_run: bool, as_json: bool) -> bool:
    """Make rows of a file's lines (`-`: of standard input), and say what came of it; whether every line has its row.

    Raises SmartAssetsError where it could not be done to the end, and OSError where the file cannot be read.
    """
    configure_logging("critical", settings.log_format)
    with _opened(source) as (file, total), _progress("bytes") as progress:
        task = progress.add_task("importing", total=total)
        report = asyncio.run(
            _import(settings, file, lambda done: progress.update(task, completed=done), dry_run=dry_run)
        )
    typer.echo(_as_json(report) if as_json else "\n".join(_sentences(report, dry_run=dry_run)))
    sys.stdout.flush()
    return report.is_right


async def _import(settings: Settings, file: BinaryIO, progress: Callable[[int], None], *, dry_run: bool) -> Report:
    async with looking(settings, read_only=False, make=True) as sight:
        work = Import(sight.database, sight.storages, sight.threads)
        return await work.run(file, dry_run=dry_run, progress=progress)


@contextmanager
def _opened(source: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """The file, and its size in bytes where that is known."""
    if source == "-":
        yield sys.stdin.buffer, None
        return
    with Path(source).open("rb") as file:
        yield file, Path(source).stat().st_size


@contextmanager
def _progress(unit: str) -> Iterator[Progress]:
    amount = DownloadColumn() if unit == "bytes" else TextColumn("{task.completed:,.0f} " + unit)
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TaskProgressColumn(), TimeRemainingColumn())
    # Lines that go to the same terminal would be torn by it.
    with on_stderr(*columns, shown=unit == "bytes" or not sys.stdout.isatty()) as progress:
        yield progress


def _as_json(report: Report) -> str:
    told = {
        "right": report.is_right,
        "lines": report.lines,
        "imported": report.imported,
        "known": report.known,
        "problems": dict(report.problems),
        "findings": [{**asdict(finding), "id": finding.id and str(finding.id)} for finding in report.findings],
    }
    return json.dumps(told, indent=2)


def _sentences(report: Report, *, dry_run: bool) -> Iterator[str]:
    done = "would be imported" if dry_run else "imported"
    yield f"{report.lines:,} lines: {report.imported:,} {done}, {report.known:,} were there already"
    for problem, count in sorted(report.problems.items()):
        yield f"{count:,} {problem.replace('_', ' ')}"
    for finding in report.findings[:SHOWN]:
        yield f"line {finding.line}: {finding.problem.replace('_', ' ')}: {finding.detail}"
    if (more := report.problems.total() - SHOWN) > 0:
        yield f"… and {more:,} more: --json lists the first thousand"
