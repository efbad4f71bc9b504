"""A client for programs that call the service.

    with Client("http://127.0.0.1:8000", key="…") as assets:
        asset = assets.upload(Path("photo.jpg"), sizes="1200x627,400", visibility="private")
        print(asset.url, [variant.url for variant in asset.variants])

Needs httpx and the standard library, nothing else of this package: the file may be copied. It is for threads, and one
client serves any number of them; from asyncio call it by `asyncio.to_thread`. There is no second one of coroutines: it
would be the same code again, for calls that wait for the service and not for each other.

Every call may be sent again without harm, and is, when the connection breaks or the service asks for it: an upload goes
out under an Idempotency-Key of its own, and is repeated only where its bytes can be read a second time. What cannot be
had is one exception, AssetsError. Redirects are not followed, so that a key goes nowhere but to the address given;
proxies are used where one is named, and not because the environment does.
"""

from __future__ import annotations

import email.utils
import io
import json
import os
import random
import secrets
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Literal, Self, TypedDict, TypeVar, Unpack
from urllib.parse import quote, urlsplit
from uuid import UUID

import httpx

__all__ = [
    "Asset",
    "AssetsError",
    "Batch",
    "Client",
    "Deletion",
    "FailedFile",
    "FailedSize",
    "InputProblem",
    "ListOptions",
    "SignedUrl",
    "SizeOptions",
    "Statistics",
    "Storage",
    "StorageStatistics",
    "Ticket",
    "TicketStatus",
    "UploadOptions",
    "Variant",
]

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
"""What can be uploaded: a path, bytes, or an open binary file or stream."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes sent (or received) so far, and how many there are, None where nobody knows.

When a call is repeated, it begins at 0 again.
"""

Visibility = Literal["public", "private"]
Metadata = Mapping[str, Any]
T = TypeVar("T")

_PIECE_BYTES: Final = 256 * 1024
_ERROR_BYTES: Final = 64 * 1024
_LONGEST_WAIT: Final = 60.0
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 8.0
_MOST_IDS: Final = 1000
_TICKETS: Final = "/api/v1/upload-tickets"
_STILL_RUNS: Final = frozenset({"idempotency_in_progress", "ticket_in_use"})


# ── Errors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class InputProblem:
    """One thing that is wrong with the input: `loc` is the way to it, such as `("query", "sizes")`."""

    loc: tuple[str | int, ...]
    message: str


