"""`smart-assets config`: what the service would run with, and who said so."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smart_assets.commands.service import NOT_TRIED, AsJson, complain
from smart_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from smart_assets.settings import Settings

_MASK = "****"
_USER = re.compile(r"(?<=://)([^/@\s:]*):([^/@\s]*)@")
_SECRET_NAME = re.compile(r"(?i)secret|password|token|credential|private|signature(?!_algorithm)")
# What fills a setting that ours leaves empty (see `settings`).
_VENDORS = {
    "ASSETS_CLOUDINARY__URL": "CLOUDINARY_URL",
    "ASSETS_AZURE__CONNECTION_STRING": "AZURE_STORAGE_CONNECTION_STRING",
}


@dataclass(frozen=True)
class Effective:
    """A setting as it is: `source` is `default`, `environment`, or the line of a file. A secret's value is masked."""

    name: str
    value: Any
    source: str


def config(
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not the default.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show every setting and where it comes from.

    As `serve` would have them; secrets are masked. What is set in the environment comes before the same in .env. Exit
    code 2 where a setting is wrong.

    \b
    Examples:
      smart-assets config --changed
      smart-assets config --json | jq -r '.ASSETS_DATA_DIR.value'
    """
    from smart_assets.settings import load_settings

    try:
        found = [setting for setting in effective(load_settings()) if not changed or setting.source != "default"]
    except ConfigurationError as error:
        complain(str(error))
        raise typer.Exit(NOT_TRIED) from None
    if as_json:
        told = {setting.name: {"value": setting.value, "source": setting.source} for setting in found}
        typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
        return
    lines = [f"{setting.name}={_text(setting.value)}" for setting in found]
    width = min(max(map(len, lines), default=0), 60)
    for line, setting in zip(lines, found, strict=True):
        typer.echo(f"{line:<{width}}  # {setting.source}")


def effective(settings: Settings) -> Iterator[Effective]:
    """Every setting, in the order it is documented."""
    from smart_assets.settings import PREFIX

    written = _written(Path(str(settings.model_config.get("env_file") or ".env")))
    for name, value, given in _leaves(settings, PREFIX):
        yield Effective(name, _shown(name, value), _source(name, written, given=given))


def _leaves(group: BaseModel, prefix: str) -> Iterator[tuple[str, Any, bool]]:
    """Names, values, and whether somebody gave them; those of a group, and of one that has a name, one by one."""
    from pydantic import BaseModel

    for field in type(group).model_fields:
        name, value = f"{prefix}{field.upper()}", getattr(group, field)
        named = value if isinstance(value, Mapping) and value else {}
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{name}__")
        elif named and all(isinstance(member, BaseModel) for member in named.values()):
            for member_name, member in named.items():
                yield from _leaves(member, f"{name}__{member_name}__")
        else:
            yield name, value, field in group.model_fields_set


def _shown(name: str, value: Any) -> Any:
    """The value as JSON has it, and as anybody may see it."""
    from pydantic import SecretStr
    from pydantic_core import to_jsonable_python

    if isinstance(value, SecretStr):
        return _MASK if value.get_secret_value() else ""
    if isinstance(value, tuple | list):
        return [_shown(name, member) for member in value]
    if isinstance(value, Mapping):
        return {
            str(member): _MASK if _SECRET_NAME.search(str(member)) else _shown(name, inner)
            for member, inner in value.items()
        }
    if isinstance(value, str):
        if value and _SECRET_NAME.search(name.rpartition("__")[2].removeprefix("ASSETS_")):
            return _MASK
        return _USER.sub(rf"\1:{_MASK}@", str(value))
    return to_jsonable_python(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(member, str) for member in value):
        return ",".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ── Where a setting comes from ──────────────────────────────────────────────────────────────────────────────────────


def _written(path: Path) -> dict[str, str]:
    """Where in the file each variable is set: the last line that does. Names in upper case, as they are compared."""
    from dotenv.parser import parse_stream

    try:
        text = path.open(encoding="utf-8")
    except OSError:
        return {}
    with text:
        return {
            binding.key.upper(): f"{path} line {binding.original.line + _blank_lines(binding.original.string)}"
            for binding in parse_stream(text)
            if binding.key is not None and not binding.error
        }


def _blank_lines(before: str) -> int:
    """Those the parser counts to the line that follows them."""
    return len(before[: len(before) - len(before.lstrip())].splitlines())


def _source(name: str, written: Mapping[str, str], *, given: bool) -> str:
    """Who sets it: by its own name, or in the JSON of its group; the environment before the file."""
    environment = {variable.upper() for variable in os.environ}
    parts = name.upper().split("__")
    for candidate in ("__".join(parts[:length]) for length in range(len(parts) if given else 0, 0, -1)):
        if candidate in environment:
            return "environment" if candidate == name.upper() else f"environment ({candidate})"
        if candidate in written:
            return written[candidate]
    if (vendors := _VENDORS.get(name)) and os.environ.get(vendors):
        return f"environment ({vendors})"
    return "default"
