"""Examines a storage by using it: every promise of `StorageBackend` once, on real objects that are removed again."""

from __future__ import annotations

import asyncio
import os
import struct
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final, Literal
from urllib.error import HTTPError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener
from uuid import uuid4

from anyio import CancelScope

from smart_assets.errors import SmartAssetsError
from smart_assets.formats import PIXEL, ImageFormat
from smart_assets.maintenance.faults import Diagnosis, Fault, diagnose, diagnosis
from smart_assets.settings import MiB, StorageSettings, storage_variables
from smart_assets.storage.base import PresignedUpload, SignedUrl, StorageBackend, check_key
from smart_assets.storage.errors import (
    InvalidKey,
    ObjectExists,
    ObjectNotFound,
    StorageError,
    StorageNotConfigured,
    Unsupported,
)
from smart_assets.storage.keys import Visibility

Outcome = Literal["ok", "skipped", "failed"]

LARGE_BYTES: Final = 8 * MiB
ODD_NAME: Final = "Ä 日+%20'&=.png"
"""What shells, URLs, XML and signatures each find difficult."""

MOST_SKEW_SECONDS: Final = 30
"""Past it links live visibly shorter or longer than they say; vendors refuse requests from 5 or 15 minutes on."""

_SHORT_SECONDS: Final = 3
_LATE_SECONDS: Final = 5
"""How much longer than it says a link may live, for clocks that differ a little."""
_PNG: Final = ImageFormat.PNG.media_type
_MOST_READ_BYTES: Final = 2 * LARGE_BYTES


@dataclass(frozen=True)
class Step:
    """What one thing that was tried came to. `detail` is why it was skipped, what failed, or a figure; no secret."""

    name: str
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0
    diagnosis: Diagnosis | None = None


@dataclass
class Examination:
    """What was found of a storage, or of the machine (whose `type` is `machine`)."""

    subject: str
    type: str
    steps: list[Step] = field(default_factory=list)

    @property
    def is_well(self) -> bool:
        """Whether nothing failed."""
        return all(step.outcome != "failed" for step in self.steps)


class Skip(Exception):
    """It cannot be tried here, which is no fault."""


class Found(Exception):
    """It works otherwise than it should."""

    def __init__(self, detail: str, diagnosis: Diagnosis) -> None:
        """What was seen, and what it likely means."""
        super().__init__(detail)
        self.diagnosis = diagnosis


Progress = Callable[[str], None]


async def tried(name: str, act: Callable[[], Awaitable[str]], explain: Callable[[BaseException], Diagnosis]) -> Step:
    """The step that `act` is: its answer is the detail. Never raises but what cancels it."""
    began = time.monotonic()

    def step(outcome: Outcome, detail: str, found: Diagnosis | None = None) -> Step:
        return Step(name, outcome, detail, round(time.monotonic() - began, 3), found)

    try:
        return step("ok", await act())
    except Skip as why:
        return step("skipped", str(why))
    except Found as found:
        return step("failed", str(found), found.diagnosis)
    except SmartAssetsError as error:
        return step("failed", error.detail, explain(error))
    except OSError as error:
        return step("failed", error.strerror or type(error).__name__, explain(error))
    except Exception as error:  # noqa: BLE001 - one that no backend should raise is a finding too; its text may hold anything
        return step("failed", f"an error that nobody expected: {type(error).__name__}", explain(error))


async def examine(
    backend: StorageBackend, kind: str, own: StorageSettings | None, progress: Progress = lambda _: None
) -> Examination:
    """Try all of one storage. What was written is removed whatever happens, cancellation included."""
    doctor = _Doctor(backend, kind, own, progress)
    try:
        await doctor.run()
    finally:
        with CancelScope(shield=True):
            await doctor.tidy_up()
    return doctor.examination