class AssetsError(Exception):
    """What the service answered instead of what was asked for, or that it did not answer.

    `code` is the service's own stable word. Where no answer came, `status` is None and the code `unreachable`; where
    one came that is not the service's, `unexpected_answer`; where the file changed while it was sent, `source_changed`.
    """

    def __init__(
        self,
        detail: str,
        *,
        code: str,
        status: int | None = None,
        request_id: str | None = None,
        errors: tuple[InputProblem, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        """`retry_after` in seconds, where the service said it."""
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.status = status
        self.request_id = request_id
        self.errors = errors
        self.retry_after = retry_after


def _error_of(response: httpx.Response) -> AssetsError:
    """The error an answer is that is no success. Reads no more of it than a problem is long."""
    status, problem = response.status_code, _problem(response)
    request_id = response.headers.get("x-request-id")
    if "code" not in problem:
        detail = f"{response.url.host} answered {status} {response.reason_phrase}".rstrip()
        if response.has_redirect_location:
            detail += f": it redirects to {response.headers['location']}, which is not followed; give that address"
        return AssetsError(
            detail,
            code="unexpected_answer",
            status=status,
            request_id=request_id,
            retry_after=_retry_after(response),
        )
    return AssetsError(
        str(problem.get("detail") or problem["code"]),
        code=str(problem["code"]),
        status=status,
        request_id=request_id or problem.get("request_id"),
        errors=tuple(
            InputProblem(tuple(error.get("loc", ())), str(error.get("message", "")))
            for error in problem.get("errors") or ()
        ),
        retry_after=_retry_after(response),
    )


def _problem(response: httpx.Response) -> dict[str, Any]:
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        return {}
    text = bytearray()
    for piece in response.iter_bytes():
        text += piece
        if len(text) > _ERROR_BYTES:
            return {}
    with suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    return {}


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, from either form of the header (RFC 9110, 10.2.3)."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    with suppress(ValueError):
        moment = email.utils.parsedate_to_datetime(value)
        return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return None


def _broken(error: httpx.TransportError, address: str) -> AssetsError:
    if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
        what = f"no connection to {address} came about in time"
    elif isinstance(error, httpx.TimeoutException):
        what = f"{address} did not answer in time"
    elif isinstance(error, httpx.ConnectError | httpx.ProxyError | httpx.LocalProtocolError):
        what = f"{address} cannot be reached: {error}"
    else:
        what = f"{address} broke the connection off"
    return AssetsError(what, code="unreachable")


def _may_pass(error: httpx.TransportError) -> bool:
    """Whether it may be gone the next time: a certificate that is not trusted is not."""
    reason: BaseException | None = error
    while reason is not None:
        if isinstance(reason, ssl.SSLCertVerificationError):
            return False
        reason = reason.__cause__ or reason.__context__
    return not isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol)


# ── Answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _moment(value: str) -> datetime:
    return datetime.fromisoformat(value)


def _many(of: Callable[[Any], T]) -> Callable[[list[Any]], tuple[T, ...]]:
    return lambda values: tuple(of(value) for value in values)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What the service said. `raw` is all of it, with what a newer service has and this client does not know."""

    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, data: Any) -> Self:
        """From the service's JSON; what it does not say is the default, what is not known stays in `raw`."""
        values = {}
        for known in fields(cls):
            if known.name != "raw" and known.name in data:
                value, convert = data[known.name], known.metadata.get("read")
                values[known.name] = convert(value) if convert and value is not None else value
        return cls(**values, raw=data)


@dataclass(frozen=True, kw_only=True)
class Variant(_Answer):
    """A generated size. `name` tells sizes apart that were asked for alike, for other calls' `size`."""

    size: str
    name: str | None = None
    width: int
    height: int
    content_type: str
    size_bytes: int
    url: str
    url_expires_at: datetime | None = field(default=None, metadata={"read": _moment})


@dataclass(frozen=True, kw_only=True)
class FailedSize(_Answer):
    """A size that could not be made; only with `atomic=False`."""

    size: str
    code: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Asset(_Answer):
    """An uploaded image and all that was made of it. `id` is None for `direct`, which keeps nothing."""

    id: str | None
    filename: str | None = None
    content_type: str
    size_bytes: int
    width: int
    height: int
    sha256: str
    storage: str
    visibility: str
    url: str
    url_expires_at: datetime | None = field(default=None, metadata={"read": _moment})
    variants: tuple[Variant, ...] = field(default=(), metadata={"read": _many(Variant.read)})
    failed: tuple[FailedSize, ...] = field(default=(), metadata={"read": _many(FailedSize.read)})
    tags: tuple[str, ...] = field(default=(), metadata={"read": tuple})
    metadata: Mapping[str, Any] = field(default_factory=dict)
    thumbhash: str | None = None
    dominant_color: str | None = None
    created_at: datetime = field(metadata={"read": _moment})
    updated_at: datetime = field(metadata={"read": _moment})
    expires_at: datetime | None = field(default=None, metadata={"read": _moment})
    pinned: bool = False
    credits_used: int | None = None
    etag: str | None = field(default=None, compare=False)
    """For `change(…, if_match=)`: known from `get` and `change`."""


@dataclass(frozen=True, kw_only=True)
class FailedFile(_Answer):
    """A file of a batch that could not be taken; only with `atomic=False`."""

    index: int
    filename: str | None = None
    code: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Batch(_Answer):
    """What became of the files of one request."""

    assets: tuple[Asset, ...] = field(metadata={"read": _many(Asset.read)})
    failed: tuple[FailedFile, ...] = field(default=(), metadata={"read": _many(FailedFile.read)})


@dataclass(frozen=True, kw_only=True)
class SignedUrl(_Answer):
    """A URL with which anybody may fetch the object until it expires."""

    url: str
    url_expires_at: datetime = field(metadata={"read": _moment})


@dataclass(frozen=True, kw_only=True)
class Ticket(_Answer):
    """Leave for a browser to upload one file without a key: `raw` is what to hand it. `complete_url` is None where the
    file goes to the service itself."""

    id: str
    upload: str
    method: str
    url: str
    fields: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    complete_url: str | None = None
    max_bytes: int
    expires_at: datetime = field(metadata={"read": _moment})


@dataclass(frozen=True, kw_only=True)
class TicketStatus(_Answer):
    """What became of a ticket: `state` is `open`, `used` or `expired`."""

    id: str
    state: str
    upload: str
    storage: str
    max_bytes: int
    created_at: datetime = field(metadata={"read": _moment})
    expires_at: datetime = field(metadata={"read": _moment})
    asset_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Deletion(_Answer):
    """What became of one asset of `delete_many`: `code` is None where it was deleted, else why it was not."""

    id: str
    status: str
    code: str | None = None
    detail: str | None = None


@dataclass(frozen=True, kw_only=True)
class StorageStatistics(_Answer):
    """What a storage holds, sizes included."""

    name: str
    count: int
    bytes: int
    oldest: datetime | None = field(default=None, metadata={"read": _moment})
    newest: datetime | None = field(default=None, metadata={"read": _moment})


@dataclass(frozen=True, kw_only=True)
class Statistics(_Answer):
    """What there is in all, and by storage."""

    count: int
    bytes: int
    oldest: datetime | None = field(default=None, metadata={"read": _moment})
    newest: datetime | None = field(default=None, metadata={"read": _moment})
    storages: tuple[StorageStatistics, ...] = field(default=(), metadata={"read": _many(StorageStatistics.read)})
    retention: Mapping[str, Any] = field(default_factory=dict)
    last_cleanup: Mapping[str, Any] | None = None
    deletions_owed: int = 0


@dataclass(frozen=True, kw_only=True)
class Storage(_Answer):
    """A storage uploads may name. `missing` are the settings it lacks."""

    name: str
    type: str
    configured: bool
    missing: tuple[str, ...] = field(default=(), metadata={"read": tuple})
    default: bool = False
    capabilities: Mapping[str, Any] | None = None


_Kind = TypeVar("_Kind", Asset, Batch)


@dataclass(frozen=True, kw_only=True)
class ApiKey(_Answer):
    """A key of a caller. `key` is the secret, there when it was just made and never again."""

    id: str
    name: str
    owner: str
    scopes: tuple[str, ...] = field(default=(), metadata={"read": tuple})
    created_at: datetime = field(metadata={"read": _moment})
    expires_at: datetime | None = field(default=None, metadata={"read": _moment})
    last_used_at: datetime | None = field(default=None, metadata={"read": _moment})
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Usage(_Answer):
    """What an owner has; None where nothing is metered."""

    owner: str
    balance: int | None = None
    reserved: int | None = None
    spent: int | None = None


@dataclass(frozen=True, kw_only=True)
class DailyUsage(_Answer):
    """What was delivered to an owner on a day (`2026-11-20`, UTC), asked for with one key."""

    day: str
    key_id: str | None = None
    originals: int
    sizes: int
    size_bytes: int
    credits: int


@dataclass(frozen=True, kw_only=True)
class CreditEntry(_Answer):
    """A line of an owner's ledger."""

    id: str
    owner: str
    kind: str
    amount: int
    asset_id: str | None = None
    key_id: str | None = None
    note: str | None = None
    created_at: datetime = field(metadata={"read": _moment})


# ── What can be asked for ───────────────────────────────────────────────────────────────────────────────────────────


class SizeOptions(TypedDict, total=False):
    """How sizes are made; what is left out is as the service has it."""

    fit: Literal["inside", "cover", "contain"]
    gravity: Literal["centre", "north", "south", "east", "west", "attention"]
    background: str
    format: Literal["source", "jpeg", "png", "webp", "avif"]
    quality: int
    atomic: bool


class UploadOptions(SizeOptions, total=False):
    """How an upload is to be taken; what is left out is as the service has it."""

    sizes: str | Iterable[str]
    storage: str
    visibility: Visibility
    placeholder: bool
    strip_metadata: bool
    tags: str | Iterable[str]
    expires_at: datetime | str


class ListOptions(TypedDict, total=False):
    """Which assets, and in which order."""

    storage: str
    visibility: Visibility
    tag: str
    days: int
    created_after: datetime | str
    created_before: datetime | str
    q: str
    order: Literal["desc", "asc"]


def _parameters(options: Mapping[str, Any]) -> dict[str, str]:
    return {name: _parameter(value) for name, value in options.items() if value is not None}


def _parameter(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("a time needs its zone: datetime.now(UTC), and not datetime.now()")
        return value.isoformat()
    if isinstance(value, str | int):
        return str(value)
    return ",".join(str(part) for part in value)


# ── Bodies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _File:
    """One file to send. `size` is None where only its end will tell."""

    def __init__(self, source: Source, filename: str | None) -> None:
        self._start = 0
        self._begun = False
        self._once = False
        self.size: int | None = None
        if isinstance(source, bytes | bytearray | memoryview):
            self.size = len(memoryview(source).cast("B"))
        elif isinstance(source, str | os.PathLike):
            source = Path(source)
            filename = filename or source.name
            found = source.stat()
            if stat.S_ISREG(found.st_mode):
                self.size = found.st_size
            elif stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(f"{source} is a folder")
            else:
                self._once = True
        elif isinstance(source, io.TextIOBase):
            raise TypeError("the file is open as text: open it with mode 'rb'")
        elif source.seekable():
            self._start = source.tell()
            self.size = source.seek(0, os.SEEK_END) - self._start
        else:
            self._once = True
        self._source: Path | bytes | bytearray | memoryview | BinaryIO = source
        self.filename = filename

    @property
    def can_be_sent(self) -> bool:
        """Whether it can be read from its beginning (again)."""
        return not (self._once and self._begun)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Its bytes, from the beginning. Raises AssetsError where they are not as many as there were."""
        with self._opened() as file:
            left = self.size
            while left is None or left > 0:
                self._begun = True
                piece = file.read(_PIECE_BYTES if left is None else min(_PIECE_BYTES, left))
                if not piece:
                    break
                if left is not None:
                    left -= len(piece)
                yield piece
            if left or (left == 0 and isinstance(self._source, Path) and file.read(1)):
                raise AssetsError(f"{self.filename or 'the file'} changed while it was sent", code="source_changed")

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        if isinstance(self._source, bytes | bytearray | memoryview):
            yield io.BytesIO(self._source)
        elif isinstance(self._source, Path):
            with self._source.open("rb", buffering=0) as file:
                yield file
        else:
            if not self._once:
                self._source.seek(self._start)
            yield self._source


class _Body:
    """A request's body made of files: raw, or as a form."""

    def __init__(self, files: Sequence[_File], *, progress: Progress | None) -> None:
        self._files = files
        self._progress = progress
        self.headers: dict[str, str] = {}
        self._heads: list[bytes] = [b""]
        self._end = b""

    @classmethod
    def raw(cls, file: _File, progress: Progress | None) -> _Body:
        body = cls([file], progress=progress)
        body.headers["Content-Type"] = "application/octet-stream"
        if file.filename:
            body.headers["Content-Disposition"] = (
                f"inline; filename*=UTF-8''{quote(file.filename, '', errors='replace')}"
            )
        body._say_length()
        return body

    @classmethod
    def form(cls, name: str, files: Sequence[_File], metadata: Metadata | None, progress: Progress | None) -> _Body:
        body = cls(files, progress=progress)
        boundary = secrets.token_hex(16)
        begin = f"--{boundary}\r\nContent-Disposition: form-data; name="
        heads = []
        for file in files:
            head = f'{begin}"{name}"; filename="{_escaped(file.filename or "")}"\r\n'
            heads.append(f"\r\n{head}Content-Type: application/octet-stream\r\n\r\n".encode("utf-8", "replace"))
        heads[0] = heads[0].removeprefix(b"\r\n")
        body._heads = heads
        end = ""
        if metadata is not None:
            end = f'\r\n{begin}"metadata"\r\n\r\n{json.dumps(metadata)}'
        body._end = f"{end}\r\n--{boundary}--\r\n".encode()
        body.headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
        body._say_length()
        return body

    def _say_length(self) -> None:
        if self.total is not None:
            self.headers["Content-Length"] = str(sum(map(len, self._heads)) + self.total + len(self._end))

    @property
    def total(self) -> int | None:
        """Bytes of all files together."""
        sizes = [file.size for file in self._files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def can_be_sent(self) -> bool:
        """Whether it can be sent (again)."""
        return all(file.can_be_sent for file in self._files)

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, from the beginning."""
        sent, total = 0, self.total
        self._tell(sent, total)
        for head, file in zip(self._heads, self._files, strict=True):
            if head:
                yield head
            for piece in file.pieces():
                yield bytes(piece)
                sent += len(piece)
                self._tell(sent, total)
        if self._end:
            yield self._end

    def _tell(self, sent: int, total: int | None) -> None:
        if self._progress is not None:
            self._progress(sent, total)


def _escaped(filename: str) -> str:
    """As browsers do it (the HTML standard, "multipart/form-data")."""
    return filename.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


# ── Trying again ────────────────────────────────────────────────────────────────────────────────────────────────────


class _Patience:
    """How long to wait before a call is sent again, and when no more."""

    def __init__(self, retries: int, timeout: float) -> None:
        self._left = retries
        self._pause = _FIRST_PAUSE
        self._timeout = timeout
        self._first_still_runs_until: float | None = None

    def pause(self, error: AssetsError) -> float | None:
        """In seconds; None where it is not to be sent again."""
        asked = error.retry_after or 0.0
        if error.code in _STILL_RUNS:
            # An attempt whose answer was lost is still at work: that is waited for as the answer itself would be.
            now = time.monotonic()
            self._first_still_runs_until = self._first_still_runs_until or now + self._timeout
            return max(asked, _FIRST_PAUSE) if now < self._first_still_runs_until else None
        if not self._left or not _passes(error) or asked > _LONGEST_WAIT:
            return None
        self._left -= 1
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        # Many that were refused together must not come back together.
        return max(asked, pause) + random.SystemRandom().uniform(0, pause / 2)


def _passes(error: AssetsError) -> bool:
    if error.code == "storage_error":  # 502 too: what a storage said in earnest
        return False
    return error.status in {429, 502, 503, 504} or (error.code == "unreachable" and error.status is None)


# ── The client ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Client:
    """Calls the service at one address. Safe to use from many threads; close it, or use it as a context."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 120.0,
        connect_timeout: float = 10.0,
        retries: int = 4,
        proxy: str | None = None,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`url` is where the service is, as `ASSETS_PUBLIC_URL` would say it; ValueError where it is none.

        `timeout` is how many seconds the service may stay silent, `retries` how often a call is sent again.
        `transport` is for those who reach the service by other ways than the network.
        """
        parts = urlsplit(url.strip())
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{url!r} is not an address such as http://127.0.0.1:8000")
        try:
            httpx.URL(url.strip())
        except httpx.InvalidURL as error:
            raise ValueError(f"{url!r} is not an address: {error}") from None
        if parts.query or parts.fragment or parts.username is not None:
            raise ValueError("the address of a service has no user, query or fragment")
        headers = {"User-Agent": "smart-assets-client", "Accept": "application/json"}
        if key is not None and (key := key.strip()):
            if not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError("the key holds characters no key has")
            headers["Authorization"] = f"Bearer {key}"
        self.url = url.strip().rstrip("/")
        self._timeout = timeout
        self._retries = retries
        self._closed = threading.Event()
        self._http = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=connect_timeout),
            follow_redirects=False,
            trust_env=False,
            proxy=proxy,
            verify=verify,
            transport=transport,
        )

    def close(self) -> None:
        """Close its connections; a call that waits to be sent again gives up."""
        self._closed.set()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ── Uploads ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def upload(
        self,
        source: Source,
        *,
        filename: str | None = None,
        metadata: Metadata | None = None,
        idempotency_key: str | None = None,
        progress: Progress | None = None,
        **options: Unpack[UploadOptions],
    ) -> Asset:
        """Store an image. When this returns, it and all its sizes are stored; when it raises, nothing is.

        The source is streamed. It goes out under an Idempotency-Key, a new one unless one is given: give one where you
        may call again yourself. What can be read only once (a pipe) is sent again only while nothing of it was read.
        """
        file = _File(source, filename)
        body = _Body.raw(file, progress) if metadata is None else _Body.form("file", [file], metadata, progress)
        return self._send("/api/v1/assets", body, idempotency_key, options, Asset)

    def upload_batch(
        self,
        sources: Iterable[Source],
        *,
        filenames: Sequence[str | None] | None = None,
        metadata: Metadata | None = None,
        idempotency_key: str | None = None,
        progress: Progress | None = None,
        **options: Unpack[UploadOptions],
    ) -> Batch:
        """Store several images in one request, all or nothing; with `atomic=False` those that failed are listed.

        As `upload` otherwise; `progress` and `metadata` are of all of them. ValueError where there are none.
        """
        named = list(sources)
        if not named:
            raise ValueError("a batch needs a file")
        names = filenames or [None] * len(named)
        files = [_File(source, name) for source, name in zip(named, names, strict=True)]
        body = _Body.form("files", files, metadata, progress)
        return self._send("/api/v1/assets/batch", body, idempotency_key, options, Batch)

    def _send(self, path: str, body: _Body, key: str | None, options: Mapping[str, Any], kind: type[_Kind]) -> _Kind:
        headers = {**body.headers, "Idempotency-Key": key or secrets.token_urlsafe(24)}
        return self._call("POST", path, kind.read, params=_parameters(options), headers=headers, body=body)

    # ── Tickets ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def upload_ticket(
        self,
        *,
        max_bytes: int | None = None,
        expiry_seconds: int | None = None,
        upload: Literal["service", "bucket"] | None = None,
        sha256: str | None = None,
        filename: str | None = None,
        metadata: Metadata | None = None,
        **options: Unpack[UploadOptions],
    ) -> Ticket:
        """Leave for somebody without a key, a browser say, to upload one file, as it is said here.

        `bucket`: past the service, to the storage itself, where that can be; then it is to be completed. A call that
        is sent again makes a second ticket: one that nobody knows is good for nothing.
        """
        asked = {
            "max_bytes": max_bytes,
            "expiry_seconds": expiry_seconds,
            "upload": upload,
            "sha256": sha256,
            "metadata": metadata,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        params = _parameters({**options, "filename": filename})
        return self._call("POST", _TICKETS, Ticket.read, params=params, json=given)

    def ticket(self, ticket_id: str | UUID) -> TicketStatus:
        """Whether a ticket was used, and which asset was made with it."""
        return self._call("GET", f"{_TICKETS}/{quote(str(ticket_id), '')}", TicketStatus.read)

    def complete_ticket(self, ticket_id: str | UUID) -> Asset:
        """The asset of what was uploaded to a bucket with a ticket; the same, as often as it is asked for."""
        return self._call("POST", f"{_TICKETS}/{quote(str(ticket_id), '')}/complete", Asset.read)

    # ── The library ─────────────────────────────────────────────────────────────────────────────────────────────────

    def list(self, *, limit: int | None = None, page_size: int = 50, **options: Unpack[ListOptions]) -> Iterator[Asset]:
        """Assets, newest first unless `order="asc"`; at most `limit`. Pages are fetched as they are needed."""
        left, cursor = limit, None
        while left is None or left > 0:
            asked = page_size if left is None else min(page_size, left)
            page = self._call(
                "GET", "/api/v1/assets", _page, params=_parameters({**options, "limit": asked, "cursor": cursor})
            )
            yield from page.items
            if page.next_cursor is None:
                return
            cursor = page.next_cursor
            if left is not None:
                left -= len(page.items)

    def get(self, asset_id: str | UUID) -> Asset:
        """An asset, with its `etag`."""
        return self._call("GET", _at(asset_id), Asset.read)

    def change(self, asset_id: str | UUID, *, if_match: str | None = None, **changes: Any) -> Asset:
        """Change any of `filename`, `tags`, `metadata` (merged), `visibility`, `expires_at` and `pinned`.

        With `if_match`, an asset's `etag`, only where it is still as it was then: else AssetsError, and the code is
        `precondition_failed`.
        """
        sent = {name: _json(value) for name, value in changes.items()}
        headers = {"If-Match": if_match} if if_match is not None else None
        return self._call("PATCH", _at(asset_id), Asset.read, json=sent, headers=headers)

    def delete(self, asset_id: str | UUID) -> None:
        """Remove an asset and its sizes. AssetsError where there is none."""
        self._call("DELETE", _at(asset_id), lambda _: None, gone_is_done=True)

    def delete_many(self, asset_ids: Iterable[str | UUID]) -> Iterator[Deletion]:
        """Remove any number of assets, a thousand a request; what became of each, as it is known."""
        ids = [str(asset_id) for asset_id in asset_ids]
        for first in range(0, len(ids), _MOST_IDS):
            asked = {"ids": ids[first : first + _MOST_IDS]}
            yield from self._call("POST", "/api/v1/assets/delete", _deletions, json=asked)

    def signed_url(
        self, asset_id: str | UUID, *, expiry_seconds: int | None = None, size: str | None = None
    ) -> SignedUrl:
        """A URL for the original, or for one of the sizes, that is good for so long; a day unless said."""
        asked = {"expiry_seconds": expiry_seconds, "size": size}
        given = {name: value for name, value in asked.items() if value is not None}
        return self._call("POST", f"{_at(asset_id)}/signed-url", SignedUrl.read, json=given)

    def move(self, asset_id: str | UUID, storage: str) -> Asset:
        """Move an asset to another storage. Its id and its `/assets` addresses stay."""
        return self._call("POST", f"{_at(asset_id)}/move", Asset.read, params={"storage": storage})

    def variants(self, asset_id: str | UUID, sizes: str | Iterable[str], **options: Unpack[SizeOptions]) -> Asset:
        """Make more sizes of a stored asset."""
        asked = _parameters({"sizes": sizes, **options})
        return self._call("POST", f"{_at(asset_id)}/variants", Asset.read, params=asked)

    # ── Bytes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def content(self, asset_id: str | UUID, *, size: str | None = None) -> bytes:
        """The original's bytes, or a size's, from whatever storage."""
        return self._fetch(asset_id, size, lambda response: response.read())

    def save(
        self,
        asset_id: str | UUID,
        target: str | os.PathLike[str],
        *,
        size: str | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """The same, streamed to a file, which is there whole or not at all. What was there before is replaced."""
        path = Path(target)
        # A short name of its own: the target's may be as long as a name can be.
        temporary = path.with_name(f".{secrets.token_hex(8)}.part")

        def write(response: httpx.Response) -> None:
            with temporary.open("wb") as file:
                total = int(response.headers.get("content-length", "0")) or None
                for piece in response.iter_bytes(_PIECE_BYTES):
                    file.write(piece)
                    if progress is not None:
                        progress(file.tell(), total)

        try:
            self._fetch(asset_id, size, write)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def _fetch(self, asset_id: str | UUID, size: str | None, take: Callable[[httpx.Response], T]) -> T:
        headers = {"Accept": "image/*", "Accept-Encoding": "identity"}
        return self._carry_out(
            "GET", f"{_at(asset_id)}/content", take, params=_parameters({"size": size}), headers=headers
        )

    # ── The service ─────────────────────────────────────────────────────────────────────────────────────────────────

    def stats(self) -> Statistics:
        """What is stored. Needs a key, unless asked on the service's own machine."""
        return self._call("GET", "/api/v1/stats", Statistics.read)

    def storages(self) -> tuple[Storage, ...]:
        """Every storage an upload may name, whether it is configured, and what it can."""
        return self._call("GET", "/api/v1/storages", lambda data: _many(Storage.read)(data["storages"]))

    # ── Keys and credits ────────────────────────────────────────────────────────────────────────────────────────────

    def make_key(
        self, name: str, scopes: Iterable[str], *, owner: str | None = None, expires_at: datetime | str | None = None
    ) -> ApiKey:
        """A new key, and its secret, which nobody will tell again. Takes the scope `admin`, as all that is about keys.

        It is sent once: of an attempt whose answer was lost, a key may be left that nobody has.
        """
        wanted = {"name": name, "scopes": list(scopes), "owner": owner, "expires_at": _json(expires_at)}
        sent = {member: value for member, value in wanted.items() if value is not None}
        return self._call("POST", "/api/v1/keys", ApiKey.read, json=sent, once=True)

    def api_keys(self) -> tuple[ApiKey, ...]:
        """Every key that was made and not revoked, the oldest first."""
        return self._call("GET", "/api/v1/keys", lambda data: _many(ApiKey.read)(data["keys"]))

    def revoke_key(self, key_id: str | UUID) -> None:
        """Revoke a key, at once. AssetsError where there is none."""
        self._call("DELETE", f"/api/v1/keys/{quote(str(key_id), '')}", lambda _: None, gone_is_done=True)

    def usage(self, *, owner: str | None = None) -> Usage:
        """What an owner has: the caller's own, unless another is named, which takes the scope `admin`."""
        return self._call("GET", "/api/v1/usage", Usage.read, params=_parameters({"owner": owner}))

    def daily_usage(self, *, days: int = 30, owner: str | None = None) -> tuple[DailyUsage, ...]:
        """What was delivered on each of the last `days`, by key; the newest first."""
        query = _parameters({"days": days, "owner": owner})
        read = _many(DailyUsage.read)
        return self._call("GET", "/api/v1/usage/daily", lambda data: read(data["days"]), params=query)

    def grant_credits(
        self, owner: str, amount: int, *, note: str | None = None, idempotency_key: str | None = None
    ) -> CreditEntry:
        """Give an owner credits, or (below 0) take some back. Takes the scope `admin`.

        It counts once under its Idempotency-Key, a new one unless one is given: give one where you may call again.
        """
        sent = {"owner": owner, "amount": amount, "note": note}
        headers = {"Idempotency-Key": idempotency_key or secrets.token_urlsafe(24)}
        return self._call("POST", "/api/v1/credits", CreditEntry.read, json=sent, headers=headers)

    def ledger(
        self, *, owner: str | None = None, limit: int | None = None, page_size: int = 50
    ) -> Iterator[CreditEntry]:
        """Lines of the ledger, the newest first; the caller's own, or with the scope `admin` everybody's."""
        left, cursor = limit, None
        while left is None or left > 0:
            asked = page_size if left is None else min(page_size, left)
            query = _parameters({"owner": owner, "limit": asked, "cursor": cursor})
            entries, cursor = self._call("GET", "/api/v1/credits", _ledger_page, params=query)
            yield from entries
            if cursor is None:
                return
            left = left - len(entries) if left is not None else None

    # ── Requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _call(self, method: str, path: str, read: Callable[[Any], T], **request: Any) -> T:
        """A call whose answer is JSON."""

        def take(response: httpx.Response) -> T:
            response.read()
            try:
                found = read(None if response.status_code == 204 else response.json())
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise AssetsError(
                    f"what {self.url} answered is not what Smart Assets answers",
                    code="unexpected_answer",
                    status=response.status_code,
                    request_id=response.headers.get("x-request-id"),
                ) from error
            if isinstance(found, Asset):
                return replace(found, etag=response.headers.get("etag"))
            return found

        return self._carry_out(method, path, take, **request)

    def _carry_out(
        self,
        method: str,
        path: str,
        take: Callable[[httpx.Response], T],
        *,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        body: _Body | None = None,
        gone_is_done: bool = False,
        once: bool = False,
    ) -> T:
        """Send a request until it is answered, and `take` the answer. AssetsError where it is none, or not to be had.

        `take` may be called again where the connection broke while it read. With `gone_is_done`, 404 is what was asked
        for where an attempt before may have done it. `once`: it is not sent again.
        """
        patience = _Patience(0 if once else self._retries, self._timeout)
        may_be_done = False
        while True:
            try:
                with self._http.stream(
                    method,
                    self.url + path,
                    params=params,
                    json=json,
                    headers=headers,
                    content=None if body is None else body.pieces(),
                ) as response:
                    if response.is_success or (response.status_code == 404 and gone_is_done and may_be_done):
                        return take(response)
                    error = _error_of(response)
            except httpx.TransportError as broken:
                error = _broken(broken, self.url)
                error.__cause__ = broken
                if not _may_pass(broken):
                    raise error from broken
            pause = patience.pause(error)
            if pause is None or (body is not None and not body.can_be_sent):
                raise error
            may_be_done = may_be_done or error.status in {None, 502, 504}
            if self._closed.wait(pause):
                raise error


@dataclass(frozen=True)
class _Page:
    items: tuple[Asset, ...]
    next_cursor: str | None


def _page(data: Any) -> _Page:
    return _Page(_many(Asset.read)(data["items"]), data["next_cursor"])


def _ledger_page(data: Any) -> tuple[tuple[CreditEntry, ...], str | None]:
    return _many(CreditEntry.read)(data["items"]), data["next_cursor"]


def _deletions(data: Any) -> tuple[Deletion, ...]:
    return _many(Deletion.read)(data["results"])


def _at(asset_id: str | UUID) -> str:
    return f"/api/v1/assets/{quote(str(asset_id), '')}"


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return _parameter(value)
    return list(value) if isinstance(value, tuple | set | frozenset) else value
