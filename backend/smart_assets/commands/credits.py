"""`smart-assets credits`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from smart_assets.commands.service import AsJson, Key, Url, connect

if TYPE_CHECKING:
    from smart_assets.client import CreditEntry

credits = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What owners have to spend.")

Owner = Annotated[str, typer.Argument(metavar="OWNER", show_default=False, help="Whose; as its keys have it.")]


@credits.callback()
def _credits() -> None:
    """What owners have to spend."""


# An amount below 0 is no option.
@credits.command(context_settings={"ignore_unknown_options": True})
def grant(
    owner: Owner,
    amount: Annotated[int, typer.Argument(metavar="AMOUNT", help="So many more; -100: take so many back.")],
    note: Annotated[str | None, typer.Option(help="What it is for; stands in the ledger.")] = None,
    once: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="An invoice's number, say: the same is never granted a second time."),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Give an owner credits, and print the new line of its ledger.

    \b
    Examples:
      smart-assets credits grant shop 1000 --once "invoice 2026-117"
      smart-assets credits grant default 500 --note "to try it"
    """
    with connect(url, key) as assets:
        _print(assets.grant_credits(owner, amount, note=note, idempotency_key=once), as_json=as_json)


@credits.command()
def show(
    owner: Annotated[str | None, typer.Argument(metavar="OWNER", help="Whose; else the key's own.")] = None,
    days: Annotated[int, typer.Option(min=0, max=366, help="What was used on so many days, too.")] = 0,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Show what an owner has.

    \b
    Examples:
      smart-assets credits show shop --days 7
      smart-assets credits show shop --json | jq .balance
    """
    with connect(url, key) as assets:
        usage = assets.usage(owner=owner)
        daily = assets.daily_usage(owner=owner, days=days) if days else ()
        if as_json:
            told = {**usage.raw, **({"days": [day.raw for day in daily]} if days else {})}
            typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
            return
        if usage.balance is None:
            typer.echo(f"{usage.owner}: nothing is metered")
        else:
            for name, value in (("balance", usage.balance), ("reserved", usage.reserved), ("spent", usage.spent)):
                typer.echo(f"{name:<10}{value:>14}")
        if daily:
            typer.echo(f"{'day':<12}{'originals':>10}{'sizes':>10}{'bytes':>16}{'credits':>12}  key")
        for day in daily:
            figures = f"{day.originals:>10}{day.sizes:>10}{day.size_bytes:>16}{day.credits:>12}"
            typer.echo(f"{day.day:<12}{figures}  {day.key_id or '-'}")


@credits.command()
def ledger(
    owner: Annotated[
        str | None, typer.Argument(metavar="OWNER", help="Whose; else the key's own, or everybody's with `admin`.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0: all.")] = 50,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """List what was granted and charged, the newest first.

    Each line has its time (UTC), amount, owner, and the asset or note. With --json, one a line, as the API has it.

    \b
    Examples:
      smart-assets credits ledger shop --limit 0 --json | jq .amount | paste -sd+ | bc
    """
    with connect(url, key) as assets:
        for entry in assets.ledger(owner=owner, limit=limit or None, page_size=200):
            _print(entry, as_json=as_json)


def _print(entry: CreditEntry, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(entry.raw, ensure_ascii=False))
        return
    about = entry.note or (f"asset {entry.asset_id}" if entry.asset_id else "")
    line = f"{entry.created_at:%Y-%m-%d %H:%M:%S}  {entry.amount:>+12}  {entry.owner:<16}  {entry.kind:<7}  {about}"
    typer.echo(line.rstrip())