class _Doctor:
    """One examination of one storage."""

    def __init__(self, backend: StorageBackend, kind: str, own: StorageSettings | None, progress: Progress) -> None:
        self.examination = Examination(backend.name, kind)
        self._backend = backend
        self._own = own
        self._progress = progress
        self._written: list[str] = []
        self._there: list[str] = []
        """Of what was written, what certainly is there."""
        # No folder of its own: on a disk that would be left, empty.
        self._prefix = f"{check_key(Visibility.PRIVATE)}-"
        self._small, self._odd = f"{self._prefix}small.png", f"{self._prefix}{ODD_NAME}"
        self._empty, self._large = f"{self._prefix}empty", f"{self._prefix}large.png"
        self._strangers = f"{self._prefix}stranger.png"
        self._public = f"{check_key(Visibility.PUBLIC)}-small.png"
        self._large_data = b""
        self._can_write = False
        self._skew: float | None = None
        self._signed: SignedUrl | None = None

    async def run(self) -> None:
        await self._step("clock", self._clock)
        if not await self._step("put", lambda: self._put(self._small, PIXEL)):
            self.examination.steps.append(Step("everything else", "skipped", "nothing could be written"))
            return
        self._can_write = True
        if not self._backend.capabilities.persistent:
            self.examination.steps.append(Step("everything else", "skipped", "the storage keeps nothing"))
            return
        expired = asyncio.create_task(self._tried("expired link refused", self._expired_refused))
        try:
            await self._step("odd key", self._odd_key)
            await self._step("empty object", self._empty_object)
            if await self._step("8 MB object", self._put_large):
                await self._step("get", self._get_large)
                await self._step("range", self._range)
            await self._step("stat", self._stat)
            await self._step("list", self._list)
            await self._step("sign", self._sign)
            await self._step("signed link", self._signed_link)
            await self._step("upload by a stranger", self._upload_by_a_stranger)
            await self._step("unsigned fetch refused", self._unsigned_refused)
            await self._step("public fetch", self._public_fetch)
            await self._step("overwrite refused", self._overwrite_refused)
            self._progress("expired link refused")
            self.examination.steps.append(await expired)
            if await self._step("delete", self._delete):
                await self._step("gone afterwards", self._gone)
            await self._step("as it is set up", self._as_set_up)
        finally:
            expired.cancel()
            await asyncio.wait([expired])

    async def tidy_up(self) -> None:
        """Remove what is left."""
        if not self._written:
            return
        left = await self._backend.cleanup_failed_assets(self._written)
        if left and self._can_write:
            said, found = f"could not be removed: {', '.join(left)}", self._diagnosis(Fault.UNKNOWN)
            self.examination.steps.append(Step("tidy up", "failed", said, diagnosis=found))
        elif left:
            said = "should the write have come through after all, a later check removes it"
            self.examination.steps.append(Step("tidy up", "skipped", said))

    async def _step(self, name: str, act: Callable[[], Awaitable[str]]) -> bool:
        self._progress(name)
        step = await self._tried(name, act)
        self.examination.steps.append(step)
        return step.outcome == "ok"

    async def _tried(self, name: str, act: Callable[[], Awaitable[str]]) -> Step:
        return await tried(name, act, self._explain)

    def _explain(self, error: BaseException) -> Diagnosis:
        return diagnose(error, self._backend.name, self._own, skewed=self._is_skewed)

    def _diagnosis(self, fault: Fault) -> Diagnosis:
        return diagnosis(fault, self._backend.name, self._own)

    @property
    def _is_skewed(self) -> bool:
        return self._skew is not None and abs(self._skew) > MOST_SKEW_SECONDS

    # ── The steps ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _clock(self) -> str:
        """The server's time beside ours, asked of it as a stranger: right credentials are not needed for that."""
        if not self._backend.capabilities.signed_urls:
            raise Skip("the time is this machine's own")
        signed = await self._backend.generate_signed_url(self._small, 60)
        # Halfway between asking and answering, and in the middle of the second that the answer names.
        asked = time.time()
        answer = await self._fetch(_unsigned(signed.url))
        if answer.date is None:
            raise Skip("the server does not tell its time")
        self._skew = answer.date + 0.5 - (asked + time.time()) / 2
        if self._is_skewed:
            way = "behind" if self._skew > 0 else "ahead of"
            raise Found(
                f"this machine's clock is {abs(self._skew):.0f} s {way} the server's", self._diagnosis(Fault.CLOCK)
            )
        return f"{max(0.0, abs(self._skew) - 0.5):.0f} s apart"

    async def _put(self, key: str, data: bytes) -> str:
        self._written.append(key)
        record = await self._backend.upload(key, data, content_type=_PNG)
        self._there.append(key)
        return f"{record.size:,} bytes"

    async def _odd_key(self) -> str:
        try:
            await self._put(self._odd, PIXEL)
        except (InvalidKey, Unsupported) as error:
            self._written.remove(self._odd)
            raise Skip(error.detail) from None
        await self._expect(self._odd, PIXEL)
        return ODD_NAME

    async def _empty_object(self) -> str:
        if not self._backend.capabilities.arbitrary_bytes:
            raise Skip("the storage takes images only")
        await self._put(self._empty, b"")
        await self._expect(self._empty, b"")
        return "0 bytes"

    async def _put_large(self) -> str:
        self._large_data = await asyncio.to_thread(_noise, LARGE_BYTES)
        most = self._backend.capabilities.max_object_bytes
        if most is not None and most < len(self._large_data):
            raise Skip(f"the storage takes objects up to {most:,} bytes")
        return await self._put(self._large, self._large_data)

    async def _get_large(self) -> str:
        await self._expect(self._large, self._large_data)
        return f"{len(self._large_data):,} bytes, the same"

    async def _range(self) -> str:
        start, end = LARGE_BYTES // 2 - 1, LARGE_BYTES // 2 + 70_000
        await self._expect(self._large, self._large_data[start:end], start=start, end=end)
        return f"{end - start:,} bytes from the middle"

    async def _stat(self) -> str:
        record = await self._backend.stat(self._small)
        if record.size != len(PIXEL):
            raise Found(f"says {record.size} bytes where {len(PIXEL)} were written", self._diagnosis(Fault.UNKNOWN))
        return f"{record.size} bytes, {record.content_type or 'no content type'}"

    async def _list(self) -> str:
        async with aclosing(self._backend.list(self._prefix)) as records:
            there = {record.key async for record in records}
        missing = {key for key in self._there if key.startswith(self._prefix)} - there
        if missing:
            raise Found(f"does not list {', '.join(sorted(missing))}", self._diagnosis(Fault.UNKNOWN))
        return f"{len(there)} objects"

    async def _sign(self) -> str:
        self._need_signatures()
        self._signed = await self._backend.generate_signed_url(self._small, 300, filename=ODD_NAME)
        return urlsplit(self._signed.url).netloc

    async def _signed_link(self) -> str:
        if self._signed is None:
            raise Skip("there is no signed link")
        answer = await self._fetch(self._signed.url)
        if answer.status != 200:
            fault = Fault.CLOCK if self._is_skewed else Fault.SIGNING_ADDRESS if self._signs_elsewhere else None
            raise Found(
                f"a signed link is refused, with the status {answer.status}",
                self._diagnosis(fault or Fault.CREDENTIALS),
            )
        if answer.body != PIXEL:
            raise Found("a signed link gives other bytes", self._diagnosis(Fault.SIGNING_ADDRESS))
        return "given"

    async def _upload_by_a_stranger(self) -> str:
        """As with a ticket that leads to the storage itself."""
        ends = datetime.now(UTC) + timedelta(minutes=5)
        self._written.append(self._strangers)
        try:
            leave = await self._backend.presign_upload(self._strangers, max_bytes=len(PIXEL), expires_at=ends)
        except Unsupported as error:
            raise Skip(error.detail) from None
        answer = await self._fetch(leave.url, leave)
        if answer.status >= 300:
            fault = Fault.CLOCK if self._is_skewed else Fault.SIGNING_ADDRESS if self._signs_elsewhere else None
            raise Found(
                f"leave to write is refused, with the status {answer.status}",
                self._diagnosis(fault or Fault.CREDENTIALS),
            )
        await self._expect(self._strangers, PIXEL)
        self._there.append(self._strangers)
        return f"by {leave.method}"

    async def _unsigned_refused(self) -> str:
        if self._signed is None:
            raise Skip("there is no signed link")
        answer = await self._fetch(_unsigned(self._signed.url))
        if answer.status < 400 and answer.body == PIXEL:
            raise Found("anybody can fetch private objects", self._diagnosis(Fault.OPEN))
        return f"status {answer.status}"

    async def _expired_refused(self) -> str:
        self._need_signatures()
        signed = await self._backend.generate_signed_url(self._small, _SHORT_SECONDS)
        expires = signed.expires_at.timestamp()
        answer = None
        while answer is None or (answer.status < 400 and time.time() < expires + _LATE_SECONDS):
            await asyncio.sleep(max(expires + 1 - time.time(), 1))
            answer = await self._fetch(signed.url)
        if answer.status < 400:
            fault = Fault.CLOCK if self._is_skewed else Fault.EXPIRY
            raise Found("a link is given out after it has expired", self._diagnosis(fault))
        return f"status {answer.status}"

    async def _public_fetch(self) -> str:
        if not self._backend.capabilities.public_access:
            raise Skip("nothing at the storage is meant to be open")
        try:
            await self._put(self._public, PIXEL)
        except StorageError as error:
            fault = self._explain(error).fault
            if getattr(self._own, "public_access", None) == "acl" and fault is Fault.PERMISSION:
                fault = Fault.ACLS  # the private ones were taken
            raise Found(error.detail, self._diagnosis(fault)) from error
        url = self._backend.url(self._public)
        if url is None:
            raise Skip("the storage has no address for it")
        answer = await self._fetch(url)
        if answer.status != 200:
            raise Found(
                f"strangers are refused public objects, with the status {answer.status}",
                self._diagnosis(Fault.CLOSED),
            )
        return urlsplit(url).netloc

    async def _overwrite_refused(self) -> str:
        if not self._backend.capabilities.create_if_absent:
            raise Skip("the storage cannot tell who came first; ids never repeat")
        try:
            await self._backend.upload(self._small, PIXEL + b"\0", content_type=_PNG)
        except ObjectExists:
            await self._expect(self._small, PIXEL)
            return "the first stays"
        raise Found("an object was overwritten", self._diagnosis(Fault.UNKNOWN))

    async def _delete(self) -> str:
        missing = [key for key in self._there if not await self._backend.delete(key)]
        if missing:
            raise Found(f"was gone already: {', '.join(missing)}", self._diagnosis(Fault.UNKNOWN))
        return f"{len(self._there)} objects"

    async def _gone(self) -> str:
        for key in self._there:
            if await self._backend.exists(key):
                raise Found(f"is still there: {key}", self._diagnosis(Fault.UNKNOWN))
        try:
            async with aclosing(self._backend.open(self._small)) as chunks:
                await anext(chunks, None)
        except ObjectNotFound:
            pass
        else:
            raise Found("still gives what was removed", self._diagnosis(Fault.UNKNOWN))
        if self._signed is not None:
            answer = await self._fetch(self._signed.url)
            if answer.status < 400:
                raise Found("a signed link still gives what was removed", self._diagnosis(Fault.EXPIRY))
        self._written = [key for key in self._written if key not in self._there]
        return "nothing left"

    async def _as_set_up(self) -> str:
        """The storage's own check, which knows what its vendor's settings must be."""
        await self._backend.check()
        return "its own check finds nothing"

    # ── Beneath them ────────────────────────────────────────────────────────────────────────────────────────────────

    def _need_signatures(self) -> None:
        if not self._backend.capabilities.signed_urls:
            raise Skip("the service signs its links itself, and gives what they name")

    @property
    def _signs_elsewhere(self) -> bool:
        return getattr(self._own, "signing_endpoint_url", None) is not None

    async def _expect(self, key: str, data: bytes, *, start: int = 0, end: int | None = None) -> None:
        async with aclosing(self._backend.open(key, start=start, end=end)) as chunks:
            got = b"".join([chunk async for chunk in chunks])
        if got != data:
            raise Found(f"gives other bytes of {key} than were written", self._diagnosis(Fault.UNKNOWN))

    async def _fetch(self, url: str, leave: PresignedUpload | None = None) -> _Answer:
        timeout: float = getattr(self._own, "timeout_seconds", 30.0)
        try:
            return await asyncio.to_thread(_fetched, url, timeout, leave)
        except OSError as error:
            address = "{0.scheme}://{0.netloc}".format(urlsplit(url))
            fault = Fault.SIGNING_ADDRESS if self._signs_elsewhere else self._explain_unreachable()
            raise Found(f"nobody answers at {address} ({_reason(error)})", self._diagnosis(fault)) from error

    def _explain_unreachable(self) -> Fault:
        is_virtual = getattr(self._own, "addressing_style", None) == "virtual"
        return Fault.PATH_STYLE if is_virtual and getattr(self._own, "endpoint_url", None) else Fault.ADDRESS


