"""The header fields of an upload: what its content is, what the file is called, what its bytes hash to."""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
import unicodedata
from urllib.parse import unquote_to_bytes

from smart_assets.disposition import cut_filename
from smart_assets.errors import DigestMismatch, MalformedBody

MAX_FILENAME_CHARACTERS = 1024

# A quoted string ends at a quote that ends the parameter. Browsers escape only quotes, and as %22, so that a name may
# end in a backslash: what is no quoted string by RFC 9110 is tried as plain text between quotes.
_PARAMETER = re.compile(
    rb';[ \t]*([^ \t=;"]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"(?=[ \t]*(?:;|$))|"([^"]*)"|([^;]*))', re.DOTALL
)
_BACKSLASH_ESCAPE = re.compile(rb'\\(["\\])')
# https://html.spec.whatwg.org/multipage/form-control-infrastructure.html#multipart-form-data
_FORM_ESCAPES = ((b"%22", b'"'), (b"%0D", b"\r"), (b"%0A", b"\n"))
# Cc: control characters; Cs: halves of surrogate pairs, which UTF-8 cannot hold; Zl, Zp: line and paragraph separators.
_NOT_IN_FILENAMES = frozenset({"Cc", "Cs", "Zl", "Zp"})


def parse_header(value: bytes) -> tuple[str, dict[str, bytes]]:
    """A field's value and its parameters, `type/sub; name="value"`: names in lower case, of two alike the first.

    Lenient: what is no parameter is left out.
    """
    head = value.split(b";", 1)[0]
    parameters: dict[str, bytes] = {}
    for name, quoted, loose, token in _PARAMETER.findall(value, len(head)):
        text = _BACKSLASH_ESCAPE.sub(rb"\1", quoted) if quoted else loose or token.strip(b' \t"')
        parameters.setdefault(name.decode("latin-1").lower(), text)
    return head.decode("latin-1").strip(" \t").lower(), parameters


def filename_of(parameters: dict[str, bytes]) -> str | None:
    """The file name in the parameters of a Content-Disposition (RFC 6266), cleaned; None where there is none.

    `filename*` (RFC 8187) goes before `filename`, which is UTF-8 with the escapes of browsers' forms, or Windows-1252.
    """
    charset, _, extended = parameters.get("filename*", b"").partition(b"'")
    _, quote, encoded = extended.partition(b"'")
    if quote and charset.lower() == b"utf-8":
        return clean_filename(decode_text(unquote_to_bytes(encoded)))
    if quote and charset.lower() == b"iso-8859-1":
        return clean_filename(unquote_to_bytes(encoded).decode("latin-1"))
    return clean_filename(decode_form_text(parameters["filename"])) if "filename" in parameters else None


def decode_form_text(raw: bytes) -> str:
    """A name in a form's part as the form had it: browsers' escapes undone."""
    for escape, character in _FORM_ESCAPES:
        raw = raw.replace(escape, character)
    return decode_text(raw)


def decode_text(raw: bytes) -> str:
    """Text of a header: UTF-8, or where it is not, Windows-1252."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def clean_filename(raw: str) -> str | None:
    """A caller's file name as metadata: one line of valid Unicode, 1 to 1024 code points in NFC.

    None where nothing is left. A path stays one: what it is kept for is showing it again, and it never becomes part of
    a path of ours.
    """
    name = "".join(
        char for char in unicodedata.normalize("NFC", raw) if unicodedata.category(char) not in _NOT_IN_FILENAMES
    )
    return cut_filename(name.strip(), MAX_FILENAME_CHARACTERS) or None


# A member of a Dictionary of Byte Sequences (RFC 9651, sections 3.2 and 3.3.5), its parameters passed over.
_DIGEST = re.compile(r"[ \t]*([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):(?:;[^,;]*)*[ \t]*")
_ALGORITHMS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}


class ContentDigest:
    """What a Content-Digest field (RFC 9530) says the content hashes to, and what it does hash to.

    Algorithms other than sha-256 and sha-512 are passed over. A field that cannot be read is MalformedBody, and not
    ignored: who sends one wants the bytes verified.
    """

    def __init__(self, field: str) -> None:
        """`field` is the field's value, several lines joined by commas; empty where there is none."""
        expected: dict[str, bytes] = {}
        for member in field.split(",") if field else ():
            match = _DIGEST.fullmatch(member)
            if match is None:
                raise MalformedBody("Content-Digest is not of the form sha-256=:base64:")
            expected[match[1]] = _unbase64(match[2])
        self._expected = {name: digest for name, digest in expected.items() if name in _ALGORITHMS}
        self._hashes = {name: _ALGORITHMS[name]() for name in self._expected}

    def update(self, chunk: bytes) -> None:
        """Take the next bytes of the content."""
        for hashing in self._hashes.values():
            hashing.update(chunk)

    def verify(self) -> None:
        """Raises DigestMismatch where the content was not what the field says."""
        for name, hashing in self._hashes.items():
            if not hmac.compare_digest(hashing.digest(), self._expected[name]):
                raise DigestMismatch(f"the body's {name} is {hashing.hexdigest()}, not what Content-Digest says")


def _unbase64(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except binascii.Error:
        raise MalformedBody("Content-Digest is not valid base64") from None
