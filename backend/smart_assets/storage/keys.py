"""Keys: where an object lies in a storage.

A key is a relative path. The service's own are `{visibility}/YYYY/MM/DD/{id}.{name}.{ext}`, the date taken from the
UUIDv7 id, so that a key is computed from a row and never searched for. The first segment is the visibility: anything
but `public` is private.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from smart_assets.storage.errors import InvalidKey
from smart_assets.visibility import Visibility as Visibility

MAX_KEY_BYTES = 900
ORIGINAL = "original"

# Unicode's category Cc is exactly these two ranges.
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")


def validate_key(key: str) -> str:
    """`key` itself, where it is one.

    A key is a relative NFC path of at most 900 bytes in UTF-8, without control characters, backslashes, or empty,
    `.` or `..` segments. Raises InvalidKey for anything else.
    """
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        raise InvalidKey("a key must be valid Unicode") from None
    if not 0 < len(encoded) <= MAX_KEY_BYTES:
        raise InvalidKey(f"a key has 1 to {MAX_KEY_BYTES} bytes, this one {len(encoded)}")
    if not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise InvalidKey("a key must not have empty, '.' or '..' segments")
    if _FORBIDDEN.search(key):
        raise InvalidKey("a key must not contain backslashes or control characters")
    if not unicodedata.is_normalized("NFC", key):
        raise InvalidKey("a key must be in Unicode normalisation form C")
    return key


def visibility_of(key: str) -> Visibility:
    """Who may fetch the object: anybody where the first segment is `public`, else holders of a signature."""
    return Visibility.PUBLIC if key.startswith("public/") else Visibility.PRIVATE


def with_visibility(key: str, visibility: Visibility) -> str:
    """The key of the same object under another visibility."""
    _, slash, rest = key.partition("/")
    if not slash:
        raise InvalidKey("a key without a first segment has no visibility to change")
    return f"{visibility}/{rest}"


@dataclass(frozen=True)
class AssetKey:
    """A key of the service's own, taken apart. `extension` has no dot; `name` is `original` or a variant's name."""

    visibility: Visibility
    asset_id: UUID
    name: str
    extension: str

    def __str__(self) -> str:
        # A UUIDv7's first 48 bits are the milliseconds since 1970 (RFC 9562, section 5.7).
        day = datetime.fromtimestamp((self.asset_id.int >> 80) / 1000, tz=UTC)
        return f"{self.visibility}/{day:%Y/%m/%d}/{self.asset_id}.{self.name}.{self.extension}"


_INCOMING: Final = "private/incoming/"


def incoming_key(ticket_id: UUID) -> str:
    """Where a file lies that came with a ticket, before anybody looked at it: nothing is ever fetched from there."""
    return f"{_INCOMING}{ticket_id}"


def parse_incoming_key(key: str) -> UUID | None:
    """The ticket's id; None where `key` is not exactly what `incoming_key` would write."""
    if not key.startswith(_INCOMING):
        return None
    try:
        ticket_id = UUID(key.removeprefix(_INCOMING))
    except ValueError:
        return None
    return ticket_id if incoming_key(ticket_id) == key else None


_ASSET_KEY = re.compile(
    r"(?P<visibility>public|private)/\d{4}/\d\d/\d\d/"
    r"(?P<id>[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})"
    r"\.(?P<name>[0-9a-z-]{1,64})\.(?P<extension>[a-z0-9]{1,8})",
    re.ASCII,
)


def is_asset_key(key: str) -> bool:
    """Whether `key` has the form of the service's own keys: no other path can be fetched through the service."""
    return _ASSET_KEY.fullmatch(key) is not None


def parse_asset_key(key: str) -> AssetKey | None:
    """`key` taken apart; None where it is not exactly what `AssetKey` would write."""
    match = _ASSET_KEY.fullmatch(key)
    if match is None:
        return None
    parsed = AssetKey(Visibility(match["visibility"]), UUID(match["id"]), match["name"], match["extension"])
    try:
        return parsed if str(parsed) == key else None
    except ValueError:  # an id whose date lies past the year 9999
        return None
