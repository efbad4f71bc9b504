"""Sending bytes as RFC 9110 wants them sent: validators, conditions, one range."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache

from starlette.types import Send

from smart_assets.assets.delivery import Deliverable
from smart_assets.errors import RangeNotSatisfiable

_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.ASCII | re.IGNORECASE)
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# An image must never run as a page: no scripts, no plug-ins, no guessing of types.
SAFETY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'"),
)


@lru_cache(maxsize=256)
def http_date(moment: datetime) -> str:
    """`moment`, in UTC, as an HTTP date (RFC 9110, section 5.6.7)."""
    return (
        f"{_WEEKDAYS[moment.weekday()]}, {moment.day:02} {_MONTHS[moment.month - 1]} {moment.year}"
        f" {moment:%H:%M:%S} GMT"
    )


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The first byte and the one after the last that a `Range` header asks for of `size` bytes.

    None where the whole is to be sent: no header, several ranges, or nothing that can be understood (RFC 9110, section
    14.2, lets a server ignore it). RangeNotSatisfiable where the range lies outside.
    """
    match = _RANGE.fullmatch(header) if header else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = int(match[2])
        if length == 0 or size == 0:
            raise RangeNotSatisfiable(size)
        return max(0, size - length), size
    start = int(match[1])
    if match[2] and int(match[2]) < start:
        return None
    if start >= size:
        raise RangeNotSatisfiable(size)
    return start, min(int(match[2]) + 1, size) if match[2] else size


def is_not_modified(headers: Mapping[str, str], etag: str, modified: datetime) -> bool:
    """Whether the caller's copy is as good as ours: `If-None-Match`, else `If-Modified-Since`."""
    if (candidates := headers.get("if-none-match")) is not None:
        return candidates.strip() == "*" or any(
            candidate.strip().removeprefix("W/") == f'"{etag}"' for candidate in candidates.split(",")
        )
    since = _parse_date(headers.get("if-modified-since"))
    return since is not None and modified <= since


def _range_still_applies(condition: str | None, etag: str, modified: datetime) -> bool:
    if condition is None:
        return True
    return condition.strip() == f'"{etag}"' or _parse_date(condition) == modified


def _parse_date(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        moment = parsedate_to_datetime(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


async def send_bytes(
    send: Send,
    deliverable: Deliverable,
    request_headers: Mapping[str, str],
    *,
    cache_control: str,
    disposition: str = "inline",
    head_only: bool = False,
) -> None:
    """Answer with `deliverable`: 200, 206 or 304; RangeNotSatisfiable comes out before anything is sent. Closes it."""
    try:
        etag, modified, size = deliverable.etag, deliverable.modified, deliverable.size
        headers = [
            (b"etag", f'"{etag}"'.encode("latin-1")),
            (b"last-modified", http_date(modified).encode()),
            (b"cache-control", cache_control.encode()),
            (b"accept-ranges", b"bytes"),
            *SAFETY_HEADERS,
        ]
        if is_not_modified(request_headers, etag, modified):
            await send({"type": "http.response.start", "status": 304, "headers": headers})
            await send({"type": "http.response.body"})
            return
        status, start, end = 200, 0, size
        # RFC 9110, section 14.2: a range is of GET alone.
        if not head_only and _range_still_applies(request_headers.get("if-range"), etag, modified):
            wanted = parse_range(request_headers.get("range"), size)
            if wanted is not None:
                status, (start, end) = 206, wanted
                headers.append((b"content-range", f"bytes {start}-{end - 1}/{size}".encode()))
        headers += [
            (b"content-type", deliverable.media_type.encode()),
            (b"content-length", str(end - start).encode()),
            (b"content-disposition", disposition.encode("latin-1")),
        ]
        begin = {"type": "http.response.start", "status": status, "headers": headers}
        if head_only:
            await send(begin)
            await send({"type": "http.response.body"})
            return
        await _send_body(send, begin, deliverable, start, end)
    finally:
        deliverable.close()


async def hand_over(send: Send, deliverable: Deliverable, path: str, *, cache_control: str) -> None:
    """Have the gateway send the file it has at `path`: validators, conditions and ranges are its own. Closes it."""
    deliverable.close()
    headers = [
        (b"x-accel-redirect", path.encode()),
        (b"cache-control", cache_control.encode()),
        *SAFETY_HEADERS,
        (b"content-type", deliverable.media_type.encode()),
        (b"content-disposition", b"inline"),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body"})


async def _send_body(send: Send, begin: dict[str, object], deliverable: Deliverable, start: int, end: int) -> None:
    whole = deliverable.read_now(start, end)
    if whole is not None and len(whole) == end - start:
        await send(begin)
        await send({"type": "http.response.body", "body": whole})
        return
    pieces = deliverable.read(start, end)
    # The first piece comes before the head: until then an error can still be told as one.
    piece = await anext(pieces, b"")
    await send(begin)
    while piece:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        piece = await anext(pieces, b"")
    await send({"type": "http.response.body"})
