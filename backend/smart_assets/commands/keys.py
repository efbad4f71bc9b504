"""`smart-assets keys`."""

from __future__ import annotations

import json
import secrets
from typing import Annotated

import typer

from smart_assets.commands.service import AsJson, Key, Url, connect

keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Keys that may call the API.")


@keys.callback()
def _keys() -> None:
    """Keys that may call the API."""


@keys.command()
def new() -> None:
    """Make a key nobody can guess, and say how to set it. The key alone goes to standard output.

    \b
    Examples:
      echo "ASSETS_API_KEYS=$(smart-assets keys new)" >> .env
    """
    typer.echo(f"sa_{secrets.token_urlsafe(32)}")
    typer.echo(
        "The service takes it when it starts with\n"
        "  ASSETS_API_KEYS=<key>        several with commas between; also in .env\n"
        "and callers send it as\n"
        "  Authorization: Bearer <key>  these commands: ASSETS_KEY=<key>",
        err=True,
    )


@keys.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="What it is for.")],
    scope: Annotated[
        list[str],
        typer.Option(help="What it may do: assets:read, assets:write, assets:delete, admin; several times."),
    ],
    owner: Annotated[str | None, typer.Option(help="Whose assets it is for.", show_default="the asking key's")] = None,
    expires_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="When it ends: 2027-01-31T12:00:00Z.", show_default="never")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Make a key in the catalogue, in force at once. The key alone goes to standard output, this once.

    A service without ASSETS_API_KEYS asks for none and answers this machine only: `keys new` makes the first.

    \b
    Examples:
      smart-assets keys create website --owner shop --scope assets:read --scope assets:write
    """
    with connect(url, key) as assets:
        made = assets.make_key(name, scope, owner=owner, expires_at=expires_at)
        typer.echo(json.dumps(made.raw, ensure_ascii=False) if as_json else made.key)
        if not as_json:
            typer.echo(f"{made.id} of {made.owner}; to revoke it: smart-assets keys revoke {made.id}", err=True)


@keys.command("list")
def list_keys(as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """List the keys in the catalogue, the oldest first.

    Each line has its id, owner, scopes, when it was last used (UTC, to the hour), when it ends, and its name. Those in
    ASSETS_API_KEYS are not among them.
    """
    with connect(url, key) as assets:
        for found in assets.api_keys():
            if as_json:
                typer.echo(json.dumps(found.raw, ensure_ascii=False))
                continue
            used = f"{found.last_used_at:%Y-%m-%d %H:%M}" if found.last_used_at else "never used"
            ends = f"{found.expires_at:%Y-%m-%d %H:%M}" if found.expires_at else "no end"
            scopes = ",".join(found.scopes)
            typer.echo(f"{found.id}  {found.owner:<16}  {scopes:<25}  {used:<16}  {ends:<16}  {found.name}")


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", show_default=False, help="A key's id; see `keys list`.")],
    url: Url = None,
    key: Key = None,
) -> None:
    """Revoke a key, in force at once in every process. What its owner uploaded stays.

    \b
    Examples:
      smart-assets keys revoke 01a1f908-5529-7703-b9de-54135cfb2f53
    """
    with connect(url, key) as assets:
        assets.revoke_key(key_id)
