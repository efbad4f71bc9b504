"""`smart-assets upload`: files, folders, patterns, or what comes down a pipe."""

from __future__ import annotations

import glob
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

import typer

from smart_assets.commands.bar import Bar
from smart_assets.commands.service import FAILED, AsJson, Key, Url, connect, described, is_everybodys
from smart_assets.commands.side_by_side import in_order

if TYPE_CHECKING:
    from smart_assets.client import Asset, AssetsError, Client, UploadOptions

STANDARD_INPUT = "-"


def upload(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", show_default=False, help="Files, folders, patterns; - for a pipe.")
    ],
    storage: Annotated[str | None, typer.Option(help="Where to; see `stats`.", show_default="the service's")] = None,
    visibility: Annotated[str | None, typer.Option(help="public or private.", show_default="public")] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(help="1200x627, 800 (width), x600 (height), or a preset's name; commas, or several times."),
    ] = None,
    fit: Annotated[str | None, typer.Option(help="inside, cover or contain.", show_default="inside")] = None,
    gravity: Annotated[str | None, typer.Option(help="What cover keeps.", show_default="centre")] = None,
    background: Annotated[str | None, typer.Option(help="#rrggbb, or transparent.")] = None,
    image_format: Annotated[
        str | None, typer.Option("--format", help="Of the sizes: jpeg, png, webp, avif.", show_default="source")
    ] = None,
    quality: Annotated[int | None, typer.Option(help="Of the sizes, 1 to 100.", show_default="80")] = None,
    strip_metadata: Annotated[
        bool, typer.Option("--strip-metadata", help="Take EXIF, and the GPS position with it, off the original.")
    ] = False,
    tags: Annotated[list[str] | None, typer.Option(help="Commas, or several times.")] = None,
    metadata: Annotated[str | None, typer.Option(metavar="JSON", help="An object of your own.")] = None,
    expires_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="When retention may remove it: 2027-01-31T12:00:00Z.")
    ] = None,
    filename: Annotated[str | None, typer.Option(help="What it is to be called, where it is one file.")] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Folders in folders too.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop at the first that fails; else the others go on.")] = False,
    all_urls: Annotated[bool, typer.Option("--all-urls", help="Print those of the sizes too.")] = False,
    at_once: Annotated[int, typer.Option("--at-once", min=1, max=32, help="Uploads at a time.")] = 4,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Upload images and print their URLs.

    One a line, in the order of the files. Of a folder every file is sent but hidden ones; what is no image is reported.
    Exit code 1 where any failed, 2 where nothing could be tried. With --json, one asset a line, as the API has it.

    \b
    Examples:
      smart-assets upload photo.jpg --sizes 1200x627,400 --visibility private
      smart-assets upload holidays -r --tags trip --storage s3
      smart-assets upload 'scans/**/*.png' --json | jq -r .id
      curl -s https://example.com/a.jpg | smart-assets upload - --filename a.jpg
    """
    files = list(_files(paths, recursive=recursive))
    if filename is not None and len(files) != 1:
        raise typer.BadParameter("--filename is for one file")
    own = None if metadata is None else _object(metadata)
    given = {
        "storage": storage,
        "visibility": visibility,
        "sizes": ",".join(sizes) if sizes else None,
        "fit": fit,
        "gravity": gravity,
        "background": background,
        "format": image_format,
        "quality": quality,
        "strip_metadata": strip_metadata or None,
        "tags": ",".join(tags) if tags else None,
        "expires_at": expires_at,
    }
    options = cast("UploadOptions", {name: value for name, value in given.items() if value is not None})

    from smart_assets.client import AssetsError

    with connect(url, key) as assets, Bar(_sizes(files)) as bar:
        run = _Run(assets, options, filename, own, bar, stop_at_failure=stop)
        failed = untried = 0
        fatal: AssetsError | None = None
        for file, sent in in_order(run.send, files, at_once):
            outcome = sent.result()
            if outcome is None:
                untried += 1
            elif not isinstance(outcome, Exception):
                for line in _lines(outcome, as_json=as_json, all_urls=all_urls):
                    bar.print(line)
            elif isinstance(outcome, AssetsError) and is_everybodys(outcome):
                fatal = fatal or outcome
            else:
                failed += 1
                bar.complain(f"{_name(file)}: {_why(outcome)}")
        if untried:
            bar.complain(f"{untried} more {'was' if untried == 1 else 'were'} not tried")
        if fatal is not None:
            raise fatal
        if failed:
            raise typer.Exit(FAILED)


@dataclass(frozen=True)
class _Run:
    """What is the same for every file. Once `stopped`, none is begun; those under way are carried to their end."""

    assets: Client
    options: UploadOptions
    filename: str | None
    metadata: dict[str, Any] | None
    bar: Bar
    stop_at_failure: bool
    stopped: threading.Event = field(default_factory=threading.Event)

    def send(self, file: str) -> Asset | AssetsError | OSError | None:
        """The asset, or why there is none; None where it was not tried."""
        from smart_assets.client import AssetsError

        if self.stopped.is_set():
            return None
        try:
            with _opened(file) as source:
                return self.assets.upload(
                    source,
                    filename=self.filename,
                    metadata=self.metadata,
                    progress=lambda sent, _: self.bar.sent(file, sent),
                    **self.options,
                )
        except (AssetsError, OSError) as error:
            if self.stop_at_failure or (isinstance(error, AssetsError) and is_everybodys(error)):
                self.stopped.set()
            return error


def _opened(file: str) -> AbstractContextManager[Path | BinaryIO]:
    if file == STANDARD_INPUT:
        # Unbuffered: a thread that waits in the buffered one would not let go of it at exit.
        return open(0, "rb", buffering=0, closefd=False)
    return nullcontext(Path(file))


def _name(file: str) -> str:
    return "standard input" if file == STANDARD_INPUT else file


def _why(error: AssetsError | OSError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return described(error)


def _lines(asset: Asset, *, as_json: bool, all_urls: bool) -> Iterator[str]:
    if as_json:
        yield json.dumps(asset.raw, ensure_ascii=False)
        return
    yield asset.url
    if all_urls:
        for variant in asset.variants:
            yield variant.url


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--metadata is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise typer.BadParameter("--metadata is not a JSON object, such as '{\"album\": 7}'")
    return found


# ── Files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _files(paths: Sequence[str], *, recursive: bool) -> Iterator[str]:
    """Every file that is meant, in a stable order. BadParameter where a path leads nowhere: before anything is sent."""
    if paths.count(STANDARD_INPUT) > 1:
        raise typer.BadParameter("standard input (-) can be sent once only")
    if STANDARD_INPUT in paths and sys.stdin.isatty():
        raise typer.BadParameter("standard input (-) is a terminal: pipe an image into it")
    for path in paths:
        if path == STANDARD_INPUT:
            yield path
        elif os.path.isdir(path):  # noqa: PTH112 - as it was written: what is printed is what was asked for
            yield from _in_folder(path, recursive=recursive)
        elif os.path.lexists(path):
            yield path
        else:
            yield from _matching(path, recursive=recursive)


def _matching(pattern: str, *, recursive: bool) -> Iterator[str]:
    """A pattern the shell did not expand: because it was quoted, or is no shell that does."""
    found = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []  # noqa: PTH207 - ** and links
    if not found:
        raise typer.BadParameter(f"there is no file {pattern}")
    for path in found:
        if os.path.isdir(path):  # noqa: PTH112
            # `**` has named what is in it already.
            if "**" not in pattern:
                yield from _in_folder(path, recursive=recursive)
        else:
            yield path


def _in_folder(folder: str, *, recursive: bool) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise typer.BadParameter(f"{error.filename}: {error.strerror}")

    found = 0
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(parent, name)  # noqa: PTH118 - as it was written
            if not name.startswith(".") and os.path.isfile(path):  # noqa: PTH113
                found += 1
                yield path
    if not found:
        inside = "" if recursive else "; -r looks into the folders in it"
        raise typer.BadParameter(f"there is no file in {folder}{inside}")


def _sizes(files: Sequence[str]) -> int | None:
    """Bytes in all; None where nobody knows."""
    total = 0
    for file in files:
        if file == STANDARD_INPUT:
            return None
        with suppress(OSError):  # said when it is its turn
            total += Path(file).stat().st_size
    return total
