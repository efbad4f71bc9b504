"""Every error in the one shape: RFC 9457 `application/problem+json`."""

from __future__ import annotations

import re
from functools import cache
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import compile_path

from smart_assets import observability
from smart_assets.errors import InputError, RangeNotSatisfiable, RepeatedError, SmartAssetsError

MEDIA_TYPE = "application/problem+json"

STATUS = {
    "malformed_body": 400,
    "unauthorized": 401,
    "insufficient_credits": 402,
    "forbidden": 403,
    "signature_required": 403,
    "signature_invalid": 403,
    "signature_expired": 403,
    "asset_not_found": 404,
    "variant_not_found": 404,
    "key_not_found": 404,
    "ticket_not_found": 404,
    "route_not_found": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "asset_busy": 409,
    "idempotency_conflict": 409,
    "idempotency_in_progress": 409,
    "ticket_used": 409,
    "ticket_in_use": 409,
    "upload_missing": 409,
    "asset_gone": 410,
    "precondition_failed": 412,
    "body_too_large": 413,
    "unsupported_image": 415,
    "unsupported_media_type": 415,
    "range_not_satisfiable": 416,
    "invalid_parameter": 422,
    "corrupt_image": 422,
    "too_many_pixels": 422,
    "digest_mismatch": 422,
    "storage_not_configured": 422,
    "unsupported": 422,
    "rate_limited": 429,
    "internal_error": 500,
    "storage_error": 502,
    "storage_unavailable": 503,
    "busy": 503,
    "storage_full": 507,
}
"""The status of each code; a code that is not here is a bug, and answered as one."""

REPLAYED = {"Idempotency-Replayed": "true"}
"""Of an answer that was given before."""

_CODE_OF_STATUS = {
    400: "malformed_body",
    404: "route_not_found",
    405: "method_not_allowed",
    408: "body_timeout",
    413: "body_too_large",
}


class InputProblem(BaseModel):
    """One thing that is wrong with the input."""

    loc: list[str | int] = Field(description="The way to it.", examples=[["query", "sizes"]])
    message: str = Field(examples=["'12by4' is not a size"])


class Problem(BaseModel):
    """An error, in the shape of RFC 9457."""

    type: str = Field(examples=["urn:smart-assets:problem:invalid_parameter"])
    title: str = Field(examples=["Invalid parameter"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["sizes: '12by4' is not a size"])
    code: str = Field(description="Stable; what programs should look at.", examples=["invalid_parameter"])
    request_id: str | None = Field(examples=["0198f7a2c5e94c1f"])
    errors: list[InputProblem] | None = Field(None, description="Where the input was invalid, and how.")


def problem(
    code: str,
    detail: str,
    *,
    status: int | None = None,
    errors: tuple[InputError, ...] = (),
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An answer that says what went wrong."""
    content = problem_body(code, detail, observability.request_id.get(), status=status, errors=errors)
    return JSONResponse(content, content["status"], headers=headers, media_type=MEDIA_TYPE)


def problem_body(
    code: str, detail: str, request_id: str | None, *, status: int | None = None, errors: tuple[InputError, ...] = ()
) -> dict[str, Any]:
    """What the answer holds."""
    body = Problem(
        type=f"urn:smart-assets:problem:{code}",
        title=code.replace("_", " ").capitalize(),
        status=status or STATUS[code],
        detail=detail,
        code=code,
        request_id=request_id,
        errors=[InputProblem(loc=list(error.loc), message=error.message) for error in errors] or None,
    )
    return body.model_dump(exclude_none=True)


def problem_of(error: SmartAssetsError) -> JSONResponse:
    """The answer for an error of ours."""
    if error.code not in STATUS:
        raise error
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RepeatedError):
        headers |= REPLAYED
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    return problem(error.code, error.detail, errors=error.errors, headers=headers)


def internal_problem() -> JSONResponse:
    """The answer for a bug of ours: it tells nothing but the request id to look it up by."""
    return problem("internal_error", "something went wrong on our side; the request id helps to find out what")


def install(app: FastAPI) -> None:
    """Make every error that leaves a route, and every route that is not there, a problem."""
    app.add_exception_handler(SmartAssetsError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_exception)


def _allowed_methods(request: Request) -> set[str]:
    """Every method the address takes: the router itself names those of the first route that fits."""
    path = request.scope["path"]
    contexts = iter_route_contexts(request.app.routes)
    fitting = [context for context in contexts if context.path and _compiled(context.path)[0].match(path)]
    # An address that is written out is not also the one of an asset that is called so.
    fitting = [context for context in fitting if context.path == path] or fitting
    methods = {method for context in fitting for method in context.methods or ()}
    return methods | {"HEAD"} if "GET" in methods else methods  # see `api.edge`


@cache
def _compiled(path: str) -> tuple[re.Pattern[str], str, dict[str, Any]]:
    return compile_path(path)


def _on_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SmartAssetsError)  # noqa: S101 - Starlette's type is wider than what it calls us with
    return problem_of(error)


def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    found = error.errors()
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found[0]["loc"] == ("body",) and not media_type.endswith(("/json", "+json")) and found[0]["input"] is not None:
        return problem("unsupported_media_type", f"the Content-Type {media_type[:100]!r} is not taken; send JSON")
    if any(item["type"] == "json_invalid" for item in found):
        return problem("malformed_body", "the body is not JSON")
    errors = tuple(InputError(tuple(item["loc"]), _message(item)) for item in found)
    first = errors[0]
    return problem("invalid_parameter", f"{first.loc[-1]}: {first.message}", errors=errors)


def _message(item: dict[str, Any]) -> str:
    if item["type"] == "extra_forbidden":
        return "there is no such parameter"
    return str(item["msg"]).removeprefix("Value error, ")


def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_allowed_methods(request)))
    code = _CODE_OF_STATUS.get(error.status_code, "internal_error")
    detail = {
        "route_not_found": "there is nothing at this address",
        "method_not_allowed": "this address does not take that method",
    }.get(code, error.detail or HTTPStatus(error.status_code).phrase)
    return problem(code, detail, status=error.status_code, headers=headers)
