"""`multipart/form-data` (RFC 7578) of an upload, taken apart as it comes."""

from __future__ import annotations

from pydantic import JsonValue
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState

from smart_assets.api.headers import decode_form_text, filename_of, parse_header
from smart_assets.api.strict_json import parse_json
from smart_assets.assets.metadata import MAX_METADATA_BYTES, check_metadata, invalid_metadata
from smart_assets.errors import InvalidParameter, MalformedBody

Piece = tuple[int, bytes | memoryview]
"""Bytes of one of a form's files, by its place among them."""

_METADATA = "metadata"
_PLAIN_ENCODINGS = frozenset({"", "7bit", "8bit", "binary"})

_MAX_HEADER_BYTES = 16 * 1024


class UploadForm:
    """A form with files, all in fields of one name, and at most one field `metadata`.

    `feed` it the body, then `close` it: both raise MalformedBody where it is no such form by its bytes,
    InvalidParameter where it is by its fields. Nothing is copied but headers and metadata.
    """

    def __init__(self, boundary: bytes, *, file_field: str, max_files: int, takes_metadata: bool = True) -> None:
        """`boundary` as in the Content-Type; `file_field` is the name of the files' field."""
        self.filenames: list[str | None] = []
        """What each file is called, in the order they came."""
        self.metadata: dict[str, JsonValue] | None = None
        self._file_field = file_field
        self._max_files = max_files
        self._takes_metadata = takes_metadata
        self._headers: dict[bytes, bytes] = {}
        self._header_name = b""
        self._header_value = b""
        self._has_begun = False
        self._has_metadata = False
        self._metadata_text: bytearray | None = None  # only while it comes
        self._pieces: list[Piece] = []
        if not boundary:
            raise MalformedBody("the Content-Type has no boundary")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                },
                max_header_size=_MAX_HEADER_BYTES,
            )
        except FormParserError:
            raise MalformedBody("the boundary is too long") from None

    def feed(self, chunk: bytes) -> list[Piece]:
        """What `chunk` holds of the files, in order; a file begins with an empty piece."""
        if not self._has_begun:
            # The parser passes over empty lines, and over more behind them or not, by how the body was cut.
            chunk = chunk.lstrip(b"\r\n")
            if not chunk:
                return []
            if not chunk.startswith(b"-"):
                raise MalformedBody("the form is broken: it does not begin with its boundary")
            self._has_begun = True
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedBody(f"the form is broken: {error}") from None
        pieces, self._pieces = self._pieces, []
        return pieces

    def close(self) -> None:
        """The body has ended; so must the form have."""
        if self._parser.state != MultipartState.END:
            raise MalformedBody("the body ends before the form's last boundary")
        if not self.filenames:
            raise InvalidParameter.at("body", self._file_field, message="is missing")

    def _on_part_begin(self) -> None:
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        disposition, parameters = parse_header(self._headers.get(b"content-disposition", b""))
        if disposition != "form-data" or "name" not in parameters:
            raise MalformedBody("a part of the form has no name")
        name = decode_form_text(parameters["name"])
        encoding, _ = parse_header(self._headers.get(b"content-transfer-encoding", b""))
        if encoding not in _PLAIN_ENCODINGS:
            raise MalformedBody("a part of the form has a Content-Transfer-Encoding, which forms no longer do")
        if name == _METADATA and self._takes_metadata:
            self._begin_metadata(is_file="filename" in parameters or "filename*" in parameters)
        elif name == self._file_field:
            self._begin_file(filename_of(parameters))
        else:
            more = f" and {_METADATA}" if self._takes_metadata else ""
            message = f"is not a field here; there {'are' if more else 'is'} {self._file_field}{more}"
            raise InvalidParameter.at("body", name[:100], message=message)

    def _begin_metadata(self, *, is_file: bool) -> None:
        if is_file:
            raise invalid_metadata("must be a plain field, not a file")
        if self._has_metadata:
            raise invalid_metadata("stands twice")
        self._has_metadata = True
        self._metadata_text = bytearray()

    def _begin_file(self, filename: str | None) -> None:
        if len(self.filenames) == self._max_files:
            plural = "" if self._max_files == 1 else "s"
            raise InvalidParameter.at(
                "body", self._file_field, message=f"more than the {self._max_files} file{plural} taken here"
            )
        self._pieces.append((len(self.filenames), b""))
        self.filenames.append(filename)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._metadata_text is None:
            whole = start == 0 and end == len(data)
            self._pieces.append((len(self.filenames) - 1, data if whole else memoryview(data)[start:end]))
            return
        self._metadata_text += data[start:end]
        if len(self._metadata_text) > MAX_METADATA_BYTES:
            raise invalid_metadata(f"must be at most {MAX_METADATA_BYTES} bytes")

    def _on_part_end(self) -> None:
        text, self._metadata_text = self._metadata_text, None
        if text is not None:
            try:
                value = parse_json(text)
            except ValueError as error:
                raise invalid_metadata(f"is not JSON: {error}") from None
            self.metadata = check_metadata(value)
