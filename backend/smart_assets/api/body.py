"""An upload's body, read once, as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import JsonValue
from starlette.requests import Request

from smart_assets.access.ratelimit import Meter
from smart_assets.api.dataurl import FIELD as DATA_URL
from smart_assets.api.dataurl import MAX_REST_BYTES, DataUrlScanner
from smart_assets.api.headers import ContentDigest, clean_filename, filename_of, parse_header
from smart_assets.api.multipart import UploadForm
from smart_assets.assets.metadata import check_metadata
from smart_assets.assets.spool import MEMORY_BYTES, Spool
from smart_assets.errors import (
    BodyTimeout,
    BodyTooLarge,
    ClientGone,
    InvalidParameter,
    UnsupportedMediaType,
)
from smart_assets.threads import Threads

SOURCE_URL = "source_url"
LEAST_BYTES_PER_SECOND = 1024
"""Slower than this on average, after the time a sender may stall, is `body_timeout`."""

_MEMORY_BYTES_PER_BODY = 4 * MEMORY_BYTES
_PART_OVERHEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class BodyLimits:
    """What a body may be, and what reading it takes: a `directory` for temporary files, `threads` to write them in.

    `timeout_seconds` is how long a sender may stall, `meter` counts what comes where that is limited. With `only_files`
    nothing but a file may come: neither metadata, nor JSON with the address of one.
    """

    max_file_bytes: int
    max_files: int
    directory: Path
    threads: Threads
    timeout_seconds: float
    meter: Meter | None = None
    only_files: bool = False


@dataclass(frozen=True)
class IncomingFile:
    """One uploaded file, finished. `filename` is clean; `field` is where in the body it came from.

    `refused` is why its bytes were not taken, where the others of a batch need not fail with it. `source_url` is where
    they are still to be had from: then the spool has not been written to.
    """

    spool: Spool
    filename: str | None
    field: str
    refused: BodyTooLarge | None = None
    source_url: str | None = None


@dataclass(frozen=True)
class IncomingBody:
    """What an upload sends: one file or more, in the order they came, and the caller's own metadata."""

    files: tuple[IncomingFile, ...]
    metadata: dict[str, JsonValue] | None = None


@asynccontextmanager
async def read_body(
    request: Request, limits: BodyLimits, *, batch: bool, all_or_nothing: bool = True
) -> AsyncIterator[IncomingBody]:
    """The body of an upload; its files live as long as the context, and none is left behind, whatever happens.

    A form's files are in `file`, exactly one, or for a batch in `files`; anything else is one file. Nothing of the
    request may have been read before. Raises BodyError, InvalidParameter, NoSpace or RateLimited. A file may be
    empty in a batch, and too large in one that is not `all_or_nothing`, so that the others need not fail with it.
    """
    async with AsyncExitStack() as spools:
        sender = _Sender(request, limits.timeout_seconds, limits.meter)
        async with sender:
            body = await _Reader(request, limits, batch, all_or_nothing, sender, spools).read()
        yield body


