"""A Cloudinary of our own, as far as a storage uses it, on a port of this machine.

It verifies what the real one verifies and refuses what the real one refuses; where its documentation and its SDKs say
nothing, this is a guess, and the strict one. What was read for it: the Upload and Admin API references, "Permitted
naming conventions", "Invalidate cached assets", "Generating delivery URL signatures", the SDKs of Cloudinary, and error
messages that its users have shown in public. Nothing here comes from the Python SDK: the signatures are computed anew.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Literal
from urllib.parse import quote

import uvicorn
from PIL import Image, UnidentifiedImageError
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Action = Literal["upload", "explicit", "destroy", "rename", "download", "resources", "delivery"]
Kind = Literal["upload", "authenticated", "private"]

MAX_PUBLIC_ID = 255
MAX_RESULTS = 500
PART_BYTES = 5_000_000
LINK_SECONDS = 3600
STALE_SECONDS = 3600

_KINDS = ("upload", "authenticated", "private")
_NOT_SIGNED = {"file", "api_key", "signature", "resource_type", "cloud_name"}
_HASHES = {"sha1": hashlib.sha1, "sha256": hashlib.sha256}
_FORBIDDEN = set("?&#\\%<>+")
_FORMATS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp", "GIF": "gif", "AVIF": "avif", "BMP": "bmp"}
_EXTENSIONS = {**{name: name for name in _FORMATS.values()}, "jpeg": "jpg"}
_PILLOW = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "avif": "AVIF", "bmp": "BMP"}
_TRANSFORMATION = re.compile(r"[a-z]{1,4}_[^,/]+(,[a-z]{1,4}_[^,/]+)*")
_URL_SIGNATURE = re.compile(r"s--[A-Za-z0-9_-]{8}--")
_VERSION = re.compile(r"v\d+")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Cld-Error": message.encode("ascii", "replace").decode(), **(headers or {})}

    def response(self) -> Response:
        return JSONResponse({"error": {"message": str(self)}}, self.status, self.headers)


@dataclass
class Asset:
    """One image. `data` as it was uploaded."""

    public_id: str
    kind: str
    data: bytes
    format: str
    width: int
    height: int
    version: int
    created: datetime
    asset_id: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def etag(self) -> str:
        return hashlib.md5(self.data).hexdigest()

    def described(self) -> dict[str, Any]:
        return {
            "asset_id": self.asset_id,
            "public_id": self.public_id,
            "version": self.version,
            "width": self.width,
            "height": self.height,
            "format": self.format,
            "resource_type": "image",
            "created_at": f"{self.created:%Y-%m-%dT%H:%M:%SZ}",
            "bytes": len(self.data),
            "type": self.kind,
        }


@dataclass
class Account:
    """One cloud: its credentials, what it holds, what the CDN remembers of it, and how often it was asked."""

    cloud_name: str
    api_key: str
    api_secret: str
    signature_algorithm: str = "sha1"
    max_bytes: int = 100_000_000
    admin_calls_left: int = 500
    page: int = MAX_RESULTS
    """The most the Admin API lists at once, where a test wants less than it does."""
    ranges: bool = True
    """Whether a part can be asked for; where not, the whole comes."""
    guarded: bool = True
    """Whether `authenticated` assets are kept from strangers."""
    assets: dict[tuple[str, str], Asset] = field(default_factory=dict)
    cached: dict[str, tuple[tuple[str, str], Response]] = field(default_factory=dict)
    """The CDN's: what it answers at a path, and for which asset."""
    parts: dict[str, bytearray] = field(default_factory=dict)
    """Uploads in parts that are not finished."""
    calls: list[tuple[Action, dict[str, str]]] = field(default_factory=list)

    def invalidate(self, asset: tuple[str, str]) -> None:
        self.cached = {path: (of, answer) for path, (of, answer) in self.cached.items() if of != asset}

    def called(self, action: Action) -> list[dict[str, str]]:
        """The parameters of every such call."""
        return [parameters for name, parameters in self.calls if name == action]