def not_usable(name: str, kind: str, own: StorageSettings | None, error: StorageNotConfigured) -> Examination:
    """The examination of a storage that cannot be built: something is missing."""
    return Examination(name, kind, [Step("settings", "failed", error.detail, 0.0, diagnose(error, name, own))])


def is_meant(name: str, own: StorageSettings | None) -> bool:
    """Whether the operator has begun to set this storage up, so that what is missing is worth saying."""
    if own is None or storage_variables(name).startswith("ASSETS_STORAGES__"):
        return True
    return bool(own.model_fields_set) or not own.missing(name)


# ── Strangers ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    date: float | None
    """What the server's clock says, in Unix seconds."""


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """None is followed: where it leads somebody else may let in."""


def _fetched(url: str, timeout: float, leave: PresignedUpload | None = None) -> _Answer:
    """What anybody gets there, or who writes a pixel with that leave; OSError where nobody answers. Blocks."""
    if not url.startswith(("http://", "https://")):
        raise OSError("not a web address")
    headers = {"User-Agent": "smart-assets-doctor", "Accept": "*/*"}
    request = Request(url, headers=headers)  # noqa: S310 - said above
    if leave is not None:
        request.method = leave.method
        request.data, content_type = (PIXEL, _PNG) if leave.method == "PUT" else _form(leave.fields, PIXEL)
        for name, value in {"Content-Type": content_type, **leave.headers}.items():
            request.add_header(name, value)
    try:
        response = build_opener(_NoRedirects).open(request, timeout=timeout)
    except HTTPError as error:
        response = error
    with response:
        date = response.headers.get("Date")
        try:
            when = parsedate_to_datetime(date).timestamp() if date else None
        except ValueError:
            when = None
        return _Answer(response.status, response.read(_MOST_READ_BYTES), when)


def _form(fields: Mapping[str, str], content: bytes) -> tuple[bytes, str]:
    """A form of those fields and then a file, and its content type."""
    boundary = uuid4().hex
    parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    parts.append(f'name="file"; filename="pixel.png"\r\nContent-Type: {_PNG}\r\n\r\n'.encode() + content)
    begin = f"--{boundary}\r\nContent-Disposition: form-data; ".encode()
    body = b"".join(begin + part + b"\r\n" for part in parts)
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", error)
    return (reason.strerror if isinstance(reason, OSError) else None) or type(reason).__name__


def _unsigned(url: str) -> str:
    return urlunsplit(urlsplit(url)._replace(query=""))


def _noise(size: int) -> bytes:
    """A PNG of at least so many bytes, no two alike: an image to every vendor, and no proxy can make it smaller."""
    width = 1024
    row = 3 * width
    height = size // row + 1

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + os.urandom(row) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 0)) + chunk(b"IEND", b"")
