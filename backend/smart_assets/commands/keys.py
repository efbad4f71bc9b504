"""`smart-assets keys`."""

from __future__ import annotations

import secrets

import typer

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