@dataclass
class Hold:
    """A call that waits: `reached` is set when it has come, `released` lets it go on."""

    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


@dataclass
class Fault:
    """What happens to a call instead of its answer.

    With `status` it is refused, as Cloudinary does or, with `page`, as a gateway before it does. With `lost` it is
    carried out and never answered. With `cheat` its answer is changed. With `hold` it waits before it is carried out.
    """

    status: int | None = None
    message: str = "General Error"
    headers: Mapping[str, str] = field(default_factory=dict)
    page: str | None = None
    lost: bool = False
    hold: Hold | None = None
    cheat: dict[str, Any] = field(default_factory=dict)


class CloudinaryFake:
    """Any number of accounts. `url` is where both the API and the CDN are."""

    def __init__(self) -> None:
        self.url = ""
        self.server: uvicorn.Server | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.accounts: dict[str, Account] = {}
        self.app = Starlette(
            routes=[
                Route("/v1_1/{cloud}/image/download", self._download, methods=["GET"]),
                Route("/v1_1/{cloud}/image/{action}", self._upload_api, methods=["POST"]),
                Route("/v1_1/{cloud}/resources/image/{kind}", self._resources, methods=["GET"]),
                Route("/{cloud}/image/{kind}/{rest:path}", self._deliver, methods=["GET"]),
            ],
            exception_handlers={Refusal: _refuse, 404: _nothing_here, 405: _nothing_here},
        )
        self._faults: list[tuple[Action, Fault]] = []

    def account(self, cloud_name: str = "demo", **settings: Any) -> Account:
        """A new account, empty."""
        made = Account(
            cloud_name, secrets.choice("123456789") + str(secrets.randbelow(10**14)), secrets.token_urlsafe(20)
        )
        for name, value in settings.items():
            setattr(made, name, value)
        self.accounts[cloud_name] = made
        return made

    def stage(self, action: Action, fault: Fault) -> None:
        """The next call of that action goes wrong like that."""
        self._faults.append((action, fault))

    @property
    def left_to_fail(self) -> int:
        """How many of the faults staged have met no call yet."""
        return len(self._faults)

    async def has_hung_up(self) -> None:
        """Wait until nobody is connected any more, and what that took of this process is given back."""
        assert self.server is not None
        assert self.loop is not None
        deadline = time.monotonic() + 60
        while self.server.server_state.connections and time.monotonic() < deadline:
            await asyncio.sleep(0.002)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.loop))

    def forget(self) -> None:
        """Every account, and every fault staged."""
        self.accounts.clear()
        self._faults.clear()

    # ── The Upload API ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _upload_api(self, request: Request) -> Response:
        action = request.path_params["action"]
        calls = {
            "upload": self._upload,
            "explicit": self._explicit,
            "destroy": self._destroy,
            "rename": self._rename,
        }
        if action not in calls:
            raise Refusal(404, f"Invalid action {action}")
        async with request.form(max_part_size=1024 * 1024) as form:
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            fault = self._next_fault(action)
            if fault.status is not None:
                return _refused(fault)
            account = self._verified(request.path_params["cloud"], fields)
            account.calls.append((action, fields))
            if fault.hold is not None:
                fault.hold.reached.set()
                await asyncio.to_thread(fault.hold.released.wait, 60)
            answer = await calls[action](account, fields, form.get("file"), request)
        if fault.lost:
            return await _silence(request)
        return JSONResponse(answer | fault.cheat, headers={"X-Request-Id": secrets.token_hex(16)})

    async def _upload(self, account: Account, fields: dict[str, str], file: Any, request: Request) -> dict[str, Any]:
        if not isinstance(file, UploadFile):
            raise Refusal(400, "Missing required parameter - file")
        data = await file.read()
        public_id = _public_id(fields.get("public_id") or secrets.token_hex(10))
        kind = _kind(fields.get("type", "upload"))
        if "content-range" in request.headers:
            whole = _next_part(account, request.headers, data)
            if whole is None:
                received = len(account.parts[request.headers["x-unique-upload-id"]])
                return {"done": False, "bytes": received, "kind": kind, "public_id": public_id}
            data = whole
        if not data:
            raise Refusal(400, "Empty file")
        if len(data) > account.max_bytes:
            raise Refusal(400, f"File size too large. Got {len(data)}. Maximum is {account.max_bytes}.")
        image_format, width, height = await asyncio.to_thread(_identified, data)
        before = account.assets.get((kind, public_id))
        if before is not None and not _is_true(fields.get("overwrite", "1")):
            return _answered(before, existing=True)
        asset = Asset(public_id, kind, data, image_format, width, height, int(time.time()), datetime.now(UTC))
        account.assets[kind, public_id] = asset
        if _is_true(fields.get("invalidate")):
            account.invalidate((kind, public_id))
        return _answered(asset)

    async def _explicit(self, account: Account, fields: dict[str, str], *_: Any) -> dict[str, Any]:
        if "type" not in fields:
            raise Refusal(400, "Missing required parameter - type")
        return _answered(_asset(account, _kind(fields["type"]), _required(fields, "public_id")))

    async def _destroy(self, account: Account, fields: dict[str, str], *_: Any) -> dict[str, Any]:
        of = _kind(fields.get("type", "upload")), _required(fields, "public_id")
        removed = account.assets.pop(of, None)
        if _is_true(fields.get("invalidate")):
            account.invalidate(of)
        return {"result": "ok" if removed else "not found"}

    async def _rename(self, account: Account, fields: dict[str, str], *_: Any) -> dict[str, Any]:
        kind = _kind(fields.get("type", "upload"))
        to_kind = _kind(fields.get("to_type", kind))
        old, new = _required(fields, "from_public_id"), _public_id(_required(fields, "to_public_id"))
        asset = _asset(account, kind, old)
        if (to_kind, new) in account.assets and not _is_true(fields.get("overwrite")):
            raise Refusal(400, f"to_public_id({new}) already exists")
        account.assets[to_kind, new] = account.assets.pop((kind, old))
        asset.public_id, asset.kind = new, to_kind
        if _is_true(fields.get("invalidate")):
            account.invalidate((kind, old))
        return _answered(asset)

    def _verified(self, cloud: str, fields: Mapping[str, str]) -> Account:
        """The account whose secret the parameters are signed with."""
        account = self._known(cloud)
        for name in ("api_key", "timestamp", "signature"):
            _required(fields, name)
        if fields["api_key"] != account.api_key:
            known = any(fields["api_key"] == other.api_key for other in self.accounts.values())
            raise Refusal(401, "cloud_name mismatch" if known else f"Unknown API key {fields['api_key']}")
        signed = string_to_sign(fields)
        expected = _HASHES[account.signature_algorithm]((signed + account.api_secret).encode()).hexdigest()
        if not secrets.compare_digest(expected, fields["signature"]):
            raise Refusal(401, f"Invalid Signature {fields['signature']}. String to sign - '{signed}'.")
        # An address to download from is made to be used later: it has an end instead.
        if "expires_at" not in fields and abs(time.time() - _seconds(fields["timestamp"])) > STALE_SECONDS:
            reported = datetime.fromtimestamp(_seconds(fields["timestamp"]), tz=UTC)
            raise Refusal(400, f"Stale request - reported time is {reported} which is more than 1 hour ago")
        return account

    # ── Downloads ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _download(self, request: Request) -> Response:
        fields = dict(request.query_params)
        fault = self._next_fault("download")
        if fault.status is not None:
            return _refused(fault)
        if fault.lost:
            return await _silence(request)
        account = self._verified(request.path_params["cloud"], fields)
        account.calls.append(("download", fields))
        until = _seconds(fields.get("expires_at") or str(_seconds(fields["timestamp"]) + LINK_SECONDS))
        if time.time() >= until:
            raise Refusal(401, "The link has expired")
        asset = _asset(account, _kind(fields.get("type", "upload")), _required(fields, "public_id"))
        data, media_type = await asyncio.to_thread(_rendered, asset, fields.get("format"))
        how = "attachment" if _is_true(fields.get("attachment")) else "inline"
        name = fields.get("target_filename")
        disposition = f"{how}; filename*=UTF-8''{quote(name, safe='')}" if name else how
        return _ranged(
            request,
            account,
            data,
            {"Content-Type": media_type, "ETag": f'"{asset.etag}"', "Content-Disposition": disposition},
        )

    # ── The Admin API ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _resources(self, request: Request) -> Response:
        fault = self._next_fault("resources")
        if fault.status is not None:
            return _refused(fault)
        if fault.lost:
            return await _silence(request)
        account = self._authorised(request)
        account.calls.append(("resources", dict(request.query_params)))
        ration = self._rationed(account)
        query = request.query_params
        most = int(query.get("max_results", "10"))
        if not 1 <= most <= MAX_RESULTS:
            raise Refusal(400, f"max_results must be between 1 and {MAX_RESULTS}", ration)
        kind, prefix = _kind(request.path_params["kind"]), query.get("prefix", "")
        found = sorted(name for of, name in account.assets if of == kind and name.startswith(prefix))
        if "next_cursor" in query:
            found = [name for name in found if name > _cursor_read(query["next_cursor"])]
        page = found[: min(most, account.page)]
        answer: dict[str, Any] = {"resources": [account.assets[kind, name].described() for name in page]}
        if len(page) < len(found):
            answer["next_cursor"] = base64.urlsafe_b64encode(page[-1].encode()).decode()
        return JSONResponse(answer, headers=ration)

    def _authorised(self, request: Request) -> Account:
        """Basic authentication."""
        account = self._known(request.path_params["cloud"])
        credentials = base64.b64encode(f"{account.api_key}:{account.api_secret}".encode()).decode()
        if not secrets.compare_digest(request.headers.get("authorization", ""), f"Basic {credentials}"):
            raise Refusal(401, "Invalid credentials")
        return account

    def _rationed(self, account: Account) -> dict[str, str]:
        reset = (datetime.now(UTC) + timedelta(hours=1)).replace(minute=0, second=0, microsecond=0)
        headers = {
            "X-FeatureRateLimit-Limit": "500",
            "X-FeatureRateLimit-Reset": format_datetime(reset, usegmt=True),
            "X-FeatureRateLimit-Remaining": str(max(account.admin_calls_left - 1, 0)),
        }
        if account.admin_calls_left < 1:
            message = (
                f"Rate Limit Exceeded. Limit of 500 api operations reached. Try again on {reset:%Y-%m-%d %H:%M:%S} UTC"
            )
            raise Refusal(420, message, headers)
        account.admin_calls_left -= 1
        return headers

    # ── The CDN ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _deliver(self, request: Request) -> Response:
        path = request.url.path
        account = self._known(request.path_params["cloud"])
        if path in account.cached:
            return account.cached[path][1]
        account.calls.append(("delivery", {"path": path}))
        kind = _kind(request.path_params["kind"])
        public_id, extension = _delivered(account, kind, request.path_params["rest"])
        asset = _asset(account, kind, public_id)
        data, media_type = await asyncio.to_thread(_rendered, asset, extension)
        headers = {
            "Content-Type": media_type,
            "ETag": f'"{asset.etag}"',
            "Cache-Control": "public, no-transform, immutable, max-age=2592000",
            "Access-Control-Allow-Origin": "*",
        }
        answer = _ranged(request, account, data, headers)
        if answer.status_code == 200 and kind == "upload":
            account.cached[path] = (kind, public_id), answer
        return answer

    def _known(self, cloud: str) -> Account:
        if cloud not in self.accounts:
            raise Refusal(401, f"Invalid cloud_name {cloud}")
        return self.accounts[cloud]

    def _next_fault(self, action: Action) -> Fault:
        for index, (of, fault) in enumerate(self._faults):
            if of == action:
                del self._faults[index]
                return fault
        return Fault()