@dataclass(frozen=True)
class _Reader:
    request: Request
    limits: BodyLimits
    batch: bool
    all_or_nothing: bool
    sender: _Sender
    spools: AsyncExitStack

    async def read(self) -> IncomingBody:
        encoding = self.request.headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise UnsupportedMediaType(
                f"the Content-Encoding {encoding[:100]!r} is not taken; send the bytes as they are"
            )
        media_type, parameters = parse_header(self.request.headers.get("content-type", "").encode("latin-1"))
        if media_type == "multipart/form-data":
            return await self._form(parameters.get("boundary", b""))
        if media_type.startswith("image/") or media_type == "application/octet-stream":
            return await self._raw()
        if media_type == "application/json" and not self.limits.only_files:
            return await self._json()
        refusal = (
            f"the Content-Type {media_type[:100]!r} is not taken; send multipart/form-data, "
            f"an image's bytes as image/* or application/octet-stream"
        )
        json = "" if self.limits.only_files else f", or application/json with a {DATA_URL} or a {SOURCE_URL}"
        raise UnsupportedMediaType(refusal + json)

    async def _form(self, boundary: bytes) -> IncomingBody:
        field, max_files = ("files", self.limits.max_files) if self.batch else ("file", 1)
        form = UploadForm(boundary, file_field=field, max_files=max_files, takes_metadata=not self.limits.only_files)
        await self.sender.expect(max_files * self.limits.max_file_bytes + (max_files + 1) * _PART_OVERHEAD_BYTES)
        spools: list[Spool] = []
        refused: dict[int, BodyTooLarge] = {}
        memory_bytes = _MEMORY_BYTES_PER_BODY
        while chunk := await self.sender.read():
            for index, piece in form.feed(chunk):
                if index == len(spools):
                    if spools:
                        memory_bytes -= await _finish(spools[-1])
                    spools.append(await self._spool(memory_bytes))
                if index in refused:
                    continue
                try:
                    await spools[-1].write(piece)
                except BodyTooLarge as error:
                    if self.all_or_nothing or not self.batch:
                        raise
                    refused[index] = error
                    await spools[-1].discard()
        form.close()
        await spools[-1].finish()
        if not self.batch:
            _refuse_empty(spools[-1], field)
        files = enumerate(zip(spools, form.filenames, strict=True))
        return IncomingBody(
            tuple(IncomingFile(spool, filename, field, refused.get(index)) for index, (spool, filename) in files),
            form.metadata,
        )

    async def _raw(self) -> IncomingBody:
        await self.sender.expect(self.limits.max_file_bytes)
        disposition = self.request.headers.get("content-disposition", "").encode("latin-1")
        filename = filename_of(parse_header(disposition)[1])
        if filename is None:
            filename = clean_filename(self.request.query_params.get("filename", ""))
        spool = await self._spool()
        while chunk := await self.sender.read():
            await spool.write(chunk)
        await spool.finish()
        _refuse_empty(spool, "file")
        return IncomingBody((IncomingFile(spool, filename, "file"),))

    async def _json(self) -> IncomingBody:
        # Base64 has four characters for three bytes; a quarter more is for those that JSON writers escape.
        await self.sender.expect(self.limits.max_file_bytes * 5 // 3 + MAX_REST_BYTES)
        scanner = DataUrlScanner()
        spool = await self._spool()
        while chunk := await self.sender.read():
            await spool.write(scanner.feed(chunk))
        members = scanner.close()
        unknown = sorted(members.keys() - {"filename", "metadata", SOURCE_URL})
        if unknown:
            name = unknown[0][:100].encode(errors="replace").decode()
            message = f"is not a member here; there are {DATA_URL}, {SOURCE_URL}, filename and metadata"
            raise InvalidParameter.at("body", name, message=message)
        filename, metadata, source_url = (members.get(name) for name in ("filename", "metadata", SOURCE_URL))
        if not isinstance(filename, str | None):
            raise InvalidParameter.at("body", "filename", message="must be a string")
        if SOURCE_URL not in members:
            if not scanner.found:
                raise InvalidParameter.at("body", DATA_URL, message="is missing")
            await spool.finish()
            _refuse_empty(spool, DATA_URL)
        elif scanner.found:
            raise InvalidParameter.at("body", SOURCE_URL, message=f"cannot stand beside {DATA_URL}")
        elif not isinstance(source_url, str):
            raise InvalidParameter.at("body", SOURCE_URL, message="must be a string")
        field = DATA_URL if source_url is None else SOURCE_URL
        return IncomingBody(
            (IncomingFile(spool, clean_filename(filename or ""), field, source_url=source_url),),
            None if metadata is None else check_metadata(metadata),
        )

    async def _spool(self, memory_bytes: int = MEMORY_BYTES) -> Spool:
        spool = Spool(
            self.limits.directory,
            self.limits.max_file_bytes,
            self.limits.threads,
            memory_bytes=max(0, min(memory_bytes, MEMORY_BYTES)),
        )
        return await self.spools.enter_async_context(spool)


async def _finish(spool: Spool) -> int:
    """Finish the file; how many bytes it keeps in memory."""
    await spool.finish()
    return len(spool.source) if isinstance(spool.source, bytes) else 0


def _refuse_empty(spool: Spool, field: str) -> None:
    if spool.size == 0:
        raise InvalidParameter.at("body", field, message="is empty")


class _Sender:
    """The bytes of a request as they come, while its sender keeps sending; an async context manager to read them in.

    A sender may keep us waiting for `timeout_seconds` at a time, and altogether for that and a second for each
    KiB it has sent. One timer looks after the whole body: a timeout around each chunk would cost more than parsing it.
    """

    def __init__(self, request: Request, timeout_seconds: float, meter: Meter | None) -> None:
        self._request = request
        self._meter = meter
        self._timeout = timeout_seconds
        self._loop = asyncio.get_running_loop()
        self._scope = asyncio.timeout(None)
        self._waiting_since: float | None = None
        self._waited = 0.0
        self._received = 0
        self._max_bytes = 0
        self._digest = ContentDigest("")
        self._more = True

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        self._timer = self._loop.call_later(self._timeout, self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError:
            raise BodyTimeout(
                f"no byte came for {self._timeout:g} seconds, or fewer than {LEAST_BYTES_PER_SECOND} a second"
            ) from None

    async def expect(self, max_bytes: int) -> None:
        """Take at most so many bytes: BodyTooLarge, at once where the Content-Length says so already, and RateLimited.

        Where there is a Content-Digest, the bytes are held against it: DigestMismatch at their end.
        """
        self._max_bytes = max_bytes
        self._digest = ContentDigest(", ".join(self._request.headers.getlist("content-digest")))
        declared = _declared_length(self._request)
        self._count(declared or 0)
        if self._meter is not None:
            await self._meter.begin(declared)

    async def read(self) -> bytes:
        """The next bytes; b"" at the end."""
        while self._more:
            self._waiting_since = self._loop.time()
            message = await self._request.receive()
            self._waited += self._loop.time() - self._waiting_since
            self._waiting_since = None
            if message["type"] == "http.disconnect":
                raise ClientGone("the client went away before the end of the body")
            self._more = message.get("more_body", False)
            chunk: bytes = message.get("body", b"")
            if chunk:
                self._received += len(chunk)
                self._count(self._received)
                self._digest.update(chunk)
                if self._meter is not None:
                    await self._meter.count(len(chunk))
                return chunk
        if self._meter is not None:
            await self._meter.finish()
        self._digest.verify()
        return b""

    def _count(self, size: int) -> None:
        if size > self._max_bytes:
            raise BodyTooLarge(f"the body is larger than the limit of {self._max_bytes} bytes")

    def _look(self) -> None:
        now = self._loop.time()
        due = now + self._timeout
        if self._waiting_since is not None:
            earned = self._received / LEAST_BYTES_PER_SECOND
            due = self._waiting_since + self._timeout + min(0.0, earned - self._waited)
        if due <= now:
            self._scope.reschedule(now)
        else:
            self._timer = self._loop.call_at(due, self._look)


def least_size(request: Request) -> int:
    """How many bytes the file of a request has at least, as far as can be told before any of them is read."""
    media_type, _ = parse_header(request.headers.get("content-type", "").encode("latin-1"))
    is_raw = media_type.startswith("image/") or media_type == "application/octet-stream"
    return max(1, _declared_length(request) or 0) if is_raw else 1


def _declared_length(request: Request) -> int | None:
    try:
        return int(request.headers.get("content-length", ""))
    except ValueError:
        return None
