"""JSON that callers send."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def parse_json(raw: bytes | bytearray) -> Any:
    """The value of a JSON text in UTF-8. ValueError says what is wrong: no key may stand twice, no NaN or Infinity."""
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
