"""`smart-assets stats`: what is stored, and where it can be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from smart_assets.commands.service import AsJson, Key, Url, connect

if TYPE_CHECKING:
    from smart_assets.client import Statistics, Storage


def stats(as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """Show what each storage holds.

    Those that are not set up are named with what they lack.

    \b
    Examples:
      smart-assets stats
      smart-assets stats --json | jq .stats.bytes
    """
    with connect(url, key) as assets:
        found, storages = assets.stats(), assets.storages()
        if as_json:
            told = {"stats": found.raw, "storages": [storage.raw for storage in storages]}
            typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
            return
        for line in _lines(found, storages):
            typer.echo(line)


def _lines(found: Statistics, storages: tuple[Storage, ...]) -> Iterator[str]:
    holds = {storage.name: storage for storage in found.storages}
    ready = {storage.name for storage in storages if storage.configured}
    default = {storage.name for storage in storages if storage.default}
    yield f"{'storage':<16}{'assets':>12}{'bytes':>18}  newest"
    for name in sorted(holds.keys() | ready):
        count, size, newest = 0, 0, None
        if name in holds:
            count, size, newest = holds[name].count, holds[name].bytes, holds[name].newest
        remark = "" if name in ready else "not set up any more"
        said = f"{newest:%Y-%m-%d %H:%M}" if newest else "-"
        yield f"{name + ('*' if name in default else ''):<16}{count:>12}{size:>18}  {said:<16}  {remark}".rstrip()
    yield f"{'all':<16}{found.count:>12}{found.bytes:>18}"
    if found.deletions_owed:
        yield f"still to be removed: {found.deletions_owed}"
    for storage in storages:
        if storage.missing:
            yield f"not set up: {storage.name} (lacks {', '.join(storage.missing)})"