def string_to_sign(fields: Mapping[str, str]) -> str:
    """What a signature is of: the parameters in order, an `&` in them written otherwise."""
    return "&".join(
        sorted(
            f"{name}={value}".replace("&", "%26") for name, value in fields.items() if value and name not in _NOT_SIGNED
        )
    )


def url_signature(account: Account, transformation: str, source: str) -> str:
    """What a delivery address is signed with: `s--XXXXXXXX--`."""
    signed = "/".join(part for part in (transformation, source) if part) + account.api_secret
    digest = _HASHES[account.signature_algorithm](signed.encode()).digest()
    return f"s--{base64.urlsafe_b64encode(digest)[:8].decode()}--"


def _delivered(account: Account, kind: str, rest: str) -> tuple[str, str | None]:
    """The public id and the format that a delivery address asks for; the address is verified."""
    segments = rest.split("/")
    signature = segments.pop(0) if _URL_SIGNATURE.fullmatch(segments[0]) else None
    version = next((index for index, segment in enumerate(segments) if _VERSION.fullmatch(segment)), None)
    if version is None:  # whatever looks like one is a transformation
        version = next(
            (index for index, segment in enumerate(segments) if not _TRANSFORMATION.fullmatch(segment)), len(segments)
        )
        transformations, source = segments[:version], segments[version:]
    else:
        transformations, source = segments[:version], segments[version + 1 :]
    if any(not _TRANSFORMATION.fullmatch(segment) for segment in transformations) or not any(source):
        raise Refusal(400, "Invalid transformation")
    expected = url_signature(account, "/".join(transformations), quote("/".join(source), safe="/:"))
    needed = account.guarded and kind != "upload"
    if (signature is None and needed) or (signature is not None and signature != expected):
        raise Refusal(401, "deny or ACL failure")
    stem, dot, extension = source[-1].rpartition(".")
    if not dot:
        return "/".join(source), None
    if extension.lower() not in _EXTENSIONS:
        raise Refusal(400, f"Invalid extension in transformation: {extension}")
    return "/".join([*source[:-1], stem]), extension.lower()


