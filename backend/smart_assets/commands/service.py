"""Reaching a service, wherever it is, and saying what went wrong on the way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from smart_assets.errors import SmartAssetsError

if TYPE_CHECKING:  # httpx takes a while to import
    from smart_assets.client import AssetsError, Client

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="ASSETS_URL",
        metavar="ADDRESS",
        show_default=False,
        help="A running service; without, the work is done here, with the settings of `serve`.",
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="ASSETS_KEY",
        metavar="KEY",
        show_default=False,
        help="Its key. Others on this machine can read it in a command line, and not in the variable.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Say it to machines.")]

FAILED = 1
NOT_TRIED = 2
"""Exit codes: some of what was asked failed; it was asked wrongly, or there was nobody to ask."""


@contextmanager
def connect(url: str | None, key: str | None) -> Iterator[Client]:
    """A client of the service at `url`, or of one in this process.

    What goes wrong within the context is one sentence on standard error, and the exit code.
    """
    from smart_assets.client import AssetsError

    try:
        if url:
            yield from _at(url, key)
        else:
            yield from _here(key)
    except AssetsError as error:
        complain(described(error))
        asked_wrongly = is_everybodys(error) or error.code == "invalid_parameter"
        raise typer.Exit(NOT_TRIED if asked_wrongly else FAILED) from None
    except BrokenPipeError:
        raise  # whoever read what we write has gone: that is no mistake
    except SmartAssetsError as error:
        complain(str(error))
        raise typer.Exit(NOT_TRIED) from None
    except OSError as error:
        complain(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        raise typer.Exit(NOT_TRIED) from None


def _at(url: str, key: str | None) -> Iterator[Client]:
    from smart_assets.client import Client

    try:
        client = Client(url if "://" in url else f"http://{url}", key)
    except ValueError as error:
        raise typer.BadParameter(f"--url, --key: {error}") from None
    with client:
        yield client


def _here(key: str | None) -> Iterator[Client]:
    from smart_assets.client import Client
    from smart_assets.commands.in_process import address, application
    from smart_assets.settings import load_settings

    settings = load_settings()
    own_key = settings.api_keys[0].get_secret_value() if settings.api_keys else None
    with application(settings) as transport, Client(address(settings), key or own_key, transport=transport) as client:
        yield client


def is_everybodys(error: AssetsError) -> bool:
    """Whether every other request would fail as this one did: nobody answers, or lets in, or it makes no sense."""
    if error.status in {None, 401}:
        return error.code != "source_changed"
    of_the_query = any(problem.loc[:1] == ("query",) for problem in error.errors)
    return error.code in {"unexpected_answer", "forbidden", "storage_not_configured"} or of_the_query


def described(error: AssetsError) -> str:
    """For people: what happened, and what to look for in the service's log where that is to blame."""
    said = f"{error.detail} ({error.code})"
    if error.status is not None and error.status >= 500 and error.request_id:
        said += f", request {error.request_id}"
    return said


def complain(sentence: str) -> None:
    """Say on standard error what is wrong. What a server or a file's name put into it cannot move the cursor."""
    harmless = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in sentence)
    typer.echo(f"smart-assets: {harmless}", err=True)


def is_watched() -> bool:
    """Whether somebody looks at standard output; else it is read by a program, and holds nothing but what was asked."""
    return sys.stdout.isatty()
