"""Routes whose parameters are read in one step.

FastAPI takes a query apart field by field and asks every dependency anew for each request, which costs as much as
storing a small image does. Here the query is validated by pydantic alone, and the rest is looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import cache
from inspect import signature
from typing import Any, TypeVar, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from smart_assets.api.deps import get_presenter, get_runtime
from smart_assets.api.schemas import IDEMPOTENCY_KEY
from smart_assets.errors import InvalidParameter

Query = TypeVar("Query", bound=BaseModel)

_KEY_HEADER = "idempotency-key"
_READ: Mapping[str, Callable[[Request], Any]] = {
    "request": lambda request: request,
    "asset_id": lambda request: request.path_params["asset_id"],
    "idempotency_key": lambda request: read_key(request),
}
_KNOWN = frozenset({"caller", "runtime", "show", "query", *_READ})


class DirectRoute(APIRoute):
    """Declared and documented like any other; its endpoint takes some of `_KNOWN`, and returns the response itself."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What FastAPI calls for a request."""
        endpoint = self.endpoint
        names = signature(endpoint).parameters.keys()
        if unknown := names - _KNOWN:
            raise TypeError(f"{self.path}: a DirectRoute does not know {sorted(unknown)}")
        readers = {name: read for name, read in _READ.items() if name in names}
        hints = get_type_hints(endpoint, include_extras=True)
        query_model: type[BaseModel] | None = get_type_hints(endpoint).get("query")
        may = hints["caller"].__metadata__[0].dependency
        is_shown = "show" in names

        async def handle(request: Request) -> Response:
            runtime = await get_runtime(request)
            # Who must not be here is told so before anything else.
            given: dict[str, Any] = {"runtime": runtime, "caller": await may(request, runtime)}
            if is_shown:
                given["show"] = await get_presenter(request, runtime)
            if query_model is not None:
                given["query"] = read_query(request, query_model)
            for name, read in readers.items():
                given[name] = read(request)
            response: Response = await endpoint(**given)
            return response

        return handle


def read_query(request: Request, model: type[Query]) -> Query:
    """The parameters of a request; RequestValidationError, as FastAPI raises it, where they are wrong."""
    lists = _lists(model)
    given: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in lists:
            given.setdefault(name, []).append(value)
        else:
            given[name] = value
    try:
        return model.model_validate(given)
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


@cache
def _lists(model: type[BaseModel]) -> frozenset[str]:
    """The parameters that may stand several times."""
    properties = model.model_json_schema()["properties"]
    return frozenset(name for name, field in properties.items() if field.get("type") == "array")


def _invalid(error: ValidationError, *where: str) -> RequestValidationError:
    return RequestValidationError([{**item, "loc": (*where, *item["loc"])} for item in error.errors()])