def _public_id(wanted: str) -> str:
    """As Cloudinary writes it: what it forbids is refused, what it does not know becomes `_` or goes."""
    if _FORBIDDEN & set(wanted):
        raise Refusal(400, f"public_id ({wanted}) is invalid")
    if len(wanted) > MAX_PUBLIC_ID:
        raise Refusal(400, "public_id is too long")
    segments = [
        "".join(char if char.isalnum() or char in "._-" else "_" for char in segment.strip()).strip("_")
        if not re.fullmatch(r"[\w.-]*", segment)
        else segment
        for segment in wanted.strip(" /").split("/")
    ]
    if any(_VERSION.fullmatch(folder) for folder in segments[:-1]) or not all(segments):
        raise Refusal(400, f"public_id ({wanted}) is invalid")
    return "/".join(segments)


def _next_part(account: Account, headers: Mapping[str, str], data: bytes) -> bytes | None:
    """All parts, when this is the last one."""
    upload_id = headers.get("x-unique-upload-id")
    found = _CONTENT_RANGE.fullmatch(headers["content-range"])
    if not upload_id or found is None:
        raise Refusal(400, "Invalid Content-Range or X-Unique-Upload-Id")
    start, end, total = (int(number) for number in found.groups())
    received = account.parts.setdefault(upload_id, bytearray())
    if start != len(received) or end - start + 1 != len(data) or end >= total:
        raise Refusal(400, "Invalid Content-Range")
    if end + 1 < total and len(data) < PART_BYTES:
        raise Refusal(400, "All parts except EOF-chunk must be larger than 5mb")
    received += data
    return bytes(account.parts.pop(upload_id)) if len(received) == total else None


