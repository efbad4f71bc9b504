"""`smart-assets ls`, `show`, `rm` and `url`: assets that are stored."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, cast

import typer

from smart_assets.commands.service import FAILED, AsJson, Key, Url, complain, connect, described, is_everybodys

if TYPE_CHECKING:
    from smart_assets.client import Asset, ListOptions

AssetId = Annotated[str, typer.Argument(metavar="ID", show_default=False, help="An asset's id.")]

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def ls(
    storage: Annotated[str | None, typer.Option(help="Only in this storage.")] = None,
    visibility: Annotated[str | None, typer.Option(help="Only public ones, or private ones.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    days: Annotated[int | None, typer.Option(help="Only of the last so many days.")] = None,
    name: Annotated[str | None, typer.Option(help="Only with this in the filename, case aside.")] = None,
    oldest_first: Annotated[bool, typer.Option("--oldest-first", help="Else the newest are first.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0: all.")] = 50,
    ids: Annotated[bool, typer.Option("--ids", help="Only the ids.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """List assets.

    Each line has its id, time (UTC), bytes, pixels, visibility, storage and filename. With --json, one asset a line, as
    the API has it.

    \b
    Examples:
      smart-assets ls --days 7 --tag trip
      smart-assets ls --limit 0 --json | jq -r .url
      smart-assets ls --ids --tag draft | smart-assets rm -
    """
    given = {
        "storage": storage,
        "visibility": visibility,
        "tag": tag,
        "days": days,
        "q": name,
        "order": "asc" if oldest_first else None,
    }
    options = cast("ListOptions", {option: value for option, value in given.items() if value is not None})
    with connect(url, key) as assets:
        for asset in assets.list(limit=limit or None, page_size=200, **options):
            if as_json:
                typer.echo(json.dumps(asset.raw, ensure_ascii=False))
            else:
                typer.echo(asset.id if ids else _line(asset))


def _line(asset: Asset) -> str:
    pixels = f"{asset.width}x{asset.height}"
    return (
        f"{asset.id}  {asset.created_at:%Y-%m-%d %H:%M:%S}  {asset.size_bytes:>10}  {pixels:>11}  "
        f"{asset.visibility:<7}  {asset.storage:<10}  {asset.filename or ''}"
    ).rstrip()


def show(asset_id: AssetId, as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """Show an asset with its sizes.

    \b
    Examples:
      smart-assets show 01a1f908-5529-7703-b9de-54135cfb2f53 --json | jq .variants
    """
    with connect(url, key) as assets:
        asset = assets.get(asset_id)
        if as_json:
            typer.echo(json.dumps(asset.raw, ensure_ascii=False, indent=2))
            return
        for label, value in _facts(asset):
            typer.echo(f"{label:<12}{value}")


def _facts(asset: Asset) -> Iterator[tuple[str, str]]:
    yield "id", asset.id or ""
    yield "filename", asset.filename or ""
    yield "image", f"{asset.content_type}, {asset.width}x{asset.height}, {asset.size_bytes} bytes"
    yield "sha256", asset.sha256
    yield "stored in", f"{asset.storage}, {asset.visibility}" + (", pinned" if asset.pinned else "")
    yield "created", f"{asset.created_at:%Y-%m-%d %H:%M:%S} UTC"
    if asset.expires_at:
        yield "expires", f"{asset.expires_at:%Y-%m-%d %H:%M:%S} UTC"
    if asset.tags:
        yield "tags", ", ".join(asset.tags)
    if asset.metadata:
        yield "metadata", json.dumps(asset.metadata, ensure_ascii=False)
    yield "url", asset.url
    for variant in asset.variants:
        yield (
            f"  {variant.size}",
            f"{variant.content_type}, {variant.width}x{variant.height}, {variant.size_bytes} bytes",
        )
        yield "", variant.url


def rm(
    asset_ids: Annotated[
        list[str], typer.Argument(metavar="ID", show_default=False, help="Assets' ids; - reads them, one a line.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Remove assets with their sizes.

    They are gone for good: so it asks first, where there is somebody to ask. Exit code 1 where any was not there, or
    could not be removed; the others are.

    \b
    Examples:
      smart-assets rm -y 01a1f908-5529-7703-b9de-54135cfb2f53
      smart-assets ls --ids --tag draft | smart-assets rm -
    """
    piped = "-" in asset_ids
    ids = _ids(asset_ids)
    if not yes and not piped and sys.stdin.isatty():
        typer.confirm(f"Remove {len(ids)} asset{'' if len(ids) == 1 else 's'} for good?", abort=True, err=True)
    from smart_assets.client import AssetsError

    failed = 0
    with connect(url, key) as assets:
        for asset_id in ids:
            error: AssetsError | None = None
            try:
                assets.delete(asset_id)
            except AssetsError as found:
                if is_everybodys(found):
                    raise
                error = found
                failed += 1
            if as_json:
                told = {"code": error.code, "detail": error.detail} if error else {}
                typer.echo(json.dumps({"id": asset_id, "deleted": error is None, **told}, ensure_ascii=False))
            elif error is not None:
                complain(f"{asset_id}: {described(error)}")
    if failed:
        raise typer.Exit(FAILED)


def _ids(given: Sequence[str]) -> list[str]:
    """Each once, in order."""
    found: dict[str, None] = {}
    for asset_id in given:
        if asset_id == "-":
            found.update((line.strip(), None) for line in sys.stdin if line.strip())
        elif asset_id.strip():
            found[asset_id.strip()] = None
    return list(found)


def signed(
    asset_id: AssetId,
    expiry: Annotated[
        str, typer.Option(help="How long it is good: seconds, or 15m, 12h, 7d.", show_default="a day")
    ] = "1d",
    size: Annotated[str | None, typer.Option(help="Of this size; else of the original.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Print a signed URL.

    Whoever has it may fetch the image until it expires.

    \b
    Examples:
      smart-assets url 01a1f908-5529-7703-b9de-54135cfb2f53 --expiry 12h --size 400
    """
    seconds = _duration(expiry)
    with connect(url, key) as assets:
        link = assets.signed_url(asset_id, expiry_seconds=seconds, size=size)
        typer.echo(json.dumps(link.raw, ensure_ascii=False) if as_json else link.url)


def _duration(text: str) -> int:
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text.strip(), re.ASCII)
    if match is None or int(match[1]) == 0:
        raise typer.BadParameter(f"{text!r} is no time: give seconds, or 15m, 12h, 7d", param_hint="--expiry")
    return int(match[1]) * _SECONDS[match[2]]
