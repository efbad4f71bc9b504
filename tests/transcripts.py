"""`docs/cli.md`: each command's help, and what it says when it is used. `make docs` writes it; a test holds it to this.

    python -m tests.transcripts docs/cli.md

Commands are carried out, in a folder of their own; what is another each time (ids, times, hashes, ports) is written as
if it were not.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import typer.main
from typer.testing import CliRunner

from smart_assets.cli import app
from tests import images
from tests.test_cli import Server

ADDRESS = "http://127.0.0.1:8000"
KEY = "sa_an-example-of-a-key-that-nobody-uses"

INTRODUCTION = """\
# The command line

`smart-assets` is installed by `make serve`, in `.venv/bin`. Written by `make docs`, from commands that were carried
out: change the code, not this.

`upload`, `ls`, `show`, `rm`, `url`, `stats`, `keys` and `credits` work against a running service where `--url` or
`ASSETS_URL` names one (with `--key` or `ASSETS_KEY`), else in their own process, with the settings `serve` would have:
on the same data directory, or catalogue, they may run beside it, and what they store is there for it at once. URLs then
begin with `ASSETS_PUBLIC_URL`, or with the address and port that are set.

What was asked for goes to standard output, what is wrong to standard error. Nothing is coloured and no bar is drawn
where no terminal is. Exit codes: 0, all is well; 1, some of it failed; 2, it was asked wrongly, or nobody could be
asked. Ctrl-C ends with 130 and leaves nothing half stored.

Python programs have the same over HTTP: [`smart_assets.client`](../backend/smart_assets/client.py) needs httpx and
nothing else of ours.

