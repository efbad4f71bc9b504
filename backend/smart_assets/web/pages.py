"""The gallery at `/`, Swagger UI at `/docs` and ReDoc at `/redoc`: shells without data, for anybody.

What they show they ask the API for, with the key of whoever looks. Nothing comes from another host but images, and no
page holds a script or a style of its own: the content policies below allow neither.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from html import escape
from importlib.resources.abc import Traversable
from string import Template

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, SecretStr
from starlette.exceptions import HTTPException

from smart_assets.settings import Settings

_OURS = importlib.resources.files("smart_assets.web")
_VENDORED = importlib.resources.files("fastapi_offline") / "static"
"""Swagger UI and ReDoc as their makers build them; the package is there for its files, nothing of it runs."""

_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FOREVER = "public, max-age=31536000, immutable"

# ReDoc makes <style> elements: empty ones, which styled-components fills through the object model, and one for its
# scrollbars. Their hashes let in those, and no other.
_REDOC_STYLES = (
    "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=' 'sha256-QMIg+bpjm3JdElJ388KYke01izlUW0UoNOeKjpMxdgc='"
)

_STRICT = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}

_GZIP_ACCEPTED = re.compile(r"(?:^|,)\s*gzip\s*(?:,|$|;\s*q=(?:1|0?\.0*[1-9]))", re.IGNORECASE)
# Host and port, as a content policy names them: never who logs in there.
_PLAIN_HTTP = re.compile(r"http://(?:[^/@]*@)?([A-Za-z0-9.-]+(?::\d+)?)(?:/|$)", re.ASCII)
_BLOB_ENDPOINT = re.compile(r"BlobEndpoint=(http://[^/;]+)", re.IGNORECASE)


@dataclass(frozen=True)
class _File:
    """A file as browsers get it."""

    content: bytes
    media_type: str

    @cached_property
    def compressed(self) -> bytes:
        """The same under gzip: made once, when it is first asked for."""
        return gzip.compress(self.content, 6, mtime=0)


class _Files:
    """Files under an address that changes with what they hold, so that browsers may keep them for good."""

    def __init__(self, prefix: str, sources: Mapping[str, Traversable]) -> None:
        """`sources` by the names they are asked for."""
        self._files = {
            name: _File(source.read_bytes(), f"{_MEDIA_TYPES[name[name.rindex('.') :]]}; charset=utf-8")
            for name, source in sorted(sources.items())
        }
        digest = hashlib.sha256()
        for name, file in self._files.items():
            digest.update(f"{name}\0{len(file.content)}\0".encode() + file.content)
        self._version = digest.hexdigest()[:12]
        self.base = f"{prefix}/{self._version}"
        """Relative, without a slash at either end: what pages put before a name."""

    def respond(self, version: str, name: str, request: Request) -> Response:
        """The file, compressed where the browser can take it; 404 where there is none of that name and version."""
        file = self._files.get(name) if version == self._version else None
        if file is None:
            raise HTTPException(404)
        headers = {
            "Cache-Control": _FOREVER,
            "Content-Type": file.media_type,
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
        }
        if not _GZIP_ACCEPTED.search(request.headers.get("accept-encoding", "")):
            return Response(file.content, headers=headers)
        return Response(file.compressed, headers=headers | {"Content-Encoding": "gzip"})


class _Page:
    """A shell, the same for everybody: browsers ask each time whether it changed."""

    def __init__(self, template: str, values: Mapping[str, str], policy: Mapping[str, str]) -> None:
        """`values` fill the template and are HTML already; `policy` is added to what every page's is."""
        text = (_OURS / "templates" / template).read_text(encoding="utf-8")
        self._content = Template(text).substitute(values).encode()
        directives = {**_STRICT, **policy}
        self._headers = {
            "Cache-Control": "no-cache",
            "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in directives.items()),
            "Content-Type": "text/html; charset=utf-8",
            "Cross-Origin-Opener-Policy": "same-origin",
            "ETag": f'"{hashlib.sha256(self._content).hexdigest()[:24]}"',
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
        }

    def respond(self, request: Request) -> Response:
        """The page, or 304 where the browser has it."""
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if self._headers["ETag"] in known:
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, headers=self._headers)


def pages(settings: Settings) -> APIRouter:
    """The routes of every page and of the files they are made of."""
    static, docs = _static(), _docs()
    images = _image_sources(settings)
    addresses = {"static": static.base, "docs": docs.base}
    gallery = _Page(
        "gallery.html",
        addresses
        | {
            "accept": ",".join(image_format.media_type for image_format in settings.policy.formats),
            "formats": ", ".join(image_format.label for image_format in settings.policy.formats),
            "max_bytes": str(settings.max_upload_bytes),
            "max_expiry": str(settings.policy.max_signed_expiry_seconds),
            "presets": "\n".join(_preset(name, sizes) for name, sizes in settings.presets.items()),
        },
        {"img-src": images, "require-trusted-types-for": "'script'"},
    )
    swagger = _Page("swagger.html", addresses, {"img-src": images})
    redoc = _Page(
        "redoc.html",
        addresses,
        {"img-src": "'self' data:", "style-src": f"'self' {_REDOC_STYLES}", "worker-src": "blob:"},
    )

    router = APIRouter(include_in_schema=False)
    methods = ["GET", "HEAD"]

    @router.api_route("/", methods=methods)
    async def show_gallery(request: Request) -> Response:
        return gallery.respond(request)

    @router.api_route("/docs", methods=methods)
    async def show_swagger_ui(request: Request) -> Response:
        return swagger.respond(request)

    @router.api_route("/redoc", methods=methods)
    async def show_redoc(request: Request) -> Response:
        return redoc.respond(request)

    # In threads: to compress the largest takes a moment.
    @router.api_route("/static/{version}/{name}", methods=methods)
    def send_static(version: str, name: str, request: Request) -> Response:
        return static.respond(version, name, request)

    @router.api_route("/docs/{version}/{name}", methods=methods)
    def send_docs(version: str, name: str, request: Request) -> Response:
        return docs.respond(version, name, request)

    return router


@cache
def _static() -> _Files:
    return _Files("static", {file.name: file for file in (_OURS / "static").iterdir()})


@cache
def _docs() -> _Files:
    names = ("swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js")
    return _Files("docs", {name: _VENDORED / name for name in names})


def _preset(name: str, sizes: tuple[str, ...]) -> str:
    return (
        f'<label class="chip"><input type="checkbox" name="preset" value="{escape(name)}">'
        f"<span>{escape(name)} <small>{escape(', '.join(sizes))}</small></span></label>"
    )


def _image_sources(settings: Settings) -> str:
    """Where images may come from: here, what the page made itself, and the places where public or signed URLs lead.

    Which those are the storages decide, a vendor's redirects included: over TLS any host may be it, without TLS only
    those that the settings name.
    """
    plain = sorted({f"http://{match[1]}" for url in _urls(settings) if (match := _PLAIN_HTTP.match(url))})
    return " ".join(["'self'", "data:", "blob:", "https:", *plain])


def _urls(group: BaseModel) -> Iterator[str]:
    """Every address that a setting, or a part of one, holds."""
    values: list[object] = [getattr(group, name) for name in type(group).model_fields]
    while values:
        value = values.pop()
        if isinstance(value, BaseModel):
            yield from _urls(value)
        elif isinstance(value, Mapping):
            values.extend(value.values())
        elif isinstance(value, SecretStr):  # Azure's connection string: of it nothing but the address
            yield from _BLOB_ENDPOINT.findall(value.get_secret_value())
        elif isinstance(value, str):
            yield value
