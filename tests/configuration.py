"""`docs/configuration.md`: every setting, from `settings.py`. `make docs` writes it; a test holds it to this.

python -m tests.configuration docs/configuration.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from smart_assets.commands.config import _VENDORS
from smart_assets.settings import _STORAGES, PREFIX, IPNetwork, Settings

INTRODUCTION = """\
# Configuration

Every setting, as an environment variable or a line of the same name in `.env`, where the service is started; the
environment comes before the file. Written by `make docs` from `settings.py`: change that, not this.

Groups are joined by two underscores. What takes several values takes them comma-separated, or, where it says JSON, as a
JSON object. What is misspelt is pointed out at the start; what makes no sense keeps the service from starting, with one
sentence. `smart-assets config` shows what is in force and where each value comes from, secrets masked.
"""

VENDORS = """\
## Variables of others

The vendors' libraries look for their own, as on any machine that uses them (each by its standard chain, of which these
are the first); a setting of the tables above comes before them.

| variable | what it is for |
| --- | --- |
| `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_PROFILE`, … | credentials of `s3` |
| `AWS_DEFAULT_REGION` | the region of `s3` |
| `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` | where the server of `s3` is |
| `CLOUDINARY_URL` | the account of `cloudinary` |
| `GOOGLE_APPLICATION_CREDENTIALS` | the key file of `gcs` |
| `AZURE_STORAGE_CONNECTION_STRING` | the account of `azure` |
| `AZURE_CLIENT_ID`, `AZURE_TENANT_ID`, `AZURE_CLIENT_SECRET`, … | credentials of `azure` with an `ACCOUNT_URL` |

`ASSETS_URL` and `ASSETS_KEY` are the commands' own: where they find a service, and their key ([cli.md](cli.md)).
"""

NAMED = """\
## Storages with names of your own

`ASSETS_STORAGES__{name}__TYPE` makes one, and each setting of its type is said with its name in front:
`ASSETS_STORAGES__media__BUCKET` is to `media` what `ASSETS_S3__BUCKET` is to `s3` ([storages.md](storages.md)). One of
the type `local` has a setting of its own:
"""


def written() -> str:
    """The whole document."""
    groups = {name: field for name, field in Settings.model_fields.items() if _group(field) is not None}
    plain = [
        (name, field) for name, field in Settings.model_fields.items() if name not in groups and name != "storages"
    ]
    pieces = [INTRODUCTION, "## The service\n", _table(PREFIX, plain)]
    for name, field in groups.items():
        group = _group(field)
        assert group is not None
        pieces.append(f"## {name}\n")
        pieces.append(f"{' '.join((group.__doc__ or '').split())}\n")
        pieces.append(_table(f"{PREFIX}{name.upper()}__", group.model_fields.items()))
    (local,) = (group for group in _STORAGES if group.kind == "local")
    pieces += [NAMED, _table(f"{PREFIX}STORAGES__{{name}}__", local.model_fields.items()), VENDORS]
    return "\n".join(pieces)


def _group(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _table(prefix: str, fields: Any) -> str:
    rows = ["| variable | what it is | values | default |", "| --- | --- | --- | --- |"]
    for name, field in fields:
        if not field.description:
            raise ValueError(f"{name} has no description")
        described = field.description.replace("|", "\\|")
        variable = prefix + name.upper()
        rows.append(f"| `{variable}` | {described} | {_values(field)} | {_default(variable, field)} |")
    return "\n".join(rows) + "\n"


def _values(field: FieldInfo) -> str:
    """What may be given."""
    kinds = list(dict.fromkeys(_kinds(field.annotation)))
    limits = _limits(field)
    return " or ".join(kinds) + (f", {limits}" if limits else "")


def _kinds(annotation: Any) -> Iterator[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _kinds(arguments[0])
    elif annotation == IPNetwork:
        yield "network"
    elif origin in {Union, UnionType}:
        for argument in arguments:
            if argument is not NoneType:
                yield from _kinds(argument)
    elif origin is Literal:
        yield ", ".join(f"`{value}`" for value in arguments)
    elif origin is tuple:
        yield f"list: {' or '.join(_kinds(arguments[0]))}"
    elif origin is dict:
        yield "JSON"
    elif isinstance(annotation, type) and issubclass(annotation, Enum):
        yield ", ".join(f"`{value.value}`" for value in annotation)
    else:
        yield {bool: "`true`, `false`", int: "whole number", float: "number", Path: "path", SecretStr: "secret"}.get(
            annotation, "text"
        )


def _limits(field: FieldInfo) -> str:
    found = {type(limit): limit for limit in field.metadata if isinstance(limit, (Ge, Gt, Le))}
    least, above, most = found.get(Ge), found.get(Gt), found.get(Le)
    if isinstance(least, Ge) and isinstance(most, Le):
        return f"{least.ge} to {most.le}"
    if isinstance(least, Ge):
        return f"{least.ge} or more"
    return f"more than {above.gt}" if isinstance(above, Gt) else ""


def _default(variable: str, field: FieldInfo) -> str:
    """What it is where nothing is said; nothing where the description says so."""
    if variable in _VENDORS:
        return f"`{_VENDORS[variable]}`"
    is_described = "default" in (field.description or "") and field.default in (None, ())
    return "" if is_described or field.default_factory is not None else _shown(field.default)


def _shown(value: Any) -> str:
    if value is None or value in ("", (), {}):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(str(getattr(item, 'value', item)) for item in value)}`"
    if isinstance(value, dict):
        return f"`{json.dumps(value)}`"
    return f"`{value}`"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(written(), encoding="utf-8")
