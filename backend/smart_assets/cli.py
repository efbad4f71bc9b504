"""The console command `smart-assets`."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from smart_assets.commands.config import config
from smart_assets.commands.credits import credits
from smart_assets.commands.keys import keys
from smart_assets.commands.library import ls, rm, show, signed
from smart_assets.commands.stats import stats
from smart_assets.commands.upload import upload
from smart_assets.errors import SmartAssetsError
from smart_assets.serving import listen, serve_on
from smart_assets.settings import Settings, load_settings, misspelt_variables
from smart_assets.visibility import Visibility

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets and line ends stay what they are, and --help is quick
    help="Upload images once, get the sizes, store them anywhere.",
)


@app.callback()
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand != "worker":  # its supervisor has said so
        for sentence in misspelt_variables():
            typer.echo(f"smart-assets: {sentence}", err=True)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 takes a free one.", show_default="8000")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Local assets, catalogue, temporary files.", show_default="./data")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve.", show_default="1")] = None,
) -> None:
    """Serve the API.

    Everything is set by environment variables (ASSETS_…); what is given here comes before them.
    """
    given: dict[str, Any] = {"host": host, "port": port, "data_dir": data_dir, "workers": workers}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    _serve(settings)


@app.command(hidden=True)
def worker(listener: int, supervisor: int) -> None:
    """One of the processes of `serve --workers`: given are the sockets it inherits."""
    from smart_assets.supervisor import announce, inherited

    with inherited(listener) as listening, inherited(supervisor) as above:
        serve_on(listening, load_settings(), ready=lambda: announce(above), supervisor=above)


# What uses a service: a running one where `--url` or ASSETS_URL says so, else one in this process.
app.command()(upload)
app.command()(ls)
app.command()(show)
app.command()(rm)
app.command("url")(signed)
app.command()(stats)
app.command()(config)
app.add_typer(keys, name="keys")
app.add_typer(credits, name="credits")


@app.command()
def openapi(
    directory: Annotated[Path, typer.Argument(help="Where to write openapi.json and openapi.yaml.")] = Path("openapi"),
) -> None:
    """Write the API's description."""
    import yaml

    from smart_assets.api.documents import general
    from smart_assets.main import create_app

    document = general(create_app(Settings()))
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
    """Hold the storages against the catalogue, in both directions, and what owners have against the ledger.

    What a dead process left half done is finished first. Exit code 1 where something is wrong, 2 where it could not
    be looked at.
    """
    from smart_assets.commands.reconcile import Wishes, tidy_up

    if claim and dry_run:
        raise typer.BadParameter("--claim changes something, and --dry-run nothing: give one of them")

    wishes = Wishes(storage, dry_run=dry_run, verify=verify, delete_orphans=delete_orphans, claim=claim)
    _carry_out(lambda: tidy_up(load_settings(), wishes, json=as_json))


