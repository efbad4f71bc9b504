"""What callers may keep beside an asset: metadata of their own."""

from __future__ import annotations

import json
import math

from pydantic import JsonValue

from smart_assets.errors import InvalidParameter

MAX_METADATA_BYTES = 16 * 1024
MAX_METADATA_DEPTH = 32


def check_metadata(value: object) -> dict[str, JsonValue]:
    """`value` itself, where it is metadata; InvalidParameter at ("body", "metadata") says why not.

    Metadata is a JSON object of at most 16 KiB and 32 levels, of finite numbers and valid Unicode without NUL, so that
    every database takes it and every JSON parser reads it back.
    """
    if not isinstance(value, dict):
        raise invalid_metadata("must be a JSON object")
    _check(value, MAX_METADATA_DEPTH)
    if len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()) > MAX_METADATA_BYTES:
        raise invalid_metadata(f"must be at most {MAX_METADATA_BYTES} bytes")
    return value


def invalid_metadata(message: str) -> InvalidParameter:
    """The error for metadata."""
    return InvalidParameter.at("body", "metadata", message=message)


def _check(value: object, levels: int) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise invalid_metadata("must not contain NUL")
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise invalid_metadata("must be valid Unicode")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise invalid_metadata("must not contain numbers that are not finite")
    elif isinstance(value, (dict, list)):
        if levels == 0:
            raise invalid_metadata(f"must not be nested more than {MAX_METADATA_DEPTH} levels deep")
        for key in value if isinstance(value, dict) else ():
            _check(key, levels)
        for inner in value.values() if isinstance(value, dict) else value:
            _check(inner, levels - 1)