```python
from smart_assets.client import Client

with Client("http://127.0.0.1:8000", key=None) as assets:
    asset = assets.upload("photo.jpg", sizes="1200x627,400", visibility="private")
    print(asset.url, [variant.url for variant in asset.variants])
```
"""


@dataclass(frozen=True)
class Use:
    """A command line and the variables before it; `…1` in it is the first id that was printed, and so on."""

    line: str
    environment: dict[str, str] = field(default_factory=dict)


SCENES: dict[str, Sequence[Use]] = {
    "upload": (
        Use("smart-assets upload photo.jpg --sizes 1200x627,400 --tags trip --all-urls"),
        Use("smart-assets upload holidays --visibility private"),
        Use("smart-assets upload 'holidays/*.jpg' --json"),
        Use("smart-assets upload nowhere.jpg"),
        Use(f"smart-assets upload photo.jpg --url {ADDRESS}", {"ASSETS_KEY": KEY}),
    ),
    "ls": (
        Use("smart-assets ls --name beach"),  # of two that are sent at once, either may be the newer
        Use("smart-assets ls --tag trip --ids"),
    ),
    "show": (Use("smart-assets show …1"), Use("smart-assets show nothing")),
    "url": (Use("smart-assets url …1 --expiry 12h --size 400"), Use("smart-assets url …1 --size 99 --json")),
    "stats": (Use("smart-assets stats"),),
    "rm": (
        Use("smart-assets rm …1"),
        Use("smart-assets rm …1 …2 --json"),
        Use("smart-assets ls --ids | smart-assets rm -"),
    ),
    "config": (
        Use(
            "smart-assets config --changed",
            {"ASSETS_DEFAULT_STORAGE": "s3", "ASSETS_S3__SECRET_ACCESS_KEY": "secret", "ASSETS_API_KEYS": KEY},
        ),
        Use("smart-assets config", {"ASSETS_PORT": "http"}),
    ),
    "keys": (
        Use("smart-assets keys new"),
        Use("smart-assets keys create website --owner shop --scope assets:read --scope assets:write"),
        Use("smart-assets keys list"),
    ),
    "credits": (
        Use('smart-assets credits grant shop 1000 --once "invoice 2026-117" --note "invoice 2026-117"'),
        Use("smart-assets credits show shop", {"ASSETS_CREDITS__PER_ORIGINAL": "1"}),
        Use("smart-assets credits ledger shop"),
    ),
    "reconcile": (Use("smart-assets reconcile --storage local"),),
    "openapi": (Use("smart-assets openapi openapi"),),
}
"""What is shown of each command beside its help, in the order it is done."""


def written() -> str:
    """The whole document."""
    commands = typer.main.get_group(app).commands
    with _folder() as (folder, server):
        session = _Session(folder, server)
        told = {name: [session.use(use) for use in uses] for name, uses in SCENES.items()}
        told["serve"] = [("smart-assets serve", session.stable(_welcome(server)))]
        pieces = [INTRODUCTION]
        for name, command in commands.items():
            if command.hidden:
                continue
            pieces.append(f"## {name}\n")
            for help_of in [[name, part] for part in getattr(command, "commands", ())] or [[name]]:
                line = f"smart-assets {' '.join(help_of)} --help"
                pieces.append(_block([(line, session.run([*help_of, "--help"], {}))]))
            if name in told:
                pieces.append(_block(told[name]))
        return "\n".join(pieces)


def _welcome(server: Server) -> str:
    """What it says when it is ready, without its log."""
    return "".join(line for line in server.text.splitlines(keepends=True) if not line.startswith("{"))


def _block(told: Sequence[tuple[str, str]]) -> str:
    texts = [f"$ {line}\n{output}" for line, output in told]
    return "```\n" + "\n".join(texts) + "```\n"


@contextmanager
def _folder() -> Iterator[tuple[Path, Server]]:
    """A folder with images and settings, and a service that runs elsewhere."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, elsewhere = Path(temporary) / "images", Path(temporary) / "service"
        for name, width in (("photo.jpg", 2000), ("holidays/beach.jpg", 640), ("holidays/hôtel.jpg", 320)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(images.jpeg(width, width * 3 // 4, seed=width))
        (folder / "holidays" / "notes.txt").write_text("Sun, mostly.\n")
        elsewhere.mkdir()
        server = Server(elsewhere, ASSETS_API_KEYS=KEY)
        before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("ASSETS_")}
        try:
            with chdir(folder):
                (folder / ".env").write_text("ASSETS_S3__BUCKET=my-images\n")
                yield folder, server
        finally:
            os.environ.update(before)
            server.stop()


class _Session:
    """Commands, one after the other, and what they say, made the same each time."""

    def __init__(self, folder: Path, server: Server) -> None:
        self._folder = folder
        self._server = server
        self._ids: dict[str, str] = {}

    def use(self, use: Use) -> tuple[str, str]:
        """The line as it is shown, and what is said."""
        output, failed = "", 0
        real = list(self._ids)
        line = re.sub(r"…(\d)", lambda match: real[int(match[1]) - 1], use.line)
        for part in line.split(" | "):
            arguments = shlex.split(part.replace(ADDRESS, self._server.url))[1:]
            told = CliRunner().invoke(
                app,
                arguments,
                input=output,
                env=_environment(use.environment),
                prog_name="smart-assets",
                catch_exceptions=False,
            )
            output, failed = told.output, told.exit_code
        shown = " ".join([*(f"{name}={value}" for name, value in use.environment.items()), line])
        if failed:
            output += f"$ echo $?\n{failed}\n"
        return self.stable(shown), self.stable(output)

    def run(self, arguments: Sequence[str], environment: dict[str, str]) -> str:
        """What a command says."""
        return CliRunner().invoke(app, arguments, env=_environment(environment), prog_name="smart-assets").output

    def stable(self, text: str) -> str:
        """With what is another each time as if it were not."""
        text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", lambda match: self._id(match[0]), text)
        for pattern, instead in (
            (re.escape(self._server.url), ADDRESS),
            (re.escape(str(self._folder.parent / "service")), "/srv/images"),
            (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "2026-11-20T12:00:00Z"),
            (r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?", lambda match: "2026-11-20 12:00:00"[: len(match[0])]),
            (r"/\d{4}/\d\d/\d\d/", "/2026/11/20/"),
            (r"exp=\d+(\.\d+)?", "exp=1795262400"),
            (r"kid=\w+", "kid=b29ae5fb"),
            (r"sig=[\w-]+", "sig=4TC62ynzW3NdWPVVUwuBIImI5ZaV6LMCcaEiwYeFQmU"),
            (r"\b[0-9a-f]{64}\b", "0de3824939c164c81b2742b83b51a0f621ed1142b57ef8ad3f33a5a2c2634dd0"),
            (r"^sa_[\w-]{43}$", "sa_Rk3v9cT0mZsX7uYpLqWn2bHdJfGa5eKi8oVxC4tDwEs"),
            # Encoders differ a little from one machine to the next; their digits' number does not.
            (r"\d+(?= bytes)|(?<=\"size_bytes\": )\d+|\d+(?=  +\d+x\d+  )|(?<=  )\d{5,}(?=\b)", _digits),
        ):
            text = re.sub(pattern, instead, text, flags=re.MULTILINE)
        return text

    def _id(self, found: str) -> str:
        return self._ids.setdefault(found, f"01a1f908-5529-7703-b9de-{len(self._ids) + 1:012}")


def _digits(match: re.Match[str]) -> str:
    return "829183047"[: len(match[0])]


def _environment(given: dict[str, str]) -> dict[str, str]:
    return {"COLUMNS": "100", **given}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(written(), encoding="utf-8")
