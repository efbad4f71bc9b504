"""`smart-assets doctor`: every storage examined by being used, and what the service stands on; a table, or JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final, TextIO

import typer
from anyio import to_thread
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from smart_assets.commands.progress import on_stderr
from smart_assets.errors import ConfigurationError
from smart_assets.maintenance.doctor import Examination, Step, examine, is_meant, not_usable
from smart_assets.maintenance.faults import Diagnosis
from smart_assets.maintenance.machine import examine_machine
from smart_assets.observability import configure_logging
from smart_assets.runtime import check_settings, database_url, make_directories
from smart_assets.settings import Settings
from smart_assets.storage.errors import StorageError, StorageNotConfigured
from smart_assets.storage.factory import storage_names, storage_type
from smart_assets.storage.registry import Storages

_WIDTH: Final = 10_000
"""Of a line: a terminal breaks one that is too long for it, where a table would rather cut it."""
_STYLES: Final = {"ok": "green", "skipped": "dim", "failed": "bold red"}


def check_up(settings: Settings, storages: Sequence[str] | None, *, json: bool) -> bool:
    """Examine, and say what was found on standard output; whether all is well. Progress goes to standard error.

    It works beside a running service, and needs no catalogue. Raises ConfigurationError where the settings as a whole
    make no sense, or a storage is named that there is not, and OSError where it could not say what it saw.
    """
    # What goes wrong is a finding, and said as one.
    configure_logging("critical", settings.log_format)
    check_settings(settings)
    there = storage_names(settings)
    for name in storages or ():
        if name not in there:
            raise ConfigurationError(f"there is no storage {name[:63]!r}; there are: {', '.join(there)}")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with on_stderr(*columns) as progress:
        examinations = asyncio.run(_check_up(settings, storages, progress))
    if json:
        typer.echo(as_json(examinations))
    else:
        print_tables(examinations, sys.stdout)
    sys.stdout.flush()
    return all(examination.is_well for examination in examinations)


async def _check_up(settings: Settings, asked: Sequence[str] | None, progress: Progress) -> list[Examination]:
    task = progress.add_task("this machine")
    machine = await examine_machine(
        settings,
        database_url(settings),
        partial(make_directories, settings),
        lambda step: progress.update(task, description=f"this machine: {step}"),
    )
    progress.remove_task(task)
    open_storages = Storages(settings)
    try:
        examined = await asyncio.gather(
            *(
                _examine(settings, open_storages, name, progress, is_asked=asked is not None)
                for name in dict.fromkeys(asked or storage_names(settings))
            )
        )
    finally:
        with suppress(StorageError):
            await open_storages.close()
    return [machine, *(examination for examination in examined if examination is not None)]


async def _examine(
    settings: Settings, storages: Storages, name: str, progress: Progress, *, is_asked: bool
) -> Examination | None:
    """None where nobody has begun to set it up, and nobody asked."""
    kind, own = storage_type(name, settings), settings.storage(name)
    task = progress.add_task(name)
    try:
        # An SDK takes a while to import.
        backend = await to_thread.run_sync(storages.get, name)
        return await examine(backend, kind, own, lambda step: progress.update(task, description=f"{name}: {step}"))
    except StorageNotConfigured as error:
        meant = is_asked or name == settings.default_storage or is_meant(name, own)
        return not_usable(name, kind, own, error) if meant else None
    finally:
        progress.remove_task(task)


# ── Saying it ───────────────────────────────────────────────────────────────────────────────────────────────────────


def as_json(examinations: Sequence[Examination]) -> str:
    """An object with `well` and each examination with its steps."""
    found = [
        {
            "subject": examination.subject,
            "type": examination.type,
            "well": examination.is_well,
            "steps": [_step_as_json(step) for step in examination.steps],
        }
        for examination in examinations
    ]
    return json.dumps(
        {"well": all(examination.is_well for examination in examinations), "examinations": found},
        indent=2,
        ensure_ascii=False,
    )


def _step_as_json(step: Step) -> dict[str, object]:
    found = step.diagnosis
    return {
        "name": step.name,
        "outcome": step.outcome,
        "detail": step.detail,
        "seconds": step.seconds,
        "fault": found.fault.value if found is not None else None,
        "cure": found.cure if found is not None else None,
        "settings": list(found.settings) if found is not None else [],
    }


def print_tables(examinations: Sequence[Examination], file: TextIO) -> None:
    """A table of steps for each, and below it what failed, why, and what cures it."""
    console = Console(file=file, width=_WIDTH)
    for examination in examinations:
        kind = "" if examination.type in {"machine", examination.subject} else f" ({examination.type})"
        console.print(f"{examination.subject}{kind}", style="bold", markup=False, highlight=False)
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for step in examination.steps:
            seconds = f"{step.seconds:.2f} s" if step.seconds >= 0.01 else ""
            style = _STYLES[step.outcome]
            table.add_row(f"  {step.name}", f"[{style}]{step.outcome}[/{style}]", seconds, _plain(step.detail))
        console.print(table, highlight=False)
        for step in examination.steps:
            if step.diagnosis is not None:
                console.print(_sentence(step, step.diagnosis), markup=False, highlight=False, soft_wrap=True)
        console.print()
    failed = sum(step.outcome == "failed" for examination in examinations for step in examination.steps)
    tried = sum(step.outcome != "skipped" for examination in examinations for step in examination.steps)
    console.print(f"{tried} tried, {failed} failed", highlight=False)


def _sentence(step: Step, found: Diagnosis) -> str:
    by = f" ({', '.join(found.settings)})" if found.settings else ""
    return f"  → {step.name}: {found.cure}{by}"


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