@app.command()
def retention(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Find out what would go, and remove nothing.")] = False,
    confirm: Annotated[
        bool,
        typer.Option(
            "--confirm", help="The clock is right: remove what was refused, being more than half of a storage."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say it to machines.")] = False,
) -> None:
    """Remove assets that have expired, are too old, or too much for their storage, as the settings say.

    The service does so by itself. Pinned assets stay. Exit code 1 where something could not be removed, 2 where it
    could not run.
    """
    from smart_assets.commands.retention import retire

    _carry_out(lambda: retire(load_settings(), dry_run=dry_run, confirm=confirm, json=as_json))


@app.command()
def doctor(
    storage: Annotated[
        list[str] | None, typer.Option(help="Only these storages; else every one that is set up.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say it to machines.")] = False,
) -> None:
    """Use each storage once in every way the service does, and say what is wrong and which setting cures it.

    What is written is removed again; a running service is not disturbed. Exit code 1 where something failed, 2 where
    it could not be looked at.
    """
    from smart_assets.commands.doctor import check_up

    _carry_out(lambda: check_up(load_settings(), storage or None, json=as_json))


@app.command(name="export")
def export_(
    storage: Annotated[str | None, typer.Option(help="Only assets in this storage.")] = None,
    visibility: Annotated[Visibility | None, typer.Option(help="Only assets of this visibility.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only assets with this tag.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only assets of this owner.", show_default="of everybody")] = None,
    days: Annotated[int | None, typer.Option(min=1, max=36500, help="Only those of the last so many days.")] = None,
    created_after: Annotated[
        str | None, typer.Option(help="Only those made then or later.", metavar="2026-11-20T10:00:00Z")
    ] = None,
    created_before: Annotated[
        str | None, typer.Option(help="Only those made before.", metavar="2026-11-21T00:00:00Z")
    ] = None,
) -> None:
    """Write the descriptions of all assets to standard output, one JSON object a line.

    For example: smart-assets export --tag trip > library.jsonl
    """
    from smart_assets.assets.library import Period
    from smart_assets.catalogue.repository import AssetFilter
    from smart_assets.commands.transfer import export_lines

    criteria = AssetFilter(owner=owner, storage=storage, visibility=visibility, tag=tag)
    after, before = _moment(created_after, "--created-after"), _moment(created_before, "--created-before")
    _carry_out(lambda: export_lines(load_settings(), criteria, Period(days=days, after=after, before=before)))


@app.command(name="import")
def import_(
    file: Annotated[str, typer.Argument(help="What `export` wrote; - is standard input.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be imported, and make no row.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say it to machines.")] = False,
) -> None:
    """Make the catalogue's rows of what `export` wrote, where the assets' bytes are in their storages.

    Ids that are there already are left as they are, so it may be run again. Exit code 1 where a line has no row in
    the end, 2 where it could not be done to the end.
    """
    from smart_assets.commands.transfer import import_lines

    _carry_out(lambda: import_lines(load_settings(), file, dry_run=dry_run, as_json=as_json))


def _carry_out(work: Callable[[], bool | None]) -> None:
    """Do it: exit code 1 where `work` says that not all is well; 2, and one sentence, where it could not be done."""
    try:
        well = work()
    except (SmartAssetsError, OSError) as error:
        _say_what_is_wrong(error)
        raise typer.Exit(2) from None
    if well is False:
        raise typer.Exit(1)


def _moment(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{option}: not a date and time like 2026-11-20T10:00:00Z") from None
    if moment.tzinfo is None:
        raise typer.BadParameter(f"{option}: lacks its zone: Z, or +01:00")
    return moment


@app.command()
def migrate(
    source: Annotated[str, typer.Option("--from", help="The storage the assets are at.")],
    target: Annotated[str, typer.Option("--to", help="The storage they are to be at.")],
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only assets that meet this: visibility=private, tag=trip, before=2026-01-31, after=2026-01-31T10:00Z "
            "(times of upload). Give it again for one more.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and change nothing.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Assets moved at the same time.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Say it to machines.")] = False,
) -> None:
    """Move assets from one storage to another, beside a service that may be running.

    Each is copied, verified by its hash, switched over, and then removed where it was; ids and /assets addresses stay.
    Stopped at any moment, or killed, it is gone on with by running it again. Exit code 1 where some could not be
    moved, 2 where nothing could be begun.

    Example: smart-assets migrate --from local --to s3 --where visibility=public --concurrency 16
    """
    from smart_assets.commands.migrate import Wishes
    from smart_assets.commands.migrate import migrate as move

    wishes = Wishes(source, target, where or (), dry_run=dry_run, concurrency=concurrency)
    _carry_out(lambda: move(load_settings(), wishes, json=as_json))


def _serve(settings: Settings) -> None:
    from smart_assets import runtime

    runtime.prepare(settings)
    with listen(settings.host, settings.port) as listener:
        port = listener.getsockname()[1]
        if settings.workers == 1:
            serve_on(listener, settings, ready=lambda: _welcome(settings, port))
            return
        from smart_assets.observability import configure_logging
        from smart_assets.supervisor import WorkerFailed, supervise

        configure_logging(settings.log_level, settings.log_format)
        try:
            supervise(listener, settings, ready=lambda: _welcome(settings, port))
        except WorkerFailed:
            raise typer.Exit(1) from None


def _welcome(settings: Settings, port: int) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = settings.public_url or f"http://{host}:{port}"
    who = "open: this machine only, no key needed" if settings.open_mode else "with a key: Authorization: Bearer …"
    for line in (
        f"Smart Assets is ready at {address}",
        f"  look        {address}",
        f"  try it      {address}/docs",
        f"  upload      curl -F file=@photo.jpg '{address}/api/v1/assets?sizes=1200x627,400'",
        f"  stores in   {settings.default_storage}, data in {settings.data_dir.resolve()}",
        f"  access      {who}",
        "  stop        Ctrl-C",
    ):
        typer.echo(line)


def main() -> None:
    """The entry point: what a user, or the machine, did wrong is one sentence and exit code 1, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a filename need not fit the terminal's encoding, or any
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (SmartAssetsError, OSError) as error:
        _say_what_is_wrong(error)
        sys.exit(1)


def _say_what_is_wrong(error: Exception) -> None:
    if isinstance(error, OSError):
        error = SmartAssetsError(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
    typer.echo(f"smart-assets: {error}", err=True)


if __name__ == "__main__":
    main()
