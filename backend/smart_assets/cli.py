"""The console command `smart-assets`."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from smart_assets.errors import ConfigurationError
from smart_assets.settings import Settings, load_settings, misspelt_variables
from smart_assets.storage.errors import StorageNotConfigured

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Upload images once, get the sizes, store them anywhere.",
)


@app.callback()
def _root() -> None:
    """Make `serve` a command of its own, among those to come."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 takes a free one.", show_default="8000")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Local assets, catalogue, temporary files.", show_default="./data")
    ] = None,
) -> None:
    """Serve the API.

    Everything is set by environment variables (ASSETS_…); what is given here comes before them.
    """
    given: dict[str, Any] = {"host": host, "port": port, "data_dir": data_dir}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    _run_server(settings)


@app.command()
def openapi(
    directory: Annotated[Path, typer.Argument(help="Where to write openapi.json and openapi.yaml.")] = Path("openapi"),
) -> None:
    """Write the API's description."""
    import yaml

    from smart_assets.main import create_app

    document = create_app(Settings()).openapi()
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    (directory / "openapi.json").write_text(text, encoding="utf-8")
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    (directory / "openapi.yaml").write_text(text, encoding="utf-8")


@app.command()
def reconcile(
    storage: Annotated[
        list[str] | None, typer.Option(help="Only these storages; else every one that is configured.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look, and change nothing.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every original and compare its hash.")] = False,
    delete_orphans: Annotated[
        bool, typer.Option("--delete-orphans", help="Remove objects that no asset knows.")
    ] = False,
    claim: Annotated[
        bool, typer.Option("--claim", help="Make the storage this catalogue's: after a restore, once you are sure.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say it to machines.")] = False,
) -> None:
    """Hold the storages against the catalogue, in both directions.

    What a dead process left half done is finished first. Exit code 1 where something is wrong.
    """
    from smart_assets.tidying import Wishes, tidy_up

    wishes = Wishes(storage, dry_run=dry_run, verify=verify, delete_orphans=delete_orphans, claim=claim)
    if not tidy_up(load_settings(), wishes, json=as_json):
        raise typer.Exit(1)


def _run_server(settings: Settings) -> None:
    # Imported late: `--help` and a wrong setting answer at once.
    import uvicorn

    from smart_assets import runtime
    from smart_assets.main import create_app
    from smart_assets.observability import configure_logging

    configure_logging(settings.log_level, settings.log_format)
    os.umask(0o027)  # what the service writes is nobody's outside its group
    runtime.prepare(settings)
    listener = _listen(settings.host, settings.port)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        lifespan="off",  # entered below, so that what is wrong is said in one sentence
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )

    async def run() -> None:
        async with app.router.lifespan_context(app):
            _keep_temporary_files(app.state.runtime.temporary_dir)
            server = uvicorn.Server(config)
            # The server takes these over while it runs and raises them again at its end: by then they have done
            # their work, and what was opened is still to be closed.
            for stop in (signal.SIGINT, signal.SIGTERM):
                signal.signal(stop, lambda *_: setattr(server, "should_exit", True))
            _welcome(settings, listener.getsockname()[1])
            await server.serve(sockets=[listener])
            if server.server_state.tasks:  # cancelled at the end of their time: let them clean up
                await asyncio.wait(server.server_state.tasks, timeout=10)

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(run())


def _keep_temporary_files(directory: Path) -> None:
    """Have everybody's temporary files where they are removed even if this process is killed."""
    # multiprocessing keeps a socket there, `pymp-…/listener-…`, and an address has no more room (unix(7)).
    if len(os.fsencode(directory.absolute())) + 40 < 108:
        tempfile.tempdir = str(directory.absolute())


def _welcome(settings: Settings, port: int) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = settings.public_url or f"http://{host}:{port}"
    who = "open: this machine only, no key needed" if settings.open_mode else "with a key: Authorization: Bearer …"
    for line in (
        f"Smart Assets is ready at {address}",
        f"  try it      {address}/docs",
        f"  upload      curl -F file=@photo.jpg '{address}/api/v1/assets?sizes=1200x627,400'",
        f"  stores in   {settings.default_storage}, data in {settings.data_dir.resolve()}",
        f"  access      {who}",
        "  stop        Ctrl-C",
    ):
        typer.echo(line)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises ConfigurationError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {port} on {host} is taken by another program: stop it, or set ASSETS_PORT to another port"
            ) from error
        raise ConfigurationError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


def main() -> None:
    """The entry point: what a user did wrong is one sentence and exit code 1, never a traceback."""
    for sentence in misspelt_variables():
        typer.echo(f"smart-assets: {sentence}", err=True)
    try:
        app()
    except (ConfigurationError, StorageNotConfigured) as error:
        typer.echo(f"smart-assets: {error}", err=True)
        sys.exit(1)
