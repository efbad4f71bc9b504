"""What `smart-assets reconcile` and `smart-assets retention` say: a table for people, JSON for machines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final, TextIO

from rich.console import Console
from rich.table import Table

from smart_assets.catalogue.models import CreditAccount
from smart_assets.maintenance.audit import Report
from smart_assets.maintenance.marker import NOT_OURS
from smart_assets.maintenance.retention import Report as Removals
from smart_assets.maintenance.retention import StorageReport

SHOWN: Final = 20

_HEADINGS: Final = (
    "storage",
    "objects",
    "bytes",
    "assets",
    "at work",
    "half done",
    "orphans",
    "missing",
    "damaged",
    "foreign",
)
_WIDTH: Final = 10_000
"""Of a line: a terminal breaks one that is too long for it, where a table would rather cut its figures."""


Difference = tuple[CreditAccount, CreditAccount]
"""An account as it is, and as its ledger and assets say it should be."""


def as_json(reports: Sequence[Report], differences: Sequence[Difference]) -> str:
    """An object with `right`, all that was found of each storage, and accounts that are wrong."""
    storages = [{**asdict(report), "right": report.is_right} for report in reports]
    accounts = [{**asdict(there), "should_be": asdict(right)} for there, right in differences]
    is_right = all(report.is_right for report in reports) and not differences
    return json.dumps({"right": is_right, "storages": storages, "wrong_accounts": accounts}, indent=2)


def print_tables(reports: Sequence[Report], differences: Sequence[Difference], file: TextIO) -> None:
    """The figures of each storage, then what is wrong: the first of each."""
    console = Console(file=file, width=_WIDTH)
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == "storage" else "right", no_wrap=True)
    for report in reports:
        found = Counter(finding.problem for finding in report.findings if not finding.removed)
        damaged = found["size"] + found["hash"] + found["unreadable"]
        figures = (
            report.objects,
            report.bytes,
            report.assets,
            report.at_work,
            report.unsettled,
            found["orphan"],
            found["missing"],
            damaged,
            report.foreign,
        )
        table.add_row(report.storage, *(f"{figure:,}" for figure in figures))
    console.print(table)
    for report in reports:
        for line in _lines(report):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for there, right in differences[:SHOWN]:
        line = f"credits of {there.owner}: {_figures(there)}; by the ledger and the assets {_figures(right)}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if len(differences) > SHOWN:
        console.print(f"… and {len(differences) - SHOWN} more accounts: --json lists all of them", highlight=False)


def _figures(account: CreditAccount) -> str:
    return f"balance {account.balance}, reserved {account.reserved}, spent {account.spent}"


def _lines(report: Report) -> list[str]:
    lines = []
    if report.error is not None:
        lines.append(f"{report.storage}: could not be audited: {report.error}")
    if report.owner == "another" and report.refused != NOT_OURS:
        lines.append(f"{report.storage}: {NOT_OURS}")
    if report.left is not None:
        lines.append(f"{report.storage}: what was left half done was not finished: {report.left}")
    lines += [
        f"{report.storage}: {'removed ' if finding.removed else ''}{finding.problem}: {finding.key}"
        for finding in report.findings[:SHOWN]
    ]
    if len(report.findings) > SHOWN:
        lines.append(f"{report.storage}: … and {len(report.findings) - SHOWN} more: --json lists all of them")
    if report.refused is not None:
        lines.append(f"{report.storage}: no orphan was removed: {report.refused}")
    return lines


def print_removals(report: Removals, file: TextIO) -> None:
    """What went of each storage, and why, then what did not."""
    console = Console(file=file, width=_WIDTH)
    gone = "would go" if report.dry_run else "removed"
    if not any(storage.removals for storage in report.storages):
        console.print("nothing is to go", highlight=False)
    else:
        table = Table(box=None, pad_edge=False, collapse_padding=True)
        for heading in ("storage", "reason", gone, "bytes", "failed", "changed"):
            table.add_column(heading, justify="left" if heading in {"storage", "reason"} else "right", no_wrap=True)
        for storage in report.storages:
            for removal in storage.removals:
                figures = (removal.assets, removal.bytes, removal.failed, removal.changed)
                table.add_row(storage.storage, removal.reason, *(f"{figure:,}" for figure in figures))
        console.print(table)
    for storage in report.storages:
        for line in _what_stayed(storage):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _what_stayed(storage: StorageReport) -> list[str]:
    name = storage.storage
    lines = [f"{name}: refused ({each.reason}): {each.refused}" for each in storage.removals if each.refused]
    if storage.over_bytes:
        lines.append(f"{name}: still {storage.over_bytes:,} bytes over its limit: what is left is pinned, or at work")
    if storage.error is not None:
        lines.append(f"{name}: {storage.error}")
    return lines