def _identified(data: bytes) -> tuple[str, int, int]:
    """Format and size of an image, which is one as far as Pillow can tell."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image_format, (width, height) = _FORMATS[image.format or ""], image.size
            image.verify()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, KeyError):
        raise Refusal(400, "Invalid image file") from None
    return image_format, width, height


def _rendered(asset: Asset, extension: str | None) -> tuple[bytes, str]:
    """The image in that format, and its media type: as it was uploaded where it has that format already."""
    wanted = asset.format if extension is None else _EXTENSIONS.get(extension)
    if wanted is None:
        raise Refusal(400, f"Invalid extension in transformation: {extension}")
    media_type = f"image/{'jpeg' if wanted == 'jpg' else wanted}"
    if wanted == asset.format:
        return asset.data, media_type
    converted = io.BytesIO()
    with Image.open(io.BytesIO(asset.data)) as image:
        image.convert("RGB").save(converted, _PILLOW[wanted])
    return converted.getvalue(), media_type


def _ranged(request: Request, account: Account, data: bytes, headers: dict[str, str]) -> Response:
    found = _RANGE.fullmatch(request.headers.get("range", ""))
    if found is None or not account.ranges:
        return Response(data, headers=headers)
    start, end = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
    if start >= len(data):
        return Response(status_code=416, headers={"Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
    return Response(data[start : end + 1], 206, headers)


def _answered(asset: Asset, *, existing: bool = False) -> dict[str, Any]:
    return asset.described() | {"etag": asset.etag} | ({"existing": True} if existing else {})


def _asset(account: Account, kind: str, public_id: str) -> Asset:
    asset = account.assets.get((kind, public_id))
    if asset is None:
        raise Refusal(404, f"Resource not found - {public_id}")
    return asset


def _kind(kind: str) -> str:
    if kind not in _KINDS:
        raise Refusal(400, f"Invalid type {kind}")
    return kind


def _required(fields: Mapping[str, str], name: str) -> str:
    if not fields.get(name):
        raise Refusal(400, f"Missing required parameter - {name}")
    return fields[name]


def _seconds(text: str) -> int:
    if not text.isdecimal():
        raise Refusal(400, f"Invalid timestamp {text}")
    return int(text)


def _is_true(text: str | None) -> bool:
    return text in {"1", "true"}


def _cursor_read(cursor: str) -> str:
    try:
        return base64.urlsafe_b64decode(cursor).decode()
    except ValueError:
        raise Refusal(400, "Invalid value for parameter next_cursor") from None


def _refused(fault: Fault) -> Response:
    status = fault.status or 500
    if fault.page is not None:
        return Response(fault.page, status, dict(fault.headers), "text/html")
    return Refusal(status, fault.message, fault.headers).response()


async def _silence(request: Request) -> Response:
    """Until whoever asks gives up."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.01)
    return Response(status_code=204)


async def _refuse(_request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return refusal.response()


async def _nothing_here(_request: Request, _error: Exception) -> Response:
    return Refusal(404, "Not found").response()


@contextmanager
def cloudinary_fake() -> Iterator[CloudinaryFake]:
    """One that listens as long as the context, in a thread of its own."""
    fake = CloudinaryFake()
    server = fake.server = uvicorn.Server(
        uvicorn.Config(fake.app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1)
    )

    async def serve() -> None:
        fake.loop = asyncio.get_running_loop()
        await server.serve(sockets=[listener])

    # asyncio sends without delay only where the protocol is named.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=lambda: asyncio.run(serve()), name="cloudinary-fake", daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while not server.started:
                if not thread.is_alive() or time.monotonic() > deadline:
                    raise RuntimeError("the fake of Cloudinary did not start")
                time.sleep(0.005)
            yield fake
        finally:
            server.should_exit = True
            thread.join(60)
