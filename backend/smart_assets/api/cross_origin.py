"""Pages of other sites that may call the service from a browser (CORS): those the settings name, and no others."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from smart_assets.api.problems import problem

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_REQUEST_HEADERS = (
    "Authorization",
    "Content-Digest",
    "Content-Disposition",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "Range",
    "X-Request-ID",
)
_ANSWER_HEADERS = (
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Idempotency-Replayed",
    "Location",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "X-Request-ID",
)


class CrossOrigin(CORSMiddleware):
    """Never with credentials of a browser's own: a key is sent by the page, which must have it."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        """`origins` as browsers send them, or `*`."""
        super().__init__(
            app,
            allow_origins=tuple(origins),
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_ANSWER_HEADERS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks first; a refusal has the shape of every error."""
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        return problem("forbidden", "pages of that origin may not send this: see ASSETS_CORS_ORIGINS")
