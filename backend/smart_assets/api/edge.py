"""The outermost layer: what happens to every request, whatever it is for."""

from __future__ import annotations

import logging
import re
import secrets
import time
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smart_assets import observability
from smart_assets.api.problems import internal_problem, problem
from smart_assets.settings import Settings, is_loopback

logger = logging.getLogger("smart_assets.access")

MAX_JSON_BYTES = 1024 * 1024
"""The largest body of a request that is not an upload; uploads are counted by their own reader."""

_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_UPLOADS = frozenset({"/api/v1/assets", "/api/v1/assets/batch"})


class Edge:
    """Gives each request an id, guards open mode, bounds small bodies, counts, logs, and catches what is a bug."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """`app` is what comes behind."""
        self._app = app
        self._open_mode = settings.open_mode

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

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            refusal = self._refuse(scope["method"], headers) if self._open_mode else None
            if refusal is not None:
                await problem("forbidden", refusal)(scope, receive, send_with_id)
                return
            if scope["path"] not in _UPLOADS:
                receive = _bounded(receive)
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("a request failed", extra={"method": scope["method"], "path": scope["path"]})
            if status:
                raise  # half an answer is out: the connection must break, or it would pass for a whole one
            await internal_problem()(scope, receive, send_with_id)
        finally:
            self._note(scope, status, time.perf_counter() - began)
            observability.request_id.reset(token)

    def _refuse(self, method: str, headers: dict[bytes, bytes]) -> str | None:
        """Why a request may not come in without a key; None where it may.

        Without keys the browser is the danger: any page its user visits can send requests to this machine. A `Host`
        that is not loopback is how DNS rebinding shows, an `Origin` that is not ours how a foreign page does.
        """
        host = headers.get(b"host", b"").decode("latin-1")
        if not is_loopback(_hostname(host)):
            return "without keys only requests to localhost are answered: set ASSETS_API_KEYS to serve others"
        if method in _SAFE_METHODS:
            return None
        origin = headers.get(b"origin")
        if headers.get(b"sec-fetch-site") == b"cross-site" or (
            origin is not None and urlsplit(origin.decode("latin-1")).netloc.lower() != host.lower()
        ):
            return "without keys no other site may send this: set ASSETS_API_KEYS and call with a key"
        return None

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route_name") or getattr(scope.get("route"), "path", "unmatched")
        observability.REQUESTS.labels(scope["method"] if status != 405 else "other", route, status).inc()
        observability.REQUEST_SECONDS.labels(route).observe(seconds)
        # Never the query: it may hold a signature.
        logger.info(
            "request",
            extra={
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(seconds * 1000, 1),
            },
        )


def _hostname(host: str) -> str:
    """The host of a `Host` header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if ":" in host else host


def _bounded(receive: Receive) -> Receive:
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_JSON_BYTES:
            raise HTTPException(413, f"the body is over {MAX_JSON_BYTES} bytes")
        return message

    return bounded
