"""A route whose parameters are read in one step.

FastAPI takes a query apart field by field and asks every dependency anew for each request, which costs as much as
storing a small image does. Here the query is validated by pydantic alone, and the rest is looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError

from smart_assets.api.deps import get_caller, get_presenter, get_runtime
from smart_assets.api.schemas import IDEMPOTENCY_KEY, UploadQuery
from smart_assets.errors import InvalidParameter

_KEY_HEADER = "idempotency-key"
_LISTS = frozenset(
    name for name, field in UploadQuery.model_json_schema()["properties"].items() if field.get("type") == "array"
)


class UploadRoute(APIRoute):
    """Declared and documented like any other; every upload's endpoint has the same parameters."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What FastAPI calls for a request."""
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            runtime = await get_runtime(request)
            caller = await get_caller(request, runtime)
            response: Response = await endpoint(
                request,
                caller=caller,
                query=read_query(request),
                runtime=runtime,
                show=await get_presenter(request, runtime),
                idempotency_key=read_key(request),
            )
            return response

        return handle


def read_query(request: Request) -> UploadQuery:
    """The parameters of an upload; RequestValidationError, as FastAPI raises it, where they are wrong."""
    given: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in _LISTS:
            given.setdefault(name, []).append(value)
        else:
            given[name] = value
    try:
        return UploadQuery.model_validate(given)
    except ValidationError as error:
        raise _invalid(error, "query") from None


def read_key(request: Request) -> str | None:
    """The request's Idempotency-Key; RequestValidationError where it is none, InvalidParameter where there are two."""
    keys = set(request.headers.getlist(_KEY_HEADER))
    if not keys:
        return None
    if len(keys) > 1:
        raise InvalidParameter.at("header", _KEY_HEADER, message="stands twice, with different keys")
    (key,) = keys
    try:
        return IDEMPOTENCY_KEY.validate_python(key)
    except ValidationError as error:
        raise _invalid(error, "header", _KEY_HEADER) from None


def _invalid(error: ValidationError, *where: str) -> RequestValidationError:
    return RequestValidationError([{**item, "loc": (*where, *item["loc"])} for item in error.errors()])
