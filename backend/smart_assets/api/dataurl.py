"""An image as a `data:` URL (RFC 2397) in a JSON object, decoded as it comes."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from typing import Any

from smart_assets.api.strict_json import parse_json
from smart_assets.errors import BodyTooLarge, InvalidParameter, MalformedBody

FIELD = "data_url"
MAX_REST_BYTES = 64 * 1024
"""How much of the object may be something else than the image."""

_STRUCTURAL = re.compile(rb'[][{}:,"]')
_STRING_BREAK = re.compile(rb'["\\]')
_ESCAPED_ASCII = re.compile(rb"\\u00([0-7][0-9a-fA-F])")
_LONGEST_ESCAPE = len(rb"\u002f")
_HEADER = re.compile(rb"data:image/[\w.+-]+(?:;[^;,]*)*", re.IGNORECASE)
_MAX_HEADER_BYTES = 1024


class DataUrlScanner:
    """A JSON object taken apart: the image in its own `data_url` member, and everything else.

    `feed` it the body and keep what it returns, the decoded image; then `close` it. Both raise InvalidParameter at
    ("body", "data_url") where that is no base64 data URL of an image, MalformedBody where the body is no JSON object,
    BodyTooLarge where there is more than 64 KiB of everything else. It holds no more than that and one chunk.

    JSON without the contents of one string is still JSON: the scanner only finds strings and nesting; the grammar is
    left to a parser at the end.
    """

    def __init__(self) -> None:
        self._scan: Callable[[bytes, int], int] = self._between_strings
        self._rest = bytearray()
        self._image: list[bytes] = []
        self._depth = 0
        self._before = b""  # the last of `{[:,` outside strings
        self._key = ""  # the last key of the outermost object
        self._string_at = 0
        self._escaped = False
        self.found = False
        """Whether there was a `data_url` that is a string."""
        self._held = b""  # an escape whose end has not come yet
        self._header: bytearray | None = bytearray()  # what stands before the comma; None past it
        self._group = b""  # a group of four whose end has not come yet
        self._padded = False

    def feed(self, chunk: bytes) -> bytes:
        """What `chunk` holds of the image."""
        at = 0
        while at < len(chunk):
            at = self._scan(chunk, at)
        image, self._image = b"".join(self._image), []
        return image

    def close(self) -> dict[str, Any]:
        """The object's other members. The body has ended; so must the object have."""
        try:
            members = parse_json(self._rest)
        except ValueError as error:
            raise MalformedBody(f"the body is not JSON: {error}") from None
        if not isinstance(members, dict):
            raise MalformedBody("the body is not a JSON object")
        if members.pop(FIELD, "") != "":
            raise _invalid("must be a string")
        return members

    # ── The object ──────────────────────────────────────────────────────────────────────────────────────────────────
    # Each state takes the chunk and where to go on in it, and returns where it stopped.

    def _between_strings(self, chunk: bytes, at: int) -> int:
        found = _STRUCTURAL.search(chunk, at)
        if found is None:
            return self._keep(chunk, at, len(chunk))
        sign = found[0]
        if sign == b'"':
            self._string_at = len(self._rest) + found.start() - at
            self._scan = self._string
            if self._depth == 1 and self._before == b":" and self._key == FIELD:
                self._begin_image()
        else:
            self._before = sign
            self._depth += (sign in b"{[") - (sign in b"}]")
        return self._keep(chunk, at, found.end())

    def _string(self, chunk: bytes, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return self._keep(chunk, at, at + 1)
        found = _STRING_BREAK.search(chunk, at)
        if found is None:
            return self._keep(chunk, at, len(chunk))
        self._keep(chunk, at, found.end())
        if found[0] == b"\\":
            self._escaped = True
        else:
            self._scan = self._between_strings
            if self._depth == 1 and self._before != b":":
                self._key = self._text_since(self._string_at)
        return found.end()

    def _keep(self, chunk: bytes, start: int, end: int) -> int:
        self._rest += chunk[start:end]
        if len(self._rest) > MAX_REST_BYTES:
            raise BodyTooLarge(f"the JSON object holds more than {MAX_REST_BYTES} bytes beside the {FIELD}")
        return end

    def _text_since(self, start: int) -> str:
        try:
            return str(parse_json(self._rest[start:]))
        except ValueError as error:
            raise MalformedBody(f"the body is not JSON: {error}") from None

    # ── The image ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin_image(self) -> None:
        if self.found:
            raise MalformedBody(f"{FIELD} stands twice in the JSON object")
        self.found = True
        self._scan = self._image_text

    def _image_text(self, chunk: bytes, at: int) -> int:
        # Nothing that may be escaped in a data URL is or contains a quote, so the first one is the string's end.
        end = chunk.find(b'"', at)
        if end >= 0:
            self._take(_unescape(self._held + chunk[at:end]))
            self._end_image()
            self._scan = self._between_strings
            return self._keep(chunk, end, end + 1)
        text = self._held + chunk[at:]
        whole = _end_of_whole_escapes(text)
        self._held = text[whole:]
        self._take(_unescape(text[:whole]))
        return len(chunk)

    def _take(self, text: bytes) -> None:
        if self._header is not None:
            self._header += text
            comma = self._header.find(b",")
            if comma > _MAX_HEADER_BYTES or (comma < 0 and len(self._header) > _MAX_HEADER_BYTES):
                raise _invalid("is not a data URL of an image")
            if comma < 0:
                return
            _check_header(bytes(self._header[:comma]))
            text = bytes(self._header[comma + 1 :])
            self._header = None
        text = self._group + text
        groups = len(text) - len(text) % 4
        self._group = text[groups:]
        if text and self._padded:
            raise _invalid("is not valid base64")
        self._padded = self._padded or text.endswith(b"=", 0, groups)
        try:
            self._image.append(binascii.a2b_base64(text[:groups], strict_mode=True))
        except binascii.Error:
            raise _invalid("is not valid base64") from None

    def _end_image(self) -> None:
        if self._header is not None:
            raise _invalid("is not a data URL of an image")
        if self._group:
            raise _invalid("is not valid base64: the last group of four is not whole")


def _unescape(text: bytes) -> bytes:
    """The string's characters; a backslash that no image's data URL can have is refused."""
    if b"\\" not in text:
        return text
    text = text.replace(rb"\/", b"/")
    text = _ESCAPED_ASCII.sub(lambda escape: bytes.fromhex(escape[1].decode()), text)
    if b"\\" in text:
        raise _invalid("is not valid base64")
    return text


def _end_of_whole_escapes(text: bytes) -> int:
    """Where `text` is to be cut so that no escape is cut in two."""
    backslash = text.rfind(b"\\", -(_LONGEST_ESCAPE - 1))
    whole = backslash < 0 or text[backslash + 1 : backslash + 2] not in {b"", b"u"}
    return len(text) if whole else backslash


def _check_header(header: bytes) -> None:
    if not _HEADER.fullmatch(header):
        raise _invalid("is not a data URL of an image")
    if not header.lower().endswith(b";base64"):
        raise _invalid("is percent-encoded; only base64 is taken")


def _invalid(message: str) -> InvalidParameter:
    return InvalidParameter.at("body", FIELD, message=message)
