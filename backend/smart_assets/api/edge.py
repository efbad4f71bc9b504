"""The outermost layer: what happens to every request, whatever it is for."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smart_assets import observability
from smart_assets.api.problems import internal_problem, problem
from smart_assets.settings import Settings, is_loopback

logger = logging.getLogger("smart_assets.access")

ASSETS = "/assets/"
HEAD_ONLY = "smart_assets.head_only"
"""In a scope: the request is a HEAD, shown as the GET it stands for; who can spare the bytes sends none."""

MAX_JSON_BYTES = 1024 * 1024
"""The largest body of a request that is not an upload; uploads are counted by their own reader."""

SAFE_BY_DEFAULT = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
"""Header fields of every answer that has none of its own of that name: most hold signed URLs, and none is a page."""

_PAGE_POLICY = b"base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_COUNTED_METHODS = _SAFE_METHODS | {"POST", "PUT", "PATCH", "DELETE"}
_UPLOADS = re.compile(r"/api/v1/(assets(/batch)?|upload-tickets/[^/]+/file)")


class Edge:
    """Gives each request an id, guards open mode, bounds small bodies, counts, logs, and catches what is a bug."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """`app` is what comes behind."""
        self._app = app
        self._open_mode = settings.open_mode
        self._origins = frozenset(settings.cors_origins)
        self._body_timeout = settings.body_timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _SANE_REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        token = observability.request_id.set(request_id)
        status = 0
        method, is_head = scope["method"], scope["method"] == "HEAD" and not scope["path"].startswith(ASSETS)
        if is_head:  # RFC 9110, section 9.3.2: wherever GET is, and the same but for the body
            scope = {**scope, "method": "GET", HEAD_ONLY: True}

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    *_missing(message["headers"]),
                ]
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        try:
            refusal = self._refuse(scope, headers) if self._open_mode else None
            if refusal is not None:
                await problem("forbidden", refusal)(scope, receive, send_with_id)
                return
            if not _UPLOADS.fullmatch(scope["path"]):
                receive = _bounded(receive, self._body_timeout)
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            if not status:  # the service is stopping, and the request's time is up
                await problem("busy", "the service is stopping; try again", headers={"Retry-After": "5"})(
                    scope, receive, send_with_id
                )
            raise
        except Exception:
            logger.exception("a request failed", extra={"method": method, "path": scope["path"]})
            if status:
                raise  # half an answer is out: the connection must break, or it would pass for a whole one
            await internal_problem()(scope, receive, send_with_id)
        finally:
            self._note(scope, method, status, time.perf_counter() - began)
            observability.request_id.reset(token)

    def _refuse(self, scope: Scope, headers: dict[bytes, bytes]) -> str | None:
        """Why a request may not come in without a key; None where it may.

        Without keys the browser is the danger: any page its user visits can send requests to this machine. A `Host`
        that is not loopback is how DNS rebinding shows, an `Origin` that is not ours how a foreign page does.
        """
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        host = hosts[0] if len(hosts) == 1 else ""
        if not is_loopback(_hostname(host)):
            return "without keys only requests to localhost are answered: set ASSETS_API_KEYS to serve others"
        if scope["method"] in _SAFE_METHODS:
            return None
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1") in self._origins:
            return None
        if headers.get(b"sec-fetch-site") == b"cross-site" or (
            origin is not None and _authority(origin.decode("latin-1")) != host.lower()
        ):
            return "without keys no other site may send this: set ASSETS_API_KEYS and call with a key"
        return None

    def _note(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        route: str = scope.get("route_name", "") or getattr(scope.get("route"), "path", "unmatched")
        counted = method if method in _COUNTED_METHODS and status != 405 else "other"
        observability.count_request(counted, route, status, seconds)
        # Never the query: it may hold a signature.
        logger.info(
            "request",
            extra={
                "method": method,
                "path": scope["path"],
                "status": status,
                "ms": round(seconds * 1000, 1),
            },
        )


def _missing(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What of SAFE_BY_DEFAULT is not said yet; pages bring their own scripts, and only must not be framed."""
    given = dict(headers)
    missing = [(name, value) for name, value in SAFE_BY_DEFAULT.items() if name not in given]
    if given.get(b"content-type", b"").startswith(b"text/html"):
        missing = [(name, _PAGE_POLICY if name == b"content-security-policy" else value) for name, value in missing]
    return missing


def _authority(origin: str) -> str | None:
    """Host and port of an `Origin`; None where it has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _hostname(host: str) -> str:
    """The host of a `Host` header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if ":" in host else host


def _bounded(receive: Receive, seconds: float) -> Receive:
    """`receive` for a body of at most MAX_JSON_BYTES that is there within `seconds`."""
    received, more, deadline = 0, True, asyncio.get_running_loop().time() + seconds

    async def bounded() -> Message:
        nonlocal received, more
        if not more:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the body was not there within {seconds:g} seconds") from None
        more = message.get("more_body", False)
        received += len(message.get("body", b""))
        if received > MAX_JSON_BYTES:
            raise HTTPException(413, f"the body is over {MAX_JSON_BYTES} bytes")
        return message

    return bounded
